"""Files that only their owner may read, whose names are durable, and that are what they seem.

What a node keeps on disk is read by nobody else: files are made 0600 and directories 0700, whatever
the umask. A name that is about to be opened may have been put there by somebody else: links are not
followed, and anything but a regular file is refused before it is read, for a FIFO would block.
"""

from __future__ import annotations

import errno
import os
import stat

from raft.logs import get_logger

_log = get_logger(__name__)

_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_OTHERS_MAY_WRITE = stat.S_IWOTH
_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH

_Path = str | os.PathLike[str]


def open_file(path: _Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor; one that is made is the owner's alone.

    Never blocks. A file that is to be written to must belong to this user, or to root.

    Raises:
        OSError: it cannot be opened, is a link (ELOOP), is not a regular file (EINVAL), or belongs
            to somebody else (EPERM).
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _FILE_MODE)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file: remove it", os.fspath(path))
        if flags & (os.O_WRONLY | os.O_RDWR) and not _is_ours(found):
            raise OSError(
                errno.EPERM,
                f"it belongs to user {found.st_uid}, not to this process's user {os.geteuid()}:"
                " chown or remove it",
                os.fspath(path),
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: _Path, most: int) -> bytes:
    """Return the content of a regular file; `OSError` (EFBIG) for one of more than `most` bytes."""
    with open(open_file(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", os.fspath(path))
    return data


def check_regular(path: _Path) -> None:
    """Raise `OSError` (EINVAL) if a name leads to something that is not a regular file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file: remove it", os.fspath(path))


def make_directories(path: _Path) -> None:
    """Make a directory and its parents, the owner's alone and each name durable."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_directories(parent)
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        return
    sync_directory(parent)


def sync_directory(path: _Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def warn_of_others(directory: _Path, *files: _Path) -> None:
    """Log what others may do here: read these files, or put others in their place."""
    for path in (directory, *files):
        try:
            found = os.stat(path)
        except OSError:
            continue  # who opens it will say so
        if stat.S_ISDIR(found.st_mode):
            if not _is_ours(found):
                _log.warning(
                    "others may replace what is here: the directory belongs to user %d. Give it to"
                    " this process's user %d path=%s",
                    found.st_uid,
                    os.geteuid(),
                    path,
                )
            elif found.st_mode & _OTHERS_MAY_WRITE:
                _log.warning(
                    "others may replace what is here: anybody may write to the directory. Use one"
                    " of its own, as ~/raft/n1, or chmod o-w path=%s",
                    path,
                )
        elif found.st_mode & _OTHERS_MAY_READ:
            _log.warning("others may read the commands here: chmod 600 path=%s", path)


def _is_ours(found: os.stat_result) -> bool:
    """Tell whether nobody but this user and root may change what is there; root's user is root."""
    return os.geteuid() == 0 or found.st_uid in (os.geteuid(), 0)
