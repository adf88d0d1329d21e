"""Counters of the inference server for Prometheus: one registry a process, no prompts, no keys, no client names."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STEP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0)


class ServerMetrics:
    """Everything GET /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._running = Gauge("dropforge_requests_running", "Choices being generated", registry=self.registry)
        self._waiting = Gauge("dropforge_requests_waiting", "Requests that wait", registry=self.registry)
        self._prompt = Counter("dropforge_prompt_tokens", "Prompt tokens read", registry=self.registry)
        self._generated = Counter("dropforge_generated_tokens", "Tokens generated", registry=self.registry)
        self._ttft = Histogram(
            "dropforge_time_to_first_token_seconds", "Arrival to first token", buckets=_SECONDS, registry=self.registry
        )
        self._step = Histogram(
            "dropforge_step_seconds", "One packed step of a model", buckets=_STEP_SECONDS, registry=self.registry
        )
        self._finished = Counter("dropforge_finished", "Choices that ended", ["reason"], registry=self.registry)
        self._swaps = Counter("dropforge_deployments", "Deployments", ["outcome"], registry=self.registry)
        self._serving = Gauge(
            "dropforge_checkpoint_info", "1 for the checkpoint that serves", ["id"], registry=self.registry
        )
        self._http = Counter("dropforge_http_answers", "HTTP answers", ["status"], registry=self.registry)

    def load(self, running: int, waiting: int) -> None:
        self._running.set(running)
        self._waiting.set(waiting)

    def step(self, *, prompt_tokens: int, generated_tokens: int, seconds: float) -> None:
        self._prompt.inc(prompt_tokens)
        self._generated.inc(generated_tokens)
        self._step.observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def finished(self, reason: str) -> None:
        self._finished.labels(reason).inc()

    def deployment(self, outcome: str) -> None:
        self._swaps.labels(outcome).inc()

    def serving(self, checkpoint_id: str) -> None:
        self._serving.clear()
        self._serving.labels(checkpoint_id).set(1)

    def http(self, status: int) -> None:
        self._http.labels(str(status)).inc()

    def page(self) -> bytes:
        """The text that GET /metrics returns."""
        return generate_latest(self.registry)
