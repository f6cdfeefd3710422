"""The durable log and stable store: SQLite, for one node and one process at a time."""

from raftsqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
