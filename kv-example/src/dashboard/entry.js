// ---- One key: who wrote what when, and what was written at the same time.
// A sheet is a key that is or was open: `entry` is what a write may replace (null: nothing), `filled` what the form was
// filled from, which is the same until a person wants to write over a later one. `field` is how the value stands in the
// form, `original` its text before anything was typed. A sheet with unsaved edits is kept in `drafts`, whatever else is chosen
// and whatever comes. The sheet of a new key has the key "" there.
const drafts = new Map();
let sheet = null;
const emptyField = () => ({ kind: "text", text: "", isCompact: false, ends: "\n", isWhole: true });
function newSheet(key) {
  return { key, isNew: !key, typedKey: "", isRead: !key, isSending: false, entry: null, filled: null, gone: null, field: emptyField(),
    original: "", isKindChosen: false, life: "forever", ttl: "", schema: null, clash: null, said: "" };
}
function choose(key) {
  chosen = key;
  cursor = "key " + key;
  sheet = drafts.get(key) || newSheet(key);
  showSheet();
  $("detail").scrollIntoView({ block: "nearest" });
  later(drawRows);
  return refresh();
}
function openBlank() {
  chosen = cursor = "";
  sheet = drafts.get("") || newSheet("");
  showSheet();
  $("d-key").focus();
  later(drawRows);
}
function closeSheet() { sheet = null; chosen = ""; $("detail").hidden = true; later(drawRows); }

// The entry, null if there is none, undefined if nobody knows.
async function entryOf(key) {
  try {
    const reply = await call("GET", "/v1/kv/" + encodeURIComponent(key) + "?meta=true");
    return reply.ok ? await reply.json() : reply.status === 404 ? null : undefined;
  } catch { return undefined; }
}
const versionsOf = entry => entry ? [entry, ...entry.conflicts].map(one => one.stamp).join() : "";

// Reads the key of the sheet again. What is typed stays; that the key changed meanwhile is shown.
let asking = 0;
async function refresh() {
  const mine = sheet, turn = ++asking;
  if (!mine || mine.isNew || mine.isSending) return;
  const entry = await entryOf(mine.key);
  if (mine !== sheet || mine.isSending || turn !== asking) return;
  if (entry) mine.gone = null;
  if (entry === undefined) { mine.said = "It could not be read."; return showSheet(); }
  if (!mine.isRead || !isDirty(mine)) fillSheet(mine, entry);
  else if (versionsOf(entry) === versionsOf(mine.entry)) { mine.entry = entry; mine.clash = null; }
  else if (!mine.clash || versionsOf(mine.clash.theirs) !== versionsOf(entry)) {
    mine.clash = { theirs: entry, isDelete: false, why: "The key was changed while it is edited here." };
  }
  showSheet();
}
function fillSheet(one, entry) {
  const isOld = one.isRead && versionsOf(entry) === versionsOf(one.entry);
  one.isRead = true;
  one.entry = entry;
  if (isOld) return;
  one.field = entry ? shownAs(bytesOf(entry), kindOf(bytesOf(entry))) : emptyField();
  one.filled = entry;
  one.original = one.field.text;
  one.life = lifeOf(entry);
  one.ttl = "";
  one.schema = one.clash = null;
  checkSoon();
}
// How long a value lives, as the form names it.
function lifeOf(entry) { return entry?.expires_ms ? "keep" : entry?.ephemeral ? "node" : "forever"; }

// ---- Showing it.
function showSheet() {
  $("detail").hidden = !sheet;
  if (!sheet) return;
  const key = $("d-key"), name = sheet.isNew ? sheet.typedKey : sheet.key;
  if (key.value !== name) key.value = name;
  key.readOnly = !sheet.isNew;
  showFacts();
  showVersions();
  showClash();
  showEditor();
}
const writerOf = one => one.writer || "a run that this node never met (" + one.origin + ")";
const who = one => writerOf(one) + ", " + date(one.time_ms);
function writerWords(one) {
  if (!one.writer) return writerOf(one);
  const state = one.writer_state;
  return one.writer + (!state ? " (an earlier run of it)" : state === "alive" ? "" : " (" + (STATES[state]?.[1] || state) + ")");
}
function lifeWords(one) {
  const parts = [];
  if (one.expires_ms) parts.push("vanishes in " + span(one.expires_ms - now()) + ", at " + date(one.expires_ms));
  if (one.ephemeral) parts.push("vanishes with the process of " + writerOf(one));
  return parts.join("; ") || "for ever";
}
function factsOf({ entry, isRead, isNew, gone }) {
  if (!entry) return isRead && !isNew ? [["Gone", goneWords(gone)]] : [];
  const written = "by " + writerWords(entry) + ", " + span(now() - entry.time_ms) + " ago, " + date(entry.time_ms);
  return [["Written", written], ["Lives", lifeWords(entry)], ["Size", size(entry.bytes)], ["Stamp", entry.stamp]];
}
// Told anew every second: what stays is left alone, so that it can be marked and copied.
function showFacts() {
  if (!sheet) return;
  const box = $("facts"), facts = factsOf(sheet), names = facts.map(([name]) => name).join();
  if (box.dataset.names !== names) {
    box.dataset.names = names;
    box.replaceChildren(...facts.flatMap(([name]) => [make("dt", name), make("dd", "", name === "Stamp" ? "mono" : "")]));
  }
  facts.forEach(([, text], at) => put(box.children[2 * at + 1], text));
}
function goneWords(gone) {
  if (gone?.expired) return "Its time is over, or the process ended that it was bound to.";
  return gone?.w ? "It was deleted by " + gone.w + ", " + date(gone.t) + "." : "It is gone.";
}

// The versions of a conflict side by side, each with its writer, time and a button that keeps it.
function showVersions() {
  const { entry } = sheet, versions = entry?.conflicts.length ? [entry, ...entry.conflicts] : [];
  $("versions").hidden = !versions.length;
  if ($("versions").dataset.same === versionsOf(versions.length ? entry : null)) return;
  $("versions").dataset.same = versionsOf(versions.length ? entry : null);
  $("versions-list").replaceChildren(...versions.map((one, at) => versionCard(one, at === 0, () => keepVersion(sheet, one))));
}
function versionCard(one, isWinner, act) {
  const card = make("div", null, "version" + (isWinner ? " winner" : ""));
  const keep = button("Keep this one", act);
  keep.setAttribute("aria-label", "Keep the value of " + writerOf(one));
  const foot = make("div", null, "line");
  foot.append(keep, make("span", lifeOf(one) === "forever" ? "" : lifeWords(one), "soft"));
  card.append(make("strong", isWinner ? "In force: the latest stamp" : "Lost against it"),
    make("span", writerWords(one) + ", " + date(one.time_ms), "soft"), make("pre", readable(one), "mono"), foot);
  return card;
}

// Somebody else wrote the key since it was read here: both values are shown, and a person decides.
function showClash() {
  const box = $("clash"), { clash } = sheet, wasHidden = box.hidden;
  box.hidden = !clash;
  // Who deleted the key may be told after it was read.
  if (!clash || box.clash === clash && box.gone === sheet.gone) return;
  Object.assign(box, { clash, gone: sheet.gone });
  const both = make("div", null, "both"), choices = make("div", null, "line"), mine = sheet, { theirs, isDelete, why } = clash;
  both.append(make("span", isDelete ? "As it was read here" : "Yours", "soft"),
    make("pre", isDelete ? readable(mine.entry) : mine.field.text, "mono"), make("span", "Now", "soft"),
    make("pre", theirs ? readable(theirs) + "\n— " + who(theirs) : "nothing. " + goneWords(mine.gone), "mono"));
  choices.append(button("Take what is there now", () => discard(mine)));
  if (theirs || !isDelete) choices.append(button(isDelete ? "Delete it all the same" : "Put yours all the same", () => {
    Object.assign(mine, { entry: theirs, isRead: true, clash: null });
    showSheet();
    isDelete ? removeNow(mine) : save(mine);
  }));
  box.replaceChildren(make("strong", why), both, choices);
  if (wasHidden) box.scrollIntoView({ block: "nearest" });
}

