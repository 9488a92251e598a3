"""MatterGen's metrics of a set of candidates, each with the number of candidates
behind it and an interval.

Names and definitions are those of github.com/microsoft/mattergen (evaluation/metrics), but for
``avg_displacement_in_relaxation``, which is ours. A candidate
of which nothing could be computed counts as not stable, and is in no other metric but
``frac_successful_jobs``. A candidate whose elements are no references is neither stable nor
unstable: it is not among those that a share of stable ones is of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_utils.judging.hull import chemical_system
from model_utils.judging.judged import Judged
from model_utils.report.statistics import Interval, mean_interval, share_interval

TRUSTED = "_trusted"
NOBODY = "there is no candidate that it could be said of"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Candidates that metrics are of, and what is not known of any of them.

    Attributes:
        candidates: that count, failed ones among them.
        n_references: crystals that novelty is judged by; None without references.
        found: numbers of the references that some candidate is the same as.
        known_systems: systems of elements that references have.
        no_hull: why there are no energies above the hull; empty where there are.
        no_novelty: why novelty is not known; empty where it is.
        no_charges: why compositions are not judged; empty where they are.
        no_relaxation: why nothing is said of how far atoms moved; empty where it is.
    """

    candidates: Sequence[Judged]
    n_references: int | None = None
    found: frozenset[int] = frozenset()
    known_systems: frozenset[str] = frozenset()
    no_hull: str = ""
    no_novelty: str = ""
    no_charges: str = ""
    no_relaxation: str = ""

    @property
    def successful(self) -> list[Judged]:
        """Candidates with an energy."""
        return [judged for judged in self.candidates if judged.succeeded]


@dataclass(frozen=True, kw_only=True)
class Value:
    """One metric.

    Attributes:
        value: in its unit; None where it is not known.
        count: candidates (of ``recall``: references) behind it.
        hits: how many of these, of a share.
        interval: of 95 %; None where there are too few.
        reason: why it is not known.
    """

    value: float | None
    count: int
    hits: int | None = None
    interval: Interval | None = None
    reason: str = ""

    def as_plain(self) -> dict[str, Any]:
        """As the files have it."""
        bounds = None if self.interval is None else [self.interval.low, self.interval.high]
        plain: dict[str, Any] = {"value": self.value, "count": self.count, "interval": bounds}
        if self.hits is not None:
            plain["hits"] = self.hits
        return plain | ({"reason": self.reason} if self.value is None else {})


Answers = Sequence[bool | float | None]  # of candidates; None: not known of this one


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is made.

    Attributes:
        description: in words.
        answers: of each candidate that counts.
        is_share: of yes among yes and no; else the mean.
        unknown: why it is not known of any candidate; empty where it is.
    """

    description: str
    answers: Callable[[Judgement], Answers]
    is_share: bool = True
    unknown: Callable[[Judgement], str] = lambda judgement: ""


def _of_successful(
    answer: Callable[[Judged], bool | float | None],
) -> Callable[[Judgement], Answers]:
    return lambda judgement: [answer(judged) for judged in judgement.successful]


def _valid(judged: Judged) -> bool | None:
    if judged.valid_composition is None:
        return None
    return bool(judged.valid_structure and judged.valid_composition)


def _firsts_of_systems(judgement: Judgement) -> Answers:
    """Of each successful candidate, whether none before it has just its elements."""
    seen: set[str] = set()
    answers = []
    for system in _systems(judgement):
        answers.append(system not in seen)
        seen.add(system)
    return answers


def _firsts_of_new_systems(judgement: Judgement) -> Answers:
    firsts = _firsts_of_systems(judgement)
    pairs = zip(firsts, _systems(judgement), strict=True)
    return [bool(first) and system not in judgement.known_systems for first, system in pairs]


def _systems(judgement: Judgement) -> list[str]:
    return [
        chemical_system(judged.after) for judged in judgement.successful if judged.after is not None
    ]


def _found(judgement: Judgement) -> Answers:
    """Of each reference, whether a candidate is the same; in any order."""
    n_found = len(judgement.found)
    return [True] * n_found + [False] * ((judgement.n_references or 0) - n_found)


METRICS: Mapping[str, Metric] = {
    "frac_successful_jobs": Metric(
        description="share of candidates of which an energy could be computed",
        answers=lambda judgement: [judged.succeeded for judged in judgement.candidates],
    ),
    "avg_energy_above_hull_per_atom": Metric(
        description="mean energy above the hull of the references, eV/atom",
        answers=_of_successful(lambda judged: judged.energy_above_hull),
        is_share=False,
        unknown=lambda judgement: judgement.no_hull,
    ),
    "avg_rmsd_from_relaxation": Metric(
        description=(
            "mean of the root mean square by which atoms moved in the relaxation, Å, between "
            "primitive cells as MatterGen has it: moves that break the translations of a cell "
            "count in part"
        ),
        answers=_of_successful(lambda judged: judged.rmsd),
        is_share=False,
        unknown=lambda judgement: judgement.no_relaxation,
    ),
    "avg_displacement_in_relaxation": Metric(
        description="mean of the root mean square by which the atoms of a cell moved, Å",
        answers=_of_successful(lambda judged: judged.displacement),
        is_share=False,
        unknown=lambda judgement: judgement.no_relaxation,
    ),
    "frac_stable_structures": Metric(
        description="share of candidates within the threshold of the hull; failed ones are not",
        answers=lambda judgement: [judged.stable for judged in judgement.candidates],
        unknown=lambda judgement: judgement.no_hull,
    ),
    "frac_novel_unique_stable_structures": Metric(
        description=(
            "share of candidates that are stable, unique and novel (S.U.N.); failed ones are not"
        ),
        answers=lambda judgement: [
            None if judged.stable is None else judged.all_three() for judged in judgement.candidates
        ],
        unknown=lambda judgement: judgement.no_hull or judgement.no_novelty,
    ),
    "frac_unique_structures": Metric(
        description="share of successful candidates that no one before them is the same as",
        answers=_of_successful(lambda judged: judged.unique),
    ),
    "frac_novel_structures": Metric(
        description="share of successful candidates that no reference is the same as",
        answers=_of_successful(lambda judged: judged.novel),
        unknown=lambda judgement: judgement.no_novelty,
    ),
    "frac_novel_unique_structures": Metric(
        description="share of successful candidates that are novel and unique",
        answers=_of_successful(
            lambda judged: None if judged.novel is None else judged.novel and judged.unique
        ),
        unknown=lambda judgement: judgement.no_novelty,
    ),
    "frac_unique_systems": Metric(
        description="number of different systems of elements, over that of successful candidates",
        answers=_firsts_of_systems,
    ),
    "frac_novel_systems": Metric(
        description=(
            "number of different systems of elements that no reference has, over that of "
            "successful candidates"
        ),
        answers=_firsts_of_new_systems,
        unknown=lambda judgement: judgement.no_novelty,
    ),
    "avg_structure_validity": Metric(
        description=(
            "share of successful candidates without two sites nearer than 0.5 Å (images of one "
            "site aside) or a volume below 0.1 Å³"
        ),
        answers=_of_successful(lambda judged: judged.valid_structure),
    ),
    "avg_comp_validity": Metric(
        description="share of successful candidates whose charges balance by SMACT",
        answers=_of_successful(lambda judged: judged.valid_composition),
        unknown=lambda judgement: judgement.no_charges,
    ),
    "avg_structure_comp_validity": Metric(
        description="share of successful candidates that are valid in both ways",
        answers=_of_successful(_valid),
        unknown=lambda judgement: judgement.no_charges,
    ),
    "precision": Metric(
        description="share of successful candidates that a reference is the same as",
        answers=_of_successful(lambda judged: None if judged.novel is None else not judged.novel),
        unknown=lambda judgement: judgement.no_novelty,
    ),
    "recall": Metric(
        description="share of the references that a candidate is the same as",
        answers=_found,
        unknown=lambda judgement: judgement.no_novelty,
    ),
}


def values_of(judgement: Judgement, *, draws: int, seed: int) -> dict[str, Value]:
    """All metrics of some candidates by name.

    Args:
        judgement: the candidates.
        draws: sets of structures for the intervals of means.
        seed: of the draws.
    """
    return {name: _value(metric, judgement, draws, seed) for name, metric in METRICS.items()}


def _value(metric: Metric, judgement: Judgement, draws: int, seed: int) -> Value:
    unknown = metric.unknown(judgement)
    known = (
        []
        if unknown
        else [float(answer) for answer in metric.answers(judgement) if answer is not None]
    )
    if not known:
        return Value(value=None, count=0, reason=unknown or NOBODY)
    values = np.array(known)
    if not metric.is_share:
        interval = mean_interval(values, draws=draws, seed=seed)
        return Value(value=float(values.mean()), count=len(known), interval=interval)
    hits = int(values.sum())
    return Value(
        value=hits / len(known),
        count=len(known),
        hits=hits,
        interval=share_interval(hits, len(known)),
    )
