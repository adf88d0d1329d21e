"""`dropforge ask`: one question to the model that is served, the answer as it comes. Beside the arrows: the CLI.

Reads    status/deployment.json, checkpoints/<run>/; POST /v1/chat/completions of the server, streamed for a person
Writes   stdout
Errors   ServiceUnavailable and its family when the server does not answer or refuses; NotFoundError for a checkpoint
         that the server does not have, saying what became of it
"""

import glob
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any  # Any: chunks of an answer are JSON

import click

from core.checkpoints import Catalogue
from core.commands.invocation import common_options, current
from core.errors import CheckpointError, NotFoundError, UsageError
from core.hosts import load_hosts, serving_url
from core.paths import Workspace, display_name, escape_of
from core.status import read_status

if TYPE_CHECKING:
    from core.services import ServiceClient

_PATH = "/v1/chat/completions"


@click.command("ask")
@click.argument("prompt")
@click.option("--checkpoint", metavar="ID", help="Ask this checkpoint instead of the one serving.")
@click.option("--compare", nargs=2, metavar="A B", help="Ask these two checkpoints, side by side.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@common_options
def ask_command(
    prompt: str, checkpoint: str | None, compare: tuple[str, str] | None, max_tokens: int, temperature: float
) -> None:
    """Ask the served model; the checkpoint that answered is named on stderr."""
    from core.services import ServiceClient  # loads requests: not for --help

    if checkpoint is not None and compare:
        raise UsageError("--checkpoint and --compare exclude each other", fix="--compare A B names both")
    workspace = current().workspace()
    url = _url(workspace)
    body = {
        "model": _full_id(workspace, checkpoint) if checkpoint else "dropforge",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    if compare:
        _compare(workspace, url, compare, body)
        return
    with ServiceClient("inference", url, max_retries=1) as client, _known_checkpoint(workspace, checkpoint):
        if current().as_json:
            answer = client.post(_PATH, body, repeatable=True).json
            _name_a_stranger(workspace, url, answer.get("system_fingerprint"))
            current().show(answer, lambda: None)
        else:
            _stream(client, body, lambda answering: _name_a_stranger(workspace, url, answering))


def _compare(workspace: Workspace, url: str, wanted: tuple[str, str], body: dict[str, Any]) -> None:
    from core.commands.ask_two import both_whole, show_both

    names = [_full_id(workspace, name) for name in wanted]

    def explained(name: str) -> AbstractContextManager[None]:
        return _known_checkpoint(workspace, name)

    if current().as_json:
        current().show(both_whole(url, names, body, explained), lambda: None)
    else:
        show_both(url, names, body, _harmless, explained)


def _full_id(workspace: Workspace, wanted: str) -> str:
    """The id that a step or the start of an id stands for; the server knows nothing shorter."""
    try:
        return Catalogue(workspace, current().settings(workspace).run).get(wanted).id
    except (NotFoundError, CheckpointError):
        return wanted  # the server may keep what training has removed, or be another machine's


@contextmanager
def _known_checkpoint(workspace: Workspace, checkpoint: str | None) -> Iterator[None]:
    """Say of a checkpoint that the server does not have what became of it: never committed, removed, not published."""
    from core.services import ServiceHttpError

    try:
        yield
    except ServiceHttpError as error:
        if checkpoint is None or error.status != 404:
            raise
        found = Catalogue(workspace, current().settings(workspace).run).get(checkpoint)
        raise NotFoundError(
            f"checkpoint {found.id} is committed, but the server does not have it",
            where=error.where,
            fix=f"only what was published can be asked: dropforge promote {found.id} publishes it, and it serves then",
        ) from error


def _url(workspace: Workspace) -> str:
    """Where the running daemon hears the server answer, however it was started; else what is configured."""
    heard = read_status(workspace.status_file("deployment.json")) or {}
    return str(heard["url"]) if heard.get("ok") else serving_url(workspace, current().settings(workspace))


def _name_a_stranger(workspace: Workspace, url: str, answering: object) -> None:
    """Say on stderr, before the answer, that the server is not this root's: a port is held by whoever came first."""
    hosts = load_hosts(workspace)
    if hosts is not None and hosts.local.role == "inference":
        return  # what is served here was trained on another machine
    runs = [folder.name for folder in workspace.checkpoints_dir.glob("[!.]*") if folder.is_dir()]
    try:
        committed = {m["id"] for run in runs for m in Catalogue(workspace, run).manifests()}
    except CheckpointError:
        return  # a broken chain is for `dropforge verify` to tell
    undone = workspace.undone_dir.glob(f"*-{glob.escape(str(answering))}-*")
    if answering in committed or any(undone):
        return
    why = f"checkpoint {answering} is none of this root's" if committed else "this root has never run (dropforge up)"
    click.echo(f"note: another root's server answers at {url}: {display_name(why)}", err=True)


def _stream(client: "ServiceClient", body: dict[str, Any], told: Callable[[object], None]) -> None:
    """Print the pieces as they come. A model's words may hold anything: control characters are shown escaped.

    Args:
        told: called with the checkpoint that answers, before its first word.
    """
    checkpoint = None
    for chunk in client.stream(_PATH, body | {"stream": True}):
        if checkpoint is None and chunk.get("system_fingerprint"):
            told(chunk["system_fingerprint"])
        checkpoint = chunk.get("system_fingerprint") or checkpoint
        for choice in chunk.get("choices", []):
            click.echo(_harmless(choice["delta"].get("content") or ""), nl=False)
    click.echo()
    click.echo(f"[{checkpoint}]", err=True)


def _harmless(text: str) -> str:
    """Keep line breaks and tabs, escape what could steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else escape_of(ord(c)) for c in text)
