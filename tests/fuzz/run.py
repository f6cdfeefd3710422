"""Feed hostile input to the listeners: `make fuzz INPUTS=n`, for each protocol so many.

Nothing that comes in may end a thread or the node, leave a connection open, take memory out of
proportion, or keep an honest peer from being served. Inputs come in batches of a hundred, each
from a seed of its own and against a node of its own; a failure prints the command that repeats its
batch. Exit status: 0 when all is well, 1 when something was found.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests.fuzz.inputs import Inputs
from tests.fuzz.listener import CriticalRecords, Target, ViolationError
from tests.fuzz.tls import TLSTarget, hostile_tls

BATCH = 100
MEASURED_EVERY = 10  # one input of so many is watched for its memory
ADDRESS_SPACE = 2 << 30  # bytes that the whole program may map


def native_batch(chance: random.Random, critical: CriticalRecords) -> Counter[str]:
    """Feed one batch to the native protocol; return how far the inputs got."""
    inputs, target = Inputs(chance), Target(chance)
    halts = 0
    for number in range(BATCH):
        data = inputs.draw()
        feed = target.feed if number % MEASURED_EVERY else target.feed_measured
        try:
            halts += feed(data)
            target.check_service()
            if critical.texts:
                raise ViolationError(critical.texts[0])
        except ViolationError as error:
            raise ViolationError(f"input {number}: {error}\n{data[:600].hex()}") from error
    return Counter(requests=target.requests, successes=target.successes, halts=halts)


def tls_batch(chance: random.Random, critical: CriticalRecords, target: TLSTarget) -> Counter[str]:
    """Feed one batch to a TLS listener."""
    for number in range(BATCH):
        data = hostile_tls(chance, target)
        try:
            target.feed(data)
            if critical.texts:
                raise ViolationError(critical.texts[0])
        except ViolationError as error:
            raise ViolationError(f"input {number}: {error}\n{data[:600].hex()}") from error
    target.check_service()
    return Counter()


def fuzz(
    protocol: str, batches: range, seed: int, feed: Callable[[random.Random], Counter[str]]
) -> ViolationError | None:
    """Feed batches; print the figures, and return what was found."""
    begun, done = time.monotonic(), 0
    figures: Counter[str] = Counter()
    found: ViolationError | None = None
    for batch in batches:
        try:
            figures += feed(random.Random(f"{protocol}/{seed}/{batch}"))
        except ViolationError as error:
            found = error
            print(f"VIOLATION {protocol}: {error}")
            print(
                "repeat it with: python -m tests.fuzz.run"
                f" --protocol {protocol} --seed {seed} --batch {batch}"
            )
            break
        done += BATCH
    seconds = time.monotonic() - begun
    reached = "".join(f" {name}={count}" for name, count in figures.items())
    print(
        f"{protocol}: inputs={done}{reached} seconds={seconds:.0f}"
        f" rate={done / seconds:.0f}/s violations={int(found is not None)}"
    )
    return found


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="for each protocol")
    parser.add_argument("--protocol", nargs="+", default=["native", "tls"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="only this one")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    logging.getLogger().addHandler(critical := CriticalRecords())
    logging.getLogger().setLevel(logging.CRITICAL)
    batches = range(-(-options.inputs // BATCH))
    if options.batch is not None:
        batches = range(options.batch, options.batch + 1)
    found: list[ViolationError | None] = []
    if "native" in options.protocol:
        found.append(
            fuzz("native", batches, options.seed, lambda chance: native_batch(chance, critical))
        )
    if "tls" in options.protocol:
        with TLSTarget() as target:
            found.append(
                fuzz("tls", batches, options.seed, lambda c: tls_batch(c, critical, target))
            )
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main())
