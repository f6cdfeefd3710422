"""What a node makes of its stores before its threads run, and the first state of all."""

import base64
import json
from dataclasses import replace

import pytest

from raft.codec import encode_peers
from raft.engine.first_start import (
    bootstrap_here,
    check_bootstrap,
    choose_cluster_id,
    has_existing_state,
    write_first_state,
)
from raft.engine.inbox import Bootstrap
from raft.engine.state import CLUSTER_ID_KEY, LEGACY_TERM_KEY, HardState
from raft.errors import (
    CantBootstrapError,
    InvalidConfigurationError,
    LogGapError,
    NotVoterError,
    SnapshotError,
    StorageFailedError,
    UnsupportedProtocolError,
)
from raft.futures import Future
from raft.messages import AppendEntriesRequest, RequestVoteRequest
from raft.roles.candidate import Candidate
from raft.roles.follower import Follower
from raft.snapshots import FileSnapshotStore, InmemSnapshotStore
from raft.snapshots.crc64 import crc64
from raft.testing.fsm import RecordedSnapshot
from raft.testing.manual import ManualRuntime
from raft.testing.script import (
    ScriptedNode,
    ScriptedStore,
    configuration_entry,
    entries,
    header,
    servers,
)
from raft.types import (
    EMPTY_CONFIGURATION,
    NO_ENTRY,
    Configuration,
    EntryID,
    Log,
    LogType,
    Server,
    ServerSuffrage,
    SnapshotMeta,
)

MEMBERS, BIGGER = servers("n1", "n2"), servers("n1", "n2", "n3")


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def store(runtime):
    return ScriptedStore(runtime)


@pytest.fixture
def snapshots(runtime):
    return InmemSnapshotStore(runtime=runtime)


def take_snapshot(snapshots, index, term, configuration=MEMBERS):
    sink = snapshots.create(1, index, term, configuration, 1)
    RecordedSnapshot([log for log in entries(2, terms=(1,) * 9) if log.index <= index]).persist(
        sink
    )
    sink.close()


def started(store, snapshots, runtime, **more):
    return ScriptedNode(store=store, snapshots=snapshots, runtime=runtime, **more)


# ---- loading ----


def test_blank_stores_make_a_blank_node(store, snapshots, runtime):
    core = started(store, snapshots, runtime).core

    assert (core.state.term, core.raft_log.last(), core.membership.latest_index) == (0, NO_ENTRY, 0)
    assert core.cluster_id is None


def test_log_vote_and_configuration_are_loaded(store, snapshots, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 2))])
    store.store_logs([configuration_entry(4, 2, BIGGER)])
    HardState(3, "n2", "n2:1").save(store)
    store.set(CLUSTER_ID_KEY, b"c1")

    core = started(store, snapshots, runtime).core

    assert (core.hard_state, core.state.term) == (HardState(3, "n2", "n2:1"), 3)
    assert core.state.published().last_log == EntryID(2, 4)
    assert (core.membership.latest, core.membership.latest_index) == (BIGGER, 4)
    assert core.membership.committed_index == 1
    assert (core.state.commit_index, core.state.applied_index) == (0, 0)
    assert core.cluster_id == "c1"


def test_the_newest_snapshot_is_restored_and_counts_as_committed(store, snapshots, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1, 1))])
    take_snapshot(snapshots, 3, 1)

    node = started(store, snapshots, runtime)

    assert node.fsm.commands() == [b"2/1", b"3/1"]
    assert (node.core.state.commit_index, node.core.state.applied_index) == (3, 3)
    assert node.core.raft_log.boundary() == EntryID(1, 3)


def test_an_fsm_that_keeps_its_state_is_not_restored(store, snapshots, runtime):
    take_snapshot(snapshots, 3, 1)

    node = started(store, snapshots, runtime, config={"no_snapshot_restore_on_start": True})

    assert (node.fsm.restores, node.core.state.applied_index) == (0, 3)


def test_a_configuration_behind_the_snapshot_is_the_latest(store, snapshots, runtime):
    store.store_logs([*entries(4, terms=(1,)), configuration_entry(5, 1, BIGGER)])
    take_snapshot(snapshots, 3, 1)

    members = started(store, snapshots, runtime).core.membership

    assert (members.committed, members.latest, members.latest_index) == (MEMBERS, BIGGER, 5)


class Shelf:
    """A snapshot store with several snapshots, some of them unreadable."""

    def __init__(self, runtime, *broken):
        self.stores = {}
        self.broken = broken
        self.runtime = runtime
        self.removed = []

    def add(self, index, configuration=MEMBERS):
        store = InmemSnapshotStore(runtime=self.runtime)
        take_snapshot(store, index, 1, configuration)
        self.stores[index] = store

    def list(self):
        return [self.stores[index].list()[0] for index in sorted(self.stores, reverse=True)]

    def open(self, snapshot_id):
        index = int(snapshot_id.split("-")[1])
        if index in self.broken:
            raise SnapshotError("checksum")
        return self.stores[index].open(snapshot_id)

    def remove(self, snapshot_id):
        self.removed.append(snapshot_id)


def test_a_snapshot_that_cannot_be_read_gives_way_to_an_older_one(store, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1,) * 5)])
    shelf = Shelf(runtime, 5)
    shelf.add(3)
    shelf.add(5)

    core = started(store, shelf, runtime).core

    assert (core.state.applied_index, core.raft_log.boundary()) == (3, EntryID(1, 3))
    assert core.damage.is_whole()


def fallen_back(store, runtime, configuration=MEMBERS):
    """A node without a log whose newest snapshot cannot be read, but an older one."""
    HardState(1).save(store)
    shelf = Shelf(runtime, 8)
    shelf.add(3, configuration)
    shelf.add(8, configuration)
    return started(store, shelf, runtime)


def test_who_fell_back_behind_what_it_has_acknowledged_does_not_vote(store, runtime):
    """Departure 16: a candidate that lacks entries of the lost snapshot must not win by it."""
    node = fallen_back(store, runtime)
    ask = RequestVoteRequest(header("n2"), 2, 7, 1)

    assert (node.core.raft_log.last(), node.core.damage.upto) == (EntryID(1, 3), 8)
    assert not node.ask(ask).response.granted
    assert not node.restarted().ask(ask).response.granted


@pytest.mark.parametrize("count", [1, 2])
def test_a_snapshot_whose_metadata_was_spoiled_is_missed(store, runtime, tmp_path, count):
    """It is not listed, and stood for all that was acknowledged."""
    HardState(1).save(store)
    snapshots = FileSnapshotStore(tmp_path, runtime=runtime)
    for index in (8, 3)[:count]:
        take_snapshot(snapshots, index, 1)
    (path,) = (tmp_path / "snapshots").glob("1-8-*/meta.json")
    path.write_bytes(path.read_bytes().replace(b'"Index":8', b'"Index":9'))

    if count == 1:
        with pytest.raises(SnapshotError, match=r"term 1 at 8 is gone or.*rebuild"):
            started(store, snapshots, runtime)
        return
    node = started(store, snapshots, runtime)
    asked = node.ask(RequestVoteRequest(header("n2"), 2, 4, 1))

    assert node.core.raft_log.boundary() == EntryID(1, 3)
    assert not asked.response.granted


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("how", ["installed", "compacted"])
def test_a_snapshot_that_is_gone_is_missed_where_the_log_is_empty(store, runtime, how, older):
    """A volume that is not mounted, say: else it would start blank, and vote for anybody."""
    snapshots = InmemSnapshotStore(runtime=runtime)
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1,) * 7)])
    HardState(1).save(store)
    node = started(store, snapshots, runtime, config={"trailing_logs": 0})
    if how == "installed":
        node.core.drop_log(EntryID(1, 8))
    else:
        node.core.snapshot_taken(SnapshotMeta("id", 8, 1, MEMBERS, 1, 0))
        runtime.run()
    assert node.stored() == []

    if not older:
        with pytest.raises(SnapshotError, match=r"term 1 at 8 is gone.*directory is where it was"):
            node.restarted()
        return
    take_snapshot(snapshots, 3, 1)
    node = node.restarted()
    assert not node.ask(RequestVoteRequest(header("n2"), 2, 7, 1)).response.granted
    take_snapshot(snapshots, 8, 1)
    assert node.restarted().core.damage.is_whole()


@pytest.mark.parametrize("older", [True, False])
def test_so_is_one_that_was_installed_where_the_log_was_empty_already(store, runtime, older):
    """On a server that joins, or behind another snapshot: that one does not stand for it."""
    snapshots = InmemSnapshotStore(runtime=runtime)
    HardState(1).save(store)
    node = started(store, snapshots, runtime, configuration=EMPTY_CONFIGURATION)
    if older:
        node.core.drop_log(EntryID(1, 3))
        take_snapshot(snapshots, 3, 1)
    node.core.drop_log(EntryID(1, 8))

    if not older:
        with pytest.raises(SnapshotError, match="term 1 at 8 is gone"):
            node.restarted()
        return
    node = node.restarted()
    assert not node.ask(RequestVoteRequest(header("n2"), 2, 7, 1)).response.granted


def test_who_fell_back_votes_when_it_has_as_much_again(store, runtime):
    node = fallen_back(store, runtime)

    node.ask(AppendEntriesRequest(header("n2"), 1, 3, 1, tuple(entries(4, terms=(1,) * 4)), 7))
    assert not node.core.damage.is_whole()
    node.ask(AppendEntriesRequest(header("n2"), 1, 7, 1, tuple(entries(8, terms=(1,))), 8))
    assert node.core.damage.is_whole()


def test_a_snapshot_that_can_be_read_again_makes_a_node_whole(store, runtime):
    node = fallen_back(store, runtime)
    node.snapshots.broken = ()

    assert node.restarted().core.damage.is_whole()


def test_a_snapshot_for_which_no_log_was_dropped_yet_is_no_loss(store, runtime):
    """It came from a leader just before a crash, and nothing was answered."""
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1, 1))])

    assert fallen_back(store, runtime).core.damage.is_whole()


def test_without_another_voter_nobody_falls_back_behind_what_was_acknowledged(store, runtime):
    with pytest.raises(SnapshotError, match="cannot be restored, and neither"):
        fallen_back(store, runtime, servers("n1"))


def test_a_snapshot_that_was_not_listed_at_first_is_kept(store, runtime, monkeypatch):
    """Its metadata could not be read for a moment, say because too many files were open."""
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1,) * 5)])
    shelf = Shelf(runtime)
    shelf.add(3)
    shelf.add(5)
    listed = shelf.list
    shown = iter([listed()[1:]])
    monkeypatch.setattr(shelf, "list", lambda: next(shown, listed()))

    node = started(store, shelf, runtime)
    node.runtime.run()

    assert node.core.state.applied_index == 3
    assert shelf.removed == []


def test_a_node_does_not_start_when_no_snapshot_can_be_read(store, runtime):
    shelf = Shelf(runtime, 3)
    shelf.add(3)

    with pytest.raises(SnapshotError, match="none of 1 snapshots"):
        started(store, shelf, runtime)


def test_a_log_that_reaches_back_to_its_beginning_makes_up_for_all_snapshots(store, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1, 1))])
    shelf = Shelf(runtime, 3)
    shelf.add(3)

    with pytest.raises(SnapshotError, match="reaches back to its first entry, so nothing is lost"):
        started(store, shelf, runtime)


def test_an_older_snapshot_below_a_compacted_log_is_a_gap(store, runtime):
    store.store_logs(entries(5, terms=(1, 1)))
    shelf = Shelf(runtime, 5)
    shelf.add(3)
    shelf.add(5)

    with pytest.raises(LogGapError, match="snapshot, of term 1 at 5, is gone or could not be"):
        started(store, shelf, runtime)


def test_a_snapshot_of_the_oldest_version_is_restored(store, runtime, tmp_path):
    """GAP-16: its configuration are its peers, each with its address as its id."""
    folder = tmp_path / "snapshots" / "1-3-5"
    folder.mkdir(parents=True)
    content = b"\x80"  # an empty list, as the FSM writes it
    (folder / "state.bin").write_bytes(content)
    fields = {"Version": 0, "ID": folder.name, "Index": 3, "Term": 1, "Size": len(content)}
    fields["Peers"] = base64.b64encode(encode_peers(MEMBERS)).decode()
    fields["CRC"] = base64.b64encode(crc64(content).to_bytes(8, "big")).decode()
    (folder / "meta.json").write_text(json.dumps(fields))

    node = started(store, FileSnapshotStore(tmp_path), runtime)

    assert (node.fsm.restores, node.core.state.applied_index) == (1, 3)
    members = node.core.membership
    assert members.committed == Configuration([Server("n1:1", "n1:1"), Server("n2:1", "n2:1")])
    assert members.committed_index == 3


@pytest.mark.parametrize("kind", [LogType.ADD_PEER_DEPRECATED, LogType.REMOVE_PEER_DEPRECATED])
def test_a_log_with_peer_entries_of_an_old_protocol_refuses_to_start(
    store, snapshots, runtime, kind
):
    """GAP-17, departure 17: it names no ids. What a snapshot covers does not matter."""
    data = encode_peers(MEMBERS)
    store.store_logs([Log(1, 1, kind, data).sealed(), *entries(2, terms=(1, 1, 1))])

    with pytest.raises(UnsupportedProtocolError, match="entry 1 lists peers"):
        started(store, snapshots, runtime)

    take_snapshot(snapshots, 3, 1)
    assert started(store, snapshots, runtime).core.membership.latest == MEMBERS


# ---- law 4 at start ----


@pytest.mark.parametrize(
    ("first", "terms", "kept"),
    [
        pytest.param(1, (1, 1, 1, 1), True, id="the same entry there"),
        pytest.param(4, (1, 1), True, id="begins right behind"),
        pytest.param(1, (1, 1), False, id="ends before"),
        pytest.param(1, (1, 1, 2, 2), False, id="another term there"),
    ],
)
def test_a_log_that_does_not_join_the_snapshot_is_dropped(
    store, snapshots, runtime, first, terms, kept
):
    """Law 4, departure 4."""
    store.store_logs(entries(first, terms=terms))
    take_snapshot(snapshots, 3, 1)

    node = started(store, snapshots, runtime)

    assert bool(node.stored()) is kept
    assert node.core.raft_log.last_index() == (first + len(terms) - 1 if kept else 3)


@pytest.mark.parametrize(("first", "with_snapshot"), [(5, True), (2, False)])
def test_a_gap_refuses_to_start(store, snapshots, runtime, first, with_snapshot):
    """Law 4, departure 4."""
    store.store_logs(entries(first, terms=(1, 1)))
    if with_snapshot:
        take_snapshot(snapshots, 3, 1)

    with pytest.raises(LogGapError, match="entries are missing"):
        started(store, snapshots, runtime)


def test_a_log_that_lost_its_snapshot_and_its_last_entry_refuses_to_start(
    store, snapshots, runtime
):
    store.store_logs([configuration_entry(5, 1, MEMBERS), *entries(6, terms=(1, 1))])
    store.store_logs([replace(store.get_log(7), data=b"rotten")])

    with pytest.raises(LogGapError, match="entries are missing"):
        started(store, snapshots, runtime)


def test_entries_below_the_snapshot_are_not_looked_at(store, snapshots, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1, 1))])
    store.store_logs([replace(store.get_log(2), data=b"rotten")])
    take_snapshot(snapshots, 3, 1)

    assert started(store, snapshots, runtime).core.raft_log.last_index() == 4


# ---- the vote record ----


def test_a_term_that_a_cut_short_bootstrap_left_out_is_made_up_for(store, snapshots, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS)])

    node = started(store, snapshots, runtime)

    assert node.core.state.term == 1
    assert HardState.load(store) == HardState(1)


def test_the_originals_keys_are_imported(store, snapshots, runtime):
    store.store_logs([configuration_entry(1, 1, MEMBERS)])
    store.set_uint64(LEGACY_TERM_KEY, 7)

    assert started(store, snapshots, runtime).core.state.term == 7


# ---- the first state of all ----


def test_the_first_state_is_written_so_that_a_crash_leaves_nothing_half_done(store):
    write_first_state(store, store, MEMBERS, "c1")

    assert store.writes == ["set ClusterID", "store 1-1", "set HardState"]
    assert store.get_log(1) == configuration_entry(1, 1, MEMBERS)
    assert HardState.load(store) == HardState(1)


@pytest.mark.parametrize("what", ["term", "entry", "snapshot", "legacy term"])
def test_anything_in_the_stores_is_existing_state(store, snapshots, what):
    assert not has_existing_state(store, store, snapshots)

    if what == "term":
        HardState(1).save(store)
    elif what == "entry":
        store.store_logs(entries(1, terms=(1,)))
    elif what == "snapshot":
        take_snapshot(snapshots, 3, 1)
    else:
        store.set_uint64(LEGACY_TERM_KEY, 1)

    assert has_existing_state(store, store, snapshots)


def test_a_cluster_id_alone_is_no_state(store, snapshots):
    """A bootstrap that was cut short there can be done again."""
    store.set(CLUSTER_ID_KEY, b"c1")

    assert not has_existing_state(store, store, snapshots)


def test_a_configuration_that_cannot_work_bootstraps_nothing():
    with pytest.raises(InvalidConfigurationError, match="at least one voter"):
        check_bootstrap(servers(nonvoters=["n1"]))


def test_a_cluster_id_is_as_given(runtime):
    """Departure 15."""
    assert choose_cluster_id(runtime, MEMBERS, "mine") == "mine"


def test_a_single_server_invents_its_clusters_id(runtime):
    """Departure 15."""
    one = servers("n1")

    assert choose_cluster_id(runtime, one, None) != choose_cluster_id(runtime, one, None)


def test_servers_bootstrapped_alike_and_apart_agree_on_the_id(runtime):
    """Departure 15."""
    turned = Configuration(MEMBERS.servers[::-1])

    assert choose_cluster_id(runtime, MEMBERS, None) == choose_cluster_id(runtime, turned, None)
    assert choose_cluster_id(runtime, MEMBERS, None) != choose_cluster_id(runtime, BIGGER, None)


# ---- bootstrapping a running node ----


def blank(**more):
    return ScriptedNode(configuration=servers(), **more)


def bootstrap(configuration, cluster_id=None):
    return Bootstrap(configuration, cluster_id, Future())


def test_a_blank_node_is_bootstrapped_and_knows_it():
    node = blank()
    message = bootstrap(MEMBERS)

    node.play(Follower, message)

    assert message.future.error(0) is None
    core = node.core
    assert (core.state.term, core.membership.latest) == (1, MEMBERS)
    assert core.raft_log.last() == EntryID(1, 1)
    assert core.cluster_id is not None
    assert node.restarted().core.membership.latest == MEMBERS


@pytest.mark.parametrize(
    ("configuration", "error"),
    [
        (servers("n2"), NotVoterError),
        (
            Configuration([Server("n1", "n1:1", ServerSuffrage.NONVOTER), Server("n2", "n2:1")]),
            NotVoterError,
        ),
        (servers(), InvalidConfigurationError),
    ],
)
def test_a_configuration_without_us_as_a_voter_is_refused(configuration, error):
    """LIF-04"""
    node = blank()

    with pytest.raises(error):
        bootstrap_here(node.core, configuration, None)

    assert node.store.writes == []


def test_a_node_with_entries_cannot_be_bootstrapped():
    node = ScriptedNode()

    with pytest.raises(CantBootstrapError):
        bootstrap_here(node.core, servers("n1"), None)


def test_a_blank_node_that_was_asked_for_a_vote_first_is_bootstrapped_and_keeps_it():
    """The others were bootstrapped earlier, and campaign."""
    vote = HardState(3, "n2", "n2:1")
    node = blank(hard_state=vote)

    bootstrap_here(node.core, MEMBERS, None)

    assert HardState.load(node.store) == node.core.hard_state == vote
    assert node.core.membership.latest == MEMBERS
    assert node.restarted().core.raft_log.last() == EntryID(1, 1)


def test_a_node_of_another_cluster_cannot_be_bootstrapped_though_it_has_no_entry():
    node = blank()
    node.core.cluster_id = "another"

    with pytest.raises(CantBootstrapError, match="another"):
        bootstrap_here(node.core, MEMBERS, "this")


def test_a_candidate_cannot_be_bootstrapped():
    node = ScriptedNode()
    message = bootstrap(servers("n1"))

    node.play(Candidate, message)

    assert isinstance(message.future.error(0), CantBootstrapError)


def test_a_node_whose_bootstrap_failed_half_way_knows_what_was_stored():
    node = blank()

    def fail(name):
        if name == "set HardState":
            raise OSError("disk")

    node.store.before_write = fail
    node.play(Follower, bootstrap(MEMBERS, "cluster-1"))
    assert node.core.fault is not None
    node.store.before_write = lambda _: None
    assert node.core.recover_disk()

    core = node.core
    assert (core.cluster_id, core.state.term, core.membership.latest) == ("cluster-1", 1, MEMBERS)
    assert HardState.load(node.store) == core.hard_state == HardState(1)


def test_a_bootstrap_that_fails_half_way_is_answered_and_can_be_finished_at_the_next_start():
    node = blank()

    def fail(name):
        if name == "set HardState":
            raise OSError("disk")

    node.store.before_write = fail
    message = bootstrap(MEMBERS)
    node.play(Follower, message)
    node.store.before_write = lambda _: None

    assert isinstance(message.future.error(0), StorageFailedError)
    core = node.restarted().core
    assert (core.state.term, core.membership.latest) == (1, MEMBERS)
