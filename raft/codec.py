"""Bytes for entries, configurations, messages and the vote record.

The only importer of `cbor2`. Messages and the vote record are CBOR arrays, fields in the order of
their dataclass; readers ignore further fields at the end, so that later versions may add some.
Configurations are the exception: they are written to the log in the original's own bytes (a small
part of msgpack, by hand below), so that a log means the same to Go and to us.

Whatever is read may be hostile: every field is checked, and every fault is a `ProtocolError`.
"""

from __future__ import annotations

import importlib.metadata
import struct
from collections.abc import Callable
from typing import Any, cast

import cbor2

from raft.errors import ProtocolError
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Note,
    Request,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.types import Configuration, Log, LogType, Server, ServerSuffrage, check_name, plain

MAX_UINT64 = 2**64 - 1


def _check_library(version: str) -> None:
    """Raise `ImportError` for a `cbor2` that reads other things than this module expects."""
    if int(version.partition(".")[0]) < _OLDEST_LIBRARY:
        raise ImportError(
            f"raft needs cbor2 {_OLDEST_LIBRARY} or later, not {version}, with which whole"
            " records look damaged. Install it anew: pip install --upgrade cbor2"
        )


_OLDEST_LIBRARY = 6
try:
    _check_library(importlib.metadata.version("cbor2"))
except importlib.metadata.PackageNotFoundError:
    pass  # of a program that was packed without it: the one who packed it has chosen

_LOG_TYPES = {kind.value: kind for kind in LogType}


def _fields(value: object, count: int, what: str) -> list[Any]:
    """Return the fields of a CBOR array that has at least so many."""
    if not isinstance(value, list) or len(value) < count:
        raise ProtocolError(f"{what} is not an array of {count} fields")
    return value


def _uint(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_UINT64:
        raise ProtocolError(f"{what} is not an unsigned 64-bit number")
    return value


def _bytes(value: object, what: str) -> bytes:
    if type(value) is not bytes:
        raise ProtocolError(f"{what} is not a byte string")
    return value


def _text(value: object, what: str) -> str:
    if type(value) is not str:
        raise ProtocolError(f"{what} is not a text string")
    return value


def _name(value: object, what: str) -> str:
    """Read an id or an address, which may be empty where none is known."""
    if type(value) is str and value in _good_names:
        return value
    if value != "":
        try:
            check_name(what, value)
        except ValueError as exc:
            raise ProtocolError(str(exc)) from None
        if len(_good_names) >= _MOST_GOOD_NAMES:
            _good_names.clear()
        _good_names.add(cast(str, value))
    return cast(str, value)


_MOST_GOOD_NAMES = 256
_good_names: set[str] = set()  # names that passed lately: each message has three, mostly the same


def _said(value: object, what: str) -> str:
    """Read what people are to read, in a form that a log can bear."""
    return plain(_text(value, what))


def _bool(value: object, what: str) -> bool:
    if type(value) is not bool:
        raise ProtocolError(f"{what} is not a boolean")
    return value


def dumps(value: object) -> bytes:
    """Encode plain data as CBOR."""
    return cbor2.dumps(value)


def _refuse_tag(_value: Any, _immutable: bool) -> Any:
    raise ValueError("tags are not used here")


# All that cbor2 gives a meaning: a few hundred kilobytes of digits tagged as a decimal would hold
# the interpreter for minutes, and a number beyond 64 bits cannot even be shown in a message.
_TAGS = dict.fromkeys(
    (
        *(0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100),
        *(256, 258, 260, 261, 1004, 43000, 55799),
    ),
    _refuse_tag,
)


def loads(data: bytes) -> Any:
    """Decode CBOR; every fault is a `ProtocolError`, and so is every tag: we write none."""
    try:
        return cbor2.loads(data, tag_hook=_refuse_tag, semantic_decoders=_TAGS)
    except (
        cbor2.CBORError,
        ValueError,
        EOFError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as exc:
        raise ProtocolError(f"payload is not CBOR: {exc}") from exc


def check_items(data: bytes, most: int) -> None:
    """Raise `ProtocolError` if CBOR holds more than so many items; strings are jumped over.

    Before it is decoded: that holds the interpreter's lock, and a million of empty arrays, a byte
    each, take a hundred times their size.
    """
    at, end, items = 0, len(data), 0
    if end <= most:
        return  # each takes a byte
    while at < end:
        items += 1
        if items > most:
            raise ProtocolError(f"payload holds more than {most} items")
        kind, value = data[at] >> 5, data[at] & 0x1F
        at += 1
        if 24 <= value < 28:  # the number, or the length, follows in 1, 2, 4 or 8 bytes
            width = 1 << (value - 24)
            value = int.from_bytes(data[at : at + width], "big")
            at += width
        if kind in _STRINGS:
            at += value


_STRINGS = (2, 3)  # of bytes, of characters


# ---- entries ----


def _pack_log(log: Log) -> list[Any]:
    # The type's number, not the enum: cbor2 would take the slow way for a subclass of int.
    return [
        log.index,
        log.term,
        log.type.value,
        log.data,
        log.extensions,
        log.appended_at,
        log.checksum,
    ]


def _unpack_log(value: object) -> Log:
    fields = _fields(value, 7, "entry")
    kind = _LOG_TYPES.get(fields[2]) if type(fields[2]) is int else None
    stamp = fields[5]
    if kind is None:
        raise ProtocolError("entry has an unknown type")  # its value may be too long to print
    if type(stamp) is not int or not -(2**63) <= stamp < 2**63:
        raise ProtocolError("entry's time is not a signed 64-bit number")
    return Log(
        _uint(fields[0], "entry's index"),
        _uint(fields[1], "entry's term"),
        kind,
        _bytes(fields[3], "entry's data"),
        _bytes(fields[4], "entry's extensions"),
        stamp,
        _uint(fields[6], "entry's checksum"),
    )


# ---- configurations: the original's msgpack ----


def encode_configuration(configuration: Configuration) -> bytes:
    """Return the bytes of a configuration entry, equal to those the original writes."""
    out = bytearray(b"\x81\xa7Servers")
    out += _pack_array_head(len(configuration.servers))
    for server in configuration.servers:
        out += b"\x83\xa7Address" + _pack_raw(server.address)
        out += b"\xa2ID" + _pack_raw(server.id)
        out += b"\xa8Suffrage" + bytes([server.suffrage.value])
    return bytes(out)


def encode_peers(configuration: Configuration) -> bytes:
    """Return the original's legacy list: the voters' addresses alone, nil when there is none."""
    addresses = [server.address for server in configuration.voters()]
    if not addresses:
        return b"\xc0"
    return _pack_array_head(len(addresses)) + b"".join(map(_pack_raw, addresses))


def decode_peers(data: bytes) -> Configuration:
    """Return the voters of a legacy list, their addresses as ids, or raise `ProtocolError`."""
    try:
        value, end = _unpack_msgpack(data, 0, 0)
    except (IndexError, struct.error) as exc:
        raise ProtocolError("list of peers ends early") from exc
    if end != len(data) or not isinstance(value, list | None):
        raise ProtocolError("list of peers is not one array")
    try:
        addresses = [_name(address.decode(), "a peer's address") for address in value or []]
    except (UnicodeDecodeError, AttributeError) as exc:
        raise ProtocolError("a peer's address is no UTF-8 text") from exc
    return Configuration([Server(address, address) for address in addresses])


def _pack_array_head(count: int) -> bytes:
    return bytes([0x90 | count]) if count < 16 else struct.pack(">BH", 0xDC, count)


def _pack_raw(text: str) -> bytes:
    data = text.encode()
    if len(data) < 32:
        return bytes([0xA0 | len(data)]) + data
    if len(data) < 1 << 16:
        return struct.pack(">BH", 0xDA, len(data)) + data
    return struct.pack(">BI", 0xDB, len(data)) + data


def decode_configuration(data: bytes) -> Configuration:
    """Return the configuration written by us or by the original, or raise `ProtocolError`."""
    if len(data) > _LARGEST_CONFIGURATION:
        raise ProtocolError(f"a configuration of {len(data)} bytes is too large")
    try:
        value, end = _unpack_msgpack(data, 0, 0)
    except (IndexError, struct.error) as exc:
        raise ProtocolError("configuration ends early") from exc
    if end != len(data) or not isinstance(value, dict):
        raise ProtocolError("configuration is not one map")
    servers = value.get(b"Servers")
    if servers is None:
        return Configuration()
    if not isinstance(servers, list):
        raise ProtocolError("configuration's servers are no list")
    return Configuration([_unpack_server(server) for server in servers])


def _unpack_server(value: object) -> Server:
    if not isinstance(value, dict):
        raise ProtocolError("a configuration's server is no map")
    suffrage = value.get(b"Suffrage") or 0
    if type(suffrage) is not int or not 0 <= suffrage <= 2:
        raise ProtocolError(f"unknown suffrage {suffrage!r} in a configuration")
    try:
        server_id = _name((value.get(b"ID") or b"").decode(), "a server's id")
        address = _name((value.get(b"Address") or b"").decode(), "a server's address")
    except (UnicodeDecodeError, AttributeError) as exc:
        raise ProtocolError("a configuration's id or address is no UTF-8 text") from exc
    return Server(server_id, address, ServerSuffrage(suffrage))


_LARGEST_CONFIGURATION = 1 << 20  # bytes; a thousand servers have a tenth of that


# code -> (struct format of the number or length that follows)
_MSGPACK_NUMBERS = {
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_MSGPACK_RAWS = {
    0xD9: ">B",
    0xDA: ">H",
    0xDB: ">I",
    0xC4: ">B",
    0xC5: ">H",
    0xC6: ">I",
}
_MSGPACK_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MSGPACK_MAPS = {0xDE: ">H", 0xDF: ">I"}
_MSGPACK_CONSTANTS: dict[int, bool | None] = {0xC0: None, 0xC2: False, 0xC3: True}
_MSGPACK_DEPTH = 16  # a configuration is four deep; the rest is room for keys unknown to us


def _unpack_msgpack(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Return (value, position behind it); raw strings come as bytes, extensions are refused."""
    if depth > _MSGPACK_DEPTH:
        raise ProtocolError("configuration is nested too deeply")
    code = data[at]
    at += 1
    if code <= 0x7F:
        return code, at
    if code >= 0xE0:
        return code - 0x100, at
    if code in _MSGPACK_CONSTANTS:
        return _MSGPACK_CONSTANTS[code], at
    if code in _MSGPACK_NUMBERS:
        return _unpack_number(_MSGPACK_NUMBERS[code], data, at)
    if 0xA0 <= code <= 0xBF:
        return _unpack_raw(data, at, code & 0x1F)
    if code in _MSGPACK_RAWS:
        length, at = _unpack_number(_MSGPACK_RAWS[code], data, at)
        return _unpack_raw(data, at, length)
    if 0x90 <= code <= 0x9F or code in _MSGPACK_ARRAYS:
        count = code & 0x0F
        if code in _MSGPACK_ARRAYS:
            count, at = _unpack_number(_MSGPACK_ARRAYS[code], data, at)
        return _unpack_array(data, at, count, depth)
    if 0x80 <= code <= 0x8F or code in _MSGPACK_MAPS:
        count = code & 0x0F
        if code in _MSGPACK_MAPS:
            count, at = _unpack_number(_MSGPACK_MAPS[code], data, at)
        return _unpack_map(data, at, count, depth)
    raise ProtocolError(f"configuration holds the unexpected msgpack code {code:#x}")


def _unpack_number(form: str, data: bytes, at: int) -> tuple[int, int]:
    (number,) = struct.unpack_from(form, data, at)
    return number, at + struct.calcsize(form)


def _unpack_raw(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    raw = data[at : at + length]
    if len(raw) != length:
        raise ProtocolError("configuration ends early")
    return raw, at + length


def _unpack_array(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    items = []
    if count > len(data) - at:
        raise ProtocolError("configuration ends early")
    for _ in range(count):
        item, at = _unpack_msgpack(data, at, depth + 1)
        items.append(item)
    return items, at


def _unpack_map(data: bytes, at: int, count: int, depth: int) -> tuple[dict[bytes, Any], int]:
    items: dict[bytes, Any] = {}
    for _ in range(count):
        key, at = _unpack_msgpack(data, at, depth + 1)
        value, at = _unpack_msgpack(data, at, depth + 1)
        if isinstance(key, bytes):
            items[key] = value
    return items, at


# ---- the vote record ----


def encode_hard_state(term: int, voted_for: str, voted_for_address: str) -> bytes:
    """Return the bytes of the one record that holds term and vote."""
    return dumps([term, voted_for, voted_for_address])


def decode_hard_state(data: bytes) -> tuple[int, str, str]:
    """Return (term, candidate's id, candidate's address), or raise `ProtocolError`."""
    fields = _fields(loads(data), 3, "vote record")
    return (
        _uint(fields[0], "vote record's term"),
        _text(fields[1], "vote record's id"),
        _text(fields[2], "vote record's address"),
    )


# ---- messages ----
# code on the wire -> (type, what its fields are after the header). Never renumber.


def _pack_header(header: RPCHeader) -> list[Any]:
    fields = [header.id, header.address, header.protocol_version]
    return [*fields, header.incarnation] if header.incarnation else fields


def _unpack_header(value: object) -> RPCHeader:
    fields = _fields(value, 3, "header")
    return RPCHeader(
        _name(fields[0], "sender's id"),
        _name(fields[1], "sender's address"),
        _uint(fields[2], "protocol version"),
        _name(fields[3], "sender's incarnation") if len(fields) > 3 else "",
    )


def unpack_notes(value: object, what: str) -> tuple[Note, ...]:
    """Return the notes on incarnations that plain data stands for, or raise `ProtocolError`."""
    if not isinstance(value, list):
        raise ProtocolError(f"{what} is not a list")
    notes = []
    for item in value:
        server_id, incarnation, since = _fields(item, 3, "note")
        notes.append(
            Note(
                _name(server_id, "note's id"),
                _name(incarnation, "note's incarnation"),
                _uint(since, "note's index"),
            )
        )
    return tuple(notes)


def _logs(value: object, what: str) -> tuple[Log, ...]:
    if not isinstance(value, list):
        raise ProtocolError(f"{what} is no list")
    return tuple([_unpack_log(item) for item in value])


def _configuration(value: object, what: str) -> Configuration:
    return decode_configuration(_bytes(value, what))


_Reader = Callable[[object, str], Any]
_Layout = tuple[tuple[str, _Reader], ...]

_APPEND_ENTRIES: _Layout = (
    ("term", _uint),
    ("prev_log_index", _uint),
    ("prev_log_term", _uint),
    ("entries", _logs),
    ("leader_commit", _uint),
)
_NOTES: tuple[str, _Reader] = ("notes", unpack_notes)
_APPEND_ENTRIES_ANSWER: _Layout = (
    ("term", _uint),
    ("last_log", _uint),
    ("success", _bool),
    ("no_retry_backoff", _bool),
)
_VOTE: _Layout = (("term", _uint), ("last_log_index", _uint), ("last_log_term", _uint))
_VOTE_ANSWER: _Layout = (("term", _uint), ("granted", _bool))
_REASON: tuple[str, _Reader] = ("reason", _said)
_INSTALL_SNAPSHOT: _Layout = (
    ("term", _uint),
    ("last_log_index", _uint),
    ("last_log_term", _uint),
    ("configuration", _configuration),
    ("configuration_index", _uint),
    ("size", _uint),
    ("snapshot_version", _uint),
    ("unsettled", _bool),
)

_LAYOUTS: dict[int, tuple[type[Any], _Layout]] = {
    0: (AppendEntriesRequest, _APPEND_ENTRIES),
    1: (RequestVoteRequest, (*_VOTE, ("leadership_transfer", _bool))),
    2: (InstallSnapshotRequest, _INSTALL_SNAPSHOT),
    3: (TimeoutNowRequest, ()),
    4: (RequestPreVoteRequest, _VOTE),
    64: (AppendEntriesResponse, _APPEND_ENTRIES_ANSWER),
    65: (RequestVoteResponse, _VOTE_ANSWER),
    66: (InstallSnapshotResponse, (("term", _uint), ("success", _bool))),
    67: (TimeoutNowResponse, ()),
    68: (RequestPreVoteResponse, _VOTE_ANSWER),
}
# How many items the largest honest payload has; entries have eight each.
_MOST_ITEMS: dict[int, int] = {0: 8 * 1024 + 4096}
_MOST_OTHER_ITEMS = 256
# The field at the end that is left out when it is empty, as older versions do always.
_OPTIONAL: dict[int, _Layout] = {0: (_NOTES,), 65: (_REASON,), 68: (_REASON,)}
_CODES: dict[type[Any], tuple[int, _Layout]] = {
    kind: (code, layout) for code, (kind, layout) in _LAYOUTS.items()
}


def encode_message(message: Request | Response) -> tuple[int, bytes]:
    """Return the code of a message's type, from 0 to 127, and its payload."""
    code, layout = _CODES[type(message)]
    fields: list[Any] = [_pack_header(message.header)]
    for name, reader in layout:
        value = getattr(message, name)
        if reader is _logs:
            value = [_pack_log(log) for log in value]
        elif reader is _configuration:
            value = encode_configuration(value)
        fields.append(value)
    for name, reader in _OPTIONAL.get(code, ()):
        if value := getattr(message, name):
            fields.append([list(note) for note in value] if reader is unpack_notes else value)
    return code, cbor2.dumps(fields)


def decode_message(code: int, payload: bytes) -> Request | Response:
    """Return the message, or raise `ProtocolError`: the bytes may come from anybody."""
    entry = _LAYOUTS.get(code)
    if entry is None:
        raise ProtocolError(f"unknown message type {code}")
    kind, layout = entry
    check_items(payload, _MOST_ITEMS.get(code, _MOST_OTHER_ITEMS))
    fields = _fields(loads(payload), len(layout) + 1, kind.__name__)
    if len(fields) > len(layout) + 1:
        layout += _OPTIONAL.get(code, ())
    values = {
        name: reader(value, f"{kind.__name__}.{name}")
        for (name, reader), value in zip(layout, fields[1:], strict=False)
    }
    message: Request | Response = kind(_unpack_header(fields[0]), **values)
    return message
