// The console's page. It draws the events and states that the server sends, and posts the actions of the buttons. It uses
// no library and loads nothing from other servers.

const MOST_ROWS = 300;
const MERGED_WITHIN_MS = 3000;
const BARS = 20;
const element = (id) => document.getElementById(id);

const state = { run: null, view: null, hello: null, selected: null, names: new Map(), cards: new Map() };

// ---------------------------------------------------------------------------- small things
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Writes a text only if it differs, so that selections and screen readers are not disturbed. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function duration(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${String(seconds % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

const named = (resource) => state.names.get(resource) ?? resource;
const withNames = (text) => text.replace(/\b(?:location|company):\w+/g, named);
const number = (value) => value.toLocaleString("en-US");

// ---------------------------------------------------------------------------- installations
function card({ resource, name, id, kind }) {
  const radio = make("input", { type: "radio", name: "resource", value: resource, id: `r-${id}` });
  const parts = {
    radio,
    state: make("span", { className: "state" }),
    life: make("span", { className: "value" }),
    lifeBar: make("span"),
    used: make("span", { className: "value" }),
    usedBar: make("span"),
    note: make("p", { className: "note" }),
    bars: [],
  };
  const meter = (bar, label, kindOf) => {
    const made = make("div", { className: `meter ${kindOf}` }, bar);
    made.setAttribute("role", "meter");
    made.setAttribute("aria-label", `${label} of ${name}`);
    made.setAttribute("aria-valuemin", "0");
    return made;
  };
  parts.lifeMeter = meter(parts.lifeBar, "Life left of the access token", "life");
  parts.usedMeter = meter(parts.usedBar, "Requests in the last 10 seconds", "use");
  parts.chart = chart(parts.bars);
  const label = make("label", { htmlFor: radio.id, textContent: name });
  parts.node = make(
    "div",
    { className: "card" },
    make("div", { className: "head" }, radio, label, parts.state),
    make("p", { className: "id", textContent: `${kind === "company" ? "agency" : "location"} ${id}` }),
    make("p", { className: "row" }, make("span", { textContent: "Access token" }), parts.life),
    parts.lifeMeter,
    make("p", { className: "row" }, make("span", { textContent: "Last 10 s" }), parts.used),
    parts.usedMeter,
    parts.chart,
    parts.note,
  );
  parts.node.dataset.resource = resource;
  radio.addEventListener("change", () => select(resource));
  parts.node.addEventListener("click", (event) => {
    if (!event.target.closest("input, label")) select(resource);
  });
  return parts;
}

function chart(bars) {
  const NS = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("class", "chart");
  svg.setAttribute("viewBox", `0 0 ${BARS * 5} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  for (let bar = 0; bar < BARS; bar += 1) {
    const pair = ["passed", "held"].map((name) => {
      const rect = document.createElementNS(NS, "rect");
      rect.setAttribute("class", name);
      rect.setAttribute("x", String(bar * 5 + 0.5));
      rect.setAttribute("width", "4");
      rect.setAttribute("height", "0");
      svg.append(rect);
      return rect;
    });
    bars.push(pair);
  }
  return svg;
}

function drawChart(parts, { passed, held }, burst) {
  const highest = Math.max(burst / 2, ...passed.map((count, bar) => count + held[bar]));
  const height = (count) => (count === 0 ? 0 : Math.max(1.5, (count / highest) * 23));
  parts.bars.forEach(([below, above], bar) => {
    const [low, high] = [height(passed[bar]), height(held[bar])];
    below.setAttribute("y", String(24 - low));
    below.setAttribute("height", String(low));
    above.setAttribute("y", String(24 - low - high));
    above.setAttribute("height", String(high));
  });
  const sum = (counts) => counts.reduce((total, count) => total + count, 0);
  parts.chart.setAttribute("aria-label", `Last 10 s: ${sum(passed)} reached the platform, ${sum(held)} refused by the relay`);
}

const TONES = { Active: "good", Refreshing: "warn", Uncertain: "warn", Suspended: "warn", Blocked: "bad", NeedsReauthorization: "bad" };
const WORDS = { NeedsReauthorization: "Needs reauthorization" };

/** Text and colour of a card's state, from the stored installation. */
function standing(installation, now) {
  if (!installation || installation.is_placeholder) return { text: "Not installed", tone: "" };
  const { status } = installation;
  return { text: status === "Revoked" ? "Uninstalled" : WORDS[status] ?? status, tone: TONES[status] ?? "" };
}

function setMeter(meter, bar, value, most, tone) {
  const share = most > 0 ? Math.min(1, Math.max(0, value / most)) : 0;
  meter.setAttribute("aria-valuemax", String(Math.round(most) || 1));
  meter.setAttribute("aria-valuenow", String(Math.round(Math.min(Math.max(value, 0), most))));
  bar.style.width = `${share * 100}%`;
  meter.classList.toggle("warn", tone === "warn");
  meter.classList.toggle("bad", tone === "bad");
}

function drawCard(parts, { installation, platform, chart: traffic, problem }, now) {
  const { text, tone } = standing(installation, now);
  write(parts.state, text);
  parts.state.className = `state ${tone}`;
  parts.node.classList.toggle("absent", text === "Not installed");

  const stored = installation?.expires_at ?? null;
  const left = stored === null ? 0 : stored - now;
  const refused = left > 0 && platform.refuses_token;
  const life = stored === null ? 0 : stored - installation.issued_at;
  let words = stored === null ? "none" : left > 0 ? `${duration(left)} left` : "expired";
  if (refused) words = "expired at the platform";
  write(parts.life, words);
  const shown = refused ? 0 : left;
  setMeter(parts.lifeMeter, parts.lifeBar, shown / 1000, life / 1000, shown < life * 0.1 ? "bad" : shown < life * 0.4 ? "warn" : "");

  const { burst } = platform.limits;
  const used = burst - platform.remaining.burst;
  write(parts.used, `${used} of ${burst} used`);
  setMeter(parts.usedMeter, parts.usedBar, used, burst, used >= burst ? "bad" : "");
  drawChart(parts, traffic, burst);

  const notes = [];
  const alarm = [];
  if (problem) alarm.push(problem);
  if (platform.paused) alarm.push("paused at the platform");
  if (installation?.lease_ends_at > now && ["Refreshing", "Uncertain"].includes(installation.status)) {
    alarm.push(`lease ends in ${duration(installation.lease_ends_at - now)}`);
  } else if (installation?.status === "Refreshing") {
    alarm.push("lease expired: the next call or refresh presents the token again");
  } else if (installation?.status === "Uncertain") {
    alarm.push("outcome unknown or refused: the renewal is tried again");
  }
  if (installation?.retry_at > now) alarm.push(`next try in ${duration(installation.retry_at - now)}`);
  if (installation && !installation.is_placeholder) {
    const { minted, generation } = installation;
    if (generation > 0) notes.push(`token pair ${generation}`);
    if (minted) notes.push(generation > 0 ? "minted from the agency’s" : "minted from the agency’s at the first call");
  }
  notes.push(`${number(platform.remaining.daily)} calls left today`);
  const strong = alarm.length ? [make("strong", { textContent: `${alarm.join(" · ")} · ` })] : [];
  const wanted = [...strong, notes.join(" · ")];
  if (parts.note.textContent !== wanted.map((part) => part.textContent ?? part).join("")) parts.note.replaceChildren(...wanted);
}

function select(resource) {
  state.selected = resource;
  for (const [known, parts] of state.cards) {
    parts.radio.checked = known === resource;
    parts.node.classList.toggle("selected", known === resource);
  }
  write(element("selected"), named(resource));
  drawPause();
}

function drawPause() {
  const known = state.view?.resources.find(({ resource }) => resource === state.selected);
  if (!known) return;
  const thing = known.kind === "company" ? "agency" : "location";
  write(element("pause"), known.platform.paused ? `Let the ${thing} go on` : `Pause the ${thing}`);
  element("pause").dataset.paused = String(!known.platform.paused);
}

function drawView() {
  if (!state.view) return;
  const now = Date.now();
  for (const resource of state.view.resources) {
    if (!state.cards.has(resource.resource)) {
      const parts = card(resource);
      state.cards.set(resource.resource, parts);
      state.names.set(resource.resource, resource.name);
      element("resources").append(parts.node);
    }
    drawCard(state.cards.get(resource.resource), resource, now);
  }
  if (!state.selected && state.view.resources.length) select(state.view.resources[0].resource);
  drawPause();

  const faults = element("faults");
  faults.classList.toggle("bad", state.view.faults.length > 0);
  write(faults, state.view.faults.length ? state.view.faults.join("; ") : "No fault is set.");

  const { queued } = state.view;
  write(element("queued"), queued ? `Calls on the queue: ${number(queued)}.` : "No call is queued.");

  const workers = state.view.workers.map(({ name, pid, starts }) => ({
    text: pid ? `${name} · ${pid}${starts > 1 ? ` · start ${starts}` : ""}` : `${name} · dead`,
    gone: !pid,
  }));
  const list = element("workers");
  if (list.dataset.shown !== JSON.stringify(workers)) {
    list.dataset.shown = JSON.stringify(workers);
    list.replaceChildren(...workers.map(({ text, gone }) => make("li", { textContent: text, className: gone ? "gone" : "" })));
  }
}

// ---------------------------------------------------------------------------- events
const toneOf = (status) => {
  if (status === null || status === undefined) return "bad";
  if (status < 400) return "good";
  return status === 429 ? "warn" : "bad";
};
const outcomeOf = (status) => (status === null || status === undefined ? "lost" : String(status));
const GRANTS = {
  authorization_code: "code exchanged",
  refresh_token: "refresh",
  mint: "minting",
  other_version: "request in another API version",
};

/** Describes an event for its row: group, kind, text, outcome. Equal descriptions share one row with a count. */
function described(happened) {
  const { event } = happened;
  if (event === "gateway") {
    const relayed = /^(?:\/iam)?\/relay\/(location|compan)[a-z]+\/([^/]+)(\/.*)?$/.exec(happened.path);
    const who = relayed ? named(`${relayed[1] === "location" ? "location" : "company"}:${relayed[2]}`) : "";
    const isCall = relayed || happened.path.startsWith("/api/");
    const by = happened.source ? `from the ${happened.source}` : "";
    return {
      group: isCall ? "calls" : "system",
      kind: isCall ? "call" : "page",
      text: `${happened.method} ${relayed ? relayed[3] ?? "(status)" : happened.path}`,
      who: [who, by].filter(Boolean).join(", "),
      outcome: outcomeOf(happened.status),
      tone: toneOf(happened.status),
      millis: happened.millis,
    };
  }
  if (event === "token") {
    const granted = happened.outcome === "granted";
    const lost = granted && happened.status === null;
    return {
      group: "tokens",
      kind: "token",
      text: `${GRANTS[happened.grant] ?? happened.grant}: ${lost ? "granted, but the answer was lost" : happened.outcome}`,
      who: happened.resource ? named(happened.resource) : "",
      outcome: outcomeOf(happened.status),
      tone: toneOf(happened.status),
    };
  }
  if (event === "platform") {
    return {
      group: "platform",
      kind: "platform",
      text: `${happened.method} ${happened.path}`,
      who: happened.resource ? named(happened.resource) : "unknown token",
      outcome: outcomeOf(happened.status),
      tone: toneOf(happened.status),
    };
  }
  if (event === "webhook") {
    return {
      group: "webhooks",
      kind: "webhook",
      text: happened.kind,
      who: named(happened.resource),
      outcome: outcomeOf(happened.status),
      tone: toneOf(happened.status),
    };
  }
  if (event === "worker") {
    const ended = happened.what.startsWith("ended");
    return { group: "system", kind: "process", text: `${happened.worker} ${happened.what}`, outcome: ended ? "ended" : "", tone: "bad" };
  }
  if (event === "invoked") {
    const ok = happened.outcome === "ok";
    const text = `${happened.function} ${happened.answer ?? happened.outcome}`;
    return { group: "system", kind: "invoked", text, outcome: ok ? "ok" : "error", tone: ok ? "good" : "bad", millis: happened.millis };
  }
  if (event === "log") {
    const error = happened.line.startsWith("ERROR");
    // Without the ids of the request, equal lines share a row.
    const line = happened.line.replace(/^(?:ERROR|WARN) /, "").replace(/ (?:request_id|trace_id)="[^"]*"/g, "");
    const text = withNames(line);
    return { group: "system", kind: "log", text, who: happened.worker, outcome: error ? "error" : "warning", tone: error ? "bad" : "warn" };
  }
  if (event === "published") {
    const [resource] = happened.resources ?? [];
    return { group: "webhooks", kind: "event", text: `${happened.name} is on the bus`, who: resource ? named(resource) : "" };
  }
  if (event === "lifecycle") {
    const [kind, id] = Object.entries(happened.detail?.resource ?? {})[0] ?? [];
    return { group: "system", kind: "lifecycle", text: happened.name, who: kind ? named(`${kind}:${id}`) : "" };
  }
  const what = withNames(String(happened.what ?? event));
  return { group: "system", kind: event === "control" ? "sandbox" : String(event), text: what };
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 1 });
const rows = [];

function addEvent(happened) {
  const shown = described(happened);
  const key = [shown.kind, shown.text, shown.who, shown.outcome].join("|");
  const same = rows.slice(0, 12).find((row) => row.key === key && happened.at - row.first < MERGED_WITHIN_MS);
  if (same) {
    same.count += 1;
    if (shown.millis !== undefined) {
      same.least = Math.min(same.least, shown.millis);
      same.most = Math.max(same.most, shown.millis);
    }
    drawRow(same);
    return;
  }
  const row = { key, first: happened.at, count: 1, least: shown.millis, most: shown.millis, group: shown.group };
  row.times = make("span", { className: "times" });
  row.millis = make("span", { className: "millis" });
  const text = make("span", { className: "text" }, shown.text);
  if (shown.who) text.append(" ", make("span", { className: "who", textContent: shown.who }));
  text.append(" ", row.times);
  row.node = make(
    "li",
    { className: "event" },
    make("time", { dateTime: new Date(happened.at).toISOString(), textContent: clock.format(happened.at) }),
    make("span", { className: "kind", textContent: shown.kind }),
    text,
    make("span", { className: `outcome ${shown.tone ?? ""}`, textContent: shown.outcome ?? "" }),
    row.millis,
  );
  drawRow(row);
  rows.unshift(row);
  if (isWanted(row.group)) element("events").prepend(row.node);
  for (const old of rows.splice(MOST_ROWS)) old.node.remove();
}

function drawRow(row) {
  write(row.times, row.count > 1 ? `×${row.count}` : "");
  if (row.least === undefined) return;
  write(row.millis, row.least === row.most ? `${row.least} ms` : `${row.least}–${row.most} ms`);
}

const isWanted = (group) => element("filters").querySelector(`input[value="${group}"]`).checked;

element("filters").addEventListener("change", () => {
  element("events").replaceChildren(...rows.filter((row) => isWanted(row.group)).map((row) => row.node));
});
element("clear").addEventListener("click", () => {
  rows.length = 0;
  element("events").replaceChildren();
});

// ---------------------------------------------------------------------------- buttons
function said(text, isBad) {
  const node = element("said");
  node.classList.toggle("bad", isBad);
  write(node, text);
}

/** The webhooks that a button has sent last, and the number of them that are not on the bus yet. */
let sending = null;

function sendsWebhooks(resource, times) {
  const earlier = sending?.resource === resource ? sending : { times: 0, left: 0 };
  sending = { resource, times: earlier.times + times, left: earlier.left + times };
}

/** Says when the last of the webhooks that a button has sent is on the bus. */
function countArrival({ event, resources }) {
  if (event !== "published" || !sending || !resources.includes(sending.resource)) return;
  sending.left -= 1;
  if (sending.left > 0) return;
  said(`All ${sending.times} webhooks are on the bus.`, false);
  sending = null;
}

async function press(button) {
  if (button.getAttribute("aria-disabled") === "true") return;
  const { action, times, paused } = button.dataset;
  const [kind, id] = (state.selected ?? ":").split(/:(.*)/s);
  const body = { action, resource: { [kind]: id } };
  if (times) body.times = Number(times);
  if (paused) body.paused = paused === "true";
  if (action === "webhooks") sendsWebhooks(state.selected, body.times);
  else sending = null;
  // Not `disabled`: a button that is pressed with the keyboard must keep the focus.
  button.setAttribute("aria-disabled", "true");
  said(`${button.textContent}…`, false);
  try {
    const answer = await fetch("/actions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    const { done, problem } = await answer.json();
    // The webhooks can be on the bus before this answer is here.
    if (action !== "webhooks" || sending || !answer.ok) said(done ?? problem ?? "", !answer.ok);
  } catch {
    said("The sandbox does not answer. Is it still running?", true);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

for (const button of document.querySelectorAll("button[data-action]")) {
  button.addEventListener("click", () => press(button));
}

// ---------------------------------------------------------------------------- the terminal
element("shell").addEventListener("toggle", async () => {
  if (!element("shell").open || element("exports").textContent) return;
  try {
    const answer = await fetch("/exports");
    element("exports").textContent = await answer.text();
  } catch {
    said("The sandbox does not answer. Is it still running?", true);
  }
});

element("copy").addEventListener("click", async () => {
  const text = element("exports").textContent;
  try {
    await navigator.clipboard.writeText(text);
    said("The lines are copied. Paste them into a terminal.", false);
  } catch {
    getSelection().selectAllChildren(element("exports"));
    said("The browser does not let this page copy. The lines are selected: copy them by the keyboard.", true);
  }
});

// ---------------------------------------------------------------------------- the connection
function connected(text, className) {
  const node = element("connection");
  node.className = `connection ${className}`;
  write(node, text);
}

const events = new EventSource("/events");
events.addEventListener("open", () => connected("Live", "live"));
events.addEventListener("error", () => connected("Connection lost, trying again…", "lost"));
/** The form of the fake platform, which the sandbox's flags choose. */
function platformText({ api, limits, signature, token_requests_per_minute: tokenRequests }) {
  const versions = { both: "v2 and v3", v2: "v2", v3: "v3" }[api];
  const parts = [
    `API ${versions}`,
    `webhooks signed with ${signature}`,
    `${number(limits.burst)} requests in ${limits.interval_ms / 1000} s`,
    `${number(limits.daily)} a day`,
  ];
  if (tokenRequests !== null) parts.push(`${tokenRequests} token requests a minute`);
  return `Platform: ${parts.join(" · ")}`;
}

events.addEventListener("hello", ({ data }) => {
  const hello = JSON.parse(data);
  if (state.run !== null && state.run !== hello.run) {
    rows.length = 0;
    element("events").replaceChildren();
  }
  state.run = hello.run;
  element("link").href = hello.link;
  element("platform").textContent = platformText(hello);
  element("marketplace").href = hello.marketplace;
});
events.addEventListener("view", ({ data }) => {
  state.view = JSON.parse(data);
  drawView();
});
events.addEventListener("happened", ({ data }) => {
  const happened = JSON.parse(data);
  countArrival(happened);
  addEvent(happened);
  // A killed refresh recovers long after its button was pressed.
  const text = happened.event === "control" ? happened.what : "";
  if (/ (has recovered|did not recover): /.test(text)) said(withNames(text), / did not recover: /.test(text));
});
setInterval(drawView, 500);
