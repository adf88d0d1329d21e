// The page: one subscription a panel. Every number comes from a JSON twin below /api/.
import { $, setText } from "./dom.js";
import { clock } from "./format.js";
import { start, subscribe } from "./feed.js";
import { flow } from "./flow.js";
import { now } from "./now.js";
import { addPoints, curveAddress } from "./curve.js";
import { jobsAddress, verdicts, wireFilters } from "./verdicts.js";
import { board, examples } from "./board.js";
import { commits, ignored, journal, lanes, machine, served, sources } from "./side.js";
import { wireDetail } from "./detail.js";

const facts = { status: null, queue: null, leaderboard: null, checkpoints: null };

const troubles = new Map();
let lost = "";

function tell(name, ...views) {
  return (news, serverNow) => {
    facts[name] = news;
    for (const view of views) view(news, facts, serverNow);
  };
}

function link(state, since, problem) {
  const node = $("link");
  node.dataset.link = state;
  setText(node, { live: "live", polling: "polling", lost: "no answer" }[state]);
  lost = state === "lost" ? `The monitor does not answer since ${clock(since)} (${problem?.message}). What stands here is old. Start it: dropforge monitor` : "";
  drawAlarm();
}

/** One subject cannot be read: say so in the server's words while the others go on. */
function trouble(name, words) {
  if (words) troubles.set(name, words);
  else if (!troubles.delete(name)) return;
  drawAlarm();
}

function drawAlarm() {
  const text = lost || [...troubles].map(([name, words]) => `${name}: ${words}`).join(" · ");
  $("alarm").hidden = !text;
  setText($("alarm"), text);
}

function wireTheme() {
  const kept = localStorage.getItem("dropforge-theme");
  if (kept) document.documentElement.dataset.theme = kept;
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("dropforge-theme", document.documentElement.dataset.theme);
    dispatchEvent(new Event("themechange"));
  });
}

wireTheme();
wireDetail();
wireFilters();
subscribe("status", () => "/api/status", 2000, tell("status", flow, now, examples, served));
subscribe("queue", () => "/api/queue", 2000, tell("queue", flow, lanes, ignored));
subscribe("jobs", jobsAddress, 4000, verdicts);
subscribe("metrics", curveAddress, 3000, addPoints);
subscribe("leaderboard", () => "/api/leaderboard", 5000, tell("leaderboard", flow, board));
subscribe("checkpoints", () => "/api/checkpoints?newest=12", 8000, tell("checkpoints", commits));
subscribe("lineage", () => "/api/lineage", 10000, sources);
subscribe("gpu", () => "/api/gpu", 4000, machine);
subscribe("journal", () => "/api/journal?newest=20", 8000, journal);
start(link, trouble);
