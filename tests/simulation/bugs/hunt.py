"""Run seeds until one finds a bug; inside a changed copy of the tree, started by `run`.

Only what an invariant, the client oracle or the liveness phase has found counts, and a node that
halts because it sees that something it rests on does not hold (`RaftInternalError`). Any other
exception is the change's own fault: the hunt goes on with the next seed.
"""

from __future__ import annotations

import json
import logging
import sys

from raft.testing.simulation.runtime import SimulationError
from raft.testing.simulation.scenario import SeedFailedError, run_seed

NODES = (3, 5)  # of a seed, in turn, as the program does


def hunt(first: int, most: int) -> dict[str, object]:
    """Return what found the bug, and at which seed; what the last crash was, if nothing did."""
    crashes, last = 0, ""
    for seed in range(first, first + most):
        try:
            run_seed(seed, NODES[seed % len(NODES)])
        except SeedFailedError as error:
            text = str(error.__cause__)
            if error.found_by != "crash":
                return {"seed": seed, "by": error.found_by, "text": text, "crashes": crashes}
            crashes, last = crashes + 1, f"{type(error.__cause__).__name__}: {text}"
        except SimulationError as error:
            crashes, last = crashes + 1, repr(error)
    return {"seed": None, "by": "nothing", "text": last, "crashes": crashes}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(hunt(int(sys.argv[1]), int(sys.argv[2]))))
