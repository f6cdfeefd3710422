"""What may be done to a cluster without breaking more than the library promises to survive.

A spoiled log, an emptied disk (whether its server is back or not), or a user restore that never
took hold leave a server that must not vote until it is healed or rebuilt. As long as those that are
whole make a majority of every configuration that may be in force, nothing acknowledged is lost and
the cluster goes on.
"""

from __future__ import annotations

from raft.codec import decode_configuration, loads
from raft.engine.incarnations import NOTES_KEY
from raft.testing.simulation.cluster import SimCluster, SimServer
from raft.testing.simulation.disk import Content
from raft.types import EMPTY_CONFIGURATION, NO_INDEX, Configuration, LogType, ServerID


def is_whole(server: SimServer) -> bool:
    """Tell whether a server has all that it ever acknowledged, and may say so."""
    content = server.disk.content
    return (
        not server.lost
        and not server.disk.was_replaced
        and not server.disk.is_damaged()
        and not server.disk.lacks_snapshot()
        and all(log.is_intact() for log in content.logs.values())
        and not server.disk.has_unsettled()
    )


def are_all_whole(cluster: SimCluster) -> bool:
    """Tell whether there is nothing to heal or rebuild."""
    return all(is_whole(server) for server in cluster.servers.values())


def may_harm(cluster: SimCluster, victim: SimServer) -> bool:
    """Tell whether one more server may be harmed: a majority of the others stays whole."""
    whole = [s.id for s in cluster.servers.values() if s is not victim and is_whole(s)]
    return all(
        sum(voter.id in whole for voter in configuration.voters()) * 2 > len(configuration.voters())
        for configuration in configurations(cluster)
    )


def may_forget(cluster: SimCluster, victim: SimServer) -> bool:
    """Tell whether everybody who may count on a server's vote knows by which directory it counts.

    One that has neither counted on it nor heard of anybody who has takes an emptied directory for
    that of a new cluster: the limit of departure 21.
    """
    return all(
        server is victim
        or not _latest_on_disk(server.disk.content)[1].has_vote(victim.id)
        or victim.id in _noted_on_disk(server.disk.content)
        for server in cluster.servers.values()
    )


def _noted_on_disk(content: Content) -> set[ServerID]:
    notes = content.values.get(NOTES_KEY)
    return set() if notes is None else {note[0] for note in loads(notes)}


def configurations(cluster: SimCluster) -> list[Configuration]:
    """Return every configuration that may be in force, or come into force."""
    committed_index = NO_INDEX
    found: list[tuple[int, Configuration]] = []
    for server in cluster.servers.values():
        if server.lost:
            continue
        if server.node is not None:
            members = server.node._core.membership  # nobody is inside between switch points
            committed_index = max(committed_index, members.committed_index)
            found.append((members.latest_index, members.latest))
            found.append((members.committed_index, members.committed))
        found.append(_latest_on_disk(server.disk.content))
    # One that is older than a committed one is history.
    return [configuration for index, configuration in found if index >= max(committed_index, 1)]


def _latest_on_disk(content: Content) -> tuple[int, Configuration]:
    for log in sorted(content.logs.values(), key=lambda log: log.index, reverse=True):
        if log.type is LogType.CONFIGURATION and log.is_intact():
            return log.index, decode_configuration(log.data)
    metas = [meta for meta, _ in content.snapshots.values()]
    newest = max(metas, key=lambda meta: (meta.term, meta.index), default=None)
    if newest is None:
        return NO_INDEX, EMPTY_CONFIGURATION
    return newest.configuration_index, newest.configuration
