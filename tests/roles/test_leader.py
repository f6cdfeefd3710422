"""The leader's role: commands, commits, membership, and what ends it."""

from dataclasses import replace

import pytest

import raft.roles.leader
from raft.engine.inbox import (
    Apply,
    Bootstrap,
    ChangeConfiguration,
    ChangeKind,
    CommitAdvanced,
    FSMPoisoned,
)
from raft.engine.plausible import FURTHEST_AHEAD
from raft.engine.state import HardState
from raft.errors import (
    CantBootstrapError,
    ConfigurationChangedError,
    EnqueueTimeoutError,
    InvalidConfigurationError,
    LeadershipLostError,
    NotLeaderError,
    OutcomeUnknownError,
    RaftError,
    ShutdownOutcomeUnknownError,
    StorageFailedError,
)
from raft.futures import ApplyFuture, Future
from raft.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    RequestPreVoteRequest,
    RequestVoteRequest,
    TimeoutNowRequest,
)
from raft.observer import PeerObservation
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.roles.leader import Leader
from raft.runtime import Deadline, ThreadGroup
from raft.testing.script import (
    Asked,
    ScriptedNode,
    configuration_entry,
    entries,
    header,
    servers,
)
from raft.types import Configuration, LogType, RaftState, Server, ServerSuffrage
from tests.roles.bench import NOOP, TERM, THREE, Bench


def vote(term, candidate="n2", transfer=False):
    return RequestVoteRequest(header(candidate), term, 99, 99, leadership_transfer=transfer)


# ---- entering (5.4.2, 8) ----


def test_a_new_leader_writes_an_entry_of_its_own_term_and_says_that_it_leads():
    bench = Bench()

    assert bench.node.stored()[-1] == (NOOP, TERM)
    assert bench.node.store.get_log(NOOP).type is LogType.NOOP
    assert bench.core.leader_ch.get(block=False) is True


def test_peers_get_a_replicator_each_and_it_is_observed():
    bench = Bench(servers("n1", "n2", nonvoters=["n3"]))

    started = [event for event in bench.node.events if isinstance(event, PeerObservation)]

    assert [(event.removed, event.peer.id) for event in started] == [(False, "n2"), (False, "n3")]


def test_committing_the_own_terms_first_entry_commits_what_came_before():
    """PAP-21: section 5.4.2"""
    bench = Bench(log=entries(2, terms=(1, 1)))

    bench.store("n2")

    assert (bench.state.commit_index, bench.state.applied_index) == (4, 4)
    assert bench.node.fsm.commands() == [b"2/1", b"3/1"]


def test_a_single_server_commits_alone():
    """ELE-06, ETC-42"""
    bench = Bench(servers("n1"))

    assert bench.node.apply(b"x").result(0) == 2


# ---- commands: batches, peers and disk at the same time (section 5) ----


def test_a_command_is_answered_when_a_majority_has_it_on_disk():
    """PAP-18, PAP-19, PAP-20: section 5.3"""
    bench = Bench()
    future = bench.node.apply(b"x")
    assert not future.done()

    bench.store("n2")

    assert (future.result(0), future.index()) == (2, NOOP + 1)


@pytest.mark.parametrize(
    ("size", "reached", "commits"),
    [(3, 3, True), (3, 2, True), (3, 1, False), (5, 2, False), (5, 3, True)],
)
def test_a_command_commits_only_with_a_majority(size, reached, commits):
    """ETC-45, PAP-20: section 5.3; the leader is one of those that are reached."""
    names = ["n1", "n2", "n3", "n4", "n5"]
    bench = Bench(servers(*names[:size]))
    future = bench.node.apply(b"x")

    bench.store(*names[1:reached])

    assert future.done() is commits
    assert bench.state.commit_index == (NOOP + 1 if commits else 0)


def test_nonvoters_do_not_make_a_majority():
    bench = Bench(servers("n1", "n2", "n3", nonvoters=["n4", "n5"]))
    future = bench.node.apply(b"x")

    bench.store("n4", "n5")

    assert not future.done()


def test_a_barrier_is_answered_by_nothing_once_all_before_it_is_applied():
    bench = Bench(storing=["n2"])

    bench.node.apply(b"x")

    assert bench.node.apply(b"", LogType.BARRIER).result(0) is None
    assert bench.node.fsm.commands() == [b"2/1", b"x"]


def test_a_batch_goes_to_the_peers_while_the_own_disk_is_still_busy():
    """The way of one command: both at the same time."""
    bench = Bench(storing=["n2", "n3"])
    bench.shut_disk()

    bench.node.apply(b"x")

    assert (NOOP + 1, TERM) in bench.sent_to("n2")
    assert bench.node.store.last_index() == NOOP


def test_the_own_match_moves_only_when_the_own_write_has_ended():
    """Law 3."""
    bench = Bench(storing=["n2"])
    door = bench.shut_disk()
    future = bench.node.apply(b"x")
    assert (future.done(), bench.leader.commitment.match_indexes()["n1"]) == (False, NOOP)

    door.set()
    bench.runtime.run()

    assert future.result(0) == 2
    assert bench.leader.commitment.match_indexes()["n1"] == NOOP + 1


def test_a_majority_of_the_others_commits_without_the_own_disk():
    """Law 3: commit may run ahead of it."""
    bench = Bench(storing=["n2", "n3"])
    bench.shut_disk()

    future = bench.node.apply(b"x")

    assert future.result(0) == 2
    assert bench.node.store.last_index() == NOOP


def test_what_waits_while_the_disk_is_busy_goes_into_one_transaction():
    """Group commit."""
    bench = Bench(storing=["n2"])
    bench.node.store.writes.clear()
    door = bench.shut_disk()

    futures = [bench.node.apply(b"%d" % n) for n in range(5)]
    door.set()
    bench.runtime.run()

    assert [future.result(0) for future in futures] == [2, 3, 4, 5, 6]
    assert bench.node.store.writes == ["store 4-4", "store 5-8"]


def test_entries_carry_the_term_of_this_leadership_and_a_checksum():
    """Departures 6 and 16: whatever somebody else makes of the published term."""
    bench = Bench(servers("n1"))
    bench.state.set_term(TERM + 5)

    bench.node.apply(b"x")

    log = bench.node.store.get_log(NOOP + 1)
    assert (log.term, log.is_intact()) == (TERM, True)


# ---- the own disk fails or stalls (laws 4 and 5, departure 8) ----


def failing(_):
    raise OSError("disk")


def test_a_failed_write_ends_the_leadership_and_its_callers_are_told_unknown():
    """Law 4, departure 8: the peers may have the entry."""
    bench = Bench()
    bench.node.store.before_write = failing

    future = bench.node.apply(b"x")

    assert isinstance(future.error(0), StorageFailedError)
    assert bench.state.role is RaftState.FOLLOWER
    assert isinstance(bench.core.fault, OSError)


def test_nothing_more_is_appended_in_a_term_whose_write_failed():
    """Law 4: an index and term once handed to a peer never get other content."""
    bench = Bench()
    bench.store("n2")
    bench.node.store.before_write = failing
    bench.storing.clear()
    bench.node.apply(b"x")
    bench.node.store.before_write = lambda _: None

    bench.node.start(Follower)
    later = bench.node.apply(b"y")
    bench.runtime.advance(1.0)

    assert isinstance(later.error(0), NotLeaderError)
    assert bench.node.stored()[-1] == (NOOP, TERM)
    contents = {
        (log.index, log.data)
        for call in bench.transport.calls
        if isinstance(call.request, AppendEntriesRequest)
        for log in call.request.entries
    }
    assert contents == {(NOOP, b""), (NOOP + 1, b"x")}


def test_a_follower_that_led_before_does_not_acknowledge_on_a_failed_disk():
    """Law 5 and law 6: also when the leadership ended for another reason first."""
    bench = Bench()
    door = bench.runtime.event()

    def fail_late(_):
        door.wait()
        raise OSError("disk")

    bench.node.store.before_write = fail_late
    bench.node.apply(b"x")
    bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1))
    door.set()
    bench.runtime.run()
    bench.node.store.before_write = lambda _: None

    bench.node.start(Follower)
    asked = bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1, 2, 1))

    assert isinstance(asked.error, StorageFailedError)


def test_a_stalled_disk_ends_the_leadership():
    """Departure 8."""
    bench = Bench(storing=["n2", "n3"], disk_stall_timeout=1.0)
    bench.shut_disk()
    bench.node.apply(b"x")

    bench.runtime.advance(0.95)
    assert bench.is_leading()
    bench.runtime.advance(0.2)

    assert not bench.is_leading()


def test_a_leader_whose_disk_stalls_is_not_heard_any_more():
    """Departure 8: heartbeats stop, so that another one is elected."""
    bench = Bench(storing=["n2", "n3"], disk_stall_timeout=1.0)
    bench.shut_disk()
    bench.node.apply(b"x")
    bench.runtime.advance(1.2)
    count = len(bench.transport.calls)

    bench.runtime.advance(1.0)

    assert len(bench.transport.calls) == count


def test_a_write_that_overran_ends_the_leadership_although_it_has_ended():
    """Departure 8: a probe has to be durable first."""
    bench = Bench(storing=["n2", "n3"])

    bench.core.disk.is_unfit = True
    bench.runtime.advance(0.2)

    assert not bench.is_leading()


def test_a_batch_that_was_not_begun_when_leadership_ended_is_not_stored():
    """Law 5."""
    bench = Bench()
    door = bench.shut_disk()
    first, second = bench.node.apply(b"x"), bench.node.apply(b"y")

    bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1))
    door.set()
    bench.runtime.run()

    assert bench.node.store.last_index() == NOOP + 1, "the first was begun"
    assert [type(f.error(0)) for f in (first, second)] == [LeadershipLostError] * 2
    assert bench.core.raft_log.last_index() == NOOP + 1


def test_a_write_of_an_earlier_leadership_moves_no_match_of_a_later_one():
    """Law 3."""
    bench = Bench()
    old = bench.leader
    later = Leader(bench.core, bench.node.receiver)

    old._tail_written(old.tail_write)

    assert later.commitment.match_indexes()["n1"] == 0


def test_a_commit_of_another_leadership_is_ignored():
    bench = Bench()

    bench.core.inbox.post(CommitAdvanced(TERM - 1))
    bench.runtime.run()

    assert bench.state.commit_index == 0


# ---- leaving ----


def test_whoever_waits_is_answered_when_leadership_ends():
    bench = Bench()
    command, change = bench.node.apply(b"x"), bench.change(ChangeKind.REMOVE_SERVER, "n3")
    bench.beating.clear()
    verify = bench.verify()

    bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1))

    assert isinstance(command.error(0), LeadershipLostError)
    assert isinstance(change.error(0), NotLeaderError)
    assert isinstance(verify.error(0), NotLeaderError)


def test_leaving_is_told_on_the_channel_and_the_leader_is_forgotten():
    bench = Bench()
    bench.core.leader_ch.get(block=False)

    bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1))

    assert bench.core.leader_ch.get(block=False) is False
    assert bench.state.leader() == ("", "")


def test_replication_ends_with_the_leadership():
    """Departure 7: all of a leader's state is one object for one term."""
    bench = Bench()
    bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1))
    count = len(bench.transport.calls)

    bench.runtime.advance(5.0)

    assert len(bench.transport.calls) == count


def test_replication_ends_also_when_leadership_could_not_quite_begin(monkeypatch):
    """As when the process has no thread left for the second peer."""
    spawn = ThreadGroup.spawn
    failure = RuntimeError("can't start new thread")

    def short_of_threads(group, name, target):
        if name == "repl-n3":
            raise failure
        return spawn(group, name, target)

    monkeypatch.setattr(ThreadGroup, "spawn", short_of_threads)
    bench = Bench()
    bench.runtime.advance(1.0)
    sent = len(bench.transport.calls)
    bench.runtime.advance(1.0)

    assert bench.node.crashes == [failure]
    assert len(bench.transport.calls) == sent


def test_a_shutdown_answers_unknown_for_what_is_under_way():
    bench = Bench()
    command = bench.node.apply(b"x")

    bench.core.inbox.close()
    bench.runtime.run()

    assert isinstance(command.error(0), ShutdownOutcomeUnknownError)


def test_whose_request_halts_the_node_is_answered():
    """Nobody else holds the message any more."""
    bench = Bench()
    defect = TypeError("a defect")

    def broken(*_):
        raise defect

    bench.leader.handlers[ChangeConfiguration] = broken
    change = bench.change(ChangeKind.REMOVE_SERVER, "n3")

    assert bench.node.crashes == [defect]
    assert isinstance(change.error(0), ShutdownOutcomeUnknownError)


@pytest.mark.parametrize("thread", ["repl-n2", "beat-n2"])
def test_a_leader_that_gets_no_thread_for_a_peer_has_the_others(thread):
    node = ScriptedNode(configuration=THREE, hard_state=HardState(TERM, "n1", "n1:1"))
    node.runtime.no_thread_for = thread

    node.start(Leader)

    assert (node.crashes, node.core.state.role) == ([], RaftState.LEADER)
    assert {call.server_id for call in node.transport.open_calls(AppendEntriesRequest)} == {"n3"}


def test_a_lack_of_threads_is_complained_of_now_and_then(caplog):
    node = ScriptedNode(configuration=THREE, hard_state=HardState(TERM, "n1", "n1:1"))
    node.runtime.no_thread_for = "-n2"
    leader = node.start(Leader)

    for _ in range(20):
        leader.peers.try_again()

    assert caplog.text.count("cannot replicate yet") == 1


def test_a_poisoned_fsm_ends_the_leadership():
    """Departure 9."""
    bench = Bench()

    bench.core.inbox.post(FSMPoisoned(ValueError("half restored")))
    bench.runtime.run()

    assert not bench.is_leading()


# ---- deposed, or not ----


@pytest.mark.parametrize("beat", [True, False], ids=["heartbeat", "entries"])
def test_an_answer_of_a_newer_term_deposes(beat):
    """ELE-07: section 5.1"""
    bench = Bench()
    bench.term = TERM + 1
    bench.beating = {"n2"} if beat else set()

    if beat:
        bench.runtime.advance(0.02)
    else:
        bench.store("n2")

    assert not bench.is_leading()


def test_a_leader_of_a_newer_term_deposes_and_is_answered():
    """PAP-03: section 5.1"""
    bench = Bench()

    asked = bench.node.deliver(AppendEntriesRequest(header("n2"), TERM + 1, 2, 1))
    assert not bench.is_leading()
    bench.node.start(Follower)

    assert asked.response.success
    assert bench.state.term == TERM + 1


@pytest.mark.parametrize(
    "request_",
    [AppendEntriesRequest(header("n2"), TERM), InstallSnapshotRequest(header("n2"), TERM, 9, 2)],
)
def test_another_leader_of_the_same_term_is_not_believed(request_):
    """Section 5.2: one leader a term."""
    bench = Bench()

    asked = bench.node.deliver(request_)

    assert asked.error is not None
    assert bench.is_leading()


def test_a_leader_of_the_past_is_refused():
    """ETC-14: what it sent when it still led changes nothing, and the logs become this one's."""
    bench = Bench()
    old = tuple(entries(3, terms=(TERM - 1,)))

    asked = bench.node.deliver(AppendEntriesRequest(header("n2"), TERM - 1, 2, 1, old, 3))
    bench.store("n2", "n3")

    assert (asked.response.success, asked.response.term) == (False, TERM)
    assert (bench.is_leading(), bench.node.stored()[-1]) == (True, (NOOP, TERM))
    assert (NOOP, TERM) in bench.sent_to("n2")


@pytest.mark.parametrize("kind", [AppendEntriesRequest, RequestVoteRequest])
@pytest.mark.parametrize(
    ("role", "pre_vote"), [(Follower, True), (Candidate, True), (Candidate, False)]
)
def test_whoever_does_not_lead_yields_to_a_newer_term(role, pre_vote, kind):
    """ETC-16; what a leader does: the tests before this one and the next."""
    node = ScriptedNode(log=entries(2, terms=(1,)), config={"pre_vote_disabled": not pre_vote})
    asked = Asked(kind(header("n2"), TERM + 1, 2, 1))

    node.play(role, asked)

    assert (node.core.state.role, node.core.state.term) == (RaftState.FOLLOWER, TERM + 1)
    assert node.core.state.leader() == (
        ("n2:1", "n2") if kind is AppendEntriesRequest else ("", "")
    )


def test_a_follower_that_campaigned_for_no_reason_costs_an_election_and_no_more():
    """ETC-36: without pre-votes the newer term in its answer deposes, and it can win."""
    bench = Bench()
    bench.term = TERM + 1
    bench.runtime.advance(0.02)
    assert not bench.is_leading()

    asked = Asked(vote(TERM + 1))
    bench.node.play(Follower, asked)

    assert (asked.response.granted, bench.state.term) == (True, TERM + 1)


@pytest.mark.parametrize("request_", [vote(TERM + 5), RequestPreVoteRequest(header("n2"), 9, 9, 9)])
def test_a_candidate_does_not_disturb_a_leader(request_):
    """ETC-08, ETC-09"""
    bench = Bench()

    asked = bench.node.deliver(request_)

    assert not asked.response.granted
    assert (bench.is_leading(), bench.state.term) == (True, TERM)


def test_a_candidate_that_a_transfer_privileges_deposes():
    """Section 3.10"""
    bench = Bench()

    asked = bench.node.deliver(vote(TERM + 1, transfer=True))
    bench.node.start(Follower)

    assert asked.response.granted
    assert not bench.is_leading()


def test_a_privileged_candidate_that_is_no_member_disturbs_nobody():
    bench = Bench()

    asked = bench.node.deliver(vote(TERM + 1, candidate="n9", transfer=True))

    assert not asked.response.granted
    assert bench.is_leading()


def test_a_leader_asked_to_campaign_does():
    """ETC-26"""
    bench = Bench()

    bench.node.deliver(TimeoutNowRequest(header("n2")))

    assert bench.state.role is RaftState.CANDIDATE


def test_a_leader_cannot_be_bootstrapped():
    bench = Bench()
    message = Bootstrap(servers("n1"), None, Future())

    bench.core.inbox.submit(message, Deadline(bench.runtime, None))
    bench.runtime.run()

    assert isinstance(message.future.error(0), CantBootstrapError)


# ---- membership (4.1) ----


ADD, ADD_NONVOTER = ChangeKind.ADD_VOTER, ChangeKind.ADD_NONVOTER
DEMOTE, REMOVE = ChangeKind.DEMOTE_VOTER, ChangeKind.REMOVE_SERVER


def test_a_change_waits_for_the_no_op_of_the_own_term():
    """ETC-71: section 4.1 and the correction to it."""
    bench = Bench(committed=2)
    assert bench.core.membership.is_stable()

    future = bench.change(ADD_NONVOTER, "n4", "n4:1")
    assert bench.core.membership.latest == THREE
    bench.store("n2")

    assert bench.core.membership.latest == servers("n1", "n2", "n3", nonvoters=["n4"])
    assert future.result(0) is None
    assert future.index() == NOOP + 1


def test_a_change_waits_until_the_one_before_is_committed():
    """ETC-70: section 4.1, one at a time."""
    bench = Bench(storing=["n2"])
    bench.storing.clear()

    first = bench.change(ADD_NONVOTER, "n4", "n4:1")
    second = bench.change(ADD_NONVOTER, "n5", "n5:1")
    assert bench.core.membership.latest == servers("n1", "n2", "n3", nonvoters=["n4"])
    bench.store("n2")

    assert (first.result(0), second.result(0)) == (None, None)
    assert bench.core.membership.latest == servers("n1", "n2", "n3", nonvoters=["n4", "n5"])


def test_a_configuration_from_an_earlier_leader_is_committed_before_the_next():
    """ETC-71"""
    pending = [configuration_entry(2, 1, servers("n1", "n2", "n3", "n4"))]
    bench = Bench(log=pending)

    bench.change(REMOVE, "n4")
    assert bench.core.membership.latest_index == 2
    bench.store("n2", "n3")

    assert bench.core.membership.latest == THREE


def test_a_change_counts_by_its_own_majority_as_soon_as_it_is_appended():
    """ETC-73, section 4.1"""
    bench = Bench(servers("n1", "n2"), storing=["n2"])
    bench.storing.clear()

    future = bench.change(REMOVE, "n2")

    assert future.result(0) is None


def test_a_voter_added_counts_at_once():
    """Section 4.1"""
    bench = Bench(servers("n1", "n2"), storing=["n2"])
    bench.change(ADD, "n3", "n3:1")
    bench.storing.clear()

    future = bench.node.apply(b"x")
    assert not future.done()
    bench.store("n2")

    assert future.done()


def test_a_change_that_waits_too_long_is_not_made():
    bench = Bench()

    future = bench.change(ADD_NONVOTER, "n4", "n4:1", timeout=0.3)
    bench.runtime.advance(0.35)
    bench.store("n2")

    assert isinstance(future.error(0), EnqueueTimeoutError)
    assert bench.core.membership.latest == THREE


def test_a_change_without_effect_takes_a_place_in_the_log_all_the_same():
    bench = Bench(storing=["n2"])

    future = bench.change(ADD, "n3", "n3:1")

    assert future.result(0) is None
    assert bench.node.store.get_log(future.index()).type is LogType.CONFIGURATION


@pytest.mark.parametrize(
    ("kind", "server_id", "address", "prev_index", "error"),
    [
        (ADD, "n4", "n4:1", 7, ConfigurationChangedError),
        (ADD, "n4", "n2:1", 0, InvalidConfigurationError),
        (ADD, "", "n4:1", 0, InvalidConfigurationError),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_and_nothing_logged(
    kind, server_id, address, prev_index, error
):
    bench = Bench(storing=["n2"])

    future = bench.change(kind, server_id, address, prev_index)

    assert isinstance(future.error(0), error)
    assert bench.core.raft_log.last_index() == NOOP


def test_replication_starts_and_stops_with_the_membership():
    bench = Bench(storing=["n2", "n3", "n4"])

    bench.change(ADD_NONVOTER, "n4", "n4:1")
    bench.change(REMOVE, "n3")
    bench.runtime.advance(1.0)
    calls = len(bench.transport.calls)
    bench.runtime.advance(0.2)

    recent = {call.server_id for call in bench.transport.calls[calls:]}
    assert recent == {"n2", "n4"}
    assert PeerObservation(True, Server("n3", "n3:1")) in bench.node.events


def test_a_removed_machine_does_not_speak_for_the_next_of_its_id():
    """One node must not acknowledge, or confirm, for two."""
    bench = Bench(storing=("n2",))
    bench.change(ChangeKind.REMOVE_SERVER, "n3").result(0)
    bench.storing.clear()
    added = bench.change(ChangeKind.ADD_VOTER, "n3", "new:1")

    def respond(call):
        old_machine = call.server_id == "n3" and call.address == "n3:1"
        is_append = isinstance(call.request, AppendEntriesRequest)
        last = call.request.prev_log_index + len(call.request.entries) if is_append else 0
        yes = AppendEntriesResponse(header("n3"), TERM, last, success=True)
        return yes if old_machine and is_append else None

    bench.transport.respond = respond
    for call in bench.transport.open_calls(AppendEntriesRequest):
        if (answer := respond(call)) is not None:
            call.answer(answer)
    verified = bench.verify()
    bench.runtime.advance(0.09)

    assert bench.sent_to("n3") >= {(NOOP + 2, TERM)}
    assert bench.is_leading()
    assert not added.done()
    assert not verified.done()


def test_a_server_whose_address_changed_is_reached_there():
    bench = Bench(storing=["n2", "n3"])

    bench.change(ADD, "n3", "elsewhere:1")
    calls = len(bench.transport.calls)
    bench.runtime.advance(0.3)

    addresses = {c.address for c in bench.transport.calls[calls:] if c.server_id == "n3"}
    assert addresses == {"elsewhere:1"}


def test_a_new_peer_counts_as_in_contact_from_when_it_was_added():
    """ETC-38"""
    bench = Bench(servers("n1"))
    bench.beating.clear()
    bench.change(ADD, "n2", "n2:1")

    bench.runtime.advance(0.05)
    assert bench.is_leading()
    bench.runtime.advance(0.1)

    assert not bench.is_leading()


@pytest.mark.parametrize("kind", [REMOVE, DEMOTE])
def test_a_leader_that_loses_its_vote_leads_until_that_is_committed(kind):
    """MEM: section 4.2.2"""
    bench = Bench(storing=["n2"], shutdown_on_remove=False)
    bench.storing.clear()

    future = bench.change(kind, "n1")
    assert bench.is_leading()
    bench.store("n2")
    assert bench.is_leading(), "it does not count itself any more"
    bench.store("n3")

    assert future.result(0) is None
    assert bench.state.role is RaftState.FOLLOWER


@pytest.mark.parametrize("shutdown", [True, False])
def test_a_leader_that_was_removed_shuts_down_if_it_is_told_to(shutdown):
    bench = Bench(storing=["n2", "n3"], shutdown_on_remove=shutdown)
    asked = []
    bench.core.request_shutdown = lambda: asked.append("shutdown")

    bench.change(REMOVE, "n1")

    assert asked == (["shutdown"] if shutdown else [])
    assert not bench.is_leading()


def test_a_leader_alone_cannot_remove_itself():
    bench = Bench(servers("n1"))

    assert isinstance(bench.change(REMOVE, "n1").error(0), InvalidConfigurationError)


def test_a_staging_server_is_promoted():
    staging = Server("n3", "n3:1", ServerSuffrage.STAGING)
    configuration = Configuration([*servers("n1", "n2").servers, staging])
    bench = Bench(configuration, storing=["n2", "n3"])

    bench.change(ChangeKind.PROMOTE, "n3")

    assert bench.core.membership.latest == THREE


# ---- leading still? ----


def test_a_quorum_of_answers_to_later_rounds_verifies():
    """ELE-05, ELE-08"""
    bench = Bench()
    bench.beating = {"n2"}

    assert bench.verify().error(0) is None


def test_answers_to_earlier_rounds_do_not_verify():
    """Departure 5."""
    bench = Bench()
    bench.beating.clear()
    bench.runtime.advance(0.02)
    before = bench.transport.open_calls(AppendEntriesRequest)

    future = bench.verify()
    for call in before:
        if call.request.is_heartbeat():
            call.answer(AppendEntriesResponse(header(call.server_id), TERM, 0, success=True))
    bench.runtime.run()

    assert not future.done()


def test_nonvoters_do_not_verify():
    """Departure 5."""
    bench = Bench(servers("n1", "n2", "n3", nonvoters=["n4", "n5"]))
    bench.beating = {"n4", "n5"}

    assert not bench.verify().done()


def test_a_single_voter_verifies_at_once():
    """ELE-06"""
    assert Bench(servers("n1")).verify().error(0) is None


def test_a_verification_ends_with_the_lease_at_the_latest():
    bench = Bench()
    bench.beating.clear()
    future = bench.verify()

    bench.runtime.advance(0.25)

    assert isinstance(future.error(0), NotLeaderError)


def test_a_leader_without_a_quorum_for_a_lease_steps_down():
    """ELE-04, ETC-31"""
    bench = Bench()
    bench.beating.clear()

    bench.runtime.advance(0.09)
    assert bench.is_leading()
    bench.runtime.advance(0.12)

    assert not bench.is_leading()


FAR_AWAY = {"heartbeat_timeout": 0.2, "election_timeout": 0.2, "commit_timeout": 0.01}


def test_a_leader_stays_whose_peers_are_far_away():
    """An answer is contact when it comes: the lease is for silence, and a way is not silence."""
    bench = Bench(**FAR_AWAY)

    bench.advance_far_away(3.0, way=0.075)

    assert bench.is_leading()


def test_a_new_leader_has_a_heartbeat_timeout_to_be_heard():
    """The first contact may need a connection, which is three ways there and back."""
    bench = Bench(**FAR_AWAY)

    bench.advance_far_away(0.19, way=0.18)
    assert bench.is_leading()
    bench.beating = {"n2"}
    bench.runtime.advance(1.0)

    assert bench.is_leading()


def test_a_leader_with_a_quorum_goes_on():
    """ETC-30"""
    bench = Bench(servers("n1", "n2", "n3", "n4", "n5"))
    bench.beating = {"n2", "n3"}

    bench.runtime.advance(5.0)

    assert bench.is_leading()


def test_a_process_that_did_not_run_gives_its_peers_one_lease_to_be_heard():
    """The gap alone costs no election."""
    bench = Bench(leader_lease_timeout=0.1)

    bench.runtime.now += 0.6
    bench.runtime.advance(0.05)
    assert bench.is_leading()
    bench.runtime.advance(5.0)

    assert bench.is_leading()


def test_a_process_that_did_not_run_and_is_alone_steps_down_after_one_lease():
    bench = Bench(leader_lease_timeout=0.1)
    bench.beating.clear()

    bench.runtime.now += 0.6
    bench.runtime.advance(0.25)

    assert not bench.is_leading()


# ---- what breaks in the middle ----


def test_a_batch_that_breaks_the_node_leaves_no_caller_behind(monkeypatch):
    bench = Bench()
    applies = [Apply(LogType.COMMAND, b"%d" % n, b"", ApplyFuture(bench.node.host)) for n in (1, 2)]

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(raft.roles.leader, "log_checksum", out_of_memory)
    for apply in applies:
        bench.core.inbox.submit(apply, Deadline(bench.runtime, None))
    bench.runtime.run()

    assert all(isinstance(a.future.error(0), OutcomeUnknownError) for a in applies)


# ---- what no honest server sends ----


@pytest.mark.parametrize(
    ("sender", "term"),
    [
        (header("n2"), TERM + FURTHEST_AHEAD + 1),
        (replace(header("n2"), protocol_version=2), TERM + 1),
    ],
)
def test_a_request_of_no_honest_server_deposes_nobody(sender, term):
    bench = Bench()

    asked = bench.node.deliver(AppendEntriesRequest(sender, term))
    bench.runtime.run()

    assert isinstance(asked.error, RaftError)
    assert bench.is_leading()
