"""Space kept back for what must go on when a disk is full: votes, no-ops, memberships, compaction.

A file beside the store holds the space. When the file system has less than the low-water mark
free, the file is given up and the store says that it is full; client entries are refused from then
on. When there is room for both again, the file is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from raft.files import open_file
from raft.logs import get_logger

_log = get_logger(__name__)


def free_bytes(path: str) -> int:
    """Return how many bytes the file system of a path has left for us."""
    found = os.statvfs(os.path.dirname(path))
    return found.f_bavail * found.f_frsize


class Reserve:
    """The reserve file of one store; used by one thread at a time.

    `size` and `low_water` are bytes; a size of 0 keeps nothing back, and a mark of 0 never tells
    that the store is full.
    """

    def __init__(
        self, path: str, size: int, low_water: int, *, free: Callable[[str], int] = free_bytes
    ) -> None:
        self._path = path
        self._size = size
        self._low_water = low_water
        self._free = free
        self._is_full = False
        self.is_full()

    def hold(self) -> None:
        """Keep the space back from now on, unless the disk is full."""
        if self._low_water and not self._is_full:
            self._hold()

    def is_full(self) -> bool:
        """Tell whether the disk is almost full; gives the reserve up, or makes it anew."""
        if not self._low_water:
            return False
        left = self._free(self._path)
        if self._is_full:
            if left >= self._low_water + self._size and self._hold():
                self._is_full = False
                _log.info("disk has room again path=%s free=%d", self._path, left)
        elif left < self._low_water:
            self._is_full = True
            self._give_up()
            _log.error(
                "disk is almost full, client entries are refused path=%s free=%d below=%d",
                self._path,
                left,
                self._low_water,
            )
        return self._is_full

    def _hold(self) -> bool:
        """Have the file at its full size; False when there is no room for it."""
        if not self._size:
            return True
        try:
            descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
            finally:
                os.close(descriptor)
        except OSError as exc:
            _log.warning("cannot keep space back path=%s cause=%s", self._path, exc)
            self._give_up()
            return False
        return True

    def _give_up(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            _log.warning("cannot give space back path=%s cause=%s", self._path, exc)
