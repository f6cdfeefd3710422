"""What is measured every ten seconds: the state of log, FSM and disk.

On a thread of its own, which only nodes with a metrics sink have: the store may make it wait.
"""

from __future__ import annotations

from raft.engine.core import Core
from raft.engine.stats import certificate_seconds
from raft.interfaces import MeasuredStore, oldest_log
from raft.logs import get_logger
from raft.metrics import Metrics
from raft.types import RaftState

_log = get_logger(__name__)

_PERIOD = 10.0  # seconds, as the original's for the age of the log

_STORE_GAUGES = {
    "live_bytes": "raft.store.liveBytes",
    "free_bytes": "raft.store.freeBytes",
    "wal_bytes": "raft.store.walBytes",
}


class Gauges:
    """Emits gauges, once in `period` seconds, for as long as the main thread lives."""

    def __init__(self, core: Core, metrics: Metrics, period: float = _PERIOD) -> None:
        self._core = core
        self._metrics = metrics
        self._period = period
        self._store = core.logs if isinstance(core.logs, MeasuredStore) else None

    def run(self) -> None:
        """Be the metrics thread."""
        while not self._core.main_ended.wait(self._period):
            self._report()

    def _report(self) -> None:
        core, emit = self._core, self._metrics.set_gauge
        now = core.state.published()
        emit("raft.role", now.role)
        emit("raft.leaderKnown", float(bool(now.leader_id)))
        for peer in core.peers():
            if peer.lag is not None:
                emit("raft.replication.lag", peer.lag, (("peer_id", peer.id),))
        emit("raft.term", now.term)
        emit("raft.lastIndex", core.raft_log.last_index())
        emit("raft.commitIndex", now.commit_index)
        emit("raft.appliedIndex", now.applied_index)
        emit("raft.fsm.pending", core.fsm.pending())
        seconds = certificate_seconds(core)
        if seconds is not None:
            emit("raft.certificate.secondsLeft", seconds)
        if now.role is RaftState.LEADER:
            emit("raft.leader.oldestLogAge", self._oldest_log_age())
        self._report_store()

    def _oldest_log_age(self) -> float:
        """Return milliseconds; 0 when there is no entry, or nobody knows when it was appended."""
        try:
            appended_at = oldest_log(self._core.logs).appended_at
        except Exception:  # noqa: BLE001 - a store is foreign code, and may just be closed
            return 0.0
        if not appended_at:
            return 0.0
        return max(0.0, (self._core.runtime.wall_time_ns() - appended_at) / 1e6)

    def _report_store(self) -> None:
        if self._store is None:
            return
        try:
            stats = self._store.stats()
        except Exception as error:  # noqa: BLE001 - a store is foreign code, and may just be closed
            _log.debug("store cannot be measured error=%s", error)
            return
        for key, name in _STORE_GAUGES.items():
            if key in stats:
                self._metrics.set_gauge(name, stats[key])
