"""The views of the key-value service, over nodes in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from examples.kv.machine import KVMachine, encode_member, encode_put
from examples.kv.service import APPLIED_HEADER, MAX_BODY, MAX_KEY, create_app
from raft import Configuration, LeadershipLostError, Log, Raft, Server
from raft.futures import ApplyFuture
from raft.snapshots import InmemSnapshotStore
from raft.stores import InmemStore
from raft.testing.cluster import fast_config
from raft.transport import InmemTransport

TOKEN = "a token"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}


class Service:
    """A node in memory with its application."""

    def __init__(self) -> None:
        self.machine = KVMachine()
        store = InmemStore()
        self.transport = InmemTransport("n1:1")
        self.node = Raft(
            fast_config("n1"), self.machine, store, store, InmemSnapshotStore(), self.transport
        )
        self.client: FlaskClient = create_app(self.node, self.machine, TOKEN).test_client()

    def lead(self) -> None:
        self.node.bootstrap_cluster(Configuration([Server("n1", "n1:1")])).result(5)
        self.node.wait_for_leader(10)
        self.node.barrier().result(10)

    def change(self, path: str, **values: str) -> TestResponse:
        """Ask for a change of members, as one who may."""
        return self.client.post(path, json=values, headers=ALLOWED)

    def values(self) -> dict[str, Any]:
        return self.machine.items()[0]


@pytest.fixture
def blank() -> Iterator[Service]:
    service = Service()
    yield service
    service.node.shutdown().result(15)


@pytest.fixture
def service(blank: Service) -> Service:
    blank.lead()
    return blank


def test_a_value_that_was_put_is_read_back_with_the_applied_index(service: Service) -> None:
    put = service.client.put("/kv/a/b", data=json.dumps({"x": [1, "ü"]}))

    answer = service.client.get("/kv/a/b")

    assert (put.status_code, put.json["existed"]) == (200, False)
    assert (answer.status_code, answer.json) == (200, {"x": [1, "ü"]})
    assert int(answer.headers[APPLIED_HEADER]) >= put.json["index"]


def test_a_deleted_key_is_gone(service: Service) -> None:
    service.client.put("/kv/a", data="1")

    deleted = service.client.delete("/kv/a")

    assert (deleted.status_code, deleted.json["existed"]) == (200, True)
    assert service.client.get("/kv/a").status_code == 404


def test_a_consistent_read_goes_through_the_log(service: Service) -> None:
    service.client.put("/kv/a", data="1")

    answer = service.client.get("/kv/a?consistent=1")

    assert answer.json == 1
    assert int(answer.headers[APPLIED_HEADER]) >= 3


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"{", b"NaN", b"1e999", b"[" * 100_000, b"[" * 900 + b"]" * 900],
    ids=["empty", "utf8", "half", "nan", "infinite", "deep", "too deep to answer"],
)
def test_a_body_that_is_no_utf8_json_is_refused_and_changes_nothing(
    service: Service, body: bytes
) -> None:
    answer = service.client.put("/kv/a", data=body)

    assert answer.status_code == 400
    assert "body" in answer.json["error"]
    assert service.values() == {}


@pytest.mark.parametrize("path", ["/kv/", "/kv/%20", "/kv/" + "k" * (MAX_KEY + 1)])
def test_a_key_that_nobody_can_mean_is_refused(service: Service, path: str) -> None:
    answer = service.client.put(path, data="1")

    assert (answer.status_code, service.values()) == (400, {})
    assert "key" in answer.json["error"]


def test_a_body_over_one_mebibyte_is_refused(service: Service) -> None:
    answer = service.client.put("/kv/a", data=b'"' + b"x" * MAX_BODY + b'"')

    assert (answer.status_code, service.values()) == (413, {})
    assert str(MAX_BODY) in answer.json["error"]


def test_a_body_of_almost_one_mebibyte_is_taken(service: Service) -> None:
    answer = service.client.put("/kv/a", data=b'"' + b"x" * (MAX_BODY - 2) + b'"')

    assert answer.status_code == 200


def test_an_unknown_method_is_answered_in_json(service: Service) -> None:
    answer = service.client.post("/kv/a", data="1")

    assert answer.status_code == 405
    assert answer.json["error"]


def test_a_write_without_a_leader_is_answered_503_with_retry_after(blank: Service) -> None:
    answer = blank.client.put("/kv/a", data="1")

    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert "not applied" in answer.json["error"]


def test_a_write_to_a_follower_is_answered_421_with_the_leaders_address(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.node.apply(encode_member("n2", "10.0.0.2:80")).result(5)
    core = service.node._core
    monkeypatch.setattr(type(core.state), "leader", lambda self: ("n2:1", "n2"))
    monkeypatch.setattr(
        Raft, "apply", lambda self, command, timeout=None: failed(core.not_leader())
    )

    answer = service.client.put("/kv/a", data="1")

    assert answer.status_code == 421
    assert answer.json["leader"] == {"id": "n2", "http": "10.0.0.2:80"}
    assert answer.headers["Location"] == "http://10.0.0.2:80/kv/a"


def failed(error: Exception) -> ApplyFuture:
    future = ApplyFuture()
    future.fail(error)
    return future


@pytest.mark.parametrize(
    "future", [failed(LeadershipLostError("gone")), ApplyFuture()], ids=["lost", "late"]
)
def test_an_unknown_outcome_is_answered_504_and_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch, future: ApplyFuture
) -> None:
    monkeypatch.setattr("examples.kv.service.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(Raft, "apply", lambda self, command, timeout=None: future)

    answer = service.client.put("/kv/a", data="1")

    assert answer.status_code == 504
    assert "unknown" in answer.json["error"]


def test_a_node_that_joins_is_a_voter_and_its_http_address_is_replicated(
    service: Service,
) -> None:
    bad = service.change("/join", id="n1")
    again = service.change("/join", id="n1", raft="n1:1", http="10.0.0.1:80")

    assert bad.status_code == 400
    assert again.status_code == 200
    assert service.machine.members() == {"n1": "10.0.0.1:80"}


def test_a_node_that_joins_gets_its_vote_when_it_has_the_log(service: Service) -> None:
    store, transport = InmemStore(), InmemTransport("n2:1")
    service.transport.connect("n2:1", transport)
    transport.connect("n1:1", service.transport)
    config, snapshots = fast_config("n2"), InmemSnapshotStore()
    with Raft(config, KVMachine(), store, store, snapshots, transport):
        joining = service.change("/join", id="n2", raft="n2:1", http="10.0.0.2:80")
        servers = service.client.get("/status").json["servers"]

        assert joining.status_code == 200
        assert [server["suffrage"] for server in servers] == ["voter", "voter"]
        assert store.last_index() >= 3


def test_a_node_that_cannot_be_reached_gets_no_vote_and_stops_nobody(service: Service) -> None:
    for _ in range(2):  # asked again it is no member yet
        joining = service.change("/join", id="n2", raft="nowhere:1", http="10.0.0.2:80")
        assert (joining.status_code, "it got no vote" in joining.json["error"]) == (503, True)

    assert service.machine.members() == {}  # nobody is sent to where nobody may be
    assert service.client.put("/kv/a", data="1").status_code == 200
    assert service.change("/leave", id="n2").status_code == 200


def test_leaving_of_an_unknown_node_is_404(service: Service) -> None:
    assert service.change("/leave", id="n9").status_code == 404


@pytest.mark.parametrize("path", ["/join", "/leave"])
def test_members_change_for_who_knows_the_token_alone(service: Service, path: str) -> None:
    body = {"id": "n2", "raft": "n2:1", "http": "10.0.0.2:80"}
    wrong = [{}, {"Authorization": "Bearer a toke"}, {"Authorization": TOKEN}]

    answers = [service.client.post(path, json=body, headers=h).status_code for h in wrong]
    form = service.client.post(path, data=json.dumps(body), headers=ALLOWED).status_code

    assert (answers, form) == ([401, 401, 401], 415)
    assert len(service.node.get_configuration().result().servers) == 1


def test_status_names_leader_and_servers(service: Service) -> None:
    status = service.client.get("/status").json

    assert status["leader"]["id"] == "n1"
    assert [server["id"] for server in status["servers"]] == ["n1"]
    assert status["stats"]["state"] == "Leader"


def test_a_snapshot_of_the_machine_restores_to_an_equal_one() -> None:
    machine, copy = KVMachine(), KVMachine()
    machine.apply(Log(1, 1, data=encode_put("a", [1])))
    machine.apply(Log(2, 1, data=encode_member("n1", "h:1")))
    snapshots = InmemSnapshotStore()
    sink = snapshots.create(1, 2, 1, Configuration(), 0)

    machine.snapshot().persist(sink)
    sink.close()
    copy.restore(snapshots.open(sink.id())[1])

    assert (copy.items(), copy.members()) == (machine.items(), machine.members())
