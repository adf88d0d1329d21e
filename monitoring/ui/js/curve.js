// The loss curve from the ledger: a uPlot chart when it is installed, a table always.
import { $, emptyNote, h, keyed, setText, visible } from "./dom.js";
import { refresh } from "./feed.js";
import { loss, number } from "./format.js";

const MAX_POINTS = 600;
const TABLE_ROWS = 14;
const WHOLE_AGAIN_MS = 60000; // heals a curve whose steps were taken back while the tab was hidden

let points = []; // {step, loss, loss_min, loss_max, learning_rate, tokens_per_sec}
let run = null;
let wholeAt = 0;
let plot = null;
let commitMarks = [];

/** Ask for what is new since the last point, and now and then for everything. */
export function curveAddress() {
  const whole = !points.length || points.length > 2 * MAX_POINTS || Date.now() - wholeAt > WHOLE_AGAIN_MS;
  return whole ? `/api/metrics?max_points=${MAX_POINTS}` : `/api/metrics?since=${points.at(-1).step}&max_points=${MAX_POINTS}`;
}

/** Take an answer of /api/metrics. */
export function addPoints(news) {
  const whole = news.since === null;
  const takenBack = news.run !== run || (news.last_step ?? 0) < (points.at(-1)?.step ?? 0);
  run = news.run;
  if (takenBack && !whole) { // the old curve stands until the whole new one is here
    wholeAt = 0;
    refresh("metrics");
    return;
  }
  if (whole) { points = news.points; wholeAt = Date.now(); } else points.push(...news.points);
  draw();
}

function draw() {
  const last = points.at(-1);
  const lowest = points.reduce((best, point) => (best === null || point.loss_min < best.loss_min ? point : best), null);
  setText($("curve-note"), last ? `run ${run} · ${loss(points[0].loss)} → ${loss(last.loss)} · lowest ${loss(lowest.loss_min)} at step ${number(lowest.step)}` : "");
  keyed($("curve-rows"), points.slice(-TABLE_ROWS).reverse(), (point) => String(point.step), (point) =>
    h("tr", {}, h("th", { scope: "row", text: number(point.step) }), h("td", { text: loss(point.loss) }),
      h("td", { class: "dim", text: point.loss_min === point.loss_max ? "" : `${loss(point.loss_min)} – ${loss(point.loss_max)}` })));
  drawChart();
}

function drawChart() {
  const missing = typeof window.uPlot !== "function";
  emptyNote($("chart-missing"), missing || !points.length, missing ? "The chart is not installed (make setup fetches it with npm). The table says the same." : "The curve begins with the first optimizer step.");
  $("chart").hidden = missing || !points.length;
  if (missing || !points.length) return;
  const data = ["step", "loss", "loss_max", "loss_min"].map((key) => points.map((point) => point[key] ?? null));
  if (plot) { plot.setData(data); return; }
  plot = new window.uPlot(options(), data, $("chart"));
  new ResizeObserver(() => plot.setSize(size())).observe($("chart"));
}

function size() {
  const box = $("chart");
  return { width: Math.max(200, box.clientWidth), height: Math.max(160, box.clientHeight) };
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function options() {
  const axis = { stroke: () => colour("--dim"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui", labelFont: "12px system-ui" };
  return {
    ...size(),
    legend: { show: false },
    cursor: { points: { size: 6 }, y: false },
    scales: { x: { time: false }, y: { range: (_plot, low, high) => [Math.max(0, low - (high - low) * 0.08), high + (high - low) * 0.08 || 1] } },
    axes: [{ ...axis, size: 28, values: (_plot, ticks) => ticks.map((tick) => number(tick)) }, { ...axis, size: 46 }],
    series: [
      {},
      { stroke: () => colour("--ember"), width: 2, points: { show: () => points.length < 3 } },
      { stroke: "transparent", width: 0, points: { show: false } },
      { stroke: "transparent", width: 0, points: { show: false } },
    ],
    bands: [{ series: [2, 3], fill: () => colour("--band") }],
    hooks: { setCursor: [readout], drawAxes: [drawCommits] },
  };
}

/** Commits to mark in the chart: [{step, served}]. */
export function markCommits(fresh) {
  if (JSON.stringify(fresh) === JSON.stringify(commitMarks)) return;
  commitMarks = fresh;
  plot?.redraw();
}

function drawCommits(chart) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  for (const { step, served } of commitMarks) {
    const x = Math.round(chart.valToPos(step, "x", true));
    if (x <= bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = colour(served ? "--good" : "--dim");
    ctx.setLineDash(served ? [] : [3 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

function readout(chart) {
  const point = points[chart.cursor.idx];
  if (point) $("chart").title = visible(`step ${number(point.step)}, loss ${loss(point.loss)}, learning rate ${number(point.learning_rate)}`);
}

addEventListener("themechange", () => plot?.redraw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot?.redraw());
