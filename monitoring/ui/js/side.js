// The narrow column: what is served, the lanes, what is left alone, checkpoints, generators, the machine, the journal.
import { $, command, emptyNote, facts, h, keyed, setText } from "./dom.js";
import { ago, bytes, clock, loss as lossText, number, plural, shellWord } from "./format.js";
import { markCommits } from "./curve.js";
import { once } from "./feed.js";
import { checkpointLink, fileRow, jobLink } from "./detail.js";

let lineageOf; // undefined until the first answer

/** Draw what the inference server says it serves, and the files it was made from. */
export async function served({ deployment, health, root }) {
  keyed($("start-commands"), [`cp your.jsonl ${shellWord(`${root}/inbox/`)}`, ...(health.daemon.state === "ok" ? [] : [`dropforge up --root ${shellWord(root)}`])], (text) => text, command);
  const serving = deployment?.serving ?? null;
  const answers = !deployment ? "not asked yet" : health.deployment.state !== "ok" ? health.deployment.message : deployment.ok === false ? `does not answer: ${String(deployment.error ?? "no reason given").slice(0, 90)}` : "answers";
  facts($("served-facts"), [["checkpoint", serving ? checkpointLink(serving) : "nothing yet"], ["before it", deployment?.previous ? checkpointLink(deployment.previous) : "–"],
    ["server", deployment?.url ?? "–"], ["state", answers]]);
  if (serving === lineageOf) return;
  lineageOf = serving;
  let files = [];
  try {
    if (serving) files = (await once(`/api/lineage/${encodeURIComponent(serving)}`)).files;
  } catch {
    lineageOf = undefined; // asked again with the next news
  }
  emptyNote($("served-empty"), files.length === 0, serving ? "The base model: no file of yours yet." : "A model is served after the first start.");
  keyed($("served-files"), shortened([...files].reverse(), 12, files.length), (file) => file.job_id ?? "more", (file) => (file.more ? moreRow(file) : fileRow(file)));
}

/** The first `count` rows; what else there is in `total` is counted in a last entry `{more}`. */
function shortened(rows, count, total) {
  const shown = rows.slice(0, count);
  return total > shown.length ? [...shown, { more: total - shown.length }] : shown;
}

function moreRow({ more }) {
  return h("li", {}, h("span", { class: "dim", text: `and ${number(more)} more` }));
}

const LANES = ["checking", "high", "normal", "low", "active", "done", "failed", "held", "rejected"];
const LANE_WORDS = { checking: "in the gates", active: "training", rejected: "refused" };

/** Draw /api/queue. */
export function lanes({ lanes: counts, waiting }) {
  keyed($("lane-counts"), LANES.map((name) => ({ name, count: counts[name] ?? 0 })), (lane) => lane.name,
    ({ name, count }) => h("li", { class: count ? "" : "none", data: { lane: name } }, h("b", { class: "num", text: number(count) }), h("span", { text: LANE_WORDS[name] ?? name })));
  emptyNote($("waiting-empty"), waiting.length === 0, "Nothing waits.");
  const next = shortened(waiting.map(({ job_id, file, rows }) => ({ job_id, file, rows })), 6, ["high", "normal", "low"].reduce((sum, lane) => sum + (counts[lane] ?? 0), 0));
  keyed($("waiting"), next, (job) => job.job_id ?? "more",
    ({ job_id: id, file, rows, more }) => more ? moreRow({ more }) : h("li", {}, jobLink(id, file), h("span", { class: "dim num", text: plural(rows, "row") })));
}

export function ignored({ ignored: files, ignored_total: total }) {
  emptyNote($("ignored-empty"), files.length === 0, "Every file in the inbox is understood.");
  const rows = files.slice(0, 8).map((entry) => ({ file: entry.file, reason: entry.reason }));
  if (total > rows.length) rows.push({ file: `and ${number(total - rows.length)} more`, reason: "dropforge status lists them" });
  keyed($("ignored-rows"), rows, (row) => row.file, ({ file, reason }) =>
    h("li", { class: "stacked" }, h("span", { class: "mono clip", text: file, title: file }), h("span", { class: "dim", text: reason })));
}

export function commits({ checkpoints, total }, { status }, serverNow) {
  markCommits(checkpoints.map(({ id, step }) => ({ step, served: id === status?.deployment?.serving })));
  emptyNote($("commits-empty"), checkpoints.length === 0, "The base becomes checkpoint 0 at the first start.");
  const rows = [...checkpoints].reverse().slice(0, 8).map(({ id, created_at: made, train_loss: loss, jobs }) => ({ id, when: ago(made, serverNow), loss, jobs: jobs.length }));
  if (total > rows.length) rows.push({ id: null, when: `${number(total)} in all`, jobs: 0 });
  keyed($("commit-rows"), rows, (row) => row.id ?? "more", ({ id, when, loss, jobs }) =>
    h("li", {}, id ? checkpointLink(id) : h("span"), h("span", { class: "dim num", text: [jobs ? `loss ${lossText(loss)}` : id ? "the base" : "", when].filter(Boolean).join(" · ") })));
}

/** Draw /api/lineage: how each generator fares, the worst first. */
export function sources({ generators }) {
  const rows = Object.entries(generators).map(([name, { files, rows: count, failed, fail_rate: rate, top_errors: errors }]) => ({ name, files, count, failed, rate, errors }));
  rows.sort((a, b) => (b.rate ?? 0) - (a.rate ?? 0) || (a.name < b.name ? -1 : 1));
  emptyNote($("sources-empty"), rows.length === 0, "Counts by generator appear with the first file.");
  keyed($("source-rows"), rows.slice(0, 12), (row) => row.name, ({ name, files, count, failed, rate, errors }) =>
    h("li", { class: "stacked" }, h("span", { class: "mono clip", text: name.replace(/@$/, ""), title: name }),
      h("span", { class: "dim num", text: `${plural(files, "file")}, ${plural(count, "row")}, ${number(failed)} refused (${number(100 * (rate ?? 0), 3)} %)${words(errors)}` })));
}

function words(errors) {
  const names = (Array.isArray(errors) ? errors : Object.keys(errors ?? {})).map((error) => (typeof error === "object" ? (error?.code ?? error?.[0]) : error));
  return names.length ? `: ${names.slice(0, 3).join(", ")}` : "";
}

/** Draw /api/gpu. */
export function machine({ gpus, error, system, processes }) {
  const gauge = (name, used, total, note) => ({ name, share: total ? used / total : 0, note });
  const memory = system.memory_total_bytes - system.memory_available_bytes;
  const disk = system.disk_total_bytes - system.disk_free_bytes;
  const rows = [
    ...gpus.map((gpu) => gauge(gpu.name || gpu.uuid, gpu.memory_used_bytes ?? 0, gpu.memory_total_bytes, gpuNote(gpu))),
    gauge("CPU", system.cpu_percent, 100, `${Math.round(system.cpu_percent)} % of ${plural(system.cpu_count, "core")}`),
    gauge("memory", memory, system.memory_total_bytes, `${bytes(memory)} of ${bytes(system.memory_total_bytes)}`),
    gauge("disk", disk, system.disk_total_bytes, `${bytes(system.disk_free_bytes)} free`),
  ].map((row, position) => ({ ...row, position }));
  const list = $("gauges");
  keyed(list, rows.map(({ name, position }) => ({ name, position })), (row) => String(row.position), ({ name }) =>
    h("li", {}, h("span", { class: "gauge-name clip", text: name, title: name }), h("meter", { max: "1", high: "0.9", "aria-label": name }), h("span", { class: "dim num gauge-note" })));
  rows.forEach((row, position) => {
    const item = list.children[position];
    item.querySelector("meter").value = row.share;
    setText(item.querySelector(".gauge-note"), row.note);
  });
  setText($("machine-note"), error ?? (gpus.length ? "" : "No GPU here: training runs on the CPU."));
  keyed($("processes"), processes.map(({ name, pid, rss_bytes: rss }) => ({ name, pid, rss: bytes(rss) })), (row) => row.name,
    ({ name, pid, rss }) => h("li", {}, h("span", { text: name, title: `process ${pid}` }), h("span", { class: "dim num", text: rss })));
}

function gpuNote(gpu) {
  if (gpu.state === "lost") return "GPU is lost";
  if (gpu.state !== "ok") return gpu.message || gpu.state;
  const parts = [`${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`];
  if (gpu.utilization_percent !== null) parts.push(`${Math.round(gpu.utilization_percent)} %`);
  if (gpu.temperature_c !== null) parts.push(`${gpu.temperature_c} °C`);
  return parts.join(" · ");
}

export function journal({ events }) {
  emptyNote($("journal-empty"), events.length === 0, "The daemon has reported nothing yet.");
  const rows = [...events].reverse().slice(0, 12).map((event, position) => ({ event, position: `${event.seq ?? event.time}-${event.seq === undefined ? events.length - position : 0}` }));
  keyed($("journal-rows"), rows, (row) => row.position, ({ event }) =>
    h("li", {}, h("span", { text: event.message ?? event.kind ?? JSON.stringify(event) }), h("span", { class: "dim num", text: clock(event.time), title: event.kind })));
}
