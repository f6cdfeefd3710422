"""One leader's work for one peer, whose answers the test gives."""

from itertools import pairwise

import pytest

from raft.engine.heartbeat import Links
from raft.engine.inbox import LogCorrupted, NewerTermSeen
from raft.engine.plausible import FURTHEST_AHEAD
from raft.engine.replication import PeerReplicator
from raft.errors import (
    ConnectionLostError,
    PeerUnreachableError,
    RemoteError,
    RPCTimeoutError,
)
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
)
from raft.metrics import Metrics
from raft.testing.fsm import RecordedSnapshot
from raft.testing.script import ScriptedNode, entries, header, servers
from raft.types import EntryID, Server

TERM = 3
IMPOSSIBLE = TERM + FURTHEST_AHEAD + 1
PEER = Server("n2", "n2:1")


class Bench:
    """A replicator of a leader of term 3, with a log of these terms; heartbeats are answered."""

    def __init__(self, *terms, next_index=None, peer_beats=True, start=True, **config):
        config = {"commit_timeout": 0.05} | config
        self.node = ScriptedNode(
            configuration=servers(), log=entries(1, terms=terms), config=config
        )
        core = self.node.core
        self.runtime, self.transport, self.log = core.runtime, core.transport, core.raft_log
        self.matches, self.posted, self.counted = [], [], []
        self.commit_index = 1  # so that no request of the replicator looks like a heartbeat
        self.peer_beats = peer_beats
        self.transport.respond = self._beat
        links = Links(
            runtime=core.runtime,
            config=core.config,
            threads=core.threads,
            log=core.raft_log,
            snapshots=core.snapshots,
            transport=core.transport,
            header=header("n1"),
            term=TERM,
            progress=self,
            commit_index=lambda: self.commit_index,
            verify_sequence=lambda: 0,
            post=self.posted.append,
            emit=lambda _: None,
            metrics=Metrics(self, core.runtime),
        )
        self.peer = PeerReplicator(links, PEER, next_index or self.log.last_index() + 1)
        if start:
            self.peer.start()
            self.runtime.run()

    def match(self, server_id, index, source, incarnation=""):
        assert (server_id, source) == (PEER.id, self.peer)
        self.matches.append(index)

    def retire(self, source):
        self.retired = source

    def incr_counter(self, name, value, labels):
        self.counted.append(name)

    def add_sample(self, name, value, labels):
        """Times are not looked at."""

    def _beat(self, call):
        if isinstance(call.request, AppendEntriesRequest) and call.request.is_heartbeat():
            if self.peer_beats:
                return yes()
            return PeerUnreachableError("cut off")
        return None

    @property
    def probe(self):
        """The plain request that waits for an answer."""
        (call,) = self.transport.open_calls(AppendEntriesRequest)
        return call

    def until_asked(self):
        """Let time pass until a plain request waits for an answer; half a second at most."""
        for _ in range(100):
            if self.transport.open_calls(AppendEntriesRequest):
                break
            self.runtime.advance(0.005)

    @property
    def snapshot(self):
        (call,) = self.transport.open_calls(InstallSnapshotRequest)
        return call

    @property
    def pipeline(self):
        return self.transport.pipelines[-1]

    def answer(self, call, result):
        call.answer(result)
        self.runtime.run()

    def answer_pipeline(self, *results):
        for result in results:
            self.pipeline.answer(result)
        self.runtime.run()

    def append(self, *terms):
        self.log.append(entries(self.log.last_index() + 1, terms=terms))
        self.peer.kick()
        self.runtime.run()

    def into_pipeline(self):
        self.answer(self.probe, yes())
        return self


def yes(last_log=0, term=TERM):
    return AppendEntriesResponse(header("n2"), term, last_log, success=True)


def no(last_log=0, term=TERM):
    return AppendEntriesResponse(header("n2"), term, last_log, no_retry_backoff=True)


def sent(request):
    """(index and term before, terms sent)"""
    return (
        (request.prev_log_index, request.prev_log_term),
        [log.term for log in request.entries],
    )


# ---- finding where the logs agree (5.3) ----


def test_the_first_request_is_empty_and_asks_about_the_entry_before_the_next():
    bench = Bench(1, 2, 2)

    assert sent(bench.probe.request) == ((3, 2), [])
    assert (bench.probe.server_id, bench.probe.address) == ("n2", "n2:1")


def test_where_the_logs_agree_the_peer_has_everything_before():
    bench = Bench(1, 2, 2)

    bench.answer(bench.probe, yes())

    assert bench.matches == [3]
    assert (bench.peer.status().match_index, bench.peer.status().next_index) == (3, 4)


def test_a_refusal_goes_back_to_the_end_of_a_short_log():
    """Section 5.3"""
    bench = Bench(*[1] * 9)

    bench.answer(bench.probe, no(last_log=4))

    assert sent(bench.probe.request) == ((4, 1), [])
    assert bench.matches == []


def test_refusals_of_a_long_log_go_back_in_growing_steps():
    """Section 5.3: at most one round for each doubling."""
    bench = Bench(*[1] * 40)
    asked = []

    while not bench.matches:
        index = bench.probe.request.prev_log_index
        asked.append(index)
        bench.answer(bench.probe, no(last_log=50) if index else yes())

    assert asked == [40, 39, 37, 33, 25, 9, 0]


def test_backing_up_ends_at_the_start_of_the_log():
    bench = Bench(1, 1)

    bench.answer(bench.probe, no())
    assert sent(bench.probe.request) == ((0, 0), [])
    bench.into_pipeline()

    assert sent(bench.pipeline.requests[0]) == ((0, 0), [1, 1])


def test_what_is_missing_is_sent_from_where_the_logs_agree():
    bench = Bench(1, 1, 2, 3)
    bench.answer(bench.probe, no(last_log=2))

    bench.into_pipeline()
    bench.answer_pipeline(yes())

    assert sent(bench.pipeline.requests[0]) == ((2, 1), [2, 3])
    assert bench.matches == [2, 4]


@pytest.mark.parametrize(
    ("leader", "follower", "compacted"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),
        ((1, 1, 1), (), 0),
        ((1, 1, 2, 2, 3, 3), (1, 1, 2, 2), 0),
        ((1, 1, 3, 3), (1, 1, 2, 2, 2, 2), 0),
        ((1, 3, 3, 3, 3), (1, 2, 2, 2, 2), 0),
        ((1, 2, 2, 2, 3), (1, 1, 1, 1, 1, 1), 0),
        ((3, 3), (1, 2), 0),
        ((*[1] * 20, 3), (1, *[2] * 25), 0),
        ((1, 1, 1, 2, 3), (1, 1, 1), 3),
        ((1, 1, 1, 2, 3), (1, 1, 1, 2, 2), 3),
    ],
)
def test_whatever_the_follower_has_becomes_what_the_leader_has(leader, follower, compacted):
    """ETC-55: a real follower answers; at most one round for each doubling, and one that sends."""
    node = ScriptedNode(configuration=servers(), log=entries(1, terms=follower))
    if compacted:
        node.core.apply_committed(compacted)
        node.runtime.run()
        node.core.raft_log.set_boundary(EntryID(1, compacted))
        while node.core.raft_log.compact_step(compacted):
            pass
    bench = Bench(*leader, start=False)
    bench.transport.has_pipelines = False
    bench.peer.start()
    bench.runtime.run()
    rounds = 0

    while len(leader) not in bench.matches:
        rounds += 1
        assert rounds <= len(leader).bit_length() + 3
        bench.answer(bench.probe, node.ask(bench.probe.request).response)

    assert node.stored() == list(enumerate(leader, 1))[compacted:]


def test_only_a_refusal_of_this_connection_moves_the_next_index_back():
    """ETC-52: an answer to what was sent before a failure is never read."""
    bench = Bench(1, 1, 3)
    bench.answer(bench.probe, no(last_log=1))
    assert bench.peer.status().next_index == 2, "refused"

    bench.into_pipeline()
    bench.answer_pipeline(yes())
    assert (bench.matches, bench.peer.status().next_index) == ([1, 3], 4), "accepted"
    bench.runtime.advance(0.2)
    bench.answer_pipeline(yes())
    assert (set(bench.matches), bench.peer.status().next_index) == ({1, 3}, 4), "nothing accepted"
    old = bench.pipeline
    bench.answer_pipeline(ConnectionLostError("gone"))
    old.answer(no(last_log=1))
    bench.until_asked()

    assert bench.peer.status().next_index == 4, "stale"
    assert sent(bench.probe.request) == ((3, 3), [])


# ---- sending ----


def test_a_peer_that_is_behind_is_asked_until_it_answers_without_any_new_command():
    """ETC-51"""
    bench = Bench(1, 3, next_index=2)

    for _ in range(4):
        bench.answer(bench.probe, RPCTimeoutError("late"))
        bench.until_asked()
        assert sent(bench.probe.request) == ((1, 1), [])
    bench.into_pipeline()
    bench.answer_pipeline(yes())
    bench.runtime.advance(1.0)

    assert bench.matches == [1, 2]
    assert [r.entries for r in bench.pipeline.requests if r.entries] == [
        bench.pipeline.requests[0].entries
    ]


def test_a_new_entry_goes_out_at_once_and_is_not_sent_twice():
    bench = Bench(1).into_pipeline()
    bench.answer_pipeline(yes())

    bench.append(3)
    bench.append(3)

    assert [sent(r) for r in bench.pipeline.requests[-2:]] == [((1, 1), [3]), ((2, 3), [3])]


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, 2),
        ({"max_inflight_appends": 1}, 1),
        ({"max_inflight_appends": 2}, 2),
        ({"max_inflight_appends": 10}, 10),
    ],
)
def test_no_more_requests_are_on_the_way_than_the_window_allows(config, window):
    """Departure 10; TRA-19, TRA-20, TRA-21, TRA-22.

    Whoever sends counts, not the transport. The default is 2, 0 is refused (`test_config`), and a
    window of 1 is a pipeline, too.
    """
    bench = Bench(1, **config).into_pipeline()
    bench.answer_pipeline(yes())
    count = len(bench.pipeline.requests)

    for _ in range(window + 3):
        bench.append(3)
    assert len(bench.pipeline.requests) == count + window
    bench.answer_pipeline(yes())

    assert len(bench.pipeline.requests) == count + window + 1
    assert sent(bench.pipeline.requests[-1]) == ((window + 1, 3), [3, 3, 3])


@pytest.mark.parametrize("config", [{"max_append_entries": 2}, {"max_append_bytes": 140}])
def test_a_long_log_is_cut_into_requests_of_the_configured_size(config):
    bench = Bench(*[1] * 5, next_index=1, max_inflight_appends=9, **config)

    bench.into_pipeline()

    assert [sent(r) for r in bench.pipeline.requests][:3] == [
        ((0, 0), [1, 1]),
        ((2, 1), [1, 1]),
        ((4, 1), [1]),
    ]


def test_an_idle_peer_is_told_the_commit_index():
    bench = Bench(1, 3).into_pipeline()
    bench.answer_pipeline(yes())

    bench.commit_index = 2
    bench.runtime.advance(0.06)

    assert bench.pipeline.requests[-1].leader_commit == 2
    assert sent(bench.pipeline.requests[-1]) == ((2, 3), [])


def test_a_transport_without_pipelines_is_used_call_by_call():
    bench = Bench(1, 1, next_index=1, start=False)
    bench.transport.has_pipelines = False
    bench.peer.start()
    bench.runtime.run()

    bench.answer(bench.probe, yes())
    assert sent(bench.probe.request) == ((0, 0), [1, 1])
    bench.answer(bench.probe, yes())

    assert bench.matches == [0, 2]


# ---- law 4 ----


@pytest.mark.parametrize("terms", [(TERM + 1,), (TERM, TERM + 1)])
def test_an_entry_of_a_later_term_is_never_sent(terms):
    """Law 4: the log belongs to another leader by now."""
    bench = Bench(1).into_pipeline()
    count = len(bench.pipeline.requests)

    bench.append(*terms)

    assert len(bench.pipeline.requests) == count
    bench.runtime.advance(5.0)
    assert len(bench.pipeline.requests) == count, "and nothing after it"
    assert bench.pipeline.is_closed


def test_a_log_that_ends_in_a_later_term_is_not_asked_about():
    """Law 4."""
    bench = Bench(1, TERM + 1)

    assert bench.transport.open_calls(AppendEntriesRequest) == []


# ---- newer terms ----


def test_a_newer_term_in_an_answer_ends_the_replication():
    """Section 5.1"""
    bench = Bench(1)

    bench.answer(bench.probe, no(term=TERM + 1))
    bench.runtime.advance(5.0)

    assert bench.posted == [NewerTermSeen(TERM, TERM + 1)]
    assert bench.transport.open_calls() == []


def test_a_newer_term_in_the_pipeline_ends_the_replication():
    """Section 5.1"""
    bench = Bench(1).into_pipeline()

    bench.append(3)
    bench.answer_pipeline(no(term=TERM + 1))
    bench.runtime.advance(5.0)

    assert bench.posted[0] == NewerTermSeen(TERM, TERM + 1)
    assert bench.matches == [1]


@pytest.mark.parametrize("where", ["probe", "pipeline"])
def test_an_answer_of_no_honest_server_is_a_failure_and_ends_nothing(where):
    """Somebody else may answer the next time; nobody would have asked him."""
    bench = Bench(1)

    if where == "probe":
        bench.answer(bench.probe, no(term=IMPOSSIBLE))
    else:
        bench.into_pipeline().append(3)
        bench.answer_pipeline(no(term=IMPOSSIBLE))
    bench.until_asked()

    assert bench.posted == []
    bench.into_pipeline()
    assert bench.matches[-1] == 1


def test_a_success_in_a_newer_term_counts_for_nothing():
    bench = Bench(1).into_pipeline()

    bench.append(3)
    bench.answer_pipeline(yes(term=TERM + 1))

    assert bench.matches == [1]


# ---- what goes wrong ----


@pytest.mark.parametrize(
    "error", [ConnectionLostError("gone"), RPCTimeoutError("late"), RemoteError("odd"), OSError(9)]
)
def test_a_failure_in_the_pipeline_starts_over_behind_the_last_match(error):
    """ETC-54"""
    bench = Bench(1).into_pipeline()
    bench.append(3)
    bench.append(3)

    bench.answer_pipeline(error)
    bench.runtime.advance(0.01)
    bench.into_pipeline()

    assert sent(bench.pipeline.requests[0]) == ((1, 1), [3, 3])
    assert len(bench.transport.pipelines) == 2


def test_a_refusal_in_the_pipeline_asks_again_where_the_logs_agree():
    bench = Bench(1).into_pipeline()

    bench.append(3)
    bench.answer_pipeline(no(last_log=0))

    assert sent(bench.probe.request) == ((1, 1), [])


def test_answers_that_come_after_a_failure_count_for_nothing():
    bench = Bench(1).into_pipeline()
    bench.append(3)
    bench.append(3)
    old = bench.pipeline

    bench.answer_pipeline(no())
    old.answer(yes())
    bench.runtime.run()

    assert bench.matches == [1]


def test_a_peer_that_does_not_answer_the_pipeline_gets_a_new_connection():
    """Departure 10: a progress deadline."""
    bench = Bench(1, disk_stall_timeout=4.0).into_pipeline()
    bench.append(3)

    bench.runtime.advance(4.0)

    assert bench.transport.pipelines[0].is_closed
    assert sent(bench.probe.request) == ((1, 1), [])


def test_a_pipeline_without_a_thread_for_its_answers_is_tried_anew():
    bench = Bench(1)
    bench.runtime.no_thread_for = "pipe-"
    bench.into_pipeline()
    bench.append(3)

    bench.runtime.no_thread_for = ""
    bench.runtime.advance(0.05)
    bench.probe.answer(yes(1))
    bench.runtime.run()

    first, second = bench.transport.pipelines
    assert (first.is_closed, first.requests) == (True, [])
    assert sent(second.requests[0]) == ((1, 1), [3])


def test_a_peer_that_fails_on_entries_alone_is_waited_out_longer_each_time():
    """It answers each probe: that is no success yet."""
    bench = Bench(1).into_pipeline()
    bench.append(3)
    times = []
    for attempt in range(6):
        times.append(bench.runtime.now)
        bench.transport.pipelines[attempt].answer(RemoteError("checksum mismatch"))
        while not bench.transport.open_calls(AppendEntriesRequest):
            bench.runtime.advance(0.001)
        bench.probe.answer(yes(1))
        bench.runtime.run()

    waits = [later - earlier for earlier, later in pairwise(times)]

    assert waits == pytest.approx([0.0, 0.02, 0.04, 0.08, 0.16], abs=0.002)


def test_failures_are_waited_out_longer_each_time():
    bench = Bench(1, peer_beats=False)
    times = []
    for _ in range(6):
        times.append(bench.runtime.now)
        bench.probe.answer(PeerUnreachableError("down"))
        while not bench.transport.open_calls(AppendEntriesRequest):
            bench.runtime.advance(0.001)

    waits = [later - earlier for earlier, later in pairwise(times)]

    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16], abs=0.002)


def test_an_answered_heartbeat_ends_the_patience():
    """Departure 12."""
    bench = Bench(1, peer_beats=False, heartbeat_timeout=0.1)
    for _ in range(12):
        bench.probe.answer(PeerUnreachableError("down"))
        while not bench.transport.open_calls(AppendEntriesRequest):
            bench.runtime.advance(0.05)
    bench.probe.answer(PeerUnreachableError("down"))
    bench.runtime.run()
    began = bench.runtime.now

    bench.peer_beats = True
    while not bench.transport.open_calls(AppendEntriesRequest):
        bench.runtime.advance(0.001)

    assert bench.runtime.now - began <= 0.06


def test_a_peer_that_was_wiped_gets_everything_again():
    bench = Bench(1, 1, 3).into_pipeline()
    assert bench.matches == [3]

    bench.answer_pipeline(no(last_log=0))
    bench.answer(bench.probe, no(last_log=0))
    bench.runtime.advance(0.02)
    bench.into_pipeline()
    bench.answer_pipeline(yes())

    assert sent(bench.pipeline.requests[0]) == ((0, 0), [1, 1, 3])
    assert bench.peer.status().match_index == 3


def test_a_match_never_falls_for_an_answer_that_comes_late():
    """ETC-56"""
    bench = Bench(1).into_pipeline()
    bench.append(3, 3)

    bench.answer_pipeline(yes(), yes())
    bench.runtime.advance(0.06)
    bench.answer_pipeline(yes())

    assert bench.matches == sorted(bench.matches)


def test_an_entry_that_the_own_disk_has_changed_is_not_sent_but_reported():
    """Departure 16: checked when read to send."""
    bench = Bench(1, 1, next_index=2, start=False)
    log = bench.node.store.get_log(2)
    bench.node.store.store_logs([type(log)(2, 1, data=b"rotten", checksum=log.checksum)])

    bench.peer.start()
    bench.runtime.run()
    bench.into_pipeline()

    reports = [m for m in bench.posted if isinstance(m, LogCorrupted)]
    assert {report.error.index for report in reports} == {2}
    assert [log.index for call in bench.transport.calls for log in call.request.entries] == []


# ---- snapshots (section 7) ----


def compacted(*terms, upto, with_snapshot=True, **more):
    """A bench whose log was compacted, and the peer behind it."""
    bench = Bench(*terms, next_index=2, start=False, **more)
    last = EntryID(terms[upto - 1], upto)
    bench.log.set_boundary(last)
    bench.log.compact_step(upto)
    if with_snapshot:
        sink = bench.node.snapshots.create(1, upto, last.term, servers("n1", "n2"), 1)
        RecordedSnapshot([]).persist(sink)
        sink.close()
    bench.peer.start()
    bench.runtime.run()
    return bench


def installed(success=True, term=TERM):
    return InstallSnapshotResponse(header("n2"), term, success)


def test_a_peer_behind_the_log_gets_the_newest_snapshot():
    """ETC-66, ETC-68"""
    bench = compacted(1, 1, 2, 2, 3, upto=3)

    request = bench.snapshot.request

    assert (request.last_log_index, request.last_log_term) == (3, 2)
    assert (request.term, request.configuration) == (TERM, servers("n1", "n2"))
    assert request.size == len(bench.snapshot.reader.read())


def test_replication_goes_on_behind_the_snapshot():
    """ETC-68"""
    bench = compacted(1, 1, 2, 2, 3, upto=3)

    bench.answer(bench.snapshot, installed())
    assert bench.matches == [3]
    assert sent(bench.probe.request) == ((3, 2), [])
    bench.into_pipeline()

    assert sent(bench.pipeline.requests[0]) == ((3, 2), [2, 3])


@pytest.mark.parametrize(
    "result",
    [installed(success=False), installed(term=IMPOSSIBLE), ConnectionLostError("gone")],
)
def test_a_snapshot_that_was_not_taken_is_sent_again(result):
    """ETC-68"""
    bench = compacted(1, 1, 2, 2, 3, upto=3)

    bench.answer(bench.snapshot, result)
    bench.runtime.advance(0.02)

    assert bench.snapshot.request.last_log_index == 3
    assert bench.matches == []
    was_sent = isinstance(result, InstallSnapshotResponse)
    assert bench.counted.count("raft.replication.failedSnapshots") == (0 if was_sent else 1)


def test_a_newer_term_in_the_answer_to_a_snapshot_ends_the_replication():
    bench = compacted(1, 1, 2, 2, 3, upto=3)

    bench.answer(bench.snapshot, installed(success=False, term=TERM + 2))

    assert bench.posted == [NewerTermSeen(TERM, TERM + 2)]


def test_a_snapshot_of_a_later_term_is_never_sent():
    """Law 4."""
    bench = compacted(1, 1, TERM + 1, TERM + 1, upto=3)

    assert bench.transport.open_calls(InstallSnapshotRequest) == []


def test_a_compacted_log_without_a_snapshot_is_a_failure_that_is_tried_again():
    bench = compacted(1, 1, 2, 2, 3, upto=3, with_snapshot=False)

    assert bench.peer.status().failures == 1


def test_a_log_compacted_while_the_pipeline_runs_falls_back_to_the_snapshot():
    bench = Bench(1, max_inflight_appends=1, recent_log_bytes=0).into_pipeline()
    bench.append(3)
    bench.append(3)
    bench.append(3)
    bench.log.store_tail()
    sink = bench.node.snapshots.create(1, 4, 3, servers("n1", "n2"), 1)
    RecordedSnapshot([]).persist(sink)
    sink.close()
    bench.log.set_boundary(EntryID(3, 4))
    bench.log.compact_step(4)

    bench.answer_pipeline(yes(), yes())

    assert bench.snapshot.request.last_log_index == 4


def test_a_snapshot_goes_out_no_faster_than_the_rate():
    """Departure 14."""
    bench = compacted(1, 1, 2, upto=2, snapshot_send_rate=1)
    reader = bench.snapshot.reader
    began = bench.runtime.now

    while reader.read(1):
        pass

    assert bench.runtime.now - began >= reader.count() - 1


def test_stopping_ends_a_transfer():
    bench = compacted(1, 1, 2, upto=2)
    reader = bench.snapshot.reader

    bench.peer.stop()

    with pytest.raises(Exception, match="stopped"):
        reader.read(1)


# ---- moving, leaving, ending ----


def test_a_peer_that_moved_is_asked_at_its_new_address():
    bench = Bench(1).into_pipeline()
    old = bench.pipeline

    bench.peer.move(Server("n2", "elsewhere:1"))
    bench.runtime.run()

    assert old.is_closed
    assert bench.probe.address == "elsewhere:1"


def test_a_removed_peer_learns_of_its_removal_and_is_left():
    bench = Bench(1).into_pipeline()
    bench.append(3)
    bench.peer.finish(2, seconds=10.0)
    assert bench.retired is bench.peer
    bench.answer_pipeline(yes(), yes())

    bench.commit_index = 2
    bench.runtime.advance(0.06)
    assert bench.pipeline.requests[-1].leader_commit == 2
    bench.answer_pipeline(yes())

    assert bench.pipeline.is_closed


def test_a_removed_peer_that_does_not_answer_is_left_in_time():
    bench = Bench(1).into_pipeline()
    bench.append(3)

    bench.peer.finish(2, seconds=1.0)
    bench.runtime.advance(1.1)

    assert bench.pipeline.is_closed


def test_stopping_closes_the_pipeline_and_sends_no_more():
    bench = Bench(1).into_pipeline()

    bench.peer.stop()
    bench.runtime.run()
    bench.append(3)
    bench.runtime.advance(1.0)

    assert bench.pipeline.is_closed
    assert len(bench.transport.pipelines) == 1
    assert bench.node.crashes == []


# ---- what is known of a peer ----


def test_a_status_names_the_last_error_and_what_is_done():
    bench = Bench(1, 1)
    assert bench.peer.status().activity == "probing"

    bench.answer(bench.probe, PeerUnreachableError("connection refused"))
    assert bench.peer.status().last_error == "connection refused"
    assert bench.peer.status().failures == 1

    bench.until_asked()
    bench.into_pipeline()
    status = bench.peer.status()
    assert (status.activity, status.match_index, status.next_index) == ("pipelining", 2, 3)


def test_a_status_tells_how_much_of_a_snapshot_is_sent():
    bench = compacted(1, 1, 1, upto=3)
    assert bench.peer.status().activity == "snapshot 0 %"
    bench.snapshot.reader.read()
    assert bench.peer.status().activity == "snapshot 100 %"


def test_a_snapshot_that_a_peer_does_not_take_is_said(caplog):
    bench = compacted(1, 1, 1, upto=3)
    bench.answer(bench.snapshot, installed(success=False))

    assert "did not take the snapshot" in bench.peer.status().last_error
    assert "did not take the snapshot" in caplog.text
