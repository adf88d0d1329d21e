"""Arithmetic in circled binary digits: files for the arrow `inbox -> intake` and a held-out suite for the judge.

Writes   FILE.jsonl of spec `binary_v1` with its sidecar FILE.jsonl.meta.json (sidecar first: the inbox never
         sees the data without it); with --suite items for `dropforge suite add`, none of them in FILE.jsonl
Format   user `Compute: leftshift ①⓪①① ①⓪`, assistant `leftshift ①⓪①① ①⓪ = ①⓪①①⓪⓪`; most significant digit first
Units    operands and results are non-negative integers, widths count digits
Errors   UsageError (exit 2) when the ranges hold fewer problems than asked for; StorageError (exit 4)
Used by  `python -m curriculum.generators.binary --help`, the demo

The same arguments give the same bytes, apart from `generated_at` in the sidecar. torch is never imported.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.atomic import write_bytes
from core.errors import DropforgeError, UsageError

GENERATOR_ID = "binary_local"
GENERATOR_VERSION = "1.0.0"
SPEC = "binary_v1"
ZERO, ONE = "⓪", "①"
_DRAWN_AT_MOST = 1_000_000  # index pairs shuffled when the ranges are too large to shuffle whole; 0.5 s


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its label level, its value, the width of its result and what it accepts (a, b: the operands)."""

    level: int
    value: Callable[[int, int], int]
    width: Callable[[int, int], int] = lambda a, b: 0  # 0 or less: as many digits as the value needs
    accepts: Callable[[int, int], bool] = lambda a, b: True
    shifts: bool = False


OPERATIONS = {
    "add": Operation(1, lambda a, b: a + b),
    "subtract": Operation(1, lambda a, b: a - b, accepts=lambda a, b: a >= b),
    "multiply": Operation(2, lambda a, b: a * b),
    "leftshift": Operation(4, lambda a, b: a << b, width=lambda a, b: _digits(a) + b, shifts=True),
    "rightshift": Operation(4, lambda a, b: a >> b, width=lambda a, b: _digits(a) - b, shifts=True),
}


def _digits(value: int) -> int:
    return max(1, value.bit_length())


def circled(value: int, width: int = 0) -> str:
    """Write a non-negative integer in circled binary digits, padded with zeros to `width` digits."""
    return format(value, f"0{max(width, 1)}b").replace("0", ZERO).replace("1", ONE)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its one right answer."""

    op: str
    left: int
    right: int

    @property
    def result(self) -> int:
        return OPERATIONS[self.op].value(self.left, self.right)

    @property
    def bits(self) -> int:
        """Width of the operands in digits; the amount of a shift does not count."""
        shifts = OPERATIONS[self.op].shifts
        return _digits(self.left) if shifts else max(_digits(self.left), _digits(self.right))

    @property
    def expression(self) -> str:
        """Operator and operands; arithmetic operands share one width, shifts keep their own."""
        shifts = OPERATIONS[self.op].shifts
        return f"{self.op} {circled(self.left, self.bits)} {circled(self.right, 0 if shifts else self.bits)}"

    @property
    def answer(self) -> str:
        width = OPERATIONS[self.op].width(self.left, self.right)
        return f"{self.expression} = {circled(self.result, width)}"

    @property
    def question(self) -> dict[str, str]:
        return {"role": "user", "content": f"Compute: {self.expression}"}

    def row(self, *, level: int, seed: int) -> dict[str, object]:
        """The training row of spec binary_v1."""
        metadata = {
            "skill": "binary",
            "level": level,
            "op": self.op,
            "operands": [self.left, self.right],
            "result": self.result,
            "bits": self.bits,
            "scenario": self.op,
            "generator_id": GENERATOR_ID,
            "generator_version": GENERATOR_VERSION,
            "seed": seed,
        }
        return {"messages": [self.question, {"role": "assistant", "content": self.answer}], "metadata": metadata}

    def item(self) -> dict[str, object]:
        """The suite item: the same question, graded by the whole answer."""
        return {
            "id": f"binary-{self.op}-{self.left}-{self.right}",
            "messages": [self.question],
            "expected": self.answer,
            "grader": "exact_match",
            "tags": ["binary", self.op],
        }


def draw(op: str, left: range, right: range, *, count: int, seed: int) -> list[Problem]:
    """Draw different problems in random order.

    Args:
        left, right: the values the operands are drawn from, evenly over the pairs that the operation accepts.
        count: how many.
        seed: the same seed and ranges give the same problems in the same order.

    Raises:
        UsageError: the ranges do not hold that many problems.
    """
    pairs = len(left) * len(right)
    order = random.Random(seed).sample(range(pairs), min(pairs, max(_DRAWN_AT_MOST, 8 * count)))  # noqa: S311  (no secret)
    accepts = OPERATIONS[op].accepts
    found: list[Problem] = []
    for index in order:
        a, b = left[index // len(right)], right[index % len(right)]
        if accepts(a, b):
            found.append(Problem(op, a, b))
            if len(found) == count:
                return found
    raise UsageError(
        f"{count} different problems were asked for and only {len(found)} found",
        where=f"{op} {left.start}-{left.stop - 1} by {right.start}-{right.stop - 1}",
        fix="widen --left or --right, or lower --count or --held-out",
    )


def _jsonl(documents: Iterable[dict[str, object]]) -> bytes:
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()


def write_rows(path: Path, problems: Sequence[Problem], *, level: int, seed: int, params: dict[str, object]) -> None:
    """Write the training file and, before it, its sidecar.

    Raises:
        StorageError: the folder cannot be written.
    """
    data = _jsonl(problem.row(level=level, seed=seed) for problem in problems)
    sidecar = {
        "generator_id": GENERATOR_ID,
        "generator_version": GENERATOR_VERSION,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "example_count": len(problems),
        "sha256": hashlib.sha256(data).hexdigest(),
        "params": params,
        "spec": SPEC,
    }
    write_bytes(path.with_name(path.name + ".meta.json"), (json.dumps(sidecar, indent=1) + "\n").encode())
    write_bytes(path, data)


def write_suite(path: Path, problems: Iterable[Problem]) -> None:
    """Write held-out problems as items for `dropforge suite add`.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_bytes(path, _jsonl(problem.item() for problem in problems))


def _span(text: str) -> range:
    low, dash, high = text.partition("-")
    try:
        span = range(int(low), int(high if dash else low) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1-511") from None
    if not span:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: the lower end comes first")
    return span


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m curriculum.generators.binary", description=main.__doc__)
    parser.add_argument("out", type=Path, help="the file to write, NAME.jsonl; its sidecar is NAME.jsonl.meta.json")
    parser.add_argument("--op", choices=sorted(OPERATIONS), default="leftshift")
    parser.add_argument("--left", type=_span, default=range(1, 512), help="values of the first operand (1-511)")
    parser.add_argument("--right", type=_span, default=range(1, 5), help="of the second, or shift amounts (1-4)")
    parser.add_argument("--count", type=int, default=1000, help="training rows (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=int, help="label in the metadata (default: the operation's own)")
    parser.add_argument("--suite", type=Path, help="also write --held-out other problems here, for `suite add`")
    parser.add_argument("--held-out", type=int, default=100, help="problems in --suite (100)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a training file of circled binary arithmetic and, if wanted, a held-out suite disjoint from it."""
    parser = _parser()
    args = parser.parse_args(argv)
    held_out = args.held_out if args.suite else 0
    if args.count < 1 or held_out < 0 or args.left.start < 0 or args.right.start < 0:
        parser.error("--count must be at least 1, --held-out and the operands at least 0")
    level = OPERATIONS[args.op].level if args.level is None else args.level
    params: dict[str, object] = {
        "op": args.op,
        "left": [args.left.start, args.left.stop - 1],
        "right": [args.right.start, args.right.stop - 1],
        "seed": args.seed,
        "level": level,
        "held_out": held_out,
    }
    try:
        problems = draw(args.op, args.left, args.right, count=args.count + held_out, seed=args.seed)
        if args.suite:
            write_suite(args.suite, problems[:held_out])
        write_rows(args.out, problems[held_out:], level=level, seed=args.seed, params=params)
    except DropforgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
