"""Snapshots on disk, one directory each, as hashicorp/raft lays them out.

    <base>/snapshots/<term>-<index>-<milliseconds>/meta.json, state.bin

A snapshot is written in a directory whose name ends in `.tmp`, made durable, and renamed: it is
there completely or not at all. The directory belongs to one node.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from raft.errors import SnapshotCorruptError, SnapshotError, SnapshotVersionError
from raft.files import make_directories, open_file, read_file, sync_directory, warn_of_others
from raft.interfaces import SnapshotSink
from raft.logs import get_logger
from raft.messages import SnapshotReader
from raft.runtime import THREADS, Runtime
from raft.snapshots.crc64 import crc64
from raft.snapshots.metadata import (
    decode_metadata,
    encode_metadata,
    seal_metadata,
    with_checksum,
)
from raft.types import SNAPSHOT_VERSION, Configuration, EntryID, SnapshotMeta

_log = get_logger(__name__)

_META, _STATE, _UNFINISHED = "meta.json", "state.bin", ".tmp"
_PROBE = "permTest"
_ID = re.compile(r"\d+-\d+-\d+", re.ASCII)

# What says that a file is not what was written: unreadable, or something else of its name.
_SPOILT = frozenset(
    {errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.EFBIG, errno.ENXIO}
)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_MOST_META = 64 << 20  # bytes; a configuration of thousands of servers has some hundred thousand

_KEPT_FREE = 32 << 20  # bytes; twice the low-water mark of the log
_FILES_KEPT_FREE = 16

_BLOCK = 1 << 18  # bytes written and checked at a time
_SYNC_EVERY = 8 << 20  # bytes; one large fsync at the end would hold up the log's for as long


class FileSnapshotStore:
    """A `SnapshotStore` that keeps the newest `retain` snapshots under `base`; thread-safe.

    Leftovers of snapshots that were never finished are removed when the store is opened. A writer
    locks its `state.bin`, so the unfinished snapshot of a living one is never taken for a leftover.
    Failures are `SnapshotError`s, and leave the snapshots that are there as they are.

    A snapshot never takes the last `keep_free` bytes of its file system, nor its last files: the
    log is more important, and often lies on the same one.
    """

    def __init__(
        self,
        base: str | os.PathLike[str],
        retain: int = 2,
        *,
        keep_free: int = _KEPT_FREE,
        runtime: Runtime = THREADS,
    ) -> None:
        if retain < 1:
            raise ValueError("must retain at least one snapshot")
        # Absolute: a program that changes its directory later must find what it left here.
        self._directory = Path(os.path.realpath(base)) / "snapshots"
        self._retain = retain
        self._keep_free = keep_free
        self._runtime = runtime
        self._lock = runtime.lock()  # held while directories are renamed and removed
        self._damaged: set[str] = set()  # ids of snapshots whose content was found damaged
        with _explained("permissions test failed"):
            make_directories(self._directory)
            probe = self._directory / _PROBE
            probe.unlink(missing_ok=True)
            os.close(open_file(probe, _NEW))
            probe.unlink()
            warn_of_others(self._directory)
        self._remove_leftovers()

    def create(
        self,
        version: int,
        index: int,
        term: int,
        configuration: Configuration,
        configuration_index: int,
        *,
        unsettled: bool = False,
    ) -> SnapshotSink:
        """Begin a snapshot; it is listed once its sink is closed."""
        if version != SNAPSHOT_VERSION:
            raise SnapshotError(f"unsupported snapshot version {version}")
        with _explained("cannot begin a snapshot"):
            make_directories(self._directory)
            path = self._make_unfinished(f"{term}-{index}-")
            meta = SnapshotMeta(
                path.name.removesuffix(_UNFINISHED),
                index,
                term,
                configuration,
                configuration_index,
                version=version,
                unsettled=unsettled,
            )
            try:
                return FileSnapshotSink(self, meta, path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise

    def check_room(self, size: int) -> None:
        """Raise `SnapshotError` if so many bytes, beside those to keep free, are not there."""
        with _explained("cannot see how full the disk is"):
            found = os.statvfs(self._directory)
        free, files = found.f_bavail * found.f_frsize, found.f_favail
        if free < size + self._keep_free:
            raise SnapshotError(
                f"no room for {size} bytes of a snapshot in {self._directory}: {free} bytes are"
                f" free, of which {self._keep_free} are kept so. Make room"
            )
        if found.f_files and files < _FILES_KEPT_FREE:
            raise SnapshotError(f"no room in {self._directory}: only {files} more files fit")

    def _make_unfinished(self, prefix: str) -> Path:
        """Make the directory of a new snapshot, newer than all of this prefix.

        Their stamps rank them, so a clock that was set back must not count.
        """
        stamp = self._runtime.wall_time_ns() // 1_000_000
        for path in self._directory.glob(prefix + "*"):
            if _ID.fullmatch(path.name):
                stamp = max(stamp, int(path.name.removeprefix(prefix)) + 1)
        while True:
            finished = self._directory / f"{prefix}{stamp}"
            path = finished.with_name(finished.name + _UNFINISHED)
            if not finished.exists():
                try:
                    path.mkdir(mode=0o700)
                    return path
                except FileExistsError:
                    pass
            stamp += 1

    def list(self) -> Sequence[SnapshotMeta]:
        """Return the newest `retain` snapshots, newest first: by term, index, id.

        Unsettled ones are listed besides. The content is not looked at. One whose metadata is
        damaged is passed over.

        Raises:
            SnapshotVersionError: a newer version of this library wrote one of them.
            SnapshotError: one cannot be read just now, as with too many open files.
        """
        with _explained("cannot list the snapshots"):
            everything = self._all()
        doomed = self._beyond_retention(everything)
        return [meta for meta in everything if meta not in doomed]

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, SnapshotReader]:
        """Return a snapshot's metadata and content; reads all of it once to check it.

        Raises:
            SnapshotCorruptError: the content is not what was written.
            SnapshotError: there is no such snapshot, or it cannot be read.
        """
        if not _ID.fullmatch(snapshot_id):
            raise SnapshotError(f"there is no snapshot {snapshot_id!r}")
        path = self._directory / snapshot_id
        with _explained(f"cannot open snapshot {snapshot_id}"):
            meta, crc = _read_metadata(path)
            state = os.fdopen(open_file(path / _STATE), "rb")
            try:
                _check_content(state, meta, crc)
                state.seek(0)
            except BaseException as exc:
                state.close()
                if isinstance(exc, SnapshotCorruptError):
                    self._damaged.add(meta.id)
                raise
        return meta if crc is None else with_checksum(meta, crc), state

    def publish(self, meta: SnapshotMeta, unfinished: Path) -> None:
        """Make a snapshot that was written completely visible; for its sink."""
        with self._lock:
            finished = self._directory / meta.id
            unfinished.rename(finished)
            try:
                sync_directory(self._directory)
            except BaseException:
                finished.rename(unfinished)  # its writer is told that it failed: so let it have
                raise
            self._reap()

    def settle(self, snapshot_id: str) -> None:
        """Take the mark off an unsettled snapshot, durably; one without it stays as it is."""
        path = self._directory / snapshot_id
        with self._lock, _explained(f"cannot settle snapshot {snapshot_id}"):
            meta, crc = _read_metadata(path)
            if meta.unsettled:
                _replace_durably(path / _META, _metadata(replace(meta, unsettled=False), crc))
                self._reap()

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is absent does not matter."""
        if not _ID.fullmatch(snapshot_id):
            return
        with self._lock, _explained(f"cannot remove snapshot {snapshot_id}"):
            try:
                self._remove([snapshot_id])
            except FileNotFoundError:
                return

    def reap_snapshots(self) -> None:
        """Remove all but the newest `retain` snapshots; what is unsettled stays."""
        with self._lock:
            self._reap()

    def _reap(self) -> None:
        """Remove what need not be retained; failures are no business of a writer."""
        try:
            self._remove([old.id for old in self._beyond_retention(self._all())])
        except (OSError, SnapshotError):
            _log.warning("cannot remove old snapshots path=%s", self._directory, exc_info=True)

    def _beyond_retention(self, newest_first: Sequence[SnapshotMeta]) -> Sequence[SnapshotMeta]:
        """Return what need not be kept: one known to be damaged takes no other's place."""
        doomed, kept = [], 0
        for meta in newest_first:
            if meta.unsettled:
                continue
            if kept >= self._retain:
                doomed.append(meta)
            elif meta.id not in self._damaged:
                kept += 1
        return doomed

    def lost(self) -> Sequence[EntryID]:
        """Return where snapshots ended whose metadata the disk has spoiled, by their names."""
        with self._lock, _explained("cannot look for lost snapshots"):
            names = [path.name.split("-") for path in self._scan()[1]]
        return [EntryID(int(term), int(index)) for term, index, _ in names]

    def _all(self) -> Sequence[SnapshotMeta]:
        return self._scan()[0]

    def _scan(self) -> tuple[Sequence[SnapshotMeta], Sequence[Path]]:
        """Return the finished snapshots, newest first, and the directories of those lost."""
        found, lost = [], []
        try:
            entries = sorted(os.scandir(self._directory), key=lambda entry: entry.name)
        except FileNotFoundError:
            return [], []  # removed behind our back; `create` makes it anew
        for entry in entries:
            if not _ID.fullmatch(entry.name) or not os.path.isdir(entry.path):
                continue  # also a link that leads to itself, which `entry.is_dir` raises on
            try:
                meta, crc = _read_metadata(Path(entry.path))
            except FileNotFoundError:
                if not os.path.isdir(entry.path):
                    continue  # just being removed
                _log.warning("skipping snapshot path=%s cause=no metadata", entry.path)
                lost.append(Path(entry.path))
                continue
            except SnapshotVersionError:
                raise  # to go on without it would be to fall back behind what was acknowledged
            except (OSError, SnapshotError) as exc:
                if isinstance(exc, OSError) and exc.errno not in _SPOILT:
                    raise  # it may be whole: too many files are open, say
                _log.warning("skipping snapshot path=%s cause=%s", entry.path, exc)
                lost.append(Path(entry.path))
                continue
            if crc is None or meta.id != entry.name:
                _log.warning("skipping snapshot path=%s cause=unfinished or renamed", entry.path)
                continue
            found.append(with_checksum(meta, crc))
        found.sort(key=lambda meta: (meta.term, meta.index, meta.id), reverse=True)
        return found, lost

    def _remove_leftovers(self) -> None:
        """Remove what crashed writers left, or else every crash would cost a snapshot of space."""
        for path in self._directory.glob("*" + _UNFINISHED):
            if not _ID.fullmatch(path.name.removesuffix(_UNFINISHED)) or _has_writer(path):
                continue
            _log.info("removing an unfinished snapshot path=%s", path)
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, snapshot_ids: Sequence[str]) -> None:
        # The names go first, durably: without its content a snapshot must not be listed any more.
        doomed = [self._directory / (snapshot_id + _UNFINISHED) for snapshot_id in snapshot_ids]
        for snapshot_id, path in zip(snapshot_ids, doomed, strict=True):
            (self._directory / snapshot_id).rename(path)
        if doomed:
            sync_directory(self._directory)
        for path in doomed:
            shutil.rmtree(path)


class FileSnapshotSink:
    """The sink of one snapshot; used by one thread."""

    def __init__(self, store: FileSnapshotStore, meta: SnapshotMeta, path: Path) -> None:
        self._store = store
        self._meta = meta
        self._path = path
        self._buffer = bytearray()
        self._size = 0  # bytes that went to the file, and into the checksum
        self._synced = 0
        self._crc = 0
        self._is_over = False
        self._error: BaseException | None = None
        _write_durably(path / _META, _metadata(meta, None))
        self._state = os.fdopen(open_file(path / _STATE, _NEW), "wb", buffering=0)
        _mark_writer(self._state)

    def id(self) -> str:
        """Return the snapshot's id, its directory's name."""
        return self._meta.id

    def write(self, data: bytes, /) -> int:
        """Append bytes to the snapshot; after a failure it can only be cancelled."""
        with self._failing():
            if self._is_over:
                raise SnapshotError(f"snapshot {self._meta.id} is closed")
            view = memoryview(data)
            for start in range(0, len(view), _BLOCK):
                self._buffer += view[start : start + _BLOCK]
                if len(self._buffer) >= _BLOCK:
                    self._flush()
            return len(view)

    def close(self) -> None:
        """Make the snapshot durable and visible, then remove those beyond the number to retain."""
        if self._is_over:
            return
        if self._error is not None:
            self.cancel()
            raise SnapshotError(f"snapshot {self._meta.id} is incomplete") from self._error
        try:
            with self._failing():
                self._finish()
        finally:
            self._abandon()

    def cancel(self) -> None:
        """Throw the snapshot away."""
        if not self._is_over:
            self._abandon()

    def _finish(self) -> None:
        self._flush()
        os.fsync(self._state.fileno())
        meta = replace(self._meta, size=self._size)
        _write_durably(self._path / _META, _metadata(meta, self._crc))
        sync_directory(self._path)
        self._store.publish(meta, self._path)

    def _abandon(self) -> None:
        """Let go of the file, and remove the directory if it still has its unfinished name."""
        self._is_over = True
        shutil.rmtree(self._path, ignore_errors=True)
        self._state.close()

    def _flush(self) -> None:
        rest = memoryview(self._buffer)
        self._crc = crc64(rest, self._crc)
        self._size += len(rest)
        while rest:
            rest = rest[self._state.write(rest) :]
        rest.release()
        self._buffer = bytearray()
        if self._size - self._synced >= _SYNC_EVERY:
            self._store.check_room(0)
            os.fsync(self._state.fileno())
            self._synced = self._size

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            with _explained(f"cannot write snapshot {self._meta.id}"):
                yield
        except BaseException as exc:
            self._error = exc
            raise


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the file system says into a `SnapshotError`."""
    try:
        yield
    except OSError as exc:
        raise SnapshotError(f"{what}: {exc}") from exc


def _metadata(meta: SnapshotMeta, crc: int | None) -> bytes:
    return seal_metadata(encode_metadata(meta, crc))


def _read_metadata(path: Path) -> tuple[SnapshotMeta, int | None]:
    return decode_metadata(read_file(path / _META, _MOST_META))


def _check_content(state: BinaryIO, meta: SnapshotMeta, crc: int | None) -> None:
    actual = size = 0
    while block := state.read(_BLOCK):
        actual = crc64(block, actual)
        size += len(block)
    if (actual, size) != (crc, meta.size):
        raise SnapshotCorruptError(f"snapshot {meta.id} is damaged: its checksum does not match")


def _mark_writer(state: BinaryIO) -> None:
    """Lock an unfinished snapshot's file for as long as it is open; see `_has_writer`."""
    try:
        fcntl.flock(state.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass  # a file system without locks: there, leftovers are left alone


def _has_writer(path: Path) -> bool:
    """Tell whether an unfinished snapshot is being written, or cannot be known not to be."""
    try:
        with open(open_file(path / _STATE), "rb") as state:
            fcntl.flock(state.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _write_durably(path: Path, data: bytes) -> None:
    with open(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace_durably(path: Path, data: bytes) -> None:
    """Change a file's content so that a crash leaves either the old or the new."""
    fresh = path.with_name(path.name + _UNFINISHED)
    _write_durably(fresh, data)
    fresh.replace(path)
    sync_directory(path.parent)
