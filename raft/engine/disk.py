"""The disk thread: every write to log and stable store, one after the other.

Law (docs/architecture.md, parallel write): once the node runs nobody else writes to the stores. A
write that fails or overruns makes the disk unfit: the node neither votes nor leads until the write
has ended and a probe is durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from raft.errors import StorageFailedError
from raft.interfaces import MaintainedStore, ReopenableStore, ReservingStore, StableStore
from raft.logs import get_logger
from raft.runtime import Runtime

T = TypeVar("T")

_log = get_logger(__name__)

PROBE_KEY = b"DiskProbe"


class Write:
    """One job of the disk thread: `begun` turns True before it starts, `done` at its very end."""

    __slots__ = ("action", "begun", "done", "error", "heals", "name", "on_done")

    def __init__(
        self, name: str, action: Callable[[], None], on_done: Callable[[Write], None]
    ) -> None:
        self.name = name
        self.action = action
        self.on_done = on_done
        self.error: BaseException | None = None
        self.heals = False  # only such a write is tried after one that failed
        self.begun = False
        self.done = False


class Disk:
    """Runs writes in order; knows how long the current one takes. Any thread submits.

    Background jobs (compaction) are done in small steps between the writes that somebody waits
    for: each call of such a job returns whether it has more to do.
    """

    def __init__(self, runtime: Runtime, stores: Sequence[object], stall_timeout: float) -> None:
        self._runtime = runtime
        self._stall_timeout = stall_timeout
        self._maintained = _unique(s for s in stores if isinstance(s, MaintainedStore))
        self._reopenable = _unique(s for s in stores if isinstance(s, ReopenableStore))
        self._reserving = _unique(s for s in stores if isinstance(s, ReservingStore))
        self._changed = runtime.condition()  # guards all below
        self._writes: deque[Write] = deque()
        self._background: deque[Callable[[], bool]] = deque()
        self._begun: float | None = None  # since when a write is under way
        self._busy = False
        self._stopped = False
        self._failure: Exception | None = None  # of a write; the disk thread's own
        self.is_unfit = False  # a write failed or overran, and no probe has succeeded since
        self.is_full = False  # client entries are refused; what must go on has space kept back

    def submit(
        self,
        name: str,
        action: Callable[[], None],
        on_done: Callable[[Write], None] = lambda _: None,
    ) -> Write:
        """Queue a write. `on_done` runs on the disk thread and must not block."""
        return self._enqueue(Write(name, action, on_done))

    def _enqueue(self, write: Write) -> Write:
        with self._changed:
            self._writes.append(write)
            self._changed.notify()
        return write

    def submit_background(self, step: Callable[[], bool]) -> None:
        """Queue a job whose `step` is called between writes for as long as it returns True."""
        with self._changed:
            self._background.append(step)
            self._changed.notify()

    def is_fit(self) -> bool:
        """Tell whether this node may vote, campaign and lead as far as its disk goes."""
        return not self.is_unfit and not self.is_stalled()

    def is_stalled(self) -> bool:
        """Tell whether the write under way takes longer than `disk_stall_timeout`."""
        begun = self._begun
        return begun is not None and self._runtime.monotonic() - begun > self._stall_timeout

    def is_idle(self) -> bool:
        """Tell whether no write waits or is under way."""
        with self._changed:
            return not self._writes and not self._busy

    def probe(self, stable: StableStore, on_done: Callable[[Write], None]) -> Write:
        """Queue the write that makes an unfit disk fit again, over freshly opened files."""

        def action() -> None:
            # After a failed fsync the kernel may hold clean pages that never reached the disk:
            # only files opened anew tell the truth.
            for store in self._reopenable:
                store.reopen()
            stable.set(PROBE_KEY, b"%d" % self._runtime.wall_time_ns())

        def finished(write: Write) -> None:
            if write.error is None:
                self._failure = None
                self.is_unfit = False
            on_done(write)

        write = Write("probe", action, finished)
        write.heals = True
        return self._enqueue(write)

    def stop(self) -> None:
        """Let the thread end once all writes are done; background work is dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Be the disk thread."""
        while True:
            with self._changed:
                while not (self._writes or self._background or self._stopped):
                    self._changed.wait()
                if self._writes:
                    write: Write | None = self._writes.popleft()
                elif self._stopped:
                    return
                else:
                    write = None
                self._busy = True
            if write is not None:
                self._do(write)
            else:
                self._do_background_step()
            with self._changed:
                self._busy = False

    def _do(self, write: Write) -> None:
        failed: Exception | None = None
        self._begun = self._runtime.monotonic()
        write.begun = True
        if self._failure is None or write.heals:
            try:
                write.action()
            except Exception as error:  # noqa: BLE001 - a store is foreign code; for the waiter
                write.error = self._failure = failed = error
                self.is_unfit = True
        else:
            # Law 4: what stands in the queue behind a failed write is not stored without it.
            write.error = StorageFailedError(f"not written after a failure: {self._failure}")
        self._ended(write.name)
        write.done = True
        write.on_done(write)
        if write.error is None:
            self._maintain()
        else:
            self._see_how_full()  # if that is why it failed, what is kept back is given up now
        if failed is not None:
            _log.error("write failed name=%s", write.name, exc_info=failed)

    def _do_background_step(self) -> None:
        step = self._background[0]  # only this thread removes
        self._begun = self._runtime.monotonic()
        try:
            more = step()
        except Exception:  # noqa: BLE001 - a store is foreign code; what remains is tried later
            self.is_unfit = True
            more = False
            _log.exception("background write failed")
        self._ended("background")
        with self._changed:
            if more:
                self._background.rotate(-1)
            else:
                self._background.popleft()
        self._maintain()

    def _maintain(self) -> None:
        """Let the stores do their housekeeping, now that answers have left."""
        for store in self._maintained:
            self._begun = self._runtime.monotonic()
            try:
                store.maintain()
            except Exception:  # noqa: BLE001 - a store is foreign code; the next write will tell
                _log.exception("store maintenance failed")
            self._ended("maintenance")
        self._see_how_full()

    def _see_how_full(self) -> None:
        try:
            self.is_full = any(store.is_full() for store in self._reserving)
        except Exception:  # noqa: BLE001 - a store is foreign code; the next write will tell
            _log.exception("cannot see how full the disk is")

    def look_for_room(self) -> None:
        """See soon whether a full disk has room again; nothing is written."""
        self.submit_background(lambda: False)

    def _ended(self, name: str) -> None:
        """Note the end of what was under way; a disk that took too long is not to be trusted."""
        if self.is_stalled() and self._begun is not None:
            self.is_unfit = True
            seconds = self._runtime.monotonic() - self._begun
            self._begun = None
            _log.error("write overran name=%s seconds=%.3f", name, seconds)
        self._begun = None


def _unique(stores: Iterable[T]) -> list[T]:
    """Return the stores without repeats: log and stable store are often one object."""
    found: list[T] = []
    for store in stores:
        if all(store is not other for other in found):
            found.append(store)
    return found
