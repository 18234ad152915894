"""What Prometheus reads: TensorFlow Serving's request counts and latencies under its names, and the queue's state."""

from collections.abc import Iterator
from typing import Any

PATH = "/monitoring/prometheus/metrics"
_MICROSECONDS = [10.0 * 1.8**i for i in range(33)]  # TensorFlow Serving's buckets: 10 us to 24 minutes
_ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        registry = self._registry = CollectorRegistry()
        self._counts: dict[tuple[str, str], int] = {}
        registry.register(self)
        ProcessCollector(registry=registry)
        self._latency = Histogram(
            ":tensorflow:serving:request_latency", "Microseconds from the first byte to the answer",
            ["model_name", "API", "entrypoint"], registry=registry, buckets=_MICROSECONDS,
        )  # fmt: skip
        self._rows = Histogram("dlkit_serve_batch_rows", "Rows of a batch", ["model"], registry=registry, buckets=_ROWS)
        self._requests = Histogram(
            "dlkit_serve_batch_requests", "Requests of a batch", ["model"], registry=registry, buckets=_ROWS
        )
        self._seconds = Histogram("dlkit_serve_batch_seconds", "Seconds of a batch", ["model"], registry=registry)
        self._loads = Counter("dlkit_serve_loads", "Versions tried", ["model", "result"], registry=registry)
        self._versions = Gauge(
            "dlkit_serve_version", "1 for a version in service", ["model", "version"], registry=registry
        )
        self.held = Gauge("dlkit_serve_held_bytes", "Bytes of the requests in work", registry=registry)

    def collect(self) -> Iterator[Any]:
        """The request counts, without the `_total` that the client library would append."""
        from prometheus_client.core import Metric

        metric = Metric(":tensorflow:serving:request_count", "Requests by model and canonical code", "unknown")
        for (model, status), count in sorted(self._counts.items()):
            metric.add_sample(metric.name, {"model_name": model, "status": status}, count)
        yield metric

    def request(self, model: str, api: str, entrypoint: str, code: str, seconds: float) -> None:
        """Counts an answered request; `model` must be one that exists, so that callers cannot make up labels."""
        self._counts[model, code] = self._counts.get((model, code), 0) + 1
        self._latency.labels(model, api, entrypoint).observe(1e6 * seconds)

    def batch(self, model: str, rows: int, requests: int, seconds: float) -> None:
        """Notes a batch that ran."""
        self._rows.labels(model).observe(rows)
        self._requests.labels(model).observe(requests)
        self._seconds.labels(model).observe(seconds)

    def loads(self, model: str, result: str) -> None:
        """Counts a version that was loaded or refused."""
        self._loads.labels(model, result).inc()

    def version(self, model: str, number: int, serving: bool) -> None:
        """Notes that a version serves, or forgets it."""
        if serving:
            self._versions.labels(model, str(number)).set(1)
        else:
            self._versions.remove(model, str(number))

    def page(self) -> bytes:
        """Returns the text that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
