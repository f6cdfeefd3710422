"""SQLite's write-ahead log, looked at before SQLite takes it over: has the disk spoiled it?

SQLite takes a frame whose checksum does not fit for the end of its log and goes on without the
rest, acknowledged or not. A loss of power leaves such a frame in the last transaction only, for
each commit is durable before the next transaction begins. So a frame that continues the checksum of
a commit proves that everything up to that commit was durable once: what is bad there was spoiled.

The layout is that of https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import struct
import sys
from array import array

from raft.errors import StoreError
from raft.files import open_file
from raftsqlite.guard import REBUILD

# Magic, version, page size, checkpoints, two salts, and the checksum of what is before it.
_HEADER = struct.Struct(">8I")
# Page, size of the database after a commit (else 0), two salts, and the checksum of all up to here.
_FRAME = struct.Struct(">6I")
_CHECKED = 8  # bytes of a frame's own header that its checksum covers
_MAGIC = 0x377F0682  # the last bit set: the checksum's words are big-endian
_MASK = 0xFFFFFFFF

Sum = tuple[int, int]


def check_write_ahead_log(path: str) -> None:
    """Raise `StoreError` if a write-ahead log has lost transactions that were durable.

    Not noticed is what was spoiled of the last transaction: a torn write looks the same. Reads the
    whole file, once in a start after a crash: 25 to 50 ms a megabyte, of which there are a few.
    """
    try:
        with open(open_file(path), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return
    if len(data) <= _HEADER.size:
        return
    magic, _, page_size, _, *salts, first, second = _HEADER.unpack_from(data)
    is_big = bool(magic & 1)
    header_sum = _checksum(data[: _HEADER.size - 8], is_big, (0, 0))
    if magic & ~1 != _MAGIC or header_sum != (first, second):
        raise _damaged(path, 0)  # it was durable before the first frame was written
    frames = _Frames(data, page_size, tuple(salts), is_big)
    bad, before = frames.first_bad(header_sum)
    if frames.goes_on_behind(bad, before):
        raise _damaged(path, frames.start(bad))


def _damaged(path: str, position: int) -> StoreError:
    return StoreError(
        f"the write-ahead log {path} is damaged at byte {position}, and durable entries or votes"
        f" behind it are lost. Nothing was changed; {REBUILD}"
    )


class _Frames:
    """The frames of one write-ahead log, those of its earlier rounds at the end included."""

    def __init__(self, data: bytes, page_size: int, salts: tuple[int, ...], is_big: bool) -> None:
        self._data = data
        self._salts = salts
        self._is_big = is_big
        self._size = _FRAME.size + page_size
        self.count = (len(data) - _HEADER.size) // self._size

    def start(self, number: int) -> int:
        """Return where a frame begins."""
        return _HEADER.size + number * self._size

    def first_bad(self, before: Sum) -> tuple[int, Sum]:
        """Return the number of the first frame that SQLite does not accept, and the sum before."""
        for number in range(self.count):
            _, salts, found = self._header(number)
            if salts != self._salts or found != self._sum(number, before):
                return number, before
            before = found
        return self.count, before

    def goes_on_behind(self, bad: int, before: Sum) -> bool:
        """Tell whether a transaction behind a bad frame was begun after one that was durable."""
        numbers = range(bad + 1, self.count)
        if numbers and self._continues_a_commit(bad + 1, self._sum(bad, before)):
            return True  # the bad frame is a commit of which only salts or checksum were spoiled
        return any(self._continues_a_commit(n, self._header(n - 1)[2]) for n in numbers)

    def _continues_a_commit(self, number: int, before: Sum) -> bool:
        """Tell whether a frame was written by one who knew the sum of the commit before it."""
        commit, _, _ = self._header(number - 1)
        _, salts, found = self._header(number)
        return commit != 0 and salts == self._salts and found == self._sum(number, before)

    def _header(self, number: int) -> tuple[int, tuple[int, ...], Sum]:
        _, commit, *salts, first, second = _FRAME.unpack_from(self._data, self.start(number))
        return commit, tuple(salts), (first, second)

    def _sum(self, number: int, before: Sum) -> Sum:
        start = self.start(number)
        page = self._data[start + _FRAME.size : start + self._size]
        return _checksum(self._data[start : start + _CHECKED] + page, self._is_big, before)


def _checksum(data: bytes, is_big: bool, before: Sum) -> Sum:
    words = array("I", data)
    if is_big != (sys.byteorder == "big"):
        words.byteswap()
    first, second = before
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
