"""The monitor's web application: the page, its JSON twins, the event stream and Prometheus' text (beside all arrows).

Reads    what the aggregator reads          Writes  nothing, ever: only GET and HEAD are answered
Errors   every refusal is JSON {"error": {...}}; an unexpected failure says no more than that and is logged
"""

import json
import logging
import os
from collections.abc import Callable

from flask import Flask, Request, Response, request
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException

from core.errors import DropforgeError, NotFoundError
from monitoring.api.aggregator import Aggregator
from monitoring.api.events import Streams
from monitoring.api.query import Document
from monitoring.assets import load_assets
from monitoring.exposition import FactsCollector
from monitoring.guard import Guard, Refusal

_log = logging.getLogger(__name__)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_JSON = "application/json"


class Monitor:
    """The routes and what they answer with."""

    def __init__(self, aggregator: Aggregator, streams: Streams, guard: Guard) -> None:
        self._aggregator = aggregator
        self._streams = streams
        self._guard = guard
        self._assets = load_assets()
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "dropforge_monitor_answers", "Answers of the monitor by HTTP status", ["status"], registry=self._registry
        )
        open_streams = Gauge("dropforge_monitor_open_streams", "Event streams now open", registry=self._registry)
        open_streams.set_function(lambda: streams.count)
        self._registry.register(FactsCollector(aggregator))

    def check(self) -> None:
        """Refuse whoever may not ask."""
        self._guard.check(request.method, request.headers, open_to_all=request.path == "/health")

    def page(self) -> Response:
        return self.asset("index.html")

    def asset(self, address: str) -> Response:
        found = self._assets.get(address)
        if found is None:
            raise NotFoundError("no such page", fix="the page is at /")
        return _conditional(Response(found.content, content_type=found.content_type), request)

    def subject(self, name: str) -> Response:
        return _conditional(json_response(self._aggregator.read(name, request.args)), request)

    def thing(self, name: str, key: str) -> Response:
        return _conditional(json_response(self._aggregator.find(name, key)), request)

    def events(self) -> Response:
        answer = Response(content_type="text/event-stream")
        if request.method != "HEAD":  # whose body nobody would close
            client_left = request.environ.get("waitress.client_disconnected", bool)
            answer.response = self._streams.open(request.headers.get("Last-Event-ID"), client_left)
        return answer

    def metrics(self) -> Response:
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def health(self) -> Response:
        return json_response({"ok": True, "pid": os.getpid()})

    def finish(self, response: Response) -> Response:
        """Count the answer and put the headers of safety on it."""
        self._answers.labels(str(response.status_code)).inc()
        response.headers.extend({name: value for name, value in _HEADERS.items() if name not in response.headers})
        return response


def create_app(aggregator: Aggregator, streams: Streams, guard: Guard) -> Flask:
    """Build the WSGI application."""
    monitor = Monitor(aggregator, streams, guard)
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 0
    app.before_request(monitor.check)
    app.after_request(monitor.finish)
    routes: dict[str, Callable[..., Response]] = {
        "/": monitor.page,
        "/ui/<path:address>": monitor.asset,
        "/health": monitor.health,
        "/metrics": monitor.metrics,
        "/api/events": monitor.events,
        "/api/<name>": monitor.subject,
        "/api/<name>/<key>": monitor.thing,
    }
    for rule, view in routes.items():
        app.add_url_rule(rule, view_func=view, provide_automatic_options=False)
    app.register_error_handler(Refusal, _refused)
    app.register_error_handler(DropforgeError, _explained)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)
    return app


def json_response(document: Document, status: int = 200) -> Response:
    """Strict ASCII JSON: a lone surrogate in a file name survives as an escape."""
    return Response(json.dumps(document, allow_nan=False) + "\n", status=status, content_type=_JSON)


def _conditional(response: Response, asked: Request) -> Response:
    """Answer 304 without a body when the caller has this very content."""
    response.add_etag()
    response.make_conditional(asked)
    return response


def _error(status: int, message: str, fix: str | None = None, code: str = "refused") -> Response:
    return json_response({"error": {"code": code, "message": message, "fix": fix}}, status)


def _refused(refusal: Refusal) -> Response:
    response = _error(refusal.status, refusal.message, refusal.fix or None)
    response.headers.extend(refusal.headers)
    return response


def _explained(error: DropforgeError) -> Response:
    response = _error(error.http_status, error.message, error.fix or None, error.slug)
    if error.retryable:
        response.headers["Retry-After"] = "5"
    return response


def _http_error(error: HTTPException) -> Response:
    return _error(error.code or 500, error.name.lower(), None, "http")


def _unexpected(error: Exception) -> Response:
    _log.exception("an address failed", extra={"address": request.path[:200]})
    return _error(500, "the monitor failed to answer; its log says why", "dropforge logs monitor", "internal")
