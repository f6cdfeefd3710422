"""A model of a disk that loses power: which states may be found after it, at each point.

- What was written to a file, its size included, is sure to be there once the file was synced after
  it; names once their folder was. A sync of a file does not keep its name, nor the other way round.
- Of what was not synced any part may be there, in any order: each write whole, not at all, in some
  of the sectors it touches (512 or 4,096 bytes), or as zeros where it made the file longer; each
  change of a size or of a name for itself, whatever came before it. A rename happens or does not.
- Sectors change as a whole, and nothing changes outside of what was written (SQLite calls that
  "powersafe overwrite", and expects it of disks unless told otherwise).

File systems keep more of an order than this, so some of these states will not be seen; none of
what they may leave is missing, but for contents that nobody wrote.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.recording import (
    Create,
    Event,
    MakeFolder,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
)

SECTORS = (512, 4096)

Image = dict[str, bytes | None]
"""Content by path below the folder, None for a folder."""


@dataclass(slots=True, eq=False)
class File:
    """What is durable of a file, what it looks like now, and what leads from one to the other."""

    durable: bytes = b""
    now: bytearray = field(default_factory=bytearray)
    pending: list[Write | Resize] = field(default_factory=list)

    def change(self, change: Write | Resize) -> None:
        _apply(self.now, change)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable = bytes(self.now)
        self.pending.clear()


@dataclass(slots=True, eq=False)
class Folder:
    """The same of a folder; a change gives names another file, or none."""

    durable: dict[str, Node] = field(default_factory=dict)
    now: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, change: dict[str, Node | None]) -> None:
        _rename(self.now, change)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable = dict(self.now)
        self.pending.clear()


Node = File | Folder


class Disk:
    """The files of one folder, as events change them."""

    def __init__(self, is_ignored: Callable[[str], bool] = lambda path: False) -> None:
        self.root = Folder()
        self._is_ignored = is_ignored  # which syncs to leave out, by path

    @classmethod
    def holding(cls, image: Image, is_ignored: Callable[[str], bool]) -> Disk:
        """Return a disk on which all of an image is durable."""
        disk = cls(is_ignored)
        for path, content in sorted(image.items()):
            folder, name = disk._place(path)
            node: Node = Folder() if content is None else File(content, bytearray(content))
            folder.durable[name] = folder.now[name] = node
        return disk

    def apply(self, event: Event) -> None:
        match event:
            case Write(path) | Resize(path):
                self._file(path).change(event)
            case Sync(path):
                if not self._is_ignored(path):
                    self._node(path).sync()
            case Create(path) | MakeFolder(path):
                folder, name = self._place(path)
                folder.change({name: File() if isinstance(event, Create) else Folder()})
            case Remove(path):
                folder, name = self._place(path)
                folder.change({name: None})
            case Rename(old, new):
                folder, name = self._place(old)
                folder.change({name: None, os.path.basename(new): folder.now[name]})
            case _:
                pass  # a mark changes nothing

    def uncertain(self) -> int:
        """Return how many changes may be found or not."""
        return _uncertain(self.root)

    def image(self, choice: Choice) -> Image:
        """Return a state that may be found if the power goes now."""
        found: Image = {}
        _collect(self.root, "", choice, found)
        return found

    def _node(self, path: str) -> Node:
        node: Node = self.root
        for name in Path(path).parts:
            assert isinstance(node, Folder)
            node = node.now[name]
        return node

    def _file(self, path: str) -> File:
        node = self._node(path)
        assert isinstance(node, File)
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        folder = self._node(os.path.dirname(path))
        assert isinstance(folder, Folder)
        return folder, os.path.basename(path)


class Choice:
    """Says what of that which is not durable is found nevertheless."""

    def of_file(self, file: File) -> bytes:
        raise NotImplementedError

    def of_folder(self, folder: Folder) -> dict[str, Node]:
        raise NotImplementedError


class Nothing(Choice):
    """Only what is durable."""

    def of_file(self, file: File) -> bytes:
        return file.durable

    def of_folder(self, folder: Folder) -> dict[str, Node]:
        return folder.durable


class Everything(Choice):
    """All that was written: what another process finds after a crash of this one alone."""

    def of_file(self, file: File) -> bytes:
        return bytes(file.now)

    def of_folder(self, folder: Folder) -> dict[str, Node]:
        return folder.now


class Chance(Choice):
    """Something in between, another way for each file and folder."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def of_folder(self, folder: Folder) -> dict[str, Node]:
        names = dict(folder.durable)
        for change, is_kept in zip(folder.pending, self._kept(len(folder.pending)), strict=True):
            if is_kept:
                _rename(names, change)
        return names

    def of_file(self, file: File) -> bytes:
        if not file.pending:
            return file.durable
        content = bytearray(file.durable)
        kept = self._kept(len(file.pending))
        torn = self._torn(kept)
        for at, change in enumerate(file.pending):
            if at in torn and isinstance(change, Write):
                self._tear(content, change)
            elif kept[at]:
                _apply(content, change)
        return bytes(content)

    def _kept(self, count: int) -> list[bool]:
        chance = self._chance
        at = chance.randrange(count) if count else 0
        match chance.choice(("none", "all", "first", "first", "but one", "one", "some", "some")):
            case "none":
                return [False] * count
            case "all":
                return [True] * count
            case "first":
                return [number < at for number in range(count)]
            case "but one":
                return [number != at for number in range(count)]
            case "one":
                return [number == at for number in range(count)]
        share = chance.choice((0.1, 0.5, 0.9))
        return [chance.random() < share for _ in range(count)]

    def _torn(self, kept: list[bool]) -> set[int]:
        """Choose the writes that are found in part: none, the first one lost, any, or many."""
        chance, count = self._chance, len(kept)
        match chance.choice(("none", "first lost", "any", "many")):
            case "first lost":
                return {kept.index(False)} if False in kept else {count - 1}
            case "any":
                return {chance.randrange(count)}
            case "many":
                return {number for number in range(count) if chance.random() < 0.3}
        return set()

    def _tear(self, content: bytearray, write: Write) -> None:
        """Write some of the sectors that a write touches, or none and the new length."""
        chance = self._chance
        sector = chance.choice(SECTORS)
        end = write.offset + len(write.data)
        cuts = [*range(write.offset - write.offset % sector, end, sector)]
        pieces = [(max(cut, write.offset), min(cut + sector, end)) for cut in cuts]
        match chance.choice(("start", "end", "some", "length")):
            case "start":
                pieces = pieces[: chance.randrange(len(pieces) + 1)]
            case "end":
                pieces = pieces[chance.randrange(len(pieces) + 1) :]
            case "some":
                pieces = [piece for piece in pieces if chance.random() < 0.5]
            case "length":
                pieces = []
                content.extend(bytes(max(0, end - len(content))))
        for start, stop in pieces:
            part = write.data[start - write.offset : stop - write.offset]
            _apply(content, Write(write.path, start, part))


def read_image(folder: Path) -> Image:
    """Return what a real folder holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def write_image(image: Image, folder: Path) -> None:
    """Make a folder that holds an image."""
    os.mkdir(folder)
    for path, content in sorted(image.items()):
        if content is None:
            os.mkdir(folder / path)
        else:
            with open(folder / path, "wb", buffering=0) as file:
                file.write(content)


def digest(image: Image, passed_over: Iterable[str]) -> bytes:
    """Return what tells an image from others, but for files whose names end like this."""
    suffixes = tuple(passed_over)
    found = hashlib.sha1(usedforsecurity=False)
    for path, content in sorted(image.items()):
        if not path.endswith(suffixes):
            size = -1 if content is None else len(content)
            found.update(b"%s\0%d\0" % (path.encode(), size))
            found.update(content or b"")
    return found.digest()


def _uncertain(node: Node) -> int:
    inside = node.now.values() if isinstance(node, Folder) else ()
    return len(node.pending) + sum(map(_uncertain, inside))


def _collect(folder: Folder, prefix: str, choice: Choice, found: Image) -> None:
    for name, node in choice.of_folder(folder).items():
        if isinstance(node, File):
            found[prefix + name] = choice.of_file(node)
        else:
            found[prefix + name] = None
            _collect(node, f"{prefix}{name}/", choice, found)


def _apply(content: bytearray, change: Write | Resize) -> None:
    match change:
        case Write(_, offset, data):
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        case Resize(_, size):
            content.extend(bytes(max(0, size - len(content))))
            del content[size:]


def _rename(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
