"""What the tests of all stores share: entries, comparisons, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raft.types import Configuration, Log, Server, ServerSuffrage

CONFIGURATION = Configuration(
    [Server("a", "a:1"), Server("b", "b:1"), Server("c", "c:1", ServerSuffrage.NONVOTER)]
)


def entries(first: int, last: int, *, term: int = 1, size: int = 10) -> list[Log]:
    """Return sealed commands with the indexes from `first` to `last`, each with data of its own."""
    return [
        Log(index, term, data=(b"%d/%d " % (index, term) * size)[:size]).sealed()
        for index in range(first, last + 1)
    ]


def stored(store: Any) -> list[tuple[int, int]]:
    """Return (index, term) of all entries of a log store without gaps."""
    first, last = store.first_index(), store.last_index()
    return [(log.index, log.term) for log in map(store.get_log, range(first, last + 1)) if first]


@contextmanager
def raises(expected: type[BaseException]) -> Iterator[None]:
    """Fail unless the body raises `expected`."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")


class Contract:
    """What the classes of tests have in common."""

    def restarted(self, store: Any) -> Any:
        """Return the store as it is after it was closed and opened again."""
        return store


@contextmanager
def raises_any() -> Iterator[None]:
    """Fail unless the body raises something."""
    try:
        yield
    except Exception:  # noqa: BLE001 - which error it is, is the store's own choice
        return
    raise AssertionError("nothing was raised")


class WatchedThread:
    """A thread whose exception comes out where it is joined."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._target = target
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._target()
        except BaseException as error:  # noqa: BLE001 - handed on by `finish`
            self._error = error

    def finish(self) -> None:
        """Wait for the end of the thread and raise what it died of."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
