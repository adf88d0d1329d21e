"""`python -m inference.publish ID | --rollback`: bring a checkpoint to the serving host and into service (checkpoints
-> inference server).

Reads    checkpoints/<run>/, evaluations/<id>/samples.jsonl, config/hosts.json
Writes   incoming/ on the serving host by rsync; checkpoints/<run>/evaluations/<id>/deploy.json
Errors   exit 0 served and verified by a real answer · 5 the gate refused it · 4 storage · 3 never · 2 configuration · 1
         anything else
Effects  sends, then asks the server to verify, load, gate and swap: the server alone decides
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # deploy.json and manifests are JSON documents

from core.atomic import sha256_file, write_json
from core.checkpoints import MANIFEST_FILE, Catalogue, Checkpoint
from core.daemon.pid_manager import die_with_parent
from core.errors import CheckpointError, DropforgeError, GateFailedError, StorageError
from core.hosts import load_hosts, serving_url
from core.logs import setup_logging
from core.paths import Workspace, find_root
from core.services import ServiceClient, ServiceHttpError, ServiceUnavailable
from core.settings import Settings, load_settings
from core.status import iso_now
from inference.canaries import canaries_of
from inference.transport import Target, TransferError, require_tools, send

logger = logging.getLogger("inference.publish")

_TRIES = 4
_FIRST_PAUSE_S = 0.5
_RELOAD_TIMEOUT_S = 900.0


class Publisher:
    """One deployment from a root to its serving host."""

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        """Raises ConfigError for a bad hosts.json."""
        self._workspace = workspace
        self._run = settings.run
        self.target, self.url = where_it_serves(workspace, settings)
        self._admin_key = os.environ.get("INFERENCE_ADMIN_KEY") or os.environ.get("INFERENCE_API_KEY")

    def publish(self, wanted: str) -> dict[str, Any]:
        """Send, reload, verify. Returns the document of deploy.json, which is written in every case.

        Raises:
            GateFailedError: the server refused it. StorageError, TransferError, ServiceUnavailable, CheckpointError.
        """
        catalogue = Catalogue(self._workspace, self._run)
        checkpoint = catalogue.get(wanted)
        doc: dict[str, Any] = {"schema": "deploy.v1", "id": checkpoint.id, "url": self.url, "started_at": iso_now()}
        doc |= {"ok": False, "gate_failed": False, "error": None, "seconds": {}}
        began = time.perf_counter()
        try:
            self._publish(catalogue, checkpoint, doc)
            doc["ok"] = True
        except DropforgeError as error:
            doc |= {"error": " ".join(str(error).split()), "gate_failed": isinstance(error, GateFailedError)}
            raise
        finally:
            doc["seconds"]["total"] = round(time.perf_counter() - began, 3)
            doc["finished_at"] = iso_now()
            self._write(checkpoint.id, doc)
        return doc

    def _publish(self, catalogue: Catalogue, checkpoint: Checkpoint, doc: dict[str, Any]) -> None:
        require_tools(self.target)
        problems = catalogue.verify(checkpoint, training=False)
        if problems:
            raise CheckpointError(problems[0], where=checkpoint.id, fix="dropforge verify; publish another checkpoint")
        clock = time.perf_counter()
        body = {"id": checkpoint.id, "manifest_sha256": sha256_file(checkpoint.manifest_file)}
        base = _base_of(catalogue, checkpoint)
        if base is not None:
            body["base_manifest_sha256"] = sha256_file(base.manifest_file)
        canaries = canaries_of(self._workspace.evaluation_dir(self._run, checkpoint.id))
        with ServiceClient("inference", self.url, api_key=self._admin_key) as client:
            there = client.get("/v1/checkpoints").json
            known = [row["id"] for row in there["checkpoints"] if row["state"] != "bad"]
            missing = _missing(there, checkpoint, base)
            _require_room(there.get("free_bytes"), missing, self.target)
            for attempt in range(_TRIES):
                try:
                    # a base that is there already is sent only when something there proves to be damaged
                    self._send_with_back_off(checkpoint, base if attempt or base in missing else None, known)
                except StorageError:
                    self._discard_half(client, body)
                    raise
                doc["seconds"]["transfer"] = round(time.perf_counter() - clock, 3)
                try:
                    answer = self._reload(client, {**body, "canaries": canaries})
                    break
                except ServiceHttpError as error:
                    if _error_code(error) != "damaged" or attempt == _TRIES - 1:
                        raise _refusal(error, checkpoint.id) from error
                    logger.warning("the transfer was damaged, sending again: %s", error.message)
            doc |= {"previous": answer["previous"], "gate": answer["gate"], "changed": answer["changed"]}
            doc["seconds"] |= {f"server_{name}": value for name, value in answer["seconds"].items()}
            self._verify(client, checkpoint.id, doc)

    def _send_with_back_off(self, checkpoint: Checkpoint, base: Checkpoint | None, known: Sequence[str]) -> None:
        for attempt in range(_TRIES):
            try:
                if base is not None:
                    folder = f"base-{base.manifest['base']['sha256']}"
                    self._send(base, folder, [f"base/{base.manifest['base']['sha256']}", base.id])
                self._send(checkpoint, checkpoint.id, [*known[-1:], "current"])
            except TransferError as error:
                if attempt == _TRIES - 1:
                    raise
                logger.warning("transfer failed, trying again: %s", error)
                time.sleep(_FIRST_PAUSE_S * 2**attempt)
            else:
                return

    def _discard_half(self, client: ServiceClient, body: dict[str, Any]) -> None:
        """Half a checkpoint must not keep a full disk full: the server removes what it finds to be not whole."""
        try:
            self._reload(client, body)
        except DropforgeError as error:
            logger.warning("what had arrived is removed: %s", error)

    def _send(self, checkpoint: Checkpoint, name: str, link_to: Sequence[str]) -> None:
        files = [*sorted(checkpoint.manifest["files"]), MANIFEST_FILE]
        send(checkpoint.folder, files, self.target, name, link_to)

    def _reload(self, client: ServiceClient, body: dict[str, Any]) -> dict[str, Any]:
        return client.post("/admin/reload", body, repeatable=True, timeout_s=_RELOAD_TIMEOUT_S).json

    def _verify(self, client: ServiceClient, checkpoint_id: str, doc: dict[str, Any]) -> None:
        """Ask the served model a question over the public way; its answer must name the checkpoint."""
        clock = time.perf_counter()
        body = {
            "model": "dropforge",
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 8,
            "temperature": 0,
        }
        answer = client.post("/v1/chat/completions", body, repeatable=True)
        named = answer.headers.get("X-Dropforge-Checkpoint")
        if named != checkpoint_id or answer.json.get("system_fingerprint") != checkpoint_id:
            raise GateFailedError(f"the server answers as {named}, not as {checkpoint_id}", where=self.url)
        doc["seconds"]["first_answer"] = round(time.perf_counter() - clock, 3)
        doc["answer"] = answer.json["choices"][0]["message"]["content"]

    def rollback(self) -> dict[str, Any]:
        """Serve the previous checkpoint again. Returns deploy.json's document of the one that serves now."""
        with ServiceClient("inference", self.url, api_key=self._admin_key) as client:
            try:
                answer = client.post("/admin/rollback", {}).json
            except ServiceHttpError as error:
                raise _refusal(error, "rollback") from error
            doc: dict[str, Any] = {"schema": "deploy.v1", "id": answer["id"], "url": self.url, "started_at": iso_now()}
            doc |= {"ok": True, "error": None, "seconds": {}, "previous": answer["previous"], "rollback": True}
            self._verify(client, answer["id"], doc)
        doc["finished_at"] = iso_now()
        self._write(answer["id"], doc)
        return doc

    def _write(self, checkpoint_id: str, doc: dict[str, Any]) -> None:
        folder = self._workspace.evaluation_dir(self._run, checkpoint_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{error.strerror}", where=str(folder)) from error
        write_json(folder / "deploy.json", doc)


def where_it_serves(workspace: Workspace, settings: Settings) -> tuple[Target, str]:
    """The folder to send to and the URL to call: hosts.json's serving host, else this one. Raises ConfigError."""
    hosts, url = load_hosts(workspace), serving_url(workspace, settings)
    here = str(workspace.resolve(settings.inference.models_dir))
    serving = hosts.serving() if hosts is not None else None
    if hosts is None or serving is None or serving.id == hosts.local_id:
        return Target(here, None), url
    return Target(serving.models_dir or here, serving), url


def _base_of(catalogue: Catalogue, checkpoint: Checkpoint) -> Checkpoint | None:
    """The base a LoRA checkpoint needs on the serving host; None for full weights."""
    if "adapter_model.safetensors" not in checkpoint.manifest["files"]:
        return None
    base = catalogue.base()
    if base is None or base.manifest["base"]["sha256"] != checkpoint.manifest["base"]["sha256"]:
        raise CheckpointError(
            "the base of this adapter is not in the run", where=checkpoint.id, fix="keep checkpoint-0"
        )
    return base


def _missing(there: Mapping[str, Any], checkpoint: Checkpoint, base: Checkpoint | None) -> list[Checkpoint]:
    """Which of the two the serving host does not have, going by GET /v1/checkpoints."""
    known = {row["id"] for row in there["checkpoints"] if row["state"] != "bad"}
    missing = [] if checkpoint.id in known else [checkpoint]
    if base is not None and base.manifest["base"]["sha256"] not in there.get("bases", ()):
        missing.append(base)
    return missing


def _require_room(free_bytes: int | None, new: Sequence[Checkpoint], target: Target) -> None:
    """Refuse before anything is sent when it cannot fit. `free_bytes`: None from a server that does not say.

    Raises:
        StorageError: with both sizes.
    """
    need = sum(entry["bytes"] for checkpoint in new for entry in checkpoint.manifest["files"].values())
    if free_bytes is not None and free_bytes < need:
        raise StorageError(
            f"the serving host has {free_bytes / 1e6:.1f} MB free, this checkpoint needs {need / 1e6:.1f} MB",
            where=target.models_dir,
            fix="free space there",
        )


def _error_code(error: ServiceHttpError) -> str:
    detail = (error.body or {}).get("error")
    return str(detail.get("code")) if isinstance(detail, dict) else ""


def _refusal(error: ServiceHttpError, where: str) -> DropforgeError:
    """An answer of "no" from the server is exit 5; a full disk there is exit 4."""
    if error.status == 409:
        return GateFailedError(error.message, where=where)
    return StorageError(error.message, where=where) if _error_code(error) == "storage" else error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one deployment. Returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(
        prog="python -m inference.publish", description="Publish a checkpoint or roll back."
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("id", nargs="?", metavar="ID")
    what.add_argument("--rollback", action="store_true")
    options = parser.parse_args(argv)
    try:
        workspace = Workspace(find_root(options.root))
        settings = load_settings(workspace, options.overrides)
        setup_logging(workspace, "publish")
        publisher = Publisher(workspace, settings)
        doc = publisher.rollback() if options.rollback else publisher.publish(options.id)
    except DropforgeError as error:
        logger.error("%s", error)
        return 1 if isinstance(error, ServiceUnavailable) else error.exit_code
    logger.info("serving %s (before: %s)", doc["id"], doc.get("previous"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
