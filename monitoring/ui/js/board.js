// What the judge decided and what the model said.
import { $, emptyNote, h, keyed, setText } from "./dom.js";
import { number, pValue } from "./format.js";
import { checkpointLink } from "./detail.js";
import { decisionMood } from "./flow.js";

/** Draw /api/leaderboard, newest candidate first. */
export function board({ serving, candidates }) {
  const rows = candidates.slice(-60).reverse().map((row) => ({ ...row, serving: row.id === serving }));
  setText($("board-note"), serving ? `served: ${serving}` : "nothing is served yet");
  emptyNote($("board-empty"), rows.length === 0, "The judge speaks after the first trained job.");
  keyed($("board-rows"), rows, (row) => row.id, build);
}

function build({ id, suites, decision, p_value: p, reason, serving, regressed }) {
  const results = Object.entries(suites ?? {}).map(([name, { metric, n, of, value, ci95 }]) =>
    h("li", {}, h("b", { text: name }), h("span", { class: "num", text: ` ${metric} ${number(value)}` }),
      h("span", { class: "dim num", text: ` ${ci95 ? `[${ci95.map((side) => number(side, 3)).join(", ")}]` : ""} n ${number(n)}${of > n ? ` of ${number(of)}` : ""}` })));
  return h("tr", {},
    h("td", { class: "mono" }, checkpointLink(id), serving ? h("span", { class: "badge", data: { state: "served" }, text: "served" }) : null),
    h("td", {}, h("span", { class: `badge mood-${decisionMood(decision)}`, text: String(decision).replace("_", " ") }),
      regressed ? h("span", { class: "badge mood-bad", text: "regressed" }) : null),
    h("td", {}, h("ul", { class: "suites" }, ...results)),
    h("td", { class: "num r", text: pValue(p) }),
    h("td", { class: "says", text: reason }));
}

/** Draw the examples of the last evaluation from /api/status. */
export function examples({ training }) {
  const rows = (training?.recent_examples ?? []).slice(0, 12).map((example, position) => ({ ...example, position }));
  const score = training?.accuracy_percent;
  setText($("examples-note"), typeof score === "number" ? `${training.evaluated ? `${training.evaluated} · ` : ""}exact ${number(score, 3)} % · loss ${number(training.validation_loss)} · ${number(training.total_evals)} evaluations` : "");
  emptyNote($("examples-empty"), rows.length === 0, "Examples appear with the first evaluation.");
  keyed($("example-rows"), rows, (row) => String(row.position), ({ prompt, golden_answer: expected, model_answer: said, matches }) =>
    h("tr", {}, h("td", { class: "quote", text: prompt }), h("td", { class: "quote", text: expected }), h("td", { class: "quote", text: said }),
      h("td", {}, h("span", { class: `badge mood-${matches ? "good" : "bad"}`, text: matches ? "right" : "wrong" }))));
}
