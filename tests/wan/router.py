"""A router in user space between network namespaces: delay, rate, a bounded queue, a black hole.

Run as `python -m tests.wan.router PREFIX COUNT`, as root, once the namespaces PREFIX0, PREFIX1, ...
exist. Each gets a TUN device `t0`; host i has the address 10.77.0.i+1. Then orders come on standard
input, one line each, for one direction of one link, and are answered by `ok`:

    FROM TO SECONDS BYTES_PER_SECOND QUEUE_BYTES LARGEST

A rate of 0 is no limit; packets above LARGEST bytes vanish, as behind a link whose MTU nobody tells
(0: none). It ends with its standard input.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST_PACKET = 65536
_AT_ONCE = 64  # packets of one host before the others are looked at
_DESTINATION = 19  # the last byte of where an IPv4 packet goes to
_FIRST_HOST = 1


@dataclass
class Link:
    """One direction between two hosts: a queue that drains at a rate, and a way behind it."""

    seconds: float = 0.0
    rate: float = 0.0
    limit: int = 1 << 30
    largest: int = 0
    free_at: float = 0.0  # when the queue will be empty
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, packet: bytes, now: float) -> None:
        """Take a packet in, or drop it."""
        if self.largest and len(packet) > self.largest:
            return
        leaves = now
        if self.rate:
            start = max(self.free_at, now)
            if (start - now) * self.rate + len(packet) > self.limit:
                return  # the queue is full: the newest goes
            leaves = self.free_at = start + len(packet) / self.rate
        self.under_way.append((leaves + self.seconds, packet))

    def arrived(self, now: float) -> list[bytes]:
        """Return what is there by now."""
        packets = []
        while self.under_way and self.under_way[0][0] <= now:
            packets.append(self.under_way.popleft()[1])
        return packets


def open_tun(namespace: str) -> int:
    """Make the device `t0` in a namespace; return its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"t0", _IFF_TUN | _IFF_NO_PI))
        return tun
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(there)
        os.close(home)


class Router:
    """Moves packets between the hosts until standard input ends."""

    def __init__(self, prefix: str, count: int) -> None:
        self._tuns = [open_tun(f"{prefix}{host}") for host in range(count)]
        self._links = {(a, b): Link() for a in range(count) for b in range(count)}
        self._orders = b""
        self._poll = select.poll()
        for descriptor in (*self._tuns, 0):
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> None:
        """Route."""
        while True:
            ready = self._poll.poll(self._wait())
            for descriptor, _ in ready:
                if descriptor == 0:
                    if not self._obey():
                        return
                else:
                    self._read(self._tuns.index(descriptor))
            self._deliver()

    def _wait(self) -> float | None:
        moments = [link.under_way[0][0] for link in self._links.values() if link.under_way]
        return max(0.0, (min(moments) - time.monotonic()) * 1000) if moments else None

    def _read(self, host: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self._tuns[host], _LARGEST_PACKET)
            except BlockingIOError:
                return
            target = packet[_DESTINATION] - _FIRST_HOST if packet[0] >> 4 == 4 else -1
            link = self._links.get((host, target))
            if link is not None:
                link.take(packet, time.monotonic())

    def _deliver(self) -> None:
        now = time.monotonic()
        for (_, target), link in self._links.items():
            for packet in link.arrived(now):
                try:
                    os.write(self._tuns[target], packet)
                except OSError:
                    pass  # lost, as on any way

    def _obey(self) -> bool:
        data = os.read(0, _LARGEST_PACKET)
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            source, target, seconds, rate, limit, largest = line.split()
            link = self._links[int(source), int(target)]
            link.seconds, link.rate = float(seconds), float(rate)
            link.limit, link.largest = int(limit), int(largest)
            print("ok", flush=True)
        return bool(data)


if __name__ == "__main__":
    router = Router(sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    router.run()
