// ---- Elements, words and requests: what all parts use.
const $ = id => document.getElementById(id);
function make(tag, text, cls) {
  const element = document.createElement(tag);
  if (text != null) element.textContent = text;
  if (cls) element.className = cls;
  return element;
}
// Leaves an element alone that says so already: a screen reader would read it again.
function put(element, text) { if (element.textContent !== text) element.textContent = text; }
function button(text, act, cls) {
  const element = make("button", text, cls);
  element.type = "button";
  element.onclick = act;
  return element;
}
// Fills a table with one row for each of some things, in their order. `name` is the field that tells them apart. Rows
// that are there stay, so that what has the focus in one keeps it.
function fillRows(body, name, things, makeRow, fill) {
  const seen = new Map([...body.children].map(row => [row.dataset[name], row]));
  let place = null;
  for (const one of things) {
    const row = seen.get(one[name]) || makeRow(one);
    seen.delete(one[name]);
    fill(row, one);
    const next = place ? place.nextSibling : body.firstChild;
    if (next !== row) body.insertBefore(row, next);
    place = row;
  }
  seen.forEach(row => row.remove());
}

function span(ms) {
  const s = ms / 1e3;
  if (s < 0) return "0 s";
  if (s < 120) return Math.floor(s) + " s";
  if (s < 7200) return Math.floor(s / 60) + " min";
  return s < 172800 ? Math.floor(s / 3600) + " h" : Math.floor(s / 86400) + " d";
}
function micro(us) {
  if (us == null) return "–";
  if (us < 1000) return us + " µs";
  if (us < 1e5) return (us / 1e3).toFixed(1) + " ms";
  return us < 1e6 ? Math.round(us / 1e3) + " ms" : (us / 1e6).toFixed(1) + " s";
}
function size(bytes) {
  if (bytes < 1024) return bytes + " B";
  if (bytes < 1048576) return (bytes / 1024).toFixed(1) + " KiB";
  return bytes < 1073741824 ? (bytes / 1048576).toFixed(1) + " MiB" : (bytes / 1073741824).toFixed(1) + " GiB";
}
const count = n => Number(n).toLocaleString("en");
const plural = (n, one, many) => count(n) + " " + (n === 1 ? one : many || one + "s");
const clock = ms => new Date(ms).toLocaleTimeString("en-GB");
const date = ms => new Date(ms).toLocaleString("en-GB");
const byName = (a, b) => a.localeCompare(b, "en", { numeric: true });

// The node's clock, as far as the page knows it.
let skew = 0;
const now = () => Date.now() + skew;

const base = location.pathname.replace(/\/+$/, "");
let token = sessionStorage.getItem("tidings-token") || "";
function call(method, path, body, more) {
  const headers = token ? { authorization: "Bearer " + token, ...more } : { ...more };
  return fetch(base + path, { method, body, headers, cache: "no-store" });
}
async function askToken() {
  $("ask").showModal();
  await new Promise(done => $("ask").addEventListener("close", done, { once: true }));
  token = $("token").value.trim();
  sessionStorage.setItem("tidings-token", token);
}

// Everything is drawn at most once a frame, whatever comes.
const pending = new Set();
function later(draw) {
  if (!pending.size) requestAnimationFrame(() => {
    const due = [...pending];
    pending.clear();
    due.forEach(one => one());
  });
  pending.add(draw);
}

// ---- Light and dark.
const media = matchMedia("(prefers-color-scheme: dark)");
const theme = () => localStorage.getItem("tidings-theme") || (media.matches ? "dark" : "light");
function dress() {
  document.documentElement.dataset.theme = theme();
  put($("theme"), theme() === "dark" ? "Light" : "Dark");
  colours = null;
  drawPlots();
}
$("theme").onclick = () => {
  localStorage.setItem("tidings-theme", theme() === "dark" ? "light" : "dark");
  dress();
};
media.onchange = dress;

