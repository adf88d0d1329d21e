"""What a file's rows are like as a whole: equal rows, balance, odd characters, empty talk (layer 2).

All of it is a matter of degree: warnings with their numbers, refusals only where `validation.limits` sets a share.
Every row that will be trained is looked at, at levels standard and deep; see `looks` for what takes longer.
"""

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from core.formats import RowProblem
from core.validation.result import MAX_EXAMPLES, Issues
from core.validation.rows import TrainingRow

_CONTROL = bytes([*range(1, 9), 11, 12, *range(14, 32), 127])
_SCRIPTS = re.compile(
    "(?P<latin>[A-Za-z\u00c0-\u024f])|(?P<greek>[\u0370-\u03ff])|(?P<cyrillic>[\u0400-\u052f])|(?P<hebrew>[\u0590-\u05ff])"
    "|(?P<arabic>[\u0600-\u06ff])|(?P<devanagari>[\u0900-\u097f])|(?P<kana>[\u3040-\u30ff])|(?P<han>[\u4e00-\u9fff])"
    "|(?P<hangul>[\uac00-\ud7af])"
)
_MIN_ROWS = 50  # shares of fewer rows say nothing
_LONGEST_HOLD = 0.5  # share of all answers' characters that the longest 5 % may hold
_CLASS_CHARS = 32
_CLASSES_KEPT = 10_000
_DEGENERATE = re.compile(r"(.{1,20}?)\1{49,}", re.DOTALL)
_SHAPES = {False: ("1 turn", "2 turns"), True: ("system 1 turn", "system 2 turns")}  # two stand for more


@dataclass(slots=True)
class _Seen:
    count: int = 0
    lines: list[int] = field(default_factory=list)
    words: str | None = None


class ContentChecks:
    """Looks at rows one by one, then reports."""

    def __init__(self) -> None:
        self._rows = 0
        self._seen: dict[str, _Seen] = {}
        self._classes: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._shapes: Counter[str] = Counter()
        self._lengths = array("Q")

    def look(self, line: int, row: TrainingRow) -> None:
        """Look at one row that will be trained."""
        self._rows += 1
        messages = row.get("messages") or [{"role": "assistant", "content": row["text"]}]
        texts = [message["content"] for message in messages]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        written = "".join(texts).encode()
        if len(written.translate(None, _CONTROL)) < len(written):
            self._note("control_characters", line)
        if any([_is_degenerate(answer) for answer in answers]):
            self._note("degenerate_answer", line)
        last = answers[-1].strip()
        if len(last) <= _CLASS_CHARS and (last in self._classes or len(self._classes) < _CLASSES_KEPT):
            self._classes[last] += 1
        self._scripts[_script(last)] += 1
        self._lengths.append(sum(map(len, answers)))
        self._shapes[_SHAPES[messages[0]["role"] == "system"][len(answers) > 1]] += 1

    def _note(self, code: str, line: int) -> None:
        seen = self._seen.setdefault(code, _Seen())
        seen.count += 1
        if len(seen.lines) < MAX_EXAMPLES:
            seen.lines.append(line)

    def report(self, issues: Issues, limits: Mapping[str, float], duplicates: int) -> None:
        """Word what was seen; refuse what is over a limit of the operator.

        Args:
            duplicates: rows that stand in the file for the second time or more.
        """
        if duplicates:
            self._seen["duplicate_rows"] = _Seen(duplicates)
        if self._rows >= _MIN_ROWS:
            self._judge_balance(limits)
            self._judge_lengths()
        for code, seen in self._seen.items():
            told = seen.words or f"{seen.count} of {self._rows} rows: {code}"
            if seen.count > limits.get(code, 1.0) * self._rows:
                message = f"{told}; validation.limits.{code} allows {limits[code]:.2%}"
                issues.error(RowProblem(code, message, fix="clean the file, or change validation.limits"))
            else:
                issues.warn(code, seen.count, seen.lines, seen.words)

    def _judge_balance(self, limits: Mapping[str, float]) -> None:
        top = self._classes.most_common(1)
        if top and top[0][1] > min(0.9, limits.get("one_class", 1.0)) * self._rows:
            words = f"{top[0][1]} of {self._rows} rows have one and the same answer"
            self._seen["one_class"] = _Seen(top[0][1], words=words)
        for code, what, kinds in (
            ("script_mix", "scripts of the answers", self._scripts),
            ("protocol_mix", "shapes of the conversations", self._shapes),
        ):
            minority = self._rows - kinds.most_common(1)[0][1]
            if minority > min(0.05, limits.get(code, 1.0)) * self._rows:
                shares = ", ".join(f"{kind} {count / self._rows:.1%}" for kind, count in kinds.most_common(5))
                self._seen[code] = _Seen(minority, words=f"{what}: {shares}")

    def _judge_lengths(self) -> None:
        """Few long answers among many short ones make up what is learnt: say so."""
        lengths = np.sort(np.frombuffer(self._lengths, dtype=np.uint64))
        longest = lengths[-max(1, len(lengths) // 20) :]
        share = int(longest.sum()) / max(1, int(lengths.sum()))
        if share > _LONGEST_HOLD:
            p50, p95 = (int(lengths[int(q * (len(lengths) - 1))]) for q in (0.5, 0.95))
            words = (
                f"the longest 5 % of the answers hold {share:.0%} of all their characters "
                f"(p50 {p50}, p95 {p95}, longest {int(lengths[-1])})"
            )
            self._seen["answer_lengths"] = _Seen(len(longest), words=words)


def _script(text: str) -> str:
    """The script of the first letter."""
    if text[:1].isascii() and text[:1].isalpha():
        return "latin"
    found = _SCRIPTS.search(text)
    return str(found.lastgroup) if found else "other"


def _is_degenerate(answer: str) -> bool:
    """One thing of at most 20 characters over and over; then its beginning stands again shortly after."""
    begin = answer.strip()[:2_000] if len(answer) >= 50 else ""
    return begin[:20] in begin[1:41] and _DEGENERATE.match(begin) is not None
