
// ---- Evaluating flags as a user would be served: the chosen one and all of the set. These evaluations count as nobody's.
const TRIAL_ROWS = 200;
const REASONS = { __proto__: null, STATIC: "it has no rule", TARGETING_MATCH: "the rule chose it", DISABLED: "it is disabled", ERROR: "" };
let trialTimer = 0, trialTurn = 0;
// The context that is typed, or what is wrong with it.
function trialContext() {
  const text = $("try-more").value.trim();
  let more = {};
  if (text) {
    const fault = jsonError(text);
    if (fault) return { fault: "Not JSON: " + fault };
    more = JSON.parse(text);
    if (!more || typeof more !== "object" || Array.isArray(more)) return { fault: "Attributes are a JSON object, such as {\"email\": \"ann@example.com\"}." };
  }
  const key = $("try-key").value;
  return { context: key ? { ...more, targetingKey: key } : more };
}
function evaluateSoon() { clearTimeout(trialTimer); trialTimer = setTimeout(evaluate, 250); }
async function evaluate() {
  if (!isFlagsPage() || !flagsNow) return;
  const { context, fault } = trialContext(), flag = flagName, turn = ++trialTurn;
  $("try-more").setAttribute("aria-invalid", !!fault);
  if (fault) return trialSays(fault);
  const ask = async body => {
    const reply = await call("POST", "/v1/flags/evaluate", JSON.stringify({ set: flagSet, context, ...body }), { "content-type": "application/json" });
    const said = await reply.json();
    if (!reply.ok) throw new Error(said.error);
    return said;
  };
  try {
    const all = $("try-all").open ? await ask({ limit: TRIAL_ROWS }) : null;
    const one = flag ? (await ask({ flag })).results[0] : null;
    if (turn !== trialTurn) return;
    trialSays("");
    showTrial(one, all);
  } catch (error) { if (turn === trialTurn) trialSays("Not evaluated: " + error.message); }
}
function trialSays(text) { $("try-fault").hidden = !text; put($("try-fault"), text); }
const valueWords = one => one.variant === null ? "the program’s default" : JSON.stringify(one.value);
function reasonWords(one) {
  if (one.error) return one.error.code + ": " + one.error.message;
  if (one.reason === "DEFAULT") return one.variant ? "the rule chose nothing" : "nothing chooses a variant";
  return REASONS[one.reason] || one.reason;
}
function showTrial(one, all) {
  $("try-one").hidden = !one;
  if (one) {
    put($("try-flag"), one.flag);
    put($("try-value"), valueWords(one));
    put($("try-why"), (one.variant ? "variant " + one.variant + "; " : "") + reasonWords(one) + ".");
    $("try-why").className = one.error ? "bad" : "soft";
  }
  const asked = [...varsOf(flagNow?.targeting)].filter(name => name !== "targetingKey");
  put($("try-asks"), asked.length ? "Its rule asks for " + asked.join(", ") + "." : "");
  if (!all) return;
  document.querySelector("#try-all tbody").replaceChildren(...all.results.map(one => {
    const row = make("tr"), name = make("th", one.flag, "mono");
    name.scope = "row";
    row.append(name, make("td", valueWords(one), "mono"), make("td", one.variant || "–"), make("td", reasonWords(one), one.error ? "bad" : "soft"));
    return row;
  }));
  put($("try-all-note"), all.next ? "The first " + TRIAL_ROWS + " flags by name." : all.results.length ? "" : "This set has no flags.");
}
for (const id of ["try-key", "try-more"]) {
  $(id).value = sessionStorage.getItem("tidings-" + id) || "";
  $(id).oninput = () => { sessionStorage.setItem("tidings-" + id, $(id).value); evaluateSoon(); };
}
$("try-all").ontoggle = evaluateSoon;
