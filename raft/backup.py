"""One file with a snapshot, its metadata and its checksum: to keep elsewhere, and to restore from.

The file is a plain zip archive, not compressed, of `state.bin` and `meta.json`, as a directory of
`FileSnapshotStore` holds them: `unzip` and the original's tools read it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from raft.errors import SnapshotCorruptError, SnapshotError
from raft.files import open_file, sync_directory
from raft.messages import SnapshotReader
from raft.node import Raft
from raft.snapshots.crc64 import CheckedReader, crc64
from raft.snapshots.metadata import decode_metadata, encode_metadata, with_checksum
from raft.types import SnapshotMeta

__all__ = ["open_backup", "restore_backup", "save_backup", "write_backup"]

_META, _STATE = "meta.json", "state.bin"
_BLOCK = 1 << 18  # bytes copied at a time


def save_backup(node: Raft, path: str | os.PathLike[str]) -> SnapshotMeta:
    """Have a node take a snapshot, and write it to one file; return what it covers.

    Blocks until the file is durable. Any node may be asked; a follower's snapshot may lack what the
    leader has just committed. The file takes the place of another one only when it is complete.

    Raises:
        NothingNewToSnapshotError: the node has applied nothing since its start.
        SnapshotError: the snapshot could not be taken, or the file could not be written.
    """
    future = node.snapshot()
    future.result()
    meta, reader = future.open()
    with closing(reader):
        return write_backup(meta, reader, path)


def write_backup(
    meta: SnapshotMeta, reader: SnapshotReader, path: str | os.PathLike[str]
) -> SnapshotMeta:
    """Write what `SnapshotFuture.open` or `SnapshotStore.open` returned to one file.

    Returns the metadata with the size and the checksum of what was written.

    Raises:
        SnapshotCorruptError: what was read does not match `meta.checksum`.
        SnapshotError: the file could not be written; another one of this name is as it was.
    """
    final = Path(path)
    unfinished = final.with_name(f"{final.name}.{os.getpid()}.tmp")
    try:
        with _explained(f"cannot write the backup {final}"):
            written = _write(meta, reader, unfinished)
            os.replace(unfinished, final)
            sync_directory(final.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return written


@contextmanager
def open_backup(path: str | os.PathLike[str]) -> Iterator[tuple[SnapshotMeta, SnapshotReader]]:
    """Open a backup for `with`: its metadata, and a reader of its content, checked as a whole.

    Raises:
        SnapshotCorruptError: the content is not what was written.
        SnapshotError: there is no such file, it cannot be read, or it is not a backup.
    """
    with _explained(f"cannot read the backup {os.fspath(path)}"), zipfile.ZipFile(path) as archive:
        meta, crc = decode_metadata(archive.read(_META))
        if crc is None:
            raise SnapshotCorruptError(f"the backup {os.fspath(path)} is not complete")
        meta = with_checksum(meta, crc)
        with archive.open(_STATE) as content:
            checked = CheckedReader(content, meta)
            while checked.read(_BLOCK):
                pass
        with archive.open(_STATE) as content:
            yield meta, content


def restore_backup(
    node: Raft, path: str | os.PathLike[str], timeout: float | None = None
) -> SnapshotMeta:
    """Replace the state of the whole cluster by a backup, on the leader; see `Raft.restore`.

    Returns what the backup covers. Raises what `open_backup` and `Raft.restore` do.
    """
    with open_backup(path) as (meta, reader):
        node.restore(meta, reader, timeout)
        return meta


def _write(meta: SnapshotMeta, reader: SnapshotReader, path: Path) -> SnapshotMeta:
    source = CheckedReader(reader, meta) if meta.checksum else reader
    crc = size = 0
    with open(open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(_STATE, "w", force_zip64=True) as content:
                while block := source.read(_BLOCK):
                    content.write(block)
                    crc = crc64(block, crc)
                    size += len(block)
            written = with_checksum(meta, crc, size)
            archive.writestr(_META, encode_metadata(written, crc))
        _sync_file(file)
    return written


def _sync_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the file system and the archive say into a `SnapshotError`."""
    try:
        yield
    except (zipfile.BadZipFile, KeyError) as exc:
        raise SnapshotCorruptError(f"{what}: it is not a whole backup: {exc}") from exc
    except OSError as exc:
        raise SnapshotError(f"{what}: {exc}") from exc
