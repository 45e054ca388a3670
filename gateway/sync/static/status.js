"use strict";
// How everything is, live; and what an operator does. Nothing is kept in the browser but the session's cookie,
// which scripts cannot read.

const SILENT = 40000; // ms
const SURE = 4000; // in which a press that matters must be repeated
const by = (id) => document.getElementById(id);
let source = null;
let heard = 0;
let verdicts = [];
let csrf = null;
let lanes = "";

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function good(yes, text) {
  return element("b", (yes ? "✓ " : "✗ ") + text, yes ? "good" : "bad");
}

function item(state, name, more) {
  const made = element("li", name);
  if (state) made.prepend(state);
  if (more) made.append(element("small", more));
  return made;
}

function list(id, items, none) {
  by(id).replaceChildren(...(items.length ? items : [element("li", none)]));
}

function age(seconds) {
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? Math.round(seconds / 3600) + " h" : Math.round(seconds / 86400) + " days";
}

function facts(gate, sync) {
  const found = [];
  if (gate) {
    const ledger = gate.ledger;
    const clock = gate.clock.suspect ? "✗ not believed" : gate.clock.synchronised ? "✓ synchronised" : "not synchronised";
    found.push(["Clock", gate.clock.now.replace("T", " ").replace(/\.\d+/, "") + " " + clock, gate.clock.suspect]);
    const cards = gate.snapshot;
    found.push(["Cards", cards
      ? cards.counts.credentials.toLocaleString("en") + ", generation " + cards.generation + ", " + age(cards.age_s) + " old"
        + (cards.stale ? " ✗ too old" : "")
      : "✗ none: gateway import", !cards || cards.stale]);
    for (const aside of cards ? cards.set_aside : []) found.push(["Set aside", "✗ " + aside, true]);
    found.push(["Ledger", ledger.fault ? "✗ " + ledger.fault : "event " + ledger.last_seq + ", "
      + ledger.pending + " not yet on disk" + (ledger.lost ? " ✗ lost: " + ledger.lost : ""), ledger.fault || ledger.lost]);
    if (sync.central) found.push(["To be sent", String(ledger.last_seq - ledger.acknowledged) + " events", false]);
  }
  const last = sync.last_success ? "; last news " + new Date(sync.last_success * 1000).toLocaleString() : "";
  found.push(["Central", !sync.central ? "none configured" : (sync.up ? "✓ answers" : "✗ away") + last,
    sync.central && !sync.up]);
  for (const [what, trouble] of Object.entries(sync.trouble)) found.push([what, "✗ " + trouble, true]);
  found.push(["Versions", "gate " + (gate ? gate.version : "away") + ", sync " + sync.version, false]);
  by("facts").replaceChildren(...found.flatMap(([name, text, bad]) =>
    [element("dt", name), element("dd", text, bad ? "bad" : "")]));
}

function showVerdicts() {
  by("verdicts").replaceChildren(...verdicts.map((each) => {
    const row = element("tr");
    const granted = each.verdict === "granted";
    const verdict = element("td");
    verdict.append(element("b", (granted ? "✓ " : "✗ ") + each.verdict, granted ? "good" : "bad"));
    const more = each.guest ? "guest " + each.guest : each.detail;
    if (more) verdict.append(element("small", more));
    row.append(element("td", each.at.slice(11, 19)), element("td", each.point), verdict);
    return row;
  }));
}

function showLanes(found) {
  const now = JSON.stringify([found, csrf]);
  if (now === lanes) return; // else a button would be another one while it is pressed
  lanes = now;
  by("lanes").replaceChildren(...found.map((lane) => {
    const made = element("div", undefined, "lane");
    made.dataset.lane = lane.lane;
    const state = lane.fault ? good(false, "fault") : lane.state === "normal" ? good(true, "normal")
      : element("b", "▪ " + lane.state);
    const head = item(state, lane.lane, lane.fault || (lane.pending ? lane.pending + " going through" : ""));
    made.append(...head.childNodes);
    if (csrf) made.append(buttons(lane));
    return made;
  }));
}

function buttons(lane) {
  const made = element("div", undefined, "acts");
  made.append(button("Open once", false, { act: "open", lane: lane.lane }));
  for (const state of ["normal", "closed", "free"]) {
    if (state !== lane.state) made.append(button("Set " + state, state !== "normal", { act: "lane", lane: lane.lane, state }));
  }
  return made;
}

function button(text, sure, act) {
  const made = element("button", text);
  made.type = "button";
  made.addEventListener("click", () => {
    if (sure && made.textContent === text) {
      made.textContent = text + ": sure?";
      setTimeout(() => { made.textContent = text; }, SURE);
      return;
    }
    made.textContent = text;
    void send("/act", { ...act, csrf }, (done) => done.lane + (done.opened ? " is opened" : " is " + done.state));
  });
  return made;
}

async function send(path, body, words) {
  by("refused").textContent = by("did").textContent = "";
  try {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    const said = await answer.json();
    if (!answer.ok) {
      by(path === "/act" ? "did" : "refused").textContent = "✗ " + said.error;
      if (answer.status === 401 || answer.status === 403) await session();
      return;
    }
    if (words) by("did").textContent = "✓ " + words(said);
    else logged(said);
  } catch {
    by("refused").textContent = "✗ no answer";
  }
}

function logged(said) {
  csrf = said.csrf;
  by("login").hidden = Boolean(csrf);
  by("operator").hidden = !csrf;
  by("who").textContent = csrf ? "Logged in as " + said.operator + "." : "";
  if (shown) showLanes(shown.lanes);
}

async function session() {
  try {
    logged(await (await fetch("/session")).json());
  } catch { /* the stream says that nobody answers */ }
}

let shown = null;

function live(text, yes) {
  by("live").textContent = (yes ? "✓ " : "✗ ") + text;
  by("live").className = yes ? "good" : "bad";
  document.body.classList.toggle("stale", !yes);
}

function take(told) {
  if (told.verdict) {
    verdicts = [told.verdict, ...verdicts].slice(0, 20);
    showVerdicts();
    return;
  }
  const gate = told.gate;
  live(gate ? "live" : "the gate does not answer", Boolean(gate));
  facts(gate, told.sync);
  verdicts = told.verdicts;
  showVerdicts();
  if (!gate) return;
  shown = gate;
  by("gateway").textContent = document.title = gate.gateway;
  showLanes(gate.lanes);
  list("readers", gate.readers.map((each) => item(good(each.up, each.up ? "up" : "down"), each.reader,
    "at " + each.point + ", " + each.device.split("/").pop())), "none");
  list("inputs", gate.inputs.map((each) => item(good(!each.fault, each.fault ? "fault" : "ok"), each.input,
    each.fault)), "none");
  list("areas", Object.entries(gate.areas).map(([area, count]) => item(element("b", String(count)), area)), "none");
}

function open() {
  if (source) source.close();
  heard = Date.now();
  source = new EventSource("/events");
  source.onmessage = (event) => { heard = Date.now(); take(JSON.parse(event.data)); };
  source.addEventListener("alive", () => { heard = Date.now(); });
  source.onerror = () => live("no connection; tried again", false);
}

setInterval(() => {
  if (source.readyState === EventSource.CLOSED || Date.now() - heard > SILENT) open();
}, 1000);
by("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = by("token").value;
  by("token").value = "";
  void send("/login", { token });
});
by("logout").addEventListener("click", () => void send("/logout", {}));
void session();
open();
