"""The served model is swapped again and again while clients stream: nothing fails, nothing is mixed, nothing is old.

    PYTHONPATH=tests python -m scripts.reliability.serve_swaps [--swaps 30] [--clients 8]

Reads    nothing          Writes  a temporary root, removed at the end; one JSON line on stdout
Errors   exit 5 when a request failed, an answer was not wholly one checkpoint's or came from one that a finished swap
         had replaced before the request began, or the 99th percentile of answer times grew beyond twice the quiet one
Method   three checkpoints in turn, two of them fit in memory, so each swap loads, checks and drops one. Greedy answers
         of each checkpoint are asked for beforehand; every later answer must equal the one of the checkpoint it names
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import requests

from core.atomic import sha256_file
from core.checkpoints import Checkpoint
from serving_rig import ServerProcess, place, ready_root

QUESTIONS = [f"{word} {number}" for number in range(3) for word in ("hello", "count to", "why", "name a colour")]
_LEAVE_EVERY = 20  # one stream of so many is left in the middle
_MOST_PROBLEMS = 10
_PATIENCE_S = 600  # a run beside other work may be stopped as a whole for minutes; that is no failed request


def tokens_of(question: str) -> int:
    """Answers of 24 to 64 tokens, the same for a question each time."""
    return 24 + sum(question.encode()) % 41


def ask(server: ServerProcess, question: str, *, stream: bool, leave: bool = False) -> tuple[set[str], str]:
    """One greedy chat. Returns the checkpoints it names (header, each chunk) and its text."""
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens_of(question)}
    answer = server.post("/v1/chat/completions", {**body, "stream": stream}, timeout_s=_PATIENCE_S, stream=stream)
    answer.raise_for_status()
    named = {answer.headers["X-Dropforge-Checkpoint"]}
    if not stream:
        document = answer.json()
        return named | {document["model"]}, document["choices"][0]["message"]["content"]
    text = ""
    with answer:
        for line in answer.iter_lines():
            if line == b"data: [DONE]":
                return named, text
            if line.startswith(b"data: "):
                chunk = json.loads(line[6:])
                named.add(chunk["model"])
                text += chunk["choices"][0]["delta"].get("content") or ""
                if leave and text:
                    return named, text
    raise RuntimeError("a stream ended without [DONE]")


class Swapper:
    """Deploys the checkpoints in turn and knows which of them may answer a request."""

    def __init__(self, server: ServerProcess, chain: Sequence[Checkpoint]) -> None:
        self._server, self._chain = server, chain
        self._turns = itertools.cycle(chain)
        self._lock = threading.Lock()
        self._order: list[str] = []  # ids whose swap has begun
        self.finished = 0
        self.texts: dict[tuple[str, str], str] = {}

    def swap(self) -> None:
        checkpoint = next(self._turns)
        served = self._server.workspace.root / "served"
        if not (served / checkpoint.id).exists() and not (served / "incoming" / checkpoint.id).exists():
            place(checkpoint, served)
        body = {"id": checkpoint.id, "manifest_sha256": sha256_file(checkpoint.manifest_file)}
        with self._lock:
            self._order.append(checkpoint.id)
        self._server.post("/admin/reload", body, timeout_s=_PATIENCE_S).raise_for_status()
        with self._lock:
            self.finished += 1

    def learn(self) -> None:
        """Serve each checkpoint once and keep its answers."""
        for checkpoint in self._chain:
            self.swap()
            for question in QUESTIONS:
                _, self.texts[checkpoint.id, question] = ask(self._server, question, stream=False)

    def allowed_since(self, finished: int) -> set[str]:
        """Checkpoints that may answer a request that began when `finished` swaps were done."""
        with self._lock:
            return set(self._order[finished - 1 :])


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    left: int = 0
    problems: list[str] = field(default_factory=list)

    def p99_ms(self) -> float:
        ranked = sorted(self.seconds)
        return ranked[int(len(ranked) * 0.99)] * 1e3 if ranked else 0.0


class Client(threading.Thread):
    """Asks one question after the other until told to stop."""

    def __init__(self, server: ServerProcess, swapper: Swapper, tally: Tally, number: int, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._server, self._swapper, self._tally = server, swapper, tally
        self._random = random.Random(number)  # noqa: S311 - picks questions
        self._pause_s = pause_s
        self.stop = threading.Event()

    def run(self) -> None:
        for count in itertools.count(1):
            if self.stop.wait(self._random.uniform(0, 2 * self._pause_s)):
                return
            question, leave = self._random.choice(QUESTIONS), count % _LEAVE_EVERY == 0
            try:
                self._once(question, leave)
            except (requests.RequestException, RuntimeError, KeyError) as error:
                self._tally.problems.append(f"{question}: {type(error).__name__}: {error}"[:300])

    def _once(self, question: str, leave: bool) -> None:
        finished, began = self._swapper.finished, time.perf_counter()
        named, text = ask(self._server, question, stream=leave or self._random.random() < 0.7, leave=leave)
        took = time.perf_counter() - began
        if leave:
            self._tally.left += 1
            return
        self._tally.seconds.append(took)
        allowed = self._swapper.allowed_since(finished)
        if len(named) != 1 or not named <= allowed:
            self._tally.problems.append(f"{question}: answered by {named}, may be {allowed}")
        elif text != self._swapper.texts[(*named, question)]:
            self._tally.problems.append(f"{question}: not the answer of {named}: {text[:80]!r}")


class Load:
    """Clients at work for the length of a block."""

    def __init__(self, server: ServerProcess, swapper: Swapper, clients: int, pause_s: float) -> None:
        self.tally = Tally()
        self._clients = [Client(server, swapper, self.tally, number, pause_s) for number in range(clients)]

    def __enter__(self) -> Tally:
        for client in self._clients:
            client.start()
        return self.tally

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stop.set()
        for client in self._clients:
            client.join(_PATIENCE_S)


def _answered(tally: Tally, goal: int) -> bool:
    return len(tally.seconds) >= goal


def run(folder: Path, swaps: int, clients: int) -> dict[str, object]:
    """Quiet answers first, then answers between and during swaps."""
    workspace, chain = ready_root(folder / "root", (0, 10, 20))
    server = ServerProcess(workspace, "inference.max_loaded=2").start()
    try:
        swapper = Swapper(server, chain)
        swapper.learn()
        with Load(server, swapper, clients, 0.05) as quiet:
            wait_for(partial(_answered, quiet, 20 * swaps))
        with Load(server, swapper, clients, 0.05) as swapping:
            for turn in range(swaps):
                wait_for(partial(_answered, swapping, 20 * turn))
                swapper.swap()
    finally:
        server.kill()
    problems = quiet.problems + swapping.problems
    if swapping.p99_ms() > 2 * quiet.p99_ms():
        problems.append(f"p99 {swapping.p99_ms():.0f} ms while swapping, {quiet.p99_ms():.0f} ms without")
    return {
        "swaps": swaps,
        "requests": len(quiet.seconds) + len(swapping.seconds),
        "left": quiet.left + swapping.left,
        "quiet_p99_ms": round(quiet.p99_ms(), 1),
        "swapping_p99_ms": round(swapping.p99_ms(), 1),
        "problems": problems[:_MOST_PROBLEMS],
    }


def wait_for(met: Callable[[], bool], seconds: float = _PATIENCE_S) -> None:
    """Poll until `met`. Raises SystemExit after `seconds`."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise SystemExit("the clients get no answers")
        time.sleep(0.01)


def main() -> int:
    """Returns 0, or 5 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Swaps of the served model while clients stream.")
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), options.swaps, options.clients)
    print(json.dumps(result), flush=True)
    return 5 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
