import json
from pathlib import Path

import jsonschema
import pytest

from core.daemon.lineage_view import LineageView
from core.job_queue import new_job_id, new_verdict
from core.paths import Workspace, schema_file


def lay_job(workspace: Workspace, place: Path, state: str, sidecar: str | None, last: str | None) -> dict[str, object]:
    job_id = new_job_id(last)
    folder = place / job_id
    folder.mkdir()
    (folder / "a.jsonl").write_text("x")
    if sidecar is not None:
        (folder / "a.jsonl.meta.json").write_text(sidecar)
    verdict = new_verdict(job_id=job_id, state=state, code="bad_json" if state == "rejected" else "ok", rows=3)
    (folder / "verdict.json").write_text(json.dumps(verdict))
    return verdict


@pytest.fixture
def document(workspace: Workspace) -> dict[str, dict[str, dict[str, object]]]:
    made_by = '{"generator_id": "syllo_local", "generator_version": "2"}'
    done, rejected = workspace.lane("done"), workspace.rejected_dir
    verdicts = []
    for place, state, sidecar in (
        (done, "done", made_by),
        (rejected, "rejected", made_by),
        (done, "done", None),
        (rejected, "rejected", "{"),
    ):
        last = str(verdicts[-1]["job_id"]) if verdicts else None
        verdicts.append(lay_job(workspace, place, state, sidecar, last))
    view = LineageView(workspace)
    view.add(verdicts)
    view.add(verdicts[:1])  # told twice, counted once
    return json.loads(workspace.status_file("data_lineage.json").read_text())  # type: ignore[no-any-return]


def test_files_are_counted_by_the_generator_their_sidecar_names(
    document: dict[str, dict[str, dict[str, object]]],
) -> None:
    made = document["generators"]["syllo_local@2"]
    assert (made["files"], made["passed"], made["failed"], made["rows"]) == (2, 1, 1, 6)
    assert made["fail_rate"] == 0.5
    assert document["generators"]["manual@0"]["passed"] == 1


def test_a_sidecar_that_cannot_be_read_counts_as_unknown(document: dict[str, dict[str, dict[str, object]]]) -> None:
    assert document["generators"]["unknown@0"]["failed"] == 1
    assert document["summary"]["files"] == 4


def test_the_document_fits_its_schema(document: dict[str, dict[str, dict[str, object]]]) -> None:
    jsonschema.validate(document, json.loads(schema_file("data_lineage").read_text()))
