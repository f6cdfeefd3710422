"""A small dose of `make races`; the whole of it finds what happens once in a thousand times."""

import pytest

from tests.traps.races import race

COUNT = 30


@pytest.mark.timeout(60)
def test_every_call_that_races_with_starts_transfers_and_shutdowns_is_answered() -> None:
    answers = race(COUNT)

    assert answers["NoneType"] > COUNT  # not all is refused
    assert answers["NotLeaderError"] > 0
    assert answers["ShutdownNotAppliedError"] > 0
