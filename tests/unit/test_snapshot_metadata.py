import json
from contextlib import suppress
from pathlib import Path

import pytest

from raft.codec import decode_peers, encode_peers
from raft.errors import ProtocolError, SnapshotError, SnapshotVersionError
from raft.snapshots.metadata import decode_metadata, encode_metadata, seal_metadata
from raft.types import Configuration, Server, ServerSuffrage, SnapshotMeta

VECTORS = Path(__file__).parent.parent / "vectors"
FINISHED = sorted((VECTORS / "file-snapshots/snapshots").glob("*[0-9]/meta.json"))
CONFIGURATIONS = json.loads((VECTORS / "configuration.json").read_text())["cases"]
META = SnapshotMeta("3-10-5", 10, 3, Configuration([Server("a", "a:1")]), 2, 13)


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.parent.name)
def test_metadata_is_read_and_written_as_the_original_does(path):
    data = path.read_bytes()

    meta, crc = decode_metadata(data)

    assert meta.id == path.parent.name
    assert encode_metadata(meta, crc) == data


@pytest.mark.parametrize("case", CONFIGURATIONS, ids=lambda case: case["name"])
def test_the_list_of_peers_has_the_originals_bytes(case):
    servers = [
        Server(server["ID"], server["Address"], ServerSuffrage(server["Suffrage"]))
        for server in case["configuration"]["Servers"] or []
    ]
    configuration = Configuration(servers)

    data = encode_peers(configuration)

    assert data.hex() == case["legacy_peers_hex"]
    addresses = [server.address for server in configuration.voters()]
    assert decode_peers(data) == Configuration([Server(a, a) for a in addresses])


@pytest.mark.parametrize("data", [b"", b"\x91", b"\x91\xc0", b"\x80", b"\x91\xa1\xff", b"\x90\x90"])
def test_a_list_of_peers_that_is_none_is_refused(data):
    with pytest.raises(ProtocolError):
        decode_peers(data)


def test_what_another_writer_may_do_is_understood():
    text = """
    { "index": 10, "TERM": 3, "Unknown": [1], "ID": "3-10-5", "Version": 1, "Size": 13,
      "CRC": "AAAAAAAAAAc=", "ConfigurationIndex": 2,
      "Configuration": {"servers": [{"id": "a", "address": "a:1"}]} } trailing"""

    assert decode_metadata(text.encode()) == (META, 7)


def test_metadata_of_version_0_takes_the_configuration_from_the_peers():
    meta, crc = decode_metadata(
        b'{"Version":0,"ID":"3-10-5","Index":10,"Term":3,"Peers":"kaNhOjE="}'
    )

    assert meta.configuration == Configuration([Server("a:1", "a:1")])
    assert meta.configuration_index == 10
    assert crc is None


def test_text_is_escaped_as_the_original_does():
    meta = SnapshotMeta("1-1-1", 1, 1, Configuration([Server("<&>", "\u2028ä")]), 1)

    data = encode_metadata(meta, None)

    assert rb'"ID":"\u003c\u0026\u003e"' in data
    assert '"Address":"\\u2028ä"'.encode() in data
    assert decode_metadata(data) == (meta, None)


def test_no_bit_of_sealed_metadata_changes_what_is_read_unnoticed():
    meta = SnapshotMeta("3-10-5", 10, 3, Configuration([Server("a", "a:1")]), 2, 13, unsettled=True)
    data = seal_metadata(encode_metadata(meta, 7))
    assert decode_metadata(data) == (meta, 7)

    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(SnapshotError):
            assert decode_metadata(bytes(flipped)) == (meta, 7)


def test_metadata_that_was_edited_is_refused_until_its_seal_is_removed():
    data = seal_metadata(encode_metadata(META, 7))
    edited = data.replace(b'"a:1"', b'"b:1"')

    with pytest.raises(SnapshotError, match="remove the key Seal"):
        decode_metadata(edited)

    meta, _ = decode_metadata(edited.partition(b',"Seal"')[0] + b"}\n")
    assert meta.configuration == Configuration([Server("a", "b:1")])


def test_only_an_unsettled_snapshot_has_a_key_that_the_original_lacks():
    assert b"Unsettled" not in encode_metadata(META, 1)
    marked = encode_metadata(SnapshotMeta("1-1-1", 1, 1, Configuration(), 1, unsettled=True), 1)

    assert b'"Unsettled":true' in marked
    assert decode_metadata(marked)[0].unsettled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "\xff",
        '{"Version":1,"Index":-1}',
        '{"Version":1,"Index":1e3}',
        '{"Version":1,"Index":18446744073709551616}',
        '{"Version":1,"Index":true}',
        '{"Version":1,"ID":7}',
        '{"Version":1,"CRC":"AAAA"}',
        '{"Version":1,"CRC":7}',
        '{"Version":1,"Configuration":7}',
        '{"Version":1,"Configuration":{"Servers":[7]}}',
        '{"Version":1,"Configuration":{"Servers":[{"Suffrage":9}]}}',
        '{"Version":0,"Peers":"!"}',
        "[" * 100_000,
    ],
)
def test_metadata_with_a_fault_is_refused(text):
    with pytest.raises(SnapshotError):
        decode_metadata(text.encode("latin-1"))


@pytest.mark.parametrize("version", [2, 2**64 - 1])
def test_metadata_of_a_newer_version_says_to_upgrade(version):
    with pytest.raises(SnapshotVersionError, match=rf"3-10-5 has version {version}.*upgrade"):
        decode_metadata(b'{"Version":%d,"ID":"3-10-5","Index":"ten"}' % version)
