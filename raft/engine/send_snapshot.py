"""The newest snapshot on its way to one peer (§7), and how far it has got."""

from __future__ import annotations

from typing import NamedTuple

from raft.engine.heartbeat import Links
from raft.engine.inbox import SnapshotWanted
from raft.engine.progress import CountingReader
from raft.errors import RaftError, SnapshotError
from raft.logs import get_logger
from raft.messages import InstallSnapshotRequest, InstallSnapshotResponse, SnapshotReader
from raft.metrics import count_for_peer
from raft.runtime import Event
from raft.types import Server, SnapshotMeta

_log = get_logger(__name__)


class SupersededError(Exception):
    """Log or snapshot hold what is of a later term: this leadership is over (law 4)."""


class Transfer(NamedTuple):
    """A snapshot on its way."""

    since: float
    size: int = 0
    reader: CountingReader | None = None  # once it is open

    def __str__(self) -> str:
        sent = self.reader.count() if self.reader is not None else 0
        return f"snapshot {100 * sent // max(self.size, 1)} %"


class SnapshotSender:
    """Sends snapshots to one peer on its repl thread; any thread may look at `transfer`."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.transfer: Transfer | None = None

    def send(self, server: Server, stopped: Event) -> tuple[SnapshotMeta, InstallSnapshotResponse]:
        """Send the newest snapshot, at the configured rate, until `stopped` is set."""
        self.transfer = Transfer(self._links.runtime.monotonic())
        try:
            return self._send(server, stopped, self.transfer.since)
        except (RaftError, OSError):
            count_for_peer(self._links.metrics, "raft.replication.failedSnapshots", server.id)
            raise
        finally:
            self.transfer = None

    def _send(
        self, server: Server, stopped: Event, since: float
    ) -> tuple[SnapshotMeta, InstallSnapshotResponse]:
        links = self._links
        meta, source = _open_newest_snapshot(links)
        reader = CountingReader(
            links.runtime, source, rate=links.config.snapshot_send_rate, stopped=stopped
        )
        try:
            if meta.term > links.term:
                raise SupersededError
            request = InstallSnapshotRequest(
                links.header,
                links.term,
                meta.index,
                meta.term,
                meta.configuration,
                meta.configuration_index,
                meta.size,
                unsettled=meta.unsettled,
            )
            _log.info("sending snapshot id=%s peer=%s size=%d", meta.id, server.id, meta.size)
            count_for_peer(links.metrics, "raft.replication.snapshots", server.id)
            self.transfer = Transfer(since, meta.size, reader)
            began = links.runtime.monotonic()
            answer = links.transport.install_snapshot(server.id, server.address, request, reader)
            if links.metrics is not None:
                links.metrics.peer_since("raft.replication.installSnapshot", began, server.id)
            return meta, answer
        finally:
            reader.close()


def _open_newest_snapshot(links: Links) -> tuple[SnapshotMeta, SnapshotReader]:
    """Open the newest snapshot that is whole; one that the log does not join would not help."""
    for meta in links.snapshots.list():
        end = links.log.boundary()
        if meta.index > end.index or (
            meta.unsettled and (meta.term, meta.index) != (end.term, end.index)
        ):
            continue  # just stored, and perhaps not to be used
        if not links.log.goes_on_behind(meta.index):
            break
        try:
            return links.snapshots.open(meta.id)
        except (SnapshotError, OSError) as error:
            _log.error("snapshot cannot be read id=%s error=%s", meta.id, error)
    links.post(SnapshotWanted(links.term))
    raise SnapshotError("the log was compacted but there is no snapshot to send that can be read")
