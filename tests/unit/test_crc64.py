import random

import pytest

from raft.snapshots import crc64 as module
from raft.snapshots.crc64 import crc64


def crc64_bit_by_bit(data):
    """The definition, as slow and as plain as can be."""
    register = 2**64 - 1
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xC96C5795D7870F42 if register & 1 else 0)
    return register ^ 2**64 - 1


def test_the_check_value_is_the_catalogues():
    assert crc64(b"123456789") == 0x995DC9BBDF1939FA


def test_the_checksum_of_nothing_is_zero():
    assert crc64(b"") == 0


@pytest.mark.parametrize("size", [1, 7, 8, 299, 300, 301, 302, 535, 536, 1000, 4096, 20_001])
def test_blocks_of_all_sizes_have_the_defined_checksum(size):
    data = random.Random(size).randbytes(size)

    assert crc64(data) == crc64_bit_by_bit(data)


def test_a_checksum_can_be_continued():
    data = random.Random(1).randbytes(5000)

    for cut in (0, 1, 299, 1200, 4999, 5000):
        assert crc64(data[cut:], crc64(data[:cut])) == crc64(data)


def test_a_large_block_is_the_sum_of_its_pieces():
    data = random.Random(2).randbytes(module._BLOCK * 2 + 12_345)
    expected = 0
    for start in range(0, len(data), 299):  # short enough not to be folded
        expected = crc64(data[start : start + 299], expected)

    assert crc64(data) == expected
    assert crc64(bytearray(data)) == expected
