// ---- The list of keys: a tree, or one row for each. Only the rows that fit exist.
const keys = new Map();
let order = [], stale = true, loaded = false, cut = false;
let needle = "", sorting = "tree", only = false, chosen = "", cursor = "";
const ROW = 26, pool = [], list = $("list");
const isTree = () => sorting === "tree" && !needle && !only;
const idOf = item => item.folder ? "folder " + item.folder.path : "key " + item.k;

function forgetKeys() { keys.clear(); tree = newFolder(""); order = []; stale = true; loaded = false; }
function takeRow(row, most) {
  const old = keys.get(row.k);
  if (!old && keys.size >= most) { cut = true; return false; }
  row.at = loaded ? performance.now() : -1e9;
  row.hay = (row.k + "\n" + row.v + "\n" + row.w).toLowerCase();
  keys.set(row.k, row);
  plant(row, old);
  if (!old || needle || only || sorting === "time") stale = true;
  if (row.k === sheet?.key) later(refresh);
  return true;
}
function dropRow(key, how) {
  const row = keys.get(key);
  if (row) { keys.delete(key); uproot(row); stale = true; }
  if (key === sheet?.key) { sheet.gone = how; later(refresh); }
}
function arrange() {
  stale = false;
  if (isTree()) { order = openRows(tree, 0, []); return; }
  let rows = [...keys.values()];
  if (needle) rows = rows.filter(row => row.hay.includes(needle));
  if (only) rows = rows.filter(row => row.c);
  order = rows.sort(sorting === "time" ? (a, b) => b.t - a.t : (a, b) => inOrder(a.k, b.k));
}
function showKeys() {
  if (stale) arrange();
  const parts = [(needle || only ? plural(order.length, "match", "matches") + " of " : "") + plural(keys.size, "key")];
  if (tree.clashes) parts.push(plural(tree.clashes, "conflict"));
  if (status?.store) parts.push(size(status.store.size_bytes) + " of " + size(status.store.size_bytes_max) + " with sets and counters");
  put($("keys-note"), parts.join(" · "));
  showNotice(); showDrafts();
  $("empty").hidden = order.length > 0;
  if (!order.length) put($("empty"), !loaded ? "Loading …" : needle || only ? "Nothing matches." : "The store is empty. Put a key: tidings put greeting hello");
  list.setAttribute("role", isTree() ? "tree" : "listbox");
  $("space").style.height = order.length * ROW + "px";
  drawRows();
}
function showNotice() {
  const notice = $("notice"), asks = needle && needle !== prefix;
  notice.hidden = !(cut || prefix);
  const text = prefix ? "Only keys that begin with “" + prefix + "” are loaded." : "The store has more keys than this page loads.";
  if (notice.hidden || notice.dataset.text === text + needle) return;
  notice.dataset.text = text + needle;
  notice.replaceChildren(make("span", text));
  if (asks) notice.append(button("Load keys beginning with “" + $("search").value + "”", () => reload($("search").value)));
  if (prefix) notice.append(button("Load from the beginning", () => reload("")));
}

// ---- The rows.
const first = () => Math.max(0, Math.floor(list.scrollTop / ROW) - 2), fitting = () => Math.ceil(list.clientHeight / ROW) + 4;
function drawRows() {
  const from = first(), until = Math.min(order.length, from + fitting());
  while (pool.length < until - from) pool.push(makeRow());
  list.removeAttribute("aria-activedescendant");
  pool.forEach((row, i) => {
    const item = order[from + i];
    row.hidden = from + i >= until;
    if (row.hidden) { row.removeAttribute("id"); return; }
    row.item = item;
    row.style.top = (from + i) * ROW + "px";
    row.id = "row-" + (from + i);
    placeRow(row, item, from + i);
    item.folder ? fillFolder(row, item) : fillKey(row, item, keys.get(item.k));
  });
}
function makeRow() {
  const row = make("div", null, "row");
  for (const cls of ["mono key", "mono", "", "soft", "flag"]) row.append(make("span", null, cls));
  row.onclick = () => { row.item.folder ? pickFolder(row.item) : choose(row.item.k); list.focus(); };
  $("space").append(row);
  return row;
}
function placeRow(row, item, at) {
  const isChosen = idOf(item) === cursor;
  row.setAttribute("role", isTree() ? "treeitem" : "option");
  row.setAttribute("aria-selected", isChosen);
  row.setAttribute("aria-setsize", order.length);
  row.setAttribute("aria-posinset", at + 1);
  if (isChosen) list.setAttribute("aria-activedescendant", row.id);
  if (item.depth === undefined) row.removeAttribute("aria-level"); else row.setAttribute("aria-level", item.depth + 1);
  if (item.folder) row.setAttribute("aria-expanded", item.isOpen); else row.removeAttribute("aria-expanded");
  row.firstChild.style.paddingLeft = Math.min(item.depth || 0, 12) * 14 + (isTree() && !item.folder ? 16 : 0) + "px";
}
function fillFolder(row, { folder, label, isOpen }) {
  const [key, value, writer, ago, flag] = row.children;
  row.className = "row folder" + (cursor === "folder " + folder.path ? " chosen" : "");
  delete row.dataset.key;
  put(key, (isOpen ? "▾ " : "▸ ") + label);
  key.title = folder.path;
  put(value, plural(folder.count, "key")); value.title = "";
  put(writer, ""); put(ago, "");
  put(flag, folder.clashes ? "⚠ " + count(folder.clashes) : "");
  flag.className = "flag warn"; flag.title = folder.clashes ? plural(folder.clashes, "conflict") : "";
}
function fillKey(row, item, data) {
  if (!data) return;
  const [key, value, writer, ago, flag] = row.children, t = now();
  row.dataset.key = data.k;
  row.className = "row" + (cursor === "key " + data.k ? " chosen" : performance.now() - data.at < 900 ? " fresh" : "") + (drafts.has(data.k) ? " draft" : "");
  highlight(key, item.label || data.k);
  put(value, data.v.replace(/[\u0000-\u001f]/g, "·")); put(writer, data.w); put(ago, span(t - data.t));
  key.title = data.k; value.title = data.v; writer.title = data.w;
  const [text, title, cls] = flagOf(data, t);
  put(flag, text); flag.title = title; flag.className = "flag " + cls;
}
function flagOf(data, t) {
  if (data.c) return ["⚠ " + (data.c.length + 1) + " values", "written at the same time: " + plural(data.c.length + 1, "value"), "warn"];
  if (data.x) return [span(data.x - t) + " left", "vanishes in " + span(data.x - t), "soft"];
  return data.e ? ["with its node", "vanishes with the process that wrote it", "soft"] : ["", "", "soft"];
}
function highlight(cell, key) {
  const at = needle ? key.toLowerCase().indexOf(needle) : -1;
  if (at < 0) { if (cell.firstElementChild || cell.textContent !== key) cell.textContent = key; return; }
  cell.replaceChildren(key.slice(0, at), make("mark", key.slice(at, at + needle.length)), key.slice(at + needle.length));
}
function pickFolder(item) { cursor = idOf(item); toggle(item.folder.path); }

// ---- Search, order and keyboard.
list.onscroll = () => later(drawRows);
setInterval(() => { if (!document.hidden) later(drawRows); }, 1000);
function rearrange() { stale = true; list.scrollTop = 0; later(showKeys); }
$("search").oninput = event => { needle = event.target.value.toLowerCase(); rearrange(); };
$("order").onchange = event => { sorting = event.target.value; rearrange(); };
$("only").onchange = event => { only = event.target.checked; rearrange(); };
function moveTo(at) {
  const next = Math.min(order.length - 1, Math.max(0, at)), item = order[next];
  if (item.folder) { cursor = idOf(item); later(drawRows); } else choose(item.k);
  if (next * ROW < list.scrollTop) list.scrollTop = next * ROW;
  if ((next + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (next + 1) * ROW - list.clientHeight;
}
function foldByKey(key, at) {
  const item = order[at];
  if (!item || !isTree() || !(key === "ArrowLeft" || key === "ArrowRight")) return false;
  if (item.folder && item.isOpen === (key === "ArrowLeft")) toggle(item.folder.path);
  else if (key === "ArrowRight") { if (item.folder) moveTo(at + 1); }
  else for (let up = at - 1; up >= 0; up--) if (order[up].depth < item.depth) { moveTo(up); break; }
  return true;
}
list.onkeydown = event => {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1), at = order.findIndex(item => idOf(item) === cursor);
  if (event.key === "Enter" && at >= 0) {
    event.preventDefault();
    order[at].folder ? toggle(order[at].folder.path) : $("d-value").focus();
    return;
  }
  if (foldByKey(event.key, at)) return event.preventDefault();
  const to = { ArrowDown: at + 1, ArrowUp: at < 0 ? 0 : at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: order.length - 1 }[event.key];
  if (to === undefined || !order.length) return;
  event.preventDefault();
  moveTo(to);
};
addEventListener("keydown", event => {
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName);
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") isFlagsPage() ? document.activeElement?.id !== "flag-text" && $("flag-close").click() : sheet && (closeSheet(), list.focus());
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); $(isFlagsPage() ? "f-search" : "search").focus(); }
  if (event.key === "n") { event.preventDefault(); isFlagsPage() ? $("f-new").click() : openBlank(); }
});

