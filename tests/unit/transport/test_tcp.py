"""Addresses, listening and dialing."""

import logging
import socket
import threading

import pytest

from raft.errors import ConnectionLostError, InvalidConfigError, PeerUnreachableError
from raft.runtime import THREADS
from raft.testing.transport_contract import InBackground, raised_by
from raft.transport import TCPStreamLayer, TCPTransport, tcp
from raft.transport.tcp import join_address, split_address
from tests.unit.transport.tools import (
    PATIENCE,
    REQUEST,
    address_without_listener,
    open_descriptors,
    telling,
)


@pytest.fixture
def layer():
    layer = TCPStreamLayer("127.0.0.1:0", None, THREADS)
    yield layer
    layer.close()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("node.example:1", ("node.example", 1)),
        ("[::1]:7000", ("::1", 7000)),
        (":0", ("", 0)),
    ],
)
def test_addresses_are_taken_apart_and_put_together(text, parts):
    assert split_address(text) == parts
    assert join_address(*parts) == text


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:65536", "::1:7000", "h:-1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r"form host:port|brackets"):
        split_address(text)


def test_port_zero_takes_a_free_one_and_tells(layer):
    host, port = split_address(layer.local_addr())

    assert host == "127.0.0.1"
    assert port > 0


@pytest.mark.parametrize("bind", ["0.0.0.0:0", ":0", "[::]:0"])
def test_an_address_nobody_can_dial_asks_for_another(bind):
    """TRA-31, TRA-32."""
    before = open_descriptors()

    with pytest.raises(InvalidConfigError, match="not advertisable: pass advertise=") as caught:
        TCPTransport(bind)

    assert isinstance(caught.value, ValueError)
    assert open_descriptors() == before


@pytest.mark.parametrize("advertise", ["0.0.0.0:7000", ":7000", "host", "10.0.0.1:0", "[::]:1"])
def test_an_advertised_address_must_be_one_to_dial(advertise):
    with pytest.raises(InvalidConfigError, match="advertise"):
        TCPTransport("127.0.0.1:0", advertise=advertise)


def test_the_advertised_address_is_the_local_one():
    """TRA-33."""
    transport = TCPTransport("0.0.0.0:0", advertise="node.example:12345")

    assert transport.local_addr() == "node.example:12345"
    transport.close()


def test_a_bind_address_without_a_meaning_here_is_named():
    with pytest.raises(OSError, match=r"bind address '\[::no\]:7000': "):
        TCPTransport("[::no]:7000")


def test_a_bind_address_that_is_none_names_its_fault():
    with pytest.raises(InvalidConfigError, match="bind address"):
        TCPTransport("nonsense")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("timeout", 0.0),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("handshake_timeout", -1.0),
        ("max_pool", -1),
        ("max_inbound", 0),
    ],
)
def test_an_argument_out_of_range_is_named_and_the_port_is_free_again(layer, argument, value):
    port = split_address(layer.local_addr())[1]
    layer.close()
    with pytest.raises(InvalidConfigError, match=f"^{argument} must be"):
        TCPTransport(f"127.0.0.1:{port}", **{argument: value})
    TCPTransport(f"127.0.0.1:{port}").close()


def test_what_the_system_says_of_a_bind_passes_through(layer):
    with pytest.raises(OSError, match="in use"):
        TCPStreamLayer(layer.local_addr(), None, THREADS)


def test_only_loopback_is_bound_without_a_warning(caplog):
    caplog.set_level(logging.WARNING, "raft.transport")
    TCPTransport("127.0.0.1:0").close()
    assert caplog.records == []

    TCPTransport("0.0.0.0:0", advertise="10.0.0.1:7000").close()
    assert [r.getMessage() for r in caplog.records] == [
        "plain tcp is not protected address=10.0.0.1:7000"
    ]


# ---- dialing ----


def test_nobody_listening_is_unreachable(layer):
    with address_without_listener() as address:
        error = raised_by(lambda: layer.dial(address, PATIENCE))

    assert isinstance(error, PeerUnreachableError)
    assert str(error).startswith(f"failed to connect to peer: {address}")


def test_sockets_send_at_once_and_probe_the_silent(layer):
    near = layer.dial(layer.local_addr(), PATIENCE)
    far = layer.accept(PATIENCE)

    for stream in (near, far):
        assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_accepting_gives_up_when_nobody_comes(layer):
    assert layer.accept(0.01) is None


def test_closing_the_layer_closes_every_stream(layer):
    near = layer.dial(layer.local_addr(), PATIENCE)
    far = layer.accept(PATIENCE)
    waiting = InBackground(lambda: far.wait_readable(60.0))
    accepting = InBackground(lambda: layer.accept(60.0))

    layer.close()

    waiting.outcome()  # an error, or the end that closing the other side made
    assert isinstance(accepting.outcome(), ConnectionLostError)
    assert near.sock.fileno() == far.sock.fileno() == -1


def test_closing_the_layer_gives_up_dialing(monkeypatch):
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    address = join_address(*full.getsockname())
    layer = TCPStreamLayer("127.0.0.1:0", None, THREADS)
    # What is not accepted fills the backlog, until a further connection has to wait.
    dials = iter(lambda: layer.dial(address, 0.2), None)
    with pytest.raises(PeerUnreachableError, match="no answer"):
        list(dials)
    begun = threading.Event()
    monkeypatch.setattr(layer, "_own", telling(begun, layer._own))
    dialing = InBackground(lambda: layer.dial(address, 60.0))
    assert begun.wait(PATIENCE)

    layer.close()

    assert isinstance(dialing.outcome(), PeerUnreachableError)
    full.close()


def test_a_closed_layer_does_not_dial(layer):
    address = layer.local_addr()
    layer.close()

    with pytest.raises(PeerUnreachableError):
        layer.dial(address, PATIENCE)


# ---- names ----


def test_names_are_resolved_anew_at_each_dial(layer, monkeypatch):
    port = split_address(layer.local_addr())[1]
    hosts = iter(["127.0.0.1", "127.0.0.1"])
    asked = []
    ask = tcp._ask

    def answer(host, port, flags):
        if host != "moving.example":
            return ask(host, port, flags)
        if flags:
            raise socket.gaierror("a name")
        asked.append(host)
        return ask(next(hosts), port, 0)

    monkeypatch.setattr(tcp, "_ask", answer)
    layer.dial(f"moving.example:{port}", PATIENCE)
    layer.dial(f"moving.example:{port}", PATIENCE)

    assert len(asked) == 2


def test_every_address_of_a_name_is_tried(layer, monkeypatch):
    port = split_address(layer.local_addr())[1]
    ask = tcp._ask

    def answer(host, port, flags):
        if flags:
            raise socket.gaierror("a name")
        return ask("127.0.0.1", split_address(dead)[1], 0) + ask("127.0.0.1", port, 0)

    monkeypatch.setattr(tcp, "_ask", answer)

    with address_without_listener() as dead:
        assert layer.dial(f"two.example:{port}", PATIENCE).peer == f"two.example:{port}"


def test_a_resolver_that_hangs_does_not_hold_up_the_caller(layer, monkeypatch):
    hang = threading.Event()
    asked = []

    def answer(host, port, flags):
        if flags:
            raise socket.gaierror("a name")
        asked.append(host)
        hang.wait(PATIENCE)
        return []

    monkeypatch.setattr(tcp, "_ask", answer)
    errors = [raised_by(lambda: layer.dial("slow.example:1", 0.02)) for _ in range(3)]
    waiting = InBackground(lambda: layer.dial("slow.example:1", 60.0))
    layer.close()
    errors.append(waiting.outcome())
    hang.set()

    assert all(isinstance(error, PeerUnreachableError) for error in errors)
    assert len(asked) <= 2


def test_a_name_without_address_is_unreachable(layer, monkeypatch):
    def answer(host, port, flags):
        raise socket.gaierror("no such name")

    monkeypatch.setattr(tcp, "_ask", answer)

    with pytest.raises(PeerUnreachableError, match="no such name"):
        layer.dial("nowhere.example:1", PATIENCE)


@pytest.mark.parametrize("address", ["nonsense", "a..b:1", "x" * 300 + ":1"])
def test_a_target_that_is_no_address_is_unreachable(address):
    transport = TCPTransport("127.0.0.1:0")

    with pytest.raises(PeerUnreachableError):
        transport.append_entries("b", address, REQUEST)
    transport.close()
