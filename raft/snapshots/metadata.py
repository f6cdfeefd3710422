"""`meta.json` of a snapshot on disk, in the original's format: both read each other's.

What is read was perhaps written by hand or by another version: every field is checked, and every
fault is a `SnapshotError`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

from raft.codec import MAX_UINT64, decode_peers, encode_peers
from raft.errors import ProtocolError, SnapshotError, SnapshotVersionError
from raft.snapshots.crc64 import crc64
from raft.types import (
    SNAPSHOT_VERSION,
    Configuration,
    Server,
    ServerSuffrage,
    SnapshotMeta,
)

_LEGACY_VERSION = 0  # no configuration, only the list of peers; read, never written

_SEAL_KEY = "Seal"
_SEAL_MARK = b',"%s":"' % _SEAL_KEY.encode()
_SEAL = _SEAL_MARK + b'%s"'
_END = b"}\n"

# What the original's encoder escapes besides what JSON demands.
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def with_checksum(meta: SnapshotMeta, crc: int, size: int | None = None) -> SnapshotMeta:
    """Return the metadata with the checksum of its content, and perhaps another size."""
    return replace(meta, checksum=f"{crc:016x}", size=meta.size if size is None else size)


def encode_metadata(meta: SnapshotMeta, crc: int | None) -> bytes:
    """Return the content of `meta.json`; `crc` is None while the snapshot is being written."""
    fields: dict[str, Any] = {
        "Version": meta.version,
        "ID": meta.id,
        "Index": meta.index,
        "Term": meta.term,
        "Peers": _encode_base64(encode_peers(meta.configuration)),
        "Configuration": {
            "Servers": [
                {"Suffrage": server.suffrage.value, "ID": server.id, "Address": server.address}
                for server in meta.configuration.servers
            ]
            or None
        },
        "ConfigurationIndex": meta.configuration_index,
        "Size": meta.size,
        "CRC": None if crc is None else _encode_base64(crc.to_bytes(8, "big")),
    }
    if meta.unsettled:
        fields["Unsettled"] = True  # not the original's, which ignores it
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return text.translate(_ESCAPES).encode() + b"\n"


def seal_metadata(data: bytes) -> bytes:
    """Return encoded metadata with a checksum over its own bytes: the original's is of the content.

    The original ignores the additional key.
    """
    body = data.removesuffix(_END)
    return body + _SEAL % _encode_base64(crc64(body).to_bytes(8, "big")).encode() + _END


def _check_seal(data: bytes) -> None:
    """Raise `ValueError` if sealed metadata has changed; what others wrote has no seal."""
    body, mark, _ = data.rpartition(_SEAL_MARK)
    if mark and data != seal_metadata(body + _END):
        raise ValueError(
            "it was changed after it was written. If that was by hand and on purpose, remove the"
            f" key {_SEAL_KEY}; else the snapshot is damaged"
        )


def decode_metadata(data: bytes) -> tuple[SnapshotMeta, int | None]:
    """Return what a `meta.json` says, and the CRC, None when the snapshot is not finished."""
    try:
        _check_seal(data)
        # The original reads the first value, ignores what follows, and matches keys in any case.
        value, _ = json.JSONDecoder().raw_decode(data.decode().lstrip())
        fields = {key.lower(): field for key, field in value.items()}
        return _read_meta(fields), _read_crc(fields.get("crc"))
    except (ValueError, TypeError, AttributeError, RecursionError, ProtocolError) as exc:
        raise SnapshotError(f"unreadable metadata: {exc}") from exc


def _read_meta(fields: dict[str, Any]) -> SnapshotMeta:
    version = _read_number(fields, "Version")
    if version > SNAPSHOT_VERSION:  # what else it holds is not known
        raise SnapshotVersionError(
            f"snapshot {fields.get('id')} has version {version}, this library knows up to"
            f" {SNAPSHOT_VERSION}: upgrade the library; nothing was changed"
        )
    index = _read_number(fields, "Index")
    if version == _LEGACY_VERSION:
        configuration = decode_peers(base64.b64decode(fields.get("peers") or "wA=="))
        configuration_index = index
    else:
        configuration = _read_configuration(fields.get("configuration") or {})
        configuration_index = _read_number(fields, "ConfigurationIndex")
    return SnapshotMeta(
        _read_text(fields, "ID"),
        index,
        _read_number(fields, "Term"),
        configuration,
        configuration_index,
        _read_number(fields, "Size"),
        version,
        fields.get("unsettled") is True,
    )


def _read_configuration(value: dict[str, Any]) -> Configuration:
    fields = {key.lower(): field for key, field in value.items()}
    servers = []
    for item in fields.get("servers") or []:
        server = {key.lower(): field for key, field in item.items()}
        suffrage = ServerSuffrage(_read_number(server, "Suffrage"))
        servers.append(Server(_read_text(server, "ID"), _read_text(server, "Address"), suffrage))
    return Configuration(servers)


def _read_number(fields: dict[str, Any], name: str) -> int:
    number = fields.get(name.lower(), 0)
    if type(number) is not int or not 0 <= number <= MAX_UINT64:
        raise ValueError(f"{name} is not an unsigned 64-bit number")
    return number


def _read_text(fields: dict[str, Any], name: str) -> str:
    text = fields.get(name.lower(), "")
    if type(text) is not str:
        raise ValueError(f"{name} is not a string")
    return text


def _read_crc(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError("CRC is not a string")
    crc = base64.b64decode(value)
    if len(crc) != 8:
        raise ValueError("CRC does not have 8 bytes")
    return int.from_bytes(crc, "big")


def _encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
