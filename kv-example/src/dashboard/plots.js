// ---- The plots.
const samples = [], censuses = [];
let colours = null;
// A canvas cleared for drawing, or null while it is not to be seen.
function paper(id) {
  const canvas = $(id), box = canvas.getBoundingClientRect(), scale = devicePixelRatio || 1;
  if (!box.width || !box.height) return null;
  const w = Math.round(box.width * scale), h = Math.round(box.height * scale);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, box.width, box.height);
  pen.font = "10.5px system-ui, sans-serif";
  if (!colours) { const css = getComputedStyle(document.documentElement); colours = name => css.getPropertyValue("--" + name); }
  return { pen, w: box.width, h: box.height };
}
function label(pen, text, x, y, align, baseline = "alphabetic") {
  pen.fillStyle = colours("soft");
  pen.textAlign = align;
  pen.textBaseline = baseline;
  pen.fillText(text, x, y);
}
function rule(pen, y, from, to, colour) {
  pen.strokeStyle = colours(colour);
  pen.lineWidth = 1;
  pen.beginPath(); pen.moveTo(from, y + .5); pen.lineTo(to, y + .5); pen.stroke();
}
function drawPlots() { drawLatency(); drawCensus(); }

const LATENCY_MS = 120000, TRIP_MIN_US = 100, TRIP_MAX_US = 2e6;
const TRIP_MARKS = [[100, "0.1 ms"], [1000, "1 ms"], [10000, "10 ms"], [100000, "100 ms"], [1000000, "1 s"]];
function drawLatency() {
  const page = paper("latency");
  if (!page) return;
  const { pen, w, h } = page, left = 46, right = w - 10, top = 8, bottom = h - 16, end = now();
  const x = t => right - (end - t) / LATENCY_MS * (right - left);
  const high = us => Math.log(Math.min(TRIP_MAX_US, Math.max(TRIP_MIN_US, us)) / TRIP_MIN_US) / Math.log(TRIP_MAX_US / TRIP_MIN_US);
  const y = us => bottom - high(us) * (bottom - top - 12);
  for (const [us, text] of TRIP_MARKS) { rule(pen, y(us), left, right, "line"); label(pen, text, left - 6, y(us), "right", "middle"); }
  label(pen, "2 min ago", left, h - 3, "left");
  label(pen, "now", right, h - 3, "right");
  const recent = samples.filter(one => one.t > end - LATENCY_MS);
  for (const one of recent) drawSample(pen, one, x(one.t), y, top);
  showLatency(recent);
}
function drawSample(pen, one, x, y, top) {
  if (one.late) { pen.fillStyle = colours("bad"); pen.textAlign = "center"; pen.fillText("×", x, top + 6); }
  if (one.rtt_max_us != null) {
    pen.strokeStyle = colours("second"); pen.lineWidth = 1.2;
    pen.beginPath(); pen.arc(x, y(one.rtt_max_us), 2.3, 0, 7); pen.stroke();
  }
  if (one.rtt_us != null) {
    pen.fillStyle = colours("accent");
    pen.beginPath(); pen.arc(x, y(one.rtt_us), 1.9, 0, 7); pen.fill();
  }
}
function showLatency(recent) {
  const newest = recent[recent.length - 1], text = $("latency-text");
  if (!newest) return put(text, status && status.members.length < 2 ? "Alone in its cluster, this node has nobody to measure with." : "Measuring begins …");
  if (newest.rtt_us == null) return put(text, "No peer is linked.");
  const { arrival_p50_us: half, arrival_p99_us: most } = newest;
  const arrivals = half == null ? "" : " · others’ writes arrive in " + micro(half) + ", 99 % " + micro(most) + ", clock difference included";
  const late = recent.some(one => one.late) ? " · × a peer owed a confirmation for 2 s" : "";
  const median = " round trip: median peer " + micro(newest.rtt_us), slowest = " slowest " + micro(newest.rtt_max_us) + arrivals + late;
  if (text.textContent !== median + slowest) text.replaceChildren(make("span", null, "key-dot"), median, make("span", null, "key-ring"), slowest);
}
function drawCensus() {
  const page = paper("census");
  if (!page) return;
  const { pen, w, h } = page, left = 26, right = w - 10, top = 8, bottom = h - 16, end = now();
  const past = Math.min(600000, Math.max(60000, end - (censuses[0]?.t ?? end)));
  const most = Math.max(1, ...censuses.map(one => one.alive + one.suspect + one.down));
  const x = t => Math.max(left, right - (end - t) / past * (right - left)), y = n => bottom - n / most * (bottom - top);
  const floor = censuses.map(() => 0);
  for (const [field, colour] of [["alive", "good"], ["suspect", "warn"], ["down", "bad"]]) {
    pen.fillStyle = colours(colour);
    pen.globalAlpha = field === "alive" ? .3 : .65;
    pen.beginPath();
    censuses.forEach((one, i) => {
      const from = x(one.t), to = x(censuses[i + 1]?.t ?? end), below = floor[i];
      floor[i] += one[field];
      if (one[field]) pen.rect(from, y(floor[i]), Math.max(.5, to - from), y(below) - y(floor[i]));
    });
    pen.fill();
  }
  pen.globalAlpha = 1;
  rule(pen, bottom, left, right, "line-2");
  label(pen, String(most), left - 6, y(most) + 3, "right", "middle");
  label(pen, "0", left - 6, bottom, "right", "middle");
  label(pen, span(past) + " ago", left, h - 3, "left");
  label(pen, "now", right, h - 3, "right");
  const newest = censuses[censuses.length - 1];
  if (newest) put($("census-text"), `now ${newest.alive} alive` + (newest.suspect ? `, ${newest.suspect} not answering` : "") + (newest.down ? `, ${newest.down} down` : ""));
}

