// Asks the JSON twins: polling with ETags, nudged by at most one event stream per browser, at rest while the tab is hidden.

const NUDGE_GAP_MS = 400;
const subjects = new Map(); // name -> {address, everyMs, onNews, etag, timer, busy, again}
let failingSince = null;
let onLink = () => {};
let onTrouble = () => {};
let live = false;

/**
 * Keep a subject fresh. `address()` gives its URL, or null to skip a round; `onNews(document)` is called when it changed;
 * `everyMs` is the pause between polls.
 */
export function subscribe(name, address, everyMs, onNews) {
  subjects.set(name, { name, address, everyMs, onNews, etag: null, shown: null, timer: 0, busy: false, again: false });
}

/** Ask now, e.g. after a filter changed. */
export function refresh(name) {
  const subject = subjects.get(name);
  if (!subject || document.hidden) return;
  clearTimeout(subject.timer);
  ask(subject);
}

async function ask(subject) {
  if (subject.busy) { subject.again = true; return; }
  subject.busy = true;
  const url = subject.address();
  try {
    if (url !== null) await fetchNews(subject, url);
    reached();
  } catch (problem) {
    failed(problem);
  } finally {
    subject.busy = false;
    schedule(subject, subject.again ? NUDGE_GAP_MS : subject.everyMs * (failingSince ? 2 : 1));
    subject.again = false;
  }
}

async function fetchNews(subject, url) {
  const headers = subject.etag && subject.shown === url ? { "If-None-Match": subject.etag } : {};
  const answer = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (answer.status === 304) return;
  if (!answer.ok) { await troubled(subject, answer); return; }
  onTrouble(subject.name, null);
  const news = await answer.json();
  if (subject.address() !== url) { subject.again = true; return; } // asked something else meanwhile
  subject.etag = answer.headers.get("ETag");
  subject.shown = url;
  subject.onNews(news, Date.parse(answer.headers.get("Date")) || Date.now());
}

function schedule(subject, delayMs) {
  clearTimeout(subject.timer);
  if (!document.hidden) subject.timer = setTimeout(() => ask(subject), delayMs);
}

/** The monitor answers, but one subject cannot be read: its own words, not a lost connection. */
async function troubled(subject, answer) {
  const words = await answer.json().catch(() => ({}));
  onTrouble(subject.name, words.error ? [words.error.message, words.error.fix].filter(Boolean).join("; ") : `answered ${answer.status}`);
}

function reached() {
  failingSince = null;
  onLink(live ? "live" : "polling", null);
}

function failed(problem) {
  failingSince ??= new Date();
  onLink("lost", failingSince, problem);
}

/** Fetch one document for a dialog. Rejects with the server's own words. */
export async function once(url) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(10000) });
  const news = await answer.json();
  if (!answer.ok) throw new Error(news.error?.message ?? `answered ${answer.status}`);
  return news;
}

// The stream. A lock of the browser lets one tab hold it; the others hear of news through a channel. Without locks (plain
// http from another machine) there is no stream and polling is enough.
const channel = "BroadcastChannel" in window ? new BroadcastChannel("dropforge-news") : null;
let holder = null;

function nudged(names) {
  for (const name of names) {
    const subject = subjects.get(name);
    if (subject && !document.hidden) schedule(subject, NUDGE_GAP_MS * (0.5 + Math.random() / 2));
  }
}

function holdStream() {
  if (!navigator.locks || holder) return;
  holder = new AbortController();
  const { signal } = holder;
  navigator.locks.request("dropforge-stream", { signal }, () => new Promise((resolve) => {
    const source = new EventSource("/api/events");
    source.onopen = () => { live = true; };
    source.onerror = () => { live = false; if (source.readyState === EventSource.CLOSED) resolve(); };
    source.addEventListener("changed", (event) => spread(JSON.parse(event.data)));
    source.addEventListener("event", () => spread(["journal"]));
    signal.addEventListener("abort", resolve);
    signal.addEventListener("abort", () => source.close());
  })).catch(() => {}); // aborted while it waited for the lock
}

function spread(names) {
  nudged(names);
  channel?.postMessage(names);
}

function releaseStream() {
  holder?.abort();
  holder = null;
  live = false;
}

/** Begin. `tellLink(state, since, problem)` hears live, polling or lost; `tellTrouble(name, words or null)` of one subject. */
export function start(tellLink, tellTrouble) {
  onLink = tellLink;
  onTrouble = tellTrouble;
  if (channel) channel.onmessage = (message) => { live = true; nudged(message.data); };
  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : wake()));
  addEventListener("pagehide", releaseStream);
  if (!document.hidden) wake();
}

function wake() {
  for (const subject of subjects.values()) { clearTimeout(subject.timer); ask(subject); }
  holdStream();
}

function rest() {
  for (const subject of subjects.values()) clearTimeout(subject.timer);
  releaseStream();
}
