"""The replicated state of the service: keys with JSON values, and each node's HTTP address."""

from __future__ import annotations

import json
import threading
from typing import Any

from raft import Log, SnapshotReader, SnapshotSink


def encode_put(key: str, value: Any) -> bytes:
    """Return the command that sets a key."""
    return json.dumps({"op": "put", "key": key, "value": value}).encode()


def encode_delete(key: str) -> bytes:
    """Return the command that deletes a key."""
    return json.dumps({"op": "delete", "key": key}).encode()


def encode_member(node_id: str, http: str | None) -> bytes:
    """Return the command that notes where a node serves HTTP, or forgets it (None)."""
    return json.dumps({"op": "member", "id": node_id, "http": http}).encode()


class KVMachine:
    """The state machine. Raft's FSM thread writes, Flask's threads read; one lock guards all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        self._members: dict[str, str] = {}
        self._applied = 0

    # ---- for the views ----

    def read(self, key: str) -> tuple[bool, Any, int]:
        """Return (is there, value, index of the last entry applied)."""
        with self._lock:
            return key in self._values, self._values.get(key), self._applied

    def members(self) -> dict[str, str]:
        """Return the HTTP address of each node that has joined."""
        with self._lock:
            return dict(self._members)

    def items(self) -> tuple[dict[str, Any], int]:
        """Return all keys with their values, and the index they are as of."""
        with self._lock:
            return dict(self._values), self._applied

    # ---- for Raft ----

    def apply(self, log: Log) -> Any:
        """Apply one command; the answer tells whether the key was there before."""
        command = json.loads(log.data)
        with self._lock:
            self._applied = log.index
            if command["op"] == "member":
                return self._set_member(command["id"], command["http"])
            existed = command["key"] in self._values
            if command["op"] == "put":
                self._values[command["key"]] = command["value"]
            else:
                self._values.pop(command["key"], None)
            return existed

    def _set_member(self, node_id: str, http: str | None) -> bool:
        if http is None:
            return self._members.pop(node_id, None) is not None
        known = self._members.get(node_id) == http
        self._members[node_id] = http
        return known

    def snapshot(self) -> KVSnapshot:
        """Return a copy of the state as of now."""
        with self._lock:
            return KVSnapshot(dict(self._values), dict(self._members), self._applied)

    def restore(self, reader: SnapshotReader) -> None:
        """Replace the state by a snapshot's; all or nothing."""
        state = json.loads(reader.read())
        with self._lock:
            self._values = state["values"]
            self._members = state["members"]
            self._applied = state["applied"]


class KVSnapshot:
    """A copy of the state that is written while the state goes on changing."""

    def __init__(self, values: dict[str, Any], members: dict[str, str], applied: int) -> None:
        self._state = {"values": values, "members": members, "applied": applied}

    def persist(self, sink: SnapshotSink) -> None:
        """Write the copy as JSON."""
        sink.write(json.dumps(self._state).encode())

    def release(self) -> None:
        """Nothing to let go of: the copy is garbage when persisted."""
