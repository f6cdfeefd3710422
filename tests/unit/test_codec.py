import json
import struct
from dataclasses import fields, replace
from pathlib import Path

import cbor2
import pytest

from raft.codec import (
    check_items,
    decode_configuration,
    decode_hard_state,
    decode_message,
    decode_peers,
    dumps,
    encode_configuration,
    encode_hard_state,
    encode_message,
    encode_peers,
    loads,
)
from raft.errors import ProtocolError
from raft.messages import (
    RPC_TYPES,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Note,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from raft.testing.script import entries, header, servers
from raft.types import Configuration, Log, LogType, Server, ServerSuffrage

BIG = 2**64 - 1
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "configuration.json").read_text())[
    "cases"
]
HEADER = header("n1")
WHOLE = RPCHeader("ü-server", "host:1", incarnation="8796a5b4c3d2e1f0")
CONFIGURATION = servers("n1", "n2", nonvoters=["n3"])
LOG = Log(7, 2, LogType.COMMAND, b"\x00\xffdata", b"ext", -5).sealed()

MESSAGES = [
    AppendEntriesRequest(HEADER, 3, 6, 2, (LOG, *entries(8, terms=(2, 3))), 5),
    AppendEntriesRequest(HEADER, BIG, BIG, BIG, (), BIG),
    AppendEntriesRequest(WHOLE, 3, 6, 2, (), 5, (Note("n2", "0f", 1), Note("n3", "1e", BIG))),
    AppendEntriesResponse(HEADER, 3, 8, success=True, no_retry_backoff=True),
    RequestVoteRequest(HEADER, 3, 8, 2, leadership_transfer=True),
    RequestVoteResponse(HEADER, 3, granted=True),
    RequestVoteResponse(HEADER, 3, reason="leader n2 is known"),
    RequestPreVoteRequest(HEADER, 3, 8, 2),
    RequestPreVoteResponse(HEADER, 3, granted=True),
    RequestPreVoteResponse(HEADER, 3, reason="log is damaged"),
    InstallSnapshotRequest(HEADER, 3, 8, 2, CONFIGURATION, 4, 10**12, 1, unsettled=True),
    InstallSnapshotResponse(HEADER, 3, success=True),
    TimeoutNowRequest(RPCHeader("ü-server", "host:1", 2)),
    TimeoutNowResponse(HEADER),
]


def name(message):
    return type(message).__name__


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_a_message_survives_the_wire(message):
    code, payload = encode_message(message)

    assert decode_message(code, payload) == message


def test_every_type_of_message_is_tried_here():
    assert {type(m) for m in MESSAGES} == {*RPC_TYPES, *RPC_TYPES.values()}


def test_codes_on_the_wire_are_never_renumbered():
    codes = {name(message): encode_message(message)[0] for message in MESSAGES}

    assert codes == {
        "AppendEntriesRequest": 0,
        "RequestVoteRequest": 1,
        "InstallSnapshotRequest": 2,
        "TimeoutNowRequest": 3,
        "RequestPreVoteRequest": 4,
        "AppendEntriesResponse": 64,
        "RequestVoteResponse": 65,
        "InstallSnapshotResponse": 66,
        "TimeoutNowResponse": 67,
        "RequestPreVoteResponse": 68,
    }


def left_out(message):
    """Return what an empty field at the end would be, None if this message has it or none such."""
    return next((v for f in ("notes", "reason") if (v := getattr(message, f, 1)) in ((), "")), None)


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_further_fields_of_a_later_version_are_ignored(message):
    code, payload = encode_message(message)
    fields = loads(payload)
    missing = left_out(message)
    if missing is not None:
        fields.append(missing)  # what may be left out comes before what is not known yet

    assert decode_message(code, dumps([*fields, "from the future"])) == message


WITHOUT = [m for m in MESSAGES if not getattr(m, "notes", ()) and not getattr(m, "reason", "")]


@pytest.mark.parametrize("message", WITHOUT, ids=name)
def test_a_message_that_lacks_a_field_is_refused(message):
    code, payload = encode_message(message)

    with pytest.raises(ProtocolError):
        decode_message(code, dumps(loads(payload)[:-1]))


# What no field of a message may be, whatever its type.
UNFIT = (-1, 2**64, 2**70_000)
HOSTILE = [None, 1.5, {}, [1], [[]], "text", b"bytes", True, *UNFIT]


def is_allowed(message, field, value):
    """Tell whether the value is one that the field may hold."""
    kind = type(getattr(message, field))
    if kind is Configuration:
        return False
    return kind not in (tuple, RPCHeader) and type(value) is kind and value not in UNFIT


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_hostile_input_in_any_field_is_refused(message):
    code, payload = encode_message(message)
    plain = loads(payload)

    for position, field in enumerate(f.name for f in fields(message)):
        for value in HOSTILE:
            if is_allowed(message, field, value):
                continue
            spoiled = [*plain[:position], value, *plain[position + 1 :]]
            with pytest.raises(ProtocolError):
                decode_message(code, dumps(spoiled))


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("value", [None, 5.0, -1, [], b"x", True])
def test_hostile_input_in_the_header_is_refused(position, value):
    spoiled = ["n1", "n1:1", 3]
    spoiled[position] = value

    with pytest.raises(ProtocolError):
        decode_message(3, dumps([spoiled]))


@pytest.mark.parametrize(
    ("position", "values"),
    [
        (0, [-1, 2**64, 1.0, None, True, "1"]),
        (1, [-1, 2**64, 1.0, None, True, "1"]),
        (2, [-1, 6, 255, 1.0, None, True, 2**70_000]),
        (3, ["text", None, 1, [1]]),
        (4, ["text", None, 1, [1]]),
        (5, [2**63, -(2**63) - 1, 1.0, None, True]),
        (6, [-1, 2**64, None, True]),
    ],
)
def test_hostile_input_in_an_entry_is_refused(position, values):
    code, payload = encode_message(AppendEntriesRequest(HEADER, 3, 6, 2, (LOG,)))

    for value in values:
        plain = loads(payload)
        plain[4][0][position] = value
        with pytest.raises(ProtocolError):
            decode_message(code, dumps(plain))


@pytest.mark.parametrize("entry", [None, 1, "x", [], [1, 2, 3], {}])
def test_an_entry_of_another_shape_is_refused(entry):
    with pytest.raises(ProtocolError):
        decode_message(0, dumps([["n1", "n1:1", 3], 1, 0, 0, [entry], 0]))


@pytest.mark.parametrize("code", [-1, 5, 63, 69, 127, 10**6])
def test_an_unknown_type_of_message_is_refused(code):
    with pytest.raises(ProtocolError, match="unknown message type"):
        decode_message(code, dumps([]))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\x81",
        b"\x9f\x01",
        b"\x5b" + b"\xff" * 8,  # a byte string of 2**64-1 bytes
        b"\x9b" + b"\xff" * 8,  # an array of as many
        b"\x81" * 100_000,  # nested so deeply
        b"\xc0\x61x",  # a time that is none
        b"\xc2\x01",  # a number that is none
        b"\xc4\x82\x1b" + b"\xff" * 8 + b"\x01",  # a decimal with a giant exponent
        b"\xc5\x82\x1b" + b"\xff" * 8 + b"\x01",  # a binary fraction with one
        b"\xd8\x1e\x82\x01\x00",  # a fraction over 0
        b"\xd8\x23\x61(",  # a broken regular expression
        b"\xd8\x25\x41x",  # a short uuid
        b"\xd8\x1d\x01",  # a reference to nothing
        b"\xd9\x01\x04\x41x",  # a broken network address
        b"\xa1\x80\x01",  # a map with an unhashable key
        b"\x61\xff",  # text that is no UTF-8
    ],
)
@pytest.mark.timeout(10)
def test_bytes_that_are_no_message_are_refused(payload):
    with pytest.raises(ProtocolError):
        decode_message(0, payload)


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_a_message_cut_anywhere_is_refused(message):
    code, payload = encode_message(message)

    for end in range(len(payload)):
        with pytest.raises(ProtocolError):
            decode_message(code, payload[:end])


# ---- the vote record ----


@pytest.mark.parametrize("record", [(0, "", ""), (7, "n2", "n2:1"), (BIG, "ü", "ä:1")])
def test_a_vote_record_survives_the_disk(record):
    assert decode_hard_state(encode_hard_state(*record)) == record


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        dumps([1, "a"]),
        dumps([-1, "a", "b"]),
        dumps([1, b"a", "b"]),
        dumps([1, "", 2]),
    ],
)
def test_a_spoiled_vote_record_is_refused(data):
    with pytest.raises(ProtocolError):
        decode_hard_state(data)


# ---- configurations ----


def expected(case):
    return Configuration(
        [
            Server(s["ID"], s["Address"], ServerSuffrage(s["Suffrage"]))
            for s in case["configuration"]["Servers"] or []
        ]
    )


def case_name(case):
    return case["name"]


@pytest.mark.parametrize("case", VECTORS, ids=case_name)
def test_configurations_of_the_original_are_read(case):
    assert decode_configuration(bytes.fromhex(case["hex"])) == expected(case)


@pytest.mark.parametrize(
    "case", [c for c in VECTORS if c["configuration"]["Servers"] is not None], ids=case_name
)
def test_configurations_are_written_in_the_originals_bytes(case):
    assert encode_configuration(expected(case)).hex() == case["hex"]


@pytest.mark.parametrize("case", VECTORS, ids=case_name)
def test_legacy_lists_of_peers_are_written_in_the_originals_bytes(case):
    assert encode_peers(expected(case)).hex() == case["legacy_peers_hex"]


def test_a_legacy_list_of_peers_survives():
    """CON-13"""
    peers = Configuration([Server(f"n{n}:1", f"n{n}:1") for n in range(3)])

    assert decode_peers(encode_peers(peers)) == peers


def test_a_configuration_survives():
    """CON-14"""
    sample = Configuration(
        [
            Server("id0", "a0", ServerSuffrage.NONVOTER),
            Server("id1", "a1", ServerSuffrage.VOTER),
            Server("id2", "a2", ServerSuffrage.STAGING),
        ]
    )

    assert decode_configuration(encode_configuration(sample)) == sample


@pytest.mark.parametrize("length", [0, 31, 32, 255, 256, 1024])
def test_ids_of_any_length_survive(length):
    configuration = Configuration([Server("i" * length, "a" * length)])

    assert decode_configuration(encode_configuration(configuration)) == configuration


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 300])
def test_any_number_of_servers_survives(count):
    configuration = servers(*(f"n{n}" for n in range(count)))

    assert decode_configuration(encode_configuration(configuration)) == configuration


def test_newer_msgpack_and_unknown_keys_are_read():
    """Strings as str 8 and bin 8, wide arrays and maps, and keys that only a later version has."""
    server = (
        b"\xde\x00\x04"
        b"\xd9\x02ID\xc4\x01a"
        b"\xa7Address\xd9\x03a:1"
        b"\xa8Suffrage\xcc\x01"
        b"\xa3New\x93\xc3\xd0\xff\xc0"
    )
    data = b"\xdf\x00\x00\x00\x01\xa7Servers\xdd\x00\x00\x00\x01" + server

    assert decode_configuration(data) == Configuration(
        [Server("a", "a:1", ServerSuffrage.NONVOTER)]
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x80",  # two values
        b"\x90",  # a list
        b"\xc0",
        b"\x81\xa7Servers\x01",
        b"\x81\xa7Servers\x91\x01",
        b"\x81\xa7Servers\x91\x81\xa2ID\x01",
        b"\x81\xa7Servers\x91\x81\xa2ID\xa1\xff",
        b"\x81\xa7Servers\x91\x81\xa8Suffrage\x03",
        b"\x81\xa7Servers\x91\x81\xa8Suffrage\xff",
        b"\x81\xa7Servers\x91\x81\xa8Suffrage\xc3",
        b"\x81\xa7Servers\x91\x81\xa8Suffrage\xa1x",
        b"\x81\xa7Servers\xdd" + struct.pack(">I", 2**32 - 1),
        b"\x81\xa7Servers\xdb" + struct.pack(">I", 2**32 - 1),
        b"\xdf" + struct.pack(">I", 2**32 - 1),
        b"\xc7\x01\x01\x01",  # an extension
        b"\x91" * 10_000,
        b"\x81\xa1k" * 10_000,
    ],
)
def test_a_spoiled_configuration_is_refused(data):
    with pytest.raises(ProtocolError):
        decode_configuration(data)


def test_a_configuration_cut_anywhere_is_refused():
    data = encode_configuration(CONFIGURATION)

    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decode_configuration(data[:end])


@pytest.mark.parametrize(
    "data", [b"", b"\x81\xa1a\xa1b", b"\x91\x01", b"\x91\xa1\xff", b"\x90\x90"]
)
def test_a_spoiled_list_of_peers_is_refused(data):
    with pytest.raises(ProtocolError):
        decode_peers(data)


def test_a_spoiled_configuration_in_a_message_is_refused():
    code, payload = encode_message(
        InstallSnapshotRequest(HEADER, 3, 8, 2, configuration=CONFIGURATION)
    )
    plain = loads(payload)
    plain[4] = b"\x91"

    with pytest.raises(ProtocolError):
        decode_message(code, dumps(plain))


def test_an_entry_keeps_the_checksum_it_came_with():
    spoiled = replace(LOG, checksum=1)
    code, payload = encode_message(AppendEntriesRequest(HEADER, 3, 6, 2, (spoiled,)))

    assert decode_message(code, payload).entries[0].checksum == 1


@pytest.mark.parametrize("tag", [*range(300), 1004, 43000, 55799, 2**64 - 1])
def test_a_tag_is_refused_whatever_it_means(tag):
    """A decimal of half a megabyte held the interpreter's lock for half a minute."""
    for value in (b"\x07", "7", 7, [1, 2], ["7", 7], {}):
        with pytest.raises(ProtocolError, match="tag"):
            loads(cbor2.dumps(cbor2.CBORTag(tag, value)))


# ---- what one frame may cost ----


@pytest.mark.parametrize("item", [b"\x80", b"\xa0", b"\x00", b"\x40", b"\xf6", b"\x9f\xff"])
@pytest.mark.parametrize("code", [0, 1, 2, 64])
def test_a_payload_of_countless_items_is_refused_before_it_is_decoded(item, code, monkeypatch):
    """4 MiB of empty arrays stood all threads still for seconds, and took 80 times their size."""
    monkeypatch.setattr(cbor2, "loads", lambda *_, **__: pytest.fail("it was decoded"))
    count = 4 << 20
    payload = b"\x87\x80\x03\x06\x02\x9a" + count.to_bytes(4, "big") + item * count + b"\x05"

    with pytest.raises(ProtocolError, match="more than"):
        decode_message(code, payload)


def test_the_largest_honest_batch_has_few_enough_items():
    logs = entries(1, terms=[2**40] * 1024)
    notes = tuple(Note(f"server-{n}", "0123456789abcdef", 2**40) for n in range(500))
    message = AppendEntriesRequest(WHOLE, 2**40, 0, 0, tuple(logs), 2**40, notes)

    assert decode_message(*encode_message(message)) == message


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_items_are_counted_whatever_their_heads_are_like(width):
    head = {1: 24, 2: 25, 4: 26, 8: 27}[width]
    number = bytes([head]) + (7).to_bytes(width, "big")
    text = bytes([0x40 | head]) + (3).to_bytes(width, "big") + b"abc"
    data = number * 5 + text * 5

    check_items(data, 10)
    with pytest.raises(ProtocolError, match="more than 9 items"):
        check_items(data, 9)


def test_a_string_longer_than_the_payload_ends_the_count():
    check_items(b"\x5b" + b"\xff" * 8 + bytes(20), 3)


def test_a_configuration_that_announces_more_than_it_holds_costs_nothing():
    for data in (b"\x81\xa7Servers\xdd\xff\xff\xff\xff" + b"\xc0" * 100, b"\xc0" * (2 << 20)):
        with pytest.raises(ProtocolError):
            decode_configuration(data)


@pytest.mark.parametrize("name", ["a\nb", "n" * 1025, "\x1b[2J"])
def test_names_that_cannot_be_are_refused_wherever_they_come_from(name):
    for header_ in (RPCHeader(name, "a:1"), RPCHeader("n1", name)):
        with pytest.raises(ProtocolError, match="sender's"):
            decode_message(*encode_message(RequestVoteRequest(header_, 3, 8, 2)))
    for server in (Server(name, "a:1"), Server("n1", name)):
        with pytest.raises(ProtocolError, match="a server's"):
            decode_configuration(encode_configuration(Configuration([server])))
    message = AppendEntriesRequest(HEADER, 3, 6, 2, (), 5, (Note(name, "0f", 1),))
    with pytest.raises(ProtocolError, match="note's id"):
        decode_message(*encode_message(message))


def test_a_reason_is_shown_as_one_line():
    message = RequestVoteResponse(HEADER, 3, reason="no\nnode=n1 term=9 all is well")

    assert decode_message(*encode_message(message)).reason == r"no\nnode=n1 term=9 all is well"
