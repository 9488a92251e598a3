"""What ``evaluate.py --physics`` does: choose structures, examine the network, say what failed."""

from dataloader.dataset import Dataset
from model_utils.errors import VerificationError
from model_utils.physics import checks
from model_utils.physics.records import PhysicsReport
from model_utils.physics.subject import Subject
from model_utils.ranks.group import Group
from model_utils.settings.options import PhysicsOptions


def examined(
    options: PhysicsOptions, subject: Subject, data: Dataset, group: Group
) -> PhysicsReport | None:
    """What came of the checks, in the first process; None in the others, and where no
    checks were asked for.

    Raises:
        InputError: the data have single atoms only, or the network gives no energies.
    """
    reports: list[PhysicsReport] = []

    def examine() -> None:
        subject.require_energies()
        structures = checks.chosen(data, options.physics_structures, options.physics_max_atoms)
        reports.append(checks.examined(subject, structures))

    if options.physics:
        group.once(examine)
    return reports[0] if reports else None


def require_passed(report: PhysicsReport | None) -> None:
    """Let a command end with exit code 3 where a check failed.

    Raises:
        VerificationError: naming the checks.
    """
    if report is not None and report.failed:
        raise VerificationError(f"{report.verdict()}; the table says where and by how much")
