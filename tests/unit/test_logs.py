"""Records of the log: what they say, and that nobody waits for them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from raft import logs

SOON = 5.0


class Written(logging.Handler):
    """Keeps records, once it is let; `fault` is raised instead."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.fault: BaseException | None = None
        self.records: list[logging.LogRecord] = []

    def handle(self, record: logging.LogRecord) -> bool:
        self.entered.set()
        self.go_on.wait(2 * SOON)
        if self.fault is not None:
            raise self.fault
        self.records.append(record)
        return True

    def messages(self) -> list[str]:
        assert logs.flush(SOON)
        return [record.getMessage() for record in self.records]


@pytest.fixture
def handler() -> Iterator[Written]:
    handler, target = Written(), logging.getLogger("raft.tried")
    target.addHandler(handler)
    target.propagate = False
    target.setLevel(logging.INFO)
    yield handler
    handler.go_on.set()
    logs.flush(SOON)
    target.removeHandler(handler)


log = logs.get_logger("raft.tried")


def test_a_record_has_the_caller_s_time_thread_and_place(handler):
    handler.go_on.clear()
    before = time.time()
    speaker = threading.Thread(target=lambda: log.warning("x=%d", 1), name="speaker")
    speaker.start()
    speaker.join()
    after = time.time()
    handler.go_on.set()

    assert handler.messages() == ["x=1"]
    (record,) = handler.records
    assert before <= record.created <= after
    assert (record.threadName, record.thread) == ("speaker", speaker.ident)
    assert (record.filename, record.funcName) == ("test_logs.py", "<lambda>")
    assert record.levelno == logging.WARNING


def test_the_exception_that_is_handled_goes_along(handler):
    try:
        raise KeyError("gone")
    except KeyError as error:
        log.exception("failed")
        log.error("failed", exc_info=error)

    handler.messages()
    assert [r.exc_info[0] for r in handler.records] == [KeyError, KeyError]


def test_what_the_level_holds_back_is_not_even_queued(handler):
    handler.go_on.clear()
    log.warning("the first holds up the rest")
    log.debug("x=%s", object())

    assert logs._writer._queue.qsize() <= 1


@pytest.mark.parametrize("silence", [lambda t: setattr(t, "disabled", True), None])
def test_a_disabled_logger_says_nothing(handler, silence):
    target = logging.getLogger("raft.tried")
    try:
        silence(target) if silence else logging.disable()
        log.critical("not heard")
        assert handler.messages() == []
    finally:
        target.disabled = False
        logging.disable(logging.NOTSET)


def test_nobody_waits_for_a_handler_and_what_is_too_much_is_counted(handler, monkeypatch):
    monkeypatch.setattr(logs, "_LIMIT", 10)
    handler.go_on.clear()
    log.info("held up")
    assert handler.entered.wait(SOON)
    for number in range(100):
        log.info("number=%d", number)
    assert not logs.flush(0.01)
    handler.go_on.set()

    *written, _, _, _ = messages = handler.messages()
    assert [m for m in messages if "number" in m] == [f"number={n}" for n in range(10)]
    assert [m for m in written if "number" not in m] == [
        "held up",
        "log handlers are too slow, records were dropped count=90",
    ]


@pytest.mark.parametrize("fault", [RuntimeError("no request"), SystemExit()])
def test_a_handler_that_raises_loses_that_record_alone(handler, capfd, fault):
    handler.fault = fault
    log.info("lost")
    assert logs.flush(SOON)
    handler.fault = None
    log.info("heard")

    assert handler.messages() == ["heard"]
    assert type(fault).__name__ in capfd.readouterr().err


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SOON, check=True
    )


def test_the_last_records_of_a_program_are_written():
    found = run("from raft import logs; log = logs.get_logger('raft'); log.warning('the last')")

    assert found.stderr == "the last\n"


def test_the_records_of_callbacks_at_exit_are_written():
    found = run(
        "import atexit; from raft import logs; log = logs.get_logger('raft')\n"
        "atexit.register(log.warning, 'the very last')"
    )

    assert found.stderr == "the very last\n"


FORK = """
import ctypes, faulthandler, logging, os, sys, threading
from raft import logs

class Handler(logging.Handler):
    def handle(self, record):
        entered.set()
        if os.getpid() == parent:
            go_on.wait()
        os.write(1, record.getMessage().encode())

parent, entered, go_on = os.getpid(), threading.Event(), threading.Event()
logging.getLogger("raft").addHandler(Handler())
log = logs.get_logger("raft")
log.warning("the parent's, ")
entered.wait()  # nobody else may want the interpreter during such a fork
child = ctypes.PyDLL(None).fork()
if child == 0:
    faulthandler.dump_traceback_later(3, exit=True)
    log.warning("the child's, ")
    logs.flush(2)
    os._exit(0)
os.waitpid(child, 0)
go_on.set()
"""


def test_a_child_of_a_fork_without_hooks_writes_its_own_records_alone():
    assert run(FORK).stdout == "the child's, the parent's, "
