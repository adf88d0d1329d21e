// What became of each dropped file, and what to do about it. Newest first, with filters.
import { $, emptyNote, h, keyed, setText } from "./dom.js";
import { clock, duration, number, plural } from "./format.js";
import { refresh } from "./feed.js";
import { checkpointLink, jobLink } from "./detail.js";

const PAGE = 40;
const MOST = 400;
let state = "";
let search = "";
let newest = PAGE;
let waitForTyping = 0;

export function jobsAddress() {
  const asked = new URLSearchParams({ newest: String(newest) });
  if (state) asked.set("state", state);
  if (search) asked.set("q", search);
  return `/api/jobs?${asked}`;
}

export function wireFilters() {
  const buttons = [...document.querySelectorAll(".filters [data-state]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      state = button.dataset.state;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      ask(PAGE);
    });
  }
  $("search").addEventListener("input", () => {
    clearTimeout(waitForTyping);
    waitForTyping = setTimeout(() => { search = $("search").value.trim(); ask(PAGE); }, 200);
  });
  $("older").addEventListener("click", () => ask(Math.min(MOST, newest + PAGE * 2)));
}

function ask(count) {
  newest = count;
  refresh("jobs");
}

/** Draw /api/jobs. */
export function verdicts({ jobs, total, next }) {
  const rows = [...jobs].reverse();
  keyed($("verdict-rows"), rows.map(brief), (row) => row.job_id, build);
  emptyNote($("verdicts-empty"), rows.length === 0, search || state ? "No verdict matches." : "No file has been dropped yet.");
  $("older").hidden = next === null || newest >= MOST;
  setText($("verdicts-count"), rows.length ? `${number(rows.length)} of ${plural(total, "job")}${newest >= MOST && next ? "; narrow the search to see others" : ""}` : "");
  if (!search && !state) $("start").hidden = total > 0;
}

function brief({ job_id, file, state: now, code, message, line, field, fix, checkpoint, served, effect, training, received_at, finished_at, rows, spec }) {
  return { job_id, file, state: now, code, message, line, field, fix, checkpoint, served, effect, training, received_at, finished_at, rows, spec };
}

const WORDS = { rejected: "refused", queued: "waiting", active: "training" };

export function stateBadge(verdict) {
  return h("span", { class: "badge", data: { state: verdict.state }, text: WORDS[verdict.state] ?? verdict.state ?? "?" });
}

function build(row) {
  const when = row.finished_at ?? row.received_at;
  return h("tr", {},
    h("td", { class: "file" }, jobLink(row.job_id, row.file), h("span", { class: "dim num small", text: when ? clock(when) : "", title: row.job_id })),
    h("td", {}, stateBadge(row), row.code && row.code !== "ok" ? h("span", { class: "code", text: row.code }) : null),
    h("td", { class: "says" }, h("span", { text: row.message || `${plural(row.rows, "row")}${row.spec ? ` of ${row.spec}` : ""}` }), effectLine(row), fixLine(row)),
    h("td", { class: "mono" }, checkpointLink(row.checkpoint), row.served ? h("span", { class: "badge", data: { state: "served" }, text: "served" }) : null));
}

function fixLine({ fix }) {
  return fix ? h("span", { class: "fix", text: fix }) : null;
}

/** "incoming 2.29 → 0.42" and how long the training took. */
function effectLine({ effect, training }) {
  const parts = Object.entries(effect ?? {}).map(([suite, { before, after }]) => `${suite} ${number(before)} → ${number(after)}`);
  if (training?.seconds) parts.push(`${plural(training.rows_trained, "row pass", "row passes")} in ${duration(training.seconds)}`);
  const worse = Object.values(effect ?? {}).some(({ delta, better }) => (better === "higher" ? delta < 0 : delta > 0));
  return parts.length ? h("span", { class: worse ? "effect worse num" : "effect num", text: parts.join(" · ") }) : null;
}
