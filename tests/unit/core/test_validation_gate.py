"""The gates over real claim folders: what is accepted will train; a gate that fails refuses."""

import errno
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from core.checkpoints import Catalogue
from core.paths import Workspace, builtin_config
from core.settings import load_settings
from core.validation import TokenCache, gate
from core.validation.encoders import EncoderDamagedError, EncoderMissingError, encoder_for
from core.validation.gate import GateContext, RootDamagedError
from core.validation.held_out import read_held_out_file
from daemon_rig import commit
from gate_kit import Gates, chat, lines


def error_codes(verdict: dict[str, Any]) -> set[str]:
    return {issue["code"] for issue in verdict["issues"] if issue["severity"] == "error"}


def warning_codes(verdict: dict[str, Any]) -> set[str]:
    return {issue["code"] for issue in verdict["issues"] if issue["severity"] == "warning"}


def test_a_good_file_is_queued_with_its_tokens_and_every_row_is_accounted_for(gates: Gates) -> None:
    folder, verdict = gates.drop(lines(chat(i) for i in range(200)))
    assert (verdict["state"], verdict["code"], verdict["spec"]) == ("queued", "ok", "chat_sft_v1")
    assert verdict["rows"] == 200 == verdict["rows_train"] + verdict["rows_held_out"]
    assert 0 < verdict["rows_held_out"] < 20
    cache = TokenCache.open(folder / "tokens")
    assert len(cache) == verdict["rows_train"]
    assert verdict["tokens"]["total"] == int(cache.lengths.sum())
    assert verdict["tokens"]["trained"] == sum(int(cache.mask(i).sum()) for i in range(len(cache)))
    encoder = encoder_for(gates.workspace, gates.settings)
    assert cache.fingerprint == encoder.fingerprint(2048)
    first = encoder.encode_row(chat(int(cache.row_numbers[0])))
    assert cache.ids(0).tolist() == first.ids.tolist() and cache.mask(0).tolist() == first.mask.tolist()


def test_rows_of_every_block_of_a_larger_file_come_back_from_the_cache_as_they_are_encoded(gates: Gates) -> None:
    rows = [chat(i, f"answer {i} " + "word " * (i % 40)) for i in range(1_500)]
    folder, _ = gates.drop(lines(rows))
    cache = TokenCache.open(folder / "tokens")
    encoder = encoder_for(gates.workspace, gates.settings)
    for index in (0, 700, len(cache) - 1):
        expected = encoder.encode_row(rows[int(cache.row_numbers[index])])
        assert cache.ids(index).tolist() == expected.ids.tolist()
        assert cache.mask(index).tolist() == expected.mask.tolist()


def test_the_outcome_crosses_a_process_border(gates: Gates) -> None:
    folder = gates.claim(lines([chat()]))
    context = GateContext(gates.workspace.root, folder.name, "low", gates.settings)
    outcome = gate.run_gates(folder, pickle.loads(pickle.dumps(context)))  # our own bytes
    assert pickle.loads(pickle.dumps(outcome)).lane == "low"


def test_held_out_rows_are_written_and_never_in_the_tokens(gates: Gates) -> None:
    folder, verdict = gates.drop(lines(chat(i) for i in range(300)))
    held = [json.loads(line) for line in (folder / ".held_out.jsonl").read_text().splitlines()]
    assert len(held) == verdict["rows_held_out"] > 0
    rows = [chat(i) for i in range(300)]
    assert all(row["messages"] == rows[row["row"]]["messages"] for row in held)
    cache = TokenCache.open(folder / "tokens")
    assert {row["row"] for row in held}.isdisjoint(cache.row_numbers.tolist())


def test_files_under_fifty_rows_hold_nothing_out_and_the_cap_holds(
    gates: Gates, tmp_path: Path, tokenizer: Path
) -> None:
    greedy = Gates(tmp_path / "greedy", tokenizer, trainer={"held_out": 0.5, "held_out_cap": 7})
    _, small = greedy.drop(lines(chat(i) for i in range(49)))
    _, large = greedy.drop(lines(chat(i) for i in range(400)))
    assert small["rows_held_out"] == 0
    assert large["rows_held_out"] == 7


def test_a_row_already_held_out_is_held_out_in_every_later_file_however_small(gates: Gates) -> None:
    folder, _ = gates.drop(lines(chat(i) for i in range(300)))
    incoming = gates.workspace.incoming_dir("main")
    incoming.mkdir(parents=True)
    (folder / ".held_out.jsonl").rename(incoming / f"{folder.name}.jsonl")
    row = json.loads((incoming / f"{folder.name}.jsonl").read_text().splitlines()[0])
    again = {"messages": row["messages"]}
    later, verdict = gates.drop(lines([again, chat("new")]))
    assert (verdict["rows_held_out"], verdict["rows_train"]) == (1, 1)
    assert read_held_out_file(later / ".held_out.jsonl") == {bytes.fromhex(row["sha256"])}
    _, alone = gates.drop(lines([again]))
    assert alone["code"] == "nothing_to_train"


def test_the_split_follows_seed_and_content_not_name_or_order(gates: Gates, tmp_path: Path, tokenizer: Path) -> None:
    rows = [chat(i) for i in range(300)]
    chosen = []
    for name, order in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        folder, _ = gates.drop(lines(order), name=name)
        chosen.append(read_held_out_file(folder / ".held_out.jsonl"))
    other = Gates(tmp_path / "other", tokenizer, trainer={"seed": 7})
    folder, _ = other.drop(lines(rows))
    assert chosen[0] == chosen[1] != read_held_out_file(folder / ".held_out.jsonl")


def test_a_gate_that_raises_refuses_and_shows_no_row(
    gates: Gates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object, **_kwargs: object) -> object:
        raise KeyError("sec" + "ret row text")

    monkeypatch.setattr("core.validation.census.sha256", broken)
    folder, verdict = gates.drop(lines([chat()]))
    assert (verdict["state"], verdict["code"]) == ("rejected", "gate_error")
    assert "secret" not in json.dumps(verdict) + caplog.text
    assert not (folder / "tokens").exists()


def test_without_a_tokenizer_the_gate_asks_to_be_called_again(gates: Gates) -> None:
    (gates.workspace.root / "models" / "dropforge-tiny" / "tokenizer.json").unlink()
    folder = gates.claim(lines([chat()]))
    with pytest.raises(EncoderMissingError) as caught:
        gates.run(folder)
    assert caught.value.retryable


def test_running_the_gates_again_over_the_same_claim_gives_the_same(gates: Gates) -> None:
    folder = gates.claim(lines(chat(i) for i in range(100)), {"generator_id": "manual"})
    first, second = gates.run(folder).verdict, gates.run(folder).verdict
    assert {k: v for k, v in first.items() if k != "received_at"} == {
        k: v for k, v in second.items() if k != "received_at"
    }


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(tmp_path / "root", tokenizer, inbox={"max_bytes": 10})
    assert farm.drop(lines([chat()]))[1]["code"] == "too_large"


@pytest.mark.parametrize(
    "name", ["é\u202e.jsonl", "-rf.jsonl", "$(x).jsonl", os.fsdecode(b"\xff.jsonl"), "a\nb.jsonl", "x" * 249 + ".jsonl"]
)
def test_odd_file_names_are_trained_and_shown_escaped(gates: Gates, name: str) -> None:
    _, verdict = gates.drop(lines([chat()]), name=name)
    assert verdict["state"] == "queued"
    json.dumps(verdict, ensure_ascii=False).encode()
    assert "\n" not in verdict["file"] and "\u202e" not in verdict["file"]


def test_a_damaged_tokenizer_makes_files_wait_and_refuses_none(gates: Gates) -> None:
    """The file is good: what is broken is the root's."""
    (gates.workspace.root / "models" / "dropforge-tiny" / "tokenizer.json").write_text('{"model": 1}')
    folder = gates.claim(lines([chat()]))
    with pytest.raises(EncoderDamagedError) as caught:
        gates.run(folder)
    assert caught.value.retryable and "models/dropforge-tiny" in caught.value.where and caught.value.fix
    assert list(folder.iterdir()) == [folder / "x.jsonl"]


def test_checkpoints_that_cannot_be_read_make_files_wait(gates: Gates) -> None:
    chain = [commit(gates.workspace, step) for step in (0, 5, 10)]
    shutil.rmtree(chain[1].folder)
    Catalogue(gates.workspace, "main").copies.forget(chain[1].id)
    folder = gates.claim(lines([chat()]))
    with pytest.raises(
        EncoderDamagedError, match=f"the checkpoints cannot be read: no way .* to {chain[2].id}"
    ) as caught:
        gates.run(folder)
    assert caught.value.retryable and caught.value.fix
    assert list(folder.iterdir()) == [folder / "x.jsonl"]


@pytest.mark.parametrize("kind", ["specs", "suites/exam"])
@pytest.mark.parametrize("damage", ["cut", "a folder"])
def test_a_damaged_spec_or_suite_of_the_root_makes_files_wait_and_names_it(
    gates: Gates, kind: str, damage: str
) -> None:
    folder = gates.workspace.root / "config" / kind
    folder.mkdir(parents=True)
    file = folder / ("mine.json" if kind == "specs" else "items.jsonl")
    file.write_text("{") if damage == "cut" else file.mkdir()
    claim = gates.claim(lines([chat()]))
    with pytest.raises(RootDamagedError) as caught:
        gates.run(claim)
    assert caught.value.retryable and caught.value.fix
    assert caught.value.where == str(file) + (":1:2" if damage == "cut" else "")
    file.unlink() if damage == "cut" else file.rmdir()
    assert gates.run(claim).state == "queued"


@pytest.mark.parametrize("columns", [5, ["prompt"], {"text": 5}])
def test_a_spec_whose_columns_are_no_names_is_the_roots_fault_not_the_files(gates: Gates, columns: object) -> None:
    folder = gates.workspace.root / "config" / "specs"
    folder.mkdir(parents=True)
    spec = json.loads((builtin_config() / "specs" / "completion_v1.json").read_text())
    (folder / "mine.json").write_text(json.dumps(spec | {"columns": columns}))
    with pytest.raises(RootDamagedError, match="columns are no map of names"):
        gates.run(gates.claim(lines([chat()]), {"spec": "mine"}))


@pytest.mark.parametrize(
    "item",
    [
        '{"prompt": "\\ud800", "expected": "x"}',
        '{"id": "\\ud800", "prompt": "q", "expected": "x"}',
        '{"prompt": 5}',
        '{"messages": []}',
        '{"messages": [5]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": null}',
        "[]",
        "{}",
    ],
)
def test_a_suite_with_an_item_that_asks_nothing_readable_makes_files_wait_not_refused(gates: Gates, item: str) -> None:
    folder = gates.workspace.root / "config/suites/exam"
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text(f"{item}\n")
    with pytest.raises(RootDamagedError, match="items.jsonl:1"):
        gates.run(gates.claim(lines([chat()])))


@pytest.mark.parametrize(
    "item", [{"text": "read this"}, {"prompt": "q", "messages": [], "expected": "x"}, {"text": "t", "messages": None}]
)
def test_whatever_suite_the_judge_can_read_the_gates_can_read_too(gates: Gates, item: dict[str, Any]) -> None:
    folder = gates.workspace.root / "config/suites/exam"
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text(json.dumps({"id": "1", **item}) + "\n")
    assert gates.run(gates.claim(lines([chat()]))).state == "queued"


def test_the_text_of_a_suite_is_not_trained(gates: Gates) -> None:
    folder = gates.workspace.root / "config/suites/exam"
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text('{"id": "1", "text": "read this"}\n')
    assert gates.run(gates.claim(lines([{"text": "read  this"}]))).verdict["code"] == "contaminated"


def test_a_format_whose_package_is_missing_holds_the_file_and_says_the_pip_line(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gates.claim(b"PAR1" + b"\0" * 20 + b"PAR1", name="x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = gates.run(folder)
    assert (outcome.state, outcome.verdict["state"], outcome.verdict["code"]) == ("held", "held", "missing_tool")
    assert "pip install 'dropforge[formats]'" in outcome.verdict["fix"] and "dropforge retry" in outcome.verdict["fix"]
    assert (folder / "x.parquet").exists()


def test_a_folder_of_the_root_that_may_not_be_read_is_not_blamed_on_the_file(
    gates: Gates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    (path := tmp_path / "rows.jsonl").write_text(json.dumps(chat(0)) + "\n")
    workspace = Workspace(tmp_path / "root")
    monkeypatch.setattr(gate, "read_held_out", refuse)
    verdict = gate.check_file(path, load_settings(workspace), workspace)
    assert verdict["message"] == f"{workspace.incoming_dir('main')} cannot be read: Permission denied"


def test_a_file_that_is_checked_again_holds_out_the_same_rows_and_no_others(tmp_path: Path, tokenizer: Path) -> None:
    greedy = Gates(tmp_path / "greedy", tokenizer, trainer={"held_out": 0.5, "held_out_cap": 7})
    folder, first = greedy.drop(lines(chat(i) for i in range(400)))
    incoming = greedy.workspace.incoming_dir("main")
    incoming.mkdir(parents=True)
    kept = (folder / ".held_out.jsonl").rename(incoming / f"{folder.name}.jsonl")
    again = greedy.run(folder).verdict
    assert again["rows_held_out"] == first["rows_held_out"] == 7
    assert read_held_out_file(folder / ".held_out.jsonl") == read_held_out_file(kept)
