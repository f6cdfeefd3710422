"""Some flipped bits; `python -m tests.crash.flips` flips many more."""

import random
from collections import Counter

import pytest

from tests.crash.flips import (
    AT_OPEN,
    DATABASE,
    HARMLESS,
    LOG_AHEAD,
    MARK,
    ON_READING,
    SILENT,
    UNGUARDED,
    bits_of,
    try_flips,
    victims,
)

SEED = 3


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return victims(tmp_path_factory.mktemp("flips"))


@pytest.mark.parametrize("name", ["closed", "killed"])
@pytest.mark.timeout(30)  # some stores opened and closed on a real disk
def test_no_flipped_bit_goes_unnoticed(stores, name):
    found = try_flips(stores[name], 60, random.Random(SEED))

    total = sum(found.values(), Counter())
    assert total[SILENT] == 0
    assert total[AT_OPEN] + total[ON_READING] > 10


def test_every_kind_of_page_is_there(stores):
    kinds = {kind for kind, _, _ in bits_of(stores["closed"].image)}

    assert kinds == {
        *("first page", "pointer map", "table leaf", "table interior", "index leaf"),
        *("overflow", "free trunk", "free leaf"),
    }


def test_without_the_mark_only_the_last_transaction_has_no_guard(stores):
    store = stores[UNGUARDED]
    last = len(store.image[LOG_AHEAD]) * 8 - 1000

    assert store.flip(LOG_AHEAD, last) == SILENT
    assert store.flip(LOG_AHEAD, last // 2) == AT_OPEN
    assert stores["killed"].flip(LOG_AHEAD, last) == AT_OPEN


def test_a_flipped_bit_of_the_mark_does_no_harm(stores):
    for bit in range(0, 160, 20):
        assert stores["killed"].flip(MARK, bit) == HARMLESS


def test_a_flipped_bit_of_an_entry_is_noticed_when_it_is_read(stores):
    database = stores["closed"].image[DATABASE]

    assert stores["closed"].flip(DATABASE, 8 * database.index(b"70/2 70/2")) == ON_READING
