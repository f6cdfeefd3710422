"""What a script does to the stores of a node that is not running, and the files it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raft.config import Config, validate_config
from raft.engine.claims import Claim
from raft.engine.first_start import (
    check_offline,
    choose_cluster_id,
    has_existing_state,
    is_begun_alike,
    write_first_state,
)
from raft.engine.fsm_check import check_fsm
from raft.engine.membership import configurations_in
from raft.engine.raft_log import RaftLog
from raft.engine.recovery import recover
from raft.engine.start_up import usable_snapshots
from raft.engine.state import load_cluster_id
from raft.errors import CantBootstrapError, CantRecoverError, InvalidConfigurationError
from raft.interfaces import FSM, LogStore, SnapshotStore, StableStore
from raft.runtime import THREADS
from raft.types import (
    EMPTY_CONFIGURATION,
    Configuration,
    EntryID,
    Server,
    ServerSuffrage,
    check_cluster_id,
    check_configuration,
)

__all__ = [
    "bootstrap_cluster",
    "get_configuration",
    "has_existing_state",
    "read_config_json",
    "read_peers_json",
    "recover_cluster",
]


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
    single server, else derived from the configuration, so that all agree. Stores that hold this
    very configuration, of this `cluster_id` if one is given, stay as they are.

    Raises:
        InvalidConfigError, InvalidConfigurationError: nothing could begin like this; an address
            that nobody could dial is in it, say, or `config.local_id` is not.
        TypeError, ValueError: nor with this `cluster_id`.
        CantBootstrapError: the stores hold something else; nothing was changed.
        StoreLockedError: a node of this process uses a store; nothing was changed.
    """
    validate_config(config)
    check_offline(configuration, config.local_id)
    check_cluster_id(cluster_id)
    claim = Claim(f"{config.local_id} (bootstrap_cluster)", logs, stable)
    try:
        if has_existing_state(logs, stable, snapshots):
            held = _read_configuration(logs, snapshots)
            held_id = load_cluster_id(stable)
            if is_begun_alike(held, held_id, configuration, cluster_id):
                return
            raise CantBootstrapError(
                f"bootstrap only works on new clusters: the stores are not empty, they hold {held}"
                f" of cluster {held_id}"
            )
        chosen = choose_cluster_id(THREADS, configuration, cluster_id)
        write_first_state(logs, stable, configuration, chosen)
    finally:
        claim.release()


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
    so. Servers left behind must not start over their old stores again: a majority of them goes on
    as the old cluster. When the survivors' logs end differently, recover the one with the highest
    last term and index alone, and add the others with blank stores.

    The cluster gets the next `cluster_id`: as given, else derived from the old one and the
    configuration, so that survivors recovered alike agree, and servers left behind are refused.
    Recovering again before anything was appended derives from the same old one.

    After an error before the snapshot is complete the stores are as they were, but perhaps for the
    cluster id; run it again.

    Raises:
        InvalidConfigError, InvalidConfigurationError: nothing could go on like this.
        TypeError, ValueError: nor with this `cluster_id`, or `fsm` is not a state machine.
        FSMFailedError: the FSM halted at a command; nothing was changed.
        StoreLockedError: a node of this process uses a store; nothing was changed.
        CantRecoverError: the stores hold nothing.
        SnapshotError: no snapshot can be read, or the new one cannot be written.
        LogCorruptError, LogGapError: the log is damaged, or does not join the snapshot.
    """
    validate_config(config)
    check_fsm(fsm)
    check_offline(configuration, config.local_id)
    check_cluster_id(cluster_id)
    claim = Claim(f"{config.local_id} (recover_cluster)", logs, stable)
    try:
        if not has_existing_state(logs, stable, snapshots):
            raise CantRecoverError("no initial state to recover: the stores are empty")
        recover(config, fsm, logs, stable, snapshots, configuration, cluster_id)
    finally:
        claim.release()


def get_configuration(
    config: Config,
    fsm: FSM,
    logs: LogStore,
    stable: StableStore,
    snapshots: SnapshotStore,
) -> Configuration:
    """Return the latest configuration that a stopped node's stores hold, committed or not.

    That of blank stores is empty. Only reads, and reads nothing of `fsm` and `stable`, which are
    there for the original's sake; `config` stays as it is.

    Raises:
        InvalidConfigError: a field of `config` is out of range.
        LogCorruptError, LogGapError: the log is damaged, or does not join the newest snapshot.
        UnsupportedProtocolError: the log lists its peers as protocol versions below 3 did.
    """
    validate_config(config)
    return _read_configuration(logs, snapshots)


def _read_configuration(logs: LogStore, snapshots: SnapshotStore) -> Configuration:
    log = RaftLog(THREADS, logs, memory_bytes=0)
    covered = EMPTY_CONFIGURATION
    for meta in usable_snapshots(snapshots.list(), logs)[:1]:
        log.set_boundary(EntryID(meta.term, meta.index))
        covered = meta.configuration
    log.reload()
    if log.must_drop():
        return covered
    behind = [found for _, found in configurations_in(log, log.boundary().index + 1)]
    return behind[-1] if behind else covered


# ---- files that name the servers ----

_FIELDS = {"id": (str, "text"), "address": (str, "text"), "non_voter": (bool, "boolean")}


def read_peers_json(path: str | os.PathLike[str]) -> Configuration:
    """Read a list of addresses, `["10.0.0.1:7000", ...]`: voters, their addresses as their ids.

    Raises:
        OSError: there is no such file, or it cannot be read.
        InvalidConfigurationError: it is no such list, or no cluster could work like this.
    """
    return _read_servers(path, _read_peer)


def read_config_json(path: str | os.PathLike[str]) -> Configuration:
    """Read a list of servers, `[{"id": "n1", "address": "10.0.0.1:7000", "non_voter": true}, ...]`.

    `non_voter` may be left out. Raises as `read_peers_json`.
    """
    return _read_servers(path, _read_server)


def _read_servers(path: str | os.PathLike[str], read: Callable[[object], Server]) -> Configuration:
    try:
        value = json.loads(Path(path).read_bytes())
        if not isinstance(value, list | None):
            raise ValueError(f"not a list: {_shown(value)}")
        configuration = Configuration([read(item) for item in value or []])
        check_configuration(configuration)
    except (ValueError, RecursionError) as exc:
        raise InvalidConfigurationError(f"{os.fspath(path)}: {exc}") from exc
    return configuration


def _read_peer(value: object) -> Server:
    if not isinstance(value, str):
        raise ValueError(f"an address is a text, not {_shown(value)}")
    return Server(value, value)


def _read_server(value: object) -> Server:
    if not isinstance(value, dict):
        raise ValueError(f"a server is an object with an id and an address, not {_shown(value)}")
    for name, field in value.items():
        if name not in _FIELDS:  # a misspelt "non_voter" would make a voter of it
            raise ValueError(f"unknown field {_shown(name)}, known are {', '.join(_FIELDS)}")
        kind, kind_name = _FIELDS[name]
        if not isinstance(field, kind):
            raise ValueError(f"{name} is no {kind_name}: {_shown(field)}")
    for name in ("id", "address"):
        if name not in value:
            raise ValueError(f"a server without {name}: {_shown(value)}")
    suffrage = ServerSuffrage.NONVOTER if value.get("non_voter") else ServerSuffrage.VOTER
    return Server(value["id"], value["address"], suffrage)


def _shown(value: Any) -> str:
    """Return the beginning of a value as JSON."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
