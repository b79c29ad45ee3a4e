// ---- The voters: who they are, whether they answer, and changing them.
const livingOf = name => status.members.find(one => one.name === name && isLiving(one)) || status.members.find(one => one.name === name);
// Whether a voter answers, as far as this node sees, and in which words.
function voterState(name) {
  if (name === status.name) return { cls: "good", word: "this node", answers: true };
  const member = livingOf(name), peer = peerOf(name);
  if (!member) return { cls: "bad", word: (status.forgotten || []).some(one => one.name === name) ? "forgotten" : "no member of this name", answers: false };
  if (member.state !== "alive") return { cls: STATES[member.state]?.[0] || "soft", word: STATES[member.state]?.[1] || member.state, answers: false };
  if (!peer) return { cls: "warn", word: "alive, no link from here", answers: false };
  return { cls: "good", word: "linked, " + micro(peer.rtt_us), answers: true };
}
const answering = names => names.filter(name => voterState(name).answers).length;
const hasMajority = names => answering(names) > names.length / 2;

function showVoters() {
  const { voters, next, epoch } = status.voters, body = document.querySelector("#voters tbody");
  body.parentNode.hidden = !voters.length;
  const names = [...new Set([...voters, ...(next || [])])].sort(byName);
  body.replaceChildren(...names.map(name => voterRow(name, voters, next)));
  put($("voters-note"), !voters.length ? "" : epoch === 0 ? "as configured" : next ? "being changed" : "changed");
  const [cls, text] = votersSummary(voters, next);
  $("voters-text").className = cls;
  put($("voters-text"), text);
  if ($("vote").open) showVoteDiff();
}
function voterRow(name, voters, next) {
  const row = make("tr"), { cls, word } = voterState(name);
  const role = !next ? "" : !next.includes(name) ? "until the change is done" : !voters.includes(name) ? "joins" : "stays";
  const state = make("td");
  state.append(make("span", word, "state " + cls));
  row.append(make("td", name), state, make("td", role, "soft"));
  return row;
}
function votersSummary(voters, next) {
  if (!voters.length) return ["soft", "There are no voters, so there are no elections."];
  const alone = isAlone() ? " This node is alone: it has reached no other since its start." : "";
  const words = answering(voters) + " of " + voters.length + " answer";
  if (next) {
    const both = words + ", of the next ones " + answering(next) + " of " + next.length + ". Until the change is done, leases need a majority of each.";
    return [hasMajority(voters) && hasMajority(next) ? "soft" : "bad", "A change is in progress: " + both + alone];
  }
  if (hasMajority(voters)) return ["soft", words + ": a majority, which leases need." + alone];
  return ["bad", words + ": no majority, so nobody can get or keep a lease." + alone];
}

// The dialog.
function openVote() {
  const { voters } = status.voters, others = status.members.filter(isLiving).map(one => one.name);
  const names = [...new Set([...voters, ...others])].sort(byName);
  $("vote-names").replaceChildren(...names.map(name => voteBox(name, voters.includes(name))));
  $("vote-more").value = $("vote-confirm").value = "";
  $("vote-force").checked = false;
  put($("vote-said"), "");
  showVoteDiff();
  $("vote").showModal();
}
function voteBox(name, isChecked) {
  const label = make("label"), box = make("input");
  box.type = "checkbox"; box.value = name; box.checked = isChecked; box.onchange = showVoteDiff;
  label.append(box, " " + name + " ", make("span", voterState(name).word, "soft"));
  return label;
}
function wantedVoters() {
  const chosen = [...document.querySelectorAll("#vote-names input:checked")].map(box => box.value);
  const more = $("vote-more").value.split(",").map(name => name.trim()).filter(Boolean);
  return [...new Set([...chosen, ...more])].sort(byName);
}
let voting = false;
function showVoteDiff() {
  const wanted = wantedVoters(), { voters, next } = status.voters, force = $("vote-force").checked;
  const added = wanted.filter(name => !voters.includes(name)), removed = voters.filter(name => !wanted.includes(name));
  const parts = [];
  if (added.length) parts.push("Adds " + added.join(", ") + ".");
  if (removed.length) parts.push("Removes " + removed.join(", ") + ".");
  if (wanted.length && wanted.length % 2 === 0) parts.push("An even number of voters tolerates only as many failures as one voter less.");
  const silent = wanted.filter(name => !voterState(name).answers);
  if (silent.length && !force) parts.push("Not linked: " + silent.join(", ") + ". Every node of the new list has to be alive.");
  put($("vote-diff"), parts.join(" ") || "Nothing changes.");
  $("vote-forcing").hidden = !force;
  put($("vote-cluster"), status.cluster);
  put($("vote-lease"), status.settings.present.lease_time_max);
  const isChange = added.length + removed.length > 0 || force && !!next;
  const isConfirmed = !force || $("vote-confirm").value === status.cluster;
  put($("vote-yes"), force ? "Put this list in force" : "Change the voters");
  $("vote-yes").disabled = voting || !wanted.length || !isChange || !isConfirmed;
}
async function changeVoters() {
  const names = wantedVoters().join(","), force = $("vote-force").checked;
  voting = true;
  showVoteDiff();
  put($("vote-said"), force ? "" : "The change runs. It takes about 11 s, also if this is closed.");
  put($("vote-said"), await tellVoters(names, force));
  voting = false;
  showVoteDiff();
}
async function tellVoters(names, force) {
  try {
    const reply = await call("PUT", "/v1/voters?names=" + encodeURIComponent(names) + "&force=" + force);
    const said = await reply.json();
    if (!reply.ok) return said.error + "; " + said.detail;
    status.voters = said;
    showVoters();
    const wait = force ? " They grant no lease for ten ninths of " + status.settings.present.lease_time_max + "." : "";
    return "Done: the voters are " + said.voters.join(", ") + "." + wait +
      " Give every node this list for its next start, too.";
  } catch { return "The node is out of reach. Whether the voters are changed is not known."; }
}
$("vote-open").onclick = openVote;
$("vote-no").onclick = () => $("vote").close();
$("vote-yes").onclick = changeVoters;
for (const id of ["vote-force", "vote-more", "vote-confirm"]) $(id).oninput = showVoteDiff;

