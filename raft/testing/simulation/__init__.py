"""Whole clusters of the shipped code, one task at a time, everything from one seed.

`runtime` has the scheduler and the simulated `Runtime`, `primitives` its locks and queues,
`network` and `disk` the twins of transport and stores, `cluster` nodes that crash and come back,
`scenario` what happens to them. `python -m raft.testing.simulation --help` replays a seed. Needs
`greenlet` (the extra `simulation`).
"""

__all__: list[str] = []
