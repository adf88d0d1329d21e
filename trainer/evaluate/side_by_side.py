"""`dropforge compare A B`: two checkpoints on the same items, with a winner or "no decision" (arrow: judge).

Reads    checkpoints/<run>/, config/suites/      Writes  evaluations/<id>/samples.jsonl of both; no decision is recorded
Units    values in each suite's metric; speed in seconds
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any  # a document for `--json`

from core.checkpoints import Checkpoint
from core.errors import NotFoundError
from core.paths import Workspace, escape_of
from core.settings import Settings
from core.status import read_status
from trainer.evaluate.bench import Bench, locate
from trainer.evaluate.compare import flips, paired, summarise
from trainer.evaluate.decide import MIN_ITEMS, Comparison
from trainer.evaluate.judge import Judge
from trainer.evaluate.results import SuiteResult
from trainer.evaluate.suites import deciding

SIDES = ("a", "b")
_FLIPS_SHOWN = 2
_LONGEST_SHOWN = 60


def side_by_side(
    workspace: Workspace, settings: Settings, judge: Judge, bench: Bench, ids: Sequence[str], only: str | None
) -> dict[str, Any]:
    """Score both where needed and compare b with a.

    Raises:
        NotFoundError: one of the two is not on this machine.
    """
    pair = [_checkpoint(workspace, settings.run, one) for one in ids]
    suites = judge.suites(pair, only)
    if only is None:
        suites = judge.in_time(suites, pair)
    scored = [bench.score(checkpoint, suites) for checkpoint in pair]
    primary = {suite.name for suite in (suites if only is not None else deciding(suites))}
    seed, level = settings.trainer.seed, settings.evaluation.alpha
    doc: dict[str, Any] = {side: checkpoint.id for side, checkpoint in zip(SIDES, pair, strict=True)}
    doc["suites"], differences = {}, []
    for suite in suites:
        a, b = (results[suite.name] for results in scored)
        doc["suites"][suite.name] = _suite(a, b, seed)
        difference = compared(a, b, "primary" if suite.name in primary else suite.role, seed)
        if difference is not None:
            differences.append(difference)
            gain, ci95 = difference.gain, list(difference.ci95)
            doc["suites"][suite.name] |= {"gain": gain, "gain_ci95": ci95, "p_value": difference.p_value}
    doc["winner"], doc["reason"] = winner(differences, doc["a"], doc["b"], level)
    finite = [checkpoint.id for checkpoint, results in zip(pair, scored, strict=True) if _finite(results)]
    if len(finite) == 1:
        doc["winner"], doc["reason"] = finite[0], "the other one has a loss that is not a finite number"
    doc["speed"] = {side: _speed(workspace, checkpoint) for side, checkpoint in zip(SIDES, pair, strict=True)}
    return doc


def _finite(results: Mapping[str, SuiteResult]) -> bool:
    return all(result.finite for result in results.values())


def _speed(workspace: Workspace, checkpoint: Checkpoint) -> dict[str, float | None]:
    """Seconds a token as the inference server's gate measured it, and seconds of scoring; None where never measured."""
    folder = workspace.evaluation_dir(str(checkpoint.manifest["run"]), checkpoint.id)
    gate = (read_status(folder / "deploy.json") or {}).get("gate") or {}
    scoring = (read_status(folder / "metrics.json") or {}).get("scoring_seconds") or {}
    return {"served_token_s": gate.get("token_s"), "scoring_s": scoring.get(checkpoint.id)}


def _checkpoint(workspace: Workspace, run: str, wanted: str) -> Checkpoint:
    found = locate(workspace, run, wanted)
    if found is None:
        raise NotFoundError(f"no checkpoint {wanted!r} in run {run}", fix="dropforge checkpoints lists them")
    return found


def _suite(a: SuiteResult, b: SuiteResult, seed: int) -> dict[str, Any]:
    values = {side: asdict(summarise(result, seed=seed)) for side, result in zip(SIDES, (a, b), strict=True)}
    return {"metric": a.suite.metric, "role": a.suite.role, "of": a.suite.size, **values, "flips": flips(a, b)}


def compared(a: SuiteResult, b: SuiteResult, role: str, seed: int) -> Comparison | None:
    """b against a with a two-sided p-value, since neither is favoured beforehand: twice the smaller tail."""
    if not (a.finite and b.finite):
        return None
    there, back = paired(a, b, role=role, seed=seed), paired(b, a, role=role, seed=seed)
    if there is None or back is None:
        return None
    return replace(there, p_value=min(1.0, 2 * min(there.p_value, back.p_value)))


def winner(differences: Sequence[Comparison], a: str, b: str, level: float) -> tuple[str | None, str]:
    """The better checkpoint, or None: every primary suite that differs must point the same way."""
    primary = [c for c in differences if c.role == "primary"]
    if sum(c.items for c in primary) < MIN_ITEMS:
        return None, f"no decision: fewer than {MIN_ITEMS} items"
    differ = [c for c in primary if c.p_value < level / len(primary)]
    ways = {c.gain > 0 for c in differ}
    if len(ways) != 1:
        reason = "the primary suites disagree" if ways else "no significant difference on the primary suites"
        return None, f"no decision: {reason}"
    names = ", ".join(c.name for c in differ)
    return (b if ways == {True} else a), f"significantly better on {names}"


def render(doc: Mapping[str, Any]) -> str:
    """The same as text for a terminal."""
    lines = [f"{side} = {doc[side]}{_spoken(doc['speed'][side])}" for side in SIDES]
    for name, suite in doc["suites"].items():
        values = [_value(suite[side], suite["of"]) for side in SIDES]
        gain = f"  gain {suite['gain']:+.4g}  p {suite['p_value']:.2g}" if "gain" in suite else ""
        changed = f"  ({suite['flips']['gained']} gained, {suite['flips']['lost']} lost)"
        lines.append(f"{name} [{suite['metric']}]  a {values[0]}  b {values[1]}{gain}{changed}")
        for way, examples in suite["flips"]["examples"].items():
            lines += [f"    {way} {_flip(one)}" for one in examples[:_FLIPS_SHOWN]]
    return "\n".join([*lines, f"winner: {doc['winner'] or '-'} ({doc['reason']})"])


def _spoken(speed: Mapping[str, float | None]) -> str:
    served, scoring = speed["served_token_s"], speed["scoring_s"]
    parts = [f"{1000 * served:.3g} ms a token when served"] if served is not None else []
    parts += [f"{scoring:.3g} s to score"] if scoring is not None else []
    return f"  ({', '.join(parts)})" if parts else ""


def _flip(example: Mapping[str, Any]) -> str:
    """One item that changed; whatever a model wrote stays on its line and steers no terminal."""
    before, after, expected = (_quoted(example[key]) for key in ("before", "after", "expected"))
    return f"{_quoted(example['id'])}: expected {expected}, a {before}, b {after}"


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    shown = "".join(c if c.isprintable() else escape_of(ord(c)) for c in text)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def _value(value: Mapping[str, Any], size: int) -> str:
    if value["value"] is None:
        return "-"
    low, high = value["ci95"]
    part = f" of {size}" if value["n"] < size else ""
    return f"{value['value']:.4g} [{low:.4g}, {high:.4g}] n={value['n']}{part}"
