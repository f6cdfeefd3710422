"""Python programs run beside the test, for what only another process can show."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

PRELUDE = """
import os, signal, sys
from raft.errors import *
from raft.testing.contracts import entries, stored
from raftsqlite import SQLiteStore
path = sys.argv[1]
"""


def start(program, path):
    """Start a program that finds the path of its store in `path`, its streams being pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(program, path):
    """Run a program to its end; return its exit status, negative for a signal, and its output."""
    process = start(program, path)
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def opens(path):
    """Tell whether another process could open the store."""
    status, output = run(
        """
try:
    SQLiteStore(path).close()
except StoreLockedError:
    print("locked")
else:
    print("opened")
""",
        path,
    )
    assert status == 0
    return output == "opened\n"
