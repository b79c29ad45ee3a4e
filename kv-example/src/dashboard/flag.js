
// ---- One flag: what it gives, how often, who changed it, and changing it.
// `flagNow` is the flag as the node told it last, null if there is none; `flagEdit` the definition that is being edited: its
// text, and the stamp of what it began with, null for a new flag.
// Edits that are not saved are kept in `flagDrafts` by key, whatever else is opened.
let flagNow = null, flagEdit = null, flagPast = null, flagSamples = [];
const flagDrafts = new Map();
const isEdited = edit => !!edit && edit.text !== edit.began;
addEventListener("beforeunload", event => { if (isEdited(flagEdit) || flagDrafts.size) event.preventDefault(); });
const draftKey = (flag, set = flagSet) => set + "/" + flag;
function openFlag(flag) {
  if (flag === flagName && flagSet === openFlag.set) return showFlag();
  const before = flagName;
  if (isEdited(flagEdit)) flagDrafts.set(draftKey(flagEdit.stamp === null ? "" : flagName, openFlag.set), flagEdit);
  flagName = flag;
  openFlag.set = flagSet;
  flagNow = flag && flagsNow?.flags.find(one => one.flag === flag) || null;
  flagEdit = flag && flagDrafts.get(draftKey(flag)) || null;
  flagDrafts.delete(draftKey(flag));
  flagPast = null;
  flagSamples = [];
  isRolling = false;
  flagSays("");
  $("flag-editing").open = !!flagEdit;
  $("flag-earlier").open = false;
  for (const id of ["flag-default", "flag-versions", "flag-past", "flag-plan"]) delete $(id).dataset.same;
  emptyPlanForm();
  showFlag();
  if (flagNow) takeFlag(flagNow);
  evaluateSoon();
  later(showFlags);
  if (flag) {
    $("flag-name").focus({ preventScroll: true });
    if (innerWidth <= 900) $("flag").scrollIntoView();
  }
  else document.querySelector('#flags tr[data-flag="' + CSS.escape(before) + '"] .open')?.focus();
}
$("flag-close").onclick = () => { location.hash = flagHash(""); };

function takeFlag(one) {
  const isOther = one?.stamp !== flagNow?.stamp || !flagPast;
  flagNow = one;
  if (one) {
    const newest = flagSamples[flagSamples.length - 1], sample = { t: performance.now(), counts: one.evaluations };
    // A node that was restarted counts from 0 again.
    if (newest && Object.entries(newest.counts).some(([name, n]) => (one.evaluations[name] || 0) < n)) flagSamples = [];
    flagSamples.push(sample);
    while (flagSamples.length > 2 && sample.t - flagSamples[1].t > 60000) flagSamples.shift();
    if (isOther) { loadPast(); loadVersions(); }
    if (!one.conflict) $("flag-versions").hidden = true;
  } else if (isOther && flagName) loadPast();
  later(showFlag);
}
function showFlag() {
  const one = flagNow, isNew = flagEdit && flagEdit.stamp === null;
  $("flag-none").hidden = !!(one || isNew || flagName);
  $("flag-box").hidden = !(flagName || isNew);
  $("flag").classList.toggle("open", !!(flagName || isNew));
  if (!flagName && !isNew) return;
  put($("flag-name"), isNew ? "New flag" : flagName);
  $("flag-gone").hidden = !!one || isNew || !flagsNow;
  $("flag-parts").hidden = !one;
  $("flag-new").hidden = !isNew;
  $("flag-editing").hidden = !one && !isNew;
  $("flag-earlier").hidden = isNew || !flagPast?.length && !one;
  $("flag-delete").hidden = isNew;
  if (one) showFlagParts(one);
  showEditing(one);
}
function showFlagParts(one) {
  put($("flag-facts"), one.key + " · " + (one.type || "mixed types") + " · written by " + (one.writer || "a run that this node never met") + ", " + span(now() - one.time_ms) + " ago");
  $("flag-facts").title = "stamp " + one.stamp;
  $("flag-bad").hidden = !one.rejected;
  if (one.rejected) put($("flag-bad"), "This definition is malformed, and is not used: " + one.rejected + ". " + (one.has_last_good
    ? "The last good one is in force here; a program that has not seen it gives its own default." : "Programs give their own default."));
  $("flag-controls").hidden = !!one.rejected;
  $("flag-controls").disabled = !mayWrite();
  fillSwitch($("flag-state"), one.state === "ENABLED", "Enabled", !mayWrite());
  put($("flag-state-words"), one.state === "ENABLED" ? "Enabled" : "Disabled: programs give their own default");
  showDefault(one);
  showRollout(one);
  showVariants(one);
  showRule(one);
  showPlan(one);
  $("flag-delete").disabled = !mayWrite();
}
function showDefault(one) {
  const names = Object.keys(one.variants || {}), box = $("flag-default"), same = JSON.stringify(names);
  if (box.dataset.same !== same) {
    box.dataset.same = same;
    box.replaceChildren(...[...names, ""].map(name => { const item = make("option", variantWords(name)); item.value = name; return item; }));
    for (const id of ["roll-variant", "plan-variant"]) $(id).replaceChildren(...names.map(name => { const item = make("option", name); item.value = name; return item; }));
    emptyPlanForm();
  }
  if (document.activeElement !== box) box.value = one.defaultVariant || "";
}
$("flag-state").onclick = () => toggleFlag(flagNow.flag);
$("flag-default").onchange = async () => {
  const name = $("flag-default").value, one = flagNow;
  $("flag-default").blur();
  await editFlag(one, { default: name || null }, one.flag + " now gives " + variantWords(name) + " by default");
  $("flag-default").focus();
};

// ---- The rollout. How the rule is written is the node's to know.
let isRolling = false;
const shareOf = (one, variant) => one.shares.find(share => share.variant === variant)?.percent;
function showRollout(one) {
  const names = Object.keys(one.variants || {});
  $("roll").hidden = names.length < 2;
  if (!isRolling) {
    const present = one.shares.find(share => share.variant !== one.defaultVariant) || one.shares[0];
    $("roll-variant").value = present?.variant || names.find(name => name !== one.defaultVariant) || "";
    $("roll-range").value = $("roll-percent").value = +(present?.percent || 0).toFixed(3);
  }
  showRollWords();
}
// Why there can be no rollout, as far as the page knows.
function rollFault(one) {
  if (one.shares.length > 2) return "The rule gives " + one.shares.length + " variants by shares: edit the definition.";
  return one.shares.length || one.defaultVariant ? "" : "Choose a default variant first: it is what the others get.";
}
function showRollWords() {
  const one = flagNow, percent = Number($("roll-percent").value), variant = $("roll-variant").value, fault = rollFault(one);
  const was = shareOf(one, variant) ?? 0, isSame = percent === +was.toFixed(3), isRange = $("roll-percent").value !== "" && percent >= 0 && percent <= 100;
  $("roll-set").disabled = isSame || !isRange || !!fault;
  $("roll-range").disabled = $("roll-percent").disabled = !!fault;
  $("roll-range").setAttribute("aria-valuetext", percentWords(percent) + " get " + variant);
  put($("roll-words"), fault ? fault : !isRange ? "A share is 0 to 100 %." : isSame ? one.shares.length ? "In force. A user stays with a variant, by the targeting key." : "No rollout yet. Users are chosen by their targeting key."
    : percent > was ? "Not set yet: who gets " + variant + " keeps it, and " + percentWords(percent - was) + " more get it."
    : "Not set yet: " + percentWords(was - percent) + " no longer get " + variant + "; the others keep it.");
}
const rolled = from => () => {
  isRolling = true;
  if (from) $(from === "roll-range" ? "roll-percent" : "roll-range").value = $(from).value;
  showRollWords();
};
$("roll-range").oninput = rolled("roll-range");
$("roll-percent").oninput = rolled("roll-percent");
$("roll-variant").onchange = () => {
  isRolling = true;
  $("roll-range").value = $("roll-percent").value = +(shareOf(flagNow, $("roll-variant").value) || 0).toFixed(3);
  showRollWords();
};
$("roll-set").onclick = async () => {
  const one = flagNow, variant = $("roll-variant").value, percent = Number($("roll-percent").value);
  if (await editFlag(one, { rollout: { variant, percent } }, one.flag + " gives " + variant + " to " + percentWords(percent) + " where its rule ends") !== null) isRolling = false;
};

// ---- Variants with their evaluations, and the rule.
function showVariants(one) {
  const body = document.querySelector("#flag-variants tbody"), names = variantNames(one), all = flagTotal(one), first = flagSamples[0], newest = flagSamples[flagSamples.length - 1];
  while (body.children.length > names.length) body.lastChild.remove();
  while (body.children.length < names.length) {
    const row = make("tr"), share = make("td", null, "share"), bar = make("span", null, "bar");
    bar.append(make("i"));
    share.append(bar, make("span"));
    row.append(make("th"), make("td", null, "mono"), share, make("td", null, "num"));
    row.firstChild.scope = "row";
    body.append(row);
  }
  names.forEach((name, at) => {
    const [title, value, share, rate] = body.children[at].children, n = one.evaluations[name] || 0;
    put(title, variantWords(name));
    title.className = name && name === one.defaultVariant ? "chosen-default" : "";
    const text = Object.hasOwn(Object(one.variants), name) ? JSON.stringify(one.variants[name]) : name ? "not in this definition" : "";
    put(value, text.length > 200 ? text.slice(0, 200) + "…" : text);
    share.firstChild.firstChild.className = "shade-" + (name ? at % 5 : "none");
    share.firstChild.firstChild.style.width = (all ? n / all * 100 : 0) + "%";
    put(share.lastChild, all ? count(n) + " · " + percentWords(+(n / all * 100).toFixed(1)) : "–");
    const past = (newest?.t - first?.t) / 6e4, grown = n - (first?.counts[name] || 0);
    put(rate, past > .05 ? grown ? count(Math.max(1, Math.round(grown / past))) : "0" : "–");
  });
  put($("flag-counted"), all ? "Counted on all nodes since each was started; last evaluated " + lastWords(one) + "." : "No node has evaluated it since its start; last evaluated: " + lastWords(one) + ".");
}
function varsOf(rule, found = new Set(), depth = 0) {
  if (!rule || typeof rule !== "object" || depth > 64) return found;
  for (const [name, part] of Object.entries(rule)) {
    const asked = Array.isArray(part) ? part[0] : part;
    if (name === "var" && typeof asked === "string" && asked && !asked.startsWith("$flagd")) found.add(asked);
    varsOf(part, found, depth + 1);
  }
  return found;
}
// JSON in which what is short stands on one line.
function roomyJson(value, indent = "") {
  const flat = JSON.stringify(value), isList = Array.isArray(value);
  if (flat.length + indent.length < 64 || !value || typeof value !== "object" || indent.length > 64) return flat.length > 64 ? flat : flat.replace(/("(?:[^"\\]|\\.)*")|([,:])/g, (all, text) => text || all + " ");
  const inner = indent + "  ", parts = Object.entries(value).map(([name, part]) => inner + (isList ? "" : JSON.stringify(name) + ": ") + roomyJson(part, inner));
  return (isList ? "[" : "{") + "\n" + parts.join(",\n") + "\n" + indent + (isList ? "]" : "}");
}
function showRule(one) {
  $("flag-rule-part").hidden = isEmptyRule(one.targeting);
  put($("flag-rule"), isEmptyRule(one.targeting) ? "" : roomyJson(one.targeting));
}

// ---- A conflict: the versions side by side, of which one is kept.
async function loadVersions() {
  const one = flagNow;
  if (!one?.conflict) return;
  const entry = await entryOf(one.key);
  if (flagNow?.flag !== one.flag || !entry?.conflicts.length) return;
  $("flag-versions").hidden = false;
  if ($("flag-versions").dataset.same === versionsOf(entry)) return;
  $("flag-versions").dataset.same = versionsOf(entry);
  const cards = [entry, ...entry.conflicts].map((version, at) => versionCard(version, at === 0, () => keepFlagVersion(one.flag, entry, version)));
  $("flag-versions-list").replaceChildren(...cards);
}
// Replaces the versions that were shown, and nothing else.
async function keepFlagVersion(flag, shown, version) {
  const there = await entryOf(shown.key), words = flag + " is as " + writerOf(version) + " wrote it";
  if (!there || versionsOf(there) !== versionsOf(shown)) { flagsSoon(0); return flagSays("The flag was changed since it was read here. Nothing was written.", "bad"); }
  await sendFlag("PUT", flagPath(flag, "?if=revision-" + there.revision), bytesOf(version), words);
}

// ---- Who changed what.
async function loadPast() {
  const flag = flagName;
  try {
    const reply = await call("GET", flagPath(flag, "/history"));
    if (flag !== flagName) return;
    flagPast = reply.ok ? (await reply.json()).history : [];
  } catch { return; }
  later(showPast);
}
function showPast() {
  if (!flagPast) return;
  later(showFlag);
  const same = JSON.stringify([flagPast, flagNow?.stamp, mayWrite()]);
  if ($("flag-past").dataset.same === same) return;
  $("flag-past").dataset.same = same;
  const present = flagNow && JSON.stringify(fieldsOf(flagNow)), items = flagPast.map((one, at) => pastItem(one, flagPast[at + 1], present));
  // A write to the key itself leaves nothing in the history.
  if (flagNow && (!flagPast.length || JSON.stringify(fieldsOf(flagPast[0].definition)) !== present)) {
    const item = make("li");
    item.append(make("time", date(flagNow.time_ms), "soft"), make("strong", flagNow.writer || "unknown"), make("span", "wrote the key itself; " + changeWords(flagNow, flagPast[0]?.definition)));
    items.unshift(item);
  }
  $("flag-past").replaceChildren(...items);
  put($("flag-earlier-words"), "History: " + plural(items.length, "version"));
}
const FLAG_FIELDS = ["state", "defaultVariant", "variants", "targeting", "metadata"];
const fieldsOf = one => Object.fromEntries(FLAG_FIELDS.map(name => [name, one?.[name] ?? null]));
function pastItem(one, before, present) {
  const item = make("li"), whole = make("details");
  item.append(make("time", date(Date.parse(one.time)), "soft"), make("strong", one.by), make("span", one.definition ? changeWords(one.definition, before && before.definition) : "deleted it"));
  if (one.note) item.append(make("q", one.note));
  if (!one.definition) return item;
  whole.append(make("summary", "Definition"), make("pre", prettyJson(one.text), "mono"));
  item.append(whole);
  if (JSON.stringify(fieldsOf(one.definition)) === present) return item;
  const back = button("Bring this back", () => bringBack(one));
  back.disabled = !mayWrite();
  back.setAttribute("aria-label", "Bring back the version of " + date(Date.parse(one.time)));
  item.append(back);
  return item;
}
async function bringBack(past) {
  const one = flagNow, flag = flagName, text = one && await definitionOf(flag, one.stamp), more = text ? { undo: { flag, definition: text } } : {};
  $("f-note").value ||= "back to the version of " + past.time;
  // The text and not what the page has read of it: numbers stay as they are.
  await sendFlag("PUT", flagPath(flag, "?if=" + (one ? one.stamp : "absent")), past.text, flag + " is as at " + date(Date.parse(past.time)), more);
}
// What a definition changed, in words.
function changeWords(after, before) {
  if (before === undefined) return "the earliest version that is kept";
  if (!before) return "created it";
  const words = [], text = one => JSON.stringify(one ?? null);
  if (after.state !== before.state) words.push(after.state === "ENABLED" ? "enabled it" : "disabled it");
  if ((after.defaultVariant || "") !== (before.defaultVariant || "")) words.push("default " + variantWords(before.defaultVariant) + " → " + variantWords(after.defaultVariant));
  if (text(after.targeting) !== text(before.targeting)) words.push(isEmptyRule(after.targeting) ? "removed the rule" : isEmptyRule(before.targeting) ? "added a rule" : "changed the rule");
  if (text(after.variants) !== text(before.variants)) words.push("changed the variants");
  if (text(after.metadata) !== text(before.metadata)) words.push("changed the metadata");
  return words.join(", ") || "changed nothing";
}

// ---- The whole definition, for what the controls do not do; and new flags.
const NEW_FLAG = '{\n  "state": "ENABLED",\n  "variants": {\n    "on": true,\n    "off": false\n  },\n  "defaultVariant": "off"\n}';
$("f-new").onclick = () => {
  if (location.hash !== flagHash("")) history.pushState(null, "", flagHash(""));
  openFlag("");
  flagEdit = flagDrafts.get(draftKey("")) || { stamp: null, text: NEW_FLAG, began: NEW_FLAG };
  $("flag-editing").open = true;
  showFlag();
  $("flag-new-name").focus();
};
$("flag-editing").ontoggle = async () => {
  const one = flagNow;
  if (!$("flag-editing").open) { if (flagEdit && flagEdit.stamp !== null && !isEdited(flagEdit)) flagEdit = null; return; }
  if (flagEdit || !one) return;
  const entry = await entryOf(one.key);
  if (!entry || flagNow?.flag !== one.flag) return;
  const text = readable(entry);
  flagEdit = { stamp: entry.stamp, text, began: text };
  showFlag();
};
function showEditing(one) {
  const edit = flagEdit, isDirty = isEdited(edit), fault = edit ? jsonError(edit.text) : "";
  // What nobody has changed follows what is there.
  if (edit && one && edit.stamp !== null && edit.stamp !== one.stamp && !isDirty && $("flag-editing").open) { flagEdit = null; $("flag-editing").ontoggle(); }
  const box = $("flag-text");
  if (box.value !== (edit?.text ?? "")) box.value = edit?.text ?? "";
  box.readOnly = !mayWrite();
  $("flag-save").disabled = !edit || !!fault || edit.stamp !== null && !isDirty || !mayWrite();
  $("flag-discard").disabled = !edit || !isDirty && edit.stamp !== null;
  const faults = fault ? [["", "Not JSON: " + fault]] : (edit?.faults || []).map(one => [one.path, one.message]), same = JSON.stringify(faults);
  $("flag-faults").hidden = !faults.length;
  if ($("flag-faults").dataset.same === same) return;
  $("flag-faults").dataset.same = same;
  $("flag-faults").replaceChildren(...faults.map(([path, text]) => {
    const item = make("li");
    if (path) item.append(make("code", path), " ");
    item.append(text);
    return item;
  }));
}
$("flag-text").oninput = () => { if (flagEdit) { flagEdit.text = $("flag-text").value; flagEdit.faults = null; showFlag(); } };
$("flag-discard").onclick = () => { flagEdit = null; $("flag-editing").open = false; showFlag(); };
$("flag-save").onclick = async () => {
  const edit = flagEdit, sent = edit.text, set = flagSet, isNew = edit.stamp === null, flag = isNew ? $("flag-new-name").value.trim() : flagName;
  if (!flag) return $("flag-new-name").focus();
  const text = isNew ? null : await definitionOf(flag, edit.stamp), undo = text === null ? undefined : { flag, definition: text };
  const failed = said => { edit.faults = said.errors || null; };
  const stamp = await sendFlag("PUT", flagPath(flag, "?if=" + (edit.stamp ?? "absent")), sent, flag + " was " + (isNew ? "created" : "written"), { undo, failed });
  if (stamp === null) return showFlag();
  // Meanwhile another flag may have been opened, and more been typed: that is an edit of what was written now.
  const isHere = flagEdit === edit, isSame = edit.text === sent;
  Object.assign(edit, { stamp, began: sent });
  if (isNew || !isHere) {
    flagDrafts.delete(draftKey(isNew ? "" : flag, set));
    if (!isSame) flagDrafts.set(draftKey(flag, set), edit);
  }
  if (!isHere) return;
  if (isNew || isSame) flagEdit = null;
  if (isSame) $("flag-editing").open = false;
  if (isNew) $("flag-new-name").value = "";
  const words = $("f-said-text").textContent;
  if (isNew) { location.hash = flagHash(flag); await 0; later(() => flagSays(words)); } else showFlag();
};
$("flag-delete").onclick = async () => {
  const one = flagNow;
  if (!await confirmed("Delete " + one.flag + " on all nodes?", "Programs give their own default then. It can be brought back from its history.", "Delete")) return;
  await sendFlag("DELETE", flagPath(one.flag, "?if=" + one.stamp), undefined, one.flag + " was deleted");
};
