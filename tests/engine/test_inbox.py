import pytest

from raft.engine.inbox import (
    Apply,
    ByteBudget,
    CommitAdvanced,
    Inbox,
    NewerTermSeen,
    VerifyLeader,
)
from raft.errors import EnqueueTimeoutError, NotLeaderError, ShutdownNotAppliedError
from raft.futures import Future, IndexFuture
from raft.messages import TimeoutNowRequest
from raft.runtime import Deadline
from raft.testing.manual import ManualRuntime
from raft.testing.script import Asked, header
from raft.types import LogType


@pytest.fixture
def runtime():
    return ManualRuntime()


@pytest.fixture
def inbox(runtime):
    return Inbox(runtime, client_limit=3)


def command(data=b"x"):
    return Apply(LogType.COMMAND, data, b"", IndexFuture())


def verify():
    return VerifyLeader(Future())


def request():
    return Asked(TimeoutNowRequest(header("n2")))


def submit(runtime, inbox, message, timeout=None):
    inbox.submit(message, Deadline(runtime, timeout))
    return message


def take_all(inbox, until):
    taken = []
    while (message := inbox.take(until)) is not None:
        taken.append(message)
    return taken


def test_control_comes_before_peers_and_clients(runtime, inbox):
    client = submit(runtime, inbox, command())
    rpc = request().rpc
    inbox.deliver(rpc)
    inbox.post(CommitAdvanced(1))
    inbox.post(NewerTermSeen(1, 2))

    taken = [inbox.take(None) for _ in range(4)]

    assert taken[:2] == [CommitAdvanced(1), NewerTermSeen(1, 2)]
    assert taken[2:] == [rpc, client]


def test_an_expired_deadline_comes_before_peers_and_clients(runtime, inbox):
    submit(runtime, inbox, command())
    inbox.deliver(request().rpc)

    assert inbox.take(runtime.now) is None


def test_control_comes_even_before_an_expired_deadline(runtime, inbox):
    inbox.post(CommitAdvanced(1))

    assert inbox.take(runtime.now) == CommitAdvanced(1)


def test_peers_and_clients_are_heard_in_turn(runtime, inbox):
    clients = [submit(runtime, inbox, command()) for _ in range(3)]
    rpcs = [request().rpc for _ in range(3)]
    for rpc in rpcs:
        inbox.deliver(rpc)

    taken = take_all(inbox, runtime.now + 1.0)

    assert taken == [rpcs[0], clients[0], rpcs[1], clients[1], rpcs[2], clients[2]]


def test_either_lane_is_heard_alone_when_the_other_is_empty(runtime, inbox):
    rpcs = [request().rpc for _ in range(3)]
    for rpc in rpcs:
        inbox.deliver(rpc)

    assert take_all(inbox, runtime.now + 1.0) == rpcs


def test_waiting_ends_with_the_deadline(runtime, inbox):
    began = runtime.now

    assert inbox.take(began + 2.0) is None

    assert runtime.now == began + 2.0


def test_news_wakes_the_main_thread(runtime, inbox):
    taken = []
    runtime.spawn("main", lambda: taken.append(inbox.take(None)))
    runtime.run()

    inbox.post(CommitAdvanced(1))
    runtime.run()

    assert taken == [CommitAdvanced(1)]


def test_a_poke_makes_one_take_return(runtime, inbox):
    inbox.post(CommitAdvanced(1))

    inbox.poke()

    assert inbox.take(None) is None
    assert inbox.take(None) == CommitAdvanced(1)


def test_waiting_for_the_disk_hears_clients_only(runtime, inbox):
    inbox.post(CommitAdvanced(1))
    inbox.deliver(request().rpc)
    client = submit(runtime, inbox, command())

    assert inbox.take(None, only_clients=True) is client
    assert inbox.take(runtime.now + 1.0, only_clients=True) is None
    assert inbox.take(None) == CommitAdvanced(1)


def test_a_request_put_back_is_heard_first(runtime, inbox):
    first, second = request().rpc, request().rpc
    client = submit(runtime, inbox, command())
    inbox.deliver(first)
    inbox.deliver(second)
    assert inbox.take(None) is first

    inbox.put_back(first)

    assert [inbox.take(None) for _ in range(3)] == [first, client, second]


# ---- room ----


def test_a_client_without_room_waits_until_its_deadline(runtime, inbox):
    for _ in range(3):
        submit(runtime, inbox, command())
    began = runtime.now

    with pytest.raises(EnqueueTimeoutError):
        submit(runtime, inbox, command(), timeout=0.5)

    assert runtime.now == began + 0.5


def test_a_ticket_that_timed_out_is_never_heard(runtime, inbox):
    heard = [submit(runtime, inbox, command(b"in time")) for _ in range(3)]
    with pytest.raises(EnqueueTimeoutError):
        submit(runtime, inbox, command(b"too late"), timeout=0.5)

    assert take_all(inbox, runtime.now + 1.0) == heard


def test_a_client_gets_the_room_that_the_main_thread_makes(runtime, inbox):
    for _ in range(3):
        submit(runtime, inbox, command())
    late, done = command(b"late"), []
    runtime.spawn("client", lambda: done.append(submit(runtime, inbox, late)))
    runtime.run()
    assert done == []

    inbox.take(None)
    runtime.run()

    assert done == [late]
    assert take_all(inbox, runtime.now + 1.0)[-1] is late


def test_group_commit_makes_room_as_well(runtime, inbox):
    for _ in range(3):
        submit(runtime, inbox, command())
    done = []
    for _ in range(3):
        runtime.spawn("client", lambda: done.append(submit(runtime, inbox, command())))
    runtime.run()

    inbox.take_ready(3, 1000)
    runtime.run()

    assert len(done) == 3


def test_peers_and_the_node_itself_never_wait_for_room(runtime, inbox):
    for _ in range(100):
        inbox.post(CommitAdvanced(1))
        inbox.deliver(request().rpc)

    assert len(take_all(inbox, runtime.now + 1.0)) == 200


# ---- group commit ----


def test_the_applies_in_front_are_taken_together(runtime, inbox):
    applies = [submit(runtime, inbox, command()) for _ in range(3)]

    assert inbox.take_ready(2, 1000) == applies[:2]
    assert inbox.take_ready(2, 1000) == applies[2:]
    assert inbox.take_ready(2, 1000) == []


def test_what_is_no_apply_ends_the_group(runtime, inbox):
    first, other, second = (
        submit(runtime, inbox, command()),
        submit(runtime, inbox, verify()),
        submit(runtime, inbox, command()),
    )

    assert inbox.take_ready(9, 1000) == [first]
    assert inbox.take(None) is other
    assert inbox.take_ready(9, 1000) == [second]


def test_a_group_ends_when_it_has_enough_bytes(runtime, inbox):
    applies = [submit(runtime, inbox, command(b"x" * 10)) for _ in range(3)]

    assert inbox.take_ready(9, 15) == applies[:2]
    assert inbox.take_ready(9, 0) == []


# ---- closing ----


def test_a_closed_inbox_refuses_clients_and_peers(runtime, inbox):
    inbox.close()
    asked = request()

    with pytest.raises(ShutdownNotAppliedError):
        submit(runtime, inbox, command())
    inbox.deliver(asked.rpc)

    assert isinstance(asked.error, ShutdownNotAppliedError)


def test_closing_wakes_the_main_thread_and_whoever_waits_for_room(runtime, inbox):
    for _ in range(3):
        submit(runtime, inbox, command())
    seen = []

    def client():
        try:
            submit(runtime, inbox, command())
        except ShutdownNotAppliedError:
            seen.append("refused")

    runtime.spawn("client", client)
    runtime.spawn("main", lambda: seen.append(inbox.take(None, only_clients=True)))
    runtime.run()
    seen.clear()
    runtime.spawn("client", client)
    runtime.run()

    inbox.close()
    runtime.run()

    assert seen == ["refused"]
    assert inbox.take(None) is None


def test_draining_hands_out_everything_once(runtime, inbox):
    client, asked = submit(runtime, inbox, command()), request()
    inbox.deliver(asked.rpc)
    inbox.post(CommitAdvanced(1))
    inbox.close()

    left = inbox.drain()

    assert (left.clients, left.rpcs, left.control) == ([client], [asked.rpc], [CommitAdvanced(1)])
    again = inbox.drain()
    assert (again.clients, again.rpcs, again.control) == ([], [], [])


# ---- bytes ----


def test_a_budget_lets_in_as_much_as_fits(runtime):
    budget = ByteBudget(runtime, 10)

    assert budget.acquire(6, Deadline(runtime, 0.0))
    assert budget.acquire(4, Deadline(runtime, 0.0))
    assert not budget.acquire(1, Deadline(runtime, 0.5))


def test_a_lone_command_always_finds_room(runtime):
    assert ByteBudget(runtime, 10).acquire(11, Deadline(runtime, 0.0))


def test_bytes_given_back_let_the_next_one_in(runtime):
    budget, done = ByteBudget(runtime, 10), []
    budget.acquire(10, Deadline(runtime, 0.0))
    runtime.spawn("client", lambda: done.append(budget.acquire(5, Deadline(runtime, None))))
    runtime.run()
    assert done == []

    budget.release(10)
    runtime.run()

    assert done == [True]


def test_a_closed_budget_lets_everybody_through(runtime):
    budget, done = ByteBudget(runtime, 10), []
    budget.acquire(10, Deadline(runtime, 0.0))
    runtime.spawn("client", lambda: done.append(budget.acquire(5, Deadline(runtime, None))))
    runtime.run()

    budget.close()
    runtime.run()

    assert done == [True]


@pytest.mark.parametrize("answer", ["succeed", "fail"])
def test_an_answer_gives_the_bytes_back_once(runtime, answer):
    budget = ByteBudget(runtime, 10)
    apply = command(b"x" * 10)
    apply.budget = budget
    budget.acquire(apply.size(), Deadline(runtime, 0.0))

    if answer == "succeed":
        apply.succeed(1)
    else:
        apply.fail(NotLeaderError())
    apply.succeed(2)
    apply.fail(NotLeaderError())

    assert budget.acquire(10, Deadline(runtime, 0.0))
    assert not budget.acquire(1, Deadline(runtime, 0.0))


def test_several_small_commands_fit_where_a_large_one_was(runtime):
    budget, done = ByteBudget(runtime, 10), []
    budget.acquire(10, Deadline(runtime, 0.0))
    for _ in range(3):
        runtime.spawn("client", lambda: done.append(budget.acquire(3, Deadline(runtime, None))))
    runtime.run()

    budget.release(10)
    runtime.run()

    assert done == [True, True, True]
