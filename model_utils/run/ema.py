"""One exponential moving average of the parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """shadow ← shadow + (1 − d)(parameter − shadow), with d = min(decay, (1 + n) / (10
    + n)) after n updates.

    The growing d keeps the first, random, weights from lingering (as in torch_ema, which mace
    uses). The shadow is a separate set of tensors handed to an evaluation; the trained parameters
    are never swapped out, so no save or kill can meet averaged weights where raw ones belong.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    def restart(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin anew with these weights, in place."""
        self.updates = 0
        for name, tensor in self.shadow.items():
            tensor.copy_(parameters[name].detach())

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Move the average towards the parameters after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.shadow.values()), [parameters[n].detach() for n in self.shadow], 1.0 - decay
        )

    def state_dict(self) -> dict[str, Any]:
        """Shadow, decay and count."""
        return {"shadow": self.shadow, "decay": self.decay, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a stored average, in place."""
        self.decay = state["decay"]
        self.updates = state["updates"]
        for name, tensor in self.shadow.items():
            tensor.copy_(state["shadow"][name])
