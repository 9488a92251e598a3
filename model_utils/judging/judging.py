"""What judge.py does: candidates relaxed by each model, compared, and put into files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from dataloader.errors import InputError
from model_utils import runtime
from model_utils.files.run_lock import held
from model_utils.judging import judgement_files, matching, pymatgen_library, references, validity
from model_utils.judging.candidates import Candidate, candidates_in
from model_utils.judging.hull import Point, chemical_system
from model_utils.judging.judged import BROKEN, Judged
from model_utils.judging.judgement import JudgedByModel
from model_utils.judging.matching import Comparison
from model_utils.judging.metrics import TRUSTED, Judgement, values_of
from model_utils.judging.references import Reference, References
from model_utils.runtime import log
from model_utils.settings.options import JudgeOptions
from model_utils.simulation import relaxing
from model_utils.simulation.atoms import unknown_states
from model_utils.simulation.calculator import Calculator
from model_utils.simulation.inputs import calculator_of_models
from model_utils.simulation.journal import Record
from model_utils.simulation.relaxation import Criteria

JOURNALS = "judging"
NO_REFERENCES = "no references were given; name them with --references"
NOT_RELAXED = "nothing was relaxed (--no_relax)"


def judge(options: JudgeOptions) -> None:
    """Judge the candidates of a folder.

    Raises:
        InputError: candidates, references, a model or the folder cannot be used as asked.
        VerificationError: a model's file is damaged.
    """
    runtime.start_log()
    pymatgen_library.require("judge.py")
    folder = options.results_dir
    if not folder.is_dir():
        raise InputError(
            f"--results_dir {folder} is no folder; expected one that generate.py filled"
        )
    candidates = candidates_in(folder)
    known = references.read(options.references) if options.references else None
    device = runtime.find_device(options.device.device)
    processes = relaxing.processes_of(options.minimizing, device)
    threads = 1 if processes > 1 else options.device.threads
    runtime.start(device=options.device.device, dtype=torch.float64, threads=threads, seed=0)
    with held(folder / ".lock", wait=True, flag="--results_dir"):
        work = _Judging(options, device, processes, candidates, known)
        judgement_files.say_damaged(folder)
        models = [work.by(options.input_model, options.head)]
        if options.compare_with:
            models.append(work.by(options.compare_with, options.compare_head))
        judgement_files.write(folder, options, models)


class _Judging:
    """The work that is the same for every model.

    Args:
        options: of the command.
        device: on which models compute.
        processes: structures that are relaxed at once.
        candidates: of the folder.
        known: references; None without.
    """

    def __init__(
        self,
        options: JudgeOptions,
        device: torch.device,
        processes: int,
        candidates: Sequence[Candidate],
        known: Sequence[Reference] | None,
    ) -> None:
        self.options = options
        self.device = device
        self.processes = processes
        self.candidates = candidates
        self.known = known

    def by(self, paths: Sequence[Path], head: str | None) -> JudgedByModel:
        """The candidates as a model judges them."""
        options = self.options
        calculator = calculator_of_models(
            paths,
            device=self.device,
            dtype=options.device.dtype,
            head=head,
            step=options.step,
            skin=options.minimizing.skin,
        )
        judged = self._relaxed(calculator)
        known = self._references(calculator)
        missing = self._put_energies(judged, known)
        comparison = self._compare(judged)
        self._put_shapes(judged)
        trusted = [candidate for candidate in judged if not candidate.left_out]
        values = values_of(
            self._judgement(judged, known, missing), draws=options.draws, seed=options.draws_seed
        )
        alone = self._judgement(_as_if_alone(trusted, comparison), known, missing)
        of_trusted = values_of(alone, draws=options.draws, seed=options.draws_seed)
        values |= {f"{name}{TRUSTED}": value for name, value in of_trusted.items()}
        return JudgedByModel(
            calculator=calculator,
            paths=paths,
            candidates=judged,
            references=known,
            missing=missing,
            values=values,
            n_trusted=len(trusted),
            left_out=_counted([candidate.left_out for candidate in judged if candidate.left_out]),
        )

    def _criteria(self, *, relax: bool) -> Criteria:
        criteria = relaxing.criteria_of(self.options.minimizing, relax_cell=True)
        return criteria if relax else dataclasses.replace(criteria, max_steps=0)

    def _relaxed(self, calculator: Calculator) -> list[Judged]:
        """The candidates with what came of their relaxation, or of a look at them."""
        faults = {
            candidate.number: candidate.fault or _state_fault(candidate, calculator)
            for candidate in self.candidates
        }
        sound = [
            candidate
            for candidate in self.candidates
            if not faults[candidate.number] and candidate.named is not None
        ]
        criteria = self._criteria(relax=self.options.relax)
        structures = [candidate.named for candidate in sound if candidate.named is not None]
        folder = self.options.results_dir / JOURNALS
        records = references.relaxations(structures, calculator, criteria, self.processes, folder)
        by_number = {
            candidate.number: record for candidate, record in zip(sound, records, strict=True)
        }
        judged = [
            _judged(candidate, by_number.get(candidate.number), faults[candidate.number])
            for candidate in self.candidates
        ]
        for candidate in judged:
            if not candidate.succeeded:
                log.warning("warning: candidate %s: %s", candidate.identifier, candidate.reason)
        return judged

    def _references(self, calculator: Calculator) -> References | None:
        if self.known is None:
            return None
        is_of_labels = self.options.reference_kind == "dft"
        made = references.of_labels if is_of_labels else references.of_model
        criteria = self._criteria(relax=not is_of_labels)
        return made(self.known, calculator, criteria, self.processes, self.options.reference_cache)

    def _put_energies(self, judged: Sequence[Judged], known: References | None) -> list[str]:
        """Energies above the hull, what is stable and what is a hole; returns the
        elements that are missing.
        """
        options = self.options
        for candidate in judged:
            candidate.is_hole = candidate.kind in BROKEN
        if known is None:
            return []
        successful = [candidate for candidate in judged if candidate.energy is not None]
        points = [
            Point(atoms=c.after, energy=c.energy)
            for c in successful
            if c.after is not None and c.energy is not None
        ]
        for candidate, point, energy in zip(
            successful, points, known.hull.above(points), strict=True
        ):
            candidate.energy_above_hull = energy
            candidate.missing = known.hull.missing(point.atoms)
            if energy is not None:
                candidate.stable = energy <= options.stability_threshold
                candidate.is_hole = candidate.is_hole or energy < -options.hole_below
        on_hull = [not candidate.is_hole for candidate in successful]
        among_themselves = known.hull.self_consistent(points, on_hull)
        for candidate, own in zip(successful, among_themselves, strict=True):
            candidate.self_consistent_energy_above_hull = own
        for candidate in judged:
            if not candidate.succeeded:
                candidate.stable = False  # as MatterGen counts failed jobs
        missing = sorted({element for candidate in successful for element in candidate.missing})
        if missing:
            log.warning(
                "warning: the references have no crystal of %s alone; candidates with it have no "
                "energy above the hull",
                ", ".join(missing),
            )
        return missing

    def _compare(self, judged: Sequence[Judged]) -> Comparison:
        """Find duplicates and what is known; the comparison, for other choices of candidates."""
        known = [] if self.known is None else [reference.named.atoms for reference in self.known]
        crystals = {
            candidate.number: candidate.after for candidate in judged if candidate.after is not None
        }
        comparison = Comparison(crystals, known, self.options.structure_matcher)
        first = comparison.first_of_equals(list(crystals))
        for candidate in judged:
            candidate.first_of_equals = first.get(candidate.number)
            if self.known is not None and candidate.number in crystals:
                candidate.known_numbers = comparison.known_as(candidate.number)
                candidate.known_as = [
                    self.known[k].named.identifier for k in candidate.known_numbers
                ]
        return comparison

    def _put_shapes(self, judged: Sequence[Judged]) -> None:
        """Validity, and how far atoms moved."""
        has_charges = not validity.composition_unknown()
        for candidate in judged:
            if candidate.after is None or candidate.before is None:
                continue
            candidate.valid_structure = validity.has_valid_structure(candidate.after)
            if has_charges:
                candidate.valid_composition = validity.has_valid_composition(candidate.after)
            if self.options.relax:
                candidate.rmsd = matching.rmsd(candidate.after, candidate.before)
                candidate.displacement = matching.displacement(candidate.after, candidate.before)

    def _judgement(
        self, judged: Sequence[Judged], known: References | None, missing: Sequence[str]
    ) -> Judgement:
        no_hull = NO_REFERENCES if known is None else ""
        if missing and all(candidate.energy_above_hull is None for candidate in judged):
            no_hull = f"the references have no crystal of {', '.join(missing)} alone"
        return Judgement(
            candidates=judged,
            n_references=None if known is None else len(known.known),
            found=frozenset(number for candidate in judged for number in candidate.known_numbers),
            known_systems=frozenset(chemical_system(r.named.atoms) for r in self.known or ()),
            no_hull=no_hull,
            no_novelty=NO_REFERENCES if known is None else "",
            no_charges=validity.composition_unknown(),
            no_relaxation="" if self.options.relax else NOT_RELAXED,
        )


def _state_fault(candidate: Candidate, calculator: Calculator) -> str:
    """Why the energy of a crystal would be another one's, as a phrase; empty where it is its own.

    Args:
        candidate: may have a charge or a spin.
        calculator: of networks, of which some may have no input for them.
    """
    if candidate.named is None:
        return ""
    for potential in calculator.potentials:
        unknown = unknown_states(candidate.named.atoms, potential.facts)
        if unknown:
            return f"{' and '.join(unknown)}, for which the model has no input"
    return ""


def _judged(candidate: Candidate, record: Record | None, fault: str) -> Judged:
    """A candidate as its relaxation left it.

    Args:
        candidate: as it was generated.
        record: of its relaxation; None where there was nothing to relax.
        fault: why there was nothing.
    """
    judged = Judged(
        number=candidate.number, identifier=candidate.identifier, origin=candidate.origin
    )
    judged.before = None if candidate.named is None else candidate.named.atoms
    if record is None or judged.before is None:
        judged.kind = "no crystal" if candidate.fault else "cannot be computed"
        judged.reason = fault
        return judged
    judged.kind = record["kind"]
    judged.reason = record["reason"]
    judged.converged = record["converged"]
    judged.steps = record["steps"]
    judged.energy = record["energy"]
    judged.fmax = record["fmax"]
    if judged.energy is not None:
        judged.after = references.moved(judged.before, record)
    return judged


def _as_if_alone(chosen: Sequence[Judged], comparison: Comparison) -> list[Judged]:
    """Some candidates with their duplicates among themselves: the first of
    equals may not be chosen.
    """
    first = comparison.first_of_equals([candidate.number for candidate in chosen])
    return [
        dataclasses.replace(candidate, first_of_equals=first[candidate.number])
        for candidate in chosen
    ]


def _counted(reasons: Sequence[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}
