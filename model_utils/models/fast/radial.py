"""Functions of the pairs' lengths: cutoff, radial basis, the Agnesi
transform, the ZBL repulsion.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import PairKernels, SlopeKernels
from model_utils.models.fast.geometry import second_derivative
from model_utils.models.fast.needed import needed

# Ziegler, Biersack, Littmark: The Stopping and Range of Ions, 1985
ZBL_EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)
COULOMB = 14.3996  # e²/(4πε₀), eV Å
BOHR = 0.529  # Å, as mace has it


@dataclass(frozen=True, kw_only=True)
class Radial:
    """The radial part of a network, read from mace's modules."""

    module: Any  # radial_embedding
    repulsion: Any | None  # pair_repulsion_fn
    gaussian: bool
    agnesi: bool
    cutoff_on_basis: bool
    constants: dict[str, float] = field(default_factory=dict)  # of the embedding, by name

    @classmethod
    def of(cls, module: Any) -> "Radial":
        """The radial part of mace's module."""
        embedding = module.radial_embedding
        basis = embedding.bessel_fn
        return cls(
            module=embedding,
            repulsion=getattr(module, "pair_repulsion_fn", None),
            gaussian=hasattr(basis, "gaussian_weights"),
            agnesi=hasattr(embedding, "distance_transform"),
            cutoff_on_basis=bool(getattr(embedding, "apply_cutoff", True)),
        )

    def basis(
        self, lengths: Tensor, numbers: tuple[Tensor, Tensor], kernels: PairKernels
    ) -> "Basis":
        """Radial functions of pairs with their slopes, by compiled kernels.

        Args:
            lengths: (n_pairs, 1), Å.
            numbers: atomic numbers of both atoms, (n_pairs, 1) each.
            kernels: what computes them.
        """
        value, slope, *cutoffs = _RadialBasis.apply(lengths.contiguous(), self, numbers, kernels)
        cutoff, cutoff_slope = cutoffs if cutoffs else (None, None)
        return Basis(
            radial=self,
            lengths=lengths,
            numbers=numbers,
            value=value,
            slope=slope,
            cutoff=cutoff,
            cutoff_slope=cutoff_slope,
        )

    def reduced_by(self, numbers: tuple[Tensor, Tensor]) -> Tensor:
        """The length by which the Agnesi transform divides, the mean covalent radius of both
        atoms; (n_pairs, 1), Å.
        """
        radii: Tensor = self.module.distance_transform.covalent_radii
        return 0.5 * (radii[numbers[0]] + radii[numbers[1]])

    def by_torch(
        self, lengths: Tensor, numbers: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Radial features of pairs in plain torch and, where the cutoff multiplies the path
        weights instead, the cutoff.

        Args:
            lengths: (n_pairs, 1), Å.
            numbers: atomic numbers of both atoms, (n_pairs, 1) each; None where no transform
                of the lengths asks for them.

        Returns:
            (n_pairs, n_basis) and (n_pairs, 1) or None.
        """
        embedding = self.module
        cutoff_fn = embedding.cutoff_fn
        cutoff = polynomial_cutoff(lengths, cutoff_fn.r_max, self.power)
        argument = (
            self._agnesi(lengths, numbers) if self.agnesi and numbers is not None else lengths
        )
        basis = self._gaussian(argument) if self.gaussian else self._bessel(argument)
        return (basis * cutoff, None) if self.cutoff_on_basis else (basis, cutoff)

    def bessel_slopes(self, lengths: Tensor, kernels: SlopeKernels) -> tuple[Tensor, Tensor]:
        """Bessel functions times the cutoff and their derivatives by the length,
        (n_pairs, n_basis) each.
        """
        frequencies = self.numbers(lengths.dtype)
        value = lengths.new_empty(len(lengths), len(frequencies))
        slope = torch.empty_like(value)
        r_max = self.constant("cutoff_fn.r_max")
        constants = (self.power, r_max, self.constant("bessel_fn.prefactor"))
        kernels.bessel(constants, (lengths, frequencies), (value, slope))
        return value, slope

    @property
    def is_bessel(self) -> bool:
        """Whether the functions are Bessel's of the length itself, with the cutoff in them."""
        return not (self.agnesi or self.gaussian) and self.cutoff_on_basis

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Frequencies of the Bessel functions, 1/Å, or centres of the gaussians, Å; (n_basis,)."""
        fn = self.module.bessel_fn
        held: Tensor = fn.gaussian_weights if self.gaussian else fn.bessel_weights
        return held.to(dtype).contiguous()

    @property
    def n_basis(self) -> int:
        """How many radial functions there are."""
        return int(self.module.out_dim)

    @cached_property
    def power(self) -> int:
        """The power of the cutoff."""
        return int(self.constant("cutoff_fn.p"))

    @cached_property
    def repulsion_power(self) -> int:
        """The power of the repulsion's cutoff, which model.json says and every load compares."""
        return 0 if self.repulsion is None else int(self.repulsion.p)

    def keep_constants(self) -> None:
        """Read what steps take as numbers, before the first of them."""
        numbers = [self.power, self.repulsion_power, self.constant("cutoff_fn.r_max")]
        if not self.gaussian:
            numbers.append(self.constant("bessel_fn.prefactor"))
        assert all(number >= 0 for number in numbers)

    def constant(self, name: str) -> float:
        """A number that a module of the embedding holds, read once: on a GPU each
        reading waits for the step.
        """
        if name not in self.constants:
            part, _, own = name.rpartition(".")
            self.constants[name] = float(getattr(self.module.get_submodule(part), own))
        return self.constants[name]

    def _bessel(self, r: Tensor) -> Tensor:
        """√(2/r_max) sin(nπr/r_max)/r."""
        fn = self.module.bessel_fn
        return fn.prefactor * (torch.sin(fn.bessel_weights * r) / r)

    def _gaussian(self, r: Tensor) -> Tensor:
        """Gaussians at equal distances between 0 and r_max."""
        fn = self.module.bessel_fn
        return torch.exp(fn.coeff * (r - fn.gaussian_weights) ** 2)

    def _agnesi(self, r: Tensor, numbers: tuple[Tensor, Tensor]) -> Tensor:
        """(1 + a u^q / (1 + u^(q − p)))⁻¹ with u = r/r₀, r₀ the mean covalent radius (J.
        Chem. Phys. 159, 044116).
        """
        fn = self.module.distance_transform
        a = fn.a
        p = fn.p
        q = fn.q
        u = r / self.reduced_by(numbers)
        return 1.0 / (1.0 + a * u**q / (1.0 + u ** (q - p)))

    def repulsion_energy(self, lengths: Tensor, numbers: tuple[Tensor, Tensor]) -> Tensor:
        """ZBL energies of pairs with mace's cutoff at the sum of covalent radii; (n_pairs,), eV."""
        fn = self.repulsion
        assert fn is not None
        dtype = lengths.dtype
        first, second = (n.to(dtype) for n in numbers)
        exponent = _number(fn.a_exp)
        prefactor = _number(fn.a_prefactor)
        screening = prefactor * BOHR / (first**exponent + second**exponent)
        x = lengths / screening
        weights: Tensor = fn.c
        phi = sum(weights[k] * torch.exp(-e * x) for k, e in enumerate(ZBL_EXPONENTS))
        radii: Tensor = fn.covalent_radii
        contact = radii[numbers[0]] + radii[numbers[1]]
        envelope = polynomial_cutoff(lengths, contact, self.repulsion_power)
        return (COULOMB * first * second / lengths * phi * envelope).squeeze(1)


def _number(tensor: Tensor) -> Any:
    """A constant as a number; on a GPU, which would be waited for, as a tensor without axes."""
    return float(tensor) if tensor.device.type == "cpu" else tensor.detach()


def polynomial_cutoff(r: Tensor, r_max: Tensor, p: int) -> Tensor:
    """1 − (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) − p(p+1)/2 u^(p+2) with u = r/r_max, 0 from u =
    1 on (Gasteiger 2020).
    """
    u = r / r_max
    power = u**p
    envelope = 1.0 + power * (-(p + 1) * (p + 2) / 2 + u * (p * (p + 2) - u * (p * (p + 1) / 2)))
    return envelope * (r < r_max)


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Radial functions of pairs, or of directed edges, with their slopes by the length."""

    radial: Radial
    lengths: Tensor  # (n, 1), Å
    numbers: tuple[Tensor, Tensor]  # atomic numbers of both atoms, (n, 1)
    value: Tensor  # (n, n_basis)
    slope: Tensor
    cutoff: Tensor | None  # (n, 1), where it is not in the functions
    cutoff_slope: Tensor | None

    @cached_property
    def stacked(self) -> Tensor:
        """The functions with their slopes below them, (2 n, n_basis), not differentiable."""
        return torch.cat([self.value.detach(), self.slope.detach()])

    @property
    def features(self) -> Tensor:
        """The functions as functions of the lengths."""
        return along(self.value, self.slope, self.lengths)

    @property
    def cutoff_of_lengths(self) -> Tensor | None:
        """The cutoff as a function of the lengths."""
        if self.cutoff is None or self.cutoff_slope is None:
            return None
        return along(self.cutoff, self.cutoff_slope, self.lengths)

    def at(self, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features and cutoff of the same pairs at other lengths, in plain torch."""
        return self.radial.by_torch(lengths, self.numbers)

    def without_cutoff(self) -> "Basis":
        """The functions alone, where the cutoff multiplies something else."""
        return replace(self, cutoff=None, cutoff_slope=None)


def along(value: Tensor, slope: Tensor, lengths: Tensor) -> Tensor:
    """``value``, (n, …), as a function of lengths (n, 1) too, which changes
    with them by ``slope``.
    """
    return _Along.apply(value, slope, lengths)


class _Along(torch.autograd.Function):
    """r̄ = Σ ȳ y′, which autograd differentiates by ȳ and y′."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slope: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (slope,) = ctx.saved_tensors
        return g, None, (g * slope).sum(dim=1, keepdim=True) if needed(ctx, 2) else None


class _RadialBasis(torch.autograd.Function):
    """B and B′; that B changes with the length by B′ is said by ``along``, so only B′
    has a derivative here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        lengths: Tensor,
        radial: Radial,
        numbers: tuple[Tensor, Tensor],
        kernels: PairKernels,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(lengths)
        ctx.rest = radial, numbers
        ctx.set_materialize_grads(False)
        return kernels.radial_basis(radial, lengths, numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        slopes = gradients[1::2]
        if all(g is None for g in slopes) or not needed(ctx, 0):
            return (None,) * 4
        return _second_of_basis(ctx, *slopes), None, None, None


@once_differentiable
def _second_of_basis(ctx: Any, *slopes: Tensor | None) -> Tensor:
    """Not in training."""
    (lengths,) = ctx.saved_tensors
    radial, numbers = ctx.rest

    def function(r: Tensor) -> Tensor:
        # no slope of a cutoff within the functions
        given = zip(radial.by_torch(r, numbers), slopes, strict=False)
        return sum((y * g).sum(dim=1, keepdim=True) for y, g in given if g is not None)

    one = torch.ones_like(lengths)
    return second_derivative(function, lengths, (one,), one)
