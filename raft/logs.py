"""The way of log records: from any thread into a queue, and from there to their handlers.

Handlers, filters and formatters are user code, and a handler may wait for ever: nobody reads a full
pipe. So no thread of a node runs them. The caller only sees whether the level lets a record
through, and puts what it consists of into a bounded queue; one thread of the process makes the
record, with the caller's time and thread, and hands it to the logger. Nothing waits for that thread
but `flush`, within a bound. When the queue is full, records are dropped, and counted: the log says
how many once half of the queue has been written. A record whose handler or filter raises is lost.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from typing import Any, NamedTuple, TypeAlias

from raft.runtime import THREADS, Event, SimpleQueue, Task

_LIMIT = 4096  # records that wait to be written
_EXIT_LIMIT = 2.0  # seconds that the end of the interpreter waits for the last records

ErrorInfo: TypeAlias = bool | BaseException | None  # True: the exception that is being handled
_Triple: TypeAlias = Any  # as `sys.exc_info` returns it


class _Item(NamedTuple):
    """What a record will be made of."""

    logger: logging.Logger
    level: int
    message: str
    args: tuple[object, ...]
    error: _Triple
    path: str
    line: int
    function: str
    created_ns: int
    thread_name: str
    thread_id: int | None


class Logger:
    """Says things by a logger of the standard library; none of its methods waits or raises."""

    __slots__ = ("_target",)

    def __init__(self, target: logging.Logger) -> None:
        self._target = target

    def prefix(self) -> str:
        """Return what stands before each message."""
        return ""

    def debug(self, message: str, *args: object, exc_info: ErrorInfo = None) -> None:
        self._put(logging.DEBUG, message, args, exc_info)

    def info(self, message: str, *args: object, exc_info: ErrorInfo = None) -> None:
        self._put(logging.INFO, message, args, exc_info)

    def warning(self, message: str, *args: object, exc_info: ErrorInfo = None) -> None:
        self._put(logging.WARNING, message, args, exc_info)

    def error(self, message: str, *args: object, exc_info: ErrorInfo = None) -> None:
        self._put(logging.ERROR, message, args, exc_info)

    def exception(self, message: str, *args: object) -> None:
        self._put(logging.ERROR, message, args, True)

    def critical(self, message: str, *args: object, exc_info: ErrorInfo = None) -> None:
        self._put(logging.CRITICAL, message, args, exc_info)

    def log(self, level: int, message: str, *args: object, exc_info: ErrorInfo = None) -> None:
        self._put(level, message, args, exc_info)

    def _put(self, level: int, message: str, args: tuple[object, ...], error: ErrorInfo) -> None:
        try:
            target = self._target
            if not _is_enabled(target, level):
                return
            if isinstance(error, BaseException):
                triple: _Triple = (type(error), error, error.__traceback__)
            else:
                triple = sys.exc_info() if error else None
            method = sys._getframe(1)
            frame = method.f_back or method
            code = frame.f_code
            thread: Any = THREADS.current()
            _writer.put(
                _Item(
                    target,
                    level,
                    self.prefix() + message,
                    args,
                    triple,
                    code.co_filename,
                    frame.f_lineno,
                    code.co_name,
                    THREADS.wall_time_ns(),
                    thread.name,
                    thread.ident,
                )
            )
        except Exception:  # noqa: BLE001 - as short of memory: the caller has more to do than talk
            _writer.dropped += 1


def get_logger(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(logging.getLogger(name))


def flush(timeout: float) -> bool:
    """Wait until all that was said so far is written, at most `timeout` seconds.

    Return whether it is. For programs that are about to read what was logged, as tests are.
    """
    return _writer.flush(timeout)


def write_directly(is_direct: bool = True) -> None:
    """Have each record written before the caller goes on; for programs that run one thread.

    Then a handler may hold up a node, and what it raises is still lost.
    """
    _writer.is_direct = is_direct


def _is_enabled(logger: logging.Logger, level: int) -> bool:
    """Tell what `Logger.isEnabledFor` does, without the lock that it takes now and then.

    `logging.config` holds that lock while it waits for handlers.
    """
    if logger.disabled or logger.manager.disable >= level:
        return False
    return level >= logger.getEffectiveLevel()


class Writer:
    """The thread that writes. It starts with the first record, and anew in a forked child.

    Takes no lock that a signal handler could find taken.
    """

    def __init__(self) -> None:
        self.dropped = 0  # about: two threads may count one
        self.is_direct = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._queue: SimpleQueue[_Item | Event | None] = SimpleQueue()
        self._starting = THREADS.lock()  # held by the one that starts the thread; none waits for it
        self._task: Task | None = None
        self._has_ended = False

    def put(self, item: _Item) -> None:
        """Have a record written, soon; drop it when too many wait."""
        if self._pid != os.getpid():
            self._begin()  # what waited in the parent is the parent's to write
        if self.is_direct:
            _write(item)
        elif self._has_ended or self.dropped or self._queue.qsize() >= _LIMIT:
            self.dropped += 1  # until there is room for many again: one line tells of them all
        else:
            self._queue.put(item)
            self._start()

    def flush(self, timeout: float) -> bool:
        """See `raft.logs.flush`."""
        task = self._task
        if task is THREADS.current():
            return False
        if self._pid != os.getpid() or (task is None and not self._queue.qsize()):
            return True
        written = THREADS.event()
        self._queue.put(written)
        self._start()
        return written.wait(timeout)

    def end(self) -> None:
        """Write the last records, within a bound; what comes later is dropped.

        A thread that is in the midst of a line when the interpreter ends could abort the process.
        """
        if self._pid != os.getpid():
            return
        self._has_ended = True
        self._queue.put(None)
        if self._task is not None:
            self._task.join(_EXIT_LIMIT)
        elif self._queue.qsize() > 1:
            self._run()  # the system had no thread for us, and nobody else can write it now

    def _start(self) -> None:
        if self._task is None and self._starting.acquire(False):
            try:
                if self._task is None:
                    self._task = THREADS.spawn("raftlog-writer", self._run)
            except RuntimeError:
                pass  # the system has no thread left: tried again with the next record
            finally:
                self._starting.release()

    def _run(self) -> None:
        """Be the thread."""
        queue = self._queue
        while (item := queue.get()) is not None:
            if isinstance(item, _Item):
                _write(item)
                if self.dropped and queue.qsize() <= _LIMIT // 2:
                    dropped, self.dropped = self.dropped, 0
                    _write(
                        item._replace(
                            level=logging.WARNING,
                            message="log handlers are too slow, records were dropped count=%d",
                            args=(dropped,),
                            error=None,
                        )
                    )
            else:
                item.set()


def _write(item: _Item) -> None:
    """Make a record and have it handled, all of which is the user's code."""
    try:
        logger = item.logger
        record = logger.makeRecord(
            logger.name,
            item.level,
            item.path,
            item.line,
            item.message,
            item.args,
            item.error,
            item.function,
        )
        late = record.created - item.created_ns / 1e9
        record.created -= late
        record.msecs = float(item.created_ns // 10**6 % 1000)
        record.relativeCreated -= late * 1e3
        if logging.logThreads:
            record.thread, record.threadName = item.thread_id, item.thread_name
        logger.handle(record)
    except BaseException:  # noqa: BLE001 - user code: the record is lost, the next is tried
        _complain()


def _complain() -> None:
    """Say why a record was lost, as the handlers of the standard library do."""
    try:
        if logging.raiseExceptions:
            traceback.print_exc()
    except BaseException:  # noqa: BLE001 - nobody is left to hear
        pass


_writer = Writer()
atexit.register(_writer.end)
