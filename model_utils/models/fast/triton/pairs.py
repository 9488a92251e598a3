"""Texts of kernels over pairs and over numbers one by one: lengths and harmonics, the Bessel
basis, silu's derivatives and slopes.

The functions are stated in ``fast/geometry.py``, ``fast/radial.py`` and ``fast/linear.py``.
Harmonics are homogeneous polynomials; their coefficients are read off geometry's own form, so that
there is one statement of them.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from model_utils.models.fast.geometry import spherical_harmonics
from model_utils.models.fast.triton.program import Program, total
from model_utils.models.fast.triton.threads import NUMBERS, PAIRS

ZERO = 1e-12  # coefficients are zero in exact arithmetic or far above this

Powers = tuple[int, int, int]  # of x, y and z
Polynomial = dict[Powers, float]


def harmonics(max_ell: int) -> list[Polynomial]:
    """Every spherical harmonic of a unit vector as a polynomial."""
    columns = spherical_harmonics(*_points(max_ell), max_ell).unbind(1)
    polynomials = []
    for order in range(max_ell + 1):
        powers = [(a, b, order - a - b) for a in range(order + 1) for b in range(order - a + 1)]
        points = _points(max_ell)[0]
        design = torch.stack(
            [(points ** torch.tensor(p, dtype=points.dtype)).prod(dim=1) for p in powers], dim=1
        )
        values = torch.stack(columns[order**2 : (order + 1) ** 2], dim=1)
        fitted = torch.linalg.lstsq(design, values).solution
        for column in fitted.unbind(1):
            pairs = zip(powers, column.tolist(), strict=True)
            polynomials.append({p: _exact(c) for p, c in pairs if abs(c) > ZERO})
    return polynomials


def _points(max_ell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points that tell all polynomials of the order apart, and ones in the
    place of their lengths.
    """
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4 * (max_ell + 1) ** 2, 3, dtype=torch.float64, generator=generator)
    return points, torch.ones(len(points), 1, dtype=torch.float64)


def _exact(coefficient: float) -> float:
    """The root of a fraction that a coefficient is up to rounding."""
    square = coefficient**2
    for denominator in (1, 2, 4, 8, 16, 32, 64, 128):
        numerator = round(square * denominator)
        if numerator and abs(square * denominator - numerator) < 1e-9 * numerator:
            return math.copysign(math.sqrt(numerator / denominator), coefficient)
    return coefficient


def _derivative(polynomial: Polynomial, axis: int) -> Polynomial:
    """By x, y or z."""
    result = {}
    for powers, c in polynomial.items():
        if powers[axis]:
            lower = list(powers)
            lower[axis] -= 1
            result[lower[0], lower[1], lower[2]] = c * powers[axis]
    return result


def _written(polynomial: Polynomial) -> str:
    """A polynomial in the powers that ``_powers`` defines."""
    terms = []
    for powers, c in polynomial.items():
        factors = [f"{axis}{power}" for axis, power in zip("xyz", powers, strict=True) if power]
        terms.append(" * ".join([repr(c), *factors]))
    return total(terms)


class DirectionTexts:
    """Kernels of the pairs' directions in one precision.

    Args:
        max_ell: highest order of the harmonics.
        precision: fp32 or fp64.
    """

    def __init__(self, max_ell: int, precision: str) -> None:
        self.max_ell = max_ell
        self.precision = precision
        self.polynomials = harmonics(max_ell)

    def programs(self) -> list[Program]:
        """The kernels of directions."""
        return [self.directions(), self.directions_vjp(), self.directions_jvp()]

    def directions(self) -> Program:
        """Lengths and harmonics of vectors."""
        body = [*_PAIR, *_load_vector("v", "v_at"), "r = tl.sqrt(v0 * v0 + v1 * v1 + v2 * v2)"]
        body += ["tl.store(r_at + q, r, mask=inside)", *self._powers]
        n = len(self.polynomials)
        for k, polynomial in enumerate(self.polynomials):
            body.append(f"tl.store(y_at + q * {n} + {k}, {self._value(polynomial)}, mask=inside)")
        return self._program("directions", ("v_at", "r_at", "y_at"), body)

    def directions_vjp(self) -> Program:
        """v̄ from (v, r, r̄, Ȳ): with u = v/r, v̄ = (ū − u (u·ū))/r + r̄ u."""
        body = [*_PAIR, *_load_vector("v", "v_at"), _load_pair("r", "r_at"), *self._powers]
        body += ["b0 = tl.zeros_like(r)", "b1 = tl.zeros_like(r)", "b2 = tl.zeros_like(r)"]
        for k, polynomial in enumerate(self.polynomials):
            slopes = [(axis, _derivative(polynomial, axis)) for axis in range(3)]
            if any(slope for _, slope in slopes):
                place = f"gy_at + q * {len(self.polynomials)} + {k}"
                body.append(f"g = tl.load({place}, mask=inside, other=0.0)")
                body += [f"b{axis} += g * ({_written(slope)})" for axis, slope in slopes if slope]
        body += [_load_pair("g", "gr_at"), "along = x1 * b0 + y1 * b1 + z1 * b2"]
        for axis, name in enumerate("xyz"):
            value = f"(b{axis} - {name}1 * along) / r + g * {name}1"
            body.append(f"tl.store(gv_at + q * 3 + {axis}, {value}, mask=inside)")
        return self._program("directions__vjp", ("v_at", "r_at", "gr_at", "gy_at", "gv_at"), body)

    def directions_jvp(self) -> Program:
        """Changes of r and Y from (v, r, change a of v): u changes by (a − u (u·a))/r."""
        body = [
            *_PAIR,
            *_load_vector("v", "v_at"),
            _load_pair("r", "r_at"),
            *_load_vector("a", "a_at"),
        ]
        body += [
            *self._powers,
            "along = x1 * a0 + y1 * a1 + z1 * a2",
            "tl.store(dr_at + q, along, mask=inside)",
        ]
        body += [f"b{axis} = (a{axis} - {name}1 * along) / r" for axis, name in enumerate("xyz")]
        n = len(self.polynomials)
        for k, polynomial in enumerate(self.polynomials):
            slopes = [(axis, _derivative(polynomial, axis)) for axis in range(3)]
            change = total(f"b{axis} * ({_written(slope)})" for axis, slope in slopes if slope)
            body.append(
                f"tl.store(dy_at + q * {n} + {k}, {change or 'tl.zeros_like(r)'}, mask=inside)"
            )
        return self._program("directions__jvp", ("v_at", "r_at", "a_at", "dr_at", "dy_at"), body)

    @property
    def _powers(self) -> Sequence[str]:
        """Lines that give the powers of the unit vector's components."""
        lines = [f"{name}1 = v{axis} / r" for axis, name in enumerate("xyz")]
        for power in range(2, self.max_ell + 1):
            lines += [f"{name}{power} = {name}{power - 1} * {name}1" for name in "xyz"]
        return lines

    def _value(self, polynomial: Polynomial) -> str:
        """A polynomial's value; that of order 0 is a number."""
        constant = polynomial.get((0, 0, 0))
        return (
            _written(polynomial) if constant is None else f"tl.full([{PAIRS}], {constant!r}, REAL)"
        )

    def _program(self, name: str, tensors: Sequence[str], body: Sequence[str]) -> Program:
        return _program(name, tensors, ("n_pairs",), body, self.precision)


def bessel(n_basis: int, constants: tuple[int, float, float], precision: str) -> Program:
    """Radial functions times the cutoff, and their slopes, from lengths and frequencies.

    Args:
        n_basis: functions.
        constants: power of the cutoff, r_max (Å), prefactor.
        precision: fp32 or fp64.
    """
    p, r_max, prefactor = constants
    a = (p + 1) * (p + 2) / 2
    b = float(p * (p + 2))
    c = p * (p + 1) / 2
    body = [
        *_PAIR,
        _load_pair("r", "r_at"),
        f"u = r / {r_max!r}",
        f"power = {' * '.join(['u'] * (p - 1)) or '1.0'}",
    ]
    body += [
        (
            f"cutoff = tl.where(r < {r_max!r}, 1.0 + power * u * ({-a!r} + u * ({b!r} "
            f"- u * {c!r})), 0.0)"
        ),
        (
            f"falling = tl.where(r < {r_max!r}, {-a * p / r_max!r} * power * (1.0 - "
            "u) * (1.0 - u), 0.0)"
        ),
    ]
    for k in range(n_basis):
        body += [f"f = tl.load(frequency_at + {k})", f"wave = {prefactor!r} * tl.sin(f * r) / r"]
        body.append(
            f"slope = ({prefactor!r} * f * tl.cos(f * r) - wave) / r * cutoff + wave * falling"
        )
        body.append(f"tl.store(value_at + q * {n_basis} + {k}, wave * cutoff, mask=inside)")
        body.append(f"tl.store(slope_at + q * {n_basis} + {k}, slope, mask=inside)")
    tensors = ("r_at", "frequency_at", "value_at", "slope_at")
    return _program("bessel", tensors, ("n_pairs",), body, precision)


def silu(gain: float, precision: str) -> Iterator[Program]:
    """The VJP of silu times a gain, and the VJP of that, from z and its logistic function s."""
    number = f"k = tl.program_id(0).to(tl.int64) * {NUMBERS} + tl.arange(0, {NUMBERS})"
    start = [number, "inside = k < n"]
    start += [f"{name} = tl.load({name}_at + k, mask=inside, other=0.0)" for name in "zsg"]
    slope = f"{gain!r} * s * (1.0 + z * (1.0 - s))"
    vjp = [*start, f"tl.store(gz_at + k, g * ({slope}), mask=inside)"]
    yield _program("silu__vjp", ("z_at", "s_at", "g_at", "gz_at"), ("n",), vjp, precision)
    second = f"{gain!r} * s * (1.0 - s) * (2.0 + z * (1.0 - 2.0 * s))"
    vjp_vjp = [*start, "a = tl.load(a_at + k, mask=inside, other=0.0)"]
    vjp_vjp += [f"tl.store(dz_at + k, a * g * ({second}), mask=inside)"]
    vjp_vjp += [f"tl.store(dg_at + k, a * ({slope}), mask=inside)"]
    pointers = ("z_at", "s_at", "g_at", "a_at", "dz_at", "dg_at")
    yield _program("silu__vjp_vjp", pointers, ("n",), vjp_vjp, precision)


def silu_slopes(gain: float, precision: str) -> Iterator[Program]:
    """silu times a gain with its slope, and the VJP of both: of n values, and n slopes
    behind them.
    """
    start = [
        f"k = tl.program_id(0).to(tl.int64) * {NUMBERS} + tl.arange(0, {NUMBERS})",
        "inside = k < n",
        "z = tl.load(z_at + k, mask=inside, other=0.0)",
        "dz = tl.load(z_at + n + k, mask=inside, other=0.0)",
        "s = 1.0 / (1.0 + tl.exp(-z))",
        f"slope = {gain!r} * s * (1.0 + z * (1.0 - s))",
    ]
    outputs = [
        f"tl.store(y_at + k, {gain!r} * z * s, mask=inside)",
        "tl.store(y_at + n + k, slope * dz, mask=inside)",
    ]
    yield _program("silu__jvp", ("z_at", "y_at"), ("n",), [*start, *outputs], precision)
    vjp = [
        *start,
        "g = tl.load(g_at + k, mask=inside, other=0.0)",
        "dg = tl.load(g_at + n + k, mask=inside, other=0.0)",
        f"second = {gain!r} * s * (1.0 - s) * (2.0 + z * (1.0 - 2.0 * s))",
        "tl.store(gz_at + k, g * slope + dg * dz * second, mask=inside)",
        "tl.store(gz_at + n + k, dg * slope, mask=inside)",
    ]
    pointers = ("z_at", "g_at", "gz_at", "y_at")
    yield _program("silu__jvp_vjp", pointers[:3], ("n",), vjp, precision)
    yield _program("silu__jvp_vjp__with_y", pointers, ("n",), [*vjp, *outputs], precision)


_PAIR = (
    f"q = tl.program_id(0).to(tl.int64) * {PAIRS} + tl.arange(0, {PAIRS})",
    "inside = q < n_pairs",
)


def _load_pair(name: str, at: str) -> str:
    """A line that loads a number of each pair; 1 where there is none, by which may be divided."""
    return f"{name} = tl.load({at} + q, mask=inside, other=1.0)"


def _load_vector(name: str, at: str) -> list[str]:
    """Lines that load a vector of each pair; of length √3 where there is none."""
    return [f"{name}{k} = tl.load({at} + q * 3 + {k}, mask=inside, other=1.0)" for k in range(3)]


def _program(
    name: str, tensors: Sequence[str], sizes: tuple[str, ...], body: Sequence[str], precision: str
) -> Program:
    return Program(
        name=name,
        pointers=tuple(tensors),
        sizes=sizes,
        body=tuple(body),
        precision=precision,
        lanes=PAIRS,
    )
