"""The other servers, as a leader serves them: one replicator each, as long as the leadership."""

from __future__ import annotations

from raft.engine.commitment import Commitment
from raft.engine.core import Core
from raft.engine.heartbeat import Links
from raft.engine.replication import PeerReplicator, PeerStatus, Reach
from raft.errors import NoThreadError
from raft.observer import PeerObservation
from raft.roles.voters import Voters
from raft.types import Configuration, Peer, Server, ServerID

_FAREWELL_TIMEOUTS = 2.0  # heartbeat timeouts that a removed peer has to learn of its removal


class Peers:
    """Starts and stops replicators by the latest configuration. Main thread only."""

    def __init__(self, core: Core, links: Links, commitment: Commitment) -> None:
        self._core = core
        self._links = links
        self.voters = Voters(core, links.term, commitment, self.probe_again)
        self._replicators: dict[ServerID, PeerReplicator] = {}
        self._departing: list[PeerReplicator] = []  # removed, and being told so
        self._lacks_threads = False  # for one of them, who is tried again

    def follow(self, configuration: Configuration) -> None:
        """Have one replicator for each other server of a configuration."""
        wanted = {s.id: s for s in configuration.servers if s.id != self._core.local_id}
        self._lacks_threads = False
        for server in wanted.values():
            replicator = self._replicators.get(server.id)
            if replicator is None:
                self._start(server)
            elif replicator.status().server.address != server.address:
                replicator.move(server)
                self._core.log.info("updating peer address peer=%s", server.id)
        for server_id in [peer for peer in self._replicators if peer not in wanted]:
            self._dismiss(self._replicators.pop(server_id))
        self.voters.follow(configuration)
        self._publish()
        if self._core.metrics is not None:
            self._core.metrics.set_gauge("raft.peers", len(configuration.servers))

    def _start(self, server: Server) -> None:
        replicator = PeerReplicator(self._links, server, self._core.raft_log.last_index() + 1)
        try:
            replicator.start()
        except NoThreadError as error:
            self._lacks_threads = True
            replicator.stop()  # one of its threads may run
            if self._core.threads.complaints.admits():
                self._core.log.warning("cannot replicate yet peer=%s error=%s", server.id, error)
            return
        self._replicators[server.id] = replicator
        self._core.emit(PeerObservation(removed=False, peer=server))
        self._core.log.info("added peer, starting replication peer=%s", server.id)

    def _dismiss(self, replicator: PeerReplicator) -> None:
        server = replicator.status().server
        seconds = self._core.config.heartbeat_timeout * _FAREWELL_TIMEOUTS
        replicator.finish(self._core.raft_log.last_index(), seconds)
        self._departing.append(replicator)
        self._core.emit(PeerObservation(removed=True, peer=server))
        self._core.log.info("removed peer, stopping replication peer=%s", server.id)

    def try_again(self) -> None:
        """Start what could not be started before."""
        if self._lacks_threads:
            self.follow(self._core.membership.latest)

    def kick(self) -> None:
        """Say that there is something new to send."""
        for replicator in self._replicators.values():
            replicator.kick()

    def probe_again(self) -> None:
        """Have all told what has been noted since, with the question where the logs agree."""
        for replicator in self._replicators.values():
            replicator.probe_again()

    def beat_now(self) -> None:
        """Ask all for a heartbeat round that begins after this call."""
        for replicator in self._replicators.values():
            replicator.heart.beat_now()

    def last_contacts(self) -> dict[ServerID, float]:
        """Return when each was last heard; voters that do not count never were (departure 21)."""
        return {
            i: peer.heart.last_contact
            for i, peer in self._replicators.items()
            if i not in self.voters.strangers
        }

    def last_error(self, server_id: ServerID) -> str:
        """Return what failed last of what was sent to one; empty for nothing."""
        peer = self._replicators.get(server_id)
        return peer.heart.last_error if peer is not None else ""

    def reach(self) -> dict[ServerID, Reach]:
        """Return how far each has got."""
        return {i: peer.reach() for i, peer in self._replicators.items()}

    def next_indexes(self) -> dict[ServerID, int]:
        """Return what each would be sent next."""
        return {i: peer.status().next_index for i, peer in self._replicators.items()}

    def _publish(self) -> None:
        """Have `core.peers` tell of those that there are now."""
        replicators = tuple(self._replicators.values())
        self._core.peers = lambda: tuple([self._describe(peer.status()) for peer in replicators])

    def _describe(self, status: PeerStatus) -> Peer:
        """Say what is known of a peer; any thread, without a lock."""
        core, peer = self._core, status.server.id
        now = core.state.published()
        server = now.configuration.server(peer) or status.server
        return Peer(
            server.id,
            server.address,
            server.suffrage,
            counts=now.configuration.has_vote(peer) and peer not in self.voters.strangers,
            match_index=status.match_index,
            next_index=status.next_index,
            lag=max(0, now.last_log.index - status.match_index),
            last_contact=max(0.0, core.runtime.monotonic() - status.last_contact),
            failures=status.failures,
            last_error=status.last_error,
            activity=status.activity,
        )

    def stop(self) -> None:
        """End all replication, farewells included; does not wait for it."""
        self._core.peers = lambda: ()
        for replicator in (*self._replicators.values(), *self._departing):
            replicator.stop()
