"""Idle connections: which are kept, which are taken, which are thrown away."""

import pytest

from raft.runtime import THREADS
from raft.transport.pool import ConnectionPool
from tests.unit.transport.tools import PATIENCE, connected

TARGET = ("b", "b:1")


@pytest.fixture
def pool():
    pool = ConnectionPool(2, THREADS)
    yield pool
    pool.close()


def test_the_last_connection_given_back_is_taken_first(pool):
    with connected() as (first, _), connected() as (second, _):
        pool.give_back(TARGET, first, 0)
        pool.give_back(TARGET, second, 0)

        assert [pool.take(TARGET, None) for _ in range(3)] == [second, first, None]


def test_a_connection_is_kept_for_its_own_server_and_address(pool):
    with connected() as (one, _):
        pool.give_back(TARGET, one, 0)

        assert pool.take(("c", "b:1"), None) is None
        assert pool.take(("b", "c:1"), None) is None
        assert pool.take(TARGET, None) is one


def test_no_more_than_the_size_are_kept(pool):
    with connected() as (one, _), connected() as (two, _), connected() as (three, far):
        for each in (one, two, three):
            pool.give_back(TARGET, each, 0)

        assert pool.idle_count(TARGET) == 2
        assert far.await_input(PATIENCE) is False


def test_a_connection_that_the_peer_closed_is_not_taken(pool):
    with connected() as (one, _), connected() as (two, far):
        pool.give_back(TARGET, one, 0)
        pool.give_back(TARGET, two, 0)
        far.close()

        assert pool.take(TARGET, None) is one


def test_what_a_server_closed_that_nobody_calls_any_more_is_swept_out(pool):
    """Else each server that moved or was removed would keep its descriptors for good."""
    with connected() as (one, far), connected() as (two, _):
        pool.give_back(("gone", "b:1"), one, 0)
        pool.give_back(TARGET, two, 0)
        far.close()

        pool.sweep()

        assert pool.idle_count(("gone", "b:1")) == 0
        assert pool.take(TARGET, None) is two


def test_a_connection_on_which_the_peer_speaks_out_of_turn_is_not_taken(pool):
    with connected() as (one, far):
        pool.give_back(TARGET, one, 0)
        far.send(7, b"psst", PATIENCE)

        assert pool.take(TARGET, None) is None


def test_a_connection_that_named_another_cluster_is_not_taken(pool):
    with connected() as (one, _):
        pool.give_back(TARGET, one, 0)

        assert pool.take(TARGET, "learnt since") is None


def test_clearing_closes_what_is_kept_and_keeping_goes_on(pool):
    with connected() as (one, far), connected() as (two, _):
        pool.give_back(TARGET, one, 0)
        pool.clear()
        pool.give_back(TARGET, two, pool.generation)

        assert far.await_input(PATIENCE) is False
        assert pool.take(TARGET, None) is two


def test_what_was_in_use_while_the_pool_was_cleared_is_not_kept(pool):
    with connected() as (one, far):
        generation = pool.generation
        pool.clear()
        pool.give_back(TARGET, one, generation)

        assert far.await_input(PATIENCE) is False
        assert pool.take(TARGET, None) is None


def test_a_closed_pool_keeps_nothing(pool):
    pool.close()

    with connected() as (one, far):
        pool.give_back(TARGET, one, 0)

        assert far.await_input(PATIENCE) is False
        assert pool.take(TARGET, None) is None


def test_a_pool_of_size_zero_keeps_nothing():
    pool = ConnectionPool(0, THREADS)

    with connected() as (one, _):
        pool.give_back(TARGET, one, 0)

        assert pool.take(TARGET, None) is None
