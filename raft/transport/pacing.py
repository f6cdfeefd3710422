"""How fast large frames leave: what a link has been seen to carry, and no more.

Bytes that are handed to a socket stand in the queue of the slowest link on the way, and heartbeats
to the same peer stand behind them, though they have a connection of their own. So a connection
keeps that queue short: it looks at how many of its bytes the peer's system has not acknowledged,
and lets only a window of them be on the way. A flight ends when everything is acknowledged that
was on the way at its beginning; what it carried in its time is the link's rate. The window is what
the rate carries in one round trip and in the time that the queue may take. It starts small, and
a link that is not full makes it larger again and again.
"""

from __future__ import annotations

from raft.errors import RPCTimeoutError
from raft.runtime import Deadline, Runtime
from raft.transport.stream import Stream

QUEUE_SECONDS = 0.125  # that heartbeats may have to wait, until the node says
UNPACED = 4 * 1024  # bytes; smaller frames go at once

_FIRST_WINDOW = 16 * 1024  # bytes; what TCP begins with
_SMALLEST_WINDOW = 4 * 1024
_LARGEST_WINDOW = 8 * 1024 * 1024
_LARGEST_PIECE = 128 * 1024  # so that `acknowledged` moves as long as anything does
_GROWTH = 4  # times in one flight, at most
_PART = 4  # of the window that must be free before more goes: not every acknowledgement wakes us
_SHORTEST_WAIT = 0.001  # seconds, doubling up to
_LONGEST_WAIT = 0.016
_SHORTEST_FLIGHT = 0.0001  # seconds; what is faster needs no limit


class Pace:
    """The window of one connection. The sending thread's, but for `acknowledged` and `is_flying`.

    `round_trip` is how long the handshake took: later flights may have stood in a queue.
    """

    def __init__(
        self, stream: Stream, runtime: Runtime, round_trip: float, queue_seconds: float
    ) -> None:
        self.window = _FIRST_WINDOW
        self.sent = 0
        self._stream = stream
        self._runtime = runtime
        self._queue_seconds = queue_seconds
        self._round_trip = round_trip  # seconds; the shortest seen
        self.is_flying = False  # a flight has begun, and was not seen to end; any thread reads
        # One flight: what was acknowledged when its first piece was sent, up to where it goes, and
        # when it began; whether the window has held anything up since, and whether nothing was on
        # the way before: then it goes up to where the window was full for the first time.
        self._from_nothing = False
        self._acknowledged = 0
        self._mark = 0
        self._began = 0.0
        self._was_full = False

    def acknowledged(self) -> int:
        """Return how many bytes have arrived at the peer's system; any thread."""
        sent = self.sent
        return sent - self._stream.unacknowledged()

    def note_sent(self, count: int) -> None:
        """Count bytes that were sent at once."""
        self.sent += count

    def send(self, data: bytes | memoryview, timeout: float | None) -> None:
        """Send all of it, in pieces; `timeout` bounds the time without any progress."""
        rest = memoryview(data)
        while rest:
            room, acknowledged = self._await_room(len(rest), timeout)
            piece = rest[: min(room, _LARGEST_PIECE)]
            began = self._runtime.monotonic()
            self._stream.send(piece, timeout)
            self.sent += len(piece)
            rest = rest[len(piece) :]
            if not self.is_flying:
                self.is_flying, self._was_full = True, False
                self._from_nothing = self.sent - len(piece) == acknowledged
                self._began, self._acknowledged, self._mark = began, acknowledged, self.sent

    def _await_room(self, wanted: int, timeout: float | None) -> tuple[int, int]:
        """Wait until a good part of the window is free.

        Return how many bytes may go, and how many of those before have arrived.
        """
        wait, progress = _SHORTEST_WAIT, -1
        deadline = Deadline(self._runtime, timeout)
        while True:
            outstanding = self._stream.unacknowledged()
            acknowledged = self.sent - outstanding
            if progress >= 0 or outstanding:
                self._look(acknowledged)
            else:
                self.is_flying = False  # nothing was on the way for a while: that shows no rate
            room = self.window - outstanding
            if room >= min(wanted, self.window // _PART):
                return room, acknowledged
            if not self._was_full:
                self._was_full = True
                if self._from_nothing:
                    self._mark = self.sent
            if acknowledged > progress:
                progress, deadline = acknowledged, Deadline(self._runtime, timeout)
            elif deadline.is_over():
                raise RPCTimeoutError(f"no progress on the connection with {self._stream.peer}")
            if self._stream.wait_for_hang_up(wait):
                return wanted, acknowledged  # sending will tell
            wait = min(2 * wait, _LONGEST_WAIT)

    def _look(self, acknowledged: int) -> None:
        """Set the window anew at the end of a flight."""
        if not self.is_flying or acknowledged < self._mark:
            return
        self.is_flying = False
        seconds = max(_SHORTEST_FLIGHT, self._runtime.monotonic() - self._began)
        self._round_trip = min(self._round_trip, seconds)
        if self._was_full:
            # Behind nothing, the first byte takes a round trip before the rate shows.
            shown_in = seconds - self._round_trip if self._from_nothing else seconds
            rate = (acknowledged - self._acknowledged) / max(_SHORTEST_FLIGHT, shown_in)
            window = int(rate * (self._round_trip + self._queue_seconds))
            if seconds < self._round_trip + self._queue_seconds / 2:
                window = max(window, self.window + self.window // 4)  # it could carry more
            window = min(window, _GROWTH * self.window, _LARGEST_WINDOW)
            self.window = max(window, _SMALLEST_WINDOW)
