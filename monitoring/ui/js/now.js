// What runs at this moment: the daemon's state and reason, the job, its progress. Old news is called old.
import { $, facts, setText } from "./dom.js";
import { clock, duration, loss, number } from "./format.js";

/** One word for the daemon: what it says, or why that cannot be believed any more. */
export function daemonWord(daemon, health) {
  if (health.state === "ok") return daemon.state;
  return { absent: "not started", stopped: "stopped", gone: "gone", stale: "stale" }[health.state];
}

const REMEDY = { absent: "dropforge up starts it", stopped: "dropforge up starts it", gone: "dropforge up starts it again; nothing is lost", stale: "" };

/** Draw the panel from /api/status. */
export function now({ daemon, training, control, health, root }) {
  setText($("root"), root);
  const word = daemonWord(daemon, health.daemon);
  const fresh = health.daemon.state === "ok";
  setText($("state"), word);
  $("state").dataset.state = word;
  setText($("reason"), fresh ? (daemon.reason ?? "") : [health.daemon.message, REMEDY[health.daemon.state]].filter(Boolean).join("; "));
  setText($("order"), orderLine(control));
  document.title = `${word} · Dropforge`;
  const old = !fresh || health.training.state === "stale";
  document.body.classList.toggle("old-news", old);
  drawJob(training, health.training, fresh && daemon.current_job !== null, old);
}

/** The last command and what came of it, e.g. "pause at 02:31:07: took effect at step 612". */
function orderLine(control) {
  if (!control?.command) return "";
  const outcome = control.error ?? (control.effective_at ? `took effect${typeof control.step === "number" ? ` at step ${number(control.step)}` : ""}` : "not in effect yet");
  return `last command: ${control.command} at ${clock(control.seen_at)}, ${outcome}`;
}

function drawJob(training, health, runs, old) {
  const total = training?.job_steps ?? training?.total_steps ?? 0;
  const step = training?.job_step ?? training?.current_step ?? 0;
  const known = runs && training && total > 0;
  setText($("now-file"), runs ? (training?.current_file ?? "") : "no job is being trained");
  const bar = $("progress");
  bar.max = total || 1;
  bar.value = known ? Math.min(step, total) : 0;
  setText($("progress-text"), known ? `${Math.floor((100 * Math.min(step, total)) / total)} %` : "");
  facts($("now-facts"), [
    ["step", known ? `${number(step)} of ${number(total)}` : "–"],
    ["time left", known && !old ? duration(training.eta_s) : "–"],
    ["loss", runs ? loss(training?.loss) : "–"],
    ["tokens / s", runs && !old ? number(training?.tokens_per_sec && Math.round(training.tokens_per_sec)) : "–"],
    ["epoch", runs ? number(training?.epoch, 3) : "–"],
    ["learning rate", runs ? number(training?.learning_rate) : "–"],
  ]);
  if (old && health.state === "stale" && runs) setText($("progress-text"), `old: ${health.message}`);
}
