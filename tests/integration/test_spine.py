"""The whole chain as a user meets it: files in, verdicts, an answer that names its checkpoint."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from curriculum.generators.binary import draw
from farm import Farm

pytestmark = pytest.mark.slow

GOOD = 18


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    problems = draw("leftshift", range(1, 512), range(1, 5), count=count, seed=seed)
    return [{"messages": problem.row(level=4, seed=seed)["messages"]} for problem in problems]


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty files as a person has them: eighteen good, one broken at line 3, one without an assistant."""
    folder = tmp_path_factory.mktemp("drop")
    for number in range(GOOD):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(6 + number, number))
        (folder / f"good-{number:02}.jsonl").write_text(text)
    lines = [json.dumps(row) for row in rows(5, 99)]
    (folder / "broken.jsonl").write_text("\n".join([*lines[:2], '{"messages": [', *lines[2:]]) + "\n")
    (folder / "silent.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n' * 3)
    return folder


def deliver(farm: Farm, folder: Path) -> None:
    """A third each by cp, mv and rsync."""
    for number, source in enumerate(sorted(folder.iterdir())):
        inbox = str(farm.workspace.inbox) + "/"
        copy = shutil.copy(source, folder.parent / source.name)
        way = (["cp", copy, inbox], ["mv", copy, inbox], ["rsync", "-a", copy, inbox])[number % 3]
        subprocess.run(way, check=True)


def test_twenty_files_dropped_by_hand_end_where_they_belong(make_farm: Callable[..., Farm], dropped: Path) -> None:
    farm = make_farm()
    farm.start()
    deliver(farm, dropped)
    farm.wait_until(lambda: farm.ended() == 20, "twenty verdicts", 240)
    done = farm.lane("done")
    assert len(done) == GOOD
    assert all(verdict["code"] == "ok" and verdict["checkpoint"] for verdict in done)
    refused = {verdict["file"]: verdict for verdict in farm.rejected()}
    assert set(refused) == {"broken.jsonl", "silent.jsonl"}
    assert (refused["broken.jsonl"]["code"], refused["broken.jsonl"]["line"]) == ("bad_json", 3)
    assert refused["silent.jsonl"]["line"] == 1
    for verdict in refused.values():
        assert verdict["fix"]
        folder = farm.workspace.rejected_dir / verdict["job_id"]
        assert (folder / verdict["file"]).read_bytes() == (dropped / verdict["file"]).read_bytes()

    farm.wait_until(lambda: farm.serving() and farm.serving() == newest(farm), "the newest checkpoint served", 120)
    the_server_names_the_checkpoint_that_answered(farm)
    lineage_lists_exactly_what_it_saw(farm)

    verified = farm.json("verify")
    assert verified["ok"], verified["problems"]
    assert farm.stop() == 0


def newest(farm: Farm) -> str:
    checkpoints = farm.json("checkpoints")["checkpoints"]
    return str(max(checkpoints, key=lambda manifest: manifest["step"])["id"])


def the_server_names_the_checkpoint_that_answered(farm: Farm) -> None:
    client = openai.OpenAI(base_url=f"{farm.server}/v1", api_key="any")
    question: Any = [{"role": "user", "content": rows(1, 0)[0]["messages"][0]["content"]}]
    raw = client.chat.completions.with_raw_response.create(
        model="dropforge", messages=question, max_tokens=8, temperature=0
    )
    serving = farm.serving()
    assert raw.headers["X-Dropforge-Checkpoint"] == serving
    answer = raw.parse()
    assert answer.system_fingerprint == serving
    stream = client.chat.completions.create(
        model="dropforge", messages=question, max_tokens=8, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == answer.choices[0].message.content
    client.close()


def lineage_lists_exactly_what_it_saw(farm: Farm) -> None:
    head = newest(farm)
    lineage = farm.json("lineage", head)
    assert sorted(entry["file"] for entry in lineage["files"]) == [f"good-{n:02}.jsonl" for n in range(GOOD)]
    assert lineage["served"] == head
    first = farm.json("lineage", lineage["files"][0]["sha256"])
    assert head in first["checkpoints"]


def test_kill_nine_of_everything_in_the_middle_of_a_file_changes_no_bit(make_farm: Callable[..., Farm]) -> None:
    config = {"hyperparams": {"epochs": 12, "batch_size": 4}, "trainer": {"threads": 1, "checkpoint_every_steps": 7}}
    digests = []
    for name, kills in (("calm", 0), ("killed", 3)):
        farm = make_farm(name, **config)
        farm.drop("a.jsonl", rows(30, 1))
        farm.start()
        for kill in range(kills):
            farm.wait_until(lambda mark=20 * (kill + 1): step_of(farm) >= mark, f"step {20 * (kill + 1)}")
            farm.kill()
            farm.start()
        farm.wait_until(lambda: farm.lane("done"), "the file done")
        assert farm.json("verify")["ok"]
        digests.append({name: e["sha256"] for name, e in head_manifest(farm)["files"].items()})
        assert farm.stop() == 0
    assert digests[0] == digests[1]


def test_ctrl_c_commits_what_was_trained_and_the_next_start_goes_on_from_there(make_farm: Callable[..., Farm]) -> None:
    farm = make_farm(hyperparams={"epochs": 12, "batch_size": 4}, trainer={"checkpoint_every_steps": 1000})
    farm.drop("a.jsonl", rows(30, 1))
    farm.start()
    farm.wait_until(lambda: step_of(farm) >= 20, "step 20")
    assert farm.interrupt() == 0
    stopped_at = step_of(farm)
    assert head_manifest(farm)["step"] == stopped_at >= 20
    assert farm.cli("status").stdout.splitlines()[1] == "daemon    stopped"
    farm.start()
    farm.wait_until(lambda: farm.lane("done"), "the file done")
    assert farm.json("verify")["ok"]
    assert farm.stop() == 0


def step_of(farm: Farm) -> int:
    return int((farm.status("training_status.json") or {}).get("current_step") or 0)


def head_manifest(farm: Farm) -> dict[str, Any]:
    manifests = farm.json("checkpoints")["checkpoints"]
    return max(manifests, key=lambda manifest: manifest["step"])  # type: ignore[no-any-return]
