"""The first configuration of a cluster (bootstrap): what is written, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from raft.codec import encode_configuration
from raft.engine.core import Core
from raft.engine.state import CLUSTER_ID_KEY, HardState
from raft.errors import (
    CantBootstrapError,
    InvalidConfigurationError,
    NotVoterError,
)
from raft.interfaces import LogStore, SnapshotStore, StableStore, WithAddressCheck
from raft.runtime import Runtime
from raft.types import (
    Configuration,
    Log,
    LogType,
    ServerAddress,
    ServerID,
    check_address,
    check_configuration,
)

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
    _check_addresses(configuration, check_address)


def check_offline(configuration: Configuration, local_id: ServerID) -> None:
    """Raise `InvalidConfigurationError` if no cluster with this server could begin like this."""
    check_bootstrap(configuration)
    if configuration.server(local_id) is None:
        raise InvalidConfigurationError(
            f"{local_id}, the server of these stores, is not in {configuration}: give each server"
            " the configuration of all, and Config.local_id as it is named there"
        )


def is_begun_alike(
    held: Configuration, held_id: str | None, configuration: Configuration, cluster_id: str | None
) -> bool:
    """Tell whether a server that holds one configuration has what a bootstrap asks for.

    Another server may have been faster, and its entry be here. No id given is any id.
    """
    has_id = not cluster_id or held_id is None or held_id == cluster_id
    return has_id and set(held.servers) == set(configuration.servers)


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
    logs: LogStore,
    stable: StableStore,
    configuration: Configuration,
    cluster_id: str,
    hard_state: HardState = HardState(FIRST_TERM),  # noqa: B008 - it never changes
) -> None:
    """Write cluster id, entry 1 and term 1, durably and in this order.

    A blank server may have given a vote: that is the `hard_state` to keep. A crash in between
    leaves either a blank store or a whole configuration; the term that is then missing is made up
    for at start, from the term of the log's last entry.
    """
    stable.set(CLUSTER_ID_KEY, cluster_id.encode())
    data = encode_configuration(configuration)
    logs.store_log(Log(FIRST_INDEX, FIRST_TERM, LogType.CONFIGURATION, data).sealed())
    hard_state.save(stable)


def bootstrap_here(core: Core, configuration: Configuration, cluster_id: str | None) -> None:
    """Bootstrap the running node; it must be blank, and a voter of the configuration.

    Or hold that configuration already: then nothing is left to do.
    """
    check_bootstrap(configuration)
    if isinstance(core.transport, WithAddressCheck):
        _check_addresses(configuration, core.transport.check_address)
    if not configuration.has_vote(core.local_id):
        raise NotVoterError(f"{core.local_id} is not a voter in {configuration}")
    if is_begun_alike(core.membership.latest, core.cluster_id, configuration, cluster_id):
        return
    chosen = choose_cluster_id(core.runtime, configuration, cluster_id)
    is_blank = not core.raft_log.last_index() and core.damage.is_whole()
    if not is_blank or core.cluster_id not in (None, chosen):
        raise CantBootstrapError(
            "bootstrap only works on new clusters: this node has state, of cluster"
            f" {core.cluster_id} with {core.membership.latest}"
        )
    # One that was bootstrapped before this one may have asked for a vote already.
    hard_state = core.hard_state if core.hard_state.term else HardState(FIRST_TERM)

    def action() -> None:
        write_first_state(core.logs, core.stable, configuration, chosen, hard_state)
        core.raft_log.reload()

    core.write("bootstrap", action)
    core.cluster_id = chosen
    core.hard_state = hard_state
    core.state.set_term(hard_state.term)
    core.membership.append(FIRST_INDEX, configuration)
    core.publish_log()
    core.log.info("bootstrapped configuration=%s", configuration)


def _check_addresses(configuration: Configuration, check: Callable[[ServerAddress], None]) -> None:
    for server in configuration.servers:
        try:
            check(server.address)
        except ValueError as exc:
            raise InvalidConfigurationError(f"the address of {server.id}: {exc}") from exc
