import math
import queue

import pytest

from raft.config import MIB, Config, default_config, doubts, validate_config
from raft.errors import InvalidConfigError


def test_the_defaults_need_an_id_and_nothing_else():
    config = default_config()

    with pytest.raises(InvalidConfigError, match="local_id"):
        validate_config(config)

    config.local_id = "n1"
    validate_config(config)


def test_each_default_configuration_is_an_object_of_its_own():
    first = default_config()

    first.trailing_logs = 1

    assert default_config().trailing_logs == 10240


def test_the_defaults_are_the_originals():
    c = default_config()

    assert (c.heartbeat_timeout, c.election_timeout, c.leader_lease_timeout) == (1.0, 1.0, 0.5)
    assert (c.commit_timeout, c.max_append_entries, c.trailing_logs) == (0.05, 64, 10240)
    assert (c.snapshot_interval, c.snapshot_threshold) == (120.0, 8192)
    assert (c.shutdown_on_remove, c.pre_vote_disabled) == (True, False)


FAULTS = [
    ({"protocol_version": 2}, "protocol_version 2"),
    ({"protocol_version": 4}, "protocol_version 4"),
    ({"local_id": ""}, "local_id"),
    ({"heartbeat_timeout": 0.004}, "heartbeat_timeout is too low"),
    ({"election_timeout": 0.004}, "election_timeout is too low"),
    ({"commit_timeout": 0.0009}, "commit_timeout is too low"),
    ({"max_append_entries": 0}, "max_append_entries must be"),
    ({"max_append_entries": 1025}, "max_append_entries is too large"),
    ({"snapshot_interval": 0.004}, "snapshot_interval is too low"),
    ({"leader_lease_timeout": 0.004}, "leader_lease_timeout is too low"),
    ({"leader_lease_timeout": 1.1}, "leader_lease_timeout .* larger than"),
    ({"heartbeat_timeout": 2.0}, "election_timeout .* equal to or greater"),
    ({"max_append_bytes": 0}, "max_append_bytes"),
    ({"max_command_bytes": 0}, "max_command_bytes"),
    ({"max_inflight_appends": 0}, "max_inflight_appends"),
    ({"disk_stall_timeout": 0.0}, "disk_stall_timeout"),
    ({"shutdown_timeout": 0.0}, "shutdown_timeout"),
    ({"trailing_logs": -1}, "trailing_logs"),
    ({"snapshot_threshold": -1}, "snapshot_threshold"),
    ({"recent_log_bytes": -1}, "recent_log_bytes"),
    ({"snapshot_send_rate": -1}, "snapshot_send_rate"),
    ({"max_command_bytes": 32 * MIB + 1}, "max_command_bytes is too large"),
    ({"max_append_bytes": 32 * MIB + 1}, "max_append_bytes is too large"),
    ({"max_pending_bytes": 8 * MIB - 1}, "max_pending_bytes"),
    ({"snapshot_interval": math.inf}, "snapshot_interval is too long"),
    ({"election_timeout": 1e10}, "election_timeout is too long"),
    ({"commit_timeout": math.inf}, "commit_timeout is too long"),
    ({"shutdown_timeout": math.inf}, "shutdown_timeout is too long"),
    ({"disk_stall_timeout": math.inf}, "disk_stall_timeout is too long"),
    ({"notify_ch": queue.Queue(1)}, "notify_ch is no LatestValue"),
    ({"local_id": 1}, "local_id must be a text: 1"),
    ({"trailing_logs": 1e4}, "trailing_logs must be a whole number"),
    ({"max_append_entries": 64.0}, "max_append_entries must be a whole number"),
    ({"heartbeat_timeout": "1"}, "heartbeat_timeout must be a number: '1'"),
    ({"snapshot_interval": None}, "snapshot_interval must be a number: None"),
    ({"fsm_halt_on": [OSError]}, "fsm_halt_on must be a tuple of exception types"),
    ({"fsm_halt_on": OSError}, "fsm_halt_on must be a tuple of exception types"),
    ({"fsm_halt_on": ("OSError",)}, "fsm_halt_on must be a tuple of exception types"),
]


@pytest.mark.parametrize(
    "timer",
    [
        "heartbeat_timeout",
        "election_timeout",
        "commit_timeout",
        "snapshot_interval",
        "leader_lease_timeout",
    ],
)
def test_a_timer_of_0_is_refused(timer):
    """UTL-03: in the original it never fires; here there is none that could be 0."""
    with pytest.raises(InvalidConfigError, match=f"{timer} is too low"):
        validate_config(Config(local_id="n1", **{timer: 0.0}))


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_each_fault_is_named(change, message):
    with pytest.raises(InvalidConfigError, match=message):
        validate_config(Config(**{"local_id": "n1"} | change))


@pytest.mark.parametrize(
    "change",
    [
        {"heartbeat_timeout": 0.005, "leader_lease_timeout": 0.005},
        {"commit_timeout": 0.001},
        {"max_append_entries": 1},
        {"max_append_entries": 1024},
        {"leader_lease_timeout": 1.0},
        {"snapshot_interval": 0.005},
        {"trailing_logs": 0, "snapshot_threshold": 0, "recent_log_bytes": 0},
        {"max_command_bytes": 32 * MIB},
        {"max_append_bytes": 32 * MIB},
        {"snapshot_interval": 1e9, "shutdown_timeout": 1e9},
        {"max_command_bytes": MIB, "max_pending_bytes": MIB},
        {"heartbeat_timeout": 1, "snapshot_interval": 60},
        {"fsm_halt_on": ()},
        {"fsm_halt_on": (OSError, KeyboardInterrupt)},
    ],
)
def test_the_bounds_themselves_are_allowed(change):
    validate_config(Config(**{"local_id": "n1"} | change))


def test_the_first_fault_in_the_originals_order_is_named():
    broken = {
        "protocol_version": 1,
        "local_id": "",
        "heartbeat_timeout": 0.0,
        "commit_timeout": 0.0,
        "max_append_entries": 0,
        "snapshot_interval": 0.0,
        "leader_lease_timeout": 0.0,
    }
    cures = {
        "protocol_version": 3,
        "local_id": "n1",
        "heartbeat_timeout": 2.0,
        "commit_timeout": 0.05,
        "max_append_entries": 64,
        "snapshot_interval": 120.0,
        "leader_lease_timeout": 3.0,
    }
    named = []

    for field, cure in cures.items():
        with pytest.raises(InvalidConfigError) as caught:
            validate_config(Config(**broken))
        named.append(str(caught.value).split()[0])
        broken[field] = cure

    assert named == list(cures)
    with pytest.raises(InvalidConfigError, match=r"^leader_lease_timeout \(3"):
        validate_config(Config(**broken))
    with pytest.raises(InvalidConfigError, match=r"^election_timeout"):
        validate_config(Config(**broken | {"leader_lease_timeout": 1.0}))


def test_a_fault_is_a_value_error_too():
    with pytest.raises(ValueError, match="local_id"):
        validate_config(Config())


@pytest.mark.parametrize(
    "field", ["heartbeat_timeout", "commit_timeout", "snapshot_interval", "disk_stall_timeout"]
)
def test_a_duration_that_is_no_number_is_a_fault(field):
    with pytest.raises(InvalidConfigError, match=field):
        validate_config(Config(**{"local_id": "n1", field: math.nan}))


def test_timeouts_above_a_minute_are_doubted():
    """5000 was most likely meant as milliseconds."""
    assert doubts(Config(local_id="n1", heartbeat_timeout=60, election_timeout=60)) == []

    (said,) = doubts(Config(local_id="n1", election_timeout=5000))

    assert "election_timeout is 5000 seconds" in said


@pytest.mark.parametrize("local_id", ["a\nb", "n" * 1025])
def test_an_id_that_would_forge_a_log_is_refused(local_id):
    with pytest.raises(InvalidConfigError, match="local_id must be printable"):
        validate_config(Config(local_id=local_id))
