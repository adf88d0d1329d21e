"""How fast the gates are beside the plain parts they are made of, in one run on one machine.

    python -m scripts.bench.ingest [--mb 100] [--encode-mb 12] [--rounds 3] [--only quick|standard|memory]

Rounds are interleaved, the best of each counts, and ratios are what to believe. The bare loop is `for line in file:
orjson.loads(line)`, each value thrown away at once; as a whole process it is an interpreter that imports orjson and
does nothing else. Text: sentences of ../shared/data/gsm8k put together anew with other numbers, so that nearly all rows
differ and words have the frequencies of real ones; the tokenizers are a byte-level BPE of 8,192 trained on that text
and the one of the embedded model.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jsonschema
import jsonschema_rs
import orjson
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from core.chat_templates import ChatEncoder
from core.formats import JsonlReader
from core.lineage import Sidecar
from core.paths import builtin_config
from core.validation import DATASET_SPECS, training_row
from core.validation.claim_sinks import ClaimSinks
from core.validation.contamination import SuiteIndex
from core.validation.inspection import Inspection
from core.validation.layer_one import LayerOne
from core.validation.plan import Plan
from trainer.models.tiny_tokenizer import main as make_tiny_tokenizer

SPEC = DATASET_SPECS["chat_sft_v1"]
BARE = "import sys, orjson\nwith open(sys.argv[1], 'rb') as file:\n    for line in file: orjson.loads(line)"
_ENCODED_ROWS = 512
Work = Mapping[str, Callable[[], object]]


def sentences(folder: Path) -> tuple[list[str], list[str]]:
    """Sentences of questions, and lines of answers."""
    rows = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.open()]
    asked = [part for row in rows for part in re.split(r"(?<=[.?!])\s+", row["question"])]
    return asked, [part for row in rows for part in row["answer"].split("\n")]


def write_rows(path: Path, megabytes: float, texts: tuple[list[str], list[str]]) -> None:
    """Write chat rows of about 740 bytes, nearly all different."""
    rng = random.Random(0)  # noqa: S311  # not a secret

    def some(parts: Sequence[str], count: int) -> Iterator[str]:
        for part in rng.choices(parts, k=count):
            yield re.sub(r"\d+", lambda found: str(rng.randrange(10 ** len(found[0]))), part)

    with path.open("w") as file:
        while file.tell() < megabytes * 1e6:
            ask, say = " ".join(some(texts[0], 4)), "\n".join(some(texts[1], 6))
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
            file.write(json.dumps({"messages": turns}) + "\n")


def make_tokenizer(folder: Path, texts: tuple[list[str], list[str]]) -> ChatEncoder:
    """A byte-level BPE of 8,192 tokens trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts[0], *texts[1]], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return ChatEncoder.from_folder(folder)


def gate(path: Path, encoder: ChatEncoder, level: str, claim: Path | None = None) -> None:
    """The whole inspection as the daemon runs it; with a claim folder the token cache is written there."""
    suites = SuiteIndex.read([builtin_config() / "suites"])
    plan = Plan(DATASET_SPECS, level=level, encoder=encoder, held_out=0.02, held_out_cap=500, suites=suites)
    sinks = ClaimSinks(claim, path) if claim is not None else None
    result = Inspection(path, Sidecar(), plan, sinks).run()
    if sinks is not None:
        sinks.keep(encoder.fingerprint(2048))
        sinks.close()
    if not result.ok:
        raise SystemExit(f"the benchmark's own file is refused: {result.message}")


def each_line(path: Path, look: Callable[[bytes], object]) -> None:
    with path.open("rb") as file:
        for line in file:
            look(line)


def by_schema(path: Path) -> None:
    """Strict JSON and schema alone, as the gate does them."""
    layer = LayerOne(SPEC, {}, SuiteIndex({}))
    for batch in JsonlReader(path).batches():
        if layer.canonical(batch) is None:
            layer.check(batch.values)


def read_values(path: Path) -> None:
    for batch in JsonlReader(path).batches():
        _ = batch.values


def process(*command: str) -> None:
    """Run a command as an installed program runs: with its bytecode kept, whatever our own environment says."""
    kept = {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "dropforge-bench-bytecode")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | kept
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def best(rounds: int, work: Work) -> dict[str, tuple[float, float]]:
    """Interleaved rounds: the best CPU seconds (children's too) and the best wall seconds of each."""
    found = dict.fromkeys(work, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, run in work.items():
            cpu, wall = _cpu(), time.perf_counter()
            run()
            took = _cpu() - cpu, time.perf_counter() - wall
            found[name] = min(found[name][0], took[0]), min(found[name][1], took[1])
    return found


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def report(title: str, path: Path, times: dict[str, tuple[float, float]]) -> None:
    """Print a table; ratios are to its first line."""
    megabytes = path.stat().st_size / 1e6
    say(f"\n{title}, {megabytes:.0f} MB\n\n| step | CPU s | CPU MB/s | x | wall s | wall MB/s | x |")
    say("|---|---|---|---|---|---|---|")
    first = next(iter(times.values()))
    for name, (cpu, wall) in times.items():
        ratios = f"{cpu:.3f} | {megabytes / cpu:.1f} | {cpu / first[0]:.2f} | {wall:.3f} | {megabytes / wall:.1f}"
        say(f"| {name} | {ratios} | {wall / first[1]:.2f} |")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bench_quick(path: Path, encoder: ChatEncoder, folder: Path, rounds: int) -> None:
    worded = jsonschema.Draft202012Validator(dict(SPEC.schema))
    compiled = jsonschema_rs.validator_for(dict(SPEC.schema))
    report(
        "QUICK in process",
        path,
        best(
            rounds,
            {
                "bare orjson loop": lambda: each_line(path, orjson.loads),
                "strict reader": lambda: read_values(path),
                "orjson + jsonschema-rs, built once": lambda: each_line(
                    path, lambda x: compiled.is_valid(orjson.loads(x))
                ),
                "strict JSON + schema + canonical JSON": lambda: by_schema(path),
                "gate, level quick": lambda: gate(path, encoder, "quick"),
                "json + jsonschema, built once": lambda: each_line(path, lambda x: worded.is_valid(json.loads(x))),
            },
        ),
    )
    root = str(folder / "root")
    process(sys.executable, "-m", "core.cli", "init", root)
    check = (str(Path(sys.executable).with_name("dropforge")), "check", "--root", root, "--level", "quick")
    (folder / "few.jsonl").write_bytes(b"".join(path.open("rb").readlines(60_000)))
    whole = {
        "bare orjson loop": lambda: process(sys.executable, "-c", BARE, str(path)),
        "check of 60 KB": lambda: process(*check, str(folder / "few.jsonl")),
        "check --level quick": lambda: process(*check, str(path)),
    }
    report("QUICK as whole processes", path, best(rounds, whole))


def bench_standard(path: Path, encoder: ChatEncoder, title: str, folder: Path, rounds: int) -> None:
    rows = [training_row(json.loads(line), SPEC) for line in path.open()]
    texts = [encoder.render(row["messages"]) for row in rows]
    parts = [slice(start, start + _ENCODED_ROWS) for start in range(0, len(rows), _ENCODED_ROWS)]
    claim = folder / "claim"
    claim.mkdir(exist_ok=True)
    bare = encoder._tokenizer.encode_batch_fast
    work: Work = {
        "bare encode_batch_fast": lambda: [bare(texts[part], add_special_tokens=False) for part in parts],
        "ids and label masks": lambda: [encoder.encode_rows(rows[part]) for part in parts],
        "gate, level standard, cache written": lambda: gate(path, encoder, "standard", claim),
    }
    report(f"STANDARD, {title}", path, best(rounds, work))


_GATE = """
import sys
from pathlib import Path
from scripts.bench.ingest import ChatEncoder, gate
encoder = ChatEncoder.from_folder(Path(sys.argv[1]))
if len(sys.argv) > 3: gate(Path(sys.argv[2]), encoder, sys.argv[3])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss begins with the parent's
print(status["VmHWM"].split()[0])
"""


def bench_memory(files: Mapping[str, Path], tokenizer: Path) -> None:
    say("\n| peak memory of a fresh process | MB |\n|---|---|")
    cases = [("imports and tokenizer", ()), *((f"gate {level}", (str(file), level)) for level, file in files.items())]
    for name, args in cases:
        command = [sys.executable, "-c", _GATE, str(tokenizer), *args]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        say(f"| {name} | {int(done.stdout.split()[-1]) / 1024:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--encode-mb", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("quick", "standard", "memory"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = sentences(options.data)
        encoder = make_tokenizer(folder / "bpe", texts)
        large, small = folder / "large.jsonl", folder / "small.jsonl"
        if options.only != "standard":
            write_rows(large, options.mb, texts)
        write_rows(small, options.encode_mb, texts)
        if options.only in (None, "quick"):
            bench_quick(large, encoder, folder, options.rounds)
        if options.only in (None, "standard"):
            bench_standard(small, encoder, "BPE of 8,192", folder, options.rounds)
            make_tiny_tokenizer([str(folder / "tiny")])
            tiny = ChatEncoder.from_folder(folder / "tiny")
            bench_standard(small, tiny, "the embedded tokenizer of 1,024", folder, options.rounds)
        if options.only in (None, "memory"):
            bench_memory({"quick": large, "standard": small}, folder / "bpe")


if __name__ == "__main__":
    main()
