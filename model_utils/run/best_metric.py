"""By which number one validation is better than another: what best model,
patience and plateau look at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dataloader.dataset import OF_HEAD
from dataloader.quantities import QUANTITIES
from losses import Loss
from model_utils.errors import InputError
from model_utils.metrics import Metrics, error_names, metrics

LOSS = "loss"
ALL = "the validation data"  # whose structures are judged together
Over = Literal["structures", "heads"]


def metric_names() -> dict[str, str]:
    """Names of the metrics that a model can be chosen by; of all quantities, a plug-in's too."""
    errors = [name for quantity in QUANTITIES.values() for name in error_names(quantity).values()]
    return {name: name for name in (LOSS, *errors)}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Makes one number of a validation; the lower, the better.

    Attributes:
        metric: ``loss``, or an error by its name.
        over: ``structures``: of all validation structures together; ``heads``: the mean of the
            heads' numbers, so that a head of few structures counts as much as any other.
    """

    metric: str = LOSS
    over: Over = "structures"

    def score(self, errors: Metrics, by_source: Mapping[str, Metrics], loss: Loss) -> float:
        """The number.

        Args:
            errors: of all structures.
            by_source: of the parts, by ``Dataset.by_source``'s names.
            loss: with which the errors were summed.

        Raises:
            InputError: no structure has a label of the metric's quantity.
        """
        if self.over == "structures":
            return self._of(errors, ALL)
        heads = of_heads(by_source, loss)
        return sum(self._of(of_head, f"head {head}") for head, of_head in heads.items()) / len(
            heads
        )

    def _of(self, errors: Metrics, where: str) -> float:
        value = errors.as_plain().get(self.metric)
        if value is None:
            raise unjudged(self.metric, where)
        return float(value)


BY_LOSS = Judge()


def unjudged(metric: str, where: str) -> InputError:
    """What to raise where no structure has a label of a metric."""
    return InputError(
        f"--best_metric {metric}: no structure of {where} has a label of it; take a "
        "metric of what is labelled, or leave it out"
    )


def of_heads(by_source: Mapping[str, Metrics], loss: Loss) -> dict[str, Metrics]:
    """Metrics of each head from those of the parts: their sums are added and divided once."""
    sums: dict[str, list[float]] = {}
    for name, of_source in by_source.items():
        head = name.rpartition(OF_HEAD)[2] if OF_HEAD in name else "Default"
        before = sums.get(head, [0.0] * len(of_source.sums))
        sums[head] = [a + b for a, b in zip(before, of_source.sums, strict=True)]
    return {head: metrics(of_head, loss) for head, of_head in sums.items()}
