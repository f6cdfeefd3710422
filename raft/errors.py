"""Everything this library raises at its users, in one tree under `RaftError`.

The tree splits first by what a caller may conclude about a command: `NotAppliedError` means it
certainly has no effect and may be sent again elsewhere; `OutcomeUnknownError` means it may or may
not take effect, now or later. `docs/porting.md` maps the original's error values to these names.
"""

from __future__ import annotations


class RaftError(Exception):
    """Base of all errors of this library."""


class RaftInternalError(RaftError):
    """A broken invariant: a bug of this library or of a store. The node shuts itself down."""


class RaftShutdownError(RaftError):
    """The node has been shut down. Start a new node over the same stores."""


# ---- what may be concluded about a command ----


class NotAppliedError(RaftError):
    """The command certainly has no effect: it is safe to send it again, elsewhere or later."""


class OutcomeUnknownError(RaftError):
    """The command may or may not take effect. Read the state before sending it again."""


class ResultTimeoutError(OutcomeUnknownError, TimeoutError):
    """A wait by `result(timeout)` has ended; the request goes on. Wait again, or read the state.

    The place in the queue that was not to be had in time is an `EnqueueTimeoutError`.
    """


class NotLeaderError(NotAppliedError):
    """This node does not lead. Send the command to `leader_address`, or wait if it is empty."""

    def __init__(
        self, message: str = "node is not the leader", leader_id: str = "", leader_address: str = ""
    ) -> None:
        if leader_id:
            message = f"{message}; the leader is {leader_id} at {leader_address}"
        super().__init__(message)
        self.leader_id = leader_id
        self.leader_address = leader_address


class EnqueueTimeoutError(NotAppliedError, TimeoutError):
    """No place in the queue became free within `timeout`. Slow down, or wait longer."""


class LeadershipTransferInProgressError(NotAppliedError):
    """Leadership is being handed over. Send the command again, to the next leader."""


class RestoreInProgressError(NotAppliedError):
    """The leader is taking over a snapshot given to `Raft.restore`. Send the command again soon."""


class RestoreFailedError(NotAppliedError):
    """The leader's state machine could not restore the snapshot given to `Raft.restore`.

    Its `__cause__` is what the state machine, or the snapshot store, raised. Nothing was changed.
    """


class CommandTooLargeError(NotAppliedError, ValueError):
    """The command is larger than `Config.max_command_bytes`. Split it, or store it elsewhere."""


class DiskFullError(NotAppliedError):
    """The disk of the leader is (almost) full; nothing was written. Free some space there."""


class ShutdownNotAppliedError(RaftShutdownError, NotAppliedError):
    """The node was shut down before it took the command: it certainly has no effect."""


class ShutdownOutcomeUnknownError(RaftShutdownError, OutcomeUnknownError):
    """The node was shut down while the command was under way: it may or may not take effect."""


class LeadershipLostError(OutcomeUnknownError):
    """Leadership ended while the command was under way: it may or may not take effect."""


class AbortedByRestoreError(OutcomeUnknownError):
    """A user restore dropped what was in flight: it may or may not have taken effect."""


class StorageFailedError(OutcomeUnknownError):
    """The leader's own log store failed; other members may have stored the entry."""


# ---- membership and start-up ----


class NotVoterError(NotAppliedError):
    """The local node is not a voter of the configuration given to `bootstrap_cluster`."""


class CantBootstrapError(NotAppliedError):
    """The node has other state already: only a blank node can be bootstrapped, or again alike."""


class CantRecoverError(RaftError):
    """The stores hold nothing that a cluster could be recovered from; nothing was changed."""


class ConfigurationChangedError(NotAppliedError, ValueError):
    """The configuration has changed since `prev_index`. Read it again and decide anew."""


class InvalidConfigurationError(NotAppliedError, ValueError):
    """The change would make a configuration that cannot work; the message names the fault."""


class NoSuchServerError(InvalidConfigurationError):
    """No member has this id: it is misspelt, or an earlier call, of unknown outcome, removed it."""


class CatchUpError(RaftError):
    """The new server did not catch up, so it got no vote; it is a non-voter, if it was added.

    Find out why it lags, then call `add_voter` again, or `remove_server`.
    """


class LeadershipTransferError(RaftError):
    """Leadership was not handed over, or not in time; the message says why. Try again."""


class InvalidConfigError(RaftError, ValueError):
    """A field of `Config`, or an argument, is out of range; the message names it and the bound."""


class ClusterMismatchError(RaftError):
    """Data or peer belong to another cluster. Check addresses and data directories."""


class UnsupportedProtocolError(RaftError):
    """A peer speaks a protocol version this library does not. Upgrade the older side."""


class ForkedProcessError(RaftError):
    """A node was used in a forked child, where its threads do not exist.

    Create the node after the fork (in gunicorn: in `post_fork`, not with `preload_app`).
    """


class DeadlockError(RaftError):
    """FSM code waited for a future of its own node, which only the FSM thread can answer."""


class NoThreadError(RaftError):
    """The system gave no thread for one piece of work, which failed; the node goes on."""


# ---- state machine, snapshots ----


class FSMError(RaftError):
    """What an FSM's `apply` raised and a caller must not get as it is; the cause is inside.

    That is a `RaftError`, whose type would mislead, or a `SystemExit`, which would end the caller.
    """


class FSMFailedError(RaftError):
    """The state machine halted this node at the entry `index`; the message says what to do.

    `Raft.failure` holds it; its `__cause__` is what the state machine raised.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class FSMHaltError(Exception):
    """Raised by an FSM to halt the node: this machine, not the command, is at fault."""


class NothingNewToSnapshotError(RaftError):
    """Nothing was applied since the last snapshot, so there is nothing to write."""


class SnapshotError(RaftError):
    """A snapshot could not be taken, read or installed; the message says which and why."""


class SnapshotCorruptError(SnapshotError):
    """The content of a snapshot does not match its checksum."""


class SnapshotVersionError(SnapshotError):
    """The snapshot was written by a newer version of this library. Upgrade; nothing was changed."""


# ---- stores ----


class LogNotFoundError(RaftError, LookupError):
    """The log has no entry at this index: it is above the end, or was never stored."""


class LogCompactedError(LogNotFoundError):
    """The entry was removed by compaction; a snapshot covers it."""


class LogCorruptError(RaftError):
    """A stored entry, at `index`, does not match its checksum: the disk has changed it.

    Other servers send it again. Where there is no other voter, restore a backup of the store.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class LogGapError(RaftError):
    """The log does not join the newest snapshot. Rebuild this node (docs/stores.md)."""


class CommittedConflictError(RaftInternalError):
    """A leader offered other content for an entry that is committed here already.

    Two clusters got mixed up, or a disk lost what it had acknowledged. Rebuild this node
    (docs/stores.md).
    """


class UnsettledSnapshotError(RaftInternalError):
    """This node holds a user restore that never took hold: its cluster went on without it.

    Remove the server from the cluster, empty its directory, and add it again.
    """


class KeyNotFoundError(RaftError, LookupError):
    """The stable store has no value for this key."""


class StoreError(RaftError):
    """A store could not read or write; the message carries the cause, on the store's own disk."""


class StoreLockedError(StoreError):
    """The store is open already, here or in another process, such as a web server's other worker.

    One process runs a node, with as many threads as it likes. `backup()` copies a live store.
    """


class StoreClosedError(StoreError):
    """The store was closed."""


class StoreReadOnlyError(StoreError):
    """The store was opened for reading only. Open it without `read_only` to write."""


class StoreVersionError(StoreError):
    """The file was written by a newer version of this library. Upgrade; nothing was changed."""


class IncompatibleLogStoreError(RaftError):
    """The log store lacks a contract that the configuration asks for."""


# ---- transports ----


class TransportError(RaftError):
    """A remote call failed: no connection, no answer in time, or an error as the answer."""


class TransportShutdownError(TransportError):
    """The transport has been closed."""


class PeerUnreachableError(TransportError):
    """No connection to the peer could be made."""


class ConnectionLostError(TransportError):
    """The connection broke before the answer came; the peer may still act on the request."""


class RPCTimeoutError(TransportError, TimeoutError):
    """The peer did not answer in time; it may still act on the request."""


class RemoteError(TransportError):
    """The peer answered with an error; the message is its text."""


class ProtocolError(TransportError):
    """The peer sent bytes that are no frame of this protocol; the connection is closed."""


class WrongServerError(TransportError):
    """Another server than the wanted one answers at this address. Its answers do not count."""


class PipelineNotSupportedError(TransportError):
    """The transport declines pipelining; plain calls are used instead."""


class PipelineShutdownError(TransportError):
    """The pipeline has been closed."""


def describe_error(error: BaseException) -> str:
    """Return what an error says, or its type where it says nothing."""
    return str(error) or type(error).__name__
