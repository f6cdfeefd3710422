"""Run one node of the key-value service: `python -m examples.kv.node --help`."""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

from waitress import create_server

from examples.kv.machine import KVMachine, encode_member
from examples.kv.service import create_app
from raft import Config, Configuration, Raft, RaftError, Server, has_existing_state
from raft.snapshots import FileSnapshotStore
from raft.transport import TCPTransport
from raftsqlite import SQLiteStore

ANNOUNCE_SECONDS = 60.0  # how long a node tries to make itself known
RETRY_SECONDS = 0.2

_log = logging.getLogger("kv")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.kv.node",
        description="Run one node of a replicated key-value service.",
    )
    parser.add_argument("--id", required=True, help="unique in the cluster, kept for ever")
    parser.add_argument("--raft", required=True, metavar="HOST:PORT", help="address for the peers")
    parser.add_argument("--http", required=True, metavar="HOST:PORT", help="address for clients")
    parser.add_argument("--data", required=True, type=Path, help="folder for log and snapshots")
    parser.add_argument(
        "--token-file",
        type=Path,
        help="holds what nodes say to join; the same for all, by default beside the folder of"
        " --data, and made if it is not there",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--bootstrap", action="store_true", help="begin a new cluster, once")
    start.add_argument("--join", metavar="HOST:PORT", help="HTTP address of any member")
    parser.add_argument("--verbose", action="store_true", help="log what Raft does")
    return parser.parse_args(arguments)


def announce(node: Raft, machine: KVMachine, options: argparse.Namespace) -> None:
    """Make this node's addresses known to the cluster: by itself if it leads, else by `/join`."""
    give_up = time.monotonic() + ANNOUNCE_SECONDS
    body = {"id": options.id, "raft": options.raft, "http": options.http}
    pause = threading.Event()
    while machine.members().get(options.id) != options.http and time.monotonic() < give_up:
        _, leader_id = node.leader_with_id()
        try:
            if leader_id == options.id:
                node.apply(encode_member(options.id, options.http), 1.0).result(5.0)
            else:
                address = machine.members().get(leader_id) or options.join
                post_join(address, body, read_token(options))
        except (RaftError, OSError, ValueError, http.client.HTTPException) as error:
            _log.info("not announced yet error=%s", error)
        pause.wait(RETRY_SECONDS)


def read_token(options: argparse.Namespace) -> str:
    """Return the token of the cluster; the first node of a machine draws one."""
    path: Path = options.token_file or options.data.resolve().parent / "kv-token"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(token := secrets.token_hex(16))
    return token


def post_join(address: str | None, body: dict[str, Any], token: str) -> None:
    """Ask a member to take this node in; follow it to the leader."""
    for _ in range(3):
        if not address:
            raise ValueError("no member is known to ask: start with --bootstrap or --join")
        request = urllib.request.Request(
            f"http://{address}/join",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            urllib.request.urlopen(request, timeout=35).close()
            return
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read() or b"{}")
            if error.code != 421:
                raise ValueError(answer.get("error", str(error))) from error
            address = answer["leader"]["http"]


def main(arguments: list[str] | None = None) -> int:
    """Run the node until SIGTERM or SIGINT."""
    options = parse_arguments(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format=f"%(asctime)s {options.id} %(message)s",
    )
    options.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = read_token(options)
    machine = KVMachine()
    with SQLiteStore(options.data / "raft.db") as store:
        snapshots = FileSnapshotStore(options.data, retain=2)
        is_new = not has_existing_state(store, store, snapshots)
        transport = TCPTransport(options.raft)
        config = Config(local_id=options.id)
        with Raft(config, machine, store, store, snapshots, transport) as node:
            if options.bootstrap and is_new:
                node.bootstrap_cluster(Configuration([Server(options.id, options.raft)])).result(5)
            threading.Thread(
                target=announce, args=(node, machine, options), name="announce", daemon=True
            ).start()
            serve(node, machine, options.http, token)
    return 0


def serve(node: Raft, machine: KVMachine, address: str, token: str) -> None:
    """Serve HTTP until a signal comes."""
    host, _, port = address.rpartition(":")
    server = create_server(create_app(node, machine, token), host=host, port=int(port), threads=8)

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        server.run()
    except SystemExit:
        pass
    finally:
        server.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RaftError, OSError) as error:
        sys.exit(f"the node cannot run: {error}")
