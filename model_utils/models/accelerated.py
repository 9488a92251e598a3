"""mace's modules over NVIDIA's cuequivariance or openequivariance as a form of the network, on
mace's own parameters.

These libraries keep some weights in other shapes. They are arranged anew in every call, by
operations that autograd follows, so that gradients, checkpoints and exports know only mace's
parameters. A conversion can go wrong without a word (mace's issues 1298 and 1474), so the first
batch is computed by mace's plain module as well and compared: what a step of training computes, on
the device where it does.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.errors import InputError
from dataloader.quantities import ENERGY
from model_utils.errors import VerificationError
from model_utils.models.build import accelerated_module
from model_utils.models.mace_description import MaceDescription
from model_utils.models.network import Parameters
from model_utils.models.reference import ReferenceNetwork
from model_utils.runtime import log

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest entry
CONTRACTIONS = "symmetric_contractions"


class AcceleratedNetwork:
    """The network over mace's modules with another library's kernels: ``--step
    cueq`` and ``--step oeq``.

    Raises:
        InputError: the library is not installed or has no kernels for the device, or none
            whose sums have an order where that is asked for, or this network has weights that
            cannot be arranged for it.
    """

    def __init__(self, module: nn.Module, kind: str, description: MaceDescription) -> None:
        self.module = module
        self.kind = kind
        self.gives = frozenset({ENERGY.name})
        own = next(module.parameters())
        if own.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
            raise InputError(
                f"--step {kind} adds by atomics on a GPU, in no fixed order, which --deterministic "
                "excludes; leave one of the two out, or use --step fast"
            )
        target = accelerated_module(description, own.dtype, kind, own.device)
        self._arranged = arrangement(module, target, kind)
        _take_over_buffers(module, target)
        self._form = ReferenceNetwork(target)
        self._plain: ReferenceNetwork | None = ReferenceNetwork(module)

    @property
    def arithmetic(self) -> str:
        """The library whose kernels compute; another one gives other last bits."""
        return self.kind

    def prepared(self, batch: Batch) -> Batch:
        """Nothing is needed besides the batch's arrays."""
        return batch

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Interaction energies (n_structures,), eV; the arguments are those of
        ``network.Network.outputs``.

        Raises:
            VerificationError: the first batch's energies, forces or gradients are not those
                of mace's plain module.
        """
        if self._plain is not None:
            self._compare(self._plain, parameters, batch, positions, shifts)
            self._plain = None
        arranged = {name: arrange(parameters) for name, arrange in self._arranged.items()}
        return self._form.outputs(arranged, batch, positions, shifts)

    def _compare(
        self,
        plain: ReferenceNetwork,
        parameters: Parameters,
        batch: Batch,
        positions: Tensor,
        shifts: Tensor,
    ) -> None:
        """Energies, forces, and gradients of both by every weight, of both modules on one batch.

        Raises:
            VerificationError: the largest difference is more than rounding.
        """
        results = []
        for form, arranged in ((plain, {}), (self._form, self._arranged)):
            results.append(_derivatives(form, arranged, parameters, batch, positions, shifts))
        worst, where = _largest_difference(*results)
        if not worst <= TOLERANCE[positions.dtype]:
            raise VerificationError(
                f"--step {self.kind} computes something else than mace's plain module: on "
                f"the first batch {where} differ by {worst:.2g} of the largest; use --step "
                "fast or --step reference"
            )
        log.info(
            "step: %s agrees with mace's plain module on the first batch on %s, gradients of "
            "forces included, to %.1g",
            self.kind,
            positions.device,
            worst,
        )


def _derivatives(
    form: ReferenceNetwork,
    arranged: Mapping[str, "Arrange"],
    parameters: Parameters,
    batch: Batch,
    positions: Tensor,
    shifts: Tensor,
) -> dict[str, Tensor | None]:
    """What a step needs of a form: energies, forces, their gradients by weights.

    The gradient by weights of a sum over forces is the second derivative that training on forces
    needs; a wrong one shows nowhere else.

    Args:
        form: of the network.
        arranged: what makes its weights of mace's; empty where it takes mace's own.
        parameters: mace's.
        batch: everything but geometry.
        positions: (n_atoms, 3), Å.
        shifts: (n_edges, 3), Å.
    """
    at = positions.detach().clone().requires_grad_(True)
    weights = {
        name: tensor.detach().clone().requires_grad_(True) for name, tensor in parameters.items()
    }
    leaves = list(weights.values())
    with torch.enable_grad():
        given = (
            {name: arrange(weights) for name, arrange in arranged.items()} if arranged else weights
        )
        energies = form.outputs(given, batch, at, shifts.detach())[ENERGY.name]
        total = energies.sum()
        (slopes,) = torch.autograd.grad(total, at, create_graph=True)
        of_energy = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        of_forces = torch.autograd.grad(slopes.square().sum(), leaves, allow_unused=True)
    return {
        "energies": energies.detach(),
        "forces": -slopes.detach(),
        **{
            f"gradients of energies by {name}": g
            for name, g in zip(weights, of_energy, strict=True)
        },
        **{f"gradients of forces by {name}": g for name, g in zip(weights, of_forces, strict=True)},
    }


def _largest_difference(
    expected: Mapping[str, Tensor | None], actual: Mapping[str, Tensor | None]
) -> tuple[float, str]:
    """The largest difference, as a part of the largest entry of its tensor,
    and the tensor's name.
    """
    worst = 0.0
    where = ""
    for name, theirs in expected.items():
        ours = actual[name]
        if theirs is None or ours is None:
            continue
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
        if not error <= worst:  # true of NaN as well
            worst = error
            where = name
    return worst, where


Arrange = Callable[[Mapping[str, Tensor]], Tensor]


def arrangement(module: nn.Module, target: nn.Module, kind: str) -> dict[str, Arrange]:
    """How every trainable parameter of the accelerated module follows from mace's own.

    Args:
        module: mace's.
        target: the accelerated one.
        kind: what ``--step`` calls it, for the message.

    Returns:
        By the name of a parameter of ``target``, what makes it from mace's parameters by name.

    Raises:
        InputError: a parameter of ``target`` has no counterpart.
    """
    own = {name: p for name, p in module.named_parameters() if p.numel()}
    arranged: dict[str, Arrange] = {}
    for name, parameter in target.named_parameters():
        if not parameter.numel():
            continue
        sources = [name]
        shape = parameter.shape
        if name not in own and name.endswith(f"{CONTRACTIONS}.weight"):
            sources = _contraction_weights(own, name.removesuffix(".weight"))
        given = [own.get(source) for source in sources]
        size = sum(p.numel() for p in given if p is not None)
        if not given or any(p is None for p in given) or size != parameter.numel():
            raise InputError(
                f"--step {kind}: the weights {name} {tuple(shape)} have no counterpart in this "
                "network; use --step fast or --step reference"
            )
        arranged[name] = _arranged(sources, shape, own)
    return arranged


def _arranged(sources: list[str], shape: torch.Size, own: Mapping[str, Tensor]) -> Arrange:
    """What makes one parameter of another shape from one or several of mace's."""

    def arrange(parameters: Mapping[str, Tensor]) -> Tensor:
        # parameters that are frozen are not handed in: they are the module's own
        tensors = [parameters[name] if name in parameters else own[name] for name in sources]
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)
        return whole.reshape(shape)

    return arrange


def _contraction_weights(own: Mapping[str, Tensor], prefix: str) -> list[str]:
    """mace's weights of one contraction in the library's order: by output order, then from
    the highest degree down.
    """
    names = [name for name in own if name.startswith(f"{prefix}.contractions.")]
    output_order = {
        name: int(name.removeprefix(f"{prefix}.contractions.").split(".")[0]) for name in names
    }
    return sorted(
        names, key=lambda name: (output_order[name], not name.endswith("weights_max"), name)
    )


def _take_over_buffers(module: nn.Module, target: nn.Module) -> None:
    """What the trained module holds besides weights, where the accelerated one has the same."""
    own = dict(module.named_buffers())
    for name, buffer in target.named_buffers():
        if name in own and own[name].shape == buffer.shape:
            buffer.copy_(own[name])
