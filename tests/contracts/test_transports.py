"""The transports of `raft.transport` keep the contract that third parties' are tested for."""

import pytest

from raft.codec import decode_message, encode_message
from raft.messages import RPCHeader, TimeoutNowRequest
from raft.testing.transport_contract import TransportContract
from raft.transport import InmemTransport, TCPTransport, TLSTransport
from tests.unit.transport.certificates import Authority


def identified(a, b):
    a.identify("a", lambda: "cluster")
    b.identify("b", lambda: "cluster")
    return a, b


class TestInmemTransport(TransportContract):
    @pytest.fixture
    def transports(self):
        a, b = InmemTransport(timeout=5.0), InmemTransport(timeout=5.0)
        a.connect(b.local_addr(), b)
        b.connect(a.local_addr(), a)
        yield identified(a, b)
        a.close()
        b.close()


class TestTCPTransport(TransportContract):
    @pytest.fixture
    def transports(self):
        a, b = TCPTransport("127.0.0.1:0", timeout=5.0), TCPTransport("127.0.0.1:0", timeout=5.0)
        yield identified(a, b)
        a.close()
        b.close()


class TestTLSTransport(TransportContract):
    @pytest.fixture
    def transports(self, tmp_path):
        authority = Authority(tmp_path)
        a, b = (
            TLSTransport("127.0.0.1:0", timeout=5.0, ssl_context=authority.contexts(each))
            for each in "ab"
        )
        yield identified(a, b)
        a.close()
        b.close()


class TestTCPTransportThatLooksAddressesUp(TransportContract):
    @pytest.fixture
    def transports(self):
        book = {}
        a, b = (TCPTransport("127.0.0.1:0", None, 5.0, 3, Book(book)) for _ in "ab")
        book.update(a=a.local_addr(), b=b.local_addr(), c=b.local_addr())
        yield identified(a, b)
        a.close()
        b.close()


class Book:
    def __init__(self, addresses):
        self._addresses = addresses

    def server_addr(self, server_id):
        return self._addresses[server_id]


@pytest.mark.parametrize(
    "make", [lambda: InmemTransport("a:1"), lambda: TCPTransport("127.0.0.1:0")]
)
def test_an_address_is_the_same_behind_the_wire(make):
    """TRA-06, TRA-27: there is no encoding of addresses alone, they are text in headers."""
    transport = make()
    request = TimeoutNowRequest(RPCHeader("a", transport.local_addr()))

    assert decode_message(*encode_message(request)).header.address == transport.local_addr()
    transport.close()
