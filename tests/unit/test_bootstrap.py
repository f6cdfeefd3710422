"""What a script reads: the configuration of a stopped node, and files that name servers."""

import re
from dataclasses import replace

import pytest

from raft import (
    Config,
    Configuration,
    InvalidConfigError,
    InvalidConfigurationError,
    LogCorruptError,
    LogGapError,
    RaftError,
    Server,
    ServerSuffrage,
    UnsupportedProtocolError,
    bootstrap_cluster,
    get_configuration,
    read_config_json,
    read_peers_json,
    recover_cluster,
)
from raft.snapshots import InmemSnapshotStore
from raft.testing.fsm import RecordingFSM
from raft.testing.manual import ManualRuntime
from raft.testing.script import ScriptedStore, configuration_entry, entries, servers
from raft.types import LogType

MEMBERS, BIGGER, OTHER = servers("n1", "n2"), servers("n1", "n2", "n3"), servers("n4")


# ---- the configuration of a stopped node ----


def offline(logs=(), snapshot=None, *, unsettled=False):
    """What stores say that hold these entries and a snapshot of (index, configuration)."""
    store = ScriptedStore(ManualRuntime())
    if logs:
        store.store_logs(list(logs))
    snapshots = InmemSnapshotStore()
    if snapshot is not None:
        index, configuration = snapshot
        snapshots.create(1, index, 1, configuration, 1, unsettled=unsettled).close()

    def refuse(name):
        raise AssertionError(f"{name}: something is written")

    store.before_write = refuse
    untouched = object()
    config = Config(local_id="n1")
    before = replace(config)
    try:
        return get_configuration(config, untouched, store, untouched, snapshots)
    finally:
        assert config == before


def test_blank_stores_have_an_empty_configuration():
    assert offline() == Configuration()


def test_the_last_configuration_of_the_log_is_the_latest():
    """LIF-06, offline: committed or not, as the node itself sees it. Nothing is written."""
    log = [configuration_entry(1, 1, MEMBERS), configuration_entry(2, 1, BIGGER)]

    assert offline([*log, *entries(3, terms=(1, 1))]) == BIGGER


def test_a_snapshots_configuration_counts_up_to_its_index():
    log = [configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1, 1))]

    assert offline(log, snapshot=(3, OTHER)) == OTHER
    assert offline([*log, configuration_entry(5, 1, BIGGER)], snapshot=(3, OTHER)) == BIGGER
    assert offline(snapshot=(3, OTHER)) == OTHER


def test_a_log_that_the_snapshot_has_replaced_is_not_asked():
    """Law 4."""
    log = [configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 9))]

    assert offline([*log, configuration_entry(4, 9, BIGGER)], snapshot=(3, OTHER)) == OTHER


def test_a_user_restore_that_never_happened_is_not_asked():
    """Departure 19: a later leader went on without it."""
    log = [configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 9))]

    assert offline(log, snapshot=(3, OTHER), unsettled=True) == MEMBERS
    assert offline(snapshot=(3, OTHER), unsettled=True) == OTHER


def test_what_cannot_be_trusted_is_an_error():
    log = [configuration_entry(1, 1, MEMBERS), *entries(2, terms=(1, 1))]
    legacy = entries(1, terms=(1,), kind=LogType.ADD_PEER_DEPRECATED)

    with pytest.raises(LogCorruptError):
        offline([replace(log[0], data=b"rotten"), *log[1:]])
    with pytest.raises(LogGapError):
        offline(log[1:])
    with pytest.raises(UnsupportedProtocolError):
        offline(legacy)
    with pytest.raises(InvalidConfigError):
        get_configuration(Config(), None, None, None, None)


# ---- files that name servers ----


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "peers.json"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("read", [read_peers_json, read_config_json])
@pytest.mark.parametrize("text", ["null", "[]"])
def test_a_file_without_voters_is_refused(file, read, text):
    """PEE-01"""
    with pytest.raises(InvalidConfigurationError, match=r"peers\.json: need at least one voter"):
        read(file(text))


def test_a_list_of_addresses_makes_voters(file):
    """PEE-02"""
    addresses = ["127.0.0.1:123", "127.0.0.2:123", "127.0.0.3:123"]
    path = file(str(addresses).replace("'", '"'))

    expected = Configuration([Server(address, address) for address in addresses])

    assert read_peers_json(path) == expected
    assert read_peers_json(str(path)) == expected


def test_a_list_of_servers_says_who_has_no_vote(file):
    """PEE-03"""
    path = file(
        """[
            {"id": "a", "address": "127.0.0.1:123", "non_voter": false},
            {"id": "b", "address": "127.0.0.2:123"},
            {"id": "c", "address": "127.0.0.3:123", "non_voter": true}
        ]"""
    )

    expected = Configuration(
        [
            Server("a", "127.0.0.1:123"),
            Server("b", "127.0.0.2:123"),
            Server("c", "127.0.0.3:123", ServerSuffrage.NONVOTER),
        ]
    )

    assert read_config_json(path) == expected
    assert read_config_json(str(path)) == expected


BOTH = [read_peers_json, read_config_json]


@pytest.mark.parametrize(
    ("readers", "text", "fault"),
    [
        (BOTH, "", "Expecting value"),
        (BOTH, "[", "Expecting value"),
        (BOTH, '["a:1"] more', "Extra data"),
        (BOTH, '{"id": "a"}', "not a list"),
        (BOTH, "7", "not a list"),
        (BOTH, "[null]", "null"),
        (BOTH, "[" * 200_000 + "]" * 200_000, "recursion"),
        (BOTH[:1], '[{"id": "a", "address": "a:1"}]', "an address is a text"),
        (BOTH[:1], '["a:1", "a:1"]', "duplicate ID"),
        (BOTH[:1], '[""]', "empty ID"),
        (BOTH[1:], '["a:1"]', "a server is an object"),
        (BOTH[1:], '[{"address": "a:1"}]', "a server without id"),
        (BOTH[1:], '[{"id": "a"}]', "a server without address"),
        (BOTH[1:], '[{"id": "", "address": "a:1"}]', "empty ID"),
        (BOTH[1:], '[{"id": 5, "address": "a:1"}]', "id is no text: 5"),
        (BOTH[1:], '[{"id": "a", "address": "a:1", "non_voter": 1}]', "non_voter is no boolean"),
        (BOTH[1:], '[{"id": "a", "address": "a:1", "nonvoter": true}]', "unknown field"),
        (
            BOTH[1:],
            '[{"id": "a", "address": "a:1"}, {"id": "a", "address": "b:1"}]',
            "duplicate ID",
        ),
        (BOTH[1:], '[{"id": "a", "address": "a:1"}, {"id": "b", "address": "a:1"}]', "address"),
        (BOTH[1:], '[{"id": "a", "address": "a:1", "non_voter": true}]', "at least one voter"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(file, readers, text, fault):
    for read in readers:
        with pytest.raises(
            InvalidConfigurationError, match=rf"(?s)peers\.json: .*{fault}"
        ) as error:
            read(file(text))
        assert isinstance(error.value, RaftError)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "peers.json"
    path.write_bytes(b'["\xff"]')

    with pytest.raises(InvalidConfigurationError, match=r"peers\.json"):
        read_peers_json(path)


def test_a_file_that_is_not_there_is_an_error_of_the_file_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_config_json(tmp_path / "none.json")


# ---- configurations that a script gives ----

UNDIALABLE = ["http://h:7000", "0.0.0.0:7000", "[::]:7000", ":7000", "h:0", "10.0.0.2", "fe80::1"]


def given_offline(configuration, local_id="n1"):
    """Both functions that take a configuration, over blank stores that nobody may write to."""
    store = ScriptedStore(ManualRuntime())
    stores = (store, store, InmemSnapshotStore())
    config = Config(local_id=local_id)
    try:
        yield lambda: bootstrap_cluster(config, *stores, configuration)
        yield lambda: recover_cluster(config, RecordingFSM(), *stores, configuration)
    finally:
        assert not store.writes


@pytest.mark.parametrize("address", UNDIALABLE)
def test_an_address_that_no_transport_could_dial_is_refused_offline(address):
    for call in given_offline(Configuration([Server("n1", "n1:1"), Server("n2", address)])):
        with pytest.raises(InvalidConfigurationError, match=re.escape(address)):
            call()


def test_a_configuration_without_the_local_server_is_refused_offline():
    for call in given_offline(servers("n1", "n2"), local_id="n3"):
        with pytest.raises(InvalidConfigurationError, match="n3, the server of these stores"):
            call()


def test_a_duplicate_address_names_both_servers():
    twice = Configuration([Server("n1", "h:1"), Server("n2", "h:1")])
    for call in given_offline(twice):
        with pytest.raises(InvalidConfigurationError, match="h:1 of n2 is that of n1"):
            call()
