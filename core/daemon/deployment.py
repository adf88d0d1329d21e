"""What the inference server says it serves, polled in a thread (arrow: publisher -> inference server, seen back).

Reads    GET <server>/v1/checkpoints         Writes  status/deployment.json, by the loop's thread only
Units    seconds
Errors   none: an unreachable server is `ok: false` with the reason; `serving` then keeps its last value, since the
         server may well still serve it
"""

import os
import threading
from collections.abc import Callable
from typing import Any  # the server's answer is JSON

from core.daemon.context import Context
from core.errors import StorageError
from core.status import iso_now, read_status, write_status

_EVERY_S = 2.0
_TIMEOUT_S = (1.0, 3.0)
Fetch = Callable[[str], dict[str, Any]]


def fetch(url: str) -> dict[str, Any]:
    """Ask the server. Raises OSError (each requests.RequestException is one), ValueError."""
    import requests  # 0.05 s that the first claim does not wait for: this runs in the poller's thread

    key = os.environ.get("INFERENCE_API_KEY") or os.environ.get("INFERENCE_ADMIN_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = requests.get(f"{url}/v1/checkpoints", headers=headers, timeout=_TIMEOUT_S, allow_redirects=False)
    answer.raise_for_status()
    doc = answer.json()
    if not isinstance(doc, dict):
        raise ValueError("the answer is no JSON object")
    return doc


class DeploymentPoller:
    """Polls in a daemon thread; the loop picks the newest answer up."""

    def __init__(self, url: str, wake: Callable[[], None], *, ask: Fetch = fetch) -> None:
        self.url = url
        self._wake = wake
        self._ask = ask
        self._poke = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._latest: tuple[dict[str, Any] | None, str | None] | None = None
        self._thread = threading.Thread(target=self._run, name="deployment-poller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._poke.set()
        self._thread.join(timeout=sum(_TIMEOUT_S) + 1)

    def poke(self) -> None:
        """Ask again now (something was just published)."""
        self._poke.set()

    def take(self) -> tuple[dict[str, Any] | None, str | None] | None:
        """The newest answer since the last call: (document, None), (None, error), or None when there is none."""
        with self._lock:
            latest, self._latest = self._latest, None
        return latest

    def _run(self) -> None:
        before: object = object()
        while not self._ended.is_set():
            answer = self._once()
            with self._lock:
                self._latest = answer
            if answer != before:
                self._wake()
            before = answer
            self._poke.wait(_EVERY_S)
            self._poke.clear()

    def _once(self) -> tuple[dict[str, Any] | None, str | None]:
        try:
            doc = self._ask(self.url)
            # It serves nothing for a moment; taken at its word it would be sent the base in place of what it loads.
            return (None, "it is still loading what it served last") if doc.get("starting") else (doc, None)
        except (OSError, ValueError) as error:
            return None, _short(error)


class DeploymentView:
    """status/deployment.json and the facts in it."""

    def __init__(self, context: Context, poller: DeploymentPoller) -> None:
        self._path = context.workspace.status_file("deployment.json")
        self._events = context.events
        self._poller = poller
        self._doc: dict[str, Any] = _blank(poller.url) | (read_status(self._path) or {})
        self.ok = False  # until this daemon has heard it itself
        self.asked = False
        self.polls = 0

    @property
    def serving(self) -> str | None:
        """The checkpoint served, or last known to be."""
        return _id(self._doc["serving"])

    @property
    def previous(self) -> str | None:
        return _id(self._doc["previous"])

    @property
    def reached_empty(self) -> bool:
        """The server answers and serves nothing."""
        return self.ok and self.serving is None

    def poke(self) -> None:
        self._poller.poke()

    def tick(self) -> None:
        """Take the newest answer over. Side effects: writes deployment.json when there is one."""
        answer = self._poller.take()
        if answer is None:
            return
        self.polls += 1
        doc, error = answer
        fresh = dict(self._doc) | {"url": self._poller.url, "seen_at": iso_now(), "ok": error is None, "error": error}
        if doc is not None:
            fresh |= {"serving": doc.get("serving"), "previous": doc.get("previous"), "checkpoints": _ids(doc)}
        self._tell(fresh)
        self._doc, self.ok, self.asked = fresh, error is None, True
        try:
            write_status(self._path, fresh)
        except StorageError:  # a view: the next poll writes it again
            return

    def _tell(self, fresh: dict[str, Any]) -> None:
        if fresh["serving"] != self._doc["serving"]:
            self._events.emit("serving", f"the server serves {fresh['serving']}", checkpoint=fresh["serving"])
        if self.asked and fresh["ok"] != self.ok:
            text = "answers" if fresh["ok"] else f"does not answer ({fresh['error']})"
            self._events.emit("server", f"the inference server at {fresh['url']} {text}", ok=fresh["ok"])


def _id(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _blank(url: str) -> dict[str, Any]:
    return {
        "serving": None,
        "previous": None,
        "url": url,
        "seen_at": iso_now(),
        "ok": False,
        "error": None,
        "checkpoints": [],
    }


def _ids(doc: dict[str, Any]) -> list[str]:
    listed = doc.get("checkpoints")
    entries = listed if isinstance(listed, list) else []
    return [str(entry["id"]) if isinstance(entry, dict) and "id" in entry else str(entry) for entry in entries]


def _short(error: Exception) -> str:
    """Why it does not answer; the usual reason in two words, not in the library's three nested ones."""
    text = " ".join(str(error).split())
    return "connection refused" if "Connection refused" in text else f"{type(error).__name__}: {text}"[:200]
