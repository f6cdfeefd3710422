"""From what each voter has on disk to what is committed (§5.3, §5.4.2)."""

from __future__ import annotations

from collections.abc import Callable

from raft.runtime import Runtime
from raft.types import NO_INDEX, Configuration, ServerID


def majority_index(match_indexes: list[int]) -> int:
    """Return the highest index that a majority has reached; 0 without voters."""
    if not match_indexes:
        return NO_INDEX
    ascending = sorted(match_indexes)
    return ascending[(len(ascending) - 1) // 2]


class Commitment:
    """The highest index that a quorum of voters has on disk, in one leadership.

    Replicator threads and the disk thread report matches; the main thread reads the result. Safe
    from any thread. `on_advance` is called without the lock, once until `acknowledge` is called.
    `on_reached` is called when a server has got to where `watch` said, whether it votes or not.
    Invariant: `commit_index` never falls, and never rises to an index before `start_index`.
    """

    def __init__(
        self,
        runtime: Runtime,
        configuration: Configuration,
        start_index: int,
        on_advance: Callable[[], None],
        on_reached: Callable[[ServerID, int], None] = lambda _, __: None,
    ) -> None:
        self._lock = runtime.lock()  # guards all below
        self._start_index = start_index
        self._on_advance = on_advance
        self._on_reached = on_reached
        self._watched: dict[ServerID, int] = {}
        self._match: dict[ServerID, int] = {s.id: NO_INDEX for s in configuration.voters()}
        self._retired: set[object] = set()  # one for each removal
        # Which incarnation of each server counts (departure 21), and what others have reported.
        self._admitted: dict[ServerID, str | None] = {}
        self._reported: dict[ServerID, tuple[str, int]] = {}
        self._announced = False
        self.commit_index = NO_INDEX  # written under the lock, read without

    def match(
        self, server_id: ServerID, index: int, source: object = None, incarnation: str = ""
    ) -> None:
        """Note that a server has the log up to `index` on disk; others than voters do not count.

        Nor does what a retired source reports, or another incarnation than the admitted one.
        """
        announce = False
        with self._lock:
            if source in self._retired:
                return
            if incarnation and self._admitted.get(server_id) != incarnation:
                self._reported[server_id] = (incarnation, index)
            elif index > self._match.get(server_id, index):
                self._match[server_id] = index
                announce = self._recalculate()
            reached = index >= self._watched.get(server_id, index + 1)
            if reached:
                del self._watched[server_id]
        if announce:
            self._on_advance()
        if reached:
            self._on_reached(server_id, index)

    def admit(self, server_id: ServerID, incarnation: str | None) -> None:
        """Count what this incarnation of a server reports, and has reported; None for none."""
        with self._lock:
            if incarnation is not None and self._admitted.get(server_id) == incarnation:
                return
            self._admitted[server_id] = incarnation
            reported, index = self._reported.get(server_id, ("", NO_INDEX))
            if server_id in self._match:
                # What another one had is gone, but for what is committed by it already.
                self._match[server_id] = index if reported == incarnation else NO_INDEX
            announce = self._recalculate()
        if announce:
            self._on_advance()

    def retire(self, source: object) -> None:
        """Count no more reports of a source: its server was removed.

        The id may be added again while a report is on its way, and is another machine's then, which
        has nothing of it.
        """
        with self._lock:
            self._retired.add(source)

    def watch(self, server_id: ServerID, index: int) -> None:
        """Have `on_reached` called once, at the next report of a server that has got so far."""
        with self._lock:
            self._watched[server_id] = index

    def set_configuration(self, configuration: Configuration) -> None:
        """Count by another set of voters; those that stay keep their matches."""
        with self._lock:
            self._match = {s.id: self._match.get(s.id, NO_INDEX) for s in configuration.voters()}
            announce = self._recalculate()
        if announce:
            self._on_advance()

    def acknowledge(self) -> int:
        """Return the commit index and announce the next advance again."""
        with self._lock:
            self._announced = False
            return self.commit_index

    def match_indexes(self) -> dict[ServerID, int]:
        """Return a copy of what each voter is known to have."""
        with self._lock:
            return dict(self._match)

    def _recalculate(self) -> bool:
        """Raise the commit index if a quorum allows; tell whether to announce it."""
        index = majority_index(list(self._match.values()))
        # §5.4.2: only entries of our own term commit by counting; older ones come along.
        if index <= self.commit_index or index < self._start_index:
            return False
        self.commit_index = index
        announce, self._announced = not self._announced, True
        return announce
