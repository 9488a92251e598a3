"""Which structures have labels, and of which type they are, counted while they go by."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from dataloader.errors import InputError
from dataloader.labels import REQUIRED
from dataloader.statistics import Facts
from model_utils.runtime import log
from model_utils.settings import terms


class LabelCensus:
    """Counts the labels of structures that go by: all of them have one,
    none has, or some lack it.
    """

    def __init__(self) -> None:
        self._structures = 0
        self._labelled: Counter[str] = Counter()
        self._first_without: dict[str, str] = {}
        self._types: Counter[str | None] = Counter()

    def watch(self, facts: Iterable[Facts]) -> Iterator[Facts]:
        """What was found of each structure, which is counted; isolated atoms are not."""
        for of_structure in facts:
            if of_structure.isolated is None:
                self._structures += 1
                self._types[of_structure.config_type] += 1
                for quantity in REQUIRED:
                    if quantity in of_structure.labels:
                        self._labelled[quantity] += 1
                    else:
                        self._first_without.setdefault(quantity, of_structure.identifier)
            yield of_structure

    def require_types(self, weights: Mapping[str, float]) -> None:
        """Refuse weights by config_type of which one is for no structure.

        Raises:
            InputError: naming it, and the types that there are.
        """
        for name, weight in weights.items():
            if name not in self._types:
                raise terms.no_such_type(name, weight, self._types)

    def judge(self, *, allow_missing: bool) -> None:
        """Say what no structure has.

        Raises:
            InputError: some lack a label that others have, and nobody said that this may be.
        """
        for quantity, identifier in self._first_without.items():
            count = self._labelled[quantity]
            if count == 0:
                log.warning(
                    "no structure has %s; name the label with --%s_key where it is there",
                    quantity,
                    quantity,
                )
            elif allow_missing:
                log.info(
                    "%d of %d structures have no %s",
                    self._structures - count,
                    self._structures,
                    quantity,
                )
            else:
                raise InputError(
                    f"{self._structures - count} of {self._structures} structures have no "
                    f"{quantity} (first: {identifier}); mend them, or take partly labelled data "
                    "with --allow_missing_labels"
                )
