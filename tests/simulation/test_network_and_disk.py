"""The simulated network and disk: what gets through, what a crash leaves."""

import io
from dataclasses import replace

import pytest

from raft.codec import encode_hard_state
from raft.errors import (
    ConnectionLostError,
    LogNotFoundError,
    PeerUnreachableError,
    RPCTimeoutError,
    TransportError,
    TransportShutdownError,
    WrongServerError,
)
from raft.interfaces import (
    RangeLogStore,
    ReservingStore,
    SuffixReplacingLogStore,
    WithClose,
    WithDelivery,
    WithIdentity,
    WithPreVote,
)
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
)
from raft.testing.contracts import entries
from raft.testing.invariants import Invariants
from raft.testing.simulation.disk import SimDisk, SimReplacingStore, SimSnapshotStore, SimStore
from raft.testing.simulation.network import SimNetwork
from raft.testing.simulation.runtime import Scheduler, SimRuntime
from raft.testing.simulation.transport import SimTransport
from raft.types import EMPTY_CONFIGURATION

A, B = RPCHeader("a", "a:1"), RPCHeader("b", "b:1")
VOTE = RequestVoteRequest(A, 2, 0, 0)
HEARTBEAT = AppendEntriesRequest(A, 2)


def appending(first, last):
    return AppendEntriesRequest(A, 2, first - 1, 0, tuple(entries(first, last, term=2)))


class World:
    """Two servers; b records what comes and answers it at once."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.network = SimNetwork(scheduler, Invariants())
        self.a, self.b = (
            SimTransport(self.network, SimRuntime(scheduler, name), f"{name}:1") for name in "ab"
        )
        self.a.identify("a", lambda: None)
        self.b.identify("b", lambda: None)
        self.b.deliver_to(self.take)
        self.requests, self.snapshot, self.tasks = [], b"", []

    def take(self, rpc):
        self.requests.append(rpc.command)
        self.tasks.append(self.scheduler.current_task())
        if isinstance(rpc.command, RequestVoteRequest):
            rpc.respond(RequestVoteResponse(B, 2, granted=True))
        elif isinstance(rpc.command, InstallSnapshotRequest):
            while piece := rpc.reader.read(100):
                self.snapshot += piece
            rpc.respond(InstallSnapshotResponse(B, 2, success=True))
        else:
            last = rpc.command.prev_log_index + len(rpc.command.entries)
            rpc.respond(AppendEntriesResponse(B, 2, last, success=True))


def in_world(target, seed=1):
    """Run `target(world)` and return what it returns."""
    scheduler = Scheduler(seed)
    found = []
    scheduler.run(lambda: found.append(target(World(scheduler))))
    return found[0]


def test_it_offers_all_optional_contracts():
    def run(world):
        contracts = (WithClose, WithDelivery, WithIdentity, WithPreVote)
        return [isinstance(world.a, contract) for contract in contracts]

    assert in_world(run) == [True] * 4


def test_what_arrives_is_equal_but_not_the_same():
    def run(world):
        request = appending(1, 3)
        answer = world.a.append_entries("b", "b:1", request)
        return request, world.requests[0], answer

    sent, arrived, answer = in_world(run)
    assert arrived == sent
    assert arrived is not sent
    assert arrived.entries[0] is not sent.entries[0]
    assert answer == AppendEntriesResponse(B, 2, 3, success=True)


def test_a_lost_message_is_a_timeout():
    def run(world):
        world.network.loss = 1.0
        with pytest.raises(RPCTimeoutError):
            world.a.request_vote("b", "b:1", VOTE, 2.0)
        return world.requests, world.scheduler.now

    assert in_world(run) == ([], pytest.approx(1002.0, abs=0.1))


def test_a_call_times_out_by_the_clock_of_its_process():
    def run(world):
        world.network.loss = 1.0
        world.a.process.set_rate(0.5)

        def call():
            with pytest.raises(RPCTimeoutError):
                world.a.request_vote("b", "b:1", VOTE, 2.0)

        world.a.process.spawn("caller", call).join()
        return world.scheduler.now

    assert in_world(run) == pytest.approx(1004.0, abs=0.1)


def test_what_is_sent_to_one_that_lags_comes_late_and_nothing_else():
    def run(world):
        world.network.ways.lag["a:1"] = 1.0
        world.a.request_vote("b", "b:1", VOTE, 2.0)
        return world.scheduler.now

    assert 1001.0 < in_world(run) < 1001.5


def test_entries_vanish_where_large_messages_do_and_the_rest_passes():
    def run(world):
        world.network.ways.swallowing["a:1"] = None
        assert world.a.append_entries("b", "b:1", HEARTBEAT, 1.0).success
        with pytest.raises(RPCTimeoutError):
            world.a.append_entries("b", "b:1", appending(1, 1), 1.0)

    in_world(run)


def test_a_slow_way_carries_one_message_behind_the_other():
    def run(world):
        world.network.ways.rates["a:1"] = 1000.0
        pipeline = world.a.append_entries_pipeline("b", "b:1")
        pipeline.append_entries(appending(1, 20))
        began = world.scheduler.now
        world.a.append_entries("b", "b:1", HEARTBEAT, 10.0)
        assert world.scheduler.now - began > 0.4

    in_world(run)


def test_a_closed_way_back_loses_the_answer_alone():
    def run(world):
        world.network.close_way("b:1", "a:1")
        with pytest.raises(RPCTimeoutError):
            world.a.request_vote("b", "b:1", VOTE, 2.0)
        world.network.heal()
        return world.a.request_vote("b", "b:1", VOTE, 2.0).granted, len(world.requests)

    assert in_world(run) == (True, 2)


def test_a_repeated_request_arrives_twice_and_is_answered_once():
    def run(world):
        world.network.duplication = 1.0
        answer = world.a.request_vote("b", "b:1", VOTE)
        world.scheduler.sleep(5.0)
        return answer.granted, world.requests

    assert in_world(run) == (True, [VOTE, VOTE])


def test_heartbeats_go_to_their_handler_on_a_task_of_the_receiver():
    def run(world):
        seen = []

        def beat(rpc):
            seen.append((rpc.command, world.scheduler.current_task().process.name))
            rpc.respond(AppendEntriesResponse(B, 2, 0, success=True))

        world.b.set_heartbeat_handler(beat)
        world.a.append_entries("b", "b:1", HEARTBEAT)
        return seen, world.requests

    assert in_world(run) == ([(HEARTBEAT, "b")], [])


def test_another_server_at_the_address_does_not_answer_for_the_wanted_one():
    def run(world):
        with pytest.raises(WrongServerError):
            world.a.request_vote("c", "b:1", VOTE)
        with pytest.raises(WrongServerError):
            world.a.append_entries_pipeline("c", "b:1")
        return world.requests

    assert in_world(run) == []


def test_nobody_answers_for_a_dead_process():
    def run(world):
        world.b.process.kill()
        with pytest.raises(PeerUnreachableError):
            world.a.request_vote("b", "b:1", VOTE)
        with pytest.raises(PeerUnreachableError):
            world.a.append_entries_pipeline("b", "b:1")

    in_world(run)


@pytest.mark.parametrize("seed", range(5))
def test_a_pipeline_keeps_order(seed):
    def run(world):
        pipeline = world.a.append_entries_pipeline("b", "b:1")
        for index in range(1, 11):
            pipeline.append_entries(appending(index, index))
        answers = [pipeline.receive(5.0).last_log for _ in range(10)]
        pipeline.close()
        return answers

    assert in_world(run, seed) == list(range(1, 11))


def test_across_a_bridge_two_sides_hear_the_middle_but_not_each_other():
    network = SimNetwork(Scheduler(1), Invariants())

    network.bridge("m", ["a", "m"], ["b", "c"])

    def hears(source, target):
        return network.is_open(source, target)

    assert not any(hears("a", right) or hears(right, "a") for right in "bc")
    assert all(hears("m", side) and hears(side, "m") for side in "abc")
    assert hears("b", "c")


def test_nothing_follows_on_a_pipeline_behind_what_was_lost():
    def run(world):
        pipeline = world.a.append_entries_pipeline("b", "b:1")
        world.network.close_way("a:1", "b:1")
        pipeline.append_entries(appending(1, 1))
        world.network.heal()
        pipeline.append_entries(appending(2, 2))
        with pytest.raises(ConnectionLostError):
            pipeline.receive(5.0)
        pipeline.close()
        with pytest.raises(TransportError):
            pipeline.append_entries(appending(3, 3))
        return world.requests

    assert in_world(run) == []


def test_a_snapshot_travels_in_pieces():
    data = bytes(range(256)) * 20

    def run(world):
        request = InstallSnapshotRequest(A, 2, 9, 2, size=len(data))
        answer = world.a.install_snapshot("b", "b:1", request, io.BytesIO(data))
        return answer.success, world.snapshot == data, world.scheduler.now

    success, is_whole, now = in_world(run)
    assert (success, is_whole) == (True, True)
    assert now > 1000.02


def test_a_repeated_snapshot_arrives_twice_and_whole():
    data = bytes(range(256)) * 20

    def run(world):
        world.network.duplication = 1.0
        request = InstallSnapshotRequest(A, 2, 9, 2, size=len(data))
        world.a.install_snapshot("b", "b:1", request, io.BytesIO(data))
        world.scheduler.sleep(5.0)
        return len(world.requests), sorted(world.snapshot) == sorted(data * 2)

    assert in_world(run) == (2, True)


def test_a_snapshot_may_take_as_long_as_a_large_one():
    data = bytes(range(256)) * 20

    def run(world):
        world.network.snapshot_slowness = 50.0
        request = InstallSnapshotRequest(A, 2, 9, 2, size=len(data))
        world.a.install_snapshot("b", "b:1", request, io.BytesIO(data))
        return world.scheduler.now

    assert in_world(run) > 1001.0


def test_a_slow_snapshot_is_fast_from_the_moment_in_which_its_way_is():
    data = bytes(range(256)) * 20

    def run(world):
        world.network.snapshot_slowness = 1000.0
        world.scheduler.call_later(1.0, lambda: setattr(world.network, "snapshot_slowness", 1.0))
        request = InstallSnapshotRequest(A, 2, 9, 2, size=len(data))
        world.a.install_snapshot("b", "b:1", request, io.BytesIO(data))
        return world.scheduler.now

    assert 1001.0 < in_world(run) < 1001.5


@pytest.mark.parametrize(("is_cut", "earliest"), [(False, 0.1), (True, 1.5)])
def test_who_still_reads_a_snapshot_that_was_given_up_hears_of_it_when_something_gets_through(
    is_cut, earliest
):
    def story(world):
        scheduler, request = world.scheduler, InstallSnapshotRequest(A, 2, 9, 2, size=1000)
        noticed = []

        def read(rpc):
            try:
                while rpc.reader.read(100):
                    pass
            except ConnectionLostError:
                noticed.append(scheduler.now)

        world.b.deliver_to(read)
        if is_cut:
            scheduler.call_later(0.05, lambda: world.network.close_way("a:1", "b:1"))
            scheduler.call_later(1.5, world.network.heal)
        began = scheduler.now
        with pytest.raises(RPCTimeoutError):  # the file ends before its size
            world.a.install_snapshot("b", "b:1", request, io.BytesIO(b"x"), timeout=0.1)
        scheduler.sleep(10.0)
        return noticed[0] - began

    assert earliest < in_world(story) < earliest + 0.5


def test_closing_fails_the_calls_under_way_and_those_that_follow():
    def run(world):
        world.scheduler.call_later(1.0, world.a.close)
        world.network.loss = 1.0
        with pytest.raises(TransportShutdownError):
            world.a.request_vote("b", "b:1", VOTE, 60.0)
        with pytest.raises(TransportShutdownError):
            world.a.request_vote("b", "b:1", VOTE)
        return world.scheduler.now

    assert in_world(run) == pytest.approx(1001.0, abs=0.1)


# ---- disk ----


def on_disk(target, seed=1, kind=SimReplacingStore):
    """Run `target(scheduler, disk, process, store)` and return what it returns."""
    scheduler = Scheduler(seed)
    found = []

    def run():
        disk, process = SimDisk(scheduler, "n1", Invariants()), SimRuntime(scheduler, "n1")
        found.append(target(scheduler, disk, process, kind(disk, process)))

    scheduler.run(run)
    return found[0]


def test_a_write_takes_time_and_is_read_afterwards():
    def run(scheduler, disk, process, store):
        store.store_logs(entries(1, 5))
        store.replace_suffix(4, entries(4, 4, term=2))
        store.delete_range(1, 2)
        store.set(b"k", b"v")
        store.set_uint64(b"n", 7)
        with pytest.raises(LogNotFoundError):
            store.get_log(5)
        assert scheduler.now > 1000.0
        found = store.get_range(3, 9, 1 << 20)
        numbers = (store.first_index(), store.last_index(), store.get(b"k"), store.get_uint64(b"n"))
        return [(log.index, log.term) for log in found], numbers

    assert on_disk(run) == ([(3, 1), (4, 2)], (3, 4, b"v", 7))


def test_only_one_kind_truncates_and_appends_at_once():
    assert isinstance(SimReplacingStore(None, None), SuffixReplacingLogStore)
    assert not isinstance(SimStore(None, None), SuffixReplacingLogStore)
    assert isinstance(SimStore(None, None), RangeLogStore)


def after_a_crash(first, write, seed, kind):
    """Crash while `write(store)` is under way, behind `first(store)`; return what is left."""

    def run(scheduler, disk, process, store):
        first(store)
        process.spawn("writer", lambda: write(store))
        scheduler.sleep(0.0001)
        process.kill()
        disk.crash()
        scheduler.sleep(1.0)
        return [(log.index, log.term) for log in disk.content.logs.values()]

    return on_disk(run, seed, kind)


def test_a_crash_may_tear_a_batch_where_there_are_no_transactions():
    found = {
        kind: {
            tuple(after_a_crash(lambda _: None, lambda s: s.store_logs(entries(1, 3)), seed, kind))
            for seed in range(60)
        }
        for kind in (SimStore, SimReplacingStore)
    }

    whole = ((1, 1), (2, 1), (3, 1))
    assert found[SimReplacingStore] == {(), whole}
    assert found[SimStore] == {(), whole[:1], whole[:2], whole}


def test_a_spoiled_entry_is_there_and_its_checksum_tells():
    def run(scheduler, disk, process, store):
        store.store_logs(entries(1, 2))
        disk.spoil(2)
        return store.last_index(), [store.get_log(index).is_intact() for index in (1, 2)]

    assert on_disk(run) == (2, [True, False])


def test_a_full_disk_says_so_and_goes_on():
    def run(scheduler, disk, process, store):
        was_full, disk.is_full = store.is_full(), True
        store.store_logs(entries(1, 1))
        return was_full, store.is_full(), store.last_index()

    assert isinstance(SimStore(None, None), ReservingStore)
    assert on_disk(run) == (False, True, 1)


def test_a_crash_keeps_or_loses_the_transaction_under_way_and_nothing_else():
    def run(scheduler, disk, process, store):
        def write():
            store.store_logs(entries(1, 2))
            store.replace_suffix(2, entries(2, 4, term=2))

        process.spawn("writer", write)
        while not disk.content.logs:
            scheduler.sleep(0.0001)
        process.kill()
        disk.crash()
        scheduler.sleep(1.0)
        return [(log.index, log.term) for log in disk.content.logs.values()]

    before, after = [(1, 1), (2, 1)], [(1, 1), (2, 2), (3, 2), (4, 2)]
    found = [on_disk(run, seed) for seed in range(30)]
    assert before in found
    assert after in found
    assert [content for content in found if content not in (before, after)] == []


def test_a_failing_disk_says_so_and_may_have_written():
    def run(scheduler, disk, process, store):
        disk.failures = 1
        with pytest.raises(OSError, match="simulated disk error"):
            store.store_logs(entries(1, 1))
        is_there = store.last_index() == 1
        store.store_logs(entries(1, 1))
        return is_there

    assert {on_disk(run, seed) for seed in range(10)} == {True, False}


def test_only_a_closed_snapshot_is_there_and_the_newest_two_are_kept():
    def run(scheduler, disk, process, store):
        snapshots = SimSnapshotStore(disk, process)
        for index in (1, 2, 3):
            sink = snapshots.create(1, index, 1, EMPTY_CONFIGURATION, 0)
            sink.write(b"%d" % index)
            sink.close()
        snapshots.create(1, 4, 1, EMPTY_CONFIGURATION, 0).write(b"never closed")
        metas = snapshots.list()
        return [meta.index for meta in metas], snapshots.open(metas[0].id)[1].read()

    assert on_disk(run) == ([3, 2], b"3")


def test_a_log_with_a_hole_or_another_past_is_found_when_a_node_starts():
    invariants = Invariants()
    disk = SimDisk(Scheduler(1), "n1", invariants)

    disk.stored(entries(1, 4))
    disk.content.logs = {log.index: log for log in entries(1, 4)}
    disk.check()
    assert invariants.violations == []

    disk.content.logs[2] = entries(2, 2, term=3)[0]
    disk.check()
    del disk.content.logs[2]
    disk.check()

    assert "follows one of term 3, elsewhere one of term 1" in invariants.violations[0]
    assert invariants.violations[-1] == "n1 has a hole in its log"


def test_an_acknowledgement_of_what_is_not_on_disk_is_found():
    durable = []

    def run(world):
        world.network.witness.has_durably = lambda *entry: entry in durable
        world.a.append_entries("b", "b:1", appending(1, 3))
        world.a.append_entries("b", "b:1", AppendEntriesRequest(A, 2, 5, 1))
        durable.append(("b", 7, 2))
        world.a.append_entries("b", "b:1", AppendEntriesRequest(A, 2, 7, 2))
        return world.network.invariants.violations

    assert in_world(run) == [
        "b acknowledged entry 3, not on its disk",
        "b acknowledged entry 5, not on its disk",
    ]


def test_whoever_follows_a_leader_has_its_term_on_disk():
    def run(world):
        world.network.witness.has_term = lambda server, term: (server, term) != ("b", 2)
        world.a.append_entries("b", "b:1", HEARTBEAT)
        world.a.append_entries("b", "b:1", replace(HEARTBEAT, term=1))
        return world.network.invariants.violations

    assert in_world(run) == ["b follows a leader of term 2, not on its disk"]


def test_whoever_acknowledges_entries_has_the_id_of_its_cluster_on_disk():
    def run(world):
        world.network.witness.has_cluster_id = lambda server: server != "b"
        world.a.append_entries("b", "b:1", HEARTBEAT)
        world.a.append_entries("b", "b:1", appending(1, 3))
        return world.network.invariants.violations

    assert in_world(run) == ["identity: b has no cluster's id on its disk"]


def test_wrong_members_are_found_where_entries_or_a_snapshot_are_accepted():
    def run(world):
        world.network.witness.wrong_members = lambda _, index: f"has {index}"
        world.a.append_entries("b", "b:1", appending(1, 3))
        snapshot = InstallSnapshotRequest(A, 2, 9, 2, configuration_index=7)
        world.a.install_snapshot("b", "b:1", snapshot, io.BytesIO())
        return world.network.invariants.violations

    assert in_world(run) == ["membership: b has 0", "membership: b has 7"]


def test_an_answer_for_another_server_is_found():
    network = SimNetwork(Scheduler(1), Invariants())
    answer = AppendEntriesResponse(B, 2, 0, success=True)

    network.answered("b", "b", HEARTBEAT, answer, None)
    network.answered("b", "c", HEARTBEAT, None, WrongServerError("c was meant"))
    assert network.invariants.violations == []
    network.answered("b", "c", HEARTBEAT, answer, None)

    assert network.invariants.violations == ["identity: b answers what is meant for c"]


def test_a_vote_that_is_taken_back_is_found():
    def run(scheduler, disk, process, store):
        store.set(b"HardState", encode_hard_state(3, "n2", "n2:1"))
        store.set(b"other", b"x")
        store.set(b"HardState", encode_hard_state(3, "", ""))
        return disk.invariants.violations

    assert on_disk(run) == ["vote: n1 voted for n2 in term 3, and now its record says nobody"]


def test_an_old_suffix_that_is_left_behind_new_entries_is_found():
    def run(scheduler, disk, process, store):
        store.store_logs(entries(1, 5))
        store.store_logs(entries(2, 3, term=2))
        return disk.invariants.violations

    (found,) = on_disk(run)

    assert found.startswith("log matching: at n1 entry 4 of term 1 follows one of term 2")
