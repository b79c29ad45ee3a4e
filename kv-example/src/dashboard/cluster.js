// ---- The head, the members, the leaders, the events.
const STATES = {
  alive: ["good", "alive"], suspect: ["warn", "does not answer"], down: ["bad", "down"], left: ["left soft", "has left"], forgotten: ["left soft", "forgotten"],
};
const leads = name => (status.elections || []).filter(one => one.node === name).map(one => one.name);
const isCut = name => !!status.demo && status.demo.cut.includes(name);
const peerOf = name => status.peers.find(one => one.name === name);
const isLiving = one => one.state === "alive" || one.state === "suspect";
const isGone = one => !one.self && (one.state === "down" || one.state === "left");
let person = "";

function showStatus() {
  put($("name"), status.name);
  put($("cluster-name"), status.cluster);
  document.title = status.name + " · tidings";
  put($("cluster-note"), plural(status.members.filter(isLiving).length, "member") + " of " + status.members.length + " there");
  put($("agree"), [agreement(), "digest " + (status.store?.root || "").slice(0, 8), ...troubles()].join(" · "));
  showViews(); showMembers(); showMap(); showVoters(); showLeaders(); showSettings();
}
function agreement() {
  if (status.locals.length > 1) {
    const roots = new Set(status.locals.map(one => one.root)).size;
    return roots === 1 ? "all " + status.locals.length + " hold the same" : roots + " different states right now";
  }
  if (!status.peers.length) return "no peers";
  const late = status.peers.filter(one => one.lag_changes > 0).length, peers = plural(status.peers.length, "peer");
  return late ? late + " of " + peers + " behind" : peers + " up to date";
}
const isAlone = () => status.readiness === "alone" && status.members.length > 1;
function troubles() {
  const store = status.store, found = [];
  if (!status.ready) found.push("not ready: it has not caught up yet");
  if (isAlone()) found.push("alone: ready with what it holds, no other node reached since its start");
  if (status.busy) found.push("busy: writes are refused");
  if (store?.disk === "failed") found.push("the disk has failed");
  if (store?.size_bytes >= .8 * store?.size_bytes_max) found.push("the store is nearly full: " + size(store.size_bytes) + " of " + size(store.size_bytes_max));
  return found;
}
function showViews() {
  const nav = $("views"), names = status.locals.map(one => one.name).join();
  nav.hidden = status.locals.length < 2;
  if (nav.hidden || nav.dataset.names === names) return;
  nav.dataset.names = names;
  nav.replaceChildren(make("span", "As seen by ", "soft"));
  const root = base.replace(new RegExp("/" + status.name + "$"), "");
  for (const one of status.locals) {
    const link = make("a", one.name);
    link.href = root + "/" + one.name;
    link.onclick = () => { link.hash = location.hash; };
    if (one.name === status.name) link.setAttribute("aria-current", "page");
    nav.append(link);
  }
}

// Members, and behind them those that were forgotten and have not come back.
function peopleShown() {
  const members = [...status.members].sort((a, b) => b.self - a.self || byName(a.name, b.name));
  const forgotten = new Map((status.forgotten || []).map(one => [one.name, one.t]));
  members.forEach(one => forgotten.delete(one.name));
  const gone = [...forgotten].map(([name, t]) => ({ name, run: "forgotten " + name, state: "forgotten", since_ms: t, self: false, meta: {} }));
  return [...members, ...gone];
}
function showMembers() {
  $("h-do").hidden = !status.demo && !status.members.some(isGone);
  fillRows(document.querySelector("#people tbody"), "run", peopleShown(), memberRow, fillMember);
}
function memberRow(one) {
  const row = make("tr");
  row.dataset.run = one.run;
  for (let i = 0; i < 7; i++) row.append(make("td"));
  row.children[1].append(make("span"));
  row.children[3].className = "num";
  row.children[6].className = "soft about";
  row.children[5].append(button("", event => { event.stopPropagation(); status.demo ? switchNode(one.name) : forgetMember(one.name); }));
  row.onclick = () => { person = person === one.name ? "" : one.name; later(showStatus); };
  return row;
}
function fillMember(row, one) {
  const [name, state, since, trip, lag, deed, about] = row.children;
  const [cls, word] = STATES[one.state] || ["soft", one.state], peer = peerOf(one.name);
  row.className = person === one.name ? "chosen" : "";
  put(name, one.name + (one.self ? " (this one)" : ""));
  state.firstChild.className = "state " + cls;
  put(state.firstChild, isCut(one.name) && one.self ? "cut off" : word);
  put(since, one.self ? span(status.uptime_ms) : span(now() - one.since_ms));
  put(trip, one.self ? "–" : micro(peer?.rtt_us || one.rtt_us));
  const [lagClass, lagText] = lagOf(one, peer);
  lag.className = lagClass;
  put(lag, lagText);
  const meta = Object.entries(one.meta).map(([key, value]) => key + " " + value);
  put(about, [...leads(one.name).map(name => "leads " + name), one.app_version && "v" + one.app_version, ...meta].filter(Boolean).join(", "));
  about.title = about.textContent;
  const act = deed.firstChild, verb = status.demo ? isCut(one.name) ? "Heal" : "Cut off" : "Forget";
  deed.hidden = $("h-do").hidden;
  act.hidden = one.state === "forgotten" || !status.demo && !isGone(one);
  put(act, verb);
  act.setAttribute("aria-label", verb + " " + one.name);
}
function lagOf(one, peer) {
  if (one.self || one.state === "forgotten") return ["soft", "–"];
  if (!peer) return [one.state === "left" ? "soft" : "bad", "no link"];
  return peer.lag_changes ? ["warn", plural(peer.lag_changes, "change") + ", " + size(peer.lag_bytes)] : ["soft", "up to date"];
}
async function forgetMember(name) {
  if (!await confirmed("Forget " + name + " on all nodes?", "No quorum counts it any more. If it comes back, it joins as a new member.", "Forget")) return;
  await call("DELETE", "/v1/members/" + encodeURIComponent(name));
}
async function switchNode(name) { await call("POST", "/v1/demo/" + (isCut(name) ? "heal" : "cut") + "/" + encodeURIComponent(name)); }

// Asks before what cannot be taken back.
function confirmed(question, detail, verb) {
  put($("sure-what"), question);
  put($("sure-detail"), detail);
  put($("sure-yes"), verb);
  $("sure").showModal();
  $("sure-no").focus();
  return new Promise(done => {
    // The event "close" comes later, when the next question may be open already.
    const answer = yes => { $("sure").close(); done(yes); };
    $("sure-yes").onclick = () => answer(true);
    $("sure-no").onclick = () => answer(false);
    $("sure").oncancel = () => done(false);
  });
}

function showLeaders() {
  const elections = status.elections || [], body = document.querySelector("#leaders tbody");
  body.parentNode.hidden = !elections.length;
  put($("leaders-text"), !elections.length ? "No election was asked for here. tidings elect NAME holds one."
    : elections.every(one => one.leader) ? "" : "After its start a voter grants nothing until all earlier leases must have ended (17 s with the profile lan).");
  body.replaceChildren(...elections.map(leaderRow));
}
function leaderRow(one) {
  const row = make("tr"), leader = one.leader == null ? "nobody" : one.leader + (one.node && one.node !== one.leader ? " at " + one.node : "");
  row.append(make("td", one.name), make("td", leader, one.leader == null ? "warn" : ""), make("td", one.token ? one.token.slice(0, 16) : "–", "mono soft"));
  row.title = one.token ? "token " + one.token : "";
  return row;
}

const lines = [];
function lineClass(text) {
  if (/down|failed|damaged|refused|out of reach|cut off/.test(text)) return "bad";
  return /does not answer/.test(text) ? "warn" : "";
}
function showLog() {
  $("log").replaceChildren(...lines.slice().reverse().map(one => {
    const item = make("li");
    item.append(make("time", clock(one.t), "mono"), make("span", one.text, lineClass(one.text)));
    return item;
  }));
}

