"""The catalogue of seeded bugs fits the sources; `make bugs` shows that each bug is found."""

import pytest

from tests.patching import Change, WrongCheckError
from tests.simulation.bugs.catalogue import BUGS
from tests.simulation.bugs.recorded import RECORDED


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_every_bug_fits_the_sources(bug):
    for change in bug.changes:
        change.check()

    assert bug.history


def test_there_are_enough_bugs_and_each_has_a_name_of_its_own():
    names = {bug.name for bug in BUGS}

    assert len(names) == len(BUGS)
    assert len(names) >= 30
    assert RECORDED.keys() == names


@pytest.mark.parametrize("old", ["is nowhere", "a\n", "b"])
def test_a_change_that_does_not_fit_once_or_changes_nothing_is_refused(old):
    change = Change("x.py", old, "b")

    with pytest.raises(WrongCheckError, match=r"x\.py"):
        change.apply_to("a\na\nb")


def test_a_change_is_made():
    assert Change("x.py", "a", "c").apply_to("ab") == "cb"
