"""What a script does to the stores of a node that is not running."""

from __future__ import annotations

from raft.config import Config, validate_config
from raft.engine.first_start import (
    check_bootstrap,
    choose_cluster_id,
    has_existing_state,
    write_first_state,
)
from raft.engine.recovery import recover
from raft.errors import CantBootstrapError, CantRecoverError
from raft.interfaces import FSM, LogStore, SnapshotStore, StableStore
from raft.runtime import THREADS
from raft.types import Configuration

__all__ = ["bootstrap_cluster", "has_existing_state", "recover_cluster"]


def bootstrap_cluster(
    config: Config,
    logs: LogStore,
    stable: StableStore,
    snapshots: SnapshotStore,
    configuration: Configuration,
    cluster_id: str | None = None,
) -> None:
    """Give blank stores their first configuration, before a node is started over them.

    Servers may be bootstrapped apart, all with the same configuration; those that are not
    bootstrapped wait to be added. `cluster_id` keeps clusters apart: as given, else random for a
    single server, else derived from the configuration, so that all agree.

    Raises:
        InvalidConfigError, InvalidConfigurationError: nothing could begin like this.
        CantBootstrapError: the stores hold something; nothing was changed.
    """
    validate_config(config)
    check_bootstrap(configuration)
    if has_existing_state(logs, stable, snapshots):
        raise CantBootstrapError("bootstrap only works on new clusters: the stores are not empty")
    chosen = choose_cluster_id(THREADS, configuration, cluster_id)
    write_first_state(logs, stable, configuration, chosen)


def recover_cluster(
    config: Config,
    fsm: FSM,
    logs: LogStore,
    stable: StableStore,
    snapshots: SnapshotStore,
    configuration: Configuration,
    cluster_id: str | None = None,
) -> None:
    """Give a stopped server a new configuration by hand, after a majority was lost for good.

    Run it with the same `configuration` on each server that is in it, while all are down; then
    start them. It restores the newest snapshot into `fsm`, applies every command of the log to it,
    committed or not, writes one new snapshot with `configuration`, and deletes the log. Term and
    vote stay. `fsm` is of no use afterwards: start the node with a fresh one.

    It is a last resort: what only the lost servers had is lost, and what was not committed becomes
    so. When the survivors' logs end differently, recover the one with the highest last term and
    index alone, and add the others with blank stores.

    The cluster gets the next `cluster_id`: as given, else derived from the old one and the
    configuration, so that survivors recovered alike agree, and servers left behind are refused.
    Recovering again before anything was appended derives from the same old one.

    After an error before the snapshot is complete the stores are as they were, but perhaps for the
    cluster id; run it again.

    Raises:
        InvalidConfigError, InvalidConfigurationError: nothing could go on like this.
        CantRecoverError: the stores hold nothing.
        SnapshotError: no snapshot can be read, or the new one cannot be written.
        LogCorruptError, LogGapError: the log is damaged, or does not join the snapshot.
    """
    validate_config(config)
    check_bootstrap(configuration)
    if not has_existing_state(logs, stable, snapshots):
        raise CantRecoverError("no initial state to recover: the stores are empty")
    recover(config, fsm, logs, stable, snapshots, configuration, cluster_id)
