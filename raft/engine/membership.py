"""Who belongs to the cluster: one change at a time (§4.1), in force as soon as it is appended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from raft.codec import decode_configuration
from raft.engine.inbox import ChangeKind
from raft.engine.raft_log import RaftLog
from raft.errors import (
    ConfigurationChangedError,
    InvalidConfigurationError,
    NoSuchServerError,
    UnsupportedProtocolError,
)
from raft.types import (
    EMPTY_CONFIGURATION,
    NO_INDEX,
    Configuration,
    Log,
    LogType,
    Server,
    ServerAddress,
    ServerID,
    ServerSuffrage,
    check_address,
    check_configuration,
)

VOTER = ServerSuffrage.VOTER
NONVOTER = ServerSuffrage.NONVOTER
STAGING = ServerSuffrage.STAGING

_SCAN_BYTES = 4 * 1024 * 1024  # read at once when the log is scanned for configurations
_SCAN_COUNT = 4096


def configuration_of(log: Log) -> Configuration | None:
    """Return the configuration that an entry holds, None for any other entry.

    Raises `UnsupportedProtocolError` for the lists of addresses that protocol versions below 3
    wrote instead: they name no ids.
    """
    if log.type in (LogType.ADD_PEER_DEPRECATED, LogType.REMOVE_PEER_DEPRECATED):
        raise UnsupportedProtocolError(
            f"entry {log.index} lists peers as protocol versions below 3 did. Have the cluster it"
            " comes from speak version 3, and take a snapshot there: it replaces such entries"
        )
    return decode_configuration(log.data) if log.type is LogType.CONFIGURATION else None


def configurations_in(log: RaftLog, first: int) -> Iterator[tuple[Log, Configuration]]:
    """Yield the entries on disk that hold configurations, from an index on; checks every entry."""
    first = max(first, log.boundary().index + 1)
    while first <= log.durable_index():
        for entry in log.entries(first, _SCAN_COUNT, _SCAN_BYTES):
            configuration = configuration_of(entry)
            if configuration is not None:
                yield entry, configuration
            first = entry.index + 1


def next_configuration(
    current: Configuration,
    current_index: int,
    kind: ChangeKind,
    server_id: ServerID,
    address: ServerAddress = "",
    prev_index: int = NO_INDEX,
) -> Configuration:
    """Return the configuration after one change; a change without effect returns an equal one.

    Raises:
        ConfigurationChangedError: `prev_index` is given and not the current one.
        NoSuchServerError: nobody is there to be removed or demoted.
        InvalidConfigurationError: the result could not work, as without any voter.
    """
    if prev_index > NO_INDEX and prev_index != current_index:
        raise ConfigurationChangedError(
            f"configuration changed since {prev_index} (latest is {current_index}):"
            " read it again and decide anew"
        )
    if kind in (ChangeKind.REMOVE_SERVER, ChangeKind.DEMOTE_VOTER):
        _check_known(current, server_id)
    changed = Configuration(_changed_servers(current, kind, server_id, address))
    try:
        check_configuration(changed)
        if kind in (ChangeKind.ADD_VOTER, ChangeKind.ADD_NONVOTER):
            check_address(address)  # of the others it is too late to complain
    except ValueError as exc:
        raise InvalidConfigurationError(str(exc)) from exc
    return changed


def _check_known(current: Configuration, server_id: ServerID) -> None:
    if current.server(server_id) is None:
        ids = ", ".join(server.id for server in current.servers)
        raise NoSuchServerError(f"there is no server {server_id!r}: the members are {ids}")


def _changed_servers(
    current: Configuration, kind: ChangeKind, server_id: ServerID, address: ServerAddress
) -> list[Server]:
    servers = []
    found = False
    for server in current.servers:
        if server.id != server_id:
            servers.append(server)
            continue
        found = True
        if kind is not ChangeKind.REMOVE_SERVER:
            servers.append(_changed_server(server, kind, address))
    if not found and kind is ChangeKind.ADD_VOTER:
        servers.append(Server(server_id, address, VOTER))
    if not found and kind is ChangeKind.ADD_NONVOTER:
        servers.append(Server(server_id, address, NONVOTER))
    return servers


def _changed_server(server: Server, kind: ChangeKind, address: ServerAddress) -> Server:
    if kind is ChangeKind.ADD_VOTER:
        return Server(server.id, address, VOTER)
    if kind is ChangeKind.ADD_NONVOTER:
        return replace(server, address=address)  # a voter stays one: demoting is another change
    if kind is ChangeKind.DEMOTE_VOTER:
        return replace(server, suffrage=NONVOTER)
    if server.suffrage is STAGING:  # PROMOTE
        return replace(server, suffrage=VOTER)
    return server


class Membership:
    """The committed and the latest configuration. Owned by the main thread.

    Invariants: `committed_index <= latest_index`, and at most one configuration is uncommitted.
    """

    def __init__(self) -> None:
        self.committed = EMPTY_CONFIGURATION
        self.committed_index = NO_INDEX
        self.latest = EMPTY_CONFIGURATION
        self.latest_index = NO_INDEX
        self._added: dict[ServerID, int] = {}  # which configuration brought a member

    def added_at(self, server_id: ServerID) -> int:
        """Return the index of the configuration that added a member; 0 if that is compacted."""
        return self._added.get(server_id, NO_INDEX)

    def _take(self, index: int, configuration: Configuration) -> None:
        for server in configuration.servers:
            if self.latest.server(server.id) is None:
                self._added[server.id] = index
        self.latest, self.latest_index = configuration, index

    def is_stable(self) -> bool:
        """Tell whether the latest configuration is committed."""
        return self.latest_index == self.committed_index

    def may_lead(self, server_id: ServerID) -> bool:
        """Tell whether a server may campaign: as long as its removal is not committed, too.

        It may be the only one left that has the entry and can bring it about (thesis 4.2.2).
        """
        return self.latest.has_vote(server_id) or self.committed.has_vote(server_id)

    def append(self, index: int, configuration: Configuration) -> None:
        """Take over a configuration just stored; the one before it must have been committed.

        A leader writes the next one only after the one before is committed.
        """
        self.committed, self.committed_index = self.latest, self.latest_index
        self._take(index, configuration)

    def append_own(self, index: int, configuration: Configuration) -> None:
        """Take over a configuration that this leader appended."""
        self._take(index, configuration)

    def commit(self, commit_index: int) -> bool:
        """Note how far the log is committed; True when the latest configuration became so."""
        if self.is_stable() or commit_index < self.latest_index:
            return False
        self.committed, self.committed_index = self.latest, self.latest_index
        return True

    def truncate(self, first: int) -> None:
        """Forget configurations of entries from `first` on; back to the committed one."""
        if first <= self.latest_index:
            self.latest, self.latest_index = self.committed, self.committed_index

    def restore(self, index: int, configuration: Configuration) -> None:
        """Start from a snapshot's configuration; a later one in the log stays the latest."""
        self.committed, self.committed_index = configuration, index
        if self.latest_index <= index:
            self.latest, self.latest_index = configuration, index

    def reset(self, index: int, configuration: Configuration) -> None:
        """Know nothing but a snapshot's configuration: the log was dropped."""
        self._added.clear()
        self.committed, self.committed_index = configuration, index
        self.latest, self.latest_index = configuration, index
