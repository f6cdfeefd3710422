"""Backups in one file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from raft import NotLeaderError, SnapshotCorruptError, SnapshotError
from raft.backup import open_backup, restore_backup, save_backup, write_backup
from raft.testing.cluster import Cluster
from tests.cluster.helpers import ANSWER, apply_count
from tests.cluster.test_user_restore import take_snapshot


def test_what_was_saved_can_be_restored_in_another_cluster(tmp_path: Path) -> None:
    path = tmp_path / "monday.raft"
    with Cluster(1) as cluster:
        apply_count(cluster.leader(), 5)
        saved = save_backup(cluster.leader().node, path)
    with Cluster(3) as cluster:
        leader = cluster.leader()

        restored = restore_backup(leader.node, path, ANSWER)

        assert (restored, restored.checksum) == (saved, saved.checksum)
        assert cluster.assert_same_state() == [b"command-%d" % n for n in range(5)]
    assert [file.name for file in tmp_path.iterdir()] == ["monday.raft"]


def test_a_follower_gives_a_backup_and_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    with Cluster(3) as cluster:
        apply_count(cluster.leader(), 5)
        cluster.assert_same_state()
        follower = cluster.followers()[0].node

        save_backup(follower, path)

        with pytest.raises(NotLeaderError):
            restore_backup(follower, path)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with Cluster(1) as cluster:
        apply_count(cluster.leader(), 50)
        save_backup(cluster.leader().node, tmp_path / "backup")
    return tmp_path / "backup"


def test_a_backup_is_an_archive_that_other_programs_read(backup: Path) -> None:
    with zipfile.ZipFile(backup) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["state.bin", "meta.json"]


def test_one_changed_byte_is_found(backup: Path) -> None:
    data = bytearray(backup.read_bytes())
    data[200] ^= 1
    backup.write_bytes(data)

    with pytest.raises(SnapshotCorruptError), open_backup(backup):
        raise AssertionError("it was opened")


@pytest.mark.parametrize("rest", [0, 30, 400])
def test_a_backup_that_was_cut_off_is_refused(backup: Path, rest: int) -> None:
    backup.write_bytes(backup.read_bytes()[:rest])

    with pytest.raises(SnapshotCorruptError, match="is not a whole backup"), open_backup(backup):
        raise AssertionError("it was opened")


def test_a_backup_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"cannot read the backup .*absent"):
        open_backup(tmp_path / "absent").__enter__()


def test_an_older_backup_stays_when_the_next_one_fails(backup: Path) -> None:
    before = backup.read_bytes()

    class Broken:
        def read(self, size: int = -1, /) -> bytes:
            raise OSError("the disk of the source")

        def close(self) -> None:
            """Nothing is open."""

    with Cluster(1) as cluster:
        apply_count(cluster.leader(), 5)
        meta, _ = take_snapshot(cluster.leader())

        with pytest.raises(SnapshotError, match="cannot write the backup"):
            write_backup(meta, Broken(), backup)

    assert backup.read_bytes() == before
    assert [file.name for file in backup.parent.iterdir()] == ["backup"]
