"use strict";
// What the lane says: its standing, and on top of it each verdict for some seconds. If the stream breaks it is
// opened again; meanwhile the last standing stays, for the gate works without this page.

const SILENT = 40000; // ms; the server says something every 15 s
const AGAIN = 1000;
const words = document.getElementById("words");
const alone = document.getElementById("alone");
let source = null;
let standing = null;
let verdict = null;
let ends = 0;
let heard = 0;

function line(className, text, language) {
  const p = document.createElement("p");
  p.className = className;
  p.lang = language;
  p.textContent = text;
  return p;
}

// The first sentence is what is the matter, the rest what to do.
function sentences(text) {
  const found = /^(.*?[^\d\s][.!?])\s+(\S.*)$/s.exec(text);
  return found ? [found[1], found[2]] : [text, ""];
}

function show(kind, parts, isNew) {
  document.body.dataset.kind = kind;
  words.replaceChildren(...parts);
  document.body.classList.remove("new");
  if (isNew) {
    void document.body.offsetWidth; // else the animation does not begin anew
    document.body.classList.add("new");
  }
  fit();
}

function fit() {
  const main = document.querySelector("main");
  for (let scale = 100; scale >= 30; scale -= 5) {
    document.documentElement.style.setProperty("--scale", scale / 100);
    if (main.scrollHeight <= main.clientHeight && words.scrollWidth <= words.clientWidth) break;
  }
}

function showStanding() {
  verdict = null;
  if (!standing) return;
  const parts = standing.texts.map((said, place) => {
    const block = document.createElement("div");
    if (place) block.className = "other";
    block.append(line("heading", said.heading, said.language), line("text", said.text, said.language));
    return block;
  });
  show(standing.kind, parts, false);
}

function showVerdict(told) {
  const [what, todo] = sentences(told.text);
  const parts = [line("heading", what, told.language)];
  if (told.name) parts.push(line("name", told.name, told.language));
  if (todo) parts.push(line("text", todo, told.language));
  if (told.hint) parts.push(line("hint", told.hint, told.language));
  verdict = told;
  ends = Date.now() + told.for_ms;
  show(told.kind, parts, true);
}

function take(told) {
  if (told.kind === "welcome" || told.kind === "refused") {
    showVerdict(told);
    return;
  }
  if (standing && standing.version !== told.version) location.reload(); // the program was updated
  standing = told;
  if (!verdict || told.kind === "out") showStanding();
}

function open() {
  if (source) source.close();
  heard = Date.now();
  source = new EventSource(location.pathname.replace(/\/$/, "") + "/events" + location.search);
  source.onopen = () => { heard = Date.now(); alone.hidden = true; };
  source.onmessage = (event) => { heard = Date.now(); take(JSON.parse(event.data)); };
  source.addEventListener("alive", () => { heard = Date.now(); });
  source.onerror = () => { alone.hidden = false; };
}

setInterval(() => {
  const now = Date.now();
  if (verdict && now >= ends) showStanding();
  // A stream that was refused is not opened again by the browser.
  if (source.readyState === EventSource.CLOSED || now - heard > SILENT) open();
}, AGAIN / 4);
addEventListener("resize", fit);
open();
