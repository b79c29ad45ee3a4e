
// ---- Feature flags: which page is shown, the list, and changes. Everything is asked of the node anew when it says that
// something under the flags' prefix has changed, and every few seconds besides: evaluations are counted elsewhere.
const FLAGS_PAUSE_MS = 500, FLAGS_EVERY_MS = 5000, FLAGS_MORE = 100, FLAGS_MOST = 1000;
let flagSet = "default", flagNeedle = "", flagLimit = FLAGS_MORE, flagsNow = null, flagName = "";
const isFlagsPage = () => location.hash === "#flags" || location.hash.startsWith("#flags/");
const mayWrite = () => !!flagsNow?.may_write;
const flagPath = (flag, rest = "") => "/v1/flags/" + encodeURIComponent(flagSet) + "/" + encodeURIComponent(flag) + rest;
const flagHash = flag => "#flags/" + encodeURIComponent(flagSet) + (flag ? "/" + encodeURIComponent(flag) : "");

// The place is in the address, so that it can be sent to somebody and the browser's Back works.
function showPage() {
  const isFlags = isFlagsPage();
  $("store-page").hidden = isFlags;
  $("flags-page").hidden = !isFlags;
  for (const link of $("pages").children) {
    if ((link.hash === "#flags") === isFlags) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  if (!isFlags) return later(showKeys);
  const [, set, flag] = location.hash.split("/").map(part => { try { return decodeURIComponent(part); } catch { return ""; } });
  if (set && set !== flagSet) { flagSet = set; flagsNow = null; flagLimit = FLAGS_MORE; }
  openFlag(flag || "");
  flagsSoon(0);
}
addEventListener("hashchange", showPage);
document.querySelector(".skip").onclick = event => { event.preventDefault(); $(isFlagsPage() ? "f-search" : "search").focus(); };

// ---- Asking the node. One request at a time.
let flagsTimer = 0, flagsBusy = false;
function flagsSoon(pause = FLAGS_PAUSE_MS) {
  if (!isFlagsPage() || flagsTimer && pause) return;
  clearTimeout(flagsTimer);
  flagsTimer = setTimeout(loadFlags, pause);
}
async function askFlags(query) {
  const reply = await call("GET", "/v1/flags?set=" + encodeURIComponent(flagSet) + query);
  const said = await reply.json();
  if (!reply.ok) throw new Error(said.error);
  return said;
}
async function loadFlags() {
  flagsTimer = 0;
  if (flagsBusy) return flagsSoon();
  flagsBusy = true;
  const set = flagSet, flag = flagName, needle = flagNeedle;
  try {
    const found = await askFlags("&limit=" + flagLimit + "&search=" + encodeURIComponent(needle));
    let one = found.flags.find(one => one.flag === flag);
    if (flag && !one) one = (await askFlags("&flag=" + encodeURIComponent(flag))).flags[0];
    if (set !== flagSet || needle !== flagNeedle) flagsSoon(0);
    else {
      flagsNow = found;
      flagsSaid("");
      if (flag === flagName) takeFlag(one || null);
      later(showFlags);
      evaluateSoon();
    }
  } catch (error) { flagsSaid("The flags could not be read: " + error.message); }
  flagsBusy = false;
}
setInterval(() => { if (isFlagsPage() && !document.hidden) flagsSoon(); }, FLAGS_EVERY_MS);
// What the stream tells of keys.
function noteFlagKeys(news) {
  const stem = flagsNow && flagsNow.prefix.replace(/\/$/, "");
  if (stem && (news.rows.some(row => row.k.startsWith(stem)) || Object.keys(news.gone).some(key => key.startsWith(stem)))) flagsSoon();
}

// ---- The list.
const flagTotal = one => Object.values(one.evaluations).reduce((sum, n) => sum + n, 0);
function flagsSaid(text) { $("f-notice").hidden = !text; put($("f-notice"), text); }
function showFlags() {
  if (!flagsNow) return;
  const { flags, next, state, sets, rejected } = flagsNow, parts = [plural(flags.length, "flag") + (next ? " and more" : "") + (flagNeedle ? " found" : "")];
  if (rejected.length) parts.push(rejected.length + " malformed");
  if (state === "stale") parts.push("the node has not caught up with the cluster yet");
  if (!mayWrite()) parts.push("read only: this token changes nothing");
  put($("flags-note"), parts.join(" · "));
  showSets(sets);
  showShared(rejected);
  const body = document.querySelector("#flags tbody");
  fillRows(body, "flag", flags, one => flagRow(one.flag), fillFlag);
  body.parentNode.hidden = !flags.length;
  $("f-empty").hidden = flags.length > 0;
  put($("f-empty"), flagNeedle ? "No flag of this set has such a name." : "This set has no flags." + (mayWrite() ? " Begin with New flag." : ""));
  $("f-more").hidden = !next;
  $("f-more").disabled = flagLimit >= FLAGS_MOST;
  put($("f-more"), flagLimit >= FLAGS_MOST ? "There are more; search for them" : "Show more");
  $("f-new").disabled = !mayWrite();
}
function showSets(sets) {
  const names = [...new Set([flagSet, "default", ...sets])].sort(byName), box = $("f-set");
  if (box.dataset.same !== JSON.stringify(names)) {
    box.dataset.same = JSON.stringify(names);
    box.replaceChildren(...names.map(name => { const item = make("option", name); item.value = name; return item; }));
  }
  box.value = flagSet;
}
// What is wrong with keys that are no flags: shared rules, metadata, and keys without the name of a flag.
function showShared(rejected) {
  const stem = flagsNow.prefix + flagSet + "/", parts = ["$evaluators", "$metadata"].map(part => stem + part);
  const wrong = rejected.filter(one => parts.includes(one.key) || !one.key?.slice(flagsNow.prefix.length).includes("/"));
  $("f-shared").hidden = !wrong.length;
  put($("f-shared"), wrong.map(one => (one.key || "a file") + " is not used: " + one.error + ".").join(" "));
}
function flagRow(flag) {
  const row = make("tr"), open = button("", () => { location.hash = flagHash(flag); }, "mono open"), state = switchButton("", () => toggleFlag(flag));
  row.dataset.flag = flag;
  const [name, on, gives, asked] = ["th", "td", "td", "td", "td", "td"].map(tag => row.appendChild(make(tag)));
  name.scope = "row";
  name.append(open, make("span", "", "marks"));
  on.append(state);
  gives.className = "gives";
  asked.className = "asked";
  asked.append(make("span", null, "bar"), make("span"));
  row.children[4].className = row.children[5].className = "soft";
  row.onclick = event => { if (!event.target.closest("button")) location.hash = flagHash(flag); };
  return row;
}
function fillFlag(row, one) {
  const [name, on, gives, asked, last, changed] = row.children, [open, marks] = name.children, isChosen = one.flag === flagName;
  row.className = isChosen ? "chosen" : "";
  put(open, one.flag);
  open.title = one.flag;
  if (isChosen) open.setAttribute("aria-current", "true"); else open.removeAttribute("aria-current");
  put(marks, [one.rejected && "✕ malformed", one.conflict && "⚠ conflict", one.plan && "▸ " + planState(one.plan)].filter(Boolean).join(" · "));
  marks.className = "marks " + (one.rejected ? "bad" : one.conflict ? "warn" : "soft");
  fillSwitch(on.firstChild, one.state === "ENABLED", "Enabled: " + one.flag, !mayWrite() || !!one.rejected);
  put(gives, givesWords(one));
  gives.title = gives.textContent;
  fillBar(asked.firstChild, one);
  put(asked.lastChild, flagTotal(one) ? count(flagTotal(one)) : "–");
  put(last, lastWords(one));
  put(changed, (one.writer || "unknown") + ", " + span(now() - one.time_ms) + " ago");
}
function switchButton(text, act) {
  const element = button(text, act, "switch");
  element.setAttribute("role", "switch");
  return element;
}
function fillSwitch(element, isOn, name, isDisabled) {
  element.setAttribute("aria-checked", isOn);
  element.setAttribute("aria-label", name);
  element.disabled = isDisabled;
}
const variantWords = name => name || "the program’s default";
function givesWords(one) {
  if (one.rejected) return one.has_last_good ? "the last good definition" : "the program’s default";
  if (one.state !== "ENABLED") return "the program’s default";
  const rest = variantWords(one.defaultVariant);
  if (one.shares.length) return (one.targeting.if ? "rule, else " : "") + one.shares.map(share => share.variant + " " + percentWords(share.percent)).join(", ");
  return isEmptyRule(one.targeting) ? rest : "rule, else " + rest;
}
const isEmptyRule = rule => !rule || !Object.keys(rule).length;
const percentWords = percent => +percent.toFixed(3) + " %";
// Evaluations are counted by day; today is that of UTC.
function lastWords(one) {
  const day = typeof one.lastEvaluated === "string" ? Date.parse(one.lastEvaluated) : NaN;
  if (Number.isNaN(day)) return flagTotal(one) ? "today" : "never";
  const days = Math.floor((now() - day) / 864e5);
  return days <= 0 ? "today" : days === 1 ? "yesterday" : days + " days ago";
}
// The shares of the variants, each with its own shade; the words stand in the table of variants.
function fillBar(bar, one) {
  const all = flagTotal(one), names = variantNames(one);
  while (bar.children.length > names.length) bar.lastChild.remove();
  while (bar.children.length < names.length) bar.append(make("i"));
  names.forEach((name, at) => {
    bar.children[at].className = "shade-" + (name ? at % 5 : "none");
    bar.children[at].style.width = (all ? (one.evaluations[name] || 0) / all * 100 : 0) + "%";
  });
  bar.title = names.map(name => variantWords(name) + ": " + count(one.evaluations[name] || 0)).join(", ");
}
// Of the definition, then those that were only evaluated, then "" for the program's default.
function variantNames(one) {
  const own = Object.keys(one.variants || {}), others = Object.keys(one.evaluations).filter(name => name && !own.includes(name));
  return [...own, ...others, ...("" in one.evaluations ? [""] : [])];
}

// ---- Changes. Each is made under the condition that the flag is as it was read here.
let flagUndo = null;
function authorQuery() {
  const by = $("f-by").value.trim(), note = $("f-note").value.trim();
  return (by ? "&by=" + encodeURIComponent(by) : "") + (note ? "&note=" + encodeURIComponent(note) : "");
}
// Sends a change. The stamp that it made, or null after it has said what was wrong.
async function sendFlag(method, path, body, words, more = {}, headers = {}) {
  flagSays("");
  let reply, said;
  try {
    reply = await call(method, path + authorQuery(), body, headers);
    said = await reply.json();
  } catch { flagSays("The node is out of reach. Whether the change was made is not known.", "bad"); return null; }
  flagsSoon(0);
  if (!reply.ok) {
    if (reply.status === 412) flagSays("The flag was changed since it was read here. Nothing was written. What is shown now is what is there.", "bad");
    else flagSays(said.error + "; " + said.detail + ".", "bad");
    more.failed?.(said);
    return null;
  }
  $("f-note").value = "";
  flagSays(words + " at " + clock(Date.now()) + "." + (said.warning ? " But " + said.warning + "." : ""), "", more.undo && said.stamp ? { ...more.undo, stamp: said.stamp } : null);
  return said.stamp || "";
}
// What became of a change, with a way back where there is one.
function flagSays(text, cls = "", undo = null) {
  flagUndo = undo;
  $("f-said").hidden = !text;
  $("f-said").className = "said " + cls;
  put($("f-said-text"), text);
  $("f-undo").hidden = !undo;
}
$("f-said-close").onclick = () => flagSays("");
$("f-undo").onclick = async () => {
  const { flag, stamp, definition } = flagUndo;
  $("f-note").value ||= "undone";
  await sendFlag("PUT", flagPath(flag, "?if=" + stamp), definition, flag + " is as before");
};
// The definition as it is stored, if it still has the stamp that is shown here.
async function definitionOf(flag, stamp) {
  const entry = await entryOf(flagsNow.prefix + flagSet + "/" + flag);
  return entry && entry.stamp === stamp && entry.value != null ? entry.value : null;
}
// Changes one thing of a definition, and leaves everything else in it as it is. The node knows how.
async function editFlag(one, edit, words) {
  const text = await definitionOf(one.flag, one.stamp), more = text === null ? {} : { undo: { flag: one.flag, definition: text } };
  return sendFlag("POST", flagPath(one.flag, "/edit?if=" + one.stamp), JSON.stringify(edit), words, more, { "content-type": "application/json" });
}
const knownFlag = flag => flag === flagName && flagNow ? flagNow : flagsNow.flags.find(one => one.flag === flag);
function toggleFlag(flag) {
  const one = knownFlag(flag), isOn = one.state === "ENABLED";
  return editFlag(one, isOn ? "disable" : "enable", flag + " was " + (isOn ? "disabled" : "enabled"));
}

// ---- Search, sets and keyboard.
$("f-search").oninput = () => { flagNeedle = $("f-search").value; flagLimit = FLAGS_MORE; flagsSoon(flagsNow ? 150 : 0); };
$("f-set").onchange = () => { location.hash = "#flags/" + encodeURIComponent($("f-set").value); };
$("f-more").onclick = () => { flagLimit = Math.min(flagLimit * 2, FLAGS_MOST); flagsSoon(0); };
$("f-by").value = localStorage.getItem("tidings-by") || "";
$("f-by").onchange = () => localStorage.setItem("tidings-by", $("f-by").value.trim());
document.querySelector("#flags tbody").onkeydown = event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], rows = [...event.currentTarget.children];
  if (!step || !event.target.matches(".open, .switch")) return;
  const next = rows[rows.indexOf(event.target.closest("tr")) + step];
  if (!next) return;
  event.preventDefault();
  next.querySelector(event.target.matches(".open") ? ".open" : ".switch").focus();
};
