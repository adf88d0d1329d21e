"""export: a folder others load, complete or not at all, with a card that nobody can inject markup into."""

import json
from pathlib import Path

import pytest

from core.atomic import sha256_file
from core.cli import main
from core.model_card import model_card
from core.paths import Workspace
from sample_root import working_day


def test_an_export_is_the_travelling_files_and_a_card(workspace: Workspace, tmp_path: Path) -> None:
    best = working_day(workspace).catalogue.committed()[-1]
    out = tmp_path / "out"
    assert main(["export", best.id, str(out), "--root", str(workspace.root)]) == 0
    assert {p.name for p in out.iterdir()} == {*best.manifest["files"], "README.md"}
    assert sha256_file(out / "model.safetensors") == best.manifest["files"]["model.safetensors"]["sha256"]
    card = (out / "README.md").read_text()
    assert card.startswith('---\nbase_model: "dropforge-tiny"\n')
    assert "greetings.jsonl" in card
    assert (workspace.evaluation_dir("main", best.id) / "README.md").read_text() == card


def test_a_folder_with_something_in_it_is_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    best = working_day(workspace).catalogue.committed()[-1]
    (tmp_path / "mine").write_text("")
    assert main(["export", best.id, str(tmp_path), "--root", str(workspace.root)]) == 2
    assert main(["export", best.id, str(tmp_path / "mine"), "--root", str(workspace.root)]) == 2
    assert "README.md" not in [p.name for p in tmp_path.iterdir()]


def test_a_damaged_checkpoint_is_not_exported(workspace: Workspace, tmp_path: Path) -> None:
    best = working_day(workspace).catalogue.committed()[-1]
    (best.folder / "model.safetensors").write_bytes(b"damaged")
    assert main(["export", best.id, str(tmp_path / "out"), "--root", str(workspace.root)]) == 1
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_the_card_shows_hostile_names_as_text(workspace: Workspace) -> None:
    sample = working_day(workspace)
    chain = sample.catalogue.manifests()
    chain[-1]["jobs"][0]["file"] = "x|y](http://evil)<script>\n# big.jsonl"
    chain[-1]["base"]["name"] = 'a"\n---\nb'
    card = model_card(workspace, chain, merged=False)
    assert "x\\|y\\](http://evil)\\<script\\>\\\\x0a\\# big.jsonl" in card
    assert json.dumps('a"\n---\nb') in card.splitlines()[1]


@pytest.mark.parametrize(("merged", "library"), [(False, "peft"), (True, "transformers")])
def test_the_card_says_which_library_loads_it(workspace: Workspace, merged: bool, library: str) -> None:
    chain = working_day(workspace).catalogue.manifests()
    chain[-1]["files"]["adapter_config.json"] = {"bytes": 1, "sha256": "0"}
    assert f"library_name: {library}" in model_card(workspace, chain, merged=merged)


def test_the_card_shows_what_the_judge_measured_and_on_how_many_items(workspace: Workspace) -> None:
    chain = working_day(workspace).catalogue.manifests()
    folder = workspace.evaluation_dir("main", chain[-1]["id"])
    folder.mkdir(parents=True, exist_ok=True)
    suites = {
        name: {"metric": "accuracy", "value": 0.4, "n": 25, "of": of} for name, of in (("easy", 100), ("all", 25))
    }
    metrics = {"suites": suites, "decision": "promote", "reason": "better"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    card = model_card(workspace, chain, merged=False)
    assert "| easy | accuracy | 0.4 | 25 of 100 |" in card
    assert "| all | accuracy | 0.4 | 25 |" in card
    assert "Decision: promote (better)." in card
