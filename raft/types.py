"""Plain data of the Raft log and of cluster membership (thesis chapters 3 and 4).

Values only: no I/O, no threads. The integer values of the enumerations are written to disk and to
the wire, by us and by hashicorp/raft, and are never renumbered.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TypeAlias

ServerID: TypeAlias = str
ServerAddress: TypeAlias = str

NO_INDEX = 0
"""Log indexes start at 1; 0 means "none"."""
NO_TERM = 0
"""Terms start at 1; 0 means "none"."""

PROTOCOL_VERSION = 3
"""The only protocol version spoken: server ids everywhere (hashicorp/raft's version 3)."""
SNAPSHOT_VERSION = 1
"""The only snapshot version written: it carries the whole configuration."""

_CHECKSUM_HEAD = struct.Struct(">QQBqI")  # index, term, type, appended_at, length of data


class RaftState(IntEnum):
    """The role of a node."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    SHUTDOWN = 3

    def __str__(self) -> str:
        return self.name.capitalize()


class LogType(IntEnum):
    """What a log entry means to the node that applies it."""

    COMMAND = 0
    NOOP = 1
    ADD_PEER_DEPRECATED = 2
    REMOVE_PEER_DEPRECATED = 3
    BARRIER = 4
    CONFIGURATION = 5


class ServerSuffrage(IntEnum):
    """Whether a server's vote and its acknowledgements count."""

    VOTER = 0
    NONVOTER = 1
    STAGING = 2  # deprecated by the original; read, never written by us


def log_checksum(
    index: int, term: int, kind: LogType, data: bytes, extensions: bytes, appended_at: int
) -> int:
    """Return the CRC32 over the fields of an entry, never 0."""
    head = _CHECKSUM_HEAD.pack(index, term, kind, appended_at, len(data))
    crc = zlib.crc32(data, zlib.crc32(head))
    if extensions:
        crc = zlib.crc32(extensions, crc)
    return crc or 1


@dataclass(frozen=True, slots=True)
class Log:
    """One entry of the replicated log (§5.3).

    `appended_at` is the leader's wall clock in nanoseconds since the epoch, for information only
    (0 when unknown). `checksum` covers all other fields; the leader computes it once and it
    travels with the entry over the wire and to disk. 0 means "not computed yet".
    """

    index: int
    term: int
    type: LogType = LogType.COMMAND
    data: bytes = b""
    extensions: bytes = b""
    appended_at: int = 0
    checksum: int = 0

    def compute_checksum(self) -> int:
        """Return the CRC32 over every field but the checksum itself, never 0."""
        return log_checksum(
            self.index, self.term, self.type, self.data, self.extensions, self.appended_at
        )

    def sealed(self) -> Log:
        """Return this entry with its checksum filled in."""
        return self if self.checksum else replace(self, checksum=self.compute_checksum())

    def is_intact(self) -> bool:
        """Tell whether the checksum is present and matches the content."""
        try:
            return self.checksum == self.compute_checksum()
        except struct.error:
            return False  # a damaged number that no entry can have

    def size(self) -> int:
        """Return about how many bytes the entry takes in a message or in memory."""
        return len(self.data) + len(self.extensions) + ENTRY_OVERHEAD


ENTRY_OVERHEAD = 64
"""Bytes charged per entry on top of its payload when batches and caches are bounded by size."""


@dataclass(frozen=True, slots=True)
class Server:
    """One member of the cluster."""

    id: ServerID
    address: ServerAddress
    suffrage: ServerSuffrage = ServerSuffrage.VOTER


@dataclass(frozen=True, slots=True, init=False)
class Configuration:
    """The members of the cluster; ids and addresses are unique, order has no meaning.

    Immutable, so it may be shared between threads. Built from any iterable of servers.
    """

    servers: tuple[Server, ...]

    def __init__(self, servers: tuple[Server, ...] | list[Server] = ()) -> None:
        object.__setattr__(self, "servers", tuple(servers))

    def clone(self) -> Configuration:
        """Return an equal configuration (the original's deep copy; here values never change)."""
        return Configuration(self.servers)

    def server(self, server_id: ServerID) -> Server | None:
        """Return the member with this id, or None."""
        for server in self.servers:
            if server.id == server_id:
                return server
        return None

    def has_vote(self, server_id: ServerID) -> bool:
        """Tell whether this server is a voter here."""
        server = self.server(server_id)
        return server is not None and server.suffrage is ServerSuffrage.VOTER

    def voters(self) -> tuple[Server, ...]:
        """Return the voters, in order."""
        return tuple(s for s in self.servers if s.suffrage is ServerSuffrage.VOTER)

    def has_other_voter(self, server_id: ServerID) -> bool:
        """Tell whether anybody else votes."""
        return any(server.id != server_id for server in self.voters())

    def quorum(self) -> int:
        """Return how many voters make a majority."""
        return len(self.voters()) // 2 + 1

    def __str__(self) -> str:
        return "[" + ", ".join(f"{s.id}@{s.address}:{s.suffrage.name}" for s in self.servers) + "]"


EMPTY_CONFIGURATION = Configuration()


@dataclass(frozen=True, slots=True)
class Peer:
    """What a node knows of another member: `Raft.peers`.

    Only a leader knows what is None else. `lag` is in entries, `last_contact` in seconds since the
    last answer.
    """

    id: ServerID
    address: ServerAddress
    suffrage: ServerSuffrage
    counts: bool | None = None
    """Whether its answers count for a majority: it has a vote, and the data directory that it had
    when it was counted on first."""
    match_index: int | None = None
    next_index: int | None = None
    lag: int | None = None
    last_contact: float | None = None
    failures: int = 0
    """Failures in a row of what is sent to it; 0 if the last one is over."""
    last_error: str = ""
    """What failed last; on a server without a leader, why this peer gave it no vote."""
    activity: str = ""
    """"probing" for where the logs agree, "pipelining" entries, or "snapshot 40 %"."""

    def __str__(self) -> str:
        parts = [f"{self.id}@{self.address}:{self.suffrage.name}"]
        if self.match_index is not None:
            parts.append(
                f"{self.activity} match={self.match_index} next={self.next_index} lag={self.lag}"
                f" contact={self.last_contact:.3f}s failures={self.failures}"
            )
        if self.counts is False and self.suffrage is ServerSuffrage.VOTER:
            parts.append("does not count: it has another data directory than before")
        if self.last_error:
            parts.append(f"error={self.last_error}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot covers: the log up to `index`, and the configuration as of there (§7).

    `unsettled` marks the snapshot of a user restore that is not known to be committed yet.
    `checksum` is the CRC-64/XZ of the content, 16 hexadecimal digits; "" where it is not known.
    """

    id: str
    index: int
    term: int
    configuration: Configuration
    configuration_index: int
    size: int = 0
    version: int = SNAPSHOT_VERSION
    unsettled: bool = False
    checksum: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, order=True)
class EntryID:
    """The position of an entry: ordered as §5.4.1 orders logs, by term and then by index."""

    term: int = NO_TERM
    index: int = NO_INDEX


NO_ENTRY = EntryID()
"""The position before the first entry."""


MOST_NAME_BYTES = 1024
"""The longest id or address: a greeting has room for 8 KiB, with several of them."""

_LONGEST_TEXT = 1000  # characters of what a stranger says


def check_name(what: str, name: object) -> None:
    """Raise `ValueError` unless this can be an id or an address: printable, of 1,024 bytes at most.

    Whatever else it had, a newline or an escape, would forge lines of logs and of terminals.
    """
    if not isinstance(name, str):
        raise ValueError(f"{what} must be a string, not {type(name).__name__}")
    if not name:
        raise ValueError(f"{what} is empty: give it one")
    if not name.isprintable():
        raise ValueError(f"{what} has characters that cannot be printed: {plain(ascii(name))}")
    if len(name.encode()) > MOST_NAME_BYTES:
        raise ValueError(f"{what} is too long: at most {MOST_NAME_BYTES} bytes")


def plain(text: str) -> str:
    """Return what a stranger says as one line that can be logged: short, and printable."""
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def check_address(address: ServerAddress) -> None:
    """Raise `ValueError` for an address that no transport could dial; a transport may want more."""
    if "://" in address:
        raise ValueError(f"{address!r} is a URL: give host:port alone, as in 10.0.0.1:7000")
    host, colon, port = address.rpartition(":")
    if _ip_address(address) is not None:
        raise ValueError(
            f"{address!r} has no port: give host:port, as in 10.0.0.1:7000 or [fe80::1]:7000"
        )
    if not colon or not port.isdecimal():
        return  # a name that some transport may know
    ip = _ip_address(host)
    if not host or (ip is not None and ip.is_unspecified) or int(port) == 0:
        raise ValueError(
            f"{address!r} names no host and port that others can dial: 0.0.0.0 and port 0 are for"
            " listening"
        )


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def check_configuration(configuration: Configuration) -> None:
    """Raise `ValueError` naming the first fault that makes a configuration unusable."""
    ids: set[ServerID] = set()
    addresses: dict[ServerAddress, ServerID] = {}
    for server in configuration.servers:
        if type(server) is not Server or type(server.suffrage) is not ServerSuffrage:
            raise ValueError(f"no Server, or its suffrage is no ServerSuffrage: {server!r}")
        if not server.id:
            raise ValueError(f"empty ID in configuration: {configuration}")
        if not server.address:
            raise ValueError(f"empty address in configuration: {configuration}")
        check_name("a server's ID in the configuration", server.id)
        check_name(f"the address of {server.id} in the configuration", server.address)
        if server.id in ids:
            raise ValueError(f"found duplicate ID in configuration: {server.id}")
        if server.address in addresses:
            raise ValueError(
                f"found duplicate address in configuration: {server.address} of {server.id} is that"
                f" of {addresses[server.address]}"
            )
        ids.add(server.id)
        addresses[server.address] = server.id
    if not configuration.voters():
        raise ValueError(f"need at least one voter in configuration: {configuration}")


def check_type(name: str, value: object, wanted: type) -> None:
    """Raise `TypeError` for an argument of another type, before a thread of a node meets it."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be {wanted.__name__}, not {type(value).__name__}")


def check_entries(logs: Sequence[Log]) -> None:
    """Raise unless any store can keep these: numbers of 63 bits, and bytes that never change."""
    for log in logs:
        if type(log.data) is not bytes or type(log.extensions) is not bytes:
            raise TypeError(f"data and extensions of entry {log.index} must be bytes")
        if not 0 <= log.index < 2**63 or not 0 <= log.term < 2**63:
            raise ValueError(f"index {log.index} or term {log.term} does not fit into 63 bits")


def check_cluster_id(cluster_id: str | None) -> None:
    """Raise `TypeError` or `ValueError` unless each handshake can carry this id, for good."""
    if cluster_id is None:
        return
    check_type("cluster_id", cluster_id, str)
    if cluster_id:
        check_name("cluster_id", cluster_id)
