"""Bugs of terms, votes and the vote record."""

from __future__ import annotations

from tests.simulation.bugs.model import bug

VOTE = "raft/engine/request_vote.py"
CORE = "raft/engine/core.py"
CANDIDATE = "raft/roles/candidate.py"
INCARNATIONS = "raft/engine/incarnations.py"

BUGS = (
    bug(
        "vote record in memory only",
        "PySyncObj #201: term and vote are forgotten in a crash (S10)",
        CORE,
        'self.write("vote record", lambda: hard_state.save(self.stable))',
        'self.write("vote record", lambda: None)',
    ),
    bug(
        "term without its vote",
        "hashicorp/raft #661: vote and term are two writes, one is lost (H7)",
        CORE,
        "lambda: hard_state.save(self.stable)",
        "lambda: HardState(hard_state.term).save(self.stable)",
    ),
    bug(
        "vote given before it is durable",
        "the answer leaves before the disk has the vote (H7, S6)",
        VOTE,
        "        if request.term > core.state.term:\n",
        "        if reason is None:\n"
        "            rpc.respond(RequestVoteResponse(core.header, request.term, granted=True))\n"
        "        if request.term > core.state.term:\n",
    ),
    bug(
        "stepping down erases the vote",
        "CCF PR #8094, redpanda PR #19: a candidate that follows votes again in the term (H16)",
        CORE,
        "        if term > self.hard_state.term:\n            self.save",
        "        if term >= self.hard_state.term:\n            self.save",
    ),
    bug(
        "own candidacy is no vote",
        "a candidate votes for another in its own term",
        CANDIDATE,
        "core.save_hard_state(HardState(term, core.local_id, core.header.address))",
        "core.save_hard_state(HardState(term))",
    ),
    bug(
        "second vote of a term",
        "two votes in one term (§5.2)",
        VOTE,
        "            or _refusal_of_vote(core, request.header, request.term)\n",
        "",
    ),
    bug(
        "vote for a log that is behind",
        "no election restriction (§5.4.1)",
        VOTE,
        "    if not is_up_to_date(own, last):",
        "    if False:",
    ),
    bug(
        "longer logs win",
        "logs are compared by length, not by the term of their last entry (§5.4.1)",
        VOTE,
        "    return candidate >= own",
        "    return candidate.index >= own.index",
    ),
    bug(
        "late votes count",
        "answers of a lost round count in the next one",
        CANDIDATE,
        "        if vote.round != self.round:\n            return\n",
        "",
    ),
    bug(
        "elected by less than a majority",
        "openraft #1802 and others: a quorum one too small",
        CANDIDATE,
        "self.tally = Tally(core.membership.latest.quorum())",
        "self.tally = Tally(max(1, core.membership.latest.quorum() - 1))",
    ),
    bug(
        "voter that forgot counts",
        "2026: a volume is lost, the pod restarts empty under its id (departure 21)",
        INCARNATIONS,
        "        return Verdict.ANOTHER\n",
        "        return Verdict.KNOWN\n",
    ),
    bug(
        "vote of one that forgot counts",
        "only what it has stored is not believed (departure 21)",
        CANDIDATE,
        "        if verdict is Verdict.ANOTHER:\n            noted.report(",
        "        if False:\n            noted.report(",
    ),
)
