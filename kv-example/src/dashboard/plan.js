
// ---- Plans: changes that a node makes by itself, step by step or at a time.
const PLAN_STATES = { __proto__: null, running: "running", paused: "paused", done: "done", stopped: "stopped", cancelled: "cancelled", rolled_back: "rolled back" };
const PLAN_ACTS = { __proto__: null, running: ["pause", "cancel", "roll-back"], paused: ["resume", "cancel", "roll-back"], done: ["roll-back"], stopped: ["roll-back"], cancelled: ["roll-back"] };
const PLAN_WORDS = { pause: ["Pause", "was paused"], resume: ["Resume", "goes on"], cancel: ["Cancel", "was cancelled"], "roll-back": ["Roll back", "was rolled back"] };
const planState = plan => "plan " + (PLAN_STATES[plan.state] || "of another version");
function editWords(edit) {
  if (edit?.rollout) return edit.rollout.variant + " for " + percentWords(Number(edit.rollout.percent));
  if (edit?.target) return (edit.target.remove ? "no target " : "target ") + edit.target.variant;
  if (edit && typeof edit === "object" && "default" in edit) return "default " + variantWords(edit.default);
  return edit === "enable" || edit === "disable" ? edit : "another change";
}
function planSummary(plan) {
  const words = ["Plan " + PLAN_STATES[plan.state] + ": " + plan.done + " of " + plural(plan.steps.length, "step") + " done."], next = plan.steps[plan.done];
  if (plan.reason) words.push("It was " + PLAN_STATES[plan.state] + " because: " + plan.reason + ".");
  if (next && plan.state === "running") words.push("Next: " + editWords(next.edit) + (plan.next_ms > now() ? " in " + span(plan.next_ms - now()) + ", at " + date(plan.next_ms) : " now") + ".");
  else if (plan.state === "running") words.push("Its condition is watched until " + date(plan.next_ms) + ".");
  else if (next && plan.state === "paused") words.push("Next, once it goes on: " + editWords(next.edit) + ".");
  const ends = { __proto__: null, hold: "the flag stays as it is then", "step-back": "the last step is taken back then", "roll-back": "everything is taken back then" };
  if (plan.stop_if) words.push("Stops if " + plan.stop_if + " on any node" + (plan.stop_if_missing ? " or it is missing; " : "; ") + (ends[plan.on_stop] || plan.on_stop) + ".");
  return words.join(" ") + " By " + plan.by + (plan.note ? ": “" + plan.note + "”" : "") + ".";
}
function showPlan(one) {
  const { plan } = one;
  $("flag-plan").hidden = !plan;
  showPlanForm(one);
  if (!plan) return;
  const isKnown = typeof plan.state === "string" && PLAN_STATES[plan.state] && Array.isArray(plan.steps);
  put($("flag-plan-words"), isKnown ? planSummary(plan) : "This plan was written by another version of the program.");
  const same = JSON.stringify([plan, mayWrite()]);
  if ($("flag-plan").dataset.same === same) return;
  $("flag-plan").dataset.same = same;
  $("flag-steps").replaceChildren(...(isKnown ? plan.steps : []).map((step, at) => {
    const item = make("li", editWords(step?.edit) + (step?.wait_ms ? ", after " + span(step.wait_ms) : ""), at < plan.done ? "done" : "");
    if (at < plan.done) item.append(make("span", " ✓ done", "good"));
    return item;
  }));
  const acts = (isKnown && PLAN_ACTS[plan.state] || []).filter(act => act !== "roll-back" || plan.base);
  $("flag-plan-acts").replaceChildren(...acts.map(act => {
    const one = button(PLAN_WORDS[act][0], () => actOnPlan(act));
    one.disabled = !mayWrite();
    one.setAttribute("aria-label", PLAN_WORDS[act][0] + " the plan");
    return one;
  }));
}
async function actOnPlan(act) {
  const flag = flagName;
  if (act === "roll-back" && !await confirmed("Roll the plan of " + flag + " back?", "The flag is as before the first step then.", "Roll back")) return;
  await sendFlag("POST", flagPath(flag, "/plan/" + act + "?"), undefined, "The plan of " + flag + " " + PLAN_WORDS[act][1]);
}

// ---- A new plan. What stands in its fields stays until it is sent or another flag is opened.
const PLAN_UNITS = { s: 1e3, min: 6e4, h: 36e5, d: 864e5 }, PLAN_STEPS_MAX = 64;
const PLAN_FIRST = [[5, 0, "min"], [25, 10, "min"], [100, 10, "min"]];
function planStep(percent, wait, unit) {
  const item = make("li"), share = make("input"), pause = make("input"), units = make("select");
  for (const [input, value, name] of [[share, percent, "Percentage of users"], [pause, wait, "Wait before it"]]) {
    Object.assign(input, { type: "number", min: 0, step: "any", value });
    input.setAttribute("aria-label", name);
    input.oninput = () => showPlanForm(flagNow);
  }
  share.max = 100;
  units.replaceChildren(...Object.keys(PLAN_UNITS).map(name => { const unit = make("option", name); unit.value = name; return unit; }));
  units.value = unit;
  units.setAttribute("aria-label", "Unit of the wait");
  const out = button("×", () => { item.remove(); showPlanForm(flagNow); });
  out.setAttribute("aria-label", "Remove this step");
  item.append(share, make("span", "%"), make("span", "after", "soft"), pause, units, out);
  $("plan-steps").append(item);
}
function emptyPlanForm() {
  $("plan-new").open = false;
  $("plan-what").value = "rollout";
  $("plan-at").value = $("plan-stop").value = "";
  $("plan-missing").checked = false;
  $("plan-then").value = "hold";
  $("plan-steps").replaceChildren();
  PLAN_FIRST.forEach(step => planStep(...step));
  $("plan-variant").value = [...$("plan-variant").options].map(item => item.value).find(name => name !== flagNow?.defaultVariant) ?? "";
  planSays("");
}
function planSays(text) { $("plan-fault").hidden = !text; put($("plan-fault"), text); }
const isRolloutPlan = () => $("plan-what").value === "rollout";
// The steps as the node takes them.
function planSteps() {
  if (!isRolloutPlan()) return [{ wait_ms: 0, edit: $("plan-what").value }];
  return [...$("plan-steps").children].map(item => {
    const [share, pause, units] = item.querySelectorAll("input, select");
    return { wait_ms: Math.round(Number(pause.value) * PLAN_UNITS[units.value]), edit: { rollout: { variant: $("plan-variant").value, percent: Number(share.value) } } };
  });
}
// What of the form the page itself knows to be wrong.
function planFault(one) {
  if (!isRolloutPlan()) return "";
  const fields = [...$("plan-steps").querySelectorAll("input")];
  if (!fields.length) return "A plan has at least one step.";
  if (fields.some(field => field.value === "" || !field.checkValidity())) return "A share is 0 to 100 %, and a wait a number from 0 on.";
  return rollFault(one);
}
function showPlanForm(one) {
  const isOpen = ["running", "paused"].includes(one?.plan?.state), fault = one ? planFault(one) : "";
  $("plan-new").hidden = isOpen || !one || !!one.rejected;
  $("plan-form").disabled = !mayWrite();
  $("plan-rollout").hidden = !isRolloutPlan();
  $("plan-missing").disabled = !$("plan-stop").value.trim();
  $("plan-add").disabled = $("plan-steps").children.length >= PLAN_STEPS_MAX;
  $("plan-start").disabled = !!fault;
  $("plan-hint").hidden = !fault;
  put($("plan-hint"), fault);
}
$("plan-what").onchange = $("plan-stop").oninput = () => showPlanForm(flagNow);
$("plan-add").onclick = () => {
  const last = planSteps().at(-1)?.edit.rollout.percent ?? 0;
  planStep(Math.min(100, last * 2 || 5), 10, "min");
  showPlanForm(flagNow);
  $("plan-steps").lastChild.querySelector("input").focus();
};
$("plan-start").onclick = async () => {
  const one = flagNow, at = $("plan-at").value, plan = { steps: planSteps(), on_stop: $("plan-then").value };
  if (at) plan.begin_ms = new Date(at).getTime();
  if ($("plan-stop").value.trim()) Object.assign(plan, { stop_if: $("plan-stop").value, stop_if_missing: $("plan-missing").checked });
  planSays("");
  const failed = said => { flagSays(""); planSays(said.error + "."); };
  const made = await sendFlag("PUT", flagPath(one.flag, "/plan?"), JSON.stringify(plan), "The plan of " + one.flag + " was started", { failed }, { "content-type": "application/json" });
  if (made === null || flagName !== one.flag) return;
  emptyPlanForm();
  $("flag-plan-words").focus();
};
