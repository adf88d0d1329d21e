"""What only a long look at the rows shows: likeness, languages, leaks, hints of private data and of abuse (layer 2).

All of it is a matter of degree: a warning with its numbers. So the daemon looks in a background child, while the file
trains already; only what `validation.limits` sets a share for is looked at in the gates, since it may refuse the file.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # facts are JSON

from core.formats import RowProblem
from core.validation.duplicates import DuplicateSearch, Earlier
from core.validation.languages import SAMPLED_ROWS, answers_of, languages_of
from core.validation.leaks import leaks
from core.validation.result import MAX_EXAMPLES, Issues
from core.validation.rows import TrainingRow
from core.validation.sample import RowSample

LIKENESS = frozenset({"near_duplicate", "seen_before"})
STANDARD_LOOKS = LIKENESS | {"language_mix"}
DEEP_LOOKS = STANDARD_LOOKS | {"leak", "private_data", "toxic"}
_MOST_CHARS = 100_000  # of a text: a hint is no search of megabytes
_MIN_TOLD = 50  # shares of fewer rows say nothing
_MINORITY = 0.05
_PRIVATE = re.compile(
    r"[\w.+-]{1,64}@[\w-]{1,63}\.[a-z]{2,12}\b|\b(?:sk|pk|ghp|hf|xox[bp])[-_][A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\+\d{1,3}[ .-]?\(?\d{2,4}\)?[ .-]?\d{3}[ .-]?\d{3,4}\b",
    re.IGNORECASE,
)
# A hint, in English only: threats and the commonest insults. It is there to make a person look, not to judge.
_TOXIC = re.compile(
    r"\b(?:fuck(?:ing|er|ers|ed)?|motherfuckers?|assholes?|bitch(?:es)?|cunts?|bastards?|whores?|sluts?|retard(?:ed|s)?|"
    r"kill yourself|(?:i will|i'll|i am going to|i'm going to) (?:kill|rape|hurt) you|you (?:should|deserve to) die)\b",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Seen:
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def note(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < MAX_EXAMPLES:
            self.lines.append(line)


class Looks:
    """Looks at the rows of one file as they pass, then reports.

    Args:
        codes: what to look for, of DEEP_LOOKS.
        seed: of the sample whose language is told.
        duplicates: takes every row; None where likeness is not looked for.
    """

    def __init__(self, codes: Collection[str], seed: int = 0, duplicates: DuplicateSearch | None = None) -> None:
        self._codes = codes
        self._duplicates = duplicates
        self._rows = 0
        self._seen = {code: _Seen() for code in ("leak", "private_data", "toxic") if code in codes}
        self._sample = RowSample(seed)
        self._sampled: dict[int, str] = {}  # row -> its answers
        self._languages: Counter[str] = Counter()

    def look(self, line: int, digest: bytes, row: TrainingRow) -> None:
        """Look at one row that will be trained; `digest` is its SHA-256."""
        if self._duplicates is not None:
            self._duplicates.look(line, digest, row)
        if "language_mix" in self._codes:
            self._offer(digest, row)
        for code, seen in self._seen.items():
            if _TESTS[code](row):
                seen.note(line)
        self._rows += 1

    def _offer(self, digest: bytes, row: TrainingRow) -> None:
        self._sample.offer([self._rows], digest)
        self._sampled[self._rows] = answers_of(row)
        if len(self._sampled) > 4 * SAMPLED_ROWS:
            self._keep_sampled()

    def _keep_sampled(self) -> None:
        wanted = self._sample.numbers
        self._sampled = {number: text for number, text in self._sampled.items() if number in wanted}

    def report(self, issues: Issues, limits: Mapping[str, float]) -> dict[str, Any]:
        """Word what was seen; refuse what is over a limit of the operator.

        Returns:
            The numbers behind it, as JSON: {"rows", "duplicates", "languages"}.
        """
        for code, seen in self._seen.items():
            _word(issues, limits, code, seen.count, self._rows, seen.lines, None)
        facts: dict[str, Any] = {"rows": self._rows}
        if self._duplicates is not None:
            facts["duplicates"] = self._report_duplicates(self._duplicates, issues, limits)
        if "language_mix" in self._codes:
            facts["languages"] = self._report_languages(issues, limits)
        return facts

    def _report_duplicates(
        self, search: DuplicateSearch, issues: Issues, limits: Mapping[str, float]
    ) -> dict[str, Any]:
        search.finish()
        found, name_of = search.facts, search.earlier.name_of
        near = found.near_in_file + found.near_before
        files = f" (most in {name_of(found.files.most_common(1)[0][0])})" if found.files else ""
        before = f"in files before it{files}"
        alike = f"nearly equal to others: {found.near_in_file} in this file, {found.near_before} {before}"
        for code, count, words in (
            ("seen_before", found.seen_before, f"equal to rows {before}"),
            ("near_duplicate", near, alike),
        ):
            if code in self._codes:
                told = f"{count} of {found.rows} rows ({count / max(found.rows, 1):.1%}) are {words}"
                _word(issues, limits, code, count, found.rows, found.lines[code], told)
        return found.as_dict(name_of)

    def _report_languages(self, issues: Issues, limits: Mapping[str, float]) -> dict[str, Any]:
        self._keep_sampled()
        found = languages_of(self._sampled.values()) if self._rows >= _MIN_TOLD else Counter()
        told = found.total()
        facts = {"sampled": len(self._sampled), "told": told, "rows": dict(found.most_common(10))}
        minority = told - max(found.values(), default=0)
        if told >= _MIN_TOLD and minority > min(_MINORITY, limits.get("language_mix", 1.0)) * told:
            shares = ", ".join(f"{language} {count / told:.1%}" for language, count in found.most_common(5))
            words = f"answers in more than one language: {shares} (of {told} rows that could be told)"
            _word(issues, limits, "language_mix", minority, told, [], words)
        return facts


@contextmanager
def looking(
    codes: Set[str], seed: int = 0, earlier: Earlier | None = None, job_id: str = "", folder: Path | None = None
) -> Iterator[Looks | None]:
    """Looks for one file, None where nothing is looked for; the signatures of its rows are thrown away afterwards.

    Args:
        earlier: rows to compare with, those of the file itself apart.
        folder: where the signatures are kept meanwhile; None is the system's temporary folder.
    """
    if not codes & LIKENESS:
        yield Looks(codes, seed) if codes else None
        return
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as own:
        yield Looks(codes, seed, DuplicateSearch(job_id, earlier or Earlier(), Path(own)))


_TESTS: Mapping[str, Callable[[TrainingRow], bool]] = {
    "leak": leaks,
    "private_data": lambda row: any(_PRIVATE.search(text) for text in _texts(row)),
    "toxic": lambda row: any(_TOXIC.search(text) for text in _texts(row)),
}


def _texts(row: TrainingRow) -> list[str]:
    texts = [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]
    return [text[:_MOST_CHARS] for text in texts]


def _word(
    issues: Issues,
    limits: Mapping[str, float],
    code: str,
    count: int,
    rows: int,
    lines: list[int],
    words: str | None,
) -> None:
    """A warning, or an error where a limit is passed; nothing where nothing was seen."""
    if count > limits.get(code, 1.0) * rows:
        told = words or f"{count} of {rows} rows: {code}"
        message = f"{told}; validation.limits.{code} allows {limits[code]:.2%}"
        issues.error(RowProblem(code, message, fix="clean the file, or change validation.limits"))
    elif count:
        issues.warn(code, count, lines[:MAX_EXAMPLES], words)
