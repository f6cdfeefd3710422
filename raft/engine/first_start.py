"""The first configuration of a cluster (bootstrap): what is written, and in which order."""

from __future__ import annotations

import hashlib

from raft.codec import encode_configuration
from raft.engine.core import Core
from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import (
    CantBootstrapError,
    InvalidConfigurationError,
    NotVoterError,
)
from raft.interfaces import LogStore, SnapshotStore, StableStore
from raft.runtime import Runtime
from raft.types import Configuration, Log, LogType, check_configuration

FIRST_INDEX = 1
FIRST_TERM = 1


def has_existing_state(logs: LogStore, stable: StableStore, snapshots: SnapshotStore) -> bool:
    """Tell whether these stores hold anything: a term, an entry, or a snapshot."""
    return bool(HardState.load(stable).term or logs.last_index() or snapshots.list())


def check_bootstrap(configuration: Configuration) -> None:
    """Raise `InvalidConfigurationError` if no cluster could begin like this."""
    try:
        check_configuration(configuration)
    except ValueError as exc:
        raise InvalidConfigurationError(str(exc)) from exc


def choose_cluster_id(runtime: Runtime, configuration: Configuration, given: str | None) -> str:
    """Return the id of a new cluster (departure 15).

    One voter invents it; several, bootstrapped alike but apart, must derive the same one.
    """
    if given:
        return given
    if len(configuration.servers) == 1:
        return runtime.random_bytes(16).hex()
    in_order = Configuration(sorted(configuration.servers, key=lambda server: server.id))
    return hashlib.sha256(encode_configuration(in_order)).hexdigest()[:32]


def write_first_state(
    logs: LogStore, stable: StableStore, configuration: Configuration, cluster_id: str
) -> None:
    """Write cluster id, entry 1 and term 1, durably and in this order.

    A crash in between leaves either a blank store or a whole configuration; the term that is then
    missing is made up for at start, from the term of the log's last entry.
    """
    stable.set(CLUSTER_ID_KEY, cluster_id.encode())
    data = encode_configuration(configuration)
    logs.store_log(Log(FIRST_INDEX, FIRST_TERM, LogType.CONFIGURATION, data).sealed())
    HardState(FIRST_TERM).save(stable)


def bootstrap_here(core: Core, configuration: Configuration, cluster_id: str | None) -> None:
    """Bootstrap the running node; it must be blank, and a voter of the configuration."""
    check_bootstrap(configuration)
    if not configuration.has_vote(core.local_id):
        raise NotVoterError(f"{core.local_id} is not a voter in {configuration}")
    if core.state.term or core.raft_log.last_index():
        raise CantBootstrapError("bootstrap only works on new clusters: this node has state")
    chosen = choose_cluster_id(core.runtime, configuration, cluster_id)

    def action() -> None:
        write_first_state(core.logs, core.stable, configuration, chosen)
        core.raft_log.reload()

    core.write("bootstrap", action)
    core.cluster_id = chosen
    core.hard_state = HardState(FIRST_TERM)
    core.state.set_term(FIRST_TERM)
    core.membership.append(FIRST_INDEX, configuration)
    core.publish_log()
    core.log.info("bootstrapped configuration=%s", configuration)
