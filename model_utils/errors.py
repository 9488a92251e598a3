"""The failures a run can end with, each with the exit code that schedulers and scripts see."""

from dataloader.errors import FULL, InputError, SaveError, cannot_write

__all__ = [
    "FULL",
    "OTHER_PLACE",
    "InputError",
    "NonFiniteError",
    "PeerFailed",
    "PeerLost",
    "Preempted",
    "SaveError",
    "StageFailed",
    "StopRequested",
    "VerificationError",
    "cannot_write",
]
OTHER_PLACE = (
    "give another --output_checkpoint or --output_model, or --run_dir; somebody else's run goes on "
    "at a place of yours with resume.py --input_model THEIRS --output_checkpoint YOURS"
)


class VerificationError(Exception):
    """One of our own files, or a model, fails its digest, hash, shapes or check; or no
    valid checkpoint is left.
    """

    exit_code = 3


class NonFiniteError(Exception):
    """Loss or gradients stopped being numbers; nothing of that state was saved."""

    exit_code = 4


class Preempted(Exception):
    """The run was asked to stop, saved its state and can be resumed (EX_TEMPFAIL: a
    scheduler may requeue it).
    """

    exit_code = 75


class StageFailed(Exception):
    """A stage of a pipeline failed; the others did what they could.

    Ends with the code that the stage ended with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerFailed(Exception):
    """Another process of the run failed, and says why; this one ends with the same
    code and says nothing.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of the run failed")
        self.exit_code = exit_code


class PeerLost(Exception):
    """Another process of the run is gone without a word, as after ``kill -9``."""

    exit_code = 1


class StopRequested(BaseException):
    """A signal or the clock asks the run to end; like KeyboardInterrupt, no ``except
    Exception`` may swallow it.
    """
