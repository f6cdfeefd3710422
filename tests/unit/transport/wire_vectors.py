"""What the golden files of the native protocol hold, and how new cases get into them.

`tests/vectors/frames.json` has, for each case below, the bytes on the wire in hexadecimal and the
decoded values beside them, for readers and for other implementations. Servers of different
releases talk to each other while a cluster is upgraded, so a case that is there is a promise:

    python -m tests.unit.transport.wire_vectors

writes the cases that the file lacks, and changes none that it has. Where a change of the format is
wanted, it wants a new protocol version, and the old cases stay.
"""

import dataclasses
import enum
import json
from pathlib import Path

from raft.errors import (
    ClusterMismatchError,
    NotLeaderError,
    UnsupportedProtocolError,
    WrongServerError,
)
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Note,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.transport.connection import CHUNK_FRAME, END_FRAME, WORKING_FRAME, Greeting
from raft.types import Configuration, Log, LogType, Server, ServerSuffrage
from tests.unit.transport.tools import PATIENCE, bare

FILE = Path(__file__).parents[2] / "vectors" / "frames.json"

A, B = RPCHeader("node-a", "10.0.0.1:7001"), RPCHeader("node-b", "[::1]:7002")
WHOLE = RPCHeader("node-a", "10.0.0.1:7001", incarnation="8796a5b4c3d2e1f0")
BIG = 2**64 - 1  # the largest number of an index or a term
STAMP = 1_700_000_000_123_456_789  # nanoseconds since the epoch
ENTRIES = (
    Log(101, 11, LogType.COMMAND, b"set x 1", b"ext", STAMP).sealed(),
    Log(102, 11, LogType.NOOP, appended_at=STAMP + 1).sealed(),
    Log(103, 12, LogType.ADD_PEER_DEPRECATED, b"\x90").sealed(),
    Log(104, 12, LogType.REMOVE_PEER_DEPRECATED, b"\x90", appended_at=-1).sealed(),
    Log(105, 12, LogType.BARRIER).sealed(),
    Log(106, 12, LogType.CONFIGURATION, b"\x81\xa7Servers\x90", bytes(range(256))).sealed(),
    Log(107, 12, LogType.COMMAND, "ü".encode() * 200),  # no checksum yet, as from a Go leader
)
SERVERS = Configuration(
    [
        Server("node-a", "10.0.0.1:7001"),
        Server("node-b", "[::1]:7002", ServerSuffrage.NONVOTER),
        Server("nöde c", "c.example:7003", ServerSuffrage.STAGING),
    ]
)
SNAPSHOT = InstallSnapshotRequest(A, 21, 22, 20, SERVERS, 19, 10, 1, True)
INSTALLED = InstallSnapshotResponse(B, 31, True)
CHUNKS = (b"012345", b"6789")  # the snapshot's ten bytes

GREETINGS = {
    "request": Greeting(1, 1, "cluster-1", "node-a", "node-b"),
    "answer": Greeting(1, 1, "cluster-1", "node-b", "node-a"),
    "request without cluster and ids": Greeting(1, 1, None, "", ""),
    "request of a later release": Greeting(2, 9, "cluster-1", "node-a", "node-b"),
    "answer of a later release": Greeting(2, 9, "cluster-1", "node-b", "node-a"),
    "refusal": Greeting(
        1, 1, "cluster-1", "node-b", "node-a", "wrong-server", "nöde c was expected"
    ),
}

MESSAGES = {
    "append entries": AppendEntriesRequest(A, 12, 100, 10, ENTRIES, 99),
    "append entries, heartbeat": AppendEntriesRequest(A, 12),
    "append entries, largest numbers": AppendEntriesRequest(A, BIG, BIG, BIG, (), BIG),
    "append entries answer": AppendEntriesResponse(B, 12, 107, True, True),
    "append entries answer, refused": AppendEntriesResponse(B, 13, 98, False, True),
    "request vote": RequestVoteRequest(A, 14, 107, 12, True),
    "request vote, plain": RequestVoteRequest(A, 14, 0, 0),
    "request vote answer": RequestVoteResponse(B, 14, True),
    "request vote answer, refused": RequestVoteResponse(B, 15),
    "pre-vote": RequestPreVoteRequest(A, 16, 107, 12),
    "pre-vote answer": RequestPreVoteResponse(B, 16, True),
    "pre-vote answer, refused": RequestPreVoteResponse(B, 17),
    "timeout now": TimeoutNowRequest(A),
    "timeout now answer": TimeoutNowResponse(B),
    "timeout now answer, empty header": TimeoutNowResponse(RPCHeader()),
    "append entries, with notes": AppendEntriesRequest(
        WHOLE, 12, 100, 10, (), 99, (Note("nöde c", "0f1e2d3c4b5a6978", 7), Note("node-b", "", BIG))
    ),
    "append entries answer, with an incarnation": AppendEntriesResponse(WHOLE, 12, 107, True),
    "install snapshot": SNAPSHOT,
    "install snapshot, nobody and nothing": InstallSnapshotRequest(A, 21, 22, 20),
    "install snapshot answer": INSTALLED,
    "install snapshot answer, refused": InstallSnapshotResponse(B, 32),
}

ERRORS = {
    "error": ValueError("nö disk"),
    "error of the node": NotLeaderError("node-b is not the leader"),
    "error, another cluster": ClusterMismatchError("another cluster"),
    "error, unsupported protocol": UnsupportedProtocolError("versions 2 to 9"),
    "error, wrong server": WrongServerError("another server"),
}


def plain(value):
    """A value as JSON can hold it; bytes become hexadecimal digits, choices their names.

    What is left out on the wire is left out here.
    """
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {
            n: plain(v)
            for n, v in fields.items()
            if v or n not in ("incarnation", "notes", "reason")
        }
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def wire(*sends):
    """The bytes that a connection puts on the wire for each of these calls."""
    pieces = []
    for send in sends:
        with bare() as (link, sock):
            send(link)
            link.stream.end_sending()
            pieces.append(b"".join(iter(lambda sock=sock: sock.recv(65536), b"")))
    return pieces


def message_bytes(message):
    return wire(lambda link: link.send_message(message, PATIENCE))[0]


def error_bytes(error):
    return wire(lambda link: link.send_error(error, PATIENCE))[0]


def snapshot_bytes():
    """The frames of one snapshot's transfer, in order: who sends, what it is, its bytes."""
    return [
        ("sender", "request", message_bytes(SNAPSHOT)),
        *(("sender", "chunk", _frame_bytes(CHUNK_FRAME, chunk)) for chunk in CHUNKS),
        ("sender", "end", _frame_bytes(END_FRAME)),
        ("receiver", "working", _frame_bytes(WORKING_FRAME)),
        ("receiver", "answer", message_bytes(INSTALLED)),
    ]


def _frame_bytes(code, payload=b""):
    return wire(lambda link: link.send(code, payload, PATIENCE))[0]


def all_cases():
    """What the file should hold, made with today's code."""
    return {
        "greetings": {
            name: {"hex": greeting.encode().hex(), "values": plain(greeting)}
            for name, greeting in GREETINGS.items()
        },
        "messages": {
            name: {
                "hex": message_bytes(message).hex(),
                "type": type(message).__name__,
                "values": plain(message),
            }
            for name, message in MESSAGES.items()
        },
        "errors": {
            name: {"hex": error_bytes(error).hex(), "text": str(error)}
            for name, error in ERRORS.items()
        },
        "snapshot": {
            "transfer": {
                "frames": [
                    {"from": side, "what": what, "hex": data.hex()}
                    for side, what, data in snapshot_bytes()
                ],
                "content": b"".join(CHUNKS).hex(),
            }
        },
    }


def read():
    """What the file holds."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def add_missing():
    held = read() if FILE.exists() else {}
    for kind, cases in all_cases().items():
        held[kind] = cases | held.get(kind, {})
    text = json.dumps(held, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    add_missing()
