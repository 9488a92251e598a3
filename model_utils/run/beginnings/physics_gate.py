"""Before a network that this toolkit did not prove is trained for the first
time: does it obey physics?

The laws are those of ``evaluate.py --physics``, in double precision, on a few small structures of
its elements, with weights near those that it begins with: some seconds. What makes every result
wrong is refused; what people train in spite of it (PET and Orb learn rotations from data) is a
warning. Both name the law, the number and where.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import nn

from dataloader.quantities import ENERGY
from model_utils import model_loader
from model_utils.errors import VerificationError
from model_utils.models.architecture import architecture_of, proved_by_tests
from model_utils.models.default_dtype import default_dtype
from model_utils.models.description import ModelDescription
from model_utils.physics import checks
from model_utils.physics.probes import structures_for
from model_utils.physics.records import CheckRecord
from model_utils.physics.subject import Subject
from model_utils.ranks.group import Group
from model_utils.runtime import log

Verdict = Literal["refuse", "warn"]
LAWS: Mapping[str, Verdict] = {  # of ``checks.CHECKS``: what becomes of a network that breaks it
    "forces as slopes": "refuse",
    "stress as slope": "refuse",
    "translation": "refuse",
    "permutation": "refuse",
    "extensivity": "refuse",
    "batches": "refuse",
    "isolated atoms": "refuse",
    "rotation": "warn",
    "smooth at r_max": "warn",
}
SILENT = 1e-6  # eV/Å; of a network with smaller forces nothing is learned
SEED = 29
MOVED = 0.02  # standard deviation by which each weight is moved


def examine(
    description: ModelDescription, module: nn.Module, step: str, gate: str, group: Group
) -> None:
    """Examine a network of a family that others compute, in the first process.

    Args:
        description: of the network.
        module: with the weights that the training begins with; stays as it is.
        step: form of the network that is trained (``--step``).
        gate: ``refuse``, ``warn`` (what would be refused too) or ``off``, as
            ``--physics_gate`` says.
        group: the processes of the run.

    Raises:
        VerificationError: it breaks a law; names the laws with their numbers.
    """
    if gate == "off" or proved_by_tests(description):
        return
    group.once(lambda: _judge(_subject(description, module, step), description, gate))


def _subject(description: ModelDescription, module: nn.Module, step: str) -> Subject:
    """The network in double precision on the CPU, whatever it will be trained in, with
    weights a little moved.

    A law must hold for all weights: a bias that begins as zero hides what training makes of it.
    """
    double = model_loader.to_be_filled(description, torch.float64)
    double.load_state_dict(
        {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    )
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in model_loader.trainable(double).values():
            weight += MOVED * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    form = "reference" if "reference" in architecture_of(description).forms else step
    return Subject(
        network=model_loader.build_network(double, form, description),
        weights=model_loader.trainable(double),
        facts=description.facts(),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


def _judge(subject: Subject, description: ModelDescription, gate: str) -> None:
    """Say what came of the laws, and raise where one is broken that must hold."""
    name = description.model_class
    if ENERGY.name not in subject.network.gives:
        log.info("physics of %s: not examined, since it gives no energies", name)
        return
    structures = structures_for(subject.facts)
    with default_dtype(torch.float64):
        report = checks.examined(subject, structures, LAWS)
        silent = not report.failed and _largest_force(subject) < SILENT
    if silent:
        log.warning(
            "warning: physics of %s: with its first weights it gives no forces, so "
            "nothing was examined",
            name,
        )
        return
    refused = [
        record for record in report.failed if LAWS[record.check] == "refuse" and gate == "refuse"
    ]
    for record in report.failed:
        if record not in refused:
            log.warning("warning: physics of %s: %s", name, _sentence(record))
    if refused:
        raise VerificationError(
            f"{name} breaks laws of physics with its first weights: "
            f"{'; '.join(map(_sentence, refused))}; nothing was trained (--physics_gate warn "
            "trains it all the same)"
        )
    if not report.failed:
        log.info(
            "physics of %s: %s (%s)", name, "all laws hold to rounding in float64", ", ".join(LAWS)
        )


def _largest_force(subject: Subject) -> float:
    answers = subject.answers(structures_for(subject.facts))
    return max(float(np.abs(answer.forces).max()) for answer in answers)


def _sentence(record: CheckRecord) -> str:
    """``rotation: energy per atom changes by 2.6e-02 eV in molecule (at most 1e-09)``."""
    if record.value is None:
        return f"{record.check}: {record.note}"
    return (
        f"{record.check}: {record.quantity} off by {record.value:.1e} {record.unit} in "
        f"{record.structure} (at most {record.bound:.0e})"
    )
