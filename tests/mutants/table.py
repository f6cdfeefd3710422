"""The mutants: what to change in which file, and the rule that is broken by it.

A mutant that no test can notice, because it changes nothing anybody could see, does not belong
here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change; `old` stands in the file exactly once."""

    rule: str
    old: str
    new: str


@dataclass(frozen=True)
class Target:
    """A file's mutants, and the tests that are likely to catch them: those run first."""

    file: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]


VOTE = Target(
    "raft/engine/request_vote.py",
    ("tests/engine/test_request_vote.py",),
    (
        Mutant(
            "a newer term is taken over with a vote (§5.1)",
            "        if request.term > core.state.term:",
            "        if False:",
        ),
        Mutant(
            "a candidate of the past gets no vote",
            "is_transfer=request.leadership_transfer)\n"
            "    if reason is None and request.term < core.state.term:",
            "is_transfer=request.leadership_transfer)\n    if False:",
        ),
        Mutant(
            "a candidate of the present term may get a vote",
            "is_transfer=request.leadership_transfer)\n"
            "    if reason is None and request.term < core.state.term:",
            "is_transfer=request.leadership_transfer)\n"
            "    if reason is None and request.term <= core.state.term:",
        ),
        Mutant(
            "a pre-vote for a term of the past is refused",
            "is_transfer=False)\n    if reason is None and request.term < core.state.term:",
            "is_transfer=False)\n    if False:",
        ),
        Mutant(
            "a pre-vote for the present term may be granted",
            "is_transfer=False)\n    if reason is None and request.term < core.state.term:",
            "is_transfer=False)\n    if reason is None and request.term <= core.state.term:",
        ),
        Mutant(
            "a vote is durable before it is given",
            "if core.hard_state.voted_for != request.header.id:",
            "if False:",
        ),
        Mutant(
            "a vote given counts as contact",
            'core.state.touch(core.runtime.monotonic())\n    core.log.info("vote granted',
            'core.log.info("vote granted',
        ),
        Mutant(
            "a pre-vote answers with the term asked for",
            "term = max(request.term, core.state.term)",
            "term = core.state.term",
        ),
        Mutant(
            "who has no vote does not campaign when asked to",
            "if not core.membership.latest.has_vote(core.local_id) or not may_campaign(core):",
            "if not may_campaign(core):",
        ),
        Mutant(
            "who is not fit does not campaign when asked to",
            "if not core.membership.latest.has_vote(core.local_id) or not may_campaign(core):",
            "if not core.membership.latest.has_vote(core.local_id):",
        ),
        Mutant(
            "a transfer's candidacy is privileged (3.10)",
            "core.transfer_candidacy = True",
            "core.transfer_candidacy = False",
        ),
        Mutant("a campaign forgets the leader", 'core.set_leader("", "")', "pass"),
        Mutant(
            "no candidacy after a failed write",
            "is_sound = core.fault is None and core.disk.is_fit()",
            "is_sound = core.disk.is_fit()",
        ),
        Mutant(
            "no candidacy while the disk is unfit",
            "is_sound = core.fault is None and core.disk.is_fit()",
            "is_sound = core.fault is None",
        ),
        Mutant(
            "no candidacy with a damaged log",
            "core.disk.is_fit() and core.damage.is_whole()",
            "core.disk.is_fit()",
        ),
        Mutant(
            "no candidacy with a poisoned state machine",
            "return is_sound and core.fsm.restores.poison is None",
            "return is_sound",
        ),
        Mutant(
            "an equal log is up to date (§5.4.1)",
            "return candidate >= own",
            "return candidate > own",
        ),
        Mutant(
            "the last term decides before the length (§5.4.1)",
            "return candidate >= own",
            "return candidate.index >= own.index",
        ),
        Mutant(
            "of two logs of one term the longer is newer (§5.4.1)",
            "return candidate >= own",
            "return candidate.term >= own.term",
        ),
        Mutant("a candidate must name itself", "if not candidate.id:", "if False:"),
        Mutant(
            "a stranger does not even raise the term",
            "if members.latest != EMPTY_CONFIGURATION and known is None:",
            "if False:",
        ),
        Mutant(
            "a node without configuration may vote",
            "if members.latest != EMPTY_CONFIGURATION and known is None:",
            "if known is None:",
        ),
        Mutant(
            "no vote from a disk that is not fit",
            "if core.fault is not None or not core.disk.is_fit():",
            "if False:",
        ),
        Mutant(
            "no vote from a damaged log",
            'if not core.damage.is_whole():\n        return "log is damaged"',
            'if False:\n        return "log is damaged"',
        ),
        Mutant(
            "a known leader is not disturbed (4.2.3)",
            "if leader_id and candidate.id != leader_id and not is_transfer:",
            "if False:",
        ),
        Mutant(
            "a transfer may disturb the leader (3.10)",
            "if leader_id and candidate.id != leader_id and not is_transfer:",
            "if leader_id and candidate.id != leader_id:",
        ),
        Mutant(
            "the known leader itself may campaign (H15)",
            "if leader_id and candidate.id != leader_id and not is_transfer:",
            "if leader_id and not is_transfer:",
        ),
        Mutant(
            "who has no vote gets none",
            "if members.latest != EMPTY_CONFIGURATION and not members.may_lead(candidate.id):",
            "if False:",
        ),
        Mutant(
            "one vote a term (§5.2)", "if voted_for and voted_for != candidate.id:", "if False:"
        ),
        Mutant(
            "a vote is given again to whom it was given",
            "if voted_for and voted_for != candidate.id:",
            "if voted_for:",
        ),
        Mutant(
            "a vote needs a log that is up to date",
            "            or _refusal_of_log(core, request.last_log_term, request.last_log_index)\n",
            "",
        ),
        Mutant(
            "a pre-vote needs a voter",
            "reason = _refusal_of_suffrage(core, request.header) or _refusal_of_log(",
            "reason = _refusal_of_log(",
        ),
    ),
)

CANDIDATE = Target(
    "raft/roles/candidate.py",
    ("tests/roles/test_candidate.py",),
    (
        Mutant("exactly a majority wins", ">= self.needed", "> self.needed"),
        Mutant("less than a majority does not win", ">= self.needed", ">= self.needed - 1"),
        Mutant(
            "a transfer's privilege ends with the candidacy",
            'candidacy."""\n        self.core.transfer_candidacy = False',
            'candidacy."""',
        ),
        Mutant(
            "a transfer's privilege is for the first round",
            "self.core.transfer_candidacy = False\n        self._start_round()",
            "self._start_round()",
        ),
        Mutant(
            "a node that is not fit gives up campaigning",
            "if not may_campaign(core) or not core.membership",
            "if not core.membership",
        ),
        Mutant(
            "nor does it win the round that runs",
            "if not may_campaign(core):\n",
            "if False:\n",
        ),
        Mutant(
            "a node without a vote gives up campaigning",
            "if not may_campaign(core) or not core.membership.may_lead(core.local_id):",
            "if not may_campaign(core):",
        ),
        Mutant(
            "who was removed does not count its own vote (4.2.2)",
            "if self._has_vote():\n            self._count",
            "if True:\n            self._count",
        ),
        Mutant(
            "a transfer skips the pre-vote",
            "if may_ask and not core.transfer_candidacy:",
            "if may_ask:",
        ),
        Mutant(
            "an election begins with a pre-vote (9.6)",
            "if may_ask and not core.transfer_candidacy:",
            "if False:",
        ),
        Mutant(
            "the pre-vote can be disabled",
            "wants_to_ask = not core",
            "wants_to_ask = True or not core",
        ),
        Mutant(
            "who may be removed for good asks before it campaigns",
            "pre_vote_disabled or not self._has_vote()",
            "pre_vote_disabled",
        ),
        Mutant(
            "an election begins a new term (§5.2)",
            "term = core.hard_state.term + 1\n",
            "term = core.hard_state.term\n",
        ),
        Mutant(
            "the vote for itself is durable",
            "HardState(term, core.local_id, core.header.address)",
            'HardState(term, "", "")',
        ),
        Mutant(
            "no request after a term that could not be written",
            "return\n        self._ask(is_pre_vote=False)",
            "pass\n        self._ask(is_pre_vote=False)",
        ),
        Mutant("rounds are numbered", "core.elections.rounds += 1", "pass"),
        Mutant("a pre-vote asks for the next term", "(1 if is_pre_vote else 0)", "0"),
        Mutant(
            "the latest configuration decides the quorum (§4.1)",
            "Tally(core.membership.latest.quorum())",
            "Tally(core.membership.committed.quorum())",
        ),
        Mutant(
            "the voters are asked, nobody else",
            "in core.membership.latest.voters():",
            "in core.membership.latest.servers:",
        ),
        Mutant(
            "a request says that it is a transfer's",
            "last.index, last.term, core.transfer_candidacy",
            "last.index, last.term, False",
        ),
        Mutant("the own vote counts", "self._count(core.local_id)", "pass"),
        Mutant("answers of lost rounds do not count", "if vote.round != self.round:", "if False:"),
        Mutant(
            "a newer term ends the candidacy (§5.1)",
            "if vote.term > self.campaign_term:",
            "if False:",
        ),
        Mutant(
            "an answer of the campaign's term does not end it",
            "if vote.term > self.campaign_term:",
            "if vote.term >= self.campaign_term:",
        ),
        Mutant(
            "a newer term is taken over",
            "core.become_follower(vote.term)",
            "core.become(RaftState.FOLLOWER)",
        ),
        Mutant("a refusal is no vote", "elif not vote.granted:", "elif False:"),
        Mutant("a pre-vote wins no leadership", "if self.is_pre_vote:", "if False:"),
        Mutant(
            "the winner is known as the leader",
            "core.set_leader(core.local_id, core.header.address)",
            "pass",
        ),
        Mutant(
            "a peer that knows no pre-vote grants it",
            "is_pre_vote and _UNKNOWN_COMMAND in str(error)",
            "False",
        ),
        Mutant(
            "a peer's other errors grant nothing",
            "is_pre_vote and _UNKNOWN_COMMAND in str(error)",
            "is_pre_vote",
        ),
        Mutant(
            "a vote is not granted by an error",
            "is_pre_vote and _UNKNOWN_COMMAND in str(error)",
            "_UNKNOWN_COMMAND in str(error)",
        ),
    ),
)

APPEND = Target(
    "raft/engine/append_entries.py",
    ("tests/engine/test_append_entries.py", "tests/engine/test_damage.py"),
    (
        Mutant(
            "a leader of the past is refused (§5.1)",
            "if request.term < core.state.term:  #",
            "if False:  #",
        ),
        Mutant(
            "the present leader is heard",
            "if request.term < core.state.term:  #",
            "if request.term <= core.state.term:  #",
        ),
        Mutant("nothing is stored after a failed write", "if core.fault is not None:", "if False:"),
        Mutant(
            "a newer term is taken over",
            "if request.term > core.state.term or core.state.role is not RaftState.FOLLOWER:",
            "if core.state.role is not RaftState.FOLLOWER:",
        ),
        Mutant(
            "a candidate yields to the leader of its term (§5.2)",
            "if request.term > core.state.term or core.state.role is not RaftState.FOLLOWER:",
            "if request.term > core.state.term:",
        ),
        Mutant(
            "the sender is the leader",
            "core.set_leader(request.header.id, request.header.address)",
            "pass",
        ),
        Mutant(
            "a refused request is contact, too (H16)",
            "(H16).\n    core.state.touch(core.runtime.monotonic())",
            "(H16).",
        ),
        Mutant(
            "entries bring the cluster's id",
            "if not request.is_heartbeat():\n        core.adopt_cluster_id(rpc)",
            "pass",
        ),
        Mutant("a refusal asks for no pause", "no_retry_backoff=True", "no_retry_backoff=False"),
        Mutant(
            "only what was shown to match commits (departure 1)",
            "min(request.leader_commit, request.prev_log_index + len(request.entries))",
            "request.leader_commit",
        ),
        Mutant(
            "no more commits than the leader says",
            "min(request.leader_commit, request.prev_log_index + len(request.entries))",
            "request.prev_log_index + len(request.entries)",
        ),
        Mutant(
            "what matches commits, up to its last entry",
            "min(request.leader_commit, request.prev_log_index + len(request.entries))",
            "min(request.leader_commit, request.prev_log_index)",
        ),
        Mutant(
            "what came back after a lost tail is applied (law 3)",
            "core.fsm.commit(core.state.commit_index)",
            "pass",
        ),
        Mutant(
            "before a user restore nothing matches (departure 19)",
            "if unsettled is not None and index < unsettled.index:",
            "if False:",
        ),
        Mutant(
            "a user restore itself may match",
            "if unsettled is not None and index < unsettled.index:",
            "if unsettled is not None and index <= unsettled.index:",
        ),
        Mutant(
            "what is compacted matches (departure 4)",
            "return index <= core.raft_log.boundary().index",
            "return False",
        ),
        Mutant(
            "what is missing does not match (§5.3)",
            "return index <= core.raft_log.boundary().index",
            "return True",
        ),
        Mutant(
            "an entry of another term does not match (§5.3)",
            "if own_term == term:\n        return True",
            "if own_term:\n        return True",
        ),
        Mutant(
            "a conflict before the entries halts, too (departure 3)",
            "_halt_on_conflict(core, index, own_term, term)\n",
            "",
        ),
        Mutant(
            "a probe from the beginning of a restored log is answered",
            "if request.prev_log_index > NO_INDEX or not request.entries:",
            "if request.prev_log_index > NO_INDEX:",
        ),
        Mutant(
            "entries from the first on show that a restore never happened",
            "if request.term > unsettled.term:",
            "if False:",
        ),
        Mutant(
            "only a later leader shows that a restore never happened",
            "if request.term > unsettled.term:",
            "if request.term >= unsettled.term:",
        ),
        Mutant(
            "committed entries are never truncated (departure 3)",
            "if index <= max(core.settled_index(), core.membership.committed_index):",
            "if False:",
        ),
        Mutant(
            "the last committed entry is never truncated",
            "if index <= max(core.settled_index(), core.membership.committed_index):",
            "if index < max(core.settled_index(), core.membership.committed_index):",
        ),
        Mutant("what a snapshot covers is passed over", "if log.index < boundary:", "if False:"),
        Mutant(
            "a conflict at the snapshot's last entry is seen",
            "if log.index < boundary:",
            "if log.index <= boundary:",
        ),
        Mutant("a conflicting suffix gives way (§5.3)", "if own_term != log.term:", "if False:"),
        Mutant("entries that are here stay (H8)", "if own_term != log.term:", "if True:"),
        Mutant(
            "a conflict with a committed entry halts (departure 3)",
            "_halt_on_conflict(core, log.index, own_term, log.term)",
            "pass",
        ),
        Mutant(
            "only what is missing is written (H8)",
            "except LogNotFoundError:\n            return _checked(request.entries[position:])",
            "except LogNotFoundError:\n            return _checked(request.entries)",
        ),
        Mutant(
            "an entry changed on its way is refused (departure 16)",
            "if log.checksum and not log.is_intact():",
            "if False:",
        ),
        Mutant(
            "entries are stored with checksums (departure 16)",
            "return [log.sealed() for log in logs]",
            "return list(logs)",
        ),
        Mutant(
            "what is acknowledged is durable (law 6)",
            'core.write("entries",',
            'core.disk.submit("entries",',
        ),
        Mutant(
            "entries take the commit index along",
            "core.raft_log.replace_suffix(first, logs, commit)",
            "core.raft_log.replace_suffix(first, logs)",
        ),
        Mutant("a truncated configuration is forgotten (§4.1)", "members.truncate(first)", "pass"),
        Mutant(
            "a configuration counts once it is stored (§4.1)",
            "members.append(log.index, configuration)",
            "pass",
        ),
        Mutant(
            "a configuration that is known as committed stays so (law 3)",
            "if log.index > members.committed_index:",
            "if True:",
        ),
        Mutant("a log becomes whole by entries", "core.damage.look()", "pass"),
        Mutant(
            "a configuration that another follows is never truncated (§4.1)",
            "max(core.settled_index(), core.membership.committed_index)",
            "core.settled_index()",
        ),
    ),
)

COMMITMENT = Target(
    "raft/engine/commitment.py",
    ("tests/engine/test_commitment.py",),
    (
        Mutant(
            "half of an even number is no majority",
            "(len(ascending) - 1) // 2",
            "len(ascending) // 2",
        ),
        Mutant("the slower half decides", "sorted(match_indexes)", "sorted(match_indexes)[::-1]"),
        Mutant(
            "others than voters do not count",
            "self._match.get(server_id, index):",
            "self._match.get(server_id, NO_INDEX):",
        ),
        Mutant("a match never falls", "if index > self._match.get", "if index != self._match.get"),
        Mutant(
            "who has got exactly so far is reported",
            "reached = index >= self._watched.get(server_id, index + 1)",
            "reached = index > self._watched.get(server_id, index + 1)",
        ),
        Mutant("who has got so far is reported once", "del self._watched[server_id]", "pass"),
        Mutant(
            "voters that stay keep their matches",
            "{s.id: self._match.get(s.id, NO_INDEX) for s in",
            "{s.id: NO_INDEX for s in",
        ),
        Mutant(
            "a removal may commit by itself",
            "for s in configuration.voters()}\n            announce = self._recalculate()",
            "for s in configuration.voters()}\n            announce = False",
        ),
        Mutant(
            "an advance is announced anew", "self._announced = False\n            return", "return"
        ),
        Mutant(
            "advances are announced once until heard",
            "announce, self._announced = not self._announced, True",
            "announce = True",
        ),
        Mutant(
            "nothing of an earlier term commits by counting (§5.4.2)",
            " or index < self._start_index:",
            ":",
        ),
        Mutant(
            "the first entry of the own term commits (§5.4.2)",
            " or index < self._start_index:",
            " or index <= self._start_index:",
        ),
        Mutant(
            "the commit index never falls",
            "if index <= self.commit_index or index < self._start_index:",
            "if index < self._start_index:",
        ),
        Mutant(
            "a non-voter of the start does not count",
            "NO_INDEX for s in configuration.voters()}\n        self._retired",
            "NO_INDEX for s in configuration.servers}\n        self._retired",
        ),
        Mutant("who was removed reports no more", "if source in self._retired:", "if False:"),
    ),
)

MEMBERSHIP = Target(
    "raft/engine/membership.py",
    ("tests/engine/test_membership.py",),
    (
        Mutant(
            "a change of an outdated configuration is refused",
            "if prev_index > NO_INDEX and prev_index != current_index:",
            "if False:",
        ),
        Mutant(
            "a change may leave the configuration's index out",
            "if prev_index > NO_INDEX and prev_index != current_index:",
            "if prev_index != current_index:",
        ),
        Mutant(
            "a configuration that cannot work is refused",
            "        check_configuration(changed)\n",
            "        pass\n",
        ),
        Mutant("a removed server is gone", "if kind is not ChangeKind.REMOVE_SERVER:", "if True:"),
        Mutant(
            "a new non-voter has no vote",
            "Server(server_id, address, NONVOTER)",
            "Server(server_id, address, VOTER)",
        ),
        Mutant(
            "adding a voter promotes a non-voter",
            "return Server(server.id, address, VOTER)",
            "return replace(server, address=address)",
        ),
        Mutant(
            "adding a non-voter does not demote",
            "return replace(server, address=address)  #",
            "return Server(server.id, address, NONVOTER)  #",
        ),
        Mutant(
            "demoting takes the vote",
            "return replace(server, suffrage=NONVOTER)",
            "return server",
        ),
        Mutant(
            "who is not removed for good may lead (4.2.2)",
            " or self.committed.has_vote(server_id)",
            "",
        ),
        Mutant(
            "a voter to be may lead",
            "return self.latest.has_vote(server_id) or self",
            "return self",
        ),
        Mutant("only who is staging is promoted", "if server.suffrage is STAGING:", "if True:"),
        Mutant(
            "one change at a time (§4.1)",
            "return self.latest_index == self.committed_index",
            "return True",
        ),
        Mutant(
            "a next configuration shows that the one before is committed",
            "self.committed, self.committed_index = self.latest, self.latest_index\n"
            "        self._take(index, configuration)",
            "self._take(index, configuration)",
        ),
        Mutant(
            "a configuration is committed with its own entry",
            "commit_index < self.latest_index:",
            "commit_index <= self.latest_index:",
        ),
        Mutant(
            "a configuration is not committed before its entry",
            "if self.is_stable() or commit_index < self.latest_index:",
            "if self.is_stable():",
        ),
        Mutant(
            "truncating takes the configuration's own entry, too",
            "if first <= self.latest_index:",
            "if first < self.latest_index:",
        ),
        Mutant(
            "truncating behind it leaves a configuration",
            "if first <= self.latest_index:",
            "if True:",
        ),
        Mutant(
            "a later configuration in the log outlives a snapshot",
            "if self.latest_index <= index:",
            "if True:",
        ),
        Mutant(
            "a snapshot's configuration replaces an earlier one",
            "if self.latest_index <= index:",
            "if False:",
        ),
        Mutant(
            "the log's last entry may hold the configuration",
            "while first <= log.durable_index():",
            "while first < log.durable_index():",
        ),
    ),
)

CHANGES = Target(
    "raft/roles/changes.py",
    ("tests/roles/test_changes.py", "tests/roles/test_leader.py"),
    (
        Mutant(
            "one change at a time (§4.1)",
            "while (self._promotions or self._queue) and self._may_change():",
            "while self._promotions or self._queue:",
        ),
        Mutant(
            "a change whose time is over is not made",
            "if message is not fresh and message.deadline.is_over():",
            "if False:",
        ),
        Mutant(
            "who has a vote need not catch up",
            "if message.catch_up and not self._core.membership.latest.has_vote(message.server_id):",
            "if message.catch_up:",
        ),
        Mutant(
            "a configuration counts its own majority (§4.1)",
            "self._commitment.set_configuration(configuration)",
            "pass",
        ),
        Mutant(
            "a configuration is in force once appended (§4.1)",
            "members.append_own(index, configuration)",
            "pass",
        ),
        Mutant(
            "replication follows the configuration", "self._peers.follow(configuration)", "pass"
        ),
        Mutant(
            "who is removed catches up no longer",
            "if configuration.server(i) is None]",
            "if False]",
        ),
        Mutant(
            "a server catches up once at a time",
            "if message.server_id in self._catching_up:",
            "if False:",
        ),
        Mutant(
            "a server enters without a vote (4.2.1)",
            "replace(message, kind=ChangeKind.ADD_NONVOTER, future=IndexFuture())",
            "replace(message, future=IndexFuture())",
        ),
        Mutant(
            "a round ends where it was to end",
            "self._commitment.watch(server_id, goal)",
            "self._commitment.watch(server_id, 0)",
        ),
        Mutant(
            "only a short round shows that a server keeps up (4.2.1)",
            "if now - entry.began <= self._core.config.election_timeout:",
            "if True:",
        ),
        Mutant(
            "a server that is too slow is given up",
            "elif entry.rounds == _MOST_ROUNDS:",
            "elif False:",
        ),
        Mutant("rounds are counted", "entry.rounds += 1", "pass"),
        Mutant("a round is timed from its own beginning", "entry.began = now\n", "pass\n"),
        Mutant(
            "a next round goes to the log's end of then",
            "entry.goal = self._core.raft_log.last_index()",
            "pass",
        ),
        Mutant(
            "a promotion comes before the changes that wait",
            "self._promotions.append(promotion)",
            "self._queue.append(promotion)",
        ),
        Mutant("a promotion needs no catching up", "catch_up=False,", "catch_up=True,"),
        Mutant(
            "a promotion compares no index",
            "                prev_index=NO_INDEX,\n",
            "",
        ),
        Mutant(
            "a promotion is not too late",
            "                deadline=Deadline(self._core.runtime, None),\n",
            "",
        ),
        Mutant(
            "a silent server is given up",
            "elif now - max(heard.get(server_id, now), entry.began) > silence:",
            "elif False:",
        ),
        Mutant(
            "catching up has the caller's deadline",
            "if entry.message.deadline.is_over():",
            "if False:",
        ),
        Mutant(
            "who was let in already learns that its outcome is unknown",
            "entry.message.fail(loss)",
            "entry.message.fail(refusal)",
        ),
        Mutant(
            "so does who waits for its promotion",
            "self._promotions.popleft().fail(loss)",
            "self._promotions.popleft().fail(refusal)",
        ),
        Mutant(
            "who is promoted stays where it has moved to",
            "replace(message, address=server.address)",
            "message",
        ),
        Mutant(
            "whoever only waits is refused at the end",
            "        self.refuse_all(refusal)\n",
            "",
        ),
    ),
)

INSTALL = Target(
    "raft/engine/install_snapshot.py",
    ("tests/engine/test_install_snapshot.py", "tests/engine/test_settling.py"),
    (
        Mutant(
            "a leader of the past is refused (§5.1)",
            "if request.term < core.state.term:\n",
            "if False:\n",
        ),
        Mutant(
            "no snapshot after a failed write",
            "if core.fault is not None or rpc.reader is None:",
            "if rpc.reader is None:",
        ),
        Mutant(
            "a snapshot of an unknown version is refused",
            "if not 0 <= request.snapshot_version <= SNAPSHOT_VERSION:",
            "if False:",
        ),
        Mutant(
            "a snapshot names usable peers",
            "check_configuration(request.configuration)\n",
            "pass\n",
        ),
        Mutant(
            "a newer term is taken over",
            "if request.term > core.state.term or core.state.role is not RaftState.FOLLOWER:",
            "if core.state.role is not RaftState.FOLLOWER:",
        ),
        Mutant(
            "a candidate yields to the leader of its term (§5.2)",
            "if request.term > core.state.term or core.state.role is not RaftState.FOLLOWER:",
            "if request.term > core.state.term:",
        ),
        Mutant(
            "the sender is the leader",
            "core.set_leader(request.header.id, request.header.address)",
            "pass",
        ),
        Mutant("a snapshot brings the cluster's id", "core.adopt_cluster_id(rpc)", "pass"),
        Mutant(
            "what is known is acknowledged at once (H4)",
            "if self._is_known(request):\n            rpc.respond",
            "if False:\n            rpc.respond",
        ),
        Mutant(
            "one snapshot at a time",
            "if self._receiving is not None and self._leader_term == request.term:",
            "if False:",
        ),
        Mutant(
            "an earlier leader's snapshot keeps nobody waiting",
            " and self._leader_term == request.term:",
            ":",
        ),
        Mutant(
            "the end of an earlier leader's snapshot is not that of the latest",
            "if received.rpc is self._receiving:",
            "if True:",
        ),
        Mutant(
            "after one snapshot the next may come",
            "            self._receiving = None\n",
            "            pass\n",
        ),
        Mutant(
            "a snapshot of a past term is not installed",
            "if request.term < core.state.term or core.state.role is not RaftState.FOLLOWER:",
            "if core.state.role is not RaftState.FOLLOWER:",
        ),
        Mutant(
            "only a follower installs",
            "if request.term < core.state.term or core.state.role is not RaftState.FOLLOWER:",
            "if request.term < core.state.term:",
        ),
        Mutant(
            "nothing is installed after a failed write",
            "if core.fault is not None:\n",
            "if False:\n",
        ),
        Mutant(
            "a snapshot that was overtaken is not installed",
            "if not self._is_known(request):",
            "if True:",
        ),
        Mutant(
            "an unsettled snapshot that was overtaken is removed",
            "if meta.unsettled:\n            self._core.unsettled.forget",
            "if False:\n            self._core.unsettled.forget",
        ),
        Mutant(
            "what is committed exactly so far is known (H4)",
            "return index <= min(core",
            "return index < min(core",
        ),
        Mutant(
            "what the log has lost again is not known",
            "return index <= min(core.settled_index(), core.raft_log.last().index)",
            "return index <= core.settled_index()",
        ),
        Mutant(
            "the state does not go back for a snapshot",
            "may_go_back=own is not None",
            "may_go_back=True",
        ),
        Mutant(
            "the same restore is known",
            "if (index, request.last_log_term) == (own.index, own.term):",
            "if False:",
        ),
        Mutant(
            "an older snapshot of a later leader undoes a restore (departure 19)",
            "return index < own.index and request.term <= own.term",
            "return index < own.index",
        ),
        Mutant(
            "an older snapshot of the same leader is late (departure 19)",
            "return index < own.index and request.term <= own.term",
            "return False",
        ),
        Mutant(
            "the state machine goes back with the log (departure 19)",
            "        core.fsm.restore(meta)\n",
            "",
        ),
        Mutant(
            "a log without the snapshot's last entry is dropped (law 4)",
            "if is_held:",
            "if True:",
        ),
        Mutant(
            "a log with the snapshot's last entry stays (Figure 5.3)",
            "if is_held:",
            "if False:",
        ),
        Mutant(
            "the snapshot's last entry is compared by its term (Figure 5.3)",
            ".term_at(last.index) == last.term",
            ".term_at(last.index) > 0",
        ),
        Mutant(
            "a log goes on behind the snapshot",
            "        core.raft_log.set_boundary(last)\n",
            "",
        ),
        Mutant("entries that are covered are deleted", "core.compact(meta.index)", "pass"),
        Mutant(
            "a later configuration in the log stays the latest",
            "core.membership.restore(",
            "core.membership.reset(",
        ),
        Mutant(
            "nothing of a dropped log's configuration stays",
            "core.membership.reset(meta.configuration_index, meta.configuration)\n"
            "            core.drop_log",
            "core.membership.restore(meta.configuration_index, meta.configuration)\n"
            "            core.drop_log",
        ),
        Mutant(
            "a user restore commits nothing by itself (departure 19)",
            "if not meta.unsettled:",
            "if True:",
        ),
        Mutant("a log becomes whole by a snapshot", "core.damage.look()", "pass"),
        Mutant(
            "a snapshot that breaks off is cancelled",
            "        sink.cancel()\n        raise",
            "        raise",
        ),
        Mutant("a snapshot has all its bytes", "if copied != size:", "if copied > size:"),
        Mutant("a snapshot has no bytes more", "if copied != size:", "if copied < size:"),
        Mutant("a restore's mark is stored", "unsettled=request.unsettled", "unsettled=False"),
    ),
)

SETTLING = Target(
    "raft/engine/settling.py",
    ("tests/engine/test_settling.py",),
    (
        Mutant("the restore's own index settles it", "upto >= meta.index", "upto > meta.index"),
        Mutant(
            "nothing before the restore settles it",
            "if meta is not None and upto >= meta.index:",
            "if meta is not None:",
        ),
        Mutant(
            "the mark is taken off the disk",
            "self._tidy(lambda: self._snapshots.settle(meta.id))",
            "pass",
        ),
        Mutant(
            "a leader's restore is as unsettled here",
            "meta if meta.unsettled else None",
            "None",
        ),
        Mutant(
            "a leader's snapshot settles what it replaces",
            "meta if meta.unsettled else None",
            "meta",
        ),
        Mutant("a restore that never happened is removed", "self.forget(older)", "pass"),
        Mutant(
            "who replaces a restore is told so", "        return True\n", "        return False\n"
        ),
    ),
)

DAMAGE = Target(
    "raft/engine/damage.py",
    ("tests/engine/test_damage.py",),
    (
        Mutant("a damaged log is not whole", "return self.upto == NO_INDEX", "return True"),
        Mutant(
            "the mark outlives a restart",
            "self.upto, self.after_term = damage_mark(self._stable)",
            "self.upto = NO_INDEX",
        ),
        Mutant(
            "an entry that is whole after all stays",
            " or self._logs.get_log(index).is_intact():",
            ":",
        ),
        Mutant(
            "what is not there any more is not cut off",
            "if not self._logs.first_index() <= index <= last or self._logs",
            "if self._logs",
        ),
        Mutant("a second damage does not forget the first", "max(self.upto, last)", "last"),
        Mutant(
            "the mark is written",
            '        self._stable.set(DAMAGE_KEY, b"%d %d" % (upto, after_term))\n',
            "",
        ),
        Mutant(
            "the mark is written first",
            "        self._mark(max(self.upto, last), max(self.after_term, term))\n"
            "        self._logs.delete_range(index, last)\n",
            "        self._logs.delete_range(index, last)\n"
            "        self._mark(max(self.upto, last), max(self.after_term, term))\n",
        ),
        Mutant(
            "all behind a spoiled entry is given up",
            "self._logs.delete_range(index, last)",
            "self._logs.delete_range(index, index)",
        ),
        Mutant(
            "a log is whole that reaches just as far",
            "last.index >= self.upto",
            "last.index > self.upto",
        ),
        Mutant(
            "a log is not whole before it reaches as far",
            "if self.upto and (last.index >= self.upto or is_later):",
            "if self.upto:",
        ),
        Mutant(
            "the mark is taken off at the end",
            'self._disk.submit("damage covered", lambda: self._stable.set(DAMAGE_KEY, b"0"))',
            "pass",
        ),
    ),
)

MUST_DROP = Target(
    "raft/engine/raft_log.py",
    ("tests/engine/test_raft_log.py", "tests/engine/test_start_up.py"),
    (
        Mutant(
            "what stands for an emptied log is noted (departure 16)",
            "        self._before_empty(boundary)  # also where another one stood for it\n",
            "",
        ),
        Mutant(
            "so it is when compaction leaves nothing",
            "self._before_empty(self._boundary)",
            "pass",
        ),
        Mutant(
            "a gap above the snapshot refuses to start (law 4)",
            "if self._first_index > boundary.index + 1:",
            "if False:",
        ),
        Mutant(
            "a log that begins right behind the snapshot is no gap",
            "if self._first_index > boundary.index + 1:",
            "if self._first_index > boundary.index:",
        ),
        Mutant(
            "a log that begins right behind the snapshot stays",
            "if self._first_index == boundary.index + 1:\n            return False",
            "if self._first_index == boundary.index + 1:\n            return True",
        ),
        Mutant(
            "a log that ends before the snapshot is dropped",
            "if self.ends_before_boundary():\n            return True",
            "if self.ends_before_boundary():\n            return False",
        ),
        Mutant(
            "a log that ends just with the snapshot does not end before it",
            "self._recent.last.index < self._boundary.index\n",
            "self._recent.last.index <= self._boundary.index\n",
        ),
        Mutant(
            "a log of another past is dropped", "return log.term != boundary.term", "return False"
        ),
        Mutant(
            "a log that goes on from the snapshot stays",
            "return log.term != boundary.term",
            "return True",
        ),
        Mutant(
            "a spoiled entry proves nothing",
            "log = self._store.get_log(boundary.index)\n        if not log.is_intact():",
            "log = self._store.get_log(boundary.index)\n        if False:",
        ),
    ),
)

PLAUSIBLE = Target(
    "raft/engine/plausible.py",
    ("tests/engine/test_plausible.py",),
    (
        Mutant("entries come in order", "if log.index != expected:", "if False:"),
        Mutant("no entry is of a later term", "if log.term > request.term:", "if False:"),
        Mutant(
            "an entry of the request's own term is believed",
            "if log.term > request.term:",
            "if log.term >= request.term:",
        ),
        Mutant(
            "nothing before the first entry has a term",
            "if request.prev_log_index == NO_INDEX and request.prev_log_term != NO_TERM:",
            "if False:",
        ),
        Mutant("no term is far ahead", "if term > own_term + FURTHEST_AHEAD:", "if False:"),
        Mutant("a snapshot has an index", "if not NO_INDEX < index <=", "if not index <="),
        Mutant("a snapshot's index is possible", "<= LARGEST_INDEX or", "or"),
        Mutant("a snapshot is of no later term", " or term > request.term:", ":"),
    ),
)

TARGETS = (
    VOTE,
    CANDIDATE,
    APPEND,
    PLAUSIBLE,
    COMMITMENT,
    MEMBERSHIP,
    CHANGES,
    INSTALL,
    SETTLING,
    DAMAGE,
    MUST_DROP,
)
