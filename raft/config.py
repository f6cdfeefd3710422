"""What can be set about a node, the reference's defaults, and the check of both.

Durations are seconds. A node takes a copy when it is made; changing the object later has no effect.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from raft.errors import InvalidConfigError
from raft.metrics import MetricsSink
from raft.observer import LatestValue
from raft.types import MOST_NAME_BYTES, PROTOCOL_VERSION, ServerID

KIB = 1024
MIB = 1024 * KIB

MAX_COMMAND_BYTES = 32 * MIB
"""No command may be larger: two of them must fit into one frame of the wire (64 MiB)."""

_SHORTEST_TIMEOUT = 0.005  # the original's floor for heartbeat, election, lease and snapshots
_SHORTEST_COMMIT_TIMEOUT = 0.001
_LONGEST_DURATION = 1e9  # seconds, 31 years; some platforms cannot wait much longer at once
_LONGEST_USUAL = 60.0  # seconds; a larger number was most likely meant as milliseconds
_MOST_APPEND_ENTRIES = 1024


@dataclass(slots=True)
class Config:
    """The settings of one node; the first block is the original's, with its defaults."""

    local_id: ServerID = ""
    """Unique in the cluster and the same after every restart."""
    protocol_version: int = PROTOCOL_VERSION
    """Only 3 is spoken."""
    heartbeat_timeout: float = 1.0
    """A follower that heard nothing for this long, up to twice as long, starts an election."""
    election_timeout: float = 1.0
    """A candidate waits this long, up to twice as long, for votes; at least the one above."""
    commit_timeout: float = 0.05
    """Followers learn of a commit after this long when no entry tells them earlier."""
    max_append_entries: int = 64
    """Entries in one message, and commands that may wait for the leader's main thread."""
    shutdown_on_remove: bool = True
    """A leader that is removed or demoted shuts down; if False it becomes a follower."""
    trailing_logs: int = 10240
    """Entries kept behind a snapshot, so that slow followers need no snapshot."""
    snapshot_interval: float = 120.0
    """A snapshot is considered this often, up to half as often."""
    snapshot_threshold: int = 8192
    """Entries since the last snapshot that make a new one worth while."""
    leader_lease_timeout: float = 0.5
    """A leader without contact to a quorum for this long steps down."""
    no_snapshot_restore_on_start: bool = False
    """The FSM keeps its state itself: do not restore the newest snapshot into it at start."""
    restore_committed_logs: bool = False
    """Keep the commit index with the log, and apply what it covers before the node starts. Needs a
    log store that tracks commits, as `SQLiteStore` does; the index is that of the last write."""
    pre_vote_disabled: bool = False
    """Campaign without asking first whether the election could be won (thesis 9.6)."""
    notify_ch: LatestValue | None = None
    """Gets True when this node has become leader and False when it leads no longer: a level, as
    `Raft.leader_ch`, for which the node never waits."""
    logger: logging.Logger | None = None
    """Where the node's own messages go; None for the `raft` loggers of the library.

    No thread of the node ever waits for a handler, nor minds what one raises: see `raft.logs`.
    """
    metrics: MetricsSink | None = None
    """Where metrics go (docs/metrics.md); None measures nothing. It must not block."""
    no_legacy_telemetry: bool = False
    """Leave out the metrics that have a peer's id in their name; the same come with a label."""

    max_append_bytes: int = 1 * MIB
    """Bytes of entries in one message; a larger entry travels alone."""
    max_command_bytes: int = 8 * MIB
    """Larger commands are refused by `apply`; at most 32 MiB."""
    max_pending_bytes: int = 64 * MIB
    """Bytes of commands not answered yet, above which `apply` waits."""
    max_inflight_appends: int = 2
    """AppendEntries on the way to one peer. Over a long way a deeper window is faster: it should
    hold the commands of one round trip (docs/transports.md)."""
    recent_log_bytes: int = 16 * MIB
    """Newest entries kept in memory for sending and applying, in bytes."""
    disk_stall_timeout: float = 10.0
    """A write that takes longer costs the leader its office."""
    commit_stall_timeout: float = 10.0
    """A leader that has entries to commit, and sees no progress for this long, gives up its office:
    heartbeats may pass where entries do not. The callers' outcome is unknown."""
    shutdown_timeout: float = 10.0
    """`shutdown` gives up waiting for user code and disk after this long."""
    snapshot_send_rate: int = 0
    """Bytes a second sent to one peer that installs a snapshot; 0 for no limit."""
    fsm_halt_on: tuple[type[BaseException], ...] | None = field(default=None)
    """Exceptions of `FSM.apply` that halt the node, instead of the list at `FSM.apply`. With `()`
    every exception is the answer to its command: the way out when a command halts every node. It
    must be the same on all nodes."""


@dataclass(frozen=True, slots=True)
class ReloadableConfig:
    """The settings that `Raft.reload_config` can change while the node runs.

    All of them are taken over: begin with what `Raft.reloadable_config()` returns, and
    `dataclasses.replace` what shall change. Meanings and units are those of `Config`.
    """

    trailing_logs: int
    snapshot_interval: float
    snapshot_threshold: int
    heartbeat_timeout: float
    election_timeout: float

    @classmethod
    def of(cls, config: Config) -> ReloadableConfig:
        """Return the current values of a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def overlay(self, config: Config) -> Config:
        """Return a copy of a configuration with these values."""
        return replace(config, **{f.name: getattr(self, f.name) for f in fields(self)})


def default_config() -> Config:
    """Return a configuration with the defaults; `local_id` is still to be set."""
    return Config()


def validate_config(config: Config) -> None:
    """Raise `InvalidConfigError` naming the first field that is out of range, or no number."""
    for look in (_wrong_types, _faults):
        for is_wrong, message in look(config):
            if is_wrong:
                raise InvalidConfigError(message)


def doubts(config: Config) -> list[str]:
    """Return what is allowed and most likely not meant: milliseconds where seconds are."""
    names = ("heartbeat_timeout", "election_timeout", "leader_lease_timeout", "commit_timeout")
    return long_durations({name: getattr(config, name) for name in names})


def long_durations(durations: Mapping[str, float]) -> list[str]:
    """Return what to say of timeouts above a minute, by their names."""
    return [
        f"{name} is {seconds:g} seconds, more than a minute: durations are seconds"
        for name, seconds in durations.items()
        if seconds > _LONGEST_USUAL
    ]


def _wrong_types(c: Config) -> list[tuple[bool, str]]:
    """Return the checks of types; of 1e4 entries, say, a thread would hear much later.

    They come first: what is no number can be compared with none.
    """
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        "ServerID": (str, "a text"),
        "int": (int, "a whole number (int)"),
        "float": ((int, float), "a number"),
    }
    checks = []
    for each in fields(c):
        kind, what = kinds.get(str(each.type), (object, ""))
        value = getattr(c, each.name)
        checks.append((not isinstance(value, kind), f"{each.name} must be {what}: {value!r}"))
    return checks


def _faults(c: Config) -> list[tuple[bool, str]]:
    """Return the checks, in the original's order: (is wrong, what to do).

    A duration is asked whether it is right, not whether it is wrong: NaN is neither.
    """
    return [
        (
            c.protocol_version != PROTOCOL_VERSION,
            f"protocol_version {c.protocol_version} is not supported, only {PROTOCOL_VERSION}",
        ),
        (not c.local_id, "local_id cannot be empty: give every server an id of its own"),
        (
            not c.local_id.isprintable() or len(c.local_id.encode()) > MOST_NAME_BYTES,
            f"local_id must be printable and of {MOST_NAME_BYTES} bytes at most",
        ),
        *_too_short(c),
        (c.max_append_entries <= 0, "max_append_entries must be at least 1"),
        (
            c.max_append_entries > _MOST_APPEND_ENTRIES,
            f"max_append_entries is too large: at most {_MOST_APPEND_ENTRIES}",
        ),
        (
            not c.snapshot_interval >= _SHORTEST_TIMEOUT,
            f"snapshot_interval is too low: at least {_SHORTEST_TIMEOUT} s",
        ),
        (
            not c.leader_lease_timeout >= _SHORTEST_TIMEOUT,
            f"leader_lease_timeout is too low: at least {_SHORTEST_TIMEOUT} s",
        ),
        (
            c.leader_lease_timeout > c.heartbeat_timeout,
            f"leader_lease_timeout ({c.leader_lease_timeout} s) cannot be larger than"
            f" heartbeat_timeout ({c.heartbeat_timeout} s)",
        ),
        (
            c.election_timeout < c.heartbeat_timeout,
            f"election_timeout ({c.election_timeout} s) must be equal to or greater than"
            f" heartbeat_timeout ({c.heartbeat_timeout} s)",
        ),
        *_own_faults(c),
    ]


def _too_short(c: Config) -> list[tuple[bool, str]]:
    floors = (
        ("heartbeat_timeout", c.heartbeat_timeout, _SHORTEST_TIMEOUT),
        ("election_timeout", c.election_timeout, _SHORTEST_TIMEOUT),
        ("commit_timeout", c.commit_timeout, _SHORTEST_COMMIT_TIMEOUT),
    )
    return [
        (not value >= floor, f"{name} is too low: at least {floor} s")
        for name, value, floor in floors
    ]


def _too_long(c: Config) -> list[tuple[bool, str]]:
    durations = (
        ("heartbeat_timeout", c.heartbeat_timeout),
        ("election_timeout", c.election_timeout),
        ("commit_timeout", c.commit_timeout),
        ("snapshot_interval", c.snapshot_interval),
        ("leader_lease_timeout", c.leader_lease_timeout),
        ("disk_stall_timeout", c.disk_stall_timeout),
        ("commit_stall_timeout", c.commit_stall_timeout),
        ("shutdown_timeout", c.shutdown_timeout),
    )
    return [
        (value > _LONGEST_DURATION, f"{name} is too long: at most {_LONGEST_DURATION:.0f} s")
        for name, value in durations
    ]


def _own_faults(c: Config) -> list[tuple[bool, str]]:
    """Return the checks of the fields that the original does not have."""
    positive = (
        ("max_append_bytes", c.max_append_bytes),
        ("max_command_bytes", c.max_command_bytes),
        ("max_inflight_appends", c.max_inflight_appends),
        ("disk_stall_timeout", c.disk_stall_timeout),
        ("commit_stall_timeout", c.commit_stall_timeout),
        ("shutdown_timeout", c.shutdown_timeout),
    )
    not_negative = (
        ("trailing_logs", c.trailing_logs),
        ("snapshot_threshold", c.snapshot_threshold),
        ("recent_log_bytes", c.recent_log_bytes),
        ("snapshot_send_rate", c.snapshot_send_rate),
    )
    return [
        (
            c.metrics is not None and not isinstance(c.metrics, MetricsSink),
            "metrics is no MetricsSink: it needs set_gauge, incr_counter and add_sample",
        ),
        (
            c.notify_ch is not None and not isinstance(c.notify_ch, LatestValue),
            "notify_ch is no LatestValue: a queue could make consensus wait for its reader",
        ),
        (
            c.logger is not None and not isinstance(c.logger, logging.Logger),
            "logger is not a logging.Logger: instead of an adapter give its logger, with a filter",
        ),
        (
            not _are_exceptions(c.fsm_halt_on),
            "fsm_halt_on must be a tuple of exception types, or None for the built-in list",
        ),
        *_too_long(c),
        *((not value > 0, f"{name} must be greater than 0") for name, value in positive),
        *((value < 0, f"{name} cannot be negative") for name, value in not_negative),
        (
            c.max_command_bytes > MAX_COMMAND_BYTES,
            f"max_command_bytes is too large: at most {MAX_COMMAND_BYTES} (32 MiB)",
        ),
        (
            c.max_append_bytes > MAX_COMMAND_BYTES,
            f"max_append_bytes is too large: at most {MAX_COMMAND_BYTES} (32 MiB)",
        ),
        (
            c.max_pending_bytes < c.max_command_bytes,
            "max_pending_bytes must hold at least one command of max_command_bytes",
        ),
    ]


def _are_exceptions(kinds: object) -> bool:
    """Tell whether `isinstance` takes this, which is asked only once an FSM has raised."""
    if kinds is None:
        return True
    return isinstance(kinds, tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    )
