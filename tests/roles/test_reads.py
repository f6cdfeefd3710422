"""Reads without a log entry (thesis 6.4), and confirmations after a time of not running."""

from raft.engine.inbox import BeatAnswered, NewerTermSeen, ReadBarrier
from raft.errors import NotLeaderError, ShutdownOutcomeUnknownError
from raft.futures import IndexFuture
from raft.messages import AppendEntriesRequest, AppendEntriesResponse
from raft.roles.follower import Follower
from raft.runtime import Deadline
from raft.testing.script import header, servers
from tests.roles.bench import NOOP, TERM, Bench


def test_a_read_waits_for_a_quorum_and_for_the_fsm():
    """ETC-57: the closest to a read index."""
    bench = Bench(storing=["n2"])
    bench.node.apply(b"x")

    assert bench.read().result(0) == NOOP + 1
    assert bench.core.raft_log.last_index() == NOOP + 1


def test_a_read_waits_for_an_entry_of_the_own_term():
    """Section 6.4: before it, the leader does not know all that is committed."""
    bench = Bench()

    future = bench.read()
    bench.runtime.advance(0.05)
    assert not future.done()
    bench.store("n2")

    assert future.result(0) == NOOP


def test_a_read_without_a_quorum_ends_with_the_lease():
    bench = Bench(storing=["n2", "n3"])
    bench.beating.clear()
    bench.storing.clear()

    future = bench.read()
    assert not future.done()
    bench.runtime.advance(0.5)

    assert isinstance(future.error(0), NotLeaderError)


def test_rounds_that_began_before_the_read_do_not_count():
    """Departure 5"""
    bench = Bench(storing=["n2", "n3"])
    bench.beating.clear()
    bench.storing.clear()
    bench.runtime.advance(0.02)

    future = bench.read()
    sequence = bench.leader.reads.verifications.sequence
    bench.core.inbox.post(BeatAnswered(TERM, "n2", sequence - 1))
    bench.runtime.run()
    assert not future.done()
    bench.core.inbox.post(BeatAnswered(TERM, "n2", sequence))
    bench.runtime.run()

    assert future.result(0) == NOOP


def test_the_contact_that_keeps_the_lease_confirms_no_read():
    """An answer may be old when it comes: it keeps a leader in office, and shows nothing."""
    bench = Bench(storing=["n2", "n3"])
    bench.beating.clear()
    bench.runtime.advance(0.03)  # heartbeats are on their way

    read, verify = bench.read(), bench.verify()
    for call in bench.transport.open_calls(AppendEntriesRequest):
        call.answer(AppendEntriesResponse(header(call.server_id), TERM, NOOP, success=True))
    bench.runtime.run()

    now = bench.runtime.now
    assert set(bench.leader.peers.last_contacts().values()) == {now}
    assert not read.done()
    assert not verify.done()


def test_nonvoters_do_not_confirm_reads():
    """ETC-57"""
    bench = Bench(servers("n1", "n2", "n3", nonvoters=["n4"]), storing=["n2"])
    bench.beating = {"n4"}
    bench.storing.clear()

    future = bench.read()
    bench.runtime.advance(0.03)

    assert not future.done()


def test_many_callers_share_rounds():
    bench = Bench(storing=["n2", "n3"])
    calls = len(bench.transport.calls)
    messages = [ReadBarrier(IndexFuture(bench.node.host)) for _ in range(50)]

    for message in messages:
        bench.core.inbox.submit(message, Deadline(bench.runtime, None))
    bench.runtime.run()

    assert {message.future.result(0) for message in messages} == {NOOP}
    assert len(bench.transport.calls) - calls <= 6


def test_a_read_waits_until_the_fsm_has_applied():
    bench = Bench(storing=["n2"])
    door = bench.runtime.event()
    apply = bench.node.fsm.apply

    def slow(log):
        door.wait()
        return apply(log)

    bench.node.fsm.apply = slow
    bench.node.apply(b"x")

    future = bench.read()
    assert not future.done()
    door.set()
    bench.runtime.run()

    assert future.result(0) == NOOP + 1


def test_confirmations_of_before_a_stall_count_no_more():
    """A process that did not run cannot know what happened meanwhile."""
    bench = Bench(storing=["n2", "n3"])
    bench.beating.clear()
    bench.storing.clear()
    verify, read = bench.verify(), bench.read()
    sequence = bench.leader.reads.verifications.sequence

    bench.runtime.now += 0.6
    bench.core.inbox.post(BeatAnswered(TERM, "n2", sequence))
    bench.runtime.run()
    assert not verify.done()
    assert not read.done()
    for call in bench.transport.open_calls():
        call.answer(OSError("late"))
    bench.beating, bench.storing = {"n2", "n3"}, {"n2", "n3"}
    bench.runtime.advance(0.05)

    assert verify.error(0) is None
    assert read.result(0) == NOOP


def test_reads_are_answered_when_leadership_ends():
    bench = Bench()
    unconfirmed = bench.read()

    bench.core.inbox.post(NewerTermSeen(TERM, TERM + 1))
    bench.runtime.run()
    bench.node.start(Follower)

    assert isinstance(unconfirmed.error(0), NotLeaderError)
    assert isinstance(bench.read().error(0), NotLeaderError)


def test_reads_are_answered_at_shutdown():
    bench = Bench()
    future = bench.read()

    bench.core.inbox.close()
    bench.runtime.run()

    assert isinstance(future.error(0), ShutdownOutcomeUnknownError)
