"""The receiver of InstallSnapshot (section 7), and law 4 when a snapshot is installed."""

import io

import pytest

from raft.engine.inbox import SnapshotReceived
from raft.engine.install_snapshot import SnapshotReceiver, store_snapshot
from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import NoThreadError, SnapshotError, StorageFailedError
from raft.messages import AppendEntriesRequest, InstallSnapshotRequest
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.snapshots import FileSnapshotStore
from raft.testing.fsm import RecordedSnapshot, RecordingFSM
from raft.testing.manual import ManualEvent
from raft.testing.script import Asked, ScriptedNode, configuration_entry, entries, header, servers
from raft.types import EntryID, RaftState, SnapshotMeta

MEMBERS = servers("n1", "n2")


class Bytes(list):
    def write(self, data):
        self.append(data)


def state(*commands):
    """The bytes of a snapshot whose FSM has applied these commands."""
    sink = Bytes()
    logs = [log for log in entries(2, terms=(1,) * 20) if log.data in commands]
    RecordedSnapshot(logs).persist(sink)
    return b"".join(sink)


CONTENT = state(b"2/1", b"3/1")


def install(term, index, last_term, **more):
    more = {"configuration": MEMBERS, "configuration_index": 1, "size": len(CONTENT)} | more
    return InstallSnapshotRequest(header("n2"), term, index, last_term, **more)


def announced(request):
    """What describes the snapshot of a request, before it has an id."""
    return SnapshotMeta(
        "",
        request.last_log_index,
        request.last_log_term,
        request.configuration,
        request.configuration_index,
        request.size,
    )


@pytest.fixture
def make():
    """Nodes at work; a role runs in a task, so that the end of a transfer is heard."""

    def make_node(*terms, **more):
        node = ScriptedNode(log=entries(2, terms=terms), **more)
        node.start(Follower)
        return node

    return make_node


def send(node, request, content=CONTENT, reader=None, cluster_id=None):
    asked = Asked(request, reader or io.BytesIO(content), cluster_id)
    node.core.inbox.deliver(asked.rpc)
    node.runtime.run()
    return asked


def commit(node, index, term=1):
    node.deliver(AppendEntriesRequest(header("n2"), node.core.state.term, index, term, (), index))


class SlowReader(io.BytesIO):
    """Gives its bytes once a door is open."""

    def __init__(self, content, door: ManualEvent):
        super().__init__(content)
        self.door = door

    def read(self, size=-1, /):
        self.door.wait()
        return super().read(size)


# ---- whether to take it ----


def test_a_snapshot_replaces_state_and_log(make):
    """ETC-60, Figure 5.3"""
    node = make()

    asked = send(node, install(2, 9, 2))

    assert (asked.response.success, asked.response.term) == (True, 2)
    assert node.fsm.commands() == [b"2/1", b"3/1"]
    published = node.core.state.published()
    assert (published.last_log, published.last_snapshot) == (EntryID(2, 9), EntryID(2, 9))
    assert (published.commit_index, published.applied_index) == (9, 9)
    assert published.configuration == MEMBERS


def test_a_leader_of_the_past_is_refused(make):
    node = make(3)

    asked = send(node, install(2, 9, 2))

    assert (asked.response.success, asked.response.term) == (False, 3)
    assert node.snapshots.list() == []


def test_a_newer_term_is_adopted_and_the_sender_is_the_leader(make):
    """ETC-67"""
    node = make()

    send(node, install(5, 9, 2))

    assert HardState.load(node.store) == HardState(5)
    assert node.core.state.leader() == ("n2:1", "n2")


def test_a_candidate_yields_to_a_snapshot_of_its_own_term():
    """T5 (b)"""
    node = ScriptedNode(hard_state=HardState(2, "n1", "n1:1"))
    asked = Asked(install(2, 9, 2), io.BytesIO(CONTENT))

    node.play(Candidate, asked)

    assert node.core.state.role is RaftState.FOLLOWER


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_snapshot_of_what_is_committed_is_acknowledged_and_not_installed(make, index):
    """ETC-65, departure 4, H4: the state never goes backwards."""
    node = make(1, 1)
    commit(node, 3)

    asked = send(node, install(1, index, 1))

    assert asked.response.success
    assert (node.snapshots.list(), node.fsm.restores) == ([], 0)
    assert node.core.state.applied_index == 3


@pytest.mark.parametrize("applied", [5, 6])
def test_a_snapshot_of_what_is_committed_is_installed_where_the_log_lacks_it(make, applied):
    """A leader whose disk failed may know more to be committed than its disk has kept (law 3).

    Found by the simulation: acknowledged and not installed, it was sent for ever.
    """
    node = make(*(1,) * (applied - 1))
    commit(node, applied)
    node.store.delete_range(4, applied)
    node.core.raft_log.reload()

    asked = send(node, install(1, 5, 1))
    following = Asked(AppendEntriesRequest(header("n2"), 1, 5, 1, entries(6, terms=(1, 1)), 7))
    node.core.inbox.deliver(following.rpc)
    node.runtime.run()

    assert (asked.response.success, following.response.success) == (True, True)
    assert (node.fsm.restores, node.core.state.applied_index) == (0, 7)
    assert node.fsm.commands() == [b"%d/1" % index for index in range(2, 8)]


def test_the_same_snapshot_again_is_acknowledged_and_not_installed(make):
    """Departure 4."""
    node = make()
    send(node, install(2, 9, 2))

    asked = send(node, install(2, 9, 2))

    assert (asked.response.success, node.fsm.restores) == (True, 1)


@pytest.mark.parametrize("version", [2, 99])
def test_an_unknown_version_is_refused(make, version):
    asked = send(make(), install(2, 9, 2, snapshot_version=version))

    assert isinstance(asked.error, SnapshotError)


@pytest.mark.parametrize("peers", [servers(), servers("n1", "n1"), servers(nonvoters=["n1"])])
@pytest.mark.parametrize("version", [0, 1])
def test_a_snapshot_without_usable_peers_is_refused(make, version, peers):
    """SNP-11: our requests have no list of peers beside the configuration, whatever the version."""
    node = make()

    asked = send(node, install(2, 9, 2, snapshot_version=version, configuration=peers))

    assert isinstance(asked.error, SnapshotError)
    assert "no usable peers" in str(asked.error)
    assert (node.snapshots.list(), node.core.state.term) == ([], 1)
    assert send(node, install(2, 9, 2)).response.success


def test_a_snapshot_of_the_oldest_version_is_installed_as_one_of_today(make):
    """GAP-16, over the wire."""
    node = make()

    assert send(node, install(2, 9, 2, snapshot_version=0)).response.success

    (meta,) = node.snapshots.list()
    assert (meta.version, meta.index, meta.configuration) == (1, 9, MEMBERS)
    assert node.fsm.commands() == [b"2/1", b"3/1"]


def test_a_node_whose_disk_failed_takes_none(make):
    node = make()
    node.core.fault = OSError("disk")
    term = node.core.state.term

    assert isinstance(send(node, install(term + 1, 9, 2)).error, StorageFailedError)
    assert node.core.state.term == term


def test_a_disk_that_failed_meanwhile_ends_the_installation(make):
    node = make()
    door = node.runtime.event()
    asked = send(node, install(2, 9, 2), reader=SlowReader(CONTENT, door))
    node.core.fault = OSError("disk")

    door.set()
    node.runtime.run()

    assert isinstance(asked.error, StorageFailedError)
    assert (node.fsm.restores, node.core.state.commit_index) == (0, 0)


def test_a_node_without_a_cluster_takes_its_leaders(make):
    """Departure 15."""
    node = make()

    send(node, install(2, 9, 2), cluster_id="c1")

    assert node.store.get(CLUSTER_ID_KEY) == b"c1"


# ---- taking it in (departure 14) ----


def test_the_node_answers_others_while_the_bytes_come_in(make):
    """Departure 14."""
    node = make(1)
    door = node.runtime.event()

    asked = send(node, install(1, 9, 1), reader=SlowReader(CONTENT, door))
    other = node.deliver(AppendEntriesRequest(header("n2"), 1, 2, 1))
    assert (asked.is_answered, other.response.success) == (False, True)
    door.set()
    node.runtime.run()

    assert asked.response.success


def test_a_second_snapshot_at_the_same_time_is_refused(make):
    node = make()
    door = node.runtime.event()
    send(node, install(2, 9, 2), reader=SlowReader(CONTENT, door))

    assert not send(node, install(2, 9, 2)).response.success

    door.set()
    node.runtime.run()
    assert send(node, install(2, 12, 2)).response.success


def test_a_snapshot_of_an_earlier_leader_does_not_keep_that_of_a_later_one_waiting(make):
    """It comes to nothing, and its sender may be gone: the receiver only finds out in time."""
    node = make()
    first, second = node.runtime.event(), node.runtime.event()
    old = send(node, install(2, 9, 2), reader=SlowReader(CONTENT, first))

    new = send(node, install(3, 12, 2), reader=SlowReader(CONTENT, second))
    assert not new.is_answered
    first.set()
    node.runtime.run()
    assert (old.response.success, node.core.raft_log.last_index()) == (False, 1)
    assert not send(node, install(3, 12, 2)).response.success  # the later one is still under way
    second.set()
    node.runtime.run()

    assert new.response.success
    assert node.core.raft_log.last() == EntryID(2, 12)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b""])
def test_fewer_or_more_bytes_than_announced_are_an_error(make, content):
    node = make()

    asked = send(node, install(2, 9, 2), content)

    assert isinstance(asked.error, SnapshotError)
    assert (node.snapshots.list(), node.core.state.commit_index) == ([], 0)


def test_a_lack_of_threads_refuses_one_snapshot_and_not_the_next(make):
    node = make()
    node.runtime.no_thread_for = "install"
    asked = send(node, install(2, 9, 2))

    node.runtime.no_thread_for = ""

    assert isinstance(asked.error, NoThreadError)
    assert send(node, install(2, 9, 2)).response.success


class Broken(io.BytesIO):
    def read(self, size=-1, /):
        raise OSError("connection")


def test_a_stream_that_breaks_leaves_nothing_behind(tmp_path):
    snapshots = FileSnapshotStore(tmp_path)

    with pytest.raises(OSError, match="connection"):
        store_snapshot(snapshots, announced(install(2, 9, 2)), Broken())

    assert [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".bin"))] == []


def test_a_stream_that_breaks_is_an_error_and_the_next_one_is_taken(make):
    node = make()

    asked = send(node, install(2, 9, 2), reader=Broken())

    assert isinstance(asked.error, OSError)
    assert send(node, install(2, 9, 2)).response.success


def test_a_term_that_ended_meanwhile_ends_the_installation(make):
    """Departure 14: main looks anew at the end."""
    node = make()
    door = node.runtime.event()
    asked = send(node, install(2, 9, 2), reader=SlowReader(CONTENT, door))
    node.deliver(AppendEntriesRequest(header("n3"), 3))

    door.set()
    node.runtime.run()

    assert (asked.response.success, asked.response.term) == (False, 3)
    assert (node.fsm.restores, node.core.state.commit_index) == (0, 0)


def test_a_candidacy_begun_meanwhile_ends_the_installation():
    """Departure 14: one that asks for pre-votes is still in the leader's term."""
    node = ScriptedNode()
    request = install(2, 9, 2)
    asked = Asked(request, io.BytesIO(CONTENT))
    meta = store_snapshot(node.snapshots, announced(request), io.BytesIO(CONTENT))
    node.core.become_follower(2)
    node.core.become(RaftState.CANDIDATE)

    SnapshotReceiver(node.core).finish(SnapshotReceived(asked.rpc, meta, None))

    assert not asked.response.success
    assert (node.fsm.restores, node.core.state.commit_index) == (0, 0)


@pytest.mark.parametrize("unsettled", [True, False])
def test_of_what_is_not_installed_only_an_unsettled_snapshot_is_removed(make, unsettled):
    """Departure 19: it may never have happened."""
    node = make()
    door = node.runtime.event()
    send(node, install(2, 9, 2, unsettled=unsettled), reader=SlowReader(CONTENT, door))
    node.deliver(AppendEntriesRequest(header("n3"), 3))

    door.set()
    node.runtime.run()

    assert len(node.snapshots.list()) == (0 if unsettled else 1)


def test_a_log_that_overtook_it_meanwhile_stays(make):
    """Departure 14, departure 4."""
    node = make(1)
    door = node.runtime.event()
    asked = send(node, install(1, 3, 1), reader=SlowReader(CONTENT, door))
    node.deliver(AppendEntriesRequest(header("n2"), 1, 2, 1, tuple(entries(3, terms=(1, 1))), 4))

    door.set()
    node.runtime.run()

    assert (asked.response.success, node.fsm.restores) == (True, 0)
    assert node.core.state.applied_index == 4


# ---- law 4: what becomes of the log ----


def test_a_log_that_holds_the_snapshots_last_entry_is_kept(make):
    """Law 4, departure 4."""
    node = make(1, 1, 1)

    send(node, install(1, 3, 1))

    assert node.stored() == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert node.core.raft_log.last() == EntryID(1, 4)
    assert node.core.raft_log.boundary() == EntryID(1, 3)


@pytest.mark.parametrize(
    ("terms", "index", "last_term"),
    [
        pytest.param((1, 1, 1), 3, 2, id="another term there"),
        pytest.param((1,), 9, 2, id="ends before"),
        pytest.param((1, 1, 1, 1, 1), 4, 2, id="goes on behind in another past"),
    ],
)
def test_a_log_that_does_not_hold_it_is_dropped_whole(make, terms, index, last_term):
    """Law 4, departure 4: the log never has a hole, and nothing divergent below one."""
    node = make(*terms)

    send(node, install(2, index, last_term))

    assert node.stored() == []
    assert node.core.raft_log.last() == EntryID(last_term, index)


def test_replication_goes_on_behind_an_installed_snapshot(make):
    """Law 4: the log begins right behind the snapshot."""
    node = make(1)
    send(node, install(2, 9, 2))

    asked = node.deliver(
        AppendEntriesRequest(header("n2"), 2, 9, 2, tuple(entries(10, terms=(2,))), 10)
    )

    assert asked.response.success
    assert node.stored() == [(10, 2)]
    assert node.core.state.applied_index == 10


def test_a_kept_log_is_compacted(make):
    node = make(*[1] * 9, config={"trailing_logs": 2})

    send(node, install(1, 8, 1))

    assert node.store.first_index() == 9


def test_a_log_that_cannot_be_dropped_is_a_failed_disk(make):
    node = make(1)

    def fail(name):
        if name.startswith("delete"):
            raise OSError("disk")

    node.store.before_write = fail
    asked = send(node, install(1, 9, 1))

    assert isinstance(asked.error, StorageFailedError)
    assert node.core.fault is not None


def test_a_crash_before_the_log_was_dropped_is_made_up_for_at_start(make):
    """Law 4: again at start."""
    node = make(1, 1)

    def fail(name):
        if name.startswith("delete"):
            raise OSError("power")

    node.store.before_write = fail
    send(node, install(2, 9, 2))
    node.store.before_write = lambda _: None
    node = node.restarted()

    assert node.stored() == []
    assert node.core.raft_log.last() == EntryID(2, 9)
    assert node.fsm.commands() == [b"2/1", b"3/1"]


# ---- configurations, FSM ----


def test_a_later_configuration_in_a_kept_log_stays_the_latest():
    bigger = servers("n1", "n2", "n3", "n4")
    node = ScriptedNode(log=[*entries(2, terms=(1,)), configuration_entry(3, 1, bigger)])
    node.start(Follower)

    send(node, install(1, 2, 1))

    members = node.core.membership
    assert (members.committed, members.latest, members.latest_index) == (MEMBERS, bigger, 3)


@pytest.mark.parametrize("index", [2, 7])
def test_the_configurations_of_a_dropped_log_are_forgotten(index):
    bigger = servers("n1", "n2", "n3", "n4")
    node = ScriptedNode(log=[*entries(2, terms=(1,)), configuration_entry(3, 1, bigger)])
    node.start(Follower)

    send(node, install(2, 9, 2, configuration_index=index))

    members = node.core.membership
    assert (members.latest, members.latest_index, members.is_stable()) == (MEMBERS, index, True)


def test_its_members_count_though_the_log_could_not_be_dropped(make):
    """Sent again it is known, so there is no second try to take them over."""
    node, bigger = make(1, 1, 1), servers("n1", "n2", "n3", "n4")

    def fail(name):
        if name.startswith("delete"):
            raise OSError("disk")

    node.store.before_write = fail
    send(node, install(2, 9, 2, configuration=bigger, configuration_index=7))
    node.store.before_write = lambda _: None
    node.runtime.advance(0.5)
    asked = send(node, install(2, 9, 2, configuration=bigger, configuration_index=7))

    assert (asked.error, node.stored()) == (None, [])
    members, published = node.core.membership, node.core.state.published()
    assert (members.latest, members.latest_index, members.is_stable()) == (bigger, 7, True)
    assert (published.configuration, published.last_snapshot) == (bigger, EntryID(2, 9))


def test_a_snapshot_that_makes_a_voter_a_nonvoter_is_obeyed(make):
    """ETC-61, ETC-62"""
    node = make()

    send(node, install(2, 9, 2, configuration=servers("n2", nonvoters=["n1"])))
    node.runtime.advance(5.0)

    assert node.core.state.role is RaftState.FOLLOWER


def test_a_snapshot_that_makes_a_nonvoter_a_voter_lets_it_campaign(make):
    """ETC-63"""
    node = make(configuration=servers("n2", nonvoters=["n1"]))
    node.runtime.advance(5.0)
    assert node.core.state.role is RaftState.FOLLOWER

    asked = send(node, install(2, 9, 2, configuration=MEMBERS))
    node.runtime.advance(5.0)

    assert asked.response.success
    assert node.core.state.role is RaftState.CANDIDATE


def test_a_restore_that_fails_is_acknowledged_all_the_same():
    """Departure 9: the snapshot is durable, and the FSM is poisoned until a retry succeeds."""

    def fail(_):
        raise ValueError("bad")

    node = ScriptedNode(fsm=RecordingFSM(on_restore=fail))
    node.start(Follower)

    asked = send(node, install(2, 9, 2))

    assert asked.response.success
    assert isinstance(node.core.fsm.restores.poison, ValueError)
    assert node.core.state.applied_index == 0
