"""The mark: how far a store has come, kept apart from it, so that it cannot fall back unnoticed.

A damaged write-ahead log ends early for SQLite, a damaged page may hide its last rows, and an older
copy of the file looks as good as the newest. So after each commit the store notes in a file beside
it how far it has come; opened again, it must have come at least as far.

The file is never synced, so it costs no time, and the loss of power may leave an older mark, or
none: a weaker guard. It can never be ahead, because it is written when the commit is durable.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple

from raft.errors import StoreError
from raft.files import open_file
from raft.logs import get_logger
from raft.types import NO_INDEX
from raftsqlite.guard import REBUILD

_log = get_logger(__name__)

_RECORD = struct.Struct(">QQI")  # sequence, last index, CRC32 of both


class Position(NamedTuple):
    """How far a store has come; ordered.

    `sequence` counts the changes that are no appends. Within one sequence the log only grows.
    """

    sequence: int = 0
    last_index: int = NO_INDEX


class Mark:
    """The mark of one store, in `<store_path>.mark`; used under the store's lock.

    It is not kept for a store whose commits are not durable: it would be ahead of them.
    """

    def __init__(self, store_path: str, *, is_kept: bool) -> None:
        self.position = Position()  # of the store
        self._store_path = store_path
        self._path = store_path + ".mark"
        self._is_kept = is_kept
        self._descriptor: int | None = None  # from the first check on

    def check(self, position: Position) -> None:
        """Take the position of a store just opened, or raise `StoreError` if it fell back."""
        if self._is_kept:
            self.check_blank(position)
        try:
            marked = self._read()
        except OSError as exc:
            raise StoreError(
                f"cannot read {self._path}, which says how far {self._store_path} has come: {exc}."
                " Let this process read and write it"
            ) from exc
        _compare(self._store_path, position, marked)
        self.advance(position)

    def check_blank(self, position: Position) -> None:
        """Raise `StoreError` for an empty store without a mark: a copy that lacks what counts."""
        if position == Position() and not os.path.exists(self._path):
            raise StoreError(
                f"{self._store_path} is empty, and {self._path} is not beside it, which every store"
                " gets when it is made: this is the copy of a live store without its write-ahead"
                f" log {self._store_path}-wal, where all of it was. Copy a live store by backup(),"
                " or a stopped one with all its files. If it never held anything, remove it; else"
                f" {REBUILD}"
            )

    def look(self, position: Position) -> None:
        """Raise `StoreError` if a store fell back, or it cannot be known; writes nothing."""
        self.check_blank(position)
        try:
            with open(open_file(self._path), "rb") as file:
                marked = _unpacked(file.read(_RECORD.size))
        except FileNotFoundError:
            return
        except OSError as exc:
            raise StoreError(f"cannot read {self._path}: {exc}") from exc
        _compare(self._store_path, position, marked)

    def advance(self, position: Position) -> None:
        """Note how far the store has come, all of it durable."""
        self.position = position
        if self._descriptor is None:
            return
        record = _RECORD.pack(*position, _crc(position))
        try:
            os.pwrite(self._descriptor, record, 0)
        except OSError as exc:  # the commit stands all the same, and an older mark is true, too
            _log.warning("cannot keep the mark path=%s cause=%s", self._path, exc)
            self.close()

    def close(self) -> None:
        """Close the file; also in a forked child, which has a descriptor of its own."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self) -> Position:
        """Return what the file says; nothing, if it does not say it for certain."""
        if not self._is_kept:
            return Position()
        if self._descriptor is None:
            self._descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT)
        return _unpacked(os.pread(self._descriptor, _RECORD.size, 0))


def begin_mark(store_path: str) -> None:
    """Make the mark of a store that is being made, durably, so that no store of ours is without.

    One that is there stays: it may know of a store that was lost.
    """
    try:
        descriptor = open_file(store_path + ".mark", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    try:
        os.pwrite(descriptor, _RECORD.pack(*Position(), _crc(Position())), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unpacked(record: bytes) -> Position:
    if len(record) < _RECORD.size:
        return Position()
    sequence, last_index, crc = _RECORD.unpack(record)
    position = Position(sequence, last_index)
    return position if crc == _crc(position) else Position()


def _crc(position: Position) -> int:
    return zlib.crc32(b"%d %d" % position)


def _compare(store_path: str, position: Position, marked: Position) -> None:
    if position < marked:
        raise StoreError(
            f"{store_path} has lost acknowledged entries or votes: it ends at entry"
            f" {position.last_index} after {position.sequence} other changes, and had come to"
            f" entry {marked.last_index} after {marked.sequence}. If no peer is left, and an older"
            f" copy was put here on purpose, remove {store_path}.mark alone; else {REBUILD}"
        )
