"""Putting the parts of one node together: for `raft.node`, and for tests that bring other parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from raft.config import Config
from raft.engine.core import Core, NodeLogger
from raft.engine.damage import Damage, note_replaced
from raft.engine.disk import Disk
from raft.engine.elections import Elections
from raft.engine.fsm_faults import note_halt
from raft.engine.fsm_runner import FsmRunner
from raft.engine.inbox import Inbox
from raft.engine.incarnations import Incarnations, load_incarnation
from raft.engine.membership import Membership
from raft.engine.raft_log import RaftLog
from raft.engine.settling import Unsettled
from raft.engine.state import NodeState
from raft.engine.state_machine import StateMachine
from raft.engine.told import Told
from raft.errors import DeadlockError
from raft.interfaces import FSM, LogStore, SnapshotStore, StableStore, Transport
from raft.messages import RPCHeader
from raft.metrics import Metrics
from raft.observer import Events, LatestValue, ObservationData
from raft.runtime import ForkGuard, Runtime, ThreadGroup
from raft.types import ServerID


class NodeHost:
    """What futures need of their node."""

    def __init__(self, runtime: Runtime, events: Events, guard: ForkGuard) -> None:
        self.gate = runtime.gate
        self._guard = guard
        self.run_callback = events.run_callback
        self.is_fsm_code: Callable[[], bool] = lambda: False

    def check_may_wait(self) -> None:
        """Raise `DeadlockError` or `ForkedProcessError` where waiting could never end."""
        self._guard.check()
        if self.is_fsm_code():
            raise DeadlockError(
                "code of the state machine (apply, snapshot, restore, persist, release) must not"
                " wait for its own node: the thread that runs it does the work"
            )


def make_metrics(config: Config, runtime: Runtime) -> Metrics | None:
    """Return what the node emits through; None, and nothing is measured, without a sink."""
    if config.metrics is None:
        return None
    return Metrics(config.metrics, runtime, legacy=not config.no_legacy_telemetry)


def make_header(
    local_id: ServerID, transport: Transport, stable: StableStore, runtime: Runtime
) -> RPCHeader:
    """Return what every message of this node begins with."""
    incarnation = load_incarnation(stable, runtime)
    return RPCHeader(local_id, transport.local_addr(), incarnation=incarnation)


def assemble(
    *,
    runtime: Runtime,
    config: Config,
    inbox: Inbox,
    fsm: FSM,
    logs: LogStore,
    stable: StableStore,
    snapshots: SnapshotStore,
    transport: Transport,
    emit: Callable[[ObservationData], None],
    logger: logging.Logger,
) -> Core:
    """Return the parts of a node, wired up and blank: `load_state` is next, then the threads."""
    metrics = make_metrics(config, runtime)
    state = NodeState(runtime)
    disk = Disk(runtime, [logs, stable], config.disk_stall_timeout)
    log = NodeLogger(logger, config.local_id, state)
    membership = Membership()
    raft_log = RaftLog(runtime, logs, config.recent_log_bytes, partial(note_replaced, stable))
    return Core(
        runtime=runtime,
        config=config,
        log=log,
        threads=ThreadGroup(runtime, f"raft-{config.local_id}"),
        inbox=inbox,
        state=state,
        disk=disk,
        logs=logs,
        raft_log=raft_log,
        stable=stable,
        snapshots=snapshots,
        transport=transport,
        fsm=FsmRunner(
            runtime=runtime,
            config=config,
            machine=StateMachine(fsm, snapshots, config.fsm_halt_on, metrics),
            log=raft_log,
            snapshots=snapshots,
            state=state,
            post=inbox.post,
            on_halted=partial(note_halt, stable, partial(disk.submit, "fsm halt")),
            emit=emit,
        ),
        leader_ch=LatestValue(runtime),
        emit=emit,
        header=make_header(config.local_id, transport, stable, runtime),
        membership=membership,
        main_ended=runtime.event(),
        unsettled=Unsettled(disk, snapshots),
        metrics=metrics,
        elections=Elections(runtime, log),
        damage=Damage(disk, logs, stable, raft_log),
        incarnations=Incarnations(
            config.local_id, stable, disk, runtime, membership, emit, log, metrics
        ),
        told=Told(stable, raft_log),
    )
