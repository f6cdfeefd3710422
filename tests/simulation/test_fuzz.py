"""The fuzz scenarios of the original (FUZ-01 to FUZ-09), each from a seed, in virtual time.

Elections take seconds, as by default, and there are no snapshots, so that at the end each log is
whole. The original sends ten thousand commands; a tenth of them is enough to fill every window.
While a world runs, every violation of a safety property ends it (`raft.testing.invariants`): two
leaders of one term, a vote given twice, entries that differ.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from raft.config import Config
from raft.errors import NotAppliedError, OutcomeUnknownError, RaftError
from raft.messages import RequestPreVoteRequest, RequestVoteRequest
from raft.node import Raft
from raft.testing.simulation.cluster import SimCluster, SimServer
from raft.testing.simulation.runtime import Scheduler
from raft.types import RaftState

pytestmark = pytest.mark.timeout(60)

PAYLOAD_BYTES = 33
ANSWER = 60.0  # virtual seconds that a batch may take
RECOVERY = 120.0
LIMIT = 1800.0


class World:
    """A cluster, what was acknowledged in it, and the checks at the end."""

    def __init__(self, name: str, nodes: int, blank: int = 0) -> None:
        self.seed = zlib.crc32(name.encode())
        self.scheduler = Scheduler(self.seed)
        self.cluster = SimCluster(self.scheduler, configure)
        self.chance = self.scheduler.chance
        self.voters = [self.cluster.add() for _ in range(nodes)]
        self.cluster.bootstrap(self.voters)
        self.blank = [self.cluster.add() for _ in range(blank)]
        self.removed: list[SimServer] = []
        self.acknowledged: dict[int, bytes] = {}
        self.delayed = 0
        self._payloads = payloads(self.seed)
        self._is_closing = False
        self._applier: Any = None

    def play(self, story: Callable[[World], None]) -> None:
        """Run a story, and the end checks."""
        print("seed", self.seed)

        def run() -> None:
            for server in self.cluster.servers.values():
                server.start()
            self.leader()
            story(self)
            self.cluster.network.heal()
            self._is_closing = True
            if self._applier is not None:
                self._applier.join()
            self.cluster.wait_for(self._is_settled, RECOVERY, "equal logs")
            self.check_end()

        self.scheduler.run(run, limit=LIMIT)

    def leader(self) -> SimServer:
        """Wait for a leader."""
        found: SimServer = self.cluster.wait_for(self.cluster.leader, RECOVERY, "a leader")
        return found

    def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.scheduler.sleep(seconds)

    # ---- clients ----

    def apply(self, count: int) -> int:
        """Send commands to the leader in one go; return how many were acknowledged."""
        batch = [next(self._payloads) for _ in range(count)]

        def send(node: Raft) -> list[tuple[bytes, Any]]:
            futures = [(payload, node.apply(payload, timeout=1.0)) for payload in batch]
            answers = []
            for payload, future in futures:
                error = future.exception(ANSWER)
                answers.append((payload, future.index() if error is None else error))
            return answers

        has_ended, answers = self.leader().call(send, ANSWER)
        assert has_ended
        for payload, answer in answers:
            if isinstance(answer, int):
                assert self.acknowledged.setdefault(answer, payload) == payload
            else:
                assert isinstance(answer, NotAppliedError | OutcomeUnknownError)
        return sum(isinstance(answer, int) for _, answer in answers)

    def apply_in_background(self, count: int) -> None:
        """Send batches of so many commands to whoever leads, until the story ends."""

        def run() -> None:
            while not self._is_closing:
                self.apply(count)
                self.wait(0.05)

        self._applier = self.scheduler.current_task().process.spawn("applier", run)

    def change(self, action: Callable[[Raft], Any]) -> None:
        """Have the leader change the membership; it must succeed."""
        has_ended, outcome = self.leader().call(lambda node: action(node).result(ANSWER), ANSWER)
        assert has_ended
        assert not isinstance(outcome, Exception), outcome

    def add(self, server: SimServer) -> None:
        """Add a blank server as a voter."""
        self.change(lambda node: node.add_voter(server.id, server.address, 0, ANSWER))
        self.voters.append(server)

    def remove(self, server: SimServer) -> None:
        """Remove a voter."""
        self.change(lambda node: node.remove_server(server.id, 0, ANSWER))
        self.voters.remove(server)
        self.removed.append(server)

    def followers(self) -> list[SimServer]:
        """Return the voters that do not lead."""
        leader = self.leader()
        return [server for server in self.voters if server is not leader]

    # ---- faults ----

    def isolate(self, servers: Iterable[SimServer]) -> None:
        """Cut some servers off from the rest, together."""
        group = [server.address for server in servers]
        everybody = [server.address for server in self.cluster.servers.values()]
        self.cluster.network.partition(group, [a for a in everybody if a not in group])

    def delay_votes(self, *, to: Iterable[SimServer] = (), of: Iterable[SimServer] = ()) -> None:
        """Let vote requests to some servers, and answers of some, take one to two seconds more."""
        network, later = self.cluster.network, self.scheduler.call_later
        slow_to, slow_of = {s.address for s in to}, {s.address for s in of}
        send = network.send

        def send_slowly(source: Any, target: str, frame: Any, on_answer: Any, *rest: Any) -> None:
            def answer(received: Any) -> None:
                later(1.0 + self.chance.random(), lambda: on_answer(received))

            is_vote = isinstance(frame.request(), RequestVoteRequest | RequestPreVoteRequest)
            if is_vote and target in slow_of:
                self.delayed += 1
                send(source, target, frame, answer, *rest)
            elif is_vote and target in slow_to:
                self.delayed += 1
                later(
                    1.0 + self.chance.random(),
                    lambda: send(source, target, frame, on_answer, *rest),
                )
            else:
                send(source, target, frame, on_answer, *rest)

        # The world's own network is slowed down from outside: the product has no such setting.
        network.send = send_slowly  # type: ignore[method-assign]

    # ---- the end (HAR-41) ----

    def _is_settled(self) -> bool:
        indexes = {
            (node.last_index(), node.applied_index())
            for server in self.voters
            if (node := server.node) is not None
        }
        last, applied = next(iter(indexes))
        return len(indexes) == 1 and last == applied >= max(self.acknowledged)

    def check_end(self) -> None:
        """Equal logs and state machines, and in them what was acknowledged, at its index."""
        first, *others = self.voters
        logs = first.disk.content.logs
        assert first.fsm is not None
        assert list(logs) == list(range(1, len(logs) + 1))
        assert [log.index for log in logs.values()] == list(logs)
        terms = [log.term for log in logs.values()]
        assert terms == sorted(terms)
        assert len(logs) >= len(self.acknowledged) > 0
        assert {index: logs[index].data for index in self.acknowledged} == self.acknowledged
        for server in others:
            assert server.fsm is not None
            assert server.disk.content.logs == logs
            assert identities(server) == identities(first)
        indexes = [log.index for log in first.fsm.logs()]
        assert indexes == sorted(set(indexes))
        assert self.acknowledged.keys() <= set(indexes)
        for server in self.removed:
            # No member, and with no more than a part of the others' log.
            theirs = server.disk.content.logs
            assert max(theirs) < len(logs)
            assert server.fsm is not None
            applied = identities(server)
            assert applied == identities(first)[: len(applied)]
        members = {server.id for server in self.voters}
        for server in self.voters:
            assert server.node is not None
            configuration = server.node.get_configuration().result()
            assert {s.id for s in configuration.voters()} == members
        self.cluster.invariants.check()


def configure(config: Config) -> None:
    """Default timings; no snapshots; a removed node runs on (HAR-34)."""
    config.snapshot_interval = 3600.0
    config.snapshot_threshold = 1_409_600
    config.shutdown_on_remove = False


def payloads(seed: int) -> Iterator[bytes]:
    """Yield commands of 33 bytes, each another (HAR-40)."""
    chance = random.Random(seed)
    number = 0
    while True:
        number += 1
        head = b"%08d " % number
        yield head + chance.randbytes(PAYLOAD_BYTES - len(head))


def identities(server: SimServer) -> list[tuple[int, int, bytes]]:
    """Return index, term and content of what a state machine has applied."""
    assert server.fsm is not None
    return [(log.index, log.term, log.data) for log in server.fsm.logs()]


def test_a_thousand_commands_in_one_go_are_all_acknowledged() -> None:
    """FUZ-01: nothing goes wrong, and every node ends with all of them."""

    def story(world: World) -> None:
        assert world.apply(1000) == 1000

    World("FUZ-01", nodes=5).play(story)


def test_leaders_that_are_cut_off_again_and_again_lose_nothing() -> None:
    """FUZ-02: five of its ten rounds."""

    def story(world: World) -> None:
        world.apply_in_background(5)
        for _ in range(5):
            leader, followers = world.leader(), world.followers()
            others = world.chance.sample(followers, world.chance.randrange(3))
            world.isolate([leader, *others])
            world.wait(4.0)
            if world.chance.random() < 0.9:  # all at once, or the group: there is one cut at a time
                world.cluster.network.heal()
            world.wait(5.0)
        assert world.cluster.leader_changes > 1

    World("FUZ-02", nodes=5).play(story)


@pytest.mark.parametrize(
    ("name", "to", "of"), [("FUZ-03", slice(2), slice(0)), ("FUZ-04", slice(0), slice(3))]
)
def test_slow_votes_do_no_harm(name: str, to: slice, of: slice) -> None:
    """FUZ-03: requests to two voters are slow. FUZ-04: the answers of three are.

    The leader is cut off half-way, so that an election has to be won with them.
    """

    def story(world: World) -> None:
        assert world.apply(500) == 500
        world.isolate([deposed := world.leader()])
        world.cluster.wait_for(
            lambda: any(server.is_leader() for server in world.voters if server is not deposed),
            RECOVERY,
            "another leader",
        )
        world.cluster.network.heal()
        world.wait(5.0)
        assert world.apply(500) == 500
        assert world.delayed > 0

    world = World(name, nodes=5)
    world.delay_votes(to=world.voters[to], of=world.voters[of])
    world.play(story)


def test_voters_are_added_while_clients_write() -> None:
    """FUZ-05: both join, and get all that was written before and meanwhile."""

    def story(world: World) -> None:
        world.apply(100)
        world.apply_in_background(200)
        for server in world.blank:
            world.add(server)
        world.wait(1.0)

    world = World("FUZ-05", nodes=3, blank=2)
    world.play(story)

    assert len(world.voters) == 5


def test_voters_are_added_and_two_others_removed_while_clients_write() -> None:
    """FUZ-06: other than in the original's, the two really go (scenarios' gap 1.6)."""

    def story(world: World) -> None:
        world.apply(100)
        world.apply_in_background(100)
        for server in world.blank:
            world.add(server)
        for server in world.followers()[:2]:
            world.remove(server)
        world.wait(1.0)

    world = World("FUZ-06", nodes=3, blank=2)
    world.play(story)

    assert (len(world.voters), len(world.removed)) == (3, 2)


def test_a_leader_that_is_removed_gives_way_while_clients_write() -> None:
    """FUZ-07: other than in the original's, it really goes (scenarios' gap 1.6)."""

    def story(world: World) -> None:
        world.apply_in_background(100)
        world.wait(1.0)
        world.remove(removed := world.leader())
        world.wait(5.0)
        assert world.leader() is not removed

    World("FUZ-07", nodes=5).play(story)


def test_a_server_that_is_removed_while_cut_off_disturbs_nobody() -> None:
    """FUZ-08: it is never told that it was removed, and what it asks for is refused."""
    terms: list[int] = []

    def story(world: World) -> None:
        world.apply_in_background(10)
        lost = world.followers()[0]
        world.isolate([lost])
        world.wait(3.0)
        world.remove(lost)
        world.wait(3.0)
        node = world.leader().node
        assert node is not None
        terms.append(node.current_term())
        world.cluster.network.heal()
        world.wait(10.0)
        terms.append(node.current_term())
        assert node.state() is RaftState.LEADER

    World("FUZ-08", nodes=5).play(story)

    assert terms[0] == terms[1]


def test_leadership_is_transferred_while_many_commands_wait() -> None:
    """FUZ-09: as in the original, a transfer may fail; what was acknowledged stays."""
    transferred: list[bool] = []

    def story(world: World) -> None:
        process = world.scheduler.current_task().process
        for _ in range(3):
            batch = process.spawn("batch", lambda: world.apply(200))
            leader = world.leader()
            world.wait(0.02)
            has_ended, outcome = leader.call(
                lambda node: node.leadership_transfer().result(ANSWER), ANSWER
            )
            assert has_ended
            transferred.append(not isinstance(outcome, RaftError))
            batch.join()
        assert world.apply(200) == 200

    World("FUZ-09", nodes=5).play(story)

    assert any(transferred)
