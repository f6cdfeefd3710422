"""A data directory from elsewhere is input: what a crafted one could have done."""

import shutil
import sqlite3

import pytest

from raft.errors import StoreError
from raft.testing.contracts import entries, stored
from raftsqlite import SQLiteStore
from raftsqlite.schema import MIGRATIONS


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "raft.db"
    with SQLiteStore(path) as store:
        store.store_logs(entries(1, 3))
        store.set(b"vote", b"n1")
    return path


def change(path, *statements):
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = ON")
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


ENDLESS = (
    "CREATE VIEW log AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    " SELECT i AS idx, 1 AS term, 0 AS type, x'' AS data, x'' AS extensions, 0 AS appended_at,"
    " 0 AS checksum FROM n"
)
CHANGES = {
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON stable BEGIN"
        " UPDATE stable SET value = x'6e31' WHERE key = x'766f7465'; END",
    ),
    "a view": ("CREATE VIEW more AS SELECT 1",),
    "a view in place of a table": ("DROP TABLE log", ENDLESS),
    "an index": ("CREATE INDEX i ON log (term)",),
    "a table": ("CREATE TABLE more (a)",),
    "another column": ("ALTER TABLE log ADD COLUMN more DEFAULT 0",),
    "a table that is missing": ("DROP TABLE stable",),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_with_another_schema_is_refused_before_it_is_used(path, what, read_only):
    change(path, *CHANGES[what])

    with pytest.raises(StoreError, match="another schema than this library makes"):
        SQLiteStore(path, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_rollback_journal_is_never_carried_out(path, tmp_path, read_only):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    # A journal with the name of a super-journal at its end: SQLite removes what it names.
    name = bytes(str(victim), "utf8")
    magic = bytes.fromhex("d9d505f920a163d7")
    journal = magic + bytes(504) + (0).to_bytes(4, "big") + name
    journal += len(name).to_bytes(4, "big") + (sum(name) & 0xFFFFFFFF).to_bytes(4, "big") + magic
    (tmp_path / "raft.db-journal").write_bytes(journal)

    with pytest.raises(StoreError, match="never has a rollback journal"):
        SQLiteStore(path, read_only=read_only)

    assert victim.exists()
    (tmp_path / "raft.db-journal").unlink()
    with SQLiteStore(path) as store:
        assert len(stored(store)) == 3


def test_stores_of_all_versions_and_tools_are_known(path, tmp_path):
    """The text of a schema depends on the version of sqlite-utils that made it."""
    older = tmp_path / "older.db"
    shutil.copy(path, older)
    shutil.copy(f"{path}.mark", f"{older}.mark")
    change(
        older,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(replace(sql, '[', '\"'), ']', '\"')",
    )

    with SQLiteStore(older) as store:
        assert store.get(b"vote") == b"n1"
    assert len(MIGRATIONS) == 2
