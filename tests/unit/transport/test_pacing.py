"""How fast large frames leave, over links that the test makes up, in a time that it makes up."""

from collections import deque

import pytest

from raft.codec import encode_message
from raft.errors import RPCTimeoutError
from raft.testing.manual import ManualRuntime
from raft.transport.connection import Connection
from raft.transport.pacing import Pace
from raft.transport.pipeline import StreamPipeline
from tests.unit.transport.tools import REQUEST, RESPONSE

QUEUE = 0.125  # seconds that heartbeats may wait
SEGMENT = 1000
HEAD = 9  # bytes of a frame before its payload


class Link:
    """A stream over a link of a rate and a length, whose far end acknowledges what comes."""

    peer = "far:1"

    def __init__(self, rate, round_trip):
        self.runtime = ManualRuntime()
        self.rate, self.round_trip = rate, round_trip
        self.longest_queue = 0.0  # seconds, after the first three
        self.sent = 0
        self._free_at = 0.0
        self._under_way = deque()
        self._began = self.runtime.now

    def send(self, data, timeout):
        self.sent += len(data)
        for start in range(0, len(data), SEGMENT):
            count = min(SEGMENT, len(data) - start)
            self._free_at = max(self._free_at, self.runtime.now) + count / self.rate
            self._under_way.append((self._free_at + self.round_trip, count))
        if self.runtime.now > self._began + 3.0:
            self.longest_queue = max(self.longest_queue, self._free_at - self.runtime.now)

    def unacknowledged(self):
        while self._under_way and self._under_way[0][0] <= self.runtime.now:
            self._under_way.popleft()
        return sum(count for _, count in self._under_way)

    def wait_for_hang_up(self, timeout):
        self.runtime.now += timeout
        return False

    def pace(self):
        return Pace(self, self.runtime, self.round_trip, QUEUE)

    def take(self, size, timeout=10.0):
        """Send so many bytes, paced; return the seconds that it took."""
        began = self.runtime.now
        self.pace().send(bytes(size), timeout)
        return self.runtime.now - began


@pytest.mark.parametrize(
    ("rate", "round_trip"), [(12_500, 0.02), (125_000, 0.02), (125_000, 0.3), (2_500_000, 0.02)]
)
def test_the_queue_of_a_slow_link_stays_short_and_never_empty(rate, round_trip):
    link = Link(rate, round_trip)
    size = rate * 20

    took = link.take(size)

    assert link.longest_queue < 1.5 * QUEUE + 2 * SEGMENT / rate
    assert size / took > 0.88 * rate


@pytest.mark.parametrize("round_trip", [0.001, 0.1, 0.25])
def test_a_fast_link_is_filled_after_a_moment(round_trip):
    link = Link(20e6, round_trip)
    pace = link.pace()
    pace.send(bytes(20_000_000), 10.0)
    began = link.runtime.now

    pace.send(bytes(40_000_000), 10.0)

    assert 40e6 / (link.runtime.now - began) > 0.8 * 20e6


def test_a_pause_between_two_frames_shows_no_rate():
    link = Link(125_000, 0.02)
    pace = link.pace()
    pace.send(bytes(500_000), 10.0)
    window = pace.window

    link.runtime.now += 60.0
    pace.send(bytes(window), 10.0)

    assert pace.window >= window


def test_a_frame_takes_as_long_as_it_makes_progress():
    assert Link(10_000, 0.02).take(200_000, timeout=1.0) > 15.0


def test_a_frame_that_is_stuck_says_how_far_it_got_and_names_the_setting():
    link = Link(1e6, 0.02)
    connection = Connection(link, link.runtime)
    connection.pace = link.pace()
    connection.send(1, bytes(100_000), 1.0)
    link.rate = 1e-3
    began = link.runtime.now

    with pytest.raises(RPCTimeoutError, match=r"sent \d+ of 500000 bytes.*for 1 s.*`timeout`"):
        connection.send(1, bytes(500_000), 1.0)

    assert 1.0 <= link.runtime.now - began < 2.0


class Trickle:
    """A stream on which so many bytes come each second."""

    peer = "far:1"

    def __init__(self, runtime, data, rate):
        self._runtime, self._data, self._rate = runtime, data, rate

    def receive_into(self, buffer, timeout):
        count = min(len(buffer), len(self._data), max(1, self._rate // 10))
        seconds = count / self._rate
        if seconds > timeout:
            self._runtime.now += timeout
            raise RPCTimeoutError("no progress")
        self._runtime.now += seconds
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count


class Recorder:
    """A stream that keeps what is sent."""

    peer = "far:1"

    def __init__(self):
        self.data = b""

    def send(self, data, timeout):
        self.data += data


def receive_at(rate, size):
    """Receive a frame that comes at a rate, with a timeout of one second."""
    runtime, recorder = ManualRuntime(), Recorder()
    Connection(recorder, runtime).send(0, bytes(size), None)
    return Connection(Trickle(runtime, recorder.data, rate), runtime).receive(1.0)


def test_a_large_frame_is_received_as_long_as_it_makes_progress():
    assert receive_at(rate=50_000, size=500_000) == (0, bytes(500_000))


def test_a_large_frame_that_trickles_is_given_up():
    with pytest.raises(RPCTimeoutError, match=r"received \d+ of 500009 bytes.*for 1 s.*`timeout`"):
        receive_at(rate=10_000, size=500_000)


class FarConnection:
    """A connection on which so many timeouts pass before there is an answer."""

    def __init__(self, *arrived, is_paced=True):
        self._arrived = list(arrived)  # bytes, each time somebody asks
        self._is_paced = is_paced
        self.sent = 0

    def send_message(self, message, timeout):
        self.sent += 1

    def acknowledged(self):
        return self._arrived[0]

    def is_pacing(self):
        return self._is_paced

    def receive_answer(self, timeout):
        self._arrived.pop(0)
        if len(self._arrived) > 1:
            raise RPCTimeoutError("no answer")
        return encode_message(RESPONSE)


def receive_from(connection):
    pipeline = StreamPipeline(connection, 1.0, lambda error: error, lambda: None)
    pipeline.append_entries(REQUEST)
    return pipeline.receive()


def test_an_answer_is_waited_for_while_its_request_arrives():
    assert receive_from(FarConnection(0, 10, 20, 30, 40)) == RESPONSE


def test_an_answer_is_not_waited_for_once_nothing_arrives_any_more():
    with pytest.raises(RPCTimeoutError):
        receive_from(FarConnection(0, 10, 10, 10, 10))


def test_an_answer_to_a_small_request_is_waited_for_once():
    with pytest.raises(RPCTimeoutError):
        receive_from(FarConnection(0, 10, 20, 30, 40, is_paced=False))
