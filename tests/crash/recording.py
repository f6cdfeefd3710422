"""What a program does to the files of one folder, in order: recorded by strace, read back here.

The kernel's border is the one place that nothing gets past, whichever library calls. What strace
shows of the folder and this module does not know is an error, never passed over.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# All that can change a file or a name, or make either durable, and what moves a descriptor.
_CALLS = (
    "open,openat,openat2,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,sendfile,splice,"
    "copy_file_range,truncate,ftruncate,fallocate,mmap,msync,fsync,fdatasync,sync,syncfs,"
    "sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,chdir"
)
_LONGEST_STRING = 1 << 24


class RecordingError(Exception):
    """The recording cannot be made or trusted; the message names the cause."""


@dataclass(frozen=True, slots=True)
class Create:
    """A file of this name appears, empty."""

    path: str


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes go into a file."""

    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A file ends here from now on."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What was written to a file, or the names in a folder, are durable."""

    path: str


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """An empty folder of this name appears."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A name becomes another one of the same folder, whose file is gone."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A name is gone."""

    path: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What the program says at this moment, by a write to the file of marks."""

    text: str


Event = Create | Write | Resize | Sync | MakeFolder | Rename | Remove | Mark


def can_record() -> bool:
    """Tell whether there is what records."""
    return sys.platform == "linux" and shutil.which("strace") is not None


def record(command: Sequence[str], folder: Path, marks: Path) -> list[Event]:
    """Run a program to its end and return what it did to the folder."""
    if not can_record():
        raise RecordingError("strace records what a store writes: install it (Debian: strace)")
    trace = marks.with_name("trace")
    reader = _Reader(folder, marks)
    options = ("-f", "-y", "-xx", "-s", str(_LONGEST_STRING), "-e", f"trace={_CALLS}")
    ran = subprocess.run(
        ["strace", *options, "-o", str(trace), "--", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RecordingError(f"the program to record failed:\n{ran.stdout[-3000:]}")
    with trace.open(encoding="ascii") as lines:
        events = list(reader.read(lines))
    trace.unlink()
    if not any(isinstance(event, Mark) for event in events):
        raise RecordingError("strace has recorded nothing: may this process trace others?")
    return events


_LINE = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\w+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


class _Reader:
    """Turns the lines of strace into events; one program after another, no two at once."""

    def __init__(self, folder: Path, marks: Path) -> None:
        self._prefix = f"{folder}/"
        self._marks = str(marks)
        self._working = str(ROOT)  # the working folder of the program that runs
        self._names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        self._positions: dict[tuple[str, str], int] = {}  # of (process, descriptor)

    def read(self, lines: Iterator[str]) -> Iterator[Event]:
        for line in lines:
            if line.endswith("<unfinished ...>\n") or "resumed>" in line:
                raise RecordingError("two calls at once: the order of what they did is not known")
            found = _LINE.match(line)
            if found is None or found["result"].startswith("-") or found["result"] == "?":
                continue  # a signal, the end of a process, a call that failed
            call = found["call"]
            read = getattr(self, f"_on_{_SAME.get(call, call)}", None)
            if read is not None:
                yield from read(found["pid"], found["arguments"], found["result"])
            elif any(path is not None for path in self._paths(found["arguments"])):
                raise RecordingError(
                    f"{call} is not known here: {_plain(found['arguments'])[:200]}"
                )

    def _relative(self, path: str) -> str | None:
        """Return a path below the folder, "" for itself, None for what lies elsewhere."""
        if path + "/" == self._prefix:
            return ""
        return path.removeprefix(self._prefix) if path.startswith(self._prefix) else None

    def _paths(self, arguments: str) -> list[str | None]:
        """Return what the arguments name: strings, joined to the folder before them if relative."""
        found = []
        base = self._working
        for match in re.finditer(f"{_DESCRIPTOR.pattern}|{_STRING.pattern}", arguments):
            if match[2] is not None:
                base = _text(match[2])
            else:
                found.append(self._relative(os.path.normpath(os.path.join(base, _text(match[3])))))
        return found

    def _target(self, arguments: str) -> tuple[str, str | None]:
        """Return the descriptor that comes first, and its path."""
        match = _DESCRIPTOR.match(arguments)
        if match is None:
            return "", None
        return match[1], self._relative(_text(match[2]))

    def _known(self, path: str) -> str:
        if path not in self._names:
            raise RecordingError(f"{path} is changed, but has no name (any more)")
        return path

    def _on_open(self, pid: str, arguments: str, result: str) -> Iterator[Event]:
        self._positions[pid, result] = 0
        path = self._paths(arguments)[0]
        if not path:
            return
        if "O_APPEND" in arguments or "O_TMPFILE" in arguments:
            raise RecordingError(f"{path} is opened in a way that is not known here")
        if "O_CREAT" in arguments and path not in self._names:
            self._names.add(path)
            yield Create(path)
        elif "O_TRUNC" in arguments:
            yield Resize(self._known(path), 0)

    def _on_lseek(self, pid: str, arguments: str, result: str) -> Iterator[Event]:
        descriptor, _ = self._target(arguments)
        self._positions[pid, descriptor] = int(result)
        yield from ()

    def _on_write(self, pid: str, arguments: str, result: str) -> Iterator[Event]:
        descriptor, path = self._target(arguments)
        count = int(result)
        if (match := _DESCRIPTOR.match(arguments)) and _text(match[2]) == self._marks:
            yield Mark(_written(arguments)[:count].decode())
        elif path is not None:
            position = self._positions[pid, descriptor]
            self._positions[pid, descriptor] = position + count
            yield Write(self._known(path), position, _written(arguments)[:count])

    def _on_pwrite64(self, _pid: str, arguments: str, result: str) -> Iterator[Event]:
        _, path = self._target(arguments)
        if path is not None:
            offset = int(arguments.rsplit(", ", 1)[1])
            yield Write(self._known(path), offset, _written(arguments)[: int(result)])

    def _on_ftruncate(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        _, path = self._target(arguments)
        if path is not None:
            yield Resize(self._known(path), int(arguments.rsplit(", ", 1)[1]))

    def _on_fallocate(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        _, path = self._target(arguments)
        if path is not None:
            _, mode, offset, length = arguments.split(", ")
            if mode != "0":
                raise RecordingError(f"fallocate of {path} in a mode that is not known here")
            yield Resize(self._known(path), int(offset) + int(length))  # our one is empty before

    def _on_mmap(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        match = _DESCRIPTOR.search(arguments)
        path = self._relative(_text(match[2])) if match else None
        writes = "PROT_WRITE" in arguments and "MAP_SHARED" in arguments
        if path is not None and writes and not path.endswith("-shm"):  # which no crash leaves
            raise RecordingError(f"{path} is mapped to be written to, which strace cannot see")
        yield from ()

    def _on_fsync(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        _, path = self._target(arguments)
        if path is not None:
            yield Sync(path)

    def _on_rename(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        old, new = self._paths(arguments)
        if old is None and new is None:
            return
        if old is None or new is None or os.path.dirname(old) != os.path.dirname(new):
            raise RecordingError(f"{old} becomes {new}: not within one folder")
        moved = {name for name in self._names if name == old or name.startswith(f"{old}/")}
        self._names -= moved
        self._names |= {new + name.removeprefix(old) for name in moved}
        yield Rename(old, new)

    def _on_unlink(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        path = self._paths(arguments)[0]
        if path is not None:
            self._names.discard(path)
            yield Remove(path)

    def _on_mkdir(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        path = self._paths(arguments)[0]
        if path:
            self._names.add(path)
            yield MakeFolder(path)

    def _on_chdir(self, _pid: str, arguments: str, _result: str) -> Iterator[Event]:
        match = _STRING.search(arguments)
        self._working = os.path.join(self._working, _text(match[1])) if match else ""
        yield from ()

    def _on_close(self, _pid: str, _arguments: str, _result: str) -> Iterator[Event]:
        yield from ()


_SAME = {
    "openat": "open",
    "renameat": "rename",
    "renameat2": "rename",
    "unlinkat": "unlink",
    "rmdir": "unlink",
    "mkdirat": "mkdir",
    "fdatasync": "fsync",
}


def _text(escaped: str) -> str:
    return os.fsdecode(bytes.fromhex(escaped.replace("\\x", "")))


def _plain(arguments: str) -> str:
    return re.sub(r"((?:\\x[0-9a-f]{2})+)", lambda match: _text(match[1]), arguments)


def _written(arguments: str) -> bytes:
    match = _STRING.search(arguments)
    if match is None or arguments[match.end() :].startswith("..."):
        raise RecordingError("strace has cut what was written")
    return bytes.fromhex(match[1].replace("\\x", ""))
