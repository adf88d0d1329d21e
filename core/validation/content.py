"""What a file's rows are like as a whole: duplicates, balance, leaks, odd characters, hints of private data (layer 2).

All of it is a matter of degree: warnings with their numbers, refusals only where `validation.limits` sets a share.
Looked at: every row that will be trained, at level standard; leaks, near duplicates and private data at level deep.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.formats import RowProblem
from core.validation.result import MAX_EXAMPLES, Issues
from core.validation.rows import TrainingRow, normal_text

if TYPE_CHECKING:  # datasketch loads scipy: 0.4 s, for level deep alone
    from datasketch import MinHash, MinHashLSH

_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PRIVATE = re.compile(
    r"[\w.+-]{1,64}@[\w-]{1,63}\.[a-z]{2,12}\b|\b(?:sk|pk|ghp|hf|xox[bp])[-_][A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\+\d{1,3}[ .-]?\(?\d{2,4}\)?[ .-]?\d{3}[ .-]?\d{3,4}\b",
    re.IGNORECASE,
)
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SCRIPTS = re.compile(
    "(?P<latin>[A-Za-z\u00c0-\u024f])|(?P<greek>[\u0370-\u03ff])|(?P<cyrillic>[\u0400-\u052f])|(?P<hebrew>[\u0590-\u05ff])"
    "|(?P<arabic>[\u0600-\u06ff])|(?P<devanagari>[\u0900-\u097f])|(?P<kana>[\u3040-\u30ff])|(?P<han>[\u4e00-\u9fff])"
    "|(?P<hangul>[\uac00-\ud7af])"
)
_MIN_ROWS = 50  # shares of fewer rows say nothing
_CLASS_CHARS = 32
_CLASSES_KEPT = 10_000
_LEAK_CHARS = 8
_DEGENERATE = re.compile(r"(.{1,20}?)\1{49,}", re.DOTALL)
_HASHES = 64
_ALIKE = 0.8
_NEAR_ROWS = 20_000  # 1,500 rows a second: about a quarter of a minute


@dataclass(slots=True)
class _Seen:
    count: int = 0
    lines: list[int] = field(default_factory=list)


class ContentChecks:
    """Looks at rows one by one, then reports."""

    def __init__(self, level: str) -> None:
        self._deep = level == "deep"
        self._rows = 0
        self._seen: dict[str, _Seen] = {}
        self._classes: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._shapes: Counter[str] = Counter()
        self._near = _new_index() if self._deep else None

    def look(self, line: int, row: TrainingRow) -> None:
        """Look at one row that will be trained."""
        self._rows += 1
        messages = row.get("messages") or [{"role": "assistant", "content": row["text"]}]
        texts = [message["content"] for message in messages]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        if any(_CONTROL.search(text) for text in texts):
            self._note("control_characters", line)
        if any(len(answer) >= 50 and _DEGENERATE.match(answer.strip()[:2_000]) for answer in answers):
            self._note("degenerate_answer", line)
        last = answers[-1].strip()
        if len(last) <= _CLASS_CHARS and (last in self._classes or len(self._classes) < _CLASSES_KEPT):
            self._classes[last] += 1
        script = _SCRIPTS.search(last)
        self._scripts[str(script.lastgroup) if script else "other"] += 1
        self._shapes[f"{'system ' if messages[0]['role'] == 'system' else ''}{min(len(answers), 2)} turns"] += 1
        if self._deep:
            self._look_deeply(line, messages, texts)

    def _look_deeply(self, line: int, messages: list[Mapping[str, str]], texts: list[str]) -> None:
        if any(_PRIVATE.search(text) for text in texts):
            self._note("private_data", line)
        prompt = ""
        for message in messages:
            if message["role"] == "assistant" and prompt and _leaks(message["content"], prompt):
                self._note("leak", line)
                break
            prompt += " " + message["content"]
        if self._near is not None and self._rows <= _NEAR_ROWS:
            sketch = _sketch(" ".join(texts))
            if self._near.query(sketch):
                self._note("near_duplicate", line)
            self._near.insert(str(self._rows), sketch)

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
            self._judge_balance()
        for code, seen in self._seen.items():
            share = seen.count / max(self._rows, 1)
            if share > limits.get(code, 1.0):
                message = f"{seen.count} of {self._rows} rows: {code}; validation.limits allows {limits[code]:.2%}"
                issues.error(RowProblem(code, message, fix="clean the file, or change validation.limits"))
            else:
                issues.warn(code, seen.count, seen.lines)

    def _judge_balance(self) -> None:
        top = self._classes.most_common(1)
        if top and top[0][1] > 0.9 * self._rows:
            self._seen["one_class"] = _Seen(top[0][1])
        for code, kinds in (("script_mix", self._scripts), ("protocol_mix", self._shapes)):
            minority = self._rows - kinds.most_common(1)[0][1]
            if minority > 0.05 * self._rows:
                self._seen[code] = _Seen(minority)


def _leaks(answer: str, prompt: str) -> bool:
    """Does the question give its answer away, with numbers below thirteen in words or digits?"""
    wanted = _plain(answer)
    return len(wanted) >= _LEAK_CHARS and wanted in _plain(prompt)


def _plain(text: str) -> str:
    words = re.findall(r"\w+", normal_text(text).casefold())
    return " ".join(str(_NUMBER_WORDS.index(word)) if word in _NUMBER_WORDS else word for word in words)


def _new_index() -> "MinHashLSH":
    from datasketch import MinHashLSH

    return MinHashLSH(threshold=_ALIKE, num_perm=_HASHES)


def _sketch(text: str) -> "MinHash":
    from datasketch import MinHash

    words = normal_text(text).casefold().split()
    shingles = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    sketch = MinHash(num_perm=_HASHES)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch
