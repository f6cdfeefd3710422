"""What a script does to the stores of a node that is not running."""

from __future__ import annotations

from raft.config import Config, validate_config
from raft.engine.first_start import (
    check_bootstrap,
    choose_cluster_id,
    has_existing_state,
    write_first_state,
)
from raft.errors import CantBootstrapError
from raft.interfaces import LogStore, SnapshotStore, StableStore
from raft.runtime import THREADS
from raft.types import Configuration

__all__ = ["bootstrap_cluster", "has_existing_state"]


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
