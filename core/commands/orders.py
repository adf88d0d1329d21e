"""Commands that ask the daemon for something by a file in inbox/control/. Beside the arrows: the CLI.

Reads    status/control.json, for --wait; queue/, status/deployment.json
Writes   inbox/control/, never a job and never a checkpoint
Errors   before anything is written: NotFoundError when the named job or checkpoint does not exist, UsageError when its
         state does not allow it; DeadlineError
"""

import time
from collections.abc import Callable, Collection
from typing import Any  # status documents are JSON

import click

from core.checkpoints import Catalogue
from core.commands.invocation import common_options, current
from core.commands.liveness import daemon_runs
from core.commands.output import say
from core.control import command_of, write_command, write_request
from core.errors import DeadlineError, UsageError
from core.paths import WAITING_LANES, Workspace
from core.status import read_status
from core.verdicts import folder_of, job_called, verdict_of

_POLL_S = 0.1
# What to do instead, by the folder a job lies in; a claim that is checked at this moment is the daemon's to answer.
_NO_RETRY = dict.fromkeys(WAITING_LANES, "nothing to do: it waits already") | {
    "active": "nothing to do: it is being trained (dropforge skip takes it out)",
    "done": "nothing to retry: its rows are trained; rows that were added go into a new file",
    "rejected": "drop the mended file again: dropforge submit FILE",
}
# What becomes of a command that no daemon hears: contract section 2.
_WITHOUT_DAEMON = {
    "pause": "the next one starts paused",
    "resume": "and no pause stands any more",
} | dict.fromkeys(("skip", "stop", "checkpoint"), "so there is nothing to do: the next one forgets it")
_WAIT_S = 600.0  # an optimizer step of a large model and a commit fit into it


def _order(command: str, wait: bool, **arguments: object) -> None:
    """Write a bare command; with `wait`, return when the daemon says it has taken effect."""
    workspace = current().workspace()
    alive = daemon_runs(workspace)
    if wait and not alive:
        raise UsageError(f"{command}: no daemon runs in this root", where=str(workspace.root), fix="dropforge up")
    before = _acknowledged(workspace, command).keys()
    write_command(workspace, command, **arguments)
    acknowledged = _wait_for(workspace, command, before) if wait else None
    doc = {"command": command, "acknowledged": acknowledged}
    current().show(doc, lambda: say(_order_line(command, acknowledged, alive)))


def _order_line(command: str, acknowledged: dict[str, Any] | None, alive: bool) -> str:
    if not alive:
        return f"{command}: no daemon runs in this root (dropforge up), {_WITHOUT_DAEMON[command]}"
    if acknowledged is None:
        return f"{command}: asked for; the daemon obeys after the current optimizer step"
    place = f" at step {acknowledged['step']}" if acknowledged.get("step") is not None else ""
    commit = f", checkpoint {acknowledged['checkpoint']}" if acknowledged.get("checkpoint") else ""
    note = acknowledged.get("error") or acknowledged.get("note")
    return f"{command}: {note}" if note else f"{command}: done{place}{commit}"


def _acknowledged(workspace: Workspace, command: str) -> dict[str, dict[str, Any]]:
    """What the daemon said about commands of this name, by when it saw them."""
    doc = read_status(workspace.status_file("control.json")) or {}
    entries = [*doc.get("recent", []), {key: value for key, value in doc.items() if key != "recent"}]
    return {str(entry["seen_at"]): entry for entry in entries if entry.get("command") == command}


def _wait_for(workspace: Workspace, command: str, before: Collection[str]) -> dict[str, Any]:
    """Poll control.json until a command seen after those of `before` has taken effect. Raises DeadlineError."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        for seen_at, entry in _acknowledged(workspace, command).items():
            if seen_at not in before and entry.get("effective_at"):
                return entry
        time.sleep(_POLL_S)
    raise DeadlineError(
        f"{command} was not obeyed within {_WAIT_S:g} s", fix="dropforge status says whether the daemon runs"
    )


def request(verb: str, wanted: str | None, **extra: str | bool) -> None:
    """Write a request file and say where."""
    workspace = current().workspace()
    arguments = extra if wanted is None else {"id": wanted, **extra}
    name = write_request(workspace, verb, **arguments)
    doc = {"request": verb, "file": f"inbox/control/{name}", **arguments}
    heard = "dropforge status shows when" if daemon_runs(workspace) else "done when a daemon runs (dropforge up)"
    current().show(doc, lambda: say(f"{verb} {wanted or ''}".rstrip() + f": asked for; {heard}"))


def _checkpoint_id(wanted: str) -> str:
    workspace = current().workspace()
    return Catalogue(workspace, current().settings(workspace).run).get(wanted).id


def _job_to_retry(wanted: str) -> str:
    """The job's id. Raises NotFoundError, UsageError when it is in a state that knows no retry."""
    workspace = current().workspace()
    job_id = job_called(workspace, wanted)
    fix = _NO_RETRY.get(_lane_of(workspace, job_id))
    if fix is not None:
        raise UsageError(
            f"job {job_id} is {verdict_of(workspace, job_id)['state']}: retry takes failed and held", fix=fix
        )
    return job_id


def _job_to_cancel(wanted: str) -> str:
    """The job's id. Raises NotFoundError, UsageError when it has ended."""
    workspace = current().workspace()
    job_id = job_called(workspace, wanted)
    state = verdict_of(workspace, job_id)["state"]
    if state not in ("queued", "active"):
        fix = f"nothing to do: dropforge jobs {job_id} tells how it ended"
        raise UsageError(f"job {job_id} has ended ({state}): cancel takes waiting and active jobs", fix=fix)
    return job_id


def _lane_of(workspace: Workspace, job_id: str) -> str:
    return folder_of(workspace, job_id).parent.name


wait_option = click.option("--wait", is_flag=True, help="Return when it has taken effect.")
reason_option = click.option("--reason", metavar="R", default="", help="Why, for status and logs.")


@click.command("pause")
@reason_option
@click.option("--release-gpu", is_flag=True, help="Unload the model too, so that the GPU's memory is free.")
@wait_option
@common_options
def pause_command(reason: str, release_gpu: bool, wait: bool) -> None:
    """Pause training after the current optimizer step; files are still taken in."""
    _order("pause", wait, reason=reason, release_gpu=release_gpu)


@click.command("resume")
@wait_option
@common_options
def resume_command(wait: bool) -> None:
    """Go on after a pause."""
    _take_pause_back(current().workspace())
    _order("resume", wait)


def _take_pause_back(workspace: Workspace) -> None:
    """Delete a standing pause: it would outlive an order that no daemon is there to hear."""
    for path in workspace.control_dir.glob("*"):
        if command_of(path.name) == "pause" and not path.is_dir():
            path.unlink(missing_ok=True)


@click.command("skip")
@reason_option
@wait_option
@common_options
def skip_command(reason: str, wait: bool) -> None:
    """Send the active job to failed/ and take its training back."""
    _order("skip", wait, reason=reason)


@click.command("stop")
@reason_option
@wait_option
@common_options
def stop_command(reason: str, wait: bool) -> None:
    """Commit a checkpoint and end the daemon."""
    _order("stop", wait, reason=reason)


@click.command("checkpoint")
@wait_option
@common_options
def checkpoint_command(wait: bool) -> None:
    """Commit a checkpoint now."""
    _order("checkpoint", wait)


def _request_command(verb: str, help_text: str, argument: str, find: Callable[[str], str]) -> click.Command:
    @click.command(verb, help=help_text)
    @click.argument("wanted", metavar=argument)
    @common_options
    def command(wanted: str) -> None:
        request(verb, find(wanted))

    return command


retry_command = _request_command("retry", "Queue a failed or held job again, under its id.", "JOB_ID", _job_to_retry)
cancel_command = _request_command(
    "cancel",
    "Take a job out of the queue; one in training is skipped, and its training taken back.",
    "JOB_ID",
    _job_to_cancel,
)
promote_command = _request_command(
    "promote", "Publish a checkpoint whatever the judge said (its gate still decides).", "ID", _checkpoint_id
)
rewind_command = _request_command(
    "rewind", "Take training back to a checkpoint; later jobs are queued again.", "ID", _checkpoint_id
)


@click.command("pin")
@click.argument("wanted", metavar="ID")
@click.option("--off", is_flag=True, help="Let it go again: retention decides.")
@common_options
def pin_command(wanted: str, off: bool) -> None:
    """Keep a checkpoint from being removed."""
    request("pin", _checkpoint_id(wanted), **({"off": True} if off else {}))


@click.command("rollback")
@common_options
def rollback_command() -> None:
    """Serve the previously served checkpoint again; training is not touched."""
    deployment = read_status(current().workspace().status_file("deployment.json"))
    if deployment is not None and deployment.get("ok") and not deployment.get("previous"):
        serving = deployment.get("serving") or "nothing"
        raise UsageError(f"nothing was served before {serving}: no way back", fix="dropforge promote ID")
    request("rollback", None)
