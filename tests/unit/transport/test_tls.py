"""TLS: who may talk to whom, what is refused and how, and that nothing stays behind."""

import io
import logging
import queue
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from raft.errors import (
    ConnectionLostError,
    InvalidConfigError,
    PeerUnreachableError,
    RPCTimeoutError,
    TransportError,
    TransportShutdownError,
    WrongServerError,
)
from raft.messages import InstallSnapshotRequest, InstallSnapshotResponse, RPCHeader
from raft.runtime import THREADS
from raft.testing.cluster import wait_for
from raft.testing.transport_contract import InBackground, Zeros, answer_with, raised_by
from raft.transport import MutualTLS, TCPTransport, TLSTransport
from raft.transport.certificates import certificate_ids, server_uri
from raft.transport.tls import TLSStream
from tests.unit.transport.certificates import Authority
from tests.unit.transport.tools import (
    HEARTBEAT,
    PATIENCE,
    REQUEST,
    RESPONSE,
    dial,
    is_closed_by_peer,
    open_descriptors,
    transport_threads,
)

INSTALLED = InstallSnapshotResponse(RPCHeader("b"), 3, True)
URI, DNS = x509.UniformResourceIdentifier, x509.DNSName


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path):
    return Authority(tmp_path, "strange ca")


@pytest.fixture
def make(authority):
    made = []

    def transport(server_id, ssl_context=None, kind=TLSTransport, **options):
        if kind is TLSTransport:
            options["ssl_context"] = ssl_context or authority.contexts(server_id)
        one = kind("127.0.0.1:0", **{"timeout": PATIENCE, **options})
        one.identify(server_id, lambda: None)
        made.append(one)
        return one

    yield transport
    for one in made:
        one.close()
    assert transport_threads() == []


@pytest.fixture
def inbox():
    """What was delivered, by whomever; answered at once."""
    return []


@pytest.fixture
def b(make, inbox):
    """A server `b` that serves."""
    return serving(make("b"), inbox)


def serving(transport, inbox):
    def take(rpc):
        inbox.append(rpc.command)
        rpc.respond(INSTALLED if isinstance(rpc.command, InstallSnapshotRequest) else RESPONSE)

    transport.deliver_to(take)
    return transport


def complaints(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def call(a, b, server_id="b", timeout=None):
    """Send a request in the name that `a` greets with."""
    request = replace(REQUEST, header=RPCHeader(a._identity.server_id, "a:1"))
    return a.append_entries(server_id, b.local_addr(), request, timeout)


# ---- ids in certificates ----


@pytest.mark.parametrize(
    ("server_id", "uri"),
    [
        ("node1", "raft:server:node1"),
        ("10.0.0.1:7000", "raft:server:10.0.0.1%3A7000"),
        ("a b/ü%", "raft:server:a%20b%2F%C3%BC%25"),
    ],
)
def test_any_id_can_be_written_as_a_uri(server_id, uri):
    assert server_uri(server_id) == uri
    assert certificate_ids({"subjectAltName": (("URI", uri),)}) == {server_id}


def test_a_host_name_is_no_id():
    """The certificate of any web server of the same authority would be one of a member."""
    names = (("DNS", "n2"), ("DNS", "www.corp.example"), ("URI", server_uri("n1")))

    assert certificate_ids({"subjectAltName": names}) == {"n1"}


@pytest.mark.parametrize("uri", ["n%32", "", "%6E2", "n2%20%", "a%2fb", "%00x%"])
def test_an_id_is_written_in_one_way_only(uri):
    assert certificate_ids({"subjectAltName": (("URI", f"raft:server:{uri}"),)}) == frozenset()


@pytest.mark.parametrize(
    "certificate",
    [
        {},
        {"subject": ((("commonName", "b"),),)},
        {"subjectAltName": (("IP Address", "10.0.0.1"), ("URI", "https://b"), ("email", "b@b"))},
        {"subjectAltName": (("URI", "raft:server:%ff"), ("URI", "raft:client:b"))},
    ],
)
def test_nothing_else_in_a_certificate_is_an_id(certificate):
    assert certificate_ids(certificate) == frozenset()


@pytest.mark.parametrize(
    ("server_id", "names"),
    [
        ("b", [URI(server_uri("b")), DNS("www.corp.example")]),
        ("node-2.example", [URI(server_uri("node-1")), URI(server_uri("node-2.example"))]),
        ("10.0.0.1:7000/ü", [URI(server_uri("10.0.0.1:7000/ü"))]),
    ],
)
def test_a_server_is_known_by_any_id_in_its_certificate(make, authority, inbox, server_id, names):
    b = serving(make(server_id, authority.contexts(names=names)), inbox)

    assert call(make("a"), b, server_id) == RESPONSE


# ---- who of those may come in ----


@pytest.mark.parametrize("authorize", [{"a", "b"}, ["a", "b"], lambda server_id: server_id in "ab"])
def test_who_is_authorized_comes_in_and_nobody_else(make, inbox, authorize):
    b = serving(make("b", authorize=authorize), inbox)

    assert call(make("a"), b) == RESPONSE
    with pytest.raises(TransportError):
        call(make("c"), b)


def test_who_is_not_authorized_is_not_talked_to(make, inbox):
    b = serving(make("b"), inbox)

    with pytest.raises(WrongServerError, match="is not authorized: b"):
        call(make("a", authorize={"a", "c"}), b)


def test_an_authorization_that_raises_lets_nobody_in(make, inbox, caplog):
    def authorize(server_id):
        raise RuntimeError("the directory is down")

    b = serving(make("b", authorize=authorize), inbox)

    with pytest.raises(TransportError):
        call(make("a"), b)
    assert "authorize failed, refusing server=a" in caplog.text


@pytest.mark.parametrize("authorize", ["n1", b"n1", 7])
def test_an_authorization_of_another_kind_is_refused_before_anything_is_bound(make, authorize):
    with pytest.raises(InvalidConfigError, match="authorize must be a set"):
        make("a", authorize=authorize)


# ---- contexts ----


def without_verification(contexts):
    contexts.server.verify_mode = ssl.CERT_NONE


def with_host_names(contexts):
    contexts.client.check_hostname = True


def with_old_versions(contexts):
    contexts.server.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (without_verification, "CERT_REQUIRED"),
        (with_host_names, "check_hostname = False"),
        (with_old_versions, "minimum_version"),
    ],
)
def test_contexts_that_would_let_strangers_in_are_refused(authority, spoil, hint):
    contexts = authority.contexts("a")
    spoil(contexts)

    with pytest.raises(InvalidConfigError, match=hint):
        MutualTLS(contexts.server, contexts.client)


def test_contexts_stand_on_their_own_side(authority):
    contexts = authority.contexts("a")

    with pytest.raises(InvalidConfigError, match="server is no"):
        MutualTLS(contexts.client, contexts.client)
    with pytest.raises(InvalidConfigError, match="client is no"):
        MutualTLS(contexts.server, contexts.server)


def test_files_that_do_not_serve_are_named(authority, tmp_path):
    certificate, key = authority.issue("a")
    other_key = authority.issue("a")[1]
    text = tmp_path / "text"
    text.write_text("no certificate")
    locked = authority.issue("a", password="secret")

    for files, name in [
        ((tmp_path / "none", key, authority.file), "none"),
        ((certificate, other_key, authority.file), other_key.name),
        ((certificate, key, text), "text"),
        ((certificate, key, tmp_path / "gone"), "gone"),
        ((*locked, authority.file), locked[1].name),
    ]:
        with pytest.raises(InvalidConfigError, match=name):
            MutualTLS.from_files(*files)
    MutualTLS.from_files(*locked, authority.file, "secret")


def test_a_certificate_that_nobody_would_accept_is_refused_where_it_is_loaded(authority, stranger):
    expired = authority.issue("a", expired=True)

    with pytest.raises(InvalidConfigError, match="has expired"):
        MutualTLS.from_files(*expired, authority.file)
    with pytest.raises(InvalidConfigError, match="not yet valid"):
        MutualTLS.from_files(*authority.issue("a", early=True), authority.file)
    with pytest.raises(InvalidConfigError, match="issuer certificate"):
        MutualTLS.from_files(*stranger.issue("a"), authority.file)


def test_a_single_context_is_refused_before_anything_is_bound(authority):
    before = open_descriptors()

    with pytest.raises(InvalidConfigError, match=r"MutualTLS\.from_files"):
        TLSTransport("127.0.0.1:0", ssl_context=authority.contexts("a").server)

    assert open_descriptors() == before


def test_tls_does_not_warn_of_a_lack_of_protection(make, caplog):
    make("a", advertise="10.0.0.1:7000")
    TLSTransport("0.0.0.0:0", "10.0.0.1:7000", ssl_context=make("b")._tls._contexts).close()

    assert complaints(caplog) == []


def test_what_is_spoken_is_the_latest_version(make, b):
    context = make("a")._tls._contexts.client
    with context.wrap_socket(dial(b)) as sock:
        assert sock.version() == "TLSv1.3"
        assert sock.compression() is None


# ---- who is refused ----


def test_the_dialing_side_wants_the_id_it_dials_in_the_certificate(make, authority, inbox, caplog):
    b = serving(make("b", authority.contexts("x")), inbox)  # says it is b, and cannot prove it

    with pytest.raises(WrongServerError, match="does not name server b: it names x"):
        call(make("a"), b)

    assert inbox == []


def test_a_stranger_is_told_nothing(make, authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        calling = InBackground(lambda: make("a").append_entries("b", address, REQUEST))
        sock, _ = listener.accept()
        with authority.contexts("x").server.wrap_socket(sock, server_side=True) as stranger:
            stranger.settimeout(PATIENCE)

            assert stranger.recv(1) == b""

    assert isinstance(calling.outcome(), WrongServerError)


def test_the_dialed_side_wants_the_claimed_id_in_the_certificate(make, authority, b, inbox, caplog):
    liar = make("a", authority.contexts("x"))

    for _ in range(3):
        with pytest.raises(WrongServerError, match="does not name server a: it names x"):
            call(liar, b)

    assert inbox == []
    b.close()
    assert len(complaints(caplog)) == 1


def test_who_claims_no_id_is_refused(make, authority, b, inbox):
    with pytest.raises(WrongServerError, match="without an id"):
        call(make("", authority.contexts("a")), b)

    assert inbox == []


def test_a_certificate_that_names_nobody_is_refused(make, authority, b, inbox):
    nobody = make("b", authority.contexts(names=[]))  # whatever its common name

    with pytest.raises(WrongServerError, match="names none"):
        call(nobody, b)
    with pytest.raises(WrongServerError, match="names none"):
        call(make("a"), serving(nobody, inbox))

    assert inbox == []


def test_who_dials_any_server_learns_a_proved_id(make, authority, b, inbox):
    assert call(make("a"), b, "") == RESPONSE

    liar = serving(make("c", authority.contexts("x")), inbox)
    with pytest.raises(WrongServerError):
        call(make("a"), liar, "")


def refused_dialing(make, authority, stranger, how):
    """A transport whose dialing must be refused, for one reason or another."""
    if how == "other authority":
        return make("a", stranger.contexts("a", trust=authority))
    if how == "expired":
        return make("a", authority.contexts("a", expired=True))
    if how == "no certificate":
        contexts = authority.contexts("a")
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname = False
        bare.load_verify_locations(authority.file)
        return make("a", MutualTLS(contexts.server, bare))
    return make("a", kind=TCPTransport)


@pytest.mark.parametrize(
    ("how", "logged", "told"),
    [
        ("other authority", "self-signed|local issuer", "unknown ca"),
        ("expired", "certificate has expired", "certificate expired"),
        ("no certificate", "did not return a certificate", "certificate required"),
        ("plain text", "does not speak TLS", "TLS is on at one end only"),
    ],
)
def test_who_cannot_prove_itself_is_refused_with_one_line(
    make, authority, stranger, b, inbox, caplog, how, logged, told
):
    refused, good = refused_dialing(make, authority, stranger, how), make("c")
    call(good, b)
    before = open_descriptors()

    errors = [raised_by(lambda: call(refused, b)) for _ in range(3)]

    assert call(good, b) == RESPONSE
    assert [command.header.id for command in inbox] == [good._identity.server_id] * 2
    for error in errors:
        assert isinstance(error, PeerUnreachableError)
        assert told in str(error)
    refused.close()
    b.close()
    assert open_descriptors() < before
    assert len(complaints(caplog)) == 1
    assert any(part in complaints(caplog)[0] for part in logged.split("|"))


@pytest.mark.parametrize(
    ("how", "told"), [("other authority", "certificate is refused"), ("expired", "has expired")]
)
def test_who_is_dialed_must_prove_itself_too(make, authority, stranger, inbox, caplog, how, told):
    contexts = (
        authority.contexts("b", expired=True)
        if how == "expired"
        else stranger.contexts("b", trust=authority)
    )
    b, a = serving(make("b", contexts), inbox), make("a")
    before = open_descriptors()

    errors = [raised_by(lambda: call(a, b)) for _ in range(3)]

    assert inbox == []
    assert all(isinstance(e, TransportError) and told in str(e) for e in errors)
    a.close()
    b.close()
    assert open_descriptors() < before
    assert len(complaints(caplog)) == 1  # the dialed side says that it was refused


def test_tls_to_a_plain_port_is_refused_with_one_line(make, inbox, caplog):
    plain = serving(make("b", kind=TCPTransport), inbox)
    a = make("a")

    errors = [raised_by(lambda: call(a, plain)) for _ in range(3)]

    assert inbox == []
    assert all("TLS is on at one end only" in str(e) for e in errors)
    plain.close()
    assert ["begins with TLS" in line for line in complaints(caplog)] == [True]


# ---- handshakes that do not end ----


def hello(context):
    """What a client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("share", [0, 2, 1])
def test_a_handshake_that_stalls_is_ended(make, inbox, caplog, share):
    b = serving(make("b", handshake_timeout=0.05), inbox)
    said = hello(make("a")._tls._contexts.client)

    with dial(b) as sock:
        sock.sendall(said[: len(said) // share] if share else b"")
        if share == 1:
            assert sock.recv(1)  # the server's part, which is not answered
            while sock.recv(65536):
                pass
        else:
            assert is_closed_by_peer(sock)

    b.close()
    assert len(complaints(caplog)) == 1
    assert transport_threads() == []


def test_a_handshake_that_stalls_holds_nobody_up(make, inbox):
    b = serving(make("b", handshake_timeout=60.0), inbox)
    with dial(b), dial(b) as half:
        half.sendall(b"\x16\x03\x01\x02\x00")

        assert call(make("a"), b) == RESPONSE


def test_closing_ends_a_handshake_that_stalls(make, inbox):
    b = serving(make("b", handshake_timeout=60.0), inbox)
    call(make("a"), b)
    with dial(b) as silent:
        assert call(make("a"), b) == RESPONSE  # so that the silent one has been accepted

        b.close()

        assert is_closed_by_peer(silent)
    assert transport_threads() == []


def test_dialing_a_silent_peer_times_out(make):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        error = raised_by(lambda: make("a").append_entries("b", address, REQUEST, 0.05))

    assert isinstance(error, RPCTimeoutError)


def test_closing_ends_a_dial_to_a_silent_peer(make):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        a = make("a")
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        calling = InBackground(lambda: a.append_entries("b", address, REQUEST, 60.0))
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(1) == b"\x16"

            a.close()

            assert isinstance(calling.outcome(), TransportShutdownError)


# ---- calls ----


def test_a_connection_is_used_again_though_tickets_come(make, authority, inbox):
    contexts = authority.contexts("b")
    contexts.server.num_tickets = 2  # they come behind the handshake, and look like an answer
    a, b = make("a"), serving(make("b", contexts), inbox)

    for _ in range(5):
        call(a, b)

    assert transport_threads() == ["raft-b-accept", "raft-b-conn-1"]


def test_contexts_of_tls_1_2_do(make, authority, inbox):
    contexts = authority.contexts("b")
    contexts.server.minimum_version = ssl.TLSVersion.TLSv1_2
    contexts.server.maximum_version = ssl.TLSVersion.TLSv1_2
    theirs = authority.contexts("a")
    theirs.client.minimum_version = ssl.TLSVersion.TLSv1_2
    a, b = make("a", theirs), serving(make("b", contexts), inbox)

    assert call(a, b) == RESPONSE
    with pytest.raises(TransportError, match="protocol version"):
        call(make("c"), b)


def test_a_snapshot_arrives_whole_and_heartbeats_pass_it(make):
    size = 24 * 1024 * 1024
    request = InstallSnapshotRequest(RPCHeader("a"), 3, 9, 2, size=size)
    a, b = make("a"), make("b")
    b.set_heartbeat_handler(answer_with(RESPONSE))
    snapshots = queue.Queue()
    b.deliver_to(snapshots.put)
    sending = InBackground(
        lambda: a.install_snapshot("b", b.local_addr(), request, Zeros(size), 60.0)
    )
    rpc = snapshots.get(timeout=PATIENCE)

    received = 0
    while received < size:
        received += len(rpc.reader.read(1024 * 1024))
        assert a.append_entries("b", b.local_addr(), HEARTBEAT) == RESPONSE
    rpc.respond(INSTALLED)

    assert received == size
    assert sending.outcome() == INSTALLED


def test_closing_ends_a_snapshot_on_its_way(make):
    size = 64 * 1024 * 1024
    request = InstallSnapshotRequest(RPCHeader("a"), 3, 9, 2, size=size)
    a, b = make("a"), make("b")
    arrived = threading.Event()
    b.deliver_to(lambda _: arrived.set())
    sending = InBackground(
        lambda: a.install_snapshot("b", b.local_addr(), request, Zeros(size), 60.0)
    )
    assert arrived.wait(PATIENCE)

    a.close()

    assert isinstance(sending.outcome(), TransportShutdownError)


# ---- certificates in life ----


def test_a_connection_ends_with_the_certificate_of_its_peer(make, inbox, monkeypatch):
    a, b = make("a"), serving(make("b"), inbox)
    assert call(a, b) == RESPONSE
    later = time.time_ns() + 61 * 86400 * 10**9
    monkeypatch.setattr(type(THREADS), "wall_time_ns", staticmethod(lambda: later))

    with pytest.raises(TransportError):
        call(a, b)


def test_a_revoked_certificate_opens_nothing(make, authority, inbox):
    files = {name: authority.issue(name) for name in "abc"}
    crl = authority.revoke(files["c"][0])

    def contexts(name):
        return MutualTLS.from_files(*files[name], authority.file, revoked=crl)

    b = serving(make("b", contexts("b")), inbox)

    assert call(make("a", contexts("a")), b) == RESPONSE
    with pytest.raises(TransportError):
        call(make("c", MutualTLS._load(*files["c"], authority.file, None)), b)
    with pytest.raises(InvalidConfigError, match="revoked"):
        contexts("c")


def test_a_list_of_revoked_certificates_must_be_one(authority, tmp_path):
    with pytest.raises(InvalidConfigError, match=r"list of revoked certificates .*gone"):
        MutualTLS.from_files(*authority.issue("a"), authority.file, revoked=tmp_path / "gone")


def test_a_context_that_was_weakened_afterwards_is_noticed(make, authority, inbox):
    weak = authority.contexts("b")
    b = serving(make("b", weak), inbox)
    weak.server.verify_mode = ssl.CERT_NONE

    with pytest.raises(TransportError):
        call(make("a"), b)
    assert inbox == []


def test_a_private_key_that_others_can_read_is_warned_of(authority, caplog):
    certificate, key = authority.issue("a")
    key.chmod(0o600)
    MutualTLS.from_files(certificate, key, authority.file)
    assert "private key" not in caplog.text

    key.chmod(0o640)
    MutualTLS.from_files(certificate, key, authority.file)

    assert f"others may read the private key: chmod 600 path={key}" in caplog.text


# ---- reloading ----


def test_new_certificates_count_from_the_next_connection_on(make, authority, stranger, b, inbox):
    a, late = make("a"), make("c")
    pipeline = a.append_entries_pipeline("b", b.local_addr())

    b.reload(stranger.contexts("b"))

    pipeline.append_entries(REQUEST)  # what is open goes on
    assert pipeline.receive(PATIENCE) == RESPONSE
    pipeline.close()
    with pytest.raises(TransportError):
        call(late, b)
    late.reload(stranger.contexts("c"))
    assert call(late, b) == RESPONSE


def test_idle_connections_outlive_a_reload_until_they_are_closed(make, stranger, b):
    a = make("a")
    call(a, b)
    a.reload(stranger.contexts("a"))

    assert call(a, b) == RESPONSE
    a.close_streams()
    with pytest.raises(TransportError):
        call(a, b)


def test_a_reload_that_cannot_be_changes_nothing(make, b):
    a = make("a")

    with pytest.raises(InvalidConfigError):
        a.reload(None)

    assert call(a, b) == RESPONSE


@pytest.mark.parametrize("days", [10, 60])
def test_a_certificate_is_warned_of_two_weeks_ahead(make, authority, caplog, days):
    a = make("a")
    a.reload(authority.contexts("a", days=days))

    assert (a.certificate_end() - time.time()) / 86400 == pytest.approx(days, abs=0.1)
    assert ("certificate expires soon" in caplog.text) == (days == 10)


def test_a_certificate_is_warned_of_though_nobody_connects(make, caplog, monkeypatch):
    a = make("a")
    a.consumer()
    monkeypatch.setattr("raft.transport.tls._SOON", 100 * 86400)

    wait_for(lambda: "certificate expires soon" in caplog.text)


def test_a_reload_of_what_nobody_would_accept_changes_nothing(make, authority, stranger, b):
    a = make("a")
    a.identify("a", lambda: None)

    for contexts, told in [
        (authority.contexts("a", expired=True), "has expired"),
        (authority.contexts("a", early=True), "not yet valid"),
        (stranger.contexts("a", trust=authority), "issuer certificate"),
        (authority.contexts("c"), "names c, not a"),
    ]:
        with pytest.raises(InvalidConfigError, match=told):
            a.reload(contexts)

    assert call(a, b) == RESPONSE


# ---- streams ----


@pytest.fixture
def streams(authority):
    """Both ends of a connection, hands shaken."""
    ends = []
    contexts = authority.contexts("b")
    contexts.server.num_tickets = 2
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # records leave in pieces
    for sock, context, inbound in zip(
        pair, (contexts.client, contexts.server), (False, True), strict=True
    ):
        ends.append(TLSStream(sock, "peer", THREADS, lambda _: None, context, inbound=inbound))
    other = InBackground(lambda: ends[1].secure(PATIENCE))
    assert ends[0].secure(PATIENCE) == {"b"}
    assert other.outcome() == {"b"}
    yield ends
    for end in ends:
        end.close()


def receive(stream, count):
    data = bytearray(count)
    at = 0
    while at < count:
        at += stream.receive_into(memoryview(data)[at:], PATIENCE)
    return bytes(data)


def test_both_ends_send_and_receive_at_once(streams):
    blocks = [bytes([side]) * 70_000 + b"end" for side in (1, 2)]
    whole = [block * 100 for block in blocks]

    sending = [
        InBackground(lambda s=s, w=w: s.send(w, PATIENCE))
        for s, w in zip(streams, whole, strict=True)
    ]
    receiving = [
        InBackground(lambda s=s, w=w: receive(s, len(w)))
        for s, w in zip(reversed(streams), whole, strict=True)
    ]

    assert [r.outcome() for r in receiving] == whole
    assert [s.outcome() for s in sending] == [None, None]


def test_what_was_looked_for_is_received_first(streams):
    near, far = streams
    assert near.wait_readable(0.01) is False  # tickets are no input

    far.send(b"hello", PATIENCE)

    assert near.wait_readable(PATIENCE)
    assert near.wait_readable(0)
    assert receive(near, 5) == b"hello"
    assert near.wait_readable(0) is False


def test_the_end_is_seen_and_the_other_way_stays_open(streams):
    near, far = streams
    far.send(b"bye", PATIENCE)
    far.end_sending()

    assert receive(near, 3) == b"bye"
    assert near.wait_readable(PATIENCE)
    assert near.receive_into(memoryview(bytearray(1)), PATIENCE) == 0
    near.send(b"and you", PATIENCE)
    assert receive(far, 7) == b"and you"


def test_closing_wakes_both_directions(streams):
    near, _ = streams
    sending = InBackground(lambda: near.send(bytes(64 * 1024 * 1024), 60.0))
    waiting = InBackground(lambda: near.receive_into(memoryview(bytearray(1)), 60.0))
    near.wait_readable(0)

    near.close()

    assert isinstance(sending.outcome(), ConnectionLostError)
    assert isinstance(waiting.outcome(), ConnectionLostError)


def test_bytes_changed_on_the_way_end_the_connection(streams):
    near, far = streams
    far.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))

    error = raised_by(lambda: near.receive_into(memoryview(bytearray(1)), PATIENCE))

    assert isinstance(error, ConnectionLostError)
    assert "bad record mac" in str(error)


def test_opening_and_closing_leaves_nothing_behind(authority):
    contexts = {each: authority.contexts(each) for each in "ab"}

    def cycle():
        a, b = (TLSTransport("127.0.0.1:0", ssl_context=contexts[each]) for each in "ab")
        a.identify("a", lambda: None)
        b.identify("b", lambda: None)
        serving(b, [])
        call(a, b)
        request = InstallSnapshotRequest(RPCHeader("a"), 3, 9, 2)
        a.install_snapshot("b", b.local_addr(), request, io.BytesIO())
        a.close()
        b.close()

    cycle()
    before = open_descriptors(), threading.active_count()
    for _ in range(20):
        cycle()

    assert (open_descriptors(), threading.active_count()) == before


# ---- docs/transports.md ----

GUIDE = Path(__file__).parents[3] / "docs" / "transports.md"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the recipe is for openssl")
def test_certificates_made_by_the_recipe_are_good(make, inbox, tmp_path):
    recipe = re.search(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)[1]
    subprocess.run(["sh", "-euc", recipe], cwd=tmp_path, check=True, capture_output=True)
    node1, node2 = (
        make(
            name,
            MutualTLS.from_files(
                tmp_path / f"{name}.crt", tmp_path / f"{name}.key", tmp_path / "ca.crt"
            ),
        )
        for name in ("node1", "node2")
    )

    assert call(node1, serving(node2, inbox), "node2") == RESPONSE


def test_a_request_in_another_server_s_name_is_never_delivered(make, b, inbox):
    """The certificate is `c`'s, the request says it comes from `a`."""
    c = make("c")

    assert isinstance(
        raised_by(lambda: c.append_entries("b", b.local_addr(), REQUEST)), TransportError
    )
    assert inbox == []
    assert call(make("a"), b) == RESPONSE
