"""`python -m raft.testing.simulation`: see `campaign`."""

import sys

from raft.testing.simulation.campaign import main

if __name__ == "__main__":
    sys.exit(main())
