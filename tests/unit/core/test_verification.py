"""verify believes no total: each way of breaking a promise, planted, is found."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.atomic import sha256_file
from core.checkpoints import Catalogue, Checkpoint
from core.cli import main
from core.job_queue import new_job_id, new_verdict
from core.paths import Workspace
from core.validation.rows import row_sha256
from core.verification import RECORD, verify

EPOCHS = 2
ROWS = [{"text": f"row {n}"} for n in range(10)]
HELD_OUT = {3}
Pass = tuple[str, int, int, bytes]


def digest(number: int) -> bytes:
    return row_sha256(ROWS[number])[:16]


def all_passes(job_id: str) -> list[Pass]:
    """What an honest trainer records: every row but the held-out one, once an epoch."""
    return [(job_id, n, e, digest(n)) for e in range(EPOCHS) for n in range(len(ROWS)) if n not in HELD_OUT]


class Farm:
    """A root with a base and one job trained over two checkpoints, the record of which a test may change."""

    def __init__(self, workspace: Workspace) -> None:
        self.ws = workspace
        self.catalogue = Catalogue(workspace, "main")
        self.job_id = new_job_id(None)
        self.folder = workspace.lane("done") / self.job_id
        self.commit(0, None, [], 0)

    def data(self) -> None:
        self.folder.mkdir(parents=True)
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        held = self.ws.incoming_dir("main")
        held.mkdir(parents=True)
        lines = [{"sha256": row_sha256(ROWS[n]).hex(), "row": n, **ROWS[n]} for n in HELD_OUT]
        written = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (held / f"{self.job_id}.jsonl").write_text(written)
        self.verdict(sha256=sha256_file(path))

    def verdict(self, **known: Any) -> None:
        facts: dict[str, Any] = {
            "job_id": self.job_id,
            "file": "rows.jsonl",
            "rows": 10,
            "rows_train": 9,
            "rows_held_out": 1,
            "state": "done",
            "spec": "completion_v1",
            "training": {"rows_trained": 18},
        }
        path = self.folder / "verdict.json"
        old = json.loads(path.read_text()) if path.exists() else facts
        path.write_text(json.dumps(new_verdict() | old | known))

    def commit(self, step: int, parent: Checkpoint | None, passes: list[Pass], total: int) -> Checkpoint:
        staged = self.catalogue.stage(step)
        (staged / "model.safetensors").write_bytes(b"weights %d" % step)
        buffer = io.BytesIO()
        np.save(buffer, np.array(passes, dtype=RECORD), allow_pickle=False)
        (staged / "trained_rows.npy").write_bytes(buffer.getvalue())
        entry = {
            "job_id": self.job_id,
            "file": "rows.jsonl",
            "sha256": "0" * 64,
            "generator": "manual",
            "rows_train": 9,
            "rows_trained": total,
            "epochs": EPOCHS,
        }
        fields = {
            "step": step,
            "parent": parent.id if parent else None,
            "base": parent.manifest["base"] if parent else {"name": "tiny", "sha256": None},
            "jobs": [entry] if parent else [],
            "train_loss": 1.0,
        }
        return self.catalogue.commit(staged, fields)

    def train(self, passes: list[Pass], total: int | None = None) -> None:
        """Commit the passes in two checkpoints, one in the middle of the job."""
        half = len(passes) // 2
        middle = self.commit(1, self.catalogue.committed()[0], passes[:half], half)
        self.commit(2, middle, passes[half:], len(passes) if total is None else total)

    def problems(self) -> str:
        doc = verify(self.ws, "main")
        assert doc["ok"] is (doc["problems"] == [])
        return "\n".join(doc["problems"])


@pytest.fixture
def farm(workspace: Workspace) -> Farm:
    farm = Farm(workspace)
    farm.data()
    return farm


def test_an_honest_root_is_ok_and_every_pass_is_counted(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    doc = verify(farm.ws, "main")
    assert doc["problems"] == []
    assert doc["jobs"] == {"done": 1}
    (file,) = doc["files"]
    assert (file["rows_trained"], file["epochs"], file["rows_held_out"]) == (18, 2, 1)
    assert [c["state"] for c in doc["checkpoints"]] == ["ok"] * 3


def test_one_checkpoint_in_the_middle_of_a_job_is_ok_by_itself(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    doc = verify(farm.ws, "main", farm.catalogue.committed()[1].id)
    assert doc["problems"] == []
    assert doc["files"][0]["rows_trained"] == 9


def change(position: int, **fields: Any) -> Callable[[list[Pass]], list[Pass]]:
    names = ("job", "row", "epoch", "hash")

    def apply(passes: list[Pass]) -> list[Pass]:
        changed = dict(zip(names, passes[position], strict=True)) | fields
        return [*passes[:position], tuple(changed[n] for n in names), *passes[position + 1 :]]  # type: ignore[list-item]

    return apply


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda passes: passes[:-1], "not trained exactly 2 times: 1 rows (first: 9)"),
        (lambda passes: [*passes, passes[0]], "trained more than once in an epoch: 1 rows (first: 0)"),
        (change(0, row=1, hash=digest(1)), "trained more than once in an epoch"),
        (change(0, epoch=7), "trained in more than 2 epochs"),
        (change(0, hash=digest(5)), "trained with another content than the file has: 1 rows (first: 0)"),
        (change(0, row=3, hash=digest(3)), "held out, set aside or not in the file, yet trained: 1 rows (first: 3)"),
        (change(0, row=77), "not in the file, yet trained: 1 rows (first: 77)"),
        (lambda passes: [p for p in passes if p[1] != 4], "never trained: 1 rows (first: 4)"),
    ],
    ids=["missing", "twice", "instead", "epoch", "content", "held out", "beyond", "row left out"],
)
def test_a_record_that_breaks_the_promise_is_found(farm: Farm, lie: Callable[..., list[Pass]], said: str) -> None:
    farm.train(lie(all_passes(farm.job_id)), total=18)
    assert said in farm.problems()


def test_a_manifest_that_claims_more_than_the_record_holds_is_found(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id)[:-2], total=18)
    assert "the manifest says 18 row passes, the records hold 16" in farm.problems()


def test_changed_data_changed_weights_and_a_changed_record_are_found(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    head = farm.catalogue.committed()[-1]
    (farm.folder / "rows.jsonl").write_text('{"text": "other"}\n')
    assert "the verdict says" in farm.problems()
    farm_weights = head.folder / "model.safetensors"
    farm_weights.write_bytes(b"weights !")
    assert "model.safetensors" in farm.problems()
    record = head.folder / "trained_rows.npy"
    record.write_bytes(record.read_bytes()[:-1] + b"\x00")
    assert "is not the one that was committed" in farm.problems()


def test_a_missing_record_is_found_also_after_the_checkpoint_was_removed(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    farm.catalogue.remove(farm.catalogue.committed()[1])
    assert farm.problems() == ""
    next(farm.ws.manifests_dir("main").glob("*.npy")).unlink()
    assert "no readable record of trained rows" in farm.problems()


def test_a_job_whose_folder_is_gone_is_without_a_home(farm: Farm, tmp_path: Path) -> None:
    farm.train(all_passes(farm.job_id))
    farm.folder.rename(tmp_path / "elsewhere")
    assert "its folder is gone" in farm.problems()


def test_a_done_job_that_was_never_trained_is_found(farm: Farm) -> None:
    assert "no manifest knows it" in farm.problems()


def test_a_failed_job_must_have_left_nothing_in_the_weights(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    farm.folder.rename(farm.ws.lane("failed") / farm.job_id)
    farm.folder = farm.ws.lane("failed") / farm.job_id
    farm.verdict(state="failed")
    assert "row passes of it are in the weights" in farm.problems()


def test_a_duplicate_needs_no_training_and_may_have_none(farm: Farm) -> None:
    farm.verdict(duplicate_of="20260101T000000000000Z-abcdef", training=None)
    assert farm.problems() == ""
    farm.train(all_passes(farm.job_id))
    assert "it is a duplicate" in farm.problems()


def test_rows_that_do_not_add_up_are_found(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    farm.verdict(rows=11)
    assert "is 10, not rows 11" in farm.problems()


def test_a_job_in_training_may_be_half_done(farm: Farm) -> None:
    farm.commit(1, farm.catalogue.committed()[0], all_passes(farm.job_id)[:5], 5)
    farm.folder.rename(farm.ws.lane("active") / farm.job_id)
    farm.folder = farm.ws.lane("active") / farm.job_id
    farm.verdict(state="active", training=None)
    assert farm.problems() == ""


def test_the_command_exits_five_and_prints_the_document(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(farm.ws.root)]
    assert main(["verify", "--json", *root]) == 5
    doc = json.loads(capsys.readouterr().out)
    assert set(doc) == {"ok", "jobs", "files", "checkpoints", "problems"}
    farm.train(all_passes(farm.job_id))
    assert main(["verify", *root]) == 0
    assert "every promise is kept" in capsys.readouterr().out


def test_data_that_no_longer_fits_its_spec_is_a_problem_not_a_crash(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    path = farm.folder / "rows.jsonl"
    path.write_text('{"something": "else"}\n' * 10)
    farm.verdict(sha256=sha256_file(path))
    assert "rows.jsonl:1: the row is not completion_v1 any more" in farm.problems()


def test_a_verdict_that_claims_other_counts_than_record_and_file_is_found(farm: Farm) -> None:
    farm.train(all_passes(farm.job_id))
    farm.verdict(training={"rows_trained": 99})
    assert "the verdict says 99 row passes, the records hold 18" in farm.problems()
    farm.verdict(training={"rows_trained": 18}, rows_train=8, rows_held_out=2)
    assert "the file gives rows_train 9, the verdict says 8" in farm.problems()


@pytest.fixture
def moved(farm: Farm) -> Farm:
    """A job half trained in run `main` whose file was checked again for run `second`, and trained there to its end."""
    farm.commit(1, farm.catalogue.committed()[0], all_passes(farm.job_id)[:5], 5)
    incoming = farm.ws.incoming_dir("second")
    incoming.mkdir(parents=True)
    rows = farm.ws.incoming_dir("main") / f"{farm.job_id}.jsonl"
    (incoming / rows.name).write_bytes(rows.read_bytes())
    farm.catalogue = Catalogue(farm.ws, "second")
    farm.commit(0, None, [], 0)
    farm.verdict(run="second")
    return farm


def problems_after_the_move(farm: Farm) -> list[str]:
    found: list[str] = verify(farm.ws, "second")["problems"]
    return found


def test_a_job_half_trained_in_one_run_and_trained_from_its_start_in_the_next_is_ok(moved: Farm) -> None:
    moved.train(all_passes(moved.job_id))
    doc = verify(moved.ws, "second")
    assert doc["problems"] == []
    assert (doc["files"][0]["rows_trained"], doc["files"][0]["epochs"]) == (18, 2)
    assert verify(moved.ws, "second", moved.catalogue.committed()[-1].id)["ok"]
    assert verify(moved.ws, "main", Catalogue(moved.ws, "main").committed()[-1].id)["ok"]


def test_a_job_that_waits_for_the_next_run_may_stand_half_trained_in_the_last(moved: Farm) -> None:
    moved.folder.rename(moved.ws.lane("normal") / moved.job_id)
    moved.folder = moved.ws.lane("normal") / moved.job_id
    moved.verdict(state="queued", training=None)
    assert problems_after_the_move(moved) == []


def test_a_double_pass_inside_one_run_is_found_whichever_it_is(moved: Farm) -> None:
    passes = all_passes(moved.job_id)
    moved.train([*passes, passes[0]], total=18)
    assert any("trained more than once in an epoch: 1 rows" in problem for problem in problems_after_the_move(moved))
    moved.catalogue = Catalogue(moved.ws, "main")
    moved.commit(2, moved.catalogue.committed()[-1], passes[4:6], 7)
    assert any("in run main: trained more than once in an epoch" in one for one in problems_after_the_move(moved))


def test_half_of_a_job_behind_which_its_run_went_on_is_found(moved: Farm) -> None:
    moved.train(all_passes(moved.job_id))
    moved.catalogue, ours = Catalogue(moved.ws, "main"), moved.job_id
    moved.job_id = new_job_id(ours)
    moved.commit(2, moved.catalogue.committed()[-1], [(moved.job_id, 0, 0, digest(0))], 1)
    assert any("in run main: only 5 of 18 row passes were trained" in one for one in problems_after_the_move(moved))


def test_a_row_that_the_run_before_held_out_and_trained_is_found(moved: Farm) -> None:
    moved.train(all_passes(moved.job_id))
    moved.catalogue = Catalogue(moved.ws, "main")
    moved.commit(2, moved.catalogue.committed()[-1], [(moved.job_id, 3, 0, digest(3))], 6)
    assert any("in run main: held out, yet trained: 1 rows (first: 3)" in one for one in problems_after_the_move(moved))
