"""One durable node in a process of its own, for tests: orders on stdin, answers on stdout.

One JSON a line. The state machine keeps its state in a file, so that the process's memory is the
library's alone: run as `python -m tests.processes.member ID ADDRESSES FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from raft import Config, Configuration, Log, Raft, RaftError, Server, SnapshotReader, SnapshotSink
from raft.snapshots import FileSnapshotStore
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

CHUNK = 256 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE_SECONDS = 0.01


class FileFSM:
    """Appends what it is told to a file; `fill N` appends N bytes that compress badly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self.restores = 0

    def apply(self, log: Log) -> int:
        """Append; the answer is the file's length."""
        if log.data.startswith(b"fill "):
            block = os.urandom(1024) * (CHUNK // 1024)
            for _ in range(int(log.data[5:]) // CHUNK):
                self._file.write(block)
        else:
            self._file.write(log.data)
        self._file.flush()
        return self._file.tell()

    def snapshot(self) -> FileSnapshot:
        """Return the length as of now: what stands before it never changes."""
        return FileSnapshot(self._path, self._file.tell())

    def restore(self, reader: SnapshotReader) -> None:
        """Replace the file."""
        self.restores += 1
        self._file.close()
        self._file = self._path.open("w+b")
        while chunk := reader.read(CHUNK):
            self._file.write(chunk)
        self._file.flush()


class FileSnapshot:
    """The first bytes of the file."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = path.open("rb")
        self._size = size

    def persist(self, sink: SnapshotSink) -> None:
        """Copy them in pieces."""
        left = self._size
        while left:
            chunk = self._file.read(min(CHUNK, left))
            sink.write(chunk)
            left -= len(chunk)

    def release(self) -> None:
        """Close the file."""
        self._file.close()


class Watch:
    """Samples what changes quickly: memory, and the time since the leader was heard."""

    def __init__(self, node: Raft) -> None:
        self._node = node
        self.start_memory = self.peak_memory = memory()
        self.longest_silence = 0.0
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        monotonic = self._node._runtime.monotonic
        while True:
            self.peak_memory = max(self.peak_memory, memory())
            contact = self._node.last_contact()
            if contact is not None:
                self.longest_silence = max(self.longest_silence, monotonic() - contact)
            pause.wait(SAMPLE_SECONDS)


def memory() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def obey(node: Raft, fsm: FileFSM, watch: list[Watch], order: dict[str, Any]) -> Any:
    """Carry out one order."""
    what = order["do"]
    if what == "apply":
        futures = [node.apply(data.encode()) for data in order["commands"]]
        return [future.result(order.get("seconds", 30)) for future in futures]
    if what == "snapshot":
        return node.snapshot().result(60)
    if what == "leader":
        return node.wait_for_leader(30)[1]
    if what == "watch":
        watch.append(Watch(node))
        return None
    return {
        **node.stats(),
        "restores": fsm.restores,
        "grown": watch[-1].peak_memory - watch[-1].start_memory if watch else 0,
        "silence": watch[-1].longest_silence if watch else 0.0,
    }


def main(node_id: str, addresses: dict[str, str], folder: Path) -> None:
    """Be one node until standard input ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with SQLiteStore(folder / "raft.db") as store:
        fsm = FileFSM(folder / "state")
        snapshots = FileSnapshotStore(folder, retain=2)
        config = Config(local_id=node_id, trailing_logs=10)
        transport = TCPTransport(addresses[node_id])
        with Raft(config, fsm, store, store, snapshots, transport) as node:
            if node_id == min(addresses) and not node.last_index():
                servers = [Server(i, a) for i, a in addresses.items()]
                node.bootstrap_cluster(Configuration(servers)).result(10)
            watch: list[Watch] = []
            print(json.dumps("ready"), flush=True)
            for line in sys.stdin:
                try:
                    answer = obey(node, fsm, watch, json.loads(line))
                except (RaftError, TimeoutError) as error:
                    answer = {"error": repr(error)}
                print(json.dumps(answer), flush=True)


class Child:
    """The test's end of a member's process; ended with `kill`, as a crash would."""

    def __init__(self, node_id: str, addresses: dict[str, str], folder: Path) -> None:
        self.id = node_id
        self._command = [sys.executable, "-m", "tests.processes.member", node_id]
        self._command += [json.dumps(addresses), str(folder / node_id)]
        self._log = folder / f"{node_id}.log"
        self._lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Start the process over whatever its folder holds."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._read() == "ready"

    def ask(self, **order: Any) -> Any:
        """Give an order and return the answer."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.id} has died: {self._log.read_text()}"
        return json.loads(line)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
