"""Bytes that a hostile peer might send, from a seed: whole conversations, mostly almost right.

What begins right gets further than what is wrong at once, so most inputs are made of well-formed
greetings and frames in which one thing is changed: a bit, a length, a CBOR item, the order.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cbor2

from raft.codec import encode_message
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    Request,
    RequestPreVoteRequest,
    RequestVoteRequest,
    Response,
    RPCHeader,
    TimeoutNowRequest,
)
from raft.testing.script import configuration_entry, entries, servers
from raft.transport.connection import CHUNK_FRAME, END_FRAME, ERROR_FRAME, MAX_FRAME, Greeting

SENDERS = ("n2", "n3", "n9", "", "n1", "ü" * 50)
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 10, 1000, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
HELD = ((0, 0), (1, 1), (2, 1), (3, 2), (4, 2))  # index and term of what the node begins with
CLUSTER = "cluster-1"
OTHER_PROTOCOLS = (
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x00",  # the first byte of the original's own protocol
    b"SSH-2.0-x\r\n",
    b"RAFTPY\n\n",
)
_HEAD = struct.Struct(">IB")
_GREETING = struct.Struct(">8sHI")


def frame(code: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a frame with a right checksum; its length may be a lie."""
    head = _HEAD.pack((len(payload) if length is None else length) & 0xFFFFFFFF, code & 0xFF)
    return head + struct.pack(">I", zlib.crc32(payload, zlib.crc32(head))) + payload


def message_frame(message: Request | Response) -> bytes:
    """Return a message as it should be."""
    return frame(*encode_message(message))


class Inputs:
    """An endless source of hostile conversations with a server of this id."""

    def __init__(self, chance: random.Random, server_id: str = "n1") -> None:
        self._chance = chance
        self._server_id = server_id
        self._spoilers: list[Callable[[int, bytes], bytes]] = [
            self._flipped,
            self._flipped_with_checksum,
            self._cut,
            self._stretched,
            self._announced,
            self._other_type,
            self._other_items,
            self._other_items,
            self._nasty,
        ]

    def draw(self) -> bytes:
        """Return all that one connection brings."""
        chance = self._chance
        if chance.random() < 0.08:
            return chance.choice(OTHER_PROTOCOLS) + chance.randbytes(chance.randrange(200))
        pieces = [self._greeting()]
        for _ in range(chance.randrange(6)):
            pieces += self._snapshot() if chance.random() < 0.15 else [self._frame()]
        data = b"".join(pieces)
        if chance.random() < 0.2:
            data = data[: chance.randrange(len(data) + 1)]
        return data

    # ---- what is right ----

    def _number(self) -> int:
        # Mostly near to what the node has, where most of its decisions lie.
        return self._chance.choice(NUMBERS[:7] if self._chance.random() < 0.97 else NUMBERS)

    def _header(self) -> RPCHeader:
        sender = self._chance.choice(SENDERS)
        return RPCHeader(sender, f"{sender}:1", self._chance.choice((*[3] * 40, 0, 2, 4, 2**40)))

    def _message(self) -> Request | Response:
        chance, number = self._chance, self._number
        kind = chance.randrange(8)
        if kind <= 2:
            prev, prev_term = chance.choice(HELD) if chance.random() < 0.6 else (number(), number())
            term = number()
            terms = [min(term, number()) for _ in range(chance.randrange(4))]
            first = min(prev + 1, 2**64 - 5)
            logs = entries(first, terms=terms)
            if chance.random() < 0.1:
                members = servers("n1", "n2", "n7")
                logs.append(configuration_entry(first + len(terms), number() or 1, members))
            return AppendEntriesRequest(
                self._header(), term, prev, prev_term, tuple(logs), number()
            )
        if kind == 3:
            return RequestVoteRequest(
                self._header(), number(), number(), number(), chance.random() < 0.5
            )
        if kind == 4:
            return RequestPreVoteRequest(self._header(), number(), number(), number())
        if kind == 5:
            return TimeoutNowRequest(self._header())
        if kind == 6:
            return AppendEntriesResponse(self._header(), number(), number(), True)
        return AppendEntriesRequest(self._header(), number())

    def _greeting(self) -> bytes:
        chance = self._chance
        sender = chance.choice(SENDERS)
        if chance.random() < 0.8:
            return Greeting(1, 1, CLUSTER, sender, self._server_id).encode()
        good = Greeting(
            chance.choice((1, 1, 1, 0, 2)),
            chance.choice((1, 1, 1, 9)),
            chance.choice((CLUSTER, CLUSTER, None, "another")),
            sender,
            chance.choice((self._server_id, self._server_id, "\x00", "n2" * 1000)),
        ).encode()
        if chance.random() < 0.3:
            return good
        magic, _, _ = _GREETING.unpack_from(good)
        payload = self._changed_items(good[_GREETING.size :])
        if chance.random() < 0.3:
            payload = self._random_flip(payload)
        length = len(payload) if chance.random() < 0.7 else chance.randrange(1 << 16)
        crc = zlib.crc32(payload) ^ (chance.random() < 0.1)
        return _GREETING.pack(magic, length & 0xFFFF, crc) + payload

    def _snapshot(self) -> list[bytes]:
        chance = self._chance
        size = chance.choice((0, 5, 5, 5, 1000, 2**40, 2**64 - 1))
        request = InstallSnapshotRequest(
            self._header(),
            self._number(),
            self._number(),
            self._number(),
            servers("n1", "n2") if chance.random() < 0.8 else servers(),
            self._number(),
            size,
            chance.choice((1, 1, 0, 7)),
            chance.random() < 0.2,
        )
        sizes = [chance.choice((0, 2, 3, 5, 4000)) for _ in range(chance.randrange(4))]
        pieces = [message_frame(request)]
        pieces += [frame(CHUNK_FRAME, chance.randbytes(size)) for size in sizes]
        if chance.random() < 0.7:
            pieces.append(frame(END_FRAME, b"" if chance.random() < 0.9 else b"x"))
        if chance.random() < 0.2:
            chance.shuffle(pieces)
        return pieces

    # ---- what is wrong with it ----

    def _frame(self) -> bytes:
        code, payload = encode_message(self._message())
        if self._chance.random() < 0.65:
            return frame(code, payload)
        return self._chance.choice(self._spoilers)(code, payload)

    def _random_flip(self, data: bytes) -> bytes:
        if not data:
            return data
        place = self._chance.randrange(len(data))
        return (
            data[:place] + bytes([data[place] ^ 1 << self._chance.randrange(8)]) + data[place + 1 :]
        )

    def _flipped(self, code: int, payload: bytes) -> bytes:
        return self._random_flip(frame(code, payload))

    def _flipped_with_checksum(self, code: int, payload: bytes) -> bytes:
        for _ in range(self._chance.randint(1, 4)):
            payload = self._random_flip(payload)
        return frame(code, payload)

    def _cut(self, code: int, payload: bytes) -> bytes:
        return frame(code, payload[: self._chance.randrange(len(payload) + 1)])

    def _stretched(self, code: int, payload: bytes) -> bytes:
        return frame(code, payload + self._chance.randbytes(self._chance.randint(1, 50)))

    def _announced(self, code: int, payload: bytes) -> bytes:
        lengths = (
            0,
            1,
            len(payload) + 1,
            65536,
            MAX_FRAME - 1,
            MAX_FRAME,
            MAX_FRAME + 1,
            2**32 - 1,
        )
        return frame(code, payload, self._chance.choice(lengths))

    def _other_type(self, _: int, payload: bytes) -> bytes:
        codes = (*range(8), 64, 65, 66, 67, 68, ERROR_FRAME, CHUNK_FRAME, END_FRAME, 131, 200, 255)
        return frame(self._chance.choice(codes), payload)

    def _other_items(self, code: int, payload: bytes) -> bytes:
        return frame(code, self._changed_items(payload))

    def _changed_items(self, payload: bytes) -> bytes:
        """Change one item somewhere in CBOR, and leave the rest as it is."""
        return cbor2.dumps(self._changed(cbor2.loads(payload)))

    def _changed(self, value: Any) -> Any:
        chance = self._chance
        if isinstance(value, list) and value and chance.random() < 0.8:
            place = chance.randrange(len(value))
            changed = list(value)
            what = chance.random()
            if what < 0.1:
                del changed[place]
            elif what < 0.2:
                changed.insert(place, self._odd())
            else:
                changed[place] = self._changed(value[place])
            return changed
        return self._odd()

    def _odd(self) -> Any:
        chance = self._chance
        return chance.choice(
            (
                None,
                True,
                -1,
                2**64,
                -(2**70),
                10**400,
                1.5,
                float("nan"),
                "text",
                "\x00" * 3,
                b"bytes",
                b"",
                [],
                [[]],
                {},
                {"a": [1]},
                cbor2.CBORTag(chance.randrange(50), b"x"),
                cbor2.undefined,
                chance.choice(NUMBERS),
            )
        )

    def _nasty(self, code: int, _: bytes) -> bytes:
        """CBOR that is hard on a decoder: deep, long, endless, or referring to itself."""
        chance = self._chance
        deep = chance.choice((20, 500, 2000, 30_000))
        payload = chance.choice(
            (
                b"\x81" * deep,
                b"\x81" * deep + b"\x00",
                b"\xa1\x00" * deep + b"\x00",
                b"\xc6" * deep + b"\x00",
                b"\x9f" * deep,
                b"\x9b" + b"\xff" * 8,
                b"\x9a\x7f\xff\xff\xff",
                b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff",
                b"\x5a\x7f\xff\xff\xff",
                b"\xbb" + b"\xff" * 8,
                b"\x7b\x00\x00\x00\xff\xff\xff\xff\xff" + b"x" * 100,
                b"\x5f" + b"\x41x" * 1000,  # an endless byte string that is cut off
                b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
                b"\xc2\x5a\x00\x01\x00\x00" + b"\xff" * 65536,  # a very large number
                b"\xd8\x1e\x82\x01\x00",  # a fraction with a zero below
                b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",  # ten to the power of a lot
                b"\xd8\x23\x70((((((((((((((((",  # a pattern that is none
                b"\xd8\x24\x65\xc3\xbcxyz",  # mail
                b"\xc1\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00",  # a date at the end of time
                b"\xc0\x78\x1e2013-03-21T99:99:99.99999999999",  # a date that is none
            )
        )
        return frame(code, payload)
