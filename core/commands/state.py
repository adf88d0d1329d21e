"""Commands that say what is going on, from status/, queue/ and the logs. Beside the arrows: the CLI.

Reads    status/*.json, queue/, inbox/rejected/, status/logs/          Writes  stdout only
Errors   NotFoundError for an unknown job or log
Effects  none: asking never touches a process, and no torch is loaded
"""

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # status documents and verdicts are JSON

import click

from core.commands.invocation import common_options, current
from core.commands.liveness import daemon_gone, daemon_runs
from core.commands.output import coloured, facts, on_terminal, say, shortened, table
from core.commands.verdict_view import show_all
from core.daemon.candidates import Scan, describe, scan
from core.errors import NotFoundError
from core.formats import SUFFIXES
from core.job_queue import JobQueue
from core.paths import Workspace, display_name
from core.status import STALE_AFTER_S, age_s, read_status
from core.verdicts import all_verdicts, jobs_called, whole_verdict

_PAUSED = "inbox/control/pause is there (dropforge resume)"  # when no other reason was given
_REFRESH_S = 1.0
_FOLLOW_S = 0.2
_TOLD = 3  # answers to requests that status repeats


def _status(workspace: Workspace) -> dict[str, Any]:
    def read(name: str) -> dict[str, Any] | None:
        return read_status(workspace.status_file(name))

    return {
        "daemon": read("daemon.json"),
        "training": read("training_status.json"),
        "deployment": read("deployment.json"),
    }


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@common_options
def status_command(watch: bool) -> None:
    """Say what the daemon, the trainer and the server are doing."""
    workspace = current().workspace()
    if workspace.status_dir.is_dir():
        os.listdir(workspace.status_dir)  # who may not look is told so, not that nothing was started
    _answer_status(workspace)
    while watch:
        time.sleep(_REFRESH_S)
        if on_terminal():
            click.clear()
        _answer_status(workspace)


def _answer_status(workspace: Workspace) -> None:
    doc = _status(workspace)
    current().show(doc, lambda: _show_status(workspace, doc))


def _show_status(workspace: Workspace, doc: dict[str, Any]) -> None:
    daemon, training, deployment = doc["daemon"] or {}, doc["training"] or {}, doc["deployment"] or {}
    ended = bool(daemon) and (daemon.get("state") == "stopped" or daemon_gone(daemon))
    looked_at = daemon_runs(workspace) or not workspace.inbox.is_dir()
    lying = None if looked_at else scan(workspace, SUFFIXES)
    facts(
        [
            ("root", workspace.root),
            ("daemon", _daemon_line(daemon)),
            ("why", daemon.get("reason") or (_PAUSED if daemon.get("state") == "paused" else None)),
            *_inbox_facts(lying),
            ("queue", _queue_line(workspace, daemon.get("queue") or {})),
            ("training", _training_line(training, daemon)),
            *([("judging", daemon["judging"])] if daemon.get("judging") and not ended else []),
            ("serving", _serving_line(deployment, stopped=ended)),
        ]
    )
    if daemon.get("config_error"):
        say(f"config   not taken, the last good one holds: {daemon['config_error']}")
    for waiting in (daemon.get("inbox") or {}).get("waiting") or []:
        say(f"waits    {waiting['file']}: for {waiting['for']}, since {waiting['since'][:19]}")
    for ignored in describe(lying.ignored, workspace) if lying else daemon.get("ignored") or []:
        say(f"ignored  {_ignored_line(ignored)}")
    for name, child in ({} if ended else daemon.get("children") or {}).items():
        pid = f" (pid {child['pid']})" if child.get("pid") else ""
        again = f", restarted {child['restarts']} times" if child.get("restarts") else ""
        why = f": {child['reason']}" if child.get("reason") else ""
        say(f"child    {name} {child.get('state')}{pid}{again}{why}")
    for answer in _answers(workspace):
        say(f"asked    {answer}")


def _inbox_facts(lying: Scan | None) -> list[tuple[str, object]]:
    """What lies in the inbox and nobody looks at, so that an empty queue does not look like nothing to do."""
    count = len(lying.candidates) if lying else 0
    words = "files wait" if count != 1 else "file waits"
    return [("inbox", f"{count} {words} for a daemon (dropforge up)")] if count else []


def _queue_line(workspace: Workspace, lanes: dict[str, int]) -> str:
    counts = [f"{lane} {n}" for lane, n in lanes.items() if n]
    refused = JobQueue(workspace).count_rejected()
    return ", ".join(counts + ([f"rejected {refused}"] if refused else [])) or "empty"


def _answers(workspace: Workspace) -> list[str]:
    """The last requests and what came of them, oldest first."""
    doc = read_status(workspace.status_file("control.json")) or {}
    return [_answer_line(entry) for entry in (doc.get("recent") or [])[-_TOLD:]]


def _answer_line(entry: dict[str, Any]) -> str:
    wanted = f" {entry['id']}" if entry.get("id") else ""
    done = "done" if entry.get("effective_at") else "not in effect yet"
    if entry.get("effective_at") and isinstance(entry.get("step"), int):
        done += f" at step {entry['step']}"
    said = entry.get("error") or entry.get("note") or done
    return f"{str(entry.get('seen_at'))[:19]} {entry.get('command')}{wanted}: {said}"


def _ignored_line(ignored: object) -> str:
    if isinstance(ignored, dict):
        return f"{ignored.get('file') or ignored.get('name')}: {ignored.get('reason')}"
    return str(ignored)


def _daemon_line(daemon: dict[str, Any]) -> str:
    if not daemon:
        return "not started in this root (dropforge up)"
    state, age = str(daemon.get("state")), age_s(daemon.get("heartbeat"))
    if daemon_gone(daemon):
        return f"not running: pid {daemon.get('pid')} ended while {state} (dropforge up goes on where it was)"
    if state != "stopped" and age is not None and age > STALE_AFTER_S:
        return f"{state}, but no heartbeat for {age:.0f} s: it is probably dead (dropforge up starts it again)"
    return state if state == "stopped" else f"{state} (pid {daemon.get('pid')})"


def _training_line(training: dict[str, Any], daemon: dict[str, Any]) -> str | None:
    if not training:
        return None
    trainer = ((daemon.get("children") or {}).get("trainer") or {}).get("pid")
    ended = daemon.get("state") == "stopped" or daemon_gone(daemon)
    if not ended and isinstance(trainer, int) and training.get("pid") not in (None, trainer):
        return "starting"  # what stands there was said by the trainer before it
    parts = ["ended with it" if ended and training.get("status") != "stopped" else str(training.get("status"))]
    if training.get("current_file"):
        parts.append(str(training["current_file"]))
    step, total = training.get("current_step"), training.get("total_steps")
    of_job = training.get("job_steps") is not None
    done, last = (training.get("job_step"), training.get("job_steps")) if of_job else (step, total)
    # steps and time left are those of a job: without one, or behind the step, they are what an earlier job left
    known = training.get("current_file") and isinstance(done, int) and isinstance(last, int) and done <= last
    if step is not None:
        parts.append(f"step {done} of {last}" if known else f"step {step}")
    if known and of_job:
        parts[-1] += f" (step {step} of the run)"
    for name, words in (("loss", "loss {:.4g}"), ("tokens_per_sec", "{:,.0f} tokens/s"), ("eta_s", "{:,.0f} s left")):
        value = training.get(name)
        if isinstance(value, int | float) and not ended and (known or name != "eta_s"):
            parts.append(words.format(value))
    return ", ".join(parts)


def _serving_line(deployment: dict[str, Any], *, stopped: bool) -> str | None:
    """What the daemon last saw: while it is stopped nobody looks, and under `up` the server ends with it."""
    if not deployment:
        return None
    if stopped:
        return f"{deployment.get('serving') or 'nothing'} when the daemon stopped"
    if not deployment.get("ok", True):
        return f"{deployment.get('serving') or 'unknown'} (server does not answer: {deployment.get('error')})"
    return f"{deployment.get('serving') or 'nothing yet'} at {deployment.get('url')}"


@click.command("jobs")
@click.argument("wanted", metavar="[JOB_ID|FILE]", required=False)
@common_options
def jobs_command(wanted: str | None) -> None:
    """List every dropped file and what became of it, or tell all about one job (by its id, a part of it, its file)."""
    workspace = current().workspace()
    if wanted is None:
        jobs = all_verdicts(workspace)
    else:
        jobs = [whole_verdict(workspace, job_id) for job_id in jobs_called(workspace, wanted)]
    alone = wanted is not None and len(jobs) == 1
    current().show({"jobs": jobs}, lambda: show_all(jobs[0]) if alone else _show_jobs(jobs))


def _show_jobs(jobs: list[dict[str, Any]]) -> None:
    if not jobs:
        say("no jobs yet: drop a *.jsonl file into inbox/")
        return
    columns = ("job", "file", "state", "code", "rows", "checkpoint", "served")
    keys = ("job_id", "file", "state", "code", "rows", "checkpoint")
    cells = [{**job, "file": shortened(str(job["file"]))} for job in jobs]
    table(columns, [[*(job[key] for key in keys), _yes(job)] for job in cells])


def _yes(job: dict[str, Any]) -> str:
    return "yes" if job.get("served") else ""


@click.command("logs")
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Lines from the end.")
@common_options
def logs_command(name: str | None, follow: bool, lines: int) -> None:
    """Show the logs of every process, or of one (daemon, trainer, inference, ...)."""
    folder = current().workspace().logs_dir
    paths = _log_files(folder, name)
    for line in sorted(_tails(paths, lines), key=_time_of)[-lines:] if lines else []:
        _show_log_line(line)
    if follow:
        for line in _followed(paths, folder, name):
            _show_log_line(line)


def _log_files(folder: Path, name: str | None) -> list[Path]:
    known = sorted(folder.glob("*.jsonl"))
    if name is None:
        return known
    found = [path for path in known if path.stem == name]
    if not found:
        there = ", ".join(path.stem for path in known) or "none yet"
        raise NotFoundError(f"no log called {name!r}", where=str(folder), fix=f"one of: {there}")
    return found


def _tails(paths: list[Path], lines: int) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from deque(file, maxlen=lines)


def _time_of(line: str) -> str:
    return str(_record(line).get("time", ""))


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {"message": line.rstrip("\n")}
    return record if isinstance(record, dict) else {"message": line.rstrip("\n")}


def _show_log_line(line: str) -> None:
    if current().as_json:
        click.echo(line.rstrip("\n"))
        return
    record = _record(line)
    level = str(record.get("level", "info"))
    logger, message = str(record.get("logger", "")), display_name(str(record.get("message", "")))
    mark = {"error": "FAIL", "critical": "FAIL", "warning": "WARN"}.get(level)
    shown = click.style(level, fg="red" if mark == "FAIL" else "yellow") if mark else level
    click.echo(f"{str(record.get('time', ''))[:19]} {shown} {coloured(logger)}: {message}")
    if record.get("exception"):
        click.echo("\n".join(display_name(part) for part in str(record["exception"]).splitlines()))


def _followed(paths: list[Path], folder: Path, name: str | None) -> Iterator[str]:
    """Yield lines as they are written; a rotated or new file is read from its start."""
    places = {path: (path.stat().st_ino, path.stat().st_size) for path in paths}
    while True:
        time.sleep(_FOLLOW_S)
        for path in sorted(folder.glob(f"{name or '*'}.jsonl")):
            inode, offset = places.get(path, (None, 0))
            facts_now = path.stat()
            if inode != facts_now.st_ino or facts_now.st_size < offset:
                offset = 0
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            places[path] = (facts_now.st_ino, offset + len(whole))
            yield from whole.decode("utf-8", "replace").splitlines()
