// ---- The stream `/v1/dash`. It is read by hand, because an EventSource cannot carry a token, and resumed where it was.
let last = "", boot = "", prefix = "", stopper = null, status = null;
async function follow(stop) {
  const headers = { accept: "text/event-stream" };
  if (token) headers.authorization = "Bearer " + token;
  if (last) headers["last-event-id"] = last;
  const query = prefix ? "?prefix=" + encodeURIComponent(prefix) : "";
  const reply = await fetch(base + "/v1/dash" + query, { headers, cache: "no-store", signal: stop });
  if (reply.status === 401) { await askToken(); return true; }
  if (!reply.ok) throw new Error((await reply.json()).error);
  say("good", "live");
  flagsSoon(0);
  await readEvents(reply.body.pipeThrough(new TextDecoderStream()).getReader());
  return false;
}
async function readEvents(reader) {
  let rest = "", name = "", data = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") { if (name) told[name]?.(JSON.parse(data)); name = data = ""; }
      else if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
      else if (line.startsWith("id: ")) last = line.slice(4);
    }
  }
}
async function stay() {
  for (let pause = 500; ;) {
    stopper = new AbortController();
    const began = performance.now();
    let again = false;
    try {
      again = await follow(stopper.signal);
    } catch (error) {
      if (stopper.signal.aborted) again = true;
      else if (error.message && !/fetch|network/i.test(error.message)) say("warn", error.message);
    }
    if (again) continue;
    if (performance.now() - began > 5000) pause = 500;
    say("bad", "the node is out of reach; trying again");
    await new Promise(done => setTimeout(done, pause));
    pause = Math.min(pause * 2, 4000);
  }
}
function say(cls, text) { $("line").className = "state " + cls; put($("line"), text); }
function reload(newPrefix) { prefix = newPrefix; last = ""; stopper?.abort(); }

// Adds to a history what is new in it.
function extend(list, more, kept) {
  const after = list.length ? list[list.length - 1].t : 0;
  const isKnown = one => one.t < after || list.some(old => old.t === one.t && old.text === one.text);
  for (const one of more) if (!isKnown(one)) list.push(one);
  if (list.length > kept) list.splice(0, list.length - kept);
}
const told = {
  status(news) {
    if (boot && boot !== news.run) censuses.length = samples.length = lines.length = 0;
    boot = news.run;
    skew = news.now_ms - Date.now();
    status = news;
    later(showStatus);
  },
  keys(news) {
    if (news.reset) forgetKeys();
    const wrote = new Set();
    for (const row of news.rows) if (takeRow(row, news.keys_max) && loaded) wrote.add(row.w);
    for (const [key, how] of Object.entries(news.gone)) dropRow(key, how);
    if (news.cut) cut = true;
    if (news.current) { loaded = true; if (keys.size < news.keys_max) cut = false; }
    wrote.forEach(pulse);
    noteFlagKeys(news);
    later(showKeys);
  },
  news(news) {
    extend(censuses, news.censuses, 600);
    extend(samples, news.samples, 600);
    if (news.log.length) { extend(lines, news.log, 200); later(showLog); }
    later(drawPlots);
  },
};

