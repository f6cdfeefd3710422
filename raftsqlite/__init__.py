"""The durable log and stable store: SQLite, for one node and one process at a time."""

__all__: list[str] = []
