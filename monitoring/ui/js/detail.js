// One dialog for one thing: a job with everything its verdict says, or a checkpoint with the files it has seen.
import { $, command, facts, h } from "./dom.js";
import { bytes, clock, duration, number, plural } from "./format.js";
import { once } from "./feed.js";

/** A button that opens a checkpoint; null without an id. */
export function checkpointLink(id) {
  return id ? h("a", { class: "ref mono", href: `#checkpoint=${encodeURIComponent(id)}`, text: id }) : null;
}

export function jobLink(id, file) {
  return h("a", { class: "ref clip", href: `#job=${encodeURIComponent(id)}`, text: file ?? id, title: file ?? id });
}

/** A line of a lineage: which file, how much of it. */
export function fileRow({ job_id: id, file, sha256, generator, rows_trained: rows }) {
  const content = h("a", { class: "ref mono dim", href: `#file=${encodeURIComponent(sha256 ?? "")}`, text: String(sha256 ?? "").slice(0, 8), title: `sha256 ${sha256}` });
  return h("li", { class: "stacked" }, jobLink(id, file),
    h("span", { class: "dim num" }, h("span", { text: `${plural(rows ?? 0, "row pass", "row passes")}${generator ? ` · ${generator}` : ""} · ` }), content));
}

const SHOWS = { job: showJob, checkpoint: showCheckpoint, file: showFile };

export function wireDetail() {
  const dialog = $("detail");
  $("detail-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { if (location.hash) history.replaceState(null, "", location.pathname); });
  addEventListener("hashchange", openFromAddress);
  openFromAddress();
}

async function openFromAddress() {
  const [kind, key] = location.hash.slice(1).split("=");
  const show = Object.hasOwn(SHOWS, kind) ? SHOWS[kind] : null;
  if (!show || !key) { $("detail").close(); return; }
  const wanted = location.hash;
  let parts;
  try {
    parts = await show(decodeURIComponent(key));
  } catch (problem) {
    parts = [kind, h("p", { class: "empty", text: problem.message })];
  }
  if (location.hash !== wanted) return; // another thing was asked for meanwhile
  $("detail-title").replaceChildren(h("span", { text: parts[0] }));
  $("detail-body").replaceChildren(...parts.slice(1).filter(Boolean));
  if (!$("detail").open) $("detail").showModal();
  $("detail-body").scrollTop = 0;
}

function list(pairs) {
  const node = h("dl", { class: "facts tall" });
  facts(node, pairs.filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return node;
}

function section(title, ...children) {
  return h("section", {}, h("h3", { text: title }), ...children);
}

async function showJob(id) {
  const { jobs: [verdict], sidecar } = await once(`/api/jobs/${encodeURIComponent(id)}`);
  const { training, tokens } = verdict;
  return [
    verdict.file ?? id,
    verdict.message ? h("p", { class: "lead", text: verdict.message }) : null,
    verdict.fix ? h("p", { class: "fix", text: verdict.fix }) : null,
    list([
      ["state", verdict.state], ["code", verdict.code === "ok" ? null : verdict.code], ["line", verdict.line], ["column", verdict.column], ["field", verdict.field],
      ["rows", verdict.state === "rejected" ? number(verdict.rows) : `${number(verdict.rows)}: ${number(verdict.rows_train)} trained on, ${number(verdict.rows_held_out)} held out, ${number(verdict.rows_set_aside)} set aside, ${number(verdict.rows_dropped)} dropped`],
      ["tokens", tokens?.total ? `${number(tokens.total)}, ${number(tokens.trained)} trained; longest row ${number(tokens.max)}` : null],
      ["size", bytes(verdict.bytes)], ["spec", verdict.spec], ["level", verdict.level],
      ["received", clock(verdict.received_at)], ["finished", verdict.finished_at ? clock(verdict.finished_at) : null],
      ["training", training ? `steps ${number(training.first_step)}–${number(training.last_step)} in ${duration(training.seconds)}; loss ${number(training.loss_first)} → ${number(training.loss_last)}` : null],
      ["report", verdict.audit?.report ? h("span", { class: "mono wrap", text: verdict.audit.report }) : null],
      ["checkpoint", checkpointLink(verdict.checkpoint)], ["served", verdict.checkpoint ? (verdict.served ? "yes" : "no") : null],
      ["duplicate of", verdict.duplicate_of ? jobLink(verdict.duplicate_of) : null],
      ["generator", sidecar?.generator_id ? [sidecar.generator_id, sidecar.generator_version].filter(Boolean).join("@") : null],
      ["sha256", verdict.sha256 ? h("a", { class: "ref mono wrap", href: `#file=${encodeURIComponent(verdict.sha256)}`, text: verdict.sha256 }) : null],
    ]),
    verdict.issues?.length ? section("What the gates noted", issues(verdict.issues)) : null,
    verdict.mask?.length ? section("What is trained of its first rows", ...verdict.mask.map(maskedRow)) : null,
    section("Commands", ...commands(verdict)),
  ];
}

function issues(found) {
  return h("ul", { class: "files" }, ...found.slice(0, 100).map((issue) => h("li", { class: "stacked" },
    h("span", {}, h("span", { class: `badge mood-${issue.severity === "error" ? "bad" : "warn"}`, text: issue.severity }), h("span", { class: "code", text: issue.code })),
    h("span", { class: "dim num", text: issue.message ? `${issue.validator}: ${issue.message}` : `${issue.validator}: ${plural(issue.count, "row")}${issue.examples?.length ? `, e.g. line ${issue.examples.slice(0, 5).join(", ")}` : ""}` }))));
}

/** A row as the trainer sees it: marked what it learns, struck what max_length cuts away. */
function maskedRow({ line, tokens, trained, pieces }) {
  const tag = ({ trained: learnt, cut }) => (learnt ? "ins" : cut ? "del" : "span");
  return h("figure", { class: "masked" }, h("figcaption", { class: "dim num", text: `line ${number(line)}: ${number(trained)} of ${number(tokens)} tokens trained` }),
    h("p", {}, ...pieces.map((piece) => h(tag(piece), { text: piece.text }))));
}

function commands({ job_id: id, state }) {
  const verbs = { failed: ["retry"], held: ["retry"], queued: ["cancel"] }[state] ?? [];
  return [command(`dropforge jobs ${id}`), ...verbs.map((verb) => command(`dropforge ${verb} ${id}`))];
}

async function showCheckpoint(id) {
  const address = encodeURIComponent(id);
  const [{ checkpoints: [manifest], evaluation }, lineage] = await Promise.all([once(`/api/checkpoints/${address}`), once(`/api/lineage/${address}`)]);
  const size = Object.values(manifest.files).reduce((sum, file) => sum + file.bytes, 0);
  return [
    manifest.id,
    list([
      ["step", number(manifest.step)], ["made", clock(manifest.created_at)], ["training loss", number(manifest.train_loss)], ["run", manifest.run],
      ["base", manifest.base?.name], ["parent", checkpointLink(manifest.parent)], ["size", bytes(size)], ["served", lineage.served === manifest.id ? "yes" : "no"],
      ["judged", evaluation ? "yes" : "not yet"],
    ]),
    section(`Made from ${plural(lineage.files.length, "file")}, in this order`, lineage.files.length ? h("ol", { class: "files numbered" }, ...lineage.files.slice(-200).map(fileRow)) : h("p", { class: "empty", text: "This is the base: no file of yours." })),
    section("Chain", h("p", { class: "chain" }, ...lineage.checkpoints.slice(-40).map(checkpointLink))),
    section("Commands", ...["lineage", "promote", "pin", "rewind"].map((verb) => command(`dropforge ${verb} ${manifest.id}`))),
  ];
}

async function showFile(sha256) {
  const lineage = await once(`/api/lineage/${encodeURIComponent(sha256)}`);
  return [
    lineage.files[0]?.file ?? "a file",
    list([["sha256", h("span", { class: "mono wrap", text: lineage.file })], ["in the served model", lineage.served ? "yes" : "no"]]),
    section("Dropped as", h("ul", { class: "files" }, ...lineage.files.map(fileRow))),
    section("Checkpoints that have seen it", lineage.checkpoints.length ? h("p", { class: "chain" }, ...lineage.checkpoints.slice(-40).map(checkpointLink)) : h("p", { class: "empty", text: "none" })),
    section("Commands", command(`dropforge lineage ${lineage.file}`)),
  ];
}
