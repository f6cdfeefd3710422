"""Something else stands in for `sqlite3.connect`, as under OpenTelemetry's instrumentation."""

import sqlite3

import pytest

from raft.testing.contracts import entries, stored
from raftsqlite import SQLiteStore


class Traced:
    """A proxy of a connection, as wrapt makes them."""

    def __init__(self, *arguments, **named):
        self._connection = connect(*arguments, **named)

    def __getattr__(self, name):
        return getattr(self._connection, name)


connect = sqlite3.connect


@pytest.fixture(autouse=True)
def instrumented(monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", Traced)


def test_a_store_works_and_can_be_backed_up(tmp_path):
    with SQLiteStore(tmp_path / "raft.db") as store:
        store.store_logs(entries(1, 3))

        store.backup(tmp_path / "backup.db")

    with SQLiteStore(tmp_path / "backup.db") as copy:
        assert stored(copy) == [(1, 1), (2, 1), (3, 1)]
