"""All seeded bugs, in one list."""

from __future__ import annotations

from tests.simulation.bugs import clients, commits, elections, logs, members, snapshots

BUGS = (
    *elections.BUGS,
    *logs.BUGS,
    *commits.BUGS,
    *snapshots.BUGS,
    *members.BUGS,
    *clients.BUGS,
)
