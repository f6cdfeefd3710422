"""What every test is held to: it leaves no thread of a node and no future without an answer."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from raft import logs
from raft.futures import STANDALONE, Future, FutureHost
from raft.runtime import THREADS

_GRACE = 5.0  # seconds for threads that were told to end
_POLL = 0.01


def _threads_of_nodes() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("raft-"))


class WrittenLog(pytest.LogCaptureFixture):
    """What was said until it is looked at, all of it."""

    @property
    def handler(self) -> Any:
        logs.flush(_GRACE)
        return super().handler


@pytest.fixture
def caplog(request: pytest.FixtureRequest) -> Iterator[pytest.LogCaptureFixture]:
    found = WrittenLog(request.node, _ispytest=True)
    yield found
    found._finalize()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Have what a test said written before the next begins."""
    result = yield
    logs.flush(_GRACE)
    return result


@pytest.fixture(autouse=True)
def leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which a node's thread runs on, or a node's future has no answer."""
    made: list[weakref.ref[Future[Any]]] = []
    make = Future.__init__

    def remember(self: Future[Any], host: FutureHost = STANDALONE) -> None:
        make(self, host)
        if host is not STANDALONE and host.gate == THREADS.gate:
            made.append(weakref.ref(self))

    monkeypatch.setattr(Future, "__init__", remember)
    before = _threads_of_nodes()
    yield
    give_up = time.monotonic() + _GRACE
    pause = threading.Event()
    while time.monotonic() < give_up:
        open_futures = [f for ref in made if (f := ref()) is not None and not f.done()]
        left = [name for name in _threads_of_nodes() if name not in before]
        if not open_futures and not left:
            return
        pause.wait(_POLL)
    assert left == [], "threads were left behind"
    assert open_futures == [], "futures were left without an answer"
