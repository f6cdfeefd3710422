"""CRC-64/XZ, the checksum of snapshots, at some hundred megabytes a second.

A byte at a time, Python manages ten megabytes a second: too slow for large snapshots. So most of a
block is first folded away with a few operations on large integers. A CRC is the remainder of the
message, read as a polynomial over GF(2), modulo a fixed P; the message may be replaced by any
shorter one with the same remainder. `_FOLD` holds a rare congruence with few terms:

    x**_FOLD_DEGREE == sum of x**e for e in _FOLD   (mod P)

Of all the sums of three powers up to some thousands, it is the one whose remainder below degree 64
has the fewest terms. Squaring over GF(2) doubles exponents and adds no term, so the congruence
holds with all exponents multiplied by 2**k, too: one set of numbers folds blocks of every size.
"""

from __future__ import annotations

from raft.errors import SnapshotCorruptError
from raft.messages import SnapshotReader
from raft.types import SnapshotMeta

_MASK = 2**64 - 1
_POLYNOMIAL = 0xC96C5795D7870F42  # bit-reversed: the highest coefficient is bit 0

_FOLD_DEGREE = 2141
_FOLD = (306, 242, 54, 43, 40, 38, 37, 32, 30, 26, 20, 13, 0)
_FOLD_HIGHEST = _FOLD[0]

_SHORT = 2400  # bits; below this the byte loop costs less than folding on
_BLOCK = 1 << 18  # bytes; some ten numbers of this size stay in the processor's cache


def _make_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _make_table()


def crc64(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Return the checksum of `data`, continuing from the checksum of what came before it."""
    register = crc ^ _MASK
    view = memoryview(data)
    for start in range(0, len(view), _BLOCK):
        register = _update(register, view[start : start + _BLOCK])
    return register ^ _MASK


def _update(register: int, block: memoryview) -> int:
    short: bytes | memoryview = block
    if len(block) * 8 > _SHORT:
        short = _fold(int.from_bytes(block, "little") ^ register, len(block) * 8)
        register = 0
    table = _TABLE
    for byte in short:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register


def _fold(message: int, bits: int) -> bytes:
    """Return a short message with the same remainder.

    Invariant: bit i of `message` is the coefficient of degree `bits - 1 - i`. So the part of high
    degree, which is folded into the rest, is the low bits, and lowering a degree shifts left.
    """
    scale = 1 << (bits // _FOLD_DEGREE).bit_length()
    while bits > _SHORT:
        while scale * _FOLD_DEGREE >= bits:
            scale >>= 1
        # No more than lands at degree 0 or above.
        count = min(bits - scale * _FOLD_DEGREE, scale * (_FOLD_DEGREE - _FOLD_HIGHEST))
        high = message & ((1 << count) - 1)
        message >>= count
        bits -= count
        folded = high
        for exponent in _FOLD[1:]:
            folded ^= high << scale * (_FOLD_HIGHEST - exponent)
        message ^= folded << scale * (_FOLD_DEGREE - _FOLD_HIGHEST) - count
    padding = -bits % 8  # leading zeros do not change a polynomial
    return (message << padding).to_bytes((bits + padding) // 8, "little")


class CheckedReader:
    """A snapshot's content, compared with `meta.size` and `meta.checksum` as its end is read.

    Reading it to the end gives what was written, or raises `SnapshotCorruptError`.
    """

    def __init__(self, reader: SnapshotReader, meta: SnapshotMeta) -> None:
        self._reader = reader
        self._meta = meta
        self._crc = self._size = 0

    def read(self, size: int = -1, /) -> bytes:
        """Read from the stream inside."""
        data = self._reader.read(size)
        self._crc = crc64(data, self._crc)
        self._size += len(data)
        if not data and size != 0:
            self._compare()
        return data

    def close(self) -> None:
        """Close the stream inside."""
        self._reader.close()

    def _compare(self) -> None:
        meta = self._meta
        found = f"{self._crc:016x}"
        if self._size != meta.size or found != meta.checksum:
            raise SnapshotCorruptError(
                f"snapshot {meta.id} is damaged: expected {meta.size} bytes with checksum"
                f" {meta.checksum}, found {self._size} bytes with {found}"
            )
