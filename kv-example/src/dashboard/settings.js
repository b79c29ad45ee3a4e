// ---- The settings that all nodes share: what they are, who put them in force when, earlier ones, and changing them.
const SETTINGS = {
  lease_time_max: "the longest lease that voters grant",
  clock_skew_max: "how far wall clocks may be apart",
  mesh_members_max: "up to so many members each is linked with all",
};
const settingNames = Object.keys(SETTINGS);
const settingsWords = settings => settingNames.map(name => name + " " + settings[name]).join(", ");
const writtenWords = written => !written ? "as configured, or not recorded" : date(written.time_ms) + " by " + (written.writer || "a process that is gone");
let setting = false;

function showSettings() {
  $("set-open").title = settingsWords(status.settings.present);
  if (!$("set").open) return;
  const { present, written, earlier } = status.settings;
  put($("set-who"), written ? "In force since " + writtenWords(written) + "." : "As each node is configured: nobody has changed them.");
  fillRows(document.querySelector("#set-now tbody"), "name", settingNames.map(name => ({ name })), settingRow, fillSetting);
  put($("set-earlier-words"), plural(earlier.length, "earlier state"));
  $("set-earlier").hidden = $("set-back").hidden = !earlier.length;
  $("set-past").replaceChildren(...earlier.map(state => {
    const item = make("li", settingsWords(state));
    item.append(make("span", writtenWords(state.written), "soft"));
    return item;
  }));
  const parts = wantedSettings().map(([name, value]) => name + " from " + present[name] + " to " + value);
  put($("set-diff"), parts.length ? "Changes " + parts.join(", ") + "." : "Nothing changes.");
  $("set-yes").disabled = setting || !parts.length;
  $("set-back").disabled = setting;
}
function settingRow({ name }) {
  const row = make("tr"), input = make("input"), label = make("th");
  row.dataset.name = name;
  label.scope = "row";
  label.append(make("span", name, "mono"), make("span", SETTINGS[name], "soft"));
  input.setAttribute("aria-label", "New " + name);
  input.autocomplete = "off";
  input.placeholder = "unchanged";
  input.oninput = showSettings;
  const cell = make("td");
  cell.append(input);
  row.append(label, make("td"), cell);
  return row;
}
function fillSetting(row, { name }) { put(row.children[1], String(status.settings.present[name])); }
// The fields that are to have another value, as [name, text].
function wantedSettings() {
  const typed = [...document.querySelectorAll("#set-now tbody tr")].map(row => [row.dataset.name, row.querySelector("input").value.trim()]);
  return typed.filter(([name, value]) => value && value !== String(status.settings.present[name]));
}
function openSettings() {
  put($("set-said"), "");
  document.querySelector("#set-now tbody").replaceChildren();
  $("set").showModal();
  showSettings();
}
async function changeSettings() {
  const wanted = wantedSettings(), fields = Object.fromEntries(wanted.map(([name, value]) => [name, /^\d+$/.test(value) ? Number(value) : value]));
  const words = wanted.map(([name, value]) => name + " " + value).join(", ");
  if (!await confirmed("Change the settings of all nodes?", words + ". No node is restarted, and no lease is lost.", "Change them")) return;
  if (await tellSettings("PATCH", "/v1/settings", JSON.stringify(fields))) document.querySelectorAll("#set-now input").forEach(input => input.value = "");
  showSettings();
}
async function rollBackSettings() {
  if (!await confirmed("Put the settings before back in force?", settingsWords(status.settings.earlier[0]) + ", on all nodes.", "Roll back")) return;
  await tellSettings("POST", "/v1/settings/rollback");
}
async function tellSettings(method, path, body) {
  setting = true;
  put($("set-said"), "The change runs. Where voters have to take other times it takes about 11 s, also if this is closed.");
  showSettings();
  let said = "The node is out of reach. Whether the settings are changed is not known.", isDone = false;
  try {
    const reply = await call(method, path, body), answer = await reply.json();
    isDone = reply.ok;
    if (isDone) status.settings = answer;
    said = isDone ? "Done. Configure the nodes so as well, for their next start." : answer.error + "; " + answer.detail;
  } catch { /* It is out of reach. */ }
  put($("set-said"), said);
  setting = false;
  showSettings();
  return isDone;
}
$("set-open").onclick = openSettings;
$("set-no").onclick = () => $("set").close();
$("set-yes").onclick = changeSettings;
$("set-back").onclick = rollBackSettings;

