"""What a seeded bug is: a small change of the shipped code, and the history it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from tests.patching import Change


@dataclass(frozen=True)
class Bug:
    """One bug: its name, what it stands for, and what it changes."""

    name: str
    history: str
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return self.name


def bug(name: str, history: str, file: str, old: str, new: str) -> Bug:
    """Return a bug of one change."""
    return Bug(name, history, (Change(file, old, new),))
