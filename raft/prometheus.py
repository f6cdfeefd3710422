"""Metrics for Prometheus: the extra `prometheus`, `pip install 'raft-threads[prometheus]'`.

    sink = PrometheusSink("node1")
    Config(local_id="node1", metrics=sink, ...)
    prometheus_client.start_http_server(9100, registry=sink.registry)

Names follow Prometheus as far as they stay recognisable: `raft.leader.oldestLogAge`, milliseconds,
is `raft_leader_oldest_log_age_seconds`. Counters end in `_total`, samples are histograms. Legacy
names, which hold a peer's id, are not exported: the same values have the label `peer_id`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from typing import TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from raft.errors import InvalidConfigError
from raft.metrics import METRICS, NO_LABELS, Kind, Labels, Metric, Unit
from raft.types import ServerID

Family: TypeAlias = Counter | Gauge | Histogram
F = TypeVar("F", Counter, Gauge, Histogram)

NODE_LABEL = "node_id"
"""The label that tells the nodes of one process apart."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_NUMBERS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_BUCKETS = {Unit.MILLISECONDS: _SECONDS, Unit.RATIO: _RATIOS, Unit.NUMBER: _NUMBERS}

_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def prometheus_name(name: str) -> str:
    """Return the name of a metric of `METRICS` as Prometheus has it, without `_total`."""
    snake = _snake(name.replace(".", "_"))
    return f"{snake}_seconds" if METRICS[name].unit is Unit.MILLISECONDS else snake


def _snake(name: str) -> str:
    return _WORD_BEGINS.sub("_", name).lower()


class PrometheusSink:
    """A `MetricsSink` that a Prometheus server can scrape from `registry`; any thread.

    `registry` is the caller's, `prometheus_client.REGISTRY` for one, or else a new one. Every
    series has the label `node_id`. A second node of the same process takes `sink.for_node("node2")`
    so that both are in one registry. Names that `METRICS` does not list are ignored.

    Raises:
        InvalidConfigError: the registry has metrics of these names already.
    """

    def __init__(self, node_id: ServerID, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._node_id = node_id
        self._families = _register(self.registry)

    def for_node(self, node_id: ServerID) -> PrometheusSink:
        """Return a sink for another node, in the same registry."""
        other = copy(self)
        other._node_id = node_id
        return other

    def set_gauge(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        family = self._families.get(name)
        if isinstance(family, Gauge):
            self._of(family, labels).set(_scaled(name, value))

    def incr_counter(self, name: str, value: float = 1.0, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        family = self._families.get(name)
        if isinstance(family, Counter):
            self._of(family, labels).inc(value)

    def add_sample(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """See `MetricsSink`."""
        family = self._families.get(name)
        if isinstance(family, Histogram):
            self._of(family, labels).observe(_scaled(name, value))

    def _of(self, family: F, labels: Labels) -> F:
        return family.labels(self._node_id, *(value for _, value in labels))


def _register(registry: CollectorRegistry) -> Mapping[str, Family]:
    """Make all families and register them, or none of them."""
    families = {name: _made(name, metric) for name, metric in METRICS.items()}
    done: list[Family] = []
    try:
        for family in families.values():
            registry.register(family)
            done.append(family)
    except ValueError as exc:
        for family in done:
            registry.unregister(family)
        raise InvalidConfigError(
            f"{exc}: if a PrometheusSink of another node is in this registry, take its"
            " `for_node(node_id)`; else give this one a registry of its own"
        ) from exc
    return families


def _made(name: str, metric: Metric) -> Family:
    labels = (NODE_LABEL, *map(_snake, metric.labels))
    as_named = prometheus_name(name)
    if metric.kind is Kind.COUNTER:
        return Counter(as_named, metric.about, labels, registry=None)
    if metric.kind is Kind.GAUGE:
        return Gauge(as_named, metric.about, labels, registry=None)
    return Histogram(as_named, metric.about, labels, buckets=_BUCKETS[metric.unit], registry=None)


def _scaled(name: str, value: float) -> float:
    """Return a value in the unit of its Prometheus name: seconds for milliseconds."""
    return value / 1000.0 if METRICS[name].unit is Unit.MILLISECONDS else value
