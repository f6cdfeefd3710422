"""Starting and stopping the threads of a node; every future is answered on every path."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raft.engine.core import Core
from raft.engine.gauges import Gauges
from raft.engine.inbox import ByteBudget, TransferLeadership
from raft.engine.snapshotter import Snapshotter
from raft.errors import RaftError
from raft.futures import Future, FutureHost
from raft.interfaces import WithClose, WithDelivery, WithMetrics, WithQueueBound
from raft.logs import flush, get_logger
from raft.metrics import thread_saturation
from raft.observer import Events
from raft.runtime import Deadline, QueueEmpty, ThreadGroup, no_thread
from raft.types import RaftState
from raft.waiting import take_out

_log = get_logger(__name__)

_PUMP_PERIOD = 0.1  # seconds between looks at the stop flag while pumping a consumer queue
_LOG_GRACE = 0.5  # seconds for the last records to be written
_TRANSFER_TIMEOUTS = 3  # election timeouts; a transfer itself ends after two at most
_GRACE = 1.0  # seconds for threads whose work was taken from them to notice it
_QUEUES_IN_LEASE = 4  # a heartbeat behind entries waits for a fraction of the lease


class Lifecycle:
    """Owns the threads of one node. Any thread may ask for the shutdown.

    Order of stopping: nothing new is taken in; main ends its role; the transport is closed, which
    ends remote calls; FSM, snapshots and disk finish what somebody waits for; events come last.
    """

    def __init__(
        self,
        *,
        core: Core,
        events: Events,
        snapshotter: Snapshotter,
        budget: ByteBudget,
        host: FutureHost,
        abandon_role: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        self._core = core
        self._events = events
        self._snapshotter = snapshotter
        self._budget = budget
        self._host = host
        self._abandon_role = abandon_role
        self._on_down = on_down
        self._event_threads = ThreadGroup(core.runtime, core.threads.prefix)
        self._has_main = False
        self._leaves_transport = False  # to its maker: the node could not begin
        self._asked = core.runtime.gate()  # for the shutdown thread
        self._waiting: deque[Future[None]] = deque()  # for the end; no lock, see `raft.waiting`
        self._hands_over = False
        self._is_down = False
        self._lock = core.runtime.lock()  # guards the one below, which threads of the node set
        self.failure: BaseException | None = None
        core.threads.on_crash = self._event_threads.on_crash = self._crashed
        core.request_shutdown = self.begin_shutdown

    def start(self, run_main: Callable[[], None]) -> None:
        """Start all threads; the node takes requests from here on.

        Where one cannot be started, none is left running: the stores may be given to another node.
        The transport stays open then. The thread that ends all others comes first: there may be
        none left for it later, and a signal handler can only ask one that is there.
        """
        try:
            self._core.runtime.spawn(f"{self._core.threads.prefix}-shutdown", self._end)
        except RuntimeError as exc:
            raise no_thread("shutdown", exc) from exc
        try:
            self._start_threads(run_main)
        except BaseException:
            self._leaves_transport = True
            if not self._has_main:
                self._core.main_ended.set()  # nobody needs to wait for what never began
            self.shutdown().result()
            raise

    def _start_threads(self, run_main: Callable[[], None]) -> None:
        core = self._core
        if isinstance(core.transport, WithQueueBound):
            core.transport.bound_queues(core.config.leader_lease_timeout / _QUEUES_IN_LEASE)
        self._event_threads.spawn("events", self._run_events)
        core.threads.spawn("disk", core.disk.run)
        core.threads.spawn("fsm", lambda: core.fsm.run(thread_saturation(core.metrics, "fsm")))
        core.threads.spawn("snapshots", self._snapshotter.run)
        core.saturation = thread_saturation(core.metrics, "main")
        core.threads.spawn("main", run_main)
        self._has_main = True
        if core.metrics is not None:
            core.threads.spawn("metrics", Gauges(core, core.metrics).run)
            if isinstance(core.transport, WithMetrics):
                core.transport.measure_with(core.metrics)
        if isinstance(core.transport, WithDelivery):
            core.transport.deliver_to(core.inbox.deliver)
        else:
            core.threads.spawn("rpc", self._pump)

    def _run_events(self) -> None:
        """Be the events thread; what escapes a callback halts the node, and the next one runs."""
        while True:
            try:
                return self._events.run()
            except BaseException as error:  # noqa: BLE001 - user code: others still wait
                self._crashed("events", error)

    def _pump(self) -> None:
        """Move requests from a transport's queue into the inbox."""
        consumer = self._core.transport.consumer()
        while not self._core.inbox.closed:
            try:
                rpc = consumer.get(timeout=_PUMP_PERIOD)
            except QueueEmpty:
                continue
            self._core.inbox.deliver(rpc)

    def _crashed(self, name: str, error: BaseException) -> None:
        """A thread died: say so once, keep the reason, and stop the node in good order."""
        with self._lock:
            first = self.failure is None
            if first:
                self.failure = error
        try:
            self.begin_shutdown()
        finally:
            if first:
                _log.critical(
                    "node failed node=%s thread=%s", self._core.local_id, name, exc_info=error
                )

    # ---- stopping ----

    def shutdown(self, *, transfer: bool = False) -> Future[None]:
        """Stop the node; the future ends when all threads have, or `shutdown_timeout` is over.

        With `transfer` a leader hands over first.
        """
        future: Future[None] = Future(self._host)
        self._waiting.append(future)
        if self._is_down:
            self._answer()
        elif transfer:
            self._hands_over = True
            self._asked.open()
        else:
            self.begin_shutdown()
        return future

    def begin_shutdown(self) -> None:
        """Take nothing more in, and have the rest done by a thread of its own; never blocks."""
        self._core.inbox.close()
        self._budget.close()
        self._asked.open()

    def _answer(self) -> None:
        for future in take_out(self._waiting):
            future.respond(None)

    def _end(self) -> None:
        """Be the shutdown thread."""
        self._asked.wait()
        if self._hands_over and self._core.state.role is RaftState.LEADER:
            self._hand_over()
        self.begin_shutdown()
        self._close()

    def _hand_over(self) -> None:
        """Let another server lead, so that nobody has to wait for an election; within a bound."""
        core, future = self._core, Future[None](self._host)
        if not core.state.published().configuration.has_other_voter(core.local_id):
            return
        timeout = core.config.election_timeout
        try:
            deadline = Deadline(core.runtime, timeout)
            core.inbox.submit(TransferLeadership("", "", future), deadline)
            future.result(_TRANSFER_TIMEOUTS * timeout)
        except (RaftError, TimeoutError) as error:  # it stops all the same
            core.log.info("shutting down without a transfer reason=%s", error)

    def _close(self) -> None:
        stuck: list[str] = []
        failure: BaseException | None = None
        try:
            stuck = self._stop_threads()
        except BaseException as error:  # noqa: BLE001 - a thread's root: report, answer all the same
            failure = error
        self._events.close()
        self._event_threads.join_all(Deadline(self._core.runtime, _GRACE))
        if failure is None and f"{self._core.threads.prefix}-disk" not in stuck:
            self._on_down()  # nobody writes to the stores any more
        if failure is not None:
            _log.critical("shutdown failed node=%s", self._core.local_id, exc_info=failure)
        if stuck:
            names = ", ".join(sorted(stuck))
            _log.error("threads do not end node=%s threads=%s", self._core.local_id, names)
        flush(_LOG_GRACE)  # a program often ends with this future
        self._is_down = True
        self._answer()

    def _stop_threads(self) -> list[str]:
        """Stop them in order; return the names of those that do not end."""
        core = self._core
        deadline = Deadline(core.runtime, core.config.shutdown_timeout)
        core.main_ended.wait(deadline.remaining())
        core.become(RaftState.SHUTDOWN)
        self._close_transport()
        core.fsm.stop()
        self._snapshotter.stop()
        core.disk.stop()
        stuck = core.threads.join_all(deadline)
        # Whatever is left is answered now, even if user code or a disk call never returns.
        core.fsm.abandon()
        self._snapshotter.abandon()
        self._abandon_role()
        core.refuse_leftovers()
        return stuck and core.threads.join_all(Deadline(core.runtime, _GRACE))

    def _close_transport(self) -> None:
        transport = self._core.transport
        try:
            if isinstance(transport, WithClose) and not self._leaves_transport:
                transport.close()
        except Exception:  # noqa: BLE001 - foreign code: the rest of the node ends all the same
            _log.exception("closing the transport failed node=%s", self._core.local_id)
