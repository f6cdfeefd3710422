"""One node's parts on the test's own thread: scripted inbox, network and disk, and their builders.

    node = ScriptedNode(log=entries(2, terms=(1, 1)))
    node.play(Follower, heartbeat, DEADLINE)       # what the inbox hands out, in order
    assert node.core.state.role is RaftState.CANDIDATE

Time stands still unless the test moves it (`raft.testing.manual`). Whoever waits for the network or
the disk stays where it is until the test answers, so every order of events can be written down.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from raft.codec import encode_configuration
from raft.config import Config
from raft.engine.assembly import assemble
from raft.engine.core import Core
from raft.engine.inbox import Apply, Inbox, Message
from raft.engine.install_snapshot import SnapshotReceiver
from raft.engine.start_up import load_state
from raft.engine.state import HardState
from raft.errors import PipelineNotSupportedError, PipelineShutdownError, RPCTimeoutError
from raft.futures import ApplyFuture
from raft.interfaces import FSM
from raft.messages import (
    RPC,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    Request,
    Response,
    RPCHeader,
    SnapshotReader,
)
from raft.observer import ObservationData
from raft.roles.base import Role
from raft.roles.follower import Follower
from raft.runtime import Deadline, Queue
from raft.snapshots.inmem import InmemSnapshotStore
from raft.stores.inmem import InmemStore
from raft.testing.fsm import RecordingFSM
from raft.testing.manual import (
    ManualCondition,
    ManualEvent,
    ManualLock,
    ManualQueue,
    ManualRuntime,
    StuckError,
)
from raft.types import (
    Configuration,
    Log,
    LogType,
    RaftState,
    Server,
    ServerAddress,
    ServerID,
    ServerSuffrage,
)

AnyRole = TypeVar("AnyRole", bound=Role)

_log = logging.getLogger(__name__)

# ---- the inbox ----


class _Deadline:
    """A step of a script: nothing comes until the deadline has passed."""


DEADLINE = _Deadline()


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a script: the main thread does not run for so many seconds."""

    seconds: float


class _ScriptEnd(Exception):  # noqa: N818 - it ends a role's loop, nothing went wrong
    """The script has been played."""


Step: TypeAlias = "Message | Asked | _Deadline | Pause | Callable[[], object]"


class ScriptedInbox(Inbox):
    """An inbox that hands out a script, and notes until when it was asked to wait.

    What the node tells itself meanwhile comes first, as it would. Without a script it is an inbox
    like any other.
    """

    def __init__(self, runtime: ManualRuntime, client_limit: int = 64) -> None:
        super().__init__(runtime, client_limit)
        self._manual = runtime
        self.script: deque[Step] | None = None
        self.untils: list[float | None] = []

    def take(self, until: float | None, *, only_clients: bool = False) -> Message | None:
        if self.script is None or only_clients:
            return super().take(until, only_clients=only_clients)
        self.untils.append(until)
        while True:
            self._manual.run()
            if self._control or self._rpcs or self._clients or self._poked or self.closed:
                return super().take(until)
            if not self.script:
                raise _ScriptEnd
            step = self.script.popleft()
            if isinstance(step, _Deadline):
                if until is None:
                    raise StuckError("there is no deadline to wait for")
                self._manual.advance(until - self._manual.now)
                if not self._control:
                    return None
                self.script.appendleft(step)  # what happened on the way is heard first
            elif isinstance(step, Pause):
                self._manual.advance(step.seconds)
            elif isinstance(step, Asked):
                return step.rpc
            elif callable(step):
                step()
            else:
                return step


# ---- the network ----


class Asked:
    """A peer's request and, once there is one, its answer."""

    def __init__(
        self, request: Request, reader: SnapshotReader | None = None, cluster_id: str | None = None
    ) -> None:
        self.rpc = RPC(request, self._answer, reader, cluster_id)
        self.is_answered = False
        self.response: Any = None
        self.error: Exception | None = None

    def _answer(self, response: Response | None, error: Exception | None) -> None:
        self.is_answered = True
        self.response, self.error = response, error


class Call:
    """A request on its way to a peer; the test is the peer, and answers or not."""

    def __init__(
        self,
        runtime: ManualRuntime,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        reader: SnapshotReader | None = None,
    ) -> None:
        self.server_id = server_id
        self.address = address
        self.request: Any = request
        self.reader = reader
        self._answered = ManualEvent(runtime)
        self._result: Response | Exception | None = None

    def is_open(self) -> bool:
        """Tell whether there is no answer yet."""
        return not self._answered.is_set()

    def answer(self, result: Response | Exception) -> None:
        """Give the answer, or the error that the transport raises."""
        self._result = result
        self._answered.set()

    def wait(self, timeout: float | None) -> Any:
        """Return the answer; called by the transport."""
        if not self._answered.wait(timeout):
            self.answer(RPCTimeoutError("no answer in time"))
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class ScriptedPipeline:
    """A pipeline whose far end is the test."""

    def __init__(self, runtime: ManualRuntime, server_id: ServerID) -> None:
        self.server_id = server_id
        self.requests: list[AppendEntriesRequest] = []
        self.is_closed = False
        self._answers: deque[AppendEntriesResponse | Exception] = deque()
        self._changed = ManualCondition(runtime, ManualLock())

    def answer(self, result: AppendEntriesResponse | Exception) -> None:
        """Answer the oldest request that has no answer."""
        with self._changed:
            self._answers.append(result)
            self._changed.notify_all()

    def append_entries(self, request: AppendEntriesRequest) -> None:
        if self.is_closed:
            raise PipelineShutdownError("closed")
        self.requests.append(request)

    def receive(self, timeout: float | None = None) -> AppendEntriesResponse:
        with self._changed:
            while not self._answers and not self.is_closed:
                if not self._changed.wait(timeout):
                    raise RPCTimeoutError("no answer in time")
            if self.is_closed:
                raise PipelineShutdownError("closed")
            result = self._answers.popleft()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


class ScriptedTransport:
    """A transport whose peers are the test: each call waits until it is answered.

    `respond` may answer at once, by returning something else than None.
    """

    def __init__(self, runtime: ManualRuntime, address: ServerAddress) -> None:
        self._runtime = runtime
        self._address = address
        self._consumer: ManualQueue = ManualQueue(runtime)
        self.calls: list[Call] = []
        self.pipelines: list[ScriptedPipeline] = []
        self.has_pipelines = True
        self.respond: Callable[[Call], Response | Exception | None] = lambda _: None

    def open_calls(self, kind: type[Any] | None = None) -> list[Call]:
        """Return the calls that wait for an answer, of one kind of request."""
        return [c for c in self.calls if c.is_open() and isinstance(c.request, kind or object)]

    def _call(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: Request,
        timeout: float | None = None,
        reader: SnapshotReader | None = None,
    ) -> Any:
        call = Call(self._runtime, server_id, address, request, reader)
        self.calls.append(call)
        result = self.respond(call)
        if result is not None:
            call.answer(result)
        return call.wait(timeout)

    def local_addr(self) -> ServerAddress:
        return self._address

    def consumer(self) -> Queue[RPC]:
        return self._consumer

    def set_heartbeat_handler(self, handler: Callable[[RPC], None] | None) -> None:
        pass  # requests come from the test

    def append_entries_pipeline(
        self, server_id: ServerID, address: ServerAddress
    ) -> ScriptedPipeline:
        if not self.has_pipelines:
            raise PipelineNotSupportedError("scripted so")
        self.pipelines.append(ScriptedPipeline(self._runtime, server_id))
        return self.pipelines[-1]

    def install_snapshot(
        self,
        server_id: ServerID,
        address: ServerAddress,
        request: InstallSnapshotRequest,
        reader: SnapshotReader,
        timeout: float | None = None,
    ) -> Any:
        return self._call(server_id, address, request, timeout, reader)

    append_entries = _call
    request_vote = _call
    request_pre_vote = _call
    timeout_now = _call


# ---- the disk ----


def _allow(_: str) -> None:
    """Stand in for a hook that nobody asked for."""


class ScriptedStore(InmemStore):
    """Notes every write, and does before it what the test says: raise, or wait for an event."""

    def __init__(self, runtime: ManualRuntime) -> None:
        super().__init__(runtime=runtime)
        self.before_write: Callable[[str], None] = _allow
        self.writes: list[str] = []

    def _note(self, name: str) -> None:
        self.before_write(name)
        self.writes.append(name)

    def set(self, key: bytes, value: bytes) -> None:
        self._note(f"set {key.decode()}")
        super().set(key, value)

    def store_logs(self, logs: Sequence[Log]) -> None:
        self._note(f"store {logs[0].index}-{logs[-1].index}")
        super().store_logs(logs)

    def delete_range(self, first: int, last: int) -> None:
        self._note(f"delete {first}-{last}")
        super().delete_range(first, last)

    def replace_suffix(self, first: int, logs: Sequence[Log]) -> None:
        self._note(f"replace {first} by {logs[0].index}-{logs[-1].index}")
        super().replace_suffix(first, logs)


# ---- values ----


def entries(first: int, *, terms: Iterable[int], kind: LogType = LogType.COMMAND) -> list[Log]:
    """Return sealed entries from an index on, one for each term, each with data of its own."""
    return [
        Log(index, term, kind, b"%d/%d" % (index, term)).sealed()
        for index, term in enumerate(terms, first)
    ]


def configuration_entry(index: int, term: int, configuration: Configuration) -> Log:
    """Return the sealed entry of a configuration."""
    data = encode_configuration(configuration)
    return Log(index, term, LogType.CONFIGURATION, data).sealed()


def servers(*voters: ServerID, nonvoters: Iterable[ServerID] = ()) -> Configuration:
    """Return a configuration of servers at `<id>:1`."""
    return Configuration(
        [
            *(Server(name, f"{name}:1") for name in voters),
            *(Server(name, f"{name}:1", ServerSuffrage.NONVOTER) for name in nonvoters),
        ]
    )


def header(server_id: ServerID) -> RPCHeader:
    """Return the header of a server at `<id>:1`."""
    return RPCHeader(server_id, f"{server_id}:1")


# ---- a node ----


class _TestHost:
    """What futures need of their node: callbacks run at once, and waits are the test's."""

    def __init__(self, runtime: ManualRuntime) -> None:
        self.gate = runtime.gate

    def run_callback(self, callback: Callable[[], None]) -> None:
        callback()

    def check_may_wait(self) -> None:
        pass


@dataclass(slots=True)
class ScriptedNode:
    """The parts of one node, loaded from its stores as at any start; disk and FSM run as tasks.

    A blank store begins with `configuration` as entry 1 of term 1, then `log`, and has `hard_state`
    as its vote record, by default the term of the last entry. `config` overrides a configuration
    whose every timeout is a tenth of a second, and the lease half of that.
    """

    configuration: Configuration = field(default_factory=lambda: servers("n1", "n2", "n3"))
    log: Sequence[Log] = ()
    hard_state: HardState | None = None
    config: dict[str, Any] = field(default_factory=dict)
    local_id: ServerID = "n1"
    fsm: FSM = field(default_factory=RecordingFSM)
    runtime: ManualRuntime = field(default_factory=ManualRuntime)
    store: Any = None
    snapshots: Any = None
    transport: Any = None
    events: list[ObservationData] = field(default_factory=list)
    crashes: list[BaseException] = field(default_factory=list)
    core: Core = field(init=False)
    receiver: SnapshotReceiver = field(init=False)
    host: _TestHost = field(init=False)

    def __post_init__(self) -> None:
        runtime = self.runtime
        if self.store is None:
            self.store = ScriptedStore(runtime)
            self._fill_store()
        self.snapshots = self.snapshots or InmemSnapshotStore(runtime=runtime)
        self.transport = self.transport or ScriptedTransport(runtime, f"{self.local_id}:1")
        self.host = _TestHost(runtime)
        self.core = self._make_core()
        self.receiver = SnapshotReceiver(self.core)
        load_state(self.core)
        if isinstance(self.store, ScriptedStore):
            self.store.writes.clear()
        self.core.threads.on_crash = lambda _, error: self.crashes.append(error)
        self.core.threads.spawn("disk", self.core.disk.run)
        self.core.threads.spawn("fsm", self.core.fsm.run)

    # ---- what the test does ----

    def play(self, role: type[AnyRole], *steps: Step) -> AnyRole:
        """Run a role on the test's own thread over what the steps say; return it, ended."""
        inbox = self.core.inbox
        if isinstance(inbox, ScriptedInbox):
            inbox.script = deque(steps)
        played = self._enter(role)
        try:
            played.run()
        except _ScriptEnd:
            pass
        return played

    def start(self, role: type[AnyRole]) -> AnyRole:
        """Have a role run as a task, over the inbox, until it ends; return it."""
        started = self._enter(role)
        self.core.threads.spawn("main", started.run)
        self.runtime.run()
        return started

    def _enter(self, role: type[AnyRole]) -> AnyRole:
        self.core.state.set_role(role.role)
        if role.role is RaftState.LEADER:
            self.core.state.set_leader(self.local_id, self.core.header.address)
        return role(self.core, self.receiver)

    def ask(
        self, request: Request, reader: SnapshotReader | None = None, cluster_id: str | None = None
    ) -> Asked:
        """Have a request answered as a follower does."""
        asked = Asked(request, reader, cluster_id)
        Follower(self.core, self.receiver).handle(asked.rpc)
        self.runtime.run()
        return asked

    def deliver(self, request: Request) -> Asked:
        """Put a peer's request into the inbox, for a role that was started."""
        asked = Asked(request)
        self.core.inbox.deliver(asked.rpc)
        self.runtime.run()
        return asked

    def apply(self, data: bytes, kind: LogType = LogType.COMMAND) -> ApplyFuture:
        """Put a command into the inbox."""
        future = ApplyFuture(self.host)
        self.core.inbox.submit(Apply(kind, data, b"", future), Deadline(self.runtime, 0.0))
        self.runtime.run()
        return future

    def restarted(self, **changes: Any) -> ScriptedNode:
        """Return a node that starts over the same stores, with a new FSM."""
        same: dict[str, Any] = {
            "config": self.config,
            "local_id": self.local_id,
            "runtime": self.runtime,
        }
        return ScriptedNode(store=self.store, snapshots=self.snapshots, **same | changes)

    def stored(self) -> list[tuple[int, int]]:
        """Return (index, term) of everything in the store; fails on a hole."""
        first, last = self.store.first_index(), self.store.last_index()
        logs = [self.store.get_log(index) for index in range(first, last + 1) if last]
        return [(log.index, log.term) for log in logs]

    # ---- making it ----

    def _fill_store(self) -> None:
        logs = list(self.log)
        if self.configuration.servers:
            logs.insert(0, configuration_entry(1, 1, self.configuration))
        if logs:
            self.store.store_logs(logs)
        term = logs[-1].term if logs else 0
        if term or self.hard_state:
            (self.hard_state or HardState(term)).save(self.store)

    def _make_core(self) -> Core:
        runtime = self.runtime
        settings: dict[str, Any] = {
            "local_id": self.local_id,
            "heartbeat_timeout": 0.1,
            "election_timeout": 0.1,
            "leader_lease_timeout": 0.05,
        }
        config = Config(**settings | self.config)
        return assemble(
            runtime=runtime,
            config=config,
            inbox=ScriptedInbox(runtime, config.max_append_entries),
            fsm=self.fsm,
            logs=self.store,
            stable=self.store,
            snapshots=self.snapshots,
            transport=self.transport,
            emit=self.events.append,
            logger=_log,
        )
