"""What requests came to since the start, for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.accounts.ledger import Ledger, Record

ROUTER_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
ANSWER_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STATES = ("ready", "loading", "unloaded", "failed")


class Metrics:
    """Counts finished requests; the state of the parts is asked for when somebody looks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._now = _Now()
        self._registry.register(self._now)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"upcall_{name}", what, labels, registry=self._registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"upcall_{name}_seconds", what, labels, buckets=buckets, registry=self._registry)

        self._requests = counter("requests", "Finished requests", "wire", "route", "reason", "outcome")
        self._tokens = counter("tokens", "Tokens of prompts and completions", "route", "kind")
        self._cost = counter("cost_usd", "Paid to the cloud, in US dollars")
        self._saved = counter("saved_usd", "What the cloud would have charged for answers given here, in US dollars")
        self._router = histogram("router", "Time that scoring took", ROUTER_SECONDS)
        self._first = histogram("first_token", "Time to the first word of an answer", ANSWER_SECONDS, "route")
        self._total = histogram("request", "Time from request to end of answer", ANSWER_SECONDS, "route")

    async def follow(self, ledger: Ledger) -> None:
        """Count every request that ends. Never returns."""
        async with ledger.feed() as records:
            while True:
                # The feed says that it ends when settings are reloaded, to those who should come back.
                if record := await records.get():
                    self.observe(record)

    def observe(self, record: Record) -> None:
        route = record.route or "none"
        self._requests.labels(record.wire, route, record.reason or "none", record.outcome).inc()
        self._tokens.labels(route, "prompt").inc(record.prompt_tokens)
        self._tokens.labels(route, "completion").inc(record.completion_tokens)
        self._tokens.labels(route, "cached").inc(record.cached_tokens)
        self._tokens.labels("local", "wasted").inc(record.wasted_tokens)
        self._cost.inc(record.cost_usd or 0)
        self._saved.inc(max(record.saved_usd or 0, 0))
        if record.router_ms is not None:
            self._router.observe(record.router_ms / 1000)
        if record.first_ms is not None:
            self._first.labels(route).observe(record.first_ms / 1000)
        if record.total_ms is not None:
            self._total.labels(route).observe(record.total_ms / 1000)

    def text(self, status: Mapping[str, Any]) -> bytes:
        """Everything in Prometheus's text format; `status` is what `/healthz` says."""
        self._now.status = status
        return generate_latest(self._registry)


class _Now(Collector):
    """The state of the parts, read off a status."""

    def __init__(self) -> None:
        self.status: Mapping[str, Any] = {}

    def collect(self) -> Iterator[Metric]:
        if not self.status:
            return
        local, cloud = self.status["local"], self.status["cloud"]
        yield GaugeMetricFamily("upcall_privacy", "1 while privacy mode is on", float(self.status["privacy"]))
        yield GaugeMetricFamily("upcall_cloud_key", "1 where there is a key for the cloud", float(cloud["has_key"]))
        memory = GaugeMetricFamily("upcall_memory_bytes", "Resident memory of each process", labels=["process"])
        for process, resident in self.status["memory_bytes"].items():
            memory.add_metric([process], resident)
        yield memory
        state = GaugeMetricFamily("upcall_local_state", "1 for the local model's state", labels=["model", "state"])
        for name in STATES:
            state.add_metric([local["model"], name], float(local["state"] == name))
        yield state
        for name, what in (("running", "being answered"), ("waiting", "waiting")):
            yield GaugeMetricFamily(f"upcall_local_{name}", f"Requests {what} at the local model", local[name])
        yield GaugeMetricFamily(
            "upcall_cloud_resting", "1 while the cloud is left alone after failures", float(cloud["resting"])
        )
