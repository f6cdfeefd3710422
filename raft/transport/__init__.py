"""Transports: how nodes talk to each other."""

from raft.transport.certificates import MutualTLS
from raft.transport.inmem import InmemTransport
from raft.transport.network import NetworkTransport
from raft.transport.stream import Stream, StreamLayer
from raft.transport.tcp import TCPStreamLayer, TCPTransport
from raft.transport.tls import TLSStreamLayer, TLSTransport

__all__ = [
    "InmemTransport",
    "MutualTLS",
    "NetworkTransport",
    "Stream",
    "StreamLayer",
    "TCPStreamLayer",
    "TCPTransport",
    "TLSStreamLayer",
    "TLSTransport",
]
