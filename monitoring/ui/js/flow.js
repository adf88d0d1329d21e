// The way of a file, left to right, with what stands at each station now.
import { $, h, keyed } from "./dom.js";
import { number, plural } from "./format.js";
import { daemonWord } from "./now.js";

/** Draw the stations from status, queue and leaderboard, as far as they are known. */
export function flow(_news, { status, queue, leaderboard }) {
  if (!status || !queue) return;
  keyed($("flow"), stations(status, queue, leaderboard), (station) => station.name, build);
}

function stations({ daemon, training, deployment, health }, { lanes, ignored_total: ignored }, leaderboard) {
  const alive = health.daemon.state === "ok";
  const waiting = lanes.high + lanes.normal + lanes.low;
  const trains = lanes.active > 0;
  const total = training?.job_steps ?? training?.total_steps;
  const steps = total ? `step ${number(training.job_step ?? training.current_step)} of ${number(total)}` : "starting";
  const judged = leaderboard?.candidates?.at(-1);
  const serving = deployment?.serving;
  return [
    { name: "inbox", value: lanes.checking ? `${number(lanes.checking)} in the gates` : "open", note: ignored ? `${plural(ignored, "file")} left alone` : "drop files here",
      mood: alive ? (lanes.checking ? "busy" : "calm") : "off" },
    { name: "queue", value: plural(waiting, "job"), note: waiting ? "waiting" : "nothing waits", mood: waiting ? "busy" : "calm" },
    { name: "training", value: trains ? (alive ? steps : "interrupted") : "at rest", note: daemonWord(daemon, health.daemon),
      mood: !alive ? "off" : trains ? (daemon.state === "paused" || daemon.state === "blocked" ? "warn" : "busy") : "calm" },
    { name: "judge", value: judged ? judged.decision.replace("_", " ") : "no verdict yet", note: judged ? judged.id : "", mood: judged ? decisionMood(judged.decision) : "calm" },
    { name: "served", value: serving ?? "nothing", note: deployment ? (health.deployment.state === "ok" && deployment.ok !== false ? "answers" : "does not answer") : "server not asked yet",
      mood: serving ? (health.deployment.state === "ok" && deployment.ok !== false ? "good" : "warn") : "calm" },
  ];
}

export function decisionMood(decision) {
  return { promote: "good", no_baseline: "good", failed_gate: "bad" }[decision] ?? "calm";
}

function build({ name, value, note, mood }) {
  return h("li", { class: `station ${mood}`, data: { station: name } },
    h("span", { class: "station-name", text: name }),
    h("span", { class: "station-value clip", text: value, title: value }),
    h("span", { class: "station-note clip", text: note, title: note }));
}
