"""The index of rows on the disk: plain, small, made again when it is lost, and it finds what is alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from audit_kit import audit, found, make_farm, tell
from core.validation import row_index, sketches
from core.validation.row_index import RowIndex
from core.verdicts import audit_file, audit_of, whole_verdict
from gate_kit import Gates, lines, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def farm(tmp_path: Path, tokenizer: Path) -> Gates:
    return make_farm(tmp_path, tokenizer)


def test_a_lost_or_damaged_index_is_made_again_and_finds_the_same(farm: Gates) -> None:
    farm.queue(lines(tell(i) for i in range(20)), lane="done")
    job = farm.queue(lines([tell(1), tell(2, "tonight")]))
    audit(farm)
    expected = audit_of(farm.workspace, job.job_id)
    assert expected is not None
    folder = farm.workspace.row_index_dir
    shutil.rmtree(folder)
    audit(farm)
    again = audit_of(farm.workspace, job.job_id)
    assert again is not None and again["facts"] == expected["facts"]
    first = sorted(folder.iterdir())[0]
    for name, damage in (("owners.npy", b"\x93NUMPY rubbish"), ("head.json", b"{"), ("keys.npy", b"")):
        (first / "000000" / name).write_bytes(damage)
        assert RowIndex(folder).damaged == [first]
        audit(farm)
        assert RowIndex(folder).damaged == [] and found(farm, job)["seen_before"] == 1


def test_what_lies_in_the_index_and_is_none_of_ours_does_not_stop_the_child(farm: Gates, tmp_path: Path) -> None:
    job = farm.queue(lines(tell(i) for i in range(3)))
    audit(farm)
    folder, other = farm.workspace.row_index_dir, tmp_path / "other"
    other.mkdir()
    (folder / "stray").touch()
    (folder / ".DS_Store").touch()
    (folder / ".link").symlink_to(other, target_is_directory=True)
    audit(farm)
    assert [path.name for path in folder.iterdir()] == [job.job_id] and other.is_dir()


def test_an_index_whose_jobs_are_no_texts_is_damaged(farm: Gates) -> None:
    job = farm.queue(lines(tell(i) for i in range(3)))
    audit(farm)
    head = farm.workspace.row_index_dir / job.job_id / "000000" / "head.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"jobs": [5]}))
    assert len(RowIndex(farm.workspace.row_index_dir).damaged) == 1


@pytest.mark.parametrize("doc", ["{}", "[]", '{"issues": "x", "facts": {}}', '{"issues": [5], "facts": {}}'])
def test_an_audit_of_another_shape_counts_as_none(farm: Gates, doc: str) -> None:
    job = farm.queue(lines([tell(1)]))
    audit(farm)
    assert whole_verdict(farm.workspace, job.job_id)["audit"]
    audit_file(farm.workspace, job.job_id).write_text(doc)
    assert audit_of(farm.workspace, job.job_id) is None
    assert "audit" not in whole_verdict(farm.workspace, job.job_id)


def test_an_index_that_points_outside_of_itself_is_damaged(farm: Gates) -> None:
    farm.queue(lines(tell(i) for i in range(20)), lane="done")
    audit(farm)
    part = next(farm.workspace.row_index_dir.glob("*/*"))
    owners = np.load(part / "owners.npy")
    owners[5] = 1_000_000
    np.save(part / "owners.npy", owners)
    assert len(RowIndex(farm.workspace.row_index_dir).damaged) == 1


def test_the_index_is_plain_arrays_and_small(farm: Gates) -> None:
    farm.queue(lines(tell(i) for i in range(200)), lane="done")
    audit(farm)
    files = [path for path in farm.workspace.row_index_dir.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".npy", ".json"}
    assert all(np.load(path, allow_pickle=False).dtype.kind == "u" for path in files if path.suffix == ".npy")
    assert sum(path.stat().st_size for path in files) / 200 < 500, "bytes a row"


def test_many_small_files_are_put_together_and_still_found(farm: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_index, "_MANY_SMALL", 5)
    for i in range(12):
        farm.queue(lines([tell(i)]), name=f"f{i}.jsonl", lane="done")
    audit(farm)
    assert len(list(farm.workspace.row_index_dir.iterdir())) == 1
    job = farm.queue(lines([tell(i, "tonight") for i in range(12)]))
    audit(farm)
    assert found(farm, job)["near_before"] == 12


def test_rows_alike_across_the_parts_of_one_file_are_found(farm: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.validation.duplicates.PART_ROWS", 16)
    job = farm.queue(lines([*(tell(i) for i in range(40)), tell(2, "tonight"), tell(39, "tonight")]))
    audit(farm)
    assert found(farm, job) == {"seen_before": 0, "near_before": 0, "near_in_file": 2}
    assert len(list((farm.workspace.row_index_dir / job.job_id).iterdir())) == 3


def test_alike_means_what_the_signatures_say() -> None:
    sketch = sketches.Sketcher()
    words = [f"w{i}" for i in range(102)]
    changed = [*words[:101], "other"]
    halves = [*words[:51], *(f"v{i}" for i in range(51))]
    one, near, far = (sketch({"text": " ".join(text)}) for text in (words, changed, halves))
    assert (one == near).mean() > 0.9 and (one == far).mean() < 0.6


def test_texts_without_words_are_compared_by_their_characters() -> None:
    sketch = sketches.Sketcher()
    text = "".join(chr(0x4E00 + (i * 7919) % 2_000) for i in range(200))
    other = "".join(chr(0x4E00 + (i * 104_729) % 2_000) for i in range(200))
    one, near, far = (sketch({"text": shown}) for shown in (text, text[:-1] + "\u3042", other))
    assert (one == near).mean() >= sketches.ALIKE > (one == far).mean()
