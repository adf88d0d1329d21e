import datetime

from core.paths import Workspace
from core.status import age_s, iso_now, read_status, write_status


def test_a_status_file_is_replaced_whole_and_read_back(workspace: Workspace) -> None:
    path = workspace.status_file("daemon.json")
    write_status(path, {"state": "idle"})
    write_status(path, {"state": "paused"})
    assert read_status(path) == {"state": "paused"}


def test_a_missing_or_damaged_status_is_none(workspace: Workspace) -> None:
    path = workspace.status_file("daemon.json")
    assert read_status(path) is None
    path.write_text('{"state": ')
    assert read_status(path) is None


def test_times_are_utc_and_their_age_is_in_seconds() -> None:
    assert iso_now().endswith("Z")
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=90)
    age = age_s(past.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    assert age is not None
    assert 89 < age < 120
    assert age_s(None) is None
    assert age_s("yesterday") is None
