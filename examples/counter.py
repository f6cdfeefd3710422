"""A counter on one node: `python -m examples.counter FOLDER`, again and again."""

from __future__ import annotations

import sys
from pathlib import Path

from raft import Config, Configuration, Log, Raft, Server, SnapshotReader, SnapshotSink
from raft.snapshots import FileSnapshotStore
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore


class Counter:
    """Adds up the numbers it is given; what is no number is refused, on every replica alike."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, log: Log) -> int:
        """Add a number, and answer with the total."""
        self.total += int(log.data)
        return self.total

    def snapshot(self) -> CounterSnapshot:
        """Return the total as of now."""
        return CounterSnapshot(self.total)

    def restore(self, reader: SnapshotReader) -> None:
        """Take over a snapshot's total."""
        self.total = int(reader.read())


class CounterSnapshot:
    """A total, to be written."""

    def __init__(self, total: int) -> None:
        self._total = total

    def persist(self, sink: SnapshotSink) -> None:
        """Write the total."""
        sink.write(b"%d" % self._total)

    def release(self) -> None:
        """Nothing to let go of."""


def main(folder: Path) -> None:
    """Add one to the counter that lives in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    transport = TCPTransport("127.0.0.1:0")
    snapshots = FileSnapshotStore(folder)
    with (
        SQLiteStore(folder / "raft.db") as store,
        Raft(Config(local_id="n1"), Counter(), store, store, snapshots, transport) as node,
    ):
        if not node.last_index():
            alone = Configuration([Server("n1", transport.local_addr())])
            node.bootstrap_cluster(alone).result(5)
        node.wait_for_leader(10)
        print(f"started {node.apply(b'1').result(5)} times over {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("counter-data"))
