"""Asks Porcupine, a checker that others wrote, about the same histories; it needs Go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from raft.testing.linearizability import Operation

PROGRAM = Path(__file__).with_name("porcupine_check")
BUILD_SECONDS = 240
CHECK_SECONDS = 120


def save(history: Sequence[Operation], path: Path) -> None:
    """Write a history, one operation a line."""
    with path.open("w") as file:
        for operation in history:
            row = {
                "client": operation.client,
                "key": operation.key,
                "kind": operation.kind.value,
                "called": operation.called,
                "returned": operation.returned,
                "value": operation.value,
                "expected": operation.expected,
                "swapped": operation.swapped,
            }
            file.write(json.dumps(row) + "\n")


def check(path: Path, folder: Path) -> bool | None:
    """Return whether a saved history is linearizable; None when there is no Go to ask with."""
    go = shutil.which("go")
    if go is None:
        return None
    program = folder / "porcupine_check"
    subprocess.run(
        [go, "build", "-o", program, "."],
        cwd=PROGRAM,
        env=os.environ | {"CGO_ENABLED": "0"},
        check=True,
        timeout=BUILD_SECONDS,
    )
    ran = subprocess.run([program, path], check=False, timeout=CHECK_SECONDS)
    if ran.returncode not in (0, 1):
        raise RuntimeError(f"Porcupine gave no verdict: exit status {ran.returncode}")
    return ran.returncode == 0
