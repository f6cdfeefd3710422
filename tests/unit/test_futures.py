import asyncio
import concurrent.futures
import threading

import pytest

from raft.errors import (
    DeadlockError,
    EnqueueTimeoutError,
    NotAppliedError,
    NotLeaderError,
    OutcomeUnknownError,
    ResultTimeoutError,
    SnapshotError,
)
from raft.futures import (
    STANDALONE,
    ApplyFuture,
    ConfigurationFuture,
    Future,
    IndexFuture,
    SnapshotFuture,
)
from raft.types import Configuration, Server

SECONDS = 5.0


class Host:
    """Collects callbacks instead of running them; says where the FSM runs."""

    def __init__(self, fsm_thread=None):
        self.gate = STANDALONE.gate
        self.callbacks = []
        self.run_callback = self.callbacks.append
        self.fsm_thread = fsm_thread

    def check_may_wait(self):
        if threading.current_thread() is self.fsm_thread:
            raise DeadlockError("own node")


def from_thread(action):
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_success_can_be_asked_for_twice():
    """LIF-08"""
    future = Future()

    future.respond(None)

    assert future.error() is None
    assert future.error() is None


def test_an_error_is_the_same_object_each_time():
    """LIF-09"""
    future, error = Future(), NotLeaderError()

    future.fail(error)

    assert future.error() is error
    assert future.error() is error
    with pytest.raises(NotLeaderError):
        future.result()


def test_a_waiter_gets_the_error_of_another_thread():
    """LIF-10"""
    future, error = Future(), NotLeaderError()
    waits = threading.Event()

    thread = from_thread(lambda: (waits.wait(SECONDS), future.fail(error)))
    waits.set()

    assert future.error(SECONDS) is error
    thread.join()


def test_a_future_cannot_be_cancelled():
    future = Future()

    assert future.cancel() is False
    assert future.running()
    assert not future.cancelled()


def test_the_first_answer_wins():
    future = Future()

    assert future.respond(1) is True
    assert future.respond(2) is False
    assert future.fail(NotLeaderError()) is False

    assert future.result() == 1


def test_an_error_that_came_first_wins():
    future = Future()

    assert future.fail(NotLeaderError()) is True
    assert future.respond(1) is False

    assert isinstance(future.error(), NotLeaderError)


def test_the_end_of_a_wait_is_told_from_a_request_that_was_never_made():
    """Both are `TimeoutError`s; only one says that nothing has happened."""
    assert issubclass(ResultTimeoutError, TimeoutError)
    assert not issubclass(ResultTimeoutError, NotAppliedError)
    assert issubclass(ResultTimeoutError, OutcomeUnknownError)
    assert not issubclass(EnqueueTimeoutError, OutcomeUnknownError)


def test_a_timeout_ends_only_that_wait():
    future = Future()

    for wait in (future.result, future.exception, future.error):
        with pytest.raises(ResultTimeoutError):
            wait(0.001)
    future.respond("late")

    assert future.result(0.001) == "late"


def test_callbacks_are_handed_to_the_host():
    host = Host()
    future, seen = Future(host), []
    future.add_done_callback(seen.append)

    future.respond(1)
    assert seen == []
    host.callbacks[0]()

    assert seen == [future]


def test_a_callback_added_late_is_handed_to_the_host_as_well():
    host = Host()
    future, seen = Future(host), []
    future.respond(1)

    future.add_done_callback(seen.append)
    assert seen == []
    host.callbacks[0]()

    assert seen == [future]


@pytest.mark.parametrize("ask", ["result", "exception", "error"])
def test_waiting_on_the_fsm_thread_is_a_deadlock(ask):
    future = Future(Host(fsm_thread=threading.current_thread()))

    with pytest.raises(DeadlockError, match="own node"):
        getattr(future, ask)()
    future.respond(None)


def test_an_answered_future_may_be_read_on_the_fsm_thread():
    future = Future(Host(fsm_thread=threading.current_thread()))
    future.respond(7)

    assert future.result() == 7


def test_the_response_of_an_apply_waits_for_no_fsm_on_its_own_thread():
    future = ApplyFuture(Host(fsm_thread=threading.current_thread()))

    with pytest.raises(DeadlockError):
        future.response()
    future.respond(None)


def test_wait_and_as_completed_of_the_standard_library_work():
    futures = [Future() for _ in range(3)]
    thread = from_thread(lambda: [future.respond(n) for n, future in enumerate(futures)])

    done, not_done = concurrent.futures.wait(futures, SECONDS)
    results = sorted(f.result() for f in concurrent.futures.as_completed(futures, SECONDS))

    assert (len(done), len(not_done)) == (3, 0)
    assert results == [0, 1, 2]
    thread.join()


def test_wait_for_the_first_of_several():
    first, second = Future(), Future()
    first.respond(1)

    done, not_done = concurrent.futures.wait(
        [first, second], SECONDS, concurrent.futures.FIRST_COMPLETED
    )

    assert (done, not_done) == ({first}, {second})


def test_asyncio_awaits_a_future():
    future = Future()

    async def wait():
        thread = from_thread(lambda: future.respond("answer"))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), SECONDS)
        finally:
            thread.join()

    assert asyncio.run(wait()) == "answer"


def test_a_cancelled_asyncio_wait_leaves_the_future_alone():
    future = Future()

    async def give_up():
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(give_up())

    assert future.respond(1) is True


def test_an_index_is_0_until_one_is_given():
    future = IndexFuture()

    assert future.index() == 0
    future.set_index(9)

    assert future.index() == 9


def test_a_response_is_what_the_fsm_returned_or_raised():
    returned, raised, error = ApplyFuture(), ApplyFuture(), ValueError("no such account")

    returned.respond(3)
    raised.fail(error)

    assert returned.response() == 3
    assert raised.response() is error
    with pytest.raises(ValueError, match="no such account"):
        raised.result()


def test_a_configuration_future_hands_out_the_configuration():
    future, configuration = ConfigurationFuture(), Configuration([Server("a", "a:1")])

    future.respond(configuration)

    assert future.configuration() is configuration


def test_a_snapshot_can_be_opened_once():
    future = SnapshotFuture()
    future.set_opener(lambda: ("meta", "reader"))
    future.respond("id")

    assert future.open() == ("meta", "reader")
    with pytest.raises(SnapshotError):
        future.open()


def test_a_snapshot_that_failed_cannot_be_opened():
    future = SnapshotFuture()
    future.fail(SnapshotError("disk"))

    with pytest.raises(SnapshotError, match="disk"):
        future.open()


def test_opening_a_snapshot_waits_until_it_is_taken():
    """As in `node.snapshot().open()`; the other accessors wait, too."""

    class Slow(SnapshotFuture):
        def result(self, timeout=None):  # taken only now, when somebody waits
            self.set_opener(lambda: ("meta", "reader"))
            self.respond("id")
            return super().result(timeout)

    assert Slow().open() == ("meta", "reader")
