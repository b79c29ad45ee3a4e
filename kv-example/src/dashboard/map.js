// ---- The map: nodes in a ring, and their links.
const SVG = "http://www.w3.org/2000/svg";
function svg(tag, set) {
  const element = document.createElementNS(SVG, tag);
  for (const key in set) element.setAttribute(key, set[key]);
  return element;
}
const pairOf = (a, b) => [a, b].sort().join("\n");
const spots = new Map();
let drawn = "";

function showMap() {
  const box = $("map").getBoundingClientRect(), people = mapPeople(), links = mapLinks(people);
  const names = [...people.keys()].sort(byName), root = document.querySelector("#map svg");
  const sign = [box.width, box.height, names, [...links.keys()].sort()].join("|");
  if (sign !== drawn) { drawn = sign; layMap(root, box, names, links); }
  for (const edge of root.querySelectorAll(".edge")) fillEdge(edge, links.get(edge.dataset.pair));
  for (const text of root.querySelectorAll(".rtt")) fillTrip(text, links.get(text.dataset.pair), names.length);
  for (const node of root.querySelectorAll(".node")) fillNode(node, people.get(node.dataset.name), names.length);
}
// One place for each name, the latest run in it.
function mapPeople() {
  const sorted = status.members.filter(one => one.state !== "left").sort((a, b) => a.since_ms - b.since_ms);
  return new Map(sorted.map(one => [one.name, one]));
}
// Links between pairs of names; null between this node and those it should be linked with.
function mapLinks(people) {
  const links = new Map();
  for (const one of status.links) {
    const pair = pairOf(one.from, one.to), old = links.get(pair);
    links.set(pair, { rtt: Math.min(one.rtt_us, old?.rtt ?? 1e9), lag: Math.max(one.lag_changes, old?.lag ?? 0) });
  }
  for (const one of people.values()) {
    const pair = pairOf(one.name, status.name);
    if (!one.self && !links.has(pair)) links.set(pair, null);
  }
  return links;
}
function layMap(root, { width: w, height: h }, names, links) {
  root.replaceChildren();
  root.setAttribute("viewBox", `0 0 ${w} ${h}`);
  spots.clear();
  const r = names.length > 24 ? 7 : names.length > 12 ? 10 : 15, rx = w / 2 - 46, ry = h / 2 - r - 22;
  names.forEach((name, at) => {
    const turn = 2 * Math.PI * at / names.length - Math.PI / 2;
    spots.set(name, { x: w / 2 + rx * Math.cos(turn), y: h / 2 - 4 + ry * Math.sin(turn), r });
  });
  const edges = svg("g", {}), marks = svg("g", {}), dots = svg("g", {});
  root.append(edges, marks, dots);
  for (const pair of links.keys()) layEdge(pair, edges, marks);
  for (const name of names) dots.append(makeNode(name, w, h));
}
function layEdge(pair, edges, marks) {
  const [a, b] = pair.split("\n").map(name => spots.get(name));
  if (!a || !b) return;
  const edge = svg("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: "edge" });
  // Not in the middle, where the lines of a full mesh cross.
  const text = svg("text", { x: a.x + (b.x - a.x) * .36, y: a.y + (b.y - a.y) * .36 + 3, class: "rtt" });
  edge.dataset.pair = text.dataset.pair = pair;
  edge.append(svg("title", {}));
  edges.append(edge);
  marks.append(text);
}
function makeNode(name, w, h) {
  const { x, y, r } = spots.get(name), below = y >= h / 2 - 4;
  const node = svg("g", { class: "node", tabindex: 0, role: "button", transform: `translate(${x} ${y})` });
  const label = svg("text", { y: below ? r + 14 : -r - 7 }), title = svg("title", {});
  node.dataset.name = name;
  // At the sides a long label would leave the map.
  const side = x < 60 ? "start" : x > w - 60 ? "end" : "";
  if (side) { label.style.textAnchor = side; label.setAttribute("x", side === "start" ? -r : r); }
  label.textContent = title.textContent = name;
  node.append(svg("circle", { class: "pulse", r }), svg("circle", { class: "ring", r: r + 4 }), svg("circle", { class: "body", r }),
    svg("text", { class: "glyph", y: 4 }), label, title);
  const choose = () => { person = person === name ? "" : name; later(showStatus); };
  node.onclick = choose;
  node.onkeydown = event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } };
  node.firstChild.addEventListener("animationend", () => node.classList.remove("wrote"));
  return node;
}
function fillEdge(edge, link) {
  const pair = edge.dataset.pair.split("\n"), isCalm = link && !link.lag;
  const look = !link ? " none" : link.lag ? " late" : pair.includes(person) ? " hot" : pair.includes(status.name) ? "" : " dim";
  edge.setAttribute("class", "edge" + look);
  const words = !link ? "no link" : "round trip " + micro(link.rtt) + (isCalm ? ", up to date" : ", behind by " + plural(link.lag, "change"));
  edge.firstChild.textContent = pair.join(" – ") + ": " + words;
}
function fillTrip(text, link, nodes) {
  const isShown = nodes <= 12 && text.dataset.pair.split("\n").includes(person || status.name);
  text.textContent = !isShown ? "" : !link ? "no link" : micro(link.rtt) + (link.lag ? " · " + link.lag + " behind" : "");
}
function fillNode(node, one, nodes) {
  const cut = isCut(one.name), word = STATES[one.state]?.[1] || one.state, wrote = node.classList.contains("wrote");
  node.setAttribute("class", "node " + one.state + (one.self ? " self" : "") + (wrote ? " wrote" : ""));
  node.setAttribute("aria-pressed", person === one.name);
  node.setAttribute("aria-label", one.name + ", " + word + leads(one.name).map(name => ", leads " + name).join("") + (cut ? ", cut off" : ""));
  const glyph = cut ? "✂" : one.state === "down" ? "✕" : one.state === "suspect" ? "?" : leads(one.name).length ? "★" : "";
  put(node.children[3], glyph);
  const isPlain = !one.self && one.state === "alive" && !peerOf(one.name)?.lag_changes && person !== one.name;
  node.children[4].style.display = nodes > 24 && isPlain ? "none" : "";
  put(node.children[4], one.name + (nodes > 24 ? "" : cut ? " · cut off" : one.state === "alive" ? "" : " · " + word));
}
function pulse(writer) { document.querySelector(`#map .node[data-name="${CSS.escape(writer)}"]`)?.classList.add("wrote"); }

