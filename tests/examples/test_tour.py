"""The tour's client: what it concludes from answers that break off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from examples.kv.tour import NO_ANSWER, REFUSED, call, free_address

ANSWERS = {
    "whole": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7", (200, 7)),
    "error": (b'HTTP/1.1 421 No\r\nContent-Length: 4\r\n\r\n"no"', (421, "no")),
    "half": (b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n", (NO_ANSWER, None)),
    "half an error": (b"HTTP/1.1 421 No\r\nContent-Length: 30\r\n\r\n", (NO_ANSWER, None)),
    "nothing": (b"", (NO_ANSWER, None)),
    "no http": (b"hello\r\n\r\n", (NO_ANSWER, None)),
    "no json": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", (NO_ANSWER, None)),
}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize(("answer", "concluded"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_breaks_off_is_no_answer(
    listener: socket.socket, answer: bytes, concluded: tuple[int, object]
) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    server = threading.Thread(target=serve)
    server.start()

    found = call("GET", f"127.0.0.1:{listener.getsockname()[1]}/kv/a")

    server.join()
    assert found == concluded


def test_where_nobody_listens_the_call_is_refused() -> None:
    assert call("GET", f"{free_address()}/kv/a") == (REFUSED, None)
