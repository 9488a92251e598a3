"""Functions of the pairs' lengths: cutoff, radial basis, the Agnesi transform, the ZBL repulsion."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import Backend, backend_of
from model_utils.models.fast.geometry import second_derivative
from model_utils.models.fast.needed import needed

ZBL_EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)  # Ziegler, Biersack, Littmark: The Stopping and Range of Ions, 1985
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

    def features(self, lengths: Tensor, numbers: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Radial features of pairs and, where the cutoff multiplies the path weights instead, the cutoff.

        Args:
            lengths: (n_pairs, 1), Å.
            numbers: atomic numbers of both atoms, (n_pairs, 1) each.

        Returns:
            (n_pairs, n_basis) and (n_pairs, 1) or None.
        """
        backend = backend_of(lengths)
        if backend is not None and not (self.agnesi or self.gaussian) and self.cutoff_on_basis:
            return _Bessel.apply(lengths, self, backend), None
        return self.by_torch(lengths, numbers)

    def by_torch(self, lengths: Tensor, numbers: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor | None]:
        """Radial features of pairs in plain torch; arguments and results are those of ``features``."""
        embedding = self.module
        cutoff_fn = embedding.cutoff_fn
        cutoff = polynomial_cutoff(lengths, cutoff_fn.r_max, self.power)
        argument = self._agnesi(lengths, numbers) if self.agnesi and numbers is not None else lengths
        basis = self._gaussian(argument) if self.gaussian else self._bessel(argument)
        return (basis * cutoff, None) if self.cutoff_on_basis else (basis, cutoff)

    def bessel_slopes(self, lengths: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """Bessel functions times the cutoff and their derivatives by the length, (n_pairs, n_basis) each."""
        fn = self.module.bessel_fn
        frequencies = fn.bessel_weights.to(lengths.dtype).contiguous()
        value = lengths.new_empty(len(lengths), len(frequencies))
        slope = torch.empty_like(value)
        r_max = self.constant("cutoff_fn.r_max")
        constants = (self.power, r_max, self.constant("bessel_fn.prefactor"))
        backend.bessel(constants, (lengths, frequencies), (value, slope))
        return value, slope

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
        """A number that a module of the embedding holds, read once: on a GPU each reading waits for the step."""
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
        """(1 + a u^q / (1 + u^(q − p)))⁻¹ with u = r/r₀, r₀ the mean covalent radius (J. Chem. Phys. 159, 044116)."""
        fn = self.module.distance_transform
        radii: Tensor = fn.covalent_radii
        a = fn.a
        p = fn.p
        q = fn.q
        u = r / (0.5 * (radii[numbers[0]] + radii[numbers[1]]))
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
    """1 − (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) − p(p+1)/2 u^(p+2) with u = r/r_max, 0 from u = 1 on (Gasteiger 2020)."""
    u = r / r_max
    power = u**p
    envelope = 1.0 + power * (-(p + 1) * (p + 2) / 2 + u * (p * (p + 2) - u * (p * (p + 1) / 2)))
    return envelope * (r < r_max)


class _Bessel(torch.autograd.Function):
    """r̄ = Σ_k ḡ_k B′_k(r), and for the adjoint a of it Δḡ_k = a B′_k(r)."""

    @staticmethod
    def forward(ctx: Any, lengths: Tensor, radial: Radial, backend: Backend) -> Tensor:
        lengths = lengths.contiguous()
        value, slope = radial.bessel_slopes(lengths, backend)
        ctx.save_for_backward(lengths, slope)
        ctx.radial = radial
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        return _BesselVjp.apply(*ctx.saved_tensors, g, ctx.radial) if needed(ctx, 0) else None, None, None


class _BesselVjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lengths: Tensor, slope: Tensor, g: Tensor, radial: Radial) -> Tensor:
        ctx.save_for_backward(lengths, slope, g)
        ctx.radial = radial
        return (g * slope).sum(dim=1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        lengths, slope, g = ctx.saved_tensors
        radial: Radial = ctx.radial
        dr = None
        if needed(ctx, 0):  # not in training
            dr = second_derivative(lambda r: radial.by_torch(r, None)[:1], lengths, (g,), a)
        return dr, None, a * slope, None
