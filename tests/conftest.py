"""What every test is held to: it leaves no thread of a node and no future without an answer."""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from raft import Raft, logs
from raft.futures import STANDALONE, Future
from raft.runtime import THREADS
from raft.transport.network import NetworkTransport

_GRACE = 5.0  # seconds for threads that were told to end
_POLL = 0.01


def _threads_of_nodes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("raft-")]


def pytest_configure() -> None:
    """Have what was started stopped when the run is told to end, as by `timeout`, too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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
    logs.write_directly(False)  # as a program that runs one thread has it
    logs.flush(_GRACE)
    return result


@pytest.fixture(autouse=True)
def leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which a node's thread runs on, or a node's future has no answer.

    What such a test has left open is closed, so that no other test is blamed for it.
    """
    futures = _made_by(monkeypatch, Future, _is_of_a_node)
    opened = _made_by(monkeypatch, Raft) + _made_by(monkeypatch, NetworkTransport)
    before = _threads_of_nodes()
    yield

    def left() -> tuple[list[str], list[Any]]:
        threads = [thread.name for thread in _threads_of_nodes() if thread not in before]
        return sorted(threads), [f for f in futures.alive() if not f.done()]

    if not _becomes(lambda: left() == ([], [])):
        threads, unanswered = left()
        for leaked in opened.alive():
            _close(leaked)
        _becomes(lambda: left() == ([], []))
        assert threads == [], "threads were left behind: close what the test opens, however it ends"
        assert unanswered == [], "futures were left without an answer"


def _is_of_a_node(future: Any) -> bool:
    host = future._host
    return host is not STANDALONE and host.gate == THREADS.gate


class _Made:
    """What was made during one test, as far as it is still there."""

    def __init__(self, *groups: list[weakref.ref[Any]]) -> None:
        self.groups = groups

    def __add__(self, other: _Made) -> _Made:
        return _Made(*self.groups, *other.groups)

    def alive(self) -> list[Any]:
        return [made for group in self.groups for ref in group if (made := ref()) is not None]


def _made_by(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], counts: Any = lambda _: True
) -> _Made:
    """Have all objects of a class remembered that count, from now on."""
    made: list[weakref.ref[Any]] = []
    make = kind.__init__

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if counts(self):
            made.append(weakref.ref(self))

    monkeypatch.setattr(kind, "__init__", remember)
    return _Made(made)


def _becomes(predicate: Any) -> bool:
    give_up = time.monotonic() + _GRACE
    pause = threading.Event()
    while not predicate():
        if time.monotonic() > give_up:
            return False
        pause.wait(_POLL)
    return True


def _close(leaked: Any) -> None:
    with suppress(Exception):
        if isinstance(leaked, Raft):
            leaked.shutdown().result(_GRACE)
        else:
            leaked.close()
