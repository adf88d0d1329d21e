"""The inference server under steady load for long, the model swapped all the time: memory stays flat, none fails.

    PYTHONPATH=tests python -m scripts.reliability.serve_soak [--minutes 30 --swap-every-s 60 --pause-s 6]

Reads    nothing          Writes  a temporary root, removed then; JSON lines on stdout, one a minute and one at the end
Errors   exit 5 when a request failed or was not wholly one checkpoint's, or when memory, descriptors or threads grew
Units    megabytes of 1,000,000 bytes; the slope is a least-squares line through what was seen in the second half:
         before that the allocator's arenas fill
Method   as `serve_swaps`, with clients that pause, so that it can run beside other work. Before them one request for
         each size of a step: oneDNN keeps a kernel for each (0.16 GB for the tiny model once all are there), and
         meeting the last of them by chance takes hours
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from scripts.reliability.serve_swaps import Load, Swapper, Tally
from serving_rig import ServerProcess, ready_root

_SAMPLE_EVERY_S = 2.0
_MOST_MB_A_MINUTE = 1.0
_LONGEST_TURN_S = 15.0  # a machine that stood still for minutes makes no memory look flat
_MORE_HANDLES = 20  # what connections under way may add between two samples


@dataclass(slots=True)
class Samples:
    """How large the server was, and when."""

    at_s: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self, process: psutil.Process, at_s: float) -> None:
        with process.oneshot():
            self.at_s.append(at_s)
            self.megabytes.append(process.memory_info().rss / 1e6)
            self.descriptors.append(process.num_fds())
            self.threads.append(process.num_threads())

    def slope_mb_a_minute(self) -> float:
        settled = len(self.at_s) // 2
        line = np.polyfit(np.array(self.at_s[settled:]) / 60, self.megabytes[settled:], 1)
        return float(line[0])

    def problems(self) -> list[str]:
        """What grew between the second and the last quarter."""
        quarter, found = max(1, len(self.at_s) // 4), []
        if self.slope_mb_a_minute() > _MOST_MB_A_MINUTE:
            found.append(f"memory grows by {self.slope_mb_a_minute():.2f} MB a minute")
        for name, seen in (("descriptors", self.descriptors), ("threads", self.threads)):
            before, after = max(seen[quarter : 2 * quarter]), max(seen[-quarter:])
            if after > before + _MORE_HANDLES:
                found.append(f"{name} grew from {before} to {after}")
        return found


def meet_every_size(server: ServerProcess, clients: int) -> None:
    """Have the model read prompts of every size up to a whole step's, and decode for every number of clients."""
    lengths = [*range(4, 64), *range(64, 513, 8)]
    for number, length in enumerate(lengths):  # beginnings of their own: a shared one would not be read again
        body = {"prompt": [10 + number] * length, "max_tokens": 1, "temperature": 0}
        server.post("/v1/completions", body).raise_for_status()
    for choices in range(1, clients + 1):
        body = {"prompt": [10, 11, 12], "n": choices, "max_tokens": 4, "logit_bias": {"2": -100}}
        server.post("/v1/completions", body).raise_for_status()


def soak(server: ServerProcess, swapper: Swapper, tally: Tally, minutes: float, swap_every_s: float) -> Samples:
    """Sample and swap until the time is over; says where it stands once a minute."""
    process, samples, now, looked = psutil.Process(server.popen.pid), Samples(), 0.0, time.monotonic()
    swap_at, say_at = swap_every_s, 60.0
    while now < minutes * 60:
        since, looked = time.monotonic() - looked, time.monotonic()
        now += min(since, _LONGEST_TURN_S)
        samples.take(process, now)
        if now >= swap_at:
            swapper.swap()
            swap_at += swap_every_s
        if now >= say_at:
            said = {"minute": round(now / 60), "requests": len(tally.seconds), "problems": len(tally.problems)}
            print(json.dumps({**said, "rss_mb": round(samples.megabytes[-1], 1)}), flush=True)
            say_at += 60.0
        time.sleep(_SAMPLE_EVERY_S)
    return samples


def main() -> int:
    """Returns 0, or 5 when a promise was broken."""
    parser = argparse.ArgumentParser(description="The inference server under load for a long time.")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--swap-every-s", type=float, default=20.0)
    parser.add_argument("--pause-s", type=float, default=1.0, help="mean rest of a client between two requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace, chain = ready_root(Path(folder) / "root", (0, 10, 20))
        server = ServerProcess(workspace, "inference.max_loaded=2").start()
        try:
            swapper = Swapper(server, chain)
            swapper.learn()
            meet_every_size(server, options.clients)
            with Load(server, swapper, options.clients, options.pause_s) as tally:
                samples = soak(server, swapper, tally, options.minutes, options.swap_every_s)
            cpu = psutil.Process(server.popen.pid).cpu_times()
        finally:
            server.kill()
    problems = tally.problems + samples.problems()
    half = len(samples.at_s) // 2
    result = {
        "minutes": options.minutes,
        "requests": len(tally.seconds),
        "left": tally.left,
        "swaps": swapper.finished,
        "failed": len(tally.problems),
        "rss_mb": {"settled": round(samples.megabytes[half], 1), "end": round(samples.megabytes[-1], 1)},
        "slope_mb_a_minute": round(samples.slope_mb_a_minute(), 3),
        "descriptors": [min(samples.descriptors[half:]), max(samples.descriptors[half:])],
        "threads": [min(samples.threads[half:]), max(samples.threads[half:])],
        "server_cpu_s": round(cpu.user + cpu.system),
        "p99_ms": round(tally.p99_ms(), 1),
        "problems": problems[:10],
    }
    print(json.dumps(result), flush=True)
    return 5 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
