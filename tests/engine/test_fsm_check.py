"""A state machine is looked at when it comes in."""

import pytest

from raft.engine.fsm_check import check_fsm
from raft.testing.fsm import BatchingRecordingFSM, ConfigurationRecordingFSM, RecordingFSM


class WithoutSnapshot:
    def apply(self, log): ...
    def restore(self, reader): ...


class WithoutRestore:
    def apply(self, log): ...
    def snapshot(self): ...


class TakesNoLog(RecordingFSM):
    def apply(self): ...


class WantsMore(RecordingFSM):
    def restore(self, reader, size): ...


class Async(RecordingFSM):
    async def apply(self, log): ...


class WrongBatches(RecordingFSM):
    def apply_batch(self): ...


class WrongConfigurations(RecordingFSM):
    def store_configuration(self, configuration): ...


class NotCallable(RecordingFSM):
    snapshot = None


REFUSED = [
    (
        WithoutSnapshot(),
        r"WithoutSnapshot is not a state machine: it lacks the method snapshot\(\)",
    ),
    (WithoutRestore(), r"lacks the method restore\(reader\)"),
    (NotCallable(), r"lacks the method snapshot\(\)"),
    (TakesNoLog(), r"TakesNoLog\.apply\(\) cannot be called as apply\(log\)"),
    (WantsMore(), r"cannot be called as restore\(reader\): missing a required argument: 'size'"),
    (Async(), r"Async\.apply is async"),
    (WrongBatches(), r"cannot be called as apply_batch\(logs\)"),
    (WrongConfigurations(), r"cannot be called as store_configuration\(index, configuration\)"),
    (
        RecordingFSM,
        r"the FSM is the class RecordingFSM, not an object of it: pass RecordingFSM\(\)",
    ),
    (object(), r"object is not a state machine: it lacks the method apply\(log\)"),
]


@pytest.mark.parametrize(("fsm", "message"), REFUSED)
def test_what_cannot_be_a_state_machine_is_refused(fsm, message):
    with pytest.raises(TypeError, match=message):
        check_fsm(fsm)


class OtherNames:
    def apply(self, entry, *, trace=False): ...
    def snapshot(self, *_): ...
    def restore(self, stream, buffer_size=4096): ...


@pytest.mark.parametrize(
    "fsm", [RecordingFSM(), BatchingRecordingFSM(), ConfigurationRecordingFSM(), OtherNames()]
)
def test_names_of_arguments_and_more_of_them_with_defaults_do_not_matter(fsm):
    check_fsm(fsm)
