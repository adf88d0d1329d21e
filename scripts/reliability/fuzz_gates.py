"""Coverage-guided damage to files at the gates' door: nothing but a verdict may come out.

    pip install atheris; python -m scripts.reliability.fuzz_gates [SECONDS]

Each input's first byte chooses a suffix; the rest is the file. Anything raised, or a refusal that is no sentence, ends
the run with the input in `crash-*`. The readers' strictness is held to the standard library's on the way.
"""

import json
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # installed by hand, see above

with atheris.instrument_imports(include=["core.formats", "core.validation", "core.lineage"]):
    from core.formats import RowProblem
    from core.formats.strict_json import parse_row
    from core.lineage import SidecarError, read_sidecar
    from core.validation import DATASET_SPECS, SpecValidator
    from core.validation.looks import DEEP_LOOKS, Looks
    from core.validation.result import Issues
    from core.validation.sketches import Sketcher

_SUFFIXES = (".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz", ".jsonl.zst")
_FOLDER = Path(tempfile.mkdtemp())
_GATE = SpecValidator(DATASET_SPECS)
_SKETCH = Sketcher()


def one_input(data: bytes) -> None:
    """Judge one file, one line and one sidecar, and look long at the text."""
    if not data:
        return
    body = data[1:]
    path = _FOLDER / f"x{_SUFFIXES[data[0] % len(_SUFFIXES)]}"
    path.write_bytes(body)
    result = _GATE.validate_job({"dataset": path, "spec": None}, None)
    if result.code == "unreadable" or not result.message or "\n" in result.message:
        raise AssertionError(result)
    value = parse_row(body)
    if not isinstance(value, RowProblem) and json.loads(body) != value:
        raise AssertionError("read differently than the standard library reads it")
    sidecar = _FOLDER / "x.meta.json"
    sidecar.write_bytes(body)
    try:
        read_sidecar(sidecar)
    except SidecarError:
        pass
    text = body.decode("utf-8", "replace")
    looks = Looks(DEEP_LOOKS - {"language_mix"})  # its library is not ours
    looks.look(1, bytes(32), {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]})
    looks.report(Issues(), {})
    if len(_SKETCH({"text": text})) == 0:
        raise AssertionError("no signature")


def main() -> None:
    """Run for the seconds given (300)."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "300"
    corpus = _FOLDER / "corpus"
    corpus.mkdir()
    for index, row in enumerate(('{"text": "a"}', '{"messages": [{"role": "user", "content": "q"}]}', "a,b\n1,2\n")):
        (corpus / str(index)).write_bytes(bytes([index]) + row.encode())
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
