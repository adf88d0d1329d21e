"""Every made malformed file is refused with the right code and line, and its good twin is accepted."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import malformed
from core.chat_templates import ChatEncoder
from core.validation import DATASET_SPECS, DataValidator, SpecValidator, ValidationResult
from gate_kit import save_tokenizer

CASES = list(malformed.cases())


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> DataValidator:
    return DataValidator(ChatEncoder.from_folder(save_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def judge(folder: Path, data: bytes, spec: str | None = "chat_sft_v1") -> ValidationResult:
    file = folder / "x.jsonl"
    file.write_bytes(data)
    return SpecValidator(DATASET_SPECS).validate_job({"dataset": file, "spec": spec}, None)


def test_there_are_three_hundred_cases_of_different_names() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_file_is_refused_with_its_code_and_line(tmp_path: Path, case: malformed.Case) -> None:
    result = judge(tmp_path, case.data)
    assert not result.ok
    assert result.code in case.codes, result.message
    assert result.line == case.line, result.message
    assert result.message and "\n" not in result.message and "Traceback" not in result.message
    assert result.fix
    json.dumps(result.issues)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_the_good_twin_is_accepted(tmp_path: Path, case: malformed.Case) -> None:
    assert judge(tmp_path, case.twin).ok
    assert judge(tmp_path, case.twin, None).ok


def test_detection_blames_the_same_line_as_a_named_spec(tmp_path: Path) -> None:
    wrong: list[Any] = []
    for case in CASES:
        if case.line is not None:
            result = judge(tmp_path, case.data, None)
            if result.ok or result.code not in case.codes or result.line != case.line:
                wrong.append((case.name, result.code, result.line))
    assert not wrong


def test_random_damage_never_raises_and_a_refusal_always_names_a_line(tmp_path: Path, validator: DataValidator) -> None:
    rng = random.Random(0)  # not a secret
    base = b"\n".join(malformed.LINES[:6]) + b"\n"
    accepted = 0
    for _ in range(2_000):
        data = bytearray(base)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 20)]
            elif kind == 2:
                data[at:at] = bytes(rng.choices(b'{}[]",:\\u0\n\r\t \x00\xff', k=rng.randint(1, 6)))
            else:
                start = rng.randrange(len(data))
                data[at:at] = data[start : start + rng.randint(1, 60)]
        file = tmp_path / "x.jsonl"
        file.write_bytes(bytes(data))
        result = validator.validate_file(file, "QUICK", "chat_sft_v1")
        accepted += result.ok
        assert result.ok or result.line or result.code in ("empty", "bad_encoding"), (bytes(data), result)
        assert result.code != "unreadable" and (result.ok or result.fix), result
    assert 0 < accepted < 2_000
