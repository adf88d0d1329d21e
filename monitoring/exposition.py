"""The monitor's facts as Prometheus metrics (beside all arrows).

Reads    the aggregator's documents, once a scrape
Units    seconds, bytes and ratios, as Prometheus names them
"""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from monitoring.api.aggregator import Aggregator
from monitoring.api.query import Document

_TRAINING = {
    "current_step": ("dropforge_training_step", "Optimizer step of the current job"),
    "loss": ("dropforge_training_loss", "Training loss of the last step"),
    "tokens_per_sec": ("dropforge_training_tokens_per_second", "Tokens trained a second"),
    "eta_s": ("dropforge_training_eta_seconds", "Time left of the current job"),
    "accuracy_percent": ("dropforge_evaluation_accuracy_percent", "Accuracy of the last evaluation"),
    "validation_loss": ("dropforge_evaluation_loss", "Loss of the last evaluation"),
}


class FactsCollector(Collector):
    """Asks the aggregator at each scrape, so that nothing is measured twice."""

    def __init__(self, aggregator: Aggregator) -> None:
        self._aggregator = aggregator

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        status = self._aggregator.read("status", {})
        yield from _daemon(status)
        yield from _training(status.get("training"))
        yield _queue(self._aggregator.read("queue", {}))
        yield _served(status.get("deployment"))
        yield from _gpus(self._aggregator.read("gpu", {}))

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # registering must not read the disk


def _daemon(status: Document) -> Iterator[GaugeMetricFamily]:
    health = status["health"]["daemon"]
    yield _gauge("dropforge_daemon_up", "1 while the daemon's heartbeat is fresh", float(health["state"] == "ok"))
    if health["age_s"] is not None:
        yield _gauge("dropforge_daemon_heartbeat_age_seconds", "Age of the daemon's last heartbeat", health["age_s"])
    states = GaugeMetricFamily("dropforge_daemon_state", "1 for the state the daemon says it is in", labels=["state"])
    states.add_metric([str((status.get("daemon") or {}).get("state", "absent"))], 1)
    yield states


def _training(training: Document | None) -> Iterator[GaugeMetricFamily]:
    for key, (name, text) in _TRAINING.items():
        value = (training or {}).get(key)
        if isinstance(value, int | float):
            yield _gauge(name, text, value)


def _queue(queue: Document) -> GaugeMetricFamily:
    family = GaugeMetricFamily("dropforge_queue_jobs", "Jobs by lane", labels=["lane"])
    for lane, count in queue["lanes"].items():
        family.add_metric([lane], count)
    return family


def _served(deployment: Document | None) -> InfoMetricFamily:
    served = (deployment or {}).get("serving")
    return InfoMetricFamily("dropforge_serving", "The checkpoint now served", value={"checkpoint": str(served or "")})


def _gpus(machine: Document) -> Iterator[GaugeMetricFamily]:
    used = GaugeMetricFamily("dropforge_gpu_memory_used_bytes", "GPU memory in use", labels=["uuid"])
    load = GaugeMetricFamily("dropforge_gpu_utilization_ratio", "GPU utilization, 0 to 1", labels=["uuid"])
    for gpu in machine["gpus"]:
        if gpu["memory_used_bytes"] is not None:
            used.add_metric([gpu["uuid"]], gpu["memory_used_bytes"])
        if gpu["utilization_percent"] is not None:
            load.add_metric([gpu["uuid"]], gpu["utilization_percent"] / 100)
    yield used
    yield load
    resident = GaugeMetricFamily("dropforge_process_resident_bytes", "Memory of our processes", labels=["process"])
    for process in machine["processes"]:
        resident.add_metric([process["name"]], process["rss_bytes"])
    yield resident


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
