"""What follows from weights alone, computed once where the weights stay as they are."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class OfWeights(Protocol):
    """Gives ``make()``, or what it gave before under the same name."""

    def __call__(self, name: str, make: Callable[[], Value]) -> Value:
        """The value.

        Args:
            name: of the value, one in the network; its weight's name with what is made of it.
            make: computes it from weights and from the elements that occur, and from nothing else.
        """
        ...


def made_anew(name: str, make: Callable[[], Value]) -> Value:
    """``make()``: for weights that are trained."""
    del name
    return make()


class Kept:
    """Values of frozen weights for the elements of the latest batch.

    A molecule's step in dynamics would spend a fifth of its time on them.
    """

    def __init__(self) -> None:
        self._present: Tensor | None = None
        # kept, so that no other tensor gets the identity of one of them
        self._weights: tuple[Tensor, ...] = ()
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._values: dict[str, object] = {}

    def of(self, present: Tensor, weights: Mapping[str, Tensor]) -> OfWeights:
        """What keeps values for these elements, (n_present,), and weights; those of
        other ones are forgotten.

        Elements are known by their tensor: to compare numbers would make a GPU wait. Weights that
        somebody changes in place all the same are known by torch's count of changes. Nothing is
        kept in torch's inference mode, of whose tensors there are no forces.
        """
        if torch.is_inference_mode_enabled():
            return made_anew
        stamp = tuple((id(w), 0 if w.is_inference() else w._version) for w in weights.values())
        if self._present is not present or self._stamp != stamp:
            self._present = present
            self._weights = tuple(weights.values())
            self._stamp = stamp
            self._values = {}
        return self._value

    def _value(self, name: str, make: Callable[[], Value]) -> Value:
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]  # type: ignore[return-value]
