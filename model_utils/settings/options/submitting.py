"""Options of submit.py, beside those of the command that is submitted."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path

from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Positive


@panel("Submission", 3, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class SubmissionOptions:
    """Where a command runs, and whether its end is waited for."""

    profile: Path
    """A YAML file with the sections `machine` and `resources` of dpdispatcher, and `python`, `launcher`, `credentials`; `configs/submit/` has some. No secret may stand in it: they are variables `MACE_SUBMIT_PASSWORD`, `MACE_SUBMIT_EMAIL` and so on, or lie in the file of `credentials`, which nobody else can read (mode 0600)."""
    jobs_dir: Path = Path("jobs")
    """Folder of job folders `job_<key>`. The same command on the same files has the same key: repeated, it finds its job, and brings the results once they are there."""
    wait: bool = False
    """Wait for the end of the job and bring its results."""
    check_every: Positive = 30.0
    """Seconds between two looks at the job."""


def submitted(kind: type, doc: str) -> type:
    """Options of a command as they are where it is submitted.

    Args:
        kind: options of the command.
        doc: what submitting it means, for ``--help``.
    """
    fields = [("submission", SubmissionOptions), ("command", kind)]
    return make_dataclass(
        f"Submit{kind.__name__}", fields, frozen=True, kw_only=True, namespace={"__doc__": doc}
    )
