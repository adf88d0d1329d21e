"""The demo's own promises: a claim that does not hold is its exit code, and what it drops is what it says."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.paths import Workspace
from core.validation import DATASET_SPECS, SpecValidator
from curriculum.generators.binary import write_rows, write_suite
from scripts.demo.__main__ import BROKEN, BROKEN_LINE, COPIED, GOOD, HELD_OUT, Demo
from scripts.demo.screen import Screen, plain
from scripts.farm import Answer, Farm, FarmError, _free_port


@pytest.fixture
def demo(workspace: Workspace) -> Demo:
    """A demo whose farm is only its folders."""
    farm: Any = SimpleNamespace(workspace=workspace)
    return Demo(farm, Screen())


def test_one_claim_that_does_not_hold_is_exit_code_1_and_is_named_again(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    assert screen.claim(True, "the sky is blue")
    assert not screen.claim(False, "pigs fly")
    assert screen.verdict_on_claims() == 1
    shown = capsys.readouterr().out
    assert "1 of 2 claims hold." in shown
    assert "does not hold: pigs fly" in shown


def test_when_all_claims_hold_the_exit_code_is_0() -> None:
    screen = Screen()
    screen.claim(True, "the sky is blue")
    assert screen.verdict_on_claims() == 0


def test_what_a_model_says_reaches_the_terminal_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain("a\nb\x1b[31m\u202e").plain == "a↵b\\x1b[31m\\u202e"
    item = {"messages": [{"role": "user", "content": "Compute: x"}], "expected": "x = y"}
    Screen().answers([item], {"after": ["[red]x[/red]\x1b]0;title\x07"]})
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown


def test_an_answer_counts_only_when_all_of_it_is_right(demo: Demo) -> None:
    right = [Answer(item["expected"], "1-a") for item in demo.items]
    assert demo._right(right) == HELD_OUT
    result_only = [Answer(item["expected"].split(" = ")[1], "1-a") for item in demo.items]
    longer = [Answer(item["expected"] + "⓪", "1-a") for item in demo.items]
    assert demo._right(result_only) == demo._right(longer) == 0


def test_the_three_files_are_what_the_demo_says_of_them(demo: Demo, workspace: Workspace) -> None:
    demo._drop_good()
    demo._drop_broken()
    demo._drop_copied()
    validator = SpecValidator(DATASET_SPECS)
    results = {
        name: validator.validate_job({"dataset": str(workspace.inbox / name), "spec": "binary_v1"}, None)
        for name in (GOOD, BROKEN, COPIED)
    }
    assert results[GOOD].ok
    assert results[COPIED].ok  # its rows are well formed: what is wrong with them is where they come from
    assert (results[BROKEN].code, results[BROKEN].line) == ("spec_mismatch", BROKEN_LINE)
    asked = {item["messages"][0]["content"] for item in demo.items}
    assert len(asked & questions(workspace.inbox / COPIED)) == 20
    assert not asked & questions(workspace.inbox / GOOD)
    assert len(questions(workspace.inbox / GOOD)) == 1944


def questions(path: Path) -> set[str]:
    return {json.loads(line)["messages"][0]["content"] for line in path.read_text(encoding="utf-8").splitlines()}


def test_a_question_among_the_trained_rows_is_found_by_reading_both_files_back(
    demo: Demo, workspace: Workspace
) -> None:
    done = workspace.lane("done") / "job"
    suite = workspace.own_suites_dir / "left-shifts"
    done.mkdir(parents=True)
    suite.mkdir(parents=True)
    write_suite(suite / "items.jsonl", demo.held_out)
    write_rows(done / GOOD, demo.rows, level=4, seed=7, params={})
    assert demo._apart({"job_id": "job"})
    write_rows(done / GOOD, [*demo.rows[1:], demo.held_out[3]], level=4, seed=7, params={})
    assert not demo._apart({"job_id": "job"})


def test_a_port_in_use_is_left_to_whoever_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _free_port(port) != port
    assert _free_port(port) == port


def test_the_demos_root_takes_every_default_but_what_it_says(tmp_path: Path) -> None:
    farm = Farm(tmp_path / "root", {"hyperparams": {"epochs": 16}})
    config = json.loads((tmp_path / "root" / "config.json").read_text())
    assert config["hyperparams"]["epochs"] == 16
    assert config["hyperparams"]["max_length"] == 2048
    assert farm.url.endswith(str(config["inference"]["port"]))
    assert farm.stop() is None


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    farm = Farm(tmp_path / "root", {})
    with pytest.raises(FarmError, match="no-such-checkpoint"):
        farm.cli("lineage", "no-such-checkpoint")
