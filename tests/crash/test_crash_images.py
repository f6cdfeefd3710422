"""Power lost at some points of what the stores do; `make crash-images` tries them at all."""

import itertools
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

from tests.crash.disk import Chance, Disk, Everything, Nothing
from tests.crash.recording import (
    Create,
    MakeFolder,
    Mark,
    RecordingError,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
    can_record,
    record,
)
from tests.crash.run import SYNCS, Bench, scratch_parent

SEED = 1


@pytest.fixture(scope="module")
def needs_strace():
    if not can_record() and "CI" not in os.environ:
        pytest.skip("strace is not installed")


@pytest.fixture(scope="module")
def benches(needs_strace):
    """A function from a scenario's name to its bench; each is recorded once."""
    made = {}
    with tempfile.TemporaryDirectory(prefix="crash-", dir=scratch_parent()) as folder:

        def get(name):
            if name not in made:
                made[name] = Bench(name, Path(folder).resolve())
            return made[name]

        yield get


# ---- the stores ----


@pytest.mark.parametrize(
    ("name", "images"), [("log", 400), ("old log", 60), ("torn log", 60), ("snapshots", 200)]
)
@pytest.mark.timeout(60)  # a recording, and some hundred images
def test_no_image_has_lost_anything(benches, name, images):
    result = benches(name).check(images, SEED)

    assert result.faults == []
    assert result.different == images


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.timeout(30)
def test_without_one_kind_of_sync_something_is_lost(benches, sync):
    """Each sync is needed, and its absence noticed."""
    scenario, _ = SYNCS[sync]

    result = benches(scenario).check(3000, SEED, without=sync, enough=1)

    assert len(result.faults) == 1


# ---- the model of the disk ----


def states_after(events, draws=2000):
    """Return the images that are drawn after some events."""
    disk = Disk()
    for event in events:
        disk.apply(event)
    chance = random.Random(SEED)
    choices = [Nothing(), Everything(), *[Chance(chance)] * draws]
    return [disk.image(choice) for choice in choices]


A_FILE = [Create("f"), Sync("")]


def test_what_was_synced_is_always_found():
    events = [*A_FILE, Write("f", 0, b"abc"), Sync("f"), Write("f", 3, b"de")]

    assert all(image["f"].startswith(b"abc") for image in states_after(events))


def test_what_was_not_synced_may_be_there_or_not_in_any_order():
    events = [*A_FILE, Write("f", 0, b"ab"), Sync("f"), Write("f", 0, b"X"), Write("f", 1, b"Y")]

    assert {image["f"] for image in states_after(events)} == {b"ab", b"Xb", b"aY", b"XY"}


def test_a_write_is_torn_between_sectors_and_nowhere_else():
    old, new = b"o" * 2048, b"n" * 2048
    events = [*A_FILE, Write("f", 0, old), Sync("f"), Write("f", 100, new[:1500])]

    found = {image["f"] for image in states_after(events)}

    cuts = (0, 100, 512, 1024, 1536, 1600, 2048)
    for content in found:
        for start, end in itertools.pairwise(cuts):
            assert content[start:end] in (old[start:end], new[start:end])
    assert len(found) == 2**4


def test_a_file_may_be_longer_than_what_was_written_to_it():
    events = [*A_FILE, Write("f", 0, b"abc")]

    assert {image["f"] for image in states_after(events)} == {b"", b"abc", bytes(3)}


def test_a_size_that_was_not_synced_may_be_the_old_one():
    events = [*A_FILE, Write("f", 0, b"abc"), Sync("f"), Resize("f", 1)]

    assert {image["f"] for image in states_after(events)} == {b"abc", b"a"}


def test_a_synced_file_may_have_no_name_yet():
    events = [Create("f"), Write("f", 0, b"abc"), Sync("f")]

    assert {image.get("f") for image in states_after(events)} == {None, b"abc"}


def test_names_appear_change_and_go_independently_but_a_rename_is_one_change():
    events = [Create("a"), Create("b"), Sync(""), Rename("a", "c"), Remove("b"), MakeFolder("d")]

    found = {frozenset(image) for image in states_after(events)}

    assert len(found) == 2**3
    assert all(("a" in names) != ("c" in names) for names in found)


def test_names_of_a_folder_are_synced_with_it_and_not_with_another():
    events = [MakeFolder("d"), Create("d/f"), Sync("")]

    assert {frozenset(image) for image in states_after(events)} == {
        frozenset(["d"]),
        frozenset(["d", "d/f"]),
    }
    assert all("d/f" in image for image in states_after([*events, Sync("d")]))


def test_a_sync_can_be_left_out():
    disk = Disk(lambda path: path == "f")
    for event in [*A_FILE, Write("f", 0, b"abc"), Sync("f")]:
        disk.apply(event)

    assert disk.image(Nothing()) == {"f": b""}


# ---- the recording ----


def events_of(program, tmp_path):
    """Record a program that finds the folder in `folder` and says something by `mark(text)`."""
    folder = (tmp_path / "recorded").resolve()
    folder.mkdir()
    prelude = (
        "import os, sys\n"
        "folder, marks = sys.argv[1:]\n"
        "descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT)\n"
        "mark = lambda text: os.write(descriptor, text.encode())\n"
        "os.chdir(folder)\n"
    )
    marks = tmp_path.resolve() / "marks"
    command = [sys.executable, "-I", "-c", prelude + program, str(folder), str(marks)]
    return record(command, folder, marks)


def test_whatever_changes_a_file_or_a_name_is_recorded_in_order(needs_strace, tmp_path):
    events = events_of(
        """
file = open("f", "wb", buffering=0)
file.write(b"abc")
mark("written")
file.write(b"de")
os.fsync(file.fileno())
os.pwrite(file.fileno(), b"X", 1)
file.truncate(4)
os.mkdir("d")
os.rename("f", folder + "/g")
names = os.open(".", os.O_RDONLY)
os.fsync(names)
os.unlink("g", dir_fd=names)
os.rmdir("d")
open("/dev/null", "wb").write(b"elsewhere")
""",
        tmp_path,
    )

    assert events == [
        Create("f"),
        Write("f", 0, b"abc"),
        Mark("written"),
        Write("f", 3, b"de"),
        Sync("f"),
        Write("f", 1, b"X"),
        Resize("f", 4),
        MakeFolder("d"),
        Rename("f", "g"),
        Sync(""),
        Remove("g"),
        Remove("d"),
    ]


@pytest.mark.parametrize(
    "program",
    [
        "mark('x'); os.link('marks', 'f')",
        "mark('x'); os.open('f', os.O_CREAT | os.O_WRONLY | os.O_APPEND)",
        "mark('x'); f = open('f', 'wb'); f.write(b'a'); os.unlink('f'); f.flush()",
        "mark('x'); f = open('f', 'wb+'); f.write(b'a'); f.flush(); import mmap;"
        " mmap.mmap(f.fileno(), 1)",
        "mark('x'); os.writev(os.open('f', os.O_CREAT | os.O_WRONLY), [b'a', b'b'])",
        "pass",
        "sys.exit('failed')",
    ],
)
def test_what_cannot_be_recorded_is_an_error(needs_strace, tmp_path, program):
    program = program.replace("'marks'", "marks")

    with pytest.raises(RecordingError):
        events_of(program, tmp_path)
