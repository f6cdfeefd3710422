"""The Prometheus sink, scraped over HTTP as a Prometheus server does it."""

import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from raft import InvalidConfigError, MetricsSink
from raft.metrics import METRICS, Kind, Unit
from raft.prometheus import PrometheusSink, prometheus_name
from raft.testing.cluster import Cluster
from tests.cluster.helpers import apply_count

PEER = (("peer_id", "n2"),)


def scrape(registry):
    """Return all samples as {(name, labels): value}, labels as a sorted tuple."""
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of_node(node_id, **labels):
    return tuple(sorted({"node_id": node_id, **labels}.items()))


def test_it_is_a_sink():
    assert isinstance(PrometheusSink("n1"), MetricsSink)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raft.apply", "raft_apply"),
        ("raft.peers", "raft_peers"),
        ("raft.commitTime", "raft_commit_time_seconds"),
        ("raft.leader.oldestLogAge", "raft_leader_oldest_log_age_seconds"),
        ("raft.net.getRPCType", "raft_net_get_rpc_type_seconds"),
        ("raft.rpc.requestPreVote", "raft_rpc_request_pre_vote_seconds"),
        ("raft.transition.heartbeat_timeout", "raft_transition_heartbeat_timeout"),
        ("raft.fsm.applyBatchNum", "raft_fsm_apply_batch_num"),
        ("raft.thread.main.saturation", "raft_thread_main_saturation"),
        ("raft.store.walBytes", "raft_store_wal_bytes"),
    ],
)
def test_names_stay_recognisable(name, expected):
    assert prometheus_name(name) == expected


def test_no_two_metrics_become_one():
    assert len({prometheus_name(name) for name in METRICS}) == len(METRICS)


def test_values_are_scraped_in_seconds_and_with_labels():
    sink = PrometheusSink("n1")

    sink.incr_counter("raft.apply")
    sink.incr_counter("raft.apply", 2.0)
    sink.set_gauge("raft.leader.oldestLogAge", 1500.0)
    sink.set_gauge("raft.peers", 3)
    sink.add_sample("raft.replication.heartbeat", 4.0, PEER)
    sink.add_sample("raft.net.rpcDecode", 2.0, (("rpcType", "Heartbeat"),))
    sink.add_sample("raft.thread.fsm.saturation", 0.7)

    found = scrape(sink.registry)
    beat = of_node("n1", peer_id="n2")
    assert found["raft_apply_total", of_node("n1")] == 3.0
    assert found["raft_leader_oldest_log_age_seconds", of_node("n1")] == 1.5
    assert found["raft_peers", of_node("n1")] == 3.0
    assert found["raft_replication_heartbeat_seconds_count", beat] == 1.0
    assert found["raft_replication_heartbeat_seconds_sum", beat] == 0.004
    bucket = "raft_replication_heartbeat_seconds_bucket"
    assert found[bucket, of_node("n1", peer_id="n2", le="0.0025")] == 0.0
    assert found[bucket, of_node("n1", peer_id="n2", le="0.005")] == 1.0
    decode = of_node("n1", rpc_type="Heartbeat")
    assert found["raft_net_rpc_decode_seconds_sum", decode] == 0.002
    assert found["raft_thread_fsm_saturation_sum", of_node("n1")] == 0.7


def test_legacy_and_unknown_names_are_not_exported():
    sink = PrometheusSink("n1")

    sink.add_sample("raft.replication.heartbeat.n2", 4.0)
    sink.incr_counter("raft.replication.appendEntries.logs.n2", 4.0)
    sink.set_gauge("raft.nonesuch", 4.0)

    assert scrape(sink.registry) == {}


def test_two_nodes_of_a_process_share_a_registry():
    registry = CollectorRegistry()
    first = PrometheusSink("n1", registry)
    second = first.for_node("n2")

    first.set_gauge("raft.term", 1)
    second.set_gauge("raft.term", 2)

    assert second.registry is registry
    assert scrape(registry) == {
        ("raft_term", of_node("n1")): 1.0,
        ("raft_term", of_node("n2")): 2.0,
    }


def test_a_registry_takes_one_sink_and_says_what_to_do_about_a_second():
    registry = CollectorRegistry()
    PrometheusSink("n1", registry)

    with pytest.raises(InvalidConfigError, match=r"take its `for_node\(node_id\)`"):
        PrometheusSink("n2", registry)


def test_a_registry_that_refuses_one_metric_keeps_none():
    registry = CollectorRegistry()
    Counter("raft_fsm_failed_commands", "somebody else's", registry=registry).inc()

    with pytest.raises(InvalidConfigError, match="a registry of its own"):
        PrometheusSink("n1", registry)

    names = {name for name, _ in scrape(registry)}
    assert names == {"raft_fsm_failed_commands_total", "raft_fsm_failed_commands_created"}


def test_a_running_cluster_is_scraped():
    sink = PrometheusSink("n1")

    def configure(config):
        config.metrics = sink.for_node(config.local_id)

    with Cluster(2, configure=configure) as cluster:
        leader = cluster.leader()
        apply_count(leader, 5)
        cluster.wait_for_commands(5)

        found = scrape(sink.registry)

    assert found["raft_apply_total", of_node(leader.id)] == 5.0
    assert found["raft_peers", of_node(leader.id)] == 2.0
    for server_id in ("n1", "n2"):
        assert found["raft_fsm_apply_seconds_count", of_node(server_id)] == 5.0


ROW = re.compile(r"\| `(raft\.[^`]+)` \| `(raft_[^`]+)` \| ([a-z, ]+) \| (.*?) ?\| ")
NAMED_KINDS = {
    "counter": (Kind.COUNTER, False),
    "gauge": (Kind.GAUGE, False),
    "gauge, ms": (Kind.GAUGE, True),
    "sample": (Kind.SAMPLE, False),
    "timer": (Kind.SAMPLE, True),
}


def test_the_document_lists_every_metric_as_it_is():
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()

    rows = {
        name: (shown, *NAMED_KINDS[kind], tuple(re.findall(r"`(\w+)`", labels)))
        for name, shown, kind, labels in ROW.findall(text)
    }

    assert rows == {
        name: (
            prometheus_name(name) + ("_total" if metric.kind is Kind.COUNTER else ""),
            metric.kind,
            metric.unit is Unit.MILLISECONDS,
            metric.labels,
        )
        for name, metric in METRICS.items()
    }
