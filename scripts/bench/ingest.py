"""How fast the gates are beside the plain parts they are made of, in one run on one machine.

    python scripts/bench/ingest.py [--mb 30] [--rounds 3] [--encode-mb 3]

Rounds are interleaved and the best CPU time of each counts, since other work on the machine only ever adds. Ratios are
what to believe. The data are generated chat rows of about 830 bytes, all different.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import orjson

from core.chat_templates import ChatEncoder
from core.formats import JsonlReader
from core.lineage import Sidecar
from core.validation import DATASET_SPECS, training_row
from core.validation.claim_sinks import ClaimSinks
from core.validation.inspection import Inspection
from core.validation.plan import Plan
from trainer.models.tiny_tokenizer import main as make_tokenizer

SPEC = DATASET_SPECS["chat_sft_v1"]
WORDS = [
    f"{a}{b}" for a in "the an of and to in is it for on with as at by from".split() for b in ("", "re", "ing", "ed")
]


def write_rows(path: Path, megabytes: float) -> None:
    """Write different chat rows of the size given."""
    rng = random.Random(0)  # noqa: S311  # not a secret
    with path.open("w") as file:
        while file.tell() < megabytes * 1e6:
            question = " ".join(rng.choices(WORDS, k=40))
            answer = " ".join(rng.choices(WORDS, k=130))
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f'{answer}: "{rng.randrange(10**9)}"\n'},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def bare_orjson(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            orjson.loads(line)


def json_and_jsonschema(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(dict(SPEC.schema))
    with path.open("rb") as file:
        for line in file:
            validator.is_valid(json.loads(line))


def read_only(path: Path) -> None:
    for _batch in JsonlReader(path).batches():
        pass


def gate(path: Path, encoder: ChatEncoder, level: str, claim: Path | None = None) -> None:
    plan = Plan(specs=DATASET_SPECS, level=level, encoder=encoder, held_out=0.02, held_out_cap=500)
    sinks = ClaimSinks(claim, path) if claim is not None else None
    result = Inspection(path, Sidecar(), plan, sinks).run()
    if sinks is not None:
        sinks.keep(encoder.fingerprint(2048))
        sinks.close()
    if not result.ok:
        raise SystemExit(f"the benchmark's own file is refused: {result.message}")


def bare_encode(path: Path, encoder: ChatEncoder) -> None:
    """What the tokenizer alone costs: texts already rendered, ids thrown away."""
    texts = bare_encode.texts  # type: ignore[attr-defined]  # prepared outside the clock
    for start in range(0, len(texts), 512):
        encoder._tokenizer.encode_batch_fast(texts[start : start + 512], add_special_tokens=False)


def best(rounds: int, work: dict[str, Callable[[], None]]) -> dict[str, tuple[float, float]]:
    """Interleaved rounds: the best (CPU seconds, wall seconds) of each."""
    found = dict.fromkeys(work, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, run in work.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            took = time.process_time() - cpu, time.perf_counter() - wall
            found[name] = min(found[name], took)
    return found


def peak_mb(code: str, *args: str) -> float:
    """Peak resident memory of a fresh process that runs the code given."""
    tail = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code + tail, *args], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024


_GATE = """
import sys; from pathlib import Path
from scripts.bench.ingest import gate, ChatEncoder
encoder = ChatEncoder.from_folder(Path(sys.argv[1]))
if len(sys.argv) > 3: gate(Path(sys.argv[2]), encoder, sys.argv[3])
"""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def report(title: str, megabytes: float, times: dict[str, tuple[float, float]]) -> None:
    say(f"\n{title}\n| step | CPU MB/s | wall MB/s | x first |\n|---|---|---|---|")
    first = next(iter(times.values()))[0]
    for name, (cpu, wall) in times.items():
        say(f"| {name} | {megabytes / cpu:.1f} | {megabytes / wall:.1f} | {cpu / first:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=30)
    parser.add_argument("--encode-mb", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tokenizer([str(folder / "tokenizer")])
        encoder = ChatEncoder.from_folder(folder / "tokenizer")
        large, small = folder / "large.jsonl", folder / "small.jsonl"
        write_rows(large, options.mb)
        write_rows(small, options.encode_mb)
        quick = {
            "bare orjson loop": lambda: bare_orjson(large),
            "strict reader": lambda: read_only(large),
            "gate, level quick": lambda: gate(large, encoder, "quick"),
            "json + jsonschema, built once": lambda: json_and_jsonschema(large),
        }
        report(f"QUICK, {options.mb:g} MB", options.mb, best(options.rounds, quick))
        rows = [training_row(json.loads(line), SPEC) for line in small.read_text().splitlines()]
        bare_encode.texts = [encoder.render(row["messages"]) for row in rows]  # type: ignore[attr-defined]
        claim = folder / "claim"
        claim.mkdir()
        full = {
            "bare encode_batch_fast": lambda: bare_encode(small, encoder),
            "gate, level standard, cache written": lambda: gate(small, encoder, "standard", claim),
        }
        report(f"STANDARD, {options.encode_mb:g} MB", options.encode_mb, best(options.rounds, full))
        base = peak_mb(_GATE, str(folder / "tokenizer"))
        say("\n| peak memory of a fresh process | MB |\n|---|---|")
        say(f"| imports and tokenizer | {base:.0f} |")
        for file, level in ((large, "quick"), (small, "standard")):
            peak = peak_mb(_GATE, str(folder / "tokenizer"), str(file), level)
            say(f"| gate {level}, {file.stat().st_size / 1e6:.0f} MB | {peak:.0f} |")
    say(f"\nthis process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")


if __name__ == "__main__":
    main()
