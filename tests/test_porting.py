"""docs/porting.md: its names exist, its tests exist, and no public name is missing from it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import raft
import raft.snapshots
import raft.stores
import raft.transport
import raftsqlite

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "porting.md").read_text()
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]
PACKAGES = (raft, raft.stores, raft.snapshots, raft.transport, raftsqlite)


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("raft", "raftsqlite")


NAMES = sorted({cell for row in ROWS for cell in row[:2] if is_ours(cell)})
FILES = sorted(set(re.findall(r"`((?:tests|raft|docs)/[\w/]+\.\w+)`", TEXT)))


def find(name: str) -> Any:
    """Return what a dotted name stands for; raises when there is no such thing."""
    module, rest = name, []
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        found = getattr(found, part) if hasattr(found, part) else find_field(found, part)
    return found


def find_field(kind: Any, name: str) -> str:
    """Return a field that only instances have: declared, or set on `self`."""
    if not inspect.isclass(kind):
        raise AttributeError(name)
    for base in [base for base in kind.__mro__ if is_ours(base.__module__)]:
        source = inspect.getsource(base)
        if name in getattr(base, "__annotations__", {}) or f"self.{name} = " in source:
            return name
    raise AttributeError(f"{kind.__name__} has no {name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_table_exists(name: str) -> None:
    find(name)


def test_names_that_do_not_exist_are_noticed() -> None:
    for name in (
        "raft.Raft.nonesuch",
        "raft.Config.nonesuch",
        "raft.nonesuch",
        "raft.Log.nonesuch",
    ):
        with pytest.raises(AttributeError):
            find(name)


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_no_public_name_is_missing() -> None:
    public = {f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__}
    public |= {f"raft.Raft.{name}" for name in dir(raft.Raft) if not name.startswith("_")}
    public |= {f"raft.Config.{name}" for name in raft.Config.__dataclass_fields__}

    assert sorted(public - set(NAMES)) == []


def test_every_row_says_where_it_is_tested_or_why_there_is_nothing() -> None:
    assert [row for row in ROWS if len(row) != 3 or not row[2]] == []
    assert [row for row in ROWS if row[1] != "none" and row[2] not in FILES] == []
    assert len(ROWS) > 500
