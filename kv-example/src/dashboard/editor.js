// ---- Editing: what the form says, drafts, checks, and writes that replace only what was shown.
const TTL = /^\d+(ms|s|m|h|d)$/;
const isDirty = one => one.field.text !== one.original || one.life !== lifeOf(one.filled) || one.ttl !== "" || one.isNew && one.typedKey !== "";
const keyOf = one => one.isNew ? one.typedKey : one.key;
function noteDraft(one) {
  if (isDirty(one)) drafts.set(one.key, one); else drafts.delete(one.key);
  later(showKeys);
}
function showDrafts() {
  $("drafts").hidden = !drafts.size;
  put($("drafts"), plural(drafts.size, "unsaved edit"));
}
// One after another.
$("drafts").onclick = () => {
  const names = [...drafts.keys()], next = names[(names.indexOf(sheet?.key) + 1) % names.length];
  reveal(next);
  later(showKeys);
  next === "" ? openBlank() : choose(next);
};
addEventListener("beforeunload", event => { if (drafts.size) event.preventDefault(); });

// Why the form cannot be saved, or "".
function faultOf(one) {
  const { field } = one;
  if (!field.isWhole) return "Only the first " + size(HEX_BYTES_MAX) + " are shown, so it cannot be edited here.";
  if (field.kind === "hex" && !fromHex(field.text)) return "Not hexadecimal: bytes are pairs of 0-9 and a-f.";
  if (field.kind === "json" && jsonError(field.text)) return "Not JSON: " + jsonError(field.text);
  if (one.life === "ttl" && !TTL.test(one.ttl)) return "A time to live is a number and a unit: 500ms, 30s, 5m, 1h, 7d.";
  return "";
}
function showEditor() {
  const { field, isRead, entry, filled, life } = sheet, value = $("d-value"), fault = isRead ? faultOf(sheet) : "";
  if (value.value !== field.text) value.value = field.text;
  const rests = !isRead || sheet.isSending;
  value.readOnly = rests || !field.isWhole;
  for (const id of ["d-kind", "d-life", "d-ttl"]) $(id).disabled = rests;
  $("d-kind").value = field.kind;
  $("life-keep").hidden = !filled?.expires_ms;
  if (filled?.expires_ms) put($("life-keep"), "until " + date(filled.expires_ms) + ", as it was");
  put($("life-node"), "until the process of " + (status?.name || "this node") + " ends");
  $("d-life").value = life;
  $("d-ttl").hidden = life !== "ttl";
  if ($("d-ttl").value !== sheet.ttl) $("d-ttl").value = sheet.ttl;
  $("d-put").disabled = rests || !!fault || !keyOf(sheet) || !isDirty(sheet);
  $("d-discard").disabled = !isDirty(sheet);
  $("d-delete").disabled = !entry || rests;
  showFaults(fault);
  put($("d-said"), sheet.said);
}
function showFaults(fault) {
  const items = fault ? [["", fault]] : (sheet.schema?.errors || []).map(one => [one.path || "/", one.message]);
  const whole = keyOf(sheet).endsWith("$schema") ? "Not a schema that can be used:" : "Not a definition of a flag:";
  const head = fault || !items.length ? "" : sheet.schema.schema ? "Not what the schema " + sheet.schema.schema + " permits:" : whole;
  $("faults").hidden = !items.length;
  const same = head + items.flat().join("\n");
  if ($("faults").dataset.same === same) return;
  $("faults").dataset.same = same;
  const list = make("ul");
  list.append(...items.map(([path, text]) => {
    const item = make("li");
    if (path) item.append(make("code", path), " ");
    item.append(text);
    return item;
  }));
  $("faults").replaceChildren(...(head ? [make("strong", head)] : []), list);
}

// ---- The schema, asked of the node after a pause.
let checkTimer = 0;
function checkSoon() { clearTimeout(checkTimer); checkTimer = setTimeout(check, 300); }
async function check() {
  const mine = sheet, text = mine?.field.text;
  if (!mine || !keyOf(mine) || !mine.isRead || faultOf(mine) || !mine.entry && !isDirty(mine)) return;
  try {
    const reply = await call("POST", "/v1/check/" + encodeURIComponent(keyOf(mine)), bodyOf(mine.field));
    if (!reply.ok) return;
    const found = await reply.json();
    if (mine.field.text !== text) return;
    mine.schema = found;
    if (mine === sheet) showSheet();
  } catch { /* It is checked again when it is saved. */ }
}

// ---- Writes.
// Writes under the condition that the key is as `entry`, including what lost against it. A node that was restarted counts
// revisions anew: if the versions are still the ones that were shown, it is asked once more.
async function send(method, key, query, body, entry) {
  const path = "/v1/kv/" + encodeURIComponent(key) + query;
  for (let turn = 0; ; turn++) {
    const condition = entry ? { "x-tidings-if-revision": entry.revision } : { "if-none-match": "*" };
    let reply, said;
    try {
      reply = await call(method, path, body, condition);
      said = await reply.json();
    } catch { return { error: "the node is out of reach; nothing is known to be written" }; }
    if (reply.ok) return { stamp: said.stamp };
    if (reply.status !== 412) return { error: said.error + "; " + said.detail, schema: said.errors && said };
    const theirs = await entryOf(key);
    if (theirs === undefined) return { error: said.error + "; " + said.detail };
    if (turn || !theirs || versionsOf(theirs) !== versionsOf(entry)) return { clash: theirs };
    entry = theirs;
  }
}
function lifeQuery(life, ttl, entry) {
  if (life === "ttl") return "?ttl=" + encodeURIComponent(ttl);
  if (life === "node") return "?ephemeral=true";
  return life === "keep" ? "?expires_ms=" + entry.expires_ms + (entry.ephemeral ? "&ephemeral=true" : "") : "";
}
// Why a version cannot be written again as it was, or "": this node cannot bind a value to the process of another one.
function foreignLife(one) {
  return one?.ephemeral && one.origin !== status?.run ? "It was bound to the process of " + writerOf(one) + ", which alone can write it so" : "";
}
// Sends what a sheet says. Its form rests until what came of it was read. Whether it is done.
async function sendSheet(one, isDelete, method, query, body) {
  const key = keyOf(one), before = one.entry;
  one.isSending = true;
  one.said = "";
  if (one === sheet) showSheet();
  const done = await send(method, key, query, body, before);
  if (done.stamp) { noteWrite(key, before, isDelete ? null : done.stamp); return true; }
  one.isSending = false;
  one.said = done.error || "";
  if (done.schema) one.schema = done.schema;
  const why = "The key was changed since it was read here. Nothing was " + (isDelete ? "deleted." : "written.");
  if (done.clash !== undefined) one.clash = { theirs: done.clash, isDelete, why };
  if (one === sheet) showSheet();
  return false;
}
async function save(one = sheet) {
  if (!one?.isRead || one.isSending || faultOf(one) || !keyOf(one)) return;
  const isUntouched = one.filled && one.field.text === one.original;
  const body = isUntouched ? bytesOf(one.filled) : bodyOf(one.field);
  if (await sendSheet(one, false, "PUT", lifeQuery(one.life, one.ttl, one.filled), body)) await finish(one, "written");
}
async function remove(one = sheet) {
  if (!one?.entry || one.isSending) return;
  if (await confirmed("Delete " + one.key + " on all nodes?", "It can be put back with Undo, as long as this page is open.", "Delete")) await removeNow(one);
}
async function removeNow(one) { if (await sendSheet(one, true, "DELETE", "")) await finish(one, "deleted"); }
// The write is done: the sheet is that of the key as it is now.
async function finish(one, words) {
  drafts.delete(one.key);
  if (one.isNew) {
    Object.assign(one, { isNew: false, key: keyOf(one) });
    reveal(one.key);
    if (one === sheet) { chosen = one.key; cursor = "key " + chosen; }
  }
  one.isRead = false;
  const entry = await entryOf(one.key);
  one.isSending = false;
  if (entry !== undefined) fillSheet(one, entry);
  one.said = words + " at " + clock(Date.now());
  if (one === sheet) showSheet();
  later(showKeys);
}
// Writes one of the versions that were shown again. That replaces all of them, and nothing else.
async function keepVersion(one, version) {
  if (one.isSending) return;
  if (foreignLife(version)) { one.said = foreignLife(version) + "; nothing was written."; return showSheet(); }
  const words = "kept what " + writerOf(version) + " wrote,", isTyped = isDirty(one);
  const isKept = await sendSheet(one, false, "PUT", lifeQuery(lifeOf(version), "", version), bytesOf(version));
  if (isKept && !isTyped) return finish(one, words);
  one.isSending = false;
  // What is typed stays, over what is there now.
  if (!isTyped && one.clash) Object.assign(one, { clash: null, said: one.clash.why + " It is read again." });
  if (one === sheet) await refresh();
}
function discard(one) {
  drafts.delete(one.key);
  if (one !== sheet) return;
  one.isNew && !one.clash ? closeSheet() : choose(keyOf(one));
  later(showKeys);
}

// ---- Taking back the last write.
let undoable = null;
// `stamp` is that of the write, or null for a delete.
function noteWrite(key, before, stamp) {
  undoable = { key, before, stamp };
  put($("undo-text"), key + " was " + (stamp ? "written" : "deleted") + " at " + clock(Date.now()) + ".");
  $("undo-bar").hidden = $("undo").hidden = false;
}
async function undo() {
  const { key, before } = undoable;
  $("undo").disabled = true;
  const fault = await takeBack(undoable);
  $("undo").disabled = false;
  if (!fault) undoable = null;
  put($("undo-text"), fault || key + (before?.conflicts.length ? " has its value back. The versions that had lost are gone." : " is as before."));
  $("undo").hidden = !undoable;
  if (sheet?.key === key) await refresh();
}
// Only while the write still stands: not over what came after it, nor over what came beside it. Why it was not done, or "".
async function takeBack({ key, before, stamp }) {
  if (foreignLife(before)) return foreignLife(before) + "; nothing was undone.";
  const changed = key + " was changed after that; nothing was undone.", standing = await entryOf(key);
  if (standing === undefined) return "The node is out of reach; nothing was undone.";
  if (versionsOf(standing) !== (stamp || "")) return changed;
  const life = lifeQuery(lifeOf(before), "", before);
  const done = before ? await send("PUT", key, life, bytesOf(before), standing) : await send("DELETE", key, "", undefined, standing);
  return done.clash !== undefined ? changed : done.error || "";
}
$("undo").onclick = undo;
$("undo-close").onclick = () => { $("undo-bar").hidden = true; };

// ---- The form.
function typed(change) {
  if (!sheet) return;
  change(sheet);
  sheet.said = "";
  noteDraft(sheet);
  showSheet();
  checkSoon();
}
$("d-value").oninput = () => typed(one => {
  one.field.text = $("d-value").value;
  // A new value is JSON once it begins like an object or a list, unless a person chose its kind.
  if (!one.entry && !one.isKindChosen) one.field.kind = /^\s*[{[]/.test(one.field.text) ? "json" : "text";
});
$("d-key").oninput = () => typed(one => { if (one.isNew) one.typedKey = $("d-key").value; });
$("d-ttl").oninput = () => typed(one => { one.ttl = $("d-ttl").value.trim(); });
$("d-life").onchange = () => typed(one => { one.life = $("d-life").value; if (one.life !== "ttl") one.ttl = ""; });
$("d-kind").onchange = () => changeKind($("d-kind").value);
// Shows the same bytes in another way.
function changeKind(kind) {
  const { field, filled } = sheet, isUntouched = field.text === sheet.original;
  // The field may show the beginning of a value alone.
  const body = isUntouched && filled ? bytesOf(filled) : bodyOf(field);
  const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
  let fault = "";
  if (!bytes) fault = "The text is not complete hexadecimal or JSON yet.";
  else if (kind === "hex" && !isUntouched && bytes.length > HEX_BYTES_MAX) fault = "At most " + size(HEX_BYTES_MAX) + " can be edited as bytes. What is typed is larger and stays as it is.";
  else if (kind !== "hex" && !fitsField(textOf(bytes))) fault = "These bytes are no text that a field can hold.";
  if (!fault) {
    sheet.field = shownAs(bytes, kind);
    sheet.isKindChosen = true;
    if (isUntouched) sheet.original = sheet.field.text;
  }
  typed(() => {});
  sheet.said = fault;
  put($("d-said"), fault);
}
$("d-close").onclick = closeSheet;
$("fresh").onclick = openBlank;
$("d-discard").onclick = () => discard(sheet);
$("d-delete").onclick = () => remove();
$("detail").onsubmit = event => { event.preventDefault(); save(); };

