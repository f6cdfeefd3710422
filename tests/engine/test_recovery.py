"""Recovery by hand: what is read, what is written in which order, and what a crash leaves."""

import errno
from dataclasses import replace

import pytest

from raft import recover_cluster
from raft.config import Config
from raft.engine.damage import note_replaced
from raft.engine.recovery import derive_cluster_id
from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import (
    CantRecoverError,
    FSMFailedError,
    InvalidConfigError,
    InvalidConfigurationError,
    LogCorruptError,
    LogGapError,
    SnapshotError,
)
from raft.snapshots import DiscardSnapshotStore, FileSnapshotStore, InmemSnapshotStore
from raft.testing.fsm import BatchingRecordingFSM, RecordedSnapshot, RecordingFSM
from raft.testing.manual import ManualRuntime
from raft.testing.script import (
    ScriptedNode,
    ScriptedStore,
    configuration_entry,
    entries,
    servers,
)
from raft.types import Configuration, EntryID, LogType

BEFORE, AFTER, OTHER = servers("n1", "n2", "n3"), servers("n1", "n4"), servers("n1", "n5")
VOTE = HardState(4, "n2", "n2:1")
ORDER = [
    "set Recovery",
    "set ClusterID",
    "snapshot",
    "set Incarnations",
    "set CommittedAsTold",
    "set LogReplacedBy",
    "delete 1-6",
]


class CrashError(BaseException):
    """The process dies here."""


class Crashes:
    """Dies before the write of a given number, 0 for never."""

    def __init__(self, at=0):
        self.at = at
        self.writes = []

    def __call__(self, name):
        self.writes.append(name)
        if len(self.writes) == self.at:
            raise CrashError(name)


class ScriptedSnapshots(InmemSnapshotStore):
    """Tells when a snapshot becomes visible, and counts those thrown away."""

    before_write = staticmethod(lambda _: None)
    cancelled = 0

    def create(self, *arguments, **more):
        sink = super().create(*arguments, **more)
        publish, discard = sink.close, sink.cancel

        def close():
            if not sink._done:
                self.before_write("snapshot")
            publish()

        def cancel():
            self.cancelled += 1
            discard()

        sink.close, sink.cancel = close, cancel
        return sink


class Site:
    """The stores of one stopped server."""

    def __init__(self, *, snapshot=True, log=None, vote=VOTE, cluster_id=b"c1"):
        self.runtime = ManualRuntime()
        self.store = ScriptedStore(self.runtime)
        self.snapshots = ScriptedSnapshots(runtime=self.runtime)
        if snapshot:
            sink = self.snapshots.create(1, 3, 1, BEFORE, 1)
            RecordedSnapshot(entries(2, terms=(1, 1))).persist(sink)
            sink.close()
        if log is None:
            log = [configuration_entry(1, 1, BEFORE), *entries(2, terms=(1, 1, 1, 2, 2))]
        if log:
            self.store.store_logs(log)
        if vote is not None:
            vote.save(self.store)
        if cluster_id is not None:
            self.store.set(CLUSTER_ID_KEY, cluster_id)
        self.store.writes.clear()

    def recover(self, configuration=AFTER, *, fsm=None, crash_at=0, **more):
        crashes = Crashes(crash_at)
        self.store.before_write = self.snapshots.before_write = crashes
        try:
            recover_cluster(
                Config(local_id="n1"),
                fsm or RecordingFSM(),
                self.store,
                self.store,
                more.pop("snapshots", self.snapshots),
                configuration,
                **more,
            )
        finally:
            self.store.before_write = self.snapshots.before_write = lambda _: None
        return crashes.writes

    def node(self):
        return ScriptedNode(store=self.store, snapshots=self.snapshots, runtime=self.runtime)

    def contents(self):
        store = self.store
        snapshots = [(m.index, m.term, m.configuration) for m in self.snapshots.list()]
        return (dict(store._logs), dict(store._values), dict(store._numbers), snapshots)

    def cluster_id(self):
        return self.store.get(CLUSTER_ID_KEY).decode()


# ---- what it does ----


def test_everything_is_in_one_snapshot_with_the_given_configuration():
    site = Site()
    fsm = RecordingFSM()

    site.recover(fsm=fsm)

    (meta,) = site.snapshots.list()
    assert (meta.index, meta.term, meta.version) == (6, 2, 1)
    assert (meta.configuration, meta.configuration_index) == (AFTER, 6)
    assert (site.store.first_index(), site.store.last_index()) == (0, 0)
    assert HardState.load(site.store) == VOTE
    assert (fsm.restores, fsm.commands()) == (1, [b"2/1", b"3/1", b"4/1", b"5/2", b"6/2"])


def test_a_node_started_over_it_has_the_state_and_the_configuration():
    site = Site()
    site.recover()

    node = site.node()

    assert node.fsm.commands() == [b"2/1", b"3/1", b"4/1", b"5/2", b"6/2"]
    assert (node.core.membership.latest, node.core.membership.committed) == (AFTER, AFTER)
    assert (node.core.state.term, node.core.raft_log.last_index()) == (4, 6)


def test_a_log_without_a_snapshot_is_enough():
    site = Site(snapshot=False)

    site.recover()

    assert site.node().fsm.commands() == [b"2/1", b"3/1", b"4/1", b"5/2", b"6/2"]


def test_a_snapshot_without_a_log_is_enough():
    site = Site(log=[])

    site.recover()

    (meta,) = site.snapshots.list()
    assert (meta.index, meta.term, meta.configuration) == (3, 1, AFTER)
    assert site.node().fsm.commands() == [b"2/1", b"3/1"]


def test_a_log_that_the_snapshot_has_replaced_is_not_applied():
    """Law 4: its entry at the snapshot's index is of another term."""
    site = Site(log=entries(1, terms=(1, 1, 9, 9)))

    site.recover()

    assert site.node().fsm.commands() == [b"2/1", b"3/1"]


def test_only_commands_are_applied_and_one_by_one():
    """GAP-17: what lists peers as old protocols did is passed over, too."""
    logs = [
        configuration_entry(4, 1, OTHER),
        *entries(5, terms=(1,), kind=LogType.NOOP),
        *entries(6, terms=(1,)),
        *entries(7, terms=(1,), kind=LogType.BARRIER),
        *entries(8, terms=(1,), kind=LogType.ADD_PEER_DEPRECATED),
    ]
    fsm = BatchingRecordingFSM()

    Site(log=logs).recover(fsm=fsm)

    assert fsm.commands() == [b"2/1", b"3/1", b"6/1"]
    assert (fsm.batches, fsm.configurations) == ([], [])


def test_a_server_that_waited_for_spoiled_entries_waits_no_more():
    """Departure 16: it may lack what it acknowledged, but nobody is left to send that."""
    site = Site()
    site.node().core.damage.fell_back(EntryID(4, 9))
    assert not site.node().core.damage.is_whole()

    writes = site.recover()

    assert writes[-2:] == ["delete 1-6", "set DamagedUpto"]
    assert site.node().core.damage.is_whole()


# ---- what the FSM may do ----


def test_what_the_fsm_raises_at_a_command_is_only_an_answer():
    def refuse(log):
        if log.index == 5:
            raise ValueError("no such key")

    site = Site()
    fsm = RecordingFSM(refuse)

    site.recover(fsm=fsm)

    assert fsm.commands() == [b"2/1", b"3/1", b"4/1", b"6/2"]
    assert site.snapshots.list()[0].index == 6


def test_a_fault_of_this_machine_stops_it_and_nothing_is_changed():
    def fail(log):
        raise OSError(errno.EIO, "disk")

    site = Site()
    before = site.contents()

    with pytest.raises(FSMFailedError, match="disk"):
        site.recover(fsm=RecordingFSM(fail))

    assert site.contents() == before


class View(RecordedSnapshot):
    def __init__(self, persist):
        super().__init__([])
        self.persist = persist


def failing(sink):
    raise RuntimeError("out of ideas")


@pytest.mark.parametrize("persist", [failing, lambda sink: sink.cancel()])
def test_a_snapshot_that_cannot_be_persisted_changes_nothing(persist):
    site, fsm, view = Site(), RecordingFSM(), View(persist)
    fsm.snapshot = lambda: view
    before = site.contents()

    with pytest.raises(SnapshotError, match="failed to persist snapshot"):
        site.recover(fsm=fsm)

    assert site.contents() == before
    assert (view.released, site.snapshots.cancelled) == (True, 1)


def test_an_fsm_may_close_the_sink_itself():
    def persist(sink):
        RecordedSnapshot(entries(2, terms=(1,))).persist(sink)
        sink.close()
        sink.close()

    site, fsm, view = Site(), RecordingFSM(), View(persist)
    fsm.snapshot = lambda: view

    writes = site.recover(fsm=fsm)

    assert view.released
    assert writes == ORDER
    assert site.node().fsm.commands() == [b"2/1"]


# ---- what it refuses ----


def test_empty_stores_are_refused():
    """SNP-12"""
    site = Site(snapshot=False, log=[], vote=None, cluster_id=None)

    with pytest.raises(CantRecoverError, match="no initial state"):
        site.recover()

    assert site.store.writes == []


def test_a_vote_alone_is_nothing_to_recover_from():
    site = Site(snapshot=False, log=[])

    with pytest.raises(CantRecoverError, match="no initial state"):
        site.recover()


def test_a_configuration_that_cannot_work_is_refused():
    site = Site()

    with pytest.raises(InvalidConfigurationError, match="at least one voter"):
        site.recover(servers(nonvoters=["n1"]))
    with pytest.raises(InvalidConfigError, match="local_id"):
        recover_cluster(Config(), RecordingFSM(), site.store, site.store, site.snapshots, AFTER)

    assert site.store.writes == []


@pytest.mark.parametrize("index", [4, 6])
def test_a_corrupt_entry_is_refused_and_nothing_is_changed(index):
    site = Site()
    site.store.store_logs([replace(site.store.get_log(index), data=b"rotten")])
    before = site.contents()

    with pytest.raises(LogCorruptError, match=f"entry {index}"):
        site.recover()

    assert site.contents() == before


def test_a_gap_above_the_snapshot_is_refused_and_nothing_is_changed():
    site = Site(log=entries(5, terms=(1, 1)))
    before = site.contents()

    with pytest.raises(LogGapError):
        site.recover()

    assert site.contents() == before


class Shelf:
    """Two snapshot stores: the upper one holds a newer snapshot, which cannot be read."""

    def __init__(self, site, index, term=2):
        self.site = site
        self.broken = InmemSnapshotStore(runtime=site.runtime)
        self.broken.create(1, index, term, BEFORE, 1).close()
        self.create = site.snapshots.create

    def list(self):
        both = [*self.site.snapshots.list(), *self.broken.list()]
        return sorted(both, key=lambda meta: (meta.term, meta.index, meta.id), reverse=True)

    def open(self, snapshot_id):
        if snapshot_id == self.broken.list()[0].id:
            raise SnapshotError("checksum")
        return self.site.snapshots.open(snapshot_id)


def test_an_older_snapshot_and_the_log_make_up_for_one_that_cannot_be_read():
    site = Site()
    shelf = Shelf(site, 5)

    site.recover(snapshots=shelf)

    assert (shelf.list()[0].index, shelf.list()[0].configuration) == (6, AFTER)


def test_a_log_that_ends_before_an_unreadable_snapshot_is_refused():
    site = Site()
    before = site.contents()

    with pytest.raises(SnapshotError, match="the log ends before it"):
        site.recover(snapshots=Shelf(site, 9))

    assert site.contents() == before


def test_a_snapshot_whose_metadata_was_spoiled_is_missed(tmp_path):
    """It is not listed, and stood for all that was acknowledged: an older one is no way out."""
    site = Site(snapshot=False, log=[])
    snapshots = FileSnapshotStore(tmp_path, runtime=site.runtime)
    for index in (3, 9):
        sink = snapshots.create(1, index, 2, BEFORE, 1)
        RecordedSnapshot([]).persist(sink)
        sink.close()
    (path,) = (tmp_path / "snapshots").glob("2-9-*/meta.json")
    path.write_bytes(path.read_bytes().replace(b'"Index":9', b'"Index":8'))

    with pytest.raises(SnapshotError, match=r"term 2 at 9 cannot be read.*move that snapshot away"):
        site.recover(snapshots=snapshots)

    path.parent.rename(tmp_path / "spoiled")
    site.recover(snapshots=snapshots)
    assert (snapshots.list()[0].index, snapshots.list()[0].configuration) == (3, AFTER)


def test_what_is_recovered_without_a_snapshot_that_is_gone_misses_nothing_afterwards(caplog):
    """Nobody else has it either: this is the last resort."""
    site = Site(log=[])
    note_replaced(site.store, EntryID(2, 9))

    site.recover()

    assert "going on without a lost snapshot term=2 index=9" in caplog.text
    assert site.node().core.damage.is_whole()


def test_snapshots_of_which_none_can_be_read_are_refused():
    site = Site(snapshot=False)
    before = site.contents()

    with pytest.raises(SnapshotError, match="none of 1 snapshots"):
        site.recover(snapshots=Shelf(site, 3))

    assert site.contents() == before


def test_a_log_is_not_deleted_for_a_snapshot_that_is_not_kept():
    site = Site(snapshot=False)

    with pytest.raises(SnapshotError, match="does not list snapshot"):
        site.recover(snapshots=DiscardSnapshotStore())

    assert site.store.last_index() == 6


# ---- a crash ----


def test_id_snapshot_and_log_change_in_this_order():
    assert Site().recover() == ORDER


@pytest.mark.parametrize("crash_at", [1, 2, 3, 4, 5, 6])
def test_after_a_crash_a_node_starts_and_recovery_can_be_done_again(crash_at):
    once, twice = Site(), Site()
    once.recover()
    with pytest.raises(CrashError):
        twice.recover(crash_at=crash_at)

    started = twice.node()
    assert started.fsm.commands()[:2] == [b"2/1", b"3/1"]
    # Whoever has the new configuration has the new id: the old cluster hears it no more.
    assert started.core.membership.latest == BEFORE or twice.cluster_id() == once.cluster_id()

    twice.recover()

    once.node()  # has an incarnation made, as the crashed one has
    assert twice.contents() == once.contents()


@pytest.mark.parametrize("crash_at", [0, 1, 2, 3])  # the log is gone, so there is no fourth write
def test_a_mistaken_configuration_can_be_made_up_for(crash_at):
    """Departure 15: the id is that of a survivor which was recovered once, and right."""
    once, twice = Site(), Site()
    once.recover()
    twice.recover(OTHER)

    if crash_at:
        with pytest.raises(CrashError):
            twice.recover(AFTER, crash_at=crash_at)
    twice.recover(AFTER)

    assert twice.cluster_id() == once.cluster_id()
    assert twice.node().core.membership.latest == AFTER


# ---- the next cluster id ----


def test_survivors_recovered_alike_agree_whatever_their_logs_hold():
    """Departure 15"""
    one, other = Site(), Site(log=entries(1, terms=(1, 1, 1)))
    turned = Configuration(AFTER.servers[::-1])

    one.recover(AFTER)
    other.recover(turned)

    assert one.cluster_id() == other.cluster_id() == derive_cluster_id("c1", AFTER)


def test_another_cluster_or_configuration_gives_another_id():
    """Departure 15"""
    ids = {"c1"}
    for cluster_id, configuration in (
        (b"c1", AFTER),
        (b"c2", AFTER),
        (b"c1", OTHER),
        (None, AFTER),
    ):
        site = Site(cluster_id=cluster_id)
        site.recover(configuration)
        ids.add(site.cluster_id())

    assert len(ids) == 5


def test_a_cluster_that_has_lived_on_gets_another_id_from_the_same_configuration():
    """Departure 15: what joined it in between is left behind in its turn."""
    site = Site()
    site.recover()
    first = site.cluster_id()
    site.store.store_logs(entries(7, terms=(5,)))

    site.recover()

    assert site.cluster_id() == derive_cluster_id(first, AFTER)


def test_a_cluster_id_is_as_given():
    site = Site()

    site.recover(cluster_id="mine")

    assert site.cluster_id() == "mine"
