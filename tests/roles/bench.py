"""A leader in a task, over peers and a disk that the test answers for."""

from raft.engine.inbox import (
    ChangeConfiguration,
    ReadBarrier,
    TransferLeadership,
    VerifyLeader,
)
from raft.engine.state import HardState
from raft.futures import Future, IndexFuture
from raft.messages import AppendEntriesRequest, AppendEntriesResponse
from raft.roles.leader import Leader
from raft.runtime import Deadline
from raft.testing.script import ScriptedNode, entries, header, servers
from raft.types import RaftState

TERM = 2
NOOP = 3  # where the no-op of the term stands: behind the configuration and one command
THREE = servers("n1", "n2", "n3")


class Bench:
    """A leader of term 2. Peers answer heartbeats while they are in `beating`, and acknowledge
    entries while they are in `storing`; `term` is what they say theirs is.
    """

    def __init__(self, configuration=THREE, storing=(), log=None, committed=0, **config):
        self.node = ScriptedNode(
            configuration=configuration,
            log=entries(2, terms=(1,)) if log is None else log,
            hard_state=HardState(TERM, "n1", "n1:1"),
            config={"leader_lease_timeout": 0.1} | config,
        )
        self.core, self.runtime = self.node.core, self.node.runtime
        self.transport, self.state = self.node.transport, self.node.core.state
        self.beating, self.storing = {"n2", "n3", "n4", "n5"}, set(storing)
        self.term = TERM
        self.transport.has_pipelines = False
        self.transport.respond = self._respond
        self.core.apply_committed(committed)
        self.leader = self.node.start(Leader)

    def _respond(self, call):
        if not isinstance(call.request, AppendEntriesRequest):
            return None
        wanted = self.beating if call.request.is_heartbeat() else self.storing
        if call.server_id not in wanted:
            return None
        last = call.request.prev_log_index + len(call.request.entries)
        return AppendEntriesResponse(
            header(call.server_id), self.term, last, success=self.term == TERM
        )

    def store(self, *peers):
        """Have these peers acknowledge entries from now on."""
        self.storing |= set(peers)
        for call in self.transport.open_calls(AppendEntriesRequest):
            result = self._respond(call)
            if result is not None:
                call.answer(result)
        self.runtime.run()

    def advance_far_away(self, seconds, way):
        """Let time pass while each answer comes `way` seconds after its question was sent."""
        self.beating.clear()
        asked, end = {}, self.runtime.now + seconds
        while self.runtime.now < end:
            self.runtime.advance(0.005)
            for call in self.transport.open_calls(AppendEntriesRequest):
                if self.runtime.now - asked.setdefault(call, self.runtime.now) >= way:
                    last = call.request.prev_log_index + len(call.request.entries)
                    peer = header(call.server_id)
                    call.answer(AppendEntriesResponse(peer, TERM, last, success=True))
        self.runtime.run()

    def shut_disk(self):
        """Let no write begin before the door is opened; return the door."""
        door = self.runtime.event()
        self.node.store.before_write = lambda _: door.wait()
        return door

    def change(self, kind, server_id, address="", prev_index=0, timeout=None, catch_up=False):
        future = IndexFuture(self.node.host)
        deadline = Deadline(self.runtime, timeout)
        return self.ask(
            ChangeConfiguration(kind, server_id, address, prev_index, future, deadline, catch_up)
        )

    def verify(self):
        return self.ask(VerifyLeader(Future(self.node.host)))

    def read(self):
        return self.ask(ReadBarrier(IndexFuture(self.node.host)))

    def transfer(self, server_id="", address=""):
        return self.ask(TransferLeadership(server_id, address, Future(self.node.host)))

    def ask(self, message):
        """Put a client's message into the inbox and let everything happen; return its future."""
        self.core.inbox.submit(message, Deadline(self.runtime, None))
        self.runtime.run()
        return message.future

    def is_leading(self):
        return self.state.role is RaftState.LEADER

    def sent_to(self, peer):
        """The entries that were sent to a peer, by index and term."""
        return {
            (log.index, log.term)
            for call in self.transport.calls
            if call.server_id == peer and isinstance(call.request, AppendEntriesRequest)
            for log in call.request.entries
        }
