"""The HTTP side: what a caller may conclude is in the status code.

200 done, 400 and 413 bad input and nothing changed, 404 no such key, 421 ask the leader (named in
the answer), 401 and 415 a change of members without the token, or not as JSON, 503 certainly not
applied, try again, 504 the outcome is unknown: read before retrying.
"""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from examples.kv.machine import KVMachine, encode_delete, encode_member, encode_put
from raft import (
    CatchUpError,
    NotAppliedError,
    NotLeaderError,
    OutcomeUnknownError,
    Raft,
    RaftError,
    Server,
)

MAX_BODY = 1024 * 1024
MAX_KEY = 512  # characters
ANSWER_SECONDS = 5.0  # how long a request waits for its command to be applied
CHANGE_SECONDS = 30.0  # how long for a membership change
QUEUE_SECONDS = 2.0  # how long for a place in the leader's queue
_DEEPEST = 100  # lists and objects in each other
APPLIED_HEADER = "X-Raft-Applied-Index"


class BadInputError(Exception):
    """The request makes no sense; the message says what to send instead."""


class NotAllowedError(Exception):
    """The caller may not change the members; `status` is that of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_app(node: Raft, machine: KVMachine, token: str) -> Flask:
    """Return the application of one node; who knows the token may change the members."""
    app = Flask("kv")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    views = Views(node, machine, token)
    app.add_url_rule("/kv/", view_func=views.no_key, methods=["GET", "PUT", "DELETE"])
    app.add_url_rule("/kv/<path:key>", "read", views.read, methods=["GET"])
    app.add_url_rule("/kv/<path:key>", "put", views.put, methods=["PUT"])
    app.add_url_rule("/kv/<path:key>", "delete", views.delete, methods=["DELETE"])
    app.add_url_rule("/status", view_func=views.status)
    app.add_url_rule("/dump", view_func=views.dump)
    app.add_url_rule("/join", view_func=views.join, methods=["POST"])
    app.add_url_rule("/leave", view_func=views.leave, methods=["POST"])
    app.register_error_handler(BadInputError, lambda error: problem(400, str(error)))
    app.register_error_handler(NotAllowedError, lambda error: problem(error.status, str(error)))
    app.register_error_handler(RequestEntityTooLarge, views.too_large)
    app.register_error_handler(HTTPException, views.http_error)
    app.register_error_handler(RaftError, views.raft_error)
    return app


def problem(status: int, message: str, **more: Any) -> Response:
    """Return an error as JSON."""
    response = jsonify(error=message, **more)
    response.status_code = status
    return response


class Views:
    """The views of one node's application; called by several threads at once."""

    def __init__(self, node: Raft, machine: KVMachine, token: str) -> None:
        self._node = node
        self._machine = machine
        self._token = token

    # ---- keys ----

    def no_key(self) -> NoReturn:
        raise BadInputError("the key is empty: use /kv/<key>")

    def read(self, key: str) -> Response:
        """Answer from this node's state; with ?consistent=1 as of now, from the leader only."""
        check_key(key)
        wanted = request.args.get("consistent", "0")
        if wanted not in ("0", "1"):
            raise BadInputError("consistent is 0 or 1")
        if wanted == "1":
            wait(lambda: self._node.read_barrier(QUEUE_SECONDS), ANSWER_SECONDS)
        found, value, applied = self._machine.read(key)
        response = jsonify(value) if found else problem(404, f"no such key: {key}")
        response.headers[APPLIED_HEADER] = str(applied)
        return response

    def put(self, key: str) -> Response:
        """Set a key to the JSON value in the body."""
        check_key(key)
        return self._write(encode_put(key, read_json()))

    def delete(self, key: str) -> Response:
        """Delete a key; one that is not there does not matter."""
        check_key(key)
        return self._write(encode_delete(key))

    def _write(self, command: bytes) -> Response:
        existed, index = wait(lambda: self._node.apply(command, QUEUE_SECONDS), ANSWER_SECONDS)
        return jsonify(index=index, existed=existed)

    # ---- the cluster ----

    def status(self) -> Response:
        """Tell what this node knows."""
        node, members = self._node, self._machine.members()
        address, leader_id = node.leader_with_id()
        future = node.get_configuration()
        _, applied = self._machine.items()
        return jsonify(
            stats=node.stats(),
            cluster=node.cluster_id(),
            applied=applied,
            leader={"id": leader_id, "raft": address, "http": members.get(leader_id)},
            servers=[
                {
                    "id": server.id,
                    "raft": server.address,
                    "suffrage": server.suffrage.name.lower(),
                    "http": members.get(server.id),
                }
                for server in future.result().servers
            ],
        )

    def dump(self) -> Response:
        """Return this node's whole state, to compare it with another's."""
        values, applied = self._machine.items()
        return jsonify(values=values, applied=applied)

    def join(self) -> Response:
        """Add a node as a voter and note its HTTP address; the same again changes nothing.

        Its vote counts once it has the log: one that cannot be reached must cost no majority.
        """
        self._check_caller()
        node_id, raft_address, http = fields("id", "raft", "http")
        server = self._node.get_configuration().result().server(node_id)
        if server != Server(node_id, raft_address):
            wait(
                lambda: self._node.add_voter(
                    node_id, raft_address, timeout=CHANGE_SECONDS, catch_up=True
                ),
                CHANGE_SECONDS,
            )
        # Not before: clients are sent to this address once the node leads.
        wait(lambda: self._node.apply(encode_member(node_id, http), QUEUE_SECONDS), ANSWER_SECONDS)
        return jsonify(joined=node_id)

    def leave(self) -> Response:
        """Remove a node and forget its HTTP address."""
        self._check_caller()
        (node_id,) = fields("id")
        if self._node.get_configuration().result().server(node_id) is None:
            return problem(404, f"no such server: {node_id}")
        wait(lambda: self._node.apply(encode_member(node_id, None), QUEUE_SECONDS), ANSWER_SECONDS)
        wait(lambda: self._node.remove_server(node_id, timeout=CHANGE_SECONDS), CHANGE_SECONDS)
        return jsonify(left=node_id)

    def _check_caller(self) -> None:
        """Refuse who does not know the token, and forms that a web page of others' may send."""
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise NotAllowedError(401, "send the header Authorization: Bearer <token of the file>")
        if request.mimetype != "application/json":
            raise NotAllowedError(415, "send the header Content-Type: application/json")

    # ---- errors ----

    def raft_error(self, error: RaftError) -> Response:
        """Say what the caller may conclude."""
        if isinstance(error, NotLeaderError):
            http = self._machine.members().get(error.leader_id)
            if http:
                response = problem(
                    421, "not the leader", leader={"id": error.leader_id, "http": http}
                )
                response.headers["Location"] = f"http://{http}{request.full_path.rstrip('?')}"
                return response
        if isinstance(error, NotAppliedError | CatchUpError):
            response = problem(503, f"not applied, try again: {error}")
            response.headers["Retry-After"] = "1"
            return response
        if isinstance(error, OutcomeUnknownError):
            return problem(504, f"outcome unknown, it may or may not take effect: {error}")
        return problem(500, str(error))

    def too_large(self, _: HTTPException) -> Response:
        """Refuse a large body."""
        return problem(413, f"the body is larger than {MAX_BODY} bytes")

    def http_error(self, error: HTTPException) -> Response:
        """Answer in JSON what Flask refuses by itself."""
        return problem(error.code or 500, error.description or error.name)


def wait(send: Callable[[], Future[Any]], seconds: float) -> tuple[Any, int]:
    """Send a request to the node and wait for (answer, log index)."""
    future = send()
    return future.result(seconds), getattr(future, "index", lambda: 0)()


def check_key(key: str) -> None:
    """Refuse keys that nobody can mean."""
    if not key.strip():
        raise BadInputError("the key is empty: use /kv/<key>")
    if len(key) > MAX_KEY:
        raise BadInputError(f"the key is longer than {MAX_KEY} characters")


def read_json() -> Any:
    """Return the body's JSON value."""
    body = request.get_data()
    if not body:
        raise BadInputError('the body is empty: send a JSON value, such as 1 or "text"')
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
        _check_depth(value, _DEEPEST)
    except (ValueError, RecursionError) as exc:
        raise BadInputError(f"the body is not UTF-8 JSON: {exc}") from exc
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _check_depth(value: object, left: int) -> None:
    """Refuse here what would be too deep to be written again, in every later answer."""
    if not left:
        raise ValueError(f"lists and objects lie more than {_DEEPEST} deep in each other")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_depth(item, left - 1)


def fields(*names: str) -> list[str]:
    """Return the non-empty texts of a JSON object in the body."""
    body = read_json()
    values = [body.get(name) for name in names] if isinstance(body, dict) else []
    if len(values) != len(names) or not all(isinstance(v, str) and v for v in values):
        raise BadInputError(f"send a JSON object with the texts {', '.join(names)}")
    return [str(value) for value in values]
