"""Sidecars are held to what they state; check and verify say what the gate said."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core.chat_templates import ChatEncoder
from core.commands.files import show_verdict
from core.job_queue import Job
from core.paths import schema_file
from core.validation import TokenCache, expected_rows, token_cache_of
from core.validation.gate import check_file, encoder_for
from gate_kit import Gates, chat, lines


def error_codes(verdict: dict[str, Any]) -> set[str]:
    return {issue["code"] for issue in verdict["issues"] if issue["severity"] == "error"}


def warning_codes(verdict: dict[str, Any]) -> set[str]:
    return {issue["code"] for issue in verdict["issues"] if issue["severity"] == "warning"}


@pytest.mark.parametrize(
    ("sidecar", "code", "words"),
    [
        ("{not json", "sidecar_mismatch", "sidecar"),
        ('{"spec": "chat_sft_v1", "spec": "x"}', "sidecar_mismatch", "twice"),
        ([1], "sidecar_mismatch", "object"),
        (r'{"source": "\ud800"}', "sidecar_mismatch", "surrogate"),
        ({"example_count": 500}, "sidecar_mismatch", "says 500 rows, found 3"),
        ({"rows": 2}, "sidecar_mismatch", "says 2 rows, found 3"),
        ({"bytes": 1}, "sidecar_mismatch", "says 1 bytes"),
        ({"sha256": "0" * 64}, "sidecar_mismatch", "0000"),
        ({"spec": "completion_v1"}, "spec_mismatch", "completion_v1"),
        ({"spec": "chat_sft_v9"}, "spec_unknown", "chat_sft_v9"),
        ({"priority": "highest"}, "sidecar_mismatch", "priority"),
        ({"columns": {"prompt": 1}}, "sidecar_mismatch", "columns"),
        ({"locked": {"base_model": "x"}}, "locked_field", "locked"),
        ({"locked.base_model": "x"}, "locked_field", "locked.base_model"),
        ({"base_model": "x"}, "locked_field", "base_model"),
        ({"trust_remote_code": True}, "locked_field", "trust_remote_code"),
        ({"learning_rate": 5.0}, "locked_field", "learning_rate"),
    ],
)
def test_a_sidecar_that_lies_or_reaches_too_far_is_refused(
    gates: Gates, sidecar: object, code: str, words: str
) -> None:
    folder, verdict = gates.drop(lines(chat(i) for i in range(3)), sidecar)
    assert (verdict["state"], verdict["code"]) == ("rejected", code)
    assert words in verdict["message"]
    assert verdict["rows"] == 3 and verdict["sha256"]
    assert not (folder / "tokens").exists()


@pytest.mark.parametrize("named", [{"spec": "prompt_completion_v1"}, {}])
@pytest.mark.parametrize(("typo", "fix"), [("anser", "did you mean 'answer'?"), ("zz", "for 'completion' in")])
def test_a_column_that_only_the_sidecar_knows_is_named_and_the_nearest_one_too(
    gates: Gates, named: dict[str, str], typo: str, fix: str
) -> None:
    rows = [{"question": "q", "answer": "a"}] * 3
    _, verdict = gates.drop(lines(rows), {**named, "columns": {"prompt": "question", "completion": typo}})
    assert verdict["state"] == "rejected"
    assert f"the sidecar names a column {typo!r} that the row lacks" in verdict["message"]
    assert fix in verdict["fix"]


@pytest.mark.parametrize("keys", [("prompt", "q", "completion"), ("q", "prompt", "completion")])
def test_a_column_of_the_name_that_another_one_is_given_is_refused_in_any_order(
    gates: Gates, keys: tuple[str, ...]
) -> None:
    rows = [{key: f"{key} {i}" for key in keys} for i in range(3)]
    _, verdict = gates.drop(lines(rows), {"spec": "prompt_completion_v1", "columns": {"prompt": "q"}})
    assert (verdict["state"], verdict["code"], verdict["line"]) == ("rejected", "spec_mismatch", 1)
    assert "'q' is to be 'prompt', but the row has a column 'prompt' too" in verdict["message"]


def test_two_columns_can_change_their_names(gates: Gates) -> None:
    rows = [{"prompt": f"answer {i}", "completion": f"question {i}"} for i in range(3)]
    columns = {"prompt": "completion", "completion": "prompt"}
    _, verdict = gates.drop(lines(rows), {"spec": "prompt_completion_v1", "columns": columns})
    assert verdict["state"] == "queued"


@pytest.mark.parametrize(("column", "found"), [("contxt", False), ("context", True)])
def test_a_column_of_the_sidecar_that_no_row_has_is_a_warning_that_names_it(
    gates: Gates, column: str, found: bool
) -> None:
    rows = [{"instruction": f"i {i}", "output": "o"} | ({"context": "c"} if found and i == 2 else {}) for i in range(3)]
    _, verdict = gates.drop(lines(rows), {"spec": "alpaca_v1", "columns": {"input": column}})
    assert verdict["state"] == "queued"
    told = [issue["message"] for issue in verdict["issues"] if issue["code"] == "sidecar_column_unknown"]
    assert told == ([] if found else ["no row has these columns of the sidecar: 'contxt' (as 'input')"])


@pytest.mark.parametrize(("key", "near"), [("colums", "columns"), ("Spec", "spec"), ("priorty", "priority")])
def test_a_misspelt_key_of_a_sidecar_is_a_warning_that_names_the_key_that_was_meant(
    gates: Gates, capsys: pytest.CaptureFixture[str], key: str, near: str
) -> None:
    _, verdict = gates.drop(lines([chat()]), {key: "low", "extra": {}, "extras": 1, "team": "a", "k" * 100: 1})
    assert verdict["state"] == "queued"
    [issue] = [issue for issue in verdict["issues"] if issue["code"] == "sidecar_key_unknown"]
    assert (issue["severity"], issue["validator"], issue["count"]) == ("warning", "SpecValidator", 1)
    assert f"{key!r} (did you mean {near!r}?)" in issue["message"]
    show_verdict(verdict)
    assert issue["message"] in capsys.readouterr().out
    schema = json.loads(schema_file("verdict").read_text())
    jsonschema.validate(issue, schema["properties"]["issues"]["items"])


def test_paths_in_a_sidecar_are_ignored_and_its_priority_chooses_the_lane(gates: Gates) -> None:
    folder = gates.claim(lines([chat()]), {"priority": "high", "file": "../../etc/passwd", "extra": {"path": "/etc"}})
    outcome = gates.run(folder, lane="low")
    assert (outcome.state, outcome.lane) == ("queued", "high")


def test_a_huge_or_linked_sidecar_is_refused_without_being_read(gates: Gates, tmp_path: Path) -> None:
    _, verdict = gates.drop(lines([chat()]), "x" * ((1 << 20) + 1))
    assert verdict["code"] == "sidecar_mismatch" and "1 MiB" in verdict["message"]
    (tmp_path / "outside").write_text('{"priority": "high"}')
    folder = gates.claim(lines([chat()]))
    (folder / "x.jsonl.meta.json").symlink_to(tmp_path / "outside")
    outcome = gates.run(folder)
    assert (outcome.verdict["code"], outcome.lane) == ("sidecar_mismatch", "normal")
    assert (tmp_path / "outside").read_text() == '{"priority": "high"}'


def test_unknown_generators_are_accepted_unless_the_operator_refuses_them(
    gates: Gates, tmp_path: Path, tokenizer: Path
) -> None:
    assert gates.drop(lines([chat()]), {"generator_id": "mine"})[1]["state"] == "queued"
    strict = Gates(tmp_path / "strict", tokenizer, lineage={"allow_unknown_generators": False})
    assert strict.drop(lines([chat()]))[1]["state"] == "queued"
    _, verdict = strict.drop(lines([chat()]), {"generator_id": "binary_loca"})
    assert verdict["state"] == "rejected" and "binary_local" in verdict["fix"]


def test_the_daemons_part_is_added_to_the_sidecar_and_the_producers_part_stays(gates: Gates) -> None:
    folder, verdict = gates.drop(
        lines([chat()]), {"generator_id": "syllo_local", "generator_version": "1.0.0", "extra": {"k": 1}}
    )
    doc = json.loads((folder / "x.jsonl.meta.json").read_text())
    assert doc["generator_id"] == "syllo_local" and doc["extra"] == {"k": 1}
    assert doc["validation_passed"] is True and doc["job_id"] == verdict["job_id"] and doc["validator_versions"]


def test_a_refused_sidecar_stays_as_its_producer_wrote_it(gates: Gates) -> None:
    folder, _ = gates.drop(lines([chat()]), "{not json")
    assert (folder / "x.jsonl.meta.json").read_text() == "{not json"


def test_check_says_the_same_as_the_gate_and_writes_nothing(gates: Gates, tmp_path: Path) -> None:
    text = lines(chat(i) for i in range(120))
    file = tmp_path / "mine.jsonl"
    file.write_text(text)
    before = sorted(tmp_path.rglob("*"))
    checked = check_file(file, gates.settings, gates.workspace, show_mask=3)
    assert sorted(tmp_path.rglob("*")) == before
    _, verdict = gates.drop(text, name="mine.jsonl")
    same = set(verdict) - {"job_id", "state", "received_at"}
    assert {key: checked[key] for key in same} == {key: verdict[key] for key in same}
    assert checked["state"] is None
    assert len(checked["mask"]) == 3
    trained = "".join(p["text"] for p in checked["mask"][0]["pieces"] if p["trained"])
    assert trained.startswith("answer ") and trained.endswith("<|im_end|>")


def test_check_refuses_with_the_line_and_works_without_a_tokenizer(gates: Gates, tmp_path: Path) -> None:
    (gates.workspace.root / "models" / "dropforge-tiny" / "tokenizer.json").unlink()
    file = tmp_path / "mine.jsonl"
    file.write_text(lines([chat(i) for i in range(10)]) + "{\n")
    verdict = check_file(file, gates.settings, gates.workspace, "quick")
    assert (verdict["state"], verdict["code"], verdict["line"]) == ("rejected", "bad_json", 11)


def job_of(folder: Path, verdict: dict[str, Any]) -> Job:
    job = Job(folder.name, "normal", folder)
    job.write_verdict(verdict)
    return job


def test_expected_rows_are_recounted_from_the_file_alone(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(
        tmp_path / "root",
        tokenizer,
        hyperparams={"max_length": 64},
        validation={"bad_rows": "set_aside", "too_long": "drop"},
    )
    rows: list[Any] = [chat(i) for i in range(200)]
    rows[3], rows[9] = {"messages": 1}, chat(9, "word " * 400)
    folder, verdict = farm.drop(lines(rows))
    cache = TokenCache.open(folder / "tokens")
    numbers, hashes = cache.row_numbers.tolist(), cache.hashes.tolist()
    incoming = farm.workspace.incoming_dir("main")
    incoming.mkdir(parents=True)
    (folder / ".held_out.jsonl").rename(incoming / f"{folder.name}.jsonl")
    job = job_of(folder, verdict)
    for file in (folder / "tokens").iterdir():
        file.unlink()
    (folder / "tokens").rmdir()
    expected = expected_rows(job, farm.settings, farm.workspace)
    assert expected.row_numbers.tolist() == numbers and expected.hashes.tolist() == hashes
    assert (expected.rows, expected.held_out, expected.excluded) == (200, verdict["rows_held_out"], 2)
    rebuilt = token_cache_of(job, farm.settings, farm.workspace, encoder_for(farm.workspace, farm.settings))
    assert rebuilt.row_numbers.tolist() == numbers and rebuilt.hashes.tolist() == hashes


def test_the_cache_that_the_gate_wrote_is_opened_and_no_row_is_tokenized_again(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, verdict = gates.drop(lines(chat(i) for i in range(600)))
    encoder = encoder_for(gates.workspace, gates.settings)
    one_by_one = [encoder.encode_row(chat(i)).ids.tolist() for i in (0, 599)]

    def forbidden(*_args: object) -> None:
        raise AssertionError("a row was tokenized again")

    monkeypatch.setattr(ChatEncoder, "prepare", forbidden)
    cache = token_cache_of(job_of(folder, verdict), gates.settings, gates.workspace, encoder)
    assert len(cache) == verdict["rows_train"]
    rows = cache.row_numbers.tolist()
    for number, ids in zip((0, 599), one_by_one, strict=True):
        assert number not in rows or cache.ids(rows.index(number)).tolist() == ids


def test_a_cache_of_another_tokenizer_or_a_damaged_one_is_built_again(gates: Gates) -> None:
    folder, verdict = gates.drop(lines(chat(i) for i in range(5)))
    job = job_of(folder, verdict)
    encoder = encoder_for(gates.workspace, gates.settings)
    whole = (folder / "tokens" / "ids.npy").read_bytes()
    (folder / "tokens" / "ids.npy").write_bytes(whole[:-8])
    assert len(token_cache_of(job, gates.settings, gates.workspace, encoder)) == 5
    assert (folder / "tokens" / "ids.npy").read_bytes() == whole
    head = json.loads((folder / "tokens" / "tokens.json").read_text())
    (folder / "tokens" / "tokens.json").write_text(json.dumps(head | {"fingerprint": "other"}))
    assert token_cache_of(job, gates.settings, gates.workspace, encoder).fingerprint == encoder.fingerprint(2048)
