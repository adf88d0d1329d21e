"""The HTTP face of the inference server: routes, keys, error shapes (inference server -> whoever asks).

Reads    requests          Writes  answers; nothing on disk but through Deployer
Errors   every error is {"error": {"message", "type", "param", "code"}}: 4xx for the caller's mistake, 503 with Retry-
         After on overload
Effects  none of its own; torch-free. Prompts and keys are never logged
"""

import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any  # JSON documents

from flask import Flask, Request, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from core.atomic import parse_json
from core.errors import DropforgeError, JsonError, NotFoundError, OverloadedError
from inference import answers, openapi
from inference.answering import Answer, Answering, CallerGoneError, counted
from inference.deploy import Deployer
from inference.error_shapes import RETRY_AFTER_S, error_of, error_response, http_error, known_error, unknown_error
from inference.guard import FailureLimit, HostList, Keys, given_key
from inference.metrics import ServerMetrics
from inference.model_store import CHECKPOINT_ID
from inference.protocol import (
    GenerationRequest,
    RequestError,
    chat_request,
    completion_request,
    refuse_half_characters,
    score_request,
)
from inference.reload_request import reload_request
from inference.scheduler import Scheduler
from inference.slot_table import SERVING_ALIAS, ModelNotLoadedError, SlotTable
from inference.ticket import Piece, PromptScores

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
_PUBLIC = {"/health", "/ready"}
_NO_MODEL = "none"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


@dataclass(slots=True)
class Service:
    """Everything the routes need, built by __main__."""

    scheduler: Scheduler
    table: SlotTable
    deployer: Deployer
    metrics: ServerMetrics
    keys: Keys
    hosts: HostList
    max_in_flight: int
    draining: threading.Event


class InFlight:
    """Counts requests that hold a thread for long, so that /health always finds a free one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self.count = 0

    def enter(self) -> Callable[[], None]:
        """Take a place. Returns what gives it back, harmless when called twice. Raises OverloadedError."""
        with self._lock:
            if self.count >= self._limit:
                raise OverloadedError(f"{self.count} requests are under way", fix="ask again in a few seconds")
            self.count += 1
        left = threading.Lock()

        def leave() -> None:
            if left.acquire(blocking=False):
                with self._lock:
                    self.count -= 1

        return leave


def make_app(service: Service) -> Flask:
    """Build the Flask application."""
    app = Flask("inference", static_folder=None)
    app.json.ensure_ascii = False  # type: ignore[attr-defined]  # Flask's default provider has it
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False  # or //v1/models is answered by the framework's redirect, a page of HTML
    app.before_request(Gatekeeper(service).check)
    app.after_request(lambda response: _dress(response, service))
    app.register_error_handler(DropforgeError, known_error)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unknown_error)
    routes = Routes(service)
    for rule, method, view in routes.table():
        app.add_url_rule(rule, view.__name__, view, methods=[method], provide_automatic_options=False)
    return app


class Gatekeeper:
    """Checks of every request, before its route."""

    def __init__(self, service: Service) -> None:
        self._keys = service.keys
        self._hosts = service.hosts
        self._failures = FailureLimit()

    def check(self) -> Response | None:
        g.request_id = _request_id(request.headers.get("X-Request-ID"))
        host = request.headers.get("Host", "")
        if not self._hosts.allows(host):
            return error_response(
                403, "this server does not answer to that Host", "invalid_request_error", "host_not_allowed"
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self._hosts.same_site(origin, host):
            return error_response(
                403, "pages of other origins may not ask", "invalid_request_error", "origin_not_allowed"
            )
        if request.path in _PUBLIC:
            return None
        key = given_key(request.headers.get("Authorization"), request.headers.get("X-API-Key"))
        if self._keys.allows(key, admin=request.path.startswith("/admin/")):
            return None
        if not self._failures.spend():
            return error_response(429, "too many wrong keys", "rate_limit_error", "rate_limited")
        return error_response(401, "a valid API key is needed", "authentication_error", "invalid_api_key")


class Routes:
    """The views. Each returns a Response or a JSON document."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answering = Answering(service.scheduler, service.table)
        self._in_flight = InFlight(service.max_in_flight)
        self._admin = InFlight(2)

    def table(self) -> list[tuple[str, str, Callable[..., Any]]]:
        return [
            ("/v1/chat/completions", "POST", self.chat_completions),
            ("/v1/completions", "POST", self.completions),
            ("/v1/score", "POST", self.score),
            ("/v1/models", "GET", self.models),
            ("/v1/models/<name>", "GET", self.model),
            ("/v1/checkpoints", "GET", self.checkpoints),
            ("/health", "GET", self.health),
            ("/ready", "GET", self.ready),
            ("/metrics", "GET", self.metrics),
            ("/slots", "GET", self.slots),
            ("/openapi.json", "GET", self.openapi_document),
            ("/admin/reload", "POST", self.reload),
            ("/admin/rollback", "POST", self.rollback),
        ]

    # -- answers --------------------------------------------------------------------------------------------------

    def chat_completions(self) -> Response:
        return self._generate(chat_request(_body(request)))

    def completions(self) -> Response:
        return self._generate(completion_request(_body(request)))

    def _generate(self, asked: GenerationRequest) -> Response:
        leave = self._in_flight.enter()
        try:
            answer = self._answering.generate(asked, self._acquire, _gone_probe(request))
        except BaseException:
            leave()
            raise
        g.checkpoint = answer.slot.id
        shape = answers.Shape(asked, answer)
        if not asked.stream:
            try:
                return jsonify(shape.whole(*_collect(answer)))
            finally:
                leave()
        response = Response(_stream(asked, answer, shape), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(answer.close)
        response.call_on_close(leave)
        return response

    def score(self) -> Response:
        asked = score_request(_body(request))
        leave = self._in_flight.enter()
        try:
            answer = self._answering.score(asked, self._acquire, _gone_probe(request))
            g.checkpoint = answer.slot.id
            _, scores = _collect(answer)
            used = counted(asked, answer.slot)
            return jsonify(answers.score_document(answer, scores[0], used, asked.messages is not None))
        finally:
            leave()

    def _acquire(self, name: str) -> Any:  # a ModelSlot; its module imports torch
        if name != SERVING_ALIAS and not CHECKPOINT_ID.fullmatch(name):
            raise _unknown_model(name)
        for _ in range(2):
            try:
                return self._service.table.acquire(name)
            except ModelNotLoadedError:
                try:
                    self._service.deployer.load_stored(name)
                except NotFoundError as error:
                    raise _unknown_model(name) from error
        raise OverloadedError("the model was dropped again at once", fix="raise inference.max_loaded")

    # -- views ----------------------------------------------------------------------------------------------------

    def models(self) -> Response:
        names = [SERVING_ALIAS] if self._service.table.serving_id else []
        names += self._service.deployer.known_ids()
        return jsonify({"object": "list", "data": [_model_entry(name) for name in names]})

    def model(self, name: str) -> Response:
        known = [*([SERVING_ALIAS] if self._service.table.serving_id else []), *self._service.deployer.known_ids()]
        if name not in known:
            raise _unknown_model(name)
        return jsonify(_model_entry(name))

    def checkpoints(self) -> Response:
        return jsonify(self._service.deployer.listing())

    def health(self) -> Response:
        return jsonify({"status": "ok"})

    def ready(self) -> Response:
        reason = self._not_ready()
        if reason is None:
            return jsonify({"status": "ready", "serving": self._service.table.serving_id})
        response = jsonify({"status": "not_ready", "reason": reason})
        response.status_code = 503
        response.headers["Retry-After"] = RETRY_AFTER_S
        return response

    def _not_ready(self) -> str | None:
        if self._service.draining.is_set():
            return "shutting down"
        if not self._service.scheduler.alive:
            return "the generation thread has ended"
        return None if self._service.table.serving_id else "no model serves yet"

    def metrics(self) -> Response:
        return Response(self._service.metrics.page(), mimetype="text/plain; version=0.0.4")

    def slots(self) -> Response:
        return jsonify({"running": self._service.scheduler.slots_view(), "waiting": self._service.scheduler.waiting})

    def openapi_document(self) -> Response:
        return jsonify(openapi.document())

    # -- admin ----------------------------------------------------------------------------------------------------

    def reload(self) -> Response:
        asked = reload_request(_body(request))
        leave = self._admin.enter()
        try:
            return jsonify(
                self._service.deployer.reload(
                    asked.id, asked.manifest_sha256, asked.base_manifest_sha256, asked.canaries
                )
            )
        finally:
            leave()

    def rollback(self) -> Response:
        leave = self._admin.enter()
        try:
            return jsonify(self._service.deployer.rollback())
        finally:
            leave()


def unread(app: Flask, status: int, name: str, message: str, request_id: str | None) -> Response:
    """The answer to a request that the web server refuses before any route sees it.

    Args:
        name: of the status, as "Bad Request".
        request_id: its header, if it could be read.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    with app.test_request_context():
        g.request_id = _request_id(request_id)
        return app.process_response(error_response(status, message, kind, name.lower().replace(" ", "_")))


def _collect(answer: Answer) -> tuple[dict[int, Piece], dict[int, PromptScores]]:
    """Wait for the whole answer."""
    pieces: dict[int, Piece] = {}
    scores: dict[int, PromptScores] = {}
    for event in answer.events():
        if isinstance(event, PromptScores):
            scores[event.prompt] = event
        elif isinstance(event, Piece):
            pieces[event.choice] = event
    return pieces, scores


def _stream(asked: GenerationRequest, answer: Answer, shape: answers.Shape) -> Iterator[bytes]:
    ended: dict[int, Piece] = {}
    yield b"".join(answers.event(doc) for doc in shape.opening())
    try:
        for event in answer.events():
            if event is None:
                yield answers.PING
            elif isinstance(event, Piece):
                if event.finish_reason is not None:
                    ended[event.choice] = event
                yield b"".join(answers.event(doc) for doc in shape.chunks(event))
    except CallerGoneError:
        return
    except DropforgeError as error:
        yield answers.event({"error": error_of(error)})
        return
    if asked.include_usage:
        yield answers.event(shape.usage_chunk(ended))
    yield answers.DONE


def _body(asked: Request) -> object:
    """The parsed JSON body. A wrong content type is refused: a web page can send text/plain anywhere without asking."""
    if asked.mimetype != "application/json":
        raise RequestError("Content-Type must be application/json", code="unsupported_content_type")
    if asked.headers.get("Content-Encoding", "identity") != "identity":
        raise RequestError("compressed bodies are not accepted", code="unsupported_content_encoding")
    data = asked.get_data(cache=False)
    try:
        body: object = parse_json(data, "body")
    except JsonError as error:
        raise RequestError(f"the body cannot be read: {error.message}", code="invalid_json") from error
    if b"\\u" in data:
        refuse_half_characters(body)
    return body


def _gone_probe(asked: Request) -> Callable[[], bool]:
    """waitress tells when the caller closed its connection; under other servers nobody ever leaves."""
    probe: Callable[[], bool] = asked.environ.get("waitress.client_disconnected", lambda: False)
    return probe


def _model_entry(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "dropforge"}


def _unknown_model(name: str) -> RequestError:
    return RequestError(f"the model {name[:200]!r} does not exist", param="model", code="model_not_found", status=404)


def _request_id(given: str | None) -> str:
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _dress(response: Response, service: Service) -> Response:
    checkpoint = g.get("checkpoint") or service.table.serving_id or _NO_MODEL
    response.headers["X-Dropforge-Checkpoint"] = checkpoint
    response.headers["X-Request-ID"] = g.get("request_id") or uuid.uuid4().hex
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "default-src 'none'"
    service.metrics.http(response.status_code)
    return response
