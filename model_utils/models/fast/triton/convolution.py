"""Texts of the convolution's kernels: a network's paths and Clebsch-Gordan numbers
as straight-line code.

The sums are stated in ``fast/convolution.py``. A program has one atom and all channels of it; its
sums stay in registers, and no two programs write to one place in one launch, so there are no
atomics and one order of sums:

    convolve: the atom's row of edges j → i gives A of the atom;
    its VJP:  the row of reverse edges i → j, with G of the neighbour: h̄ of the atom is a sum over
              it. The w̄ and Ȳ of a pair have a term of each of its edges: a first launch stores
              that of the edge along the pair's vector, a second adds the other.

The VJP of the VJP is the same two with adjoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from model_utils.models.fast.triton.program import Lanes, Program, block, total

if TYPE_CHECKING:
    from model_utils.models.fast.convolution import Convolution

ZERO = 1e-9  # couplings are either zero in exact arithmetic or far above this
TABLES = ("rank:i32", "row_ptr:i32", "sender:i32", "pair:i32", "reverse:i32", "flipped:i8")


@dataclass(frozen=True, kw_only=True)
class _Path:
    index: int  # among all paths
    l1: int
    l2: int
    l3: int
    place: int  # among the paths that end in l3
    couplings: tuple[tuple[int, int, int, float], ...]  # (m1, m2, m3, value)

    @cached_property
    def entries(self) -> list[tuple[int, int]]:
        """Entries (m1, m3) of the coupling matrix that are not zero."""
        return sorted({(m1, m3) for m1, _, m3, _ in self.couplings})

    def matrix(self, name: str, harmonics: str) -> list[str]:
        """Lines M[m1, m3] = Σ C Y."""
        lines = []
        for m1, m3 in self.entries:
            terms = [
                f"{value!r} * {harmonics}{self.l2**2 + m2}"
                for a, m2, b, value in self.couplings
                if (a, b) == (m1, m3)
            ]
            lines.append(f"{name}_{m1}_{m3} = {total(terms)}")
        return lines


class ConvolutionTexts:
    """Kernels of one convolution in one precision."""

    def __init__(self, convolution: "Convolution", precision: str) -> None:
        self.paths = [
            _Path(
                index=index,
                l1=p.l1,
                l2=p.l2,
                l3=p.l3,
                place=p.place,
                couplings=tuple(
                    (m1, m2, m3, float(p.coefficients[m1, m2, m3]))
                    for m1, m2, m3 in (p.coefficients.abs() > ZERO).nonzero().tolist()
                ),
            )
            for index, p in enumerate(convolution.paths)
        ]
        self.precision = precision
        self.channels = convolution.n_channels
        self.lanes = Lanes(convolution.n_channels)
        self.odd = convolution.odd
        self.n_components = (max(p.l1 for p in self.paths) + 1) ** 2
        self.n_paths_to = [width // self.channels for width in convolution.widths]

    def programs(self) -> list[Program]:
        """All kernels that a step may ask for."""
        programs = [self.forward(adjoint=adjoint) for adjoint in (False, True)]
        for adjoint in (False, True):
            for by_y in (False, True):
                programs += [
                    self.backward(adjoint=adjoint, by_y=by_y, flipped=f) for f in (False, True)
                ]
        return programs

    def forward(self, *, adjoint: bool) -> Program:
        """A(h, Y, w); with ``adjoint`` A(a_h, Y, w) + A(h, a_Y, w) + A(h, Y, a_w)."""
        name = "convolve__adjoint" if adjoint else "convolve"
        inputs = ("h_at", "y_at", "w_at", *(("ah_at", "ay_at", "aw_at") if adjoint else ()))
        edge = ["j = tl.load(sender + e).to(tl.int64)", "q = tl.load(pair + e).to(tl.int64)"]
        edge += ["sign = (1 - 2 * tl.load(flipped + e).to(tl.int32)).to(REAL)"]
        edge += [*self._harmonics("y", "y_at"), *self._components("h", "h_at", "j")]
        if adjoint:
            edge += [*self._harmonics("z", "ay_at"), *self._components("g", "ah_at", "j")]
        for path in self.paths:
            edge += self._add_path(path, adjoint=adjoint)
        sums = [(p, m3) for p in self.paths for m3 in range(2 * p.l3 + 1)]
        body = list(self._start)
        body += [f"o{p.index}_{m3} = {self.lanes.zeros}" for p, m3 in sums]
        body += block("for e in range(begin, end):", edge)
        body += [
            self.lanes.store(f"out {self._place(p, m3, 'i')}", f"o{p.index}_{m3}") for p, m3 in sums
        ]
        return self._program(name, (*inputs, "out"), body)

    def _add_path(self, path: _Path, *, adjoint: bool) -> list[str]:
        """Lines that add what an edge gives by one path."""
        lines = [self._weight("w", "w_at", path), *path.matrix("m", "y")]
        if adjoint:
            lines += [self._weight("v", "aw_at", path), *path.matrix("n", "z")]
        for m3 in range(2 * path.l3 + 1):
            components = [(path.l1**2 + m1, f"{m1}_{m3}") for m1, b in path.entries if b == m3]
            if not components:
                continue
            lines.append("u = " + total(f"h{k} * m_{entry}" for k, entry in components))
            if adjoint:
                mixed = total(f"g{k} * m_{entry} + h{k} * n_{entry}" for k, entry in components)
                lines.append(f"o{path.index}_{m3} += w * ({mixed}) + v * u")
            else:
                lines.append(f"o{path.index}_{m3} += w * u")
        return lines

    def backward(self, *, adjoint: bool, by_y: bool, flipped: bool) -> Program:
        """(h̄, Ȳ, w̄), or with ``adjoint`` the gradients by h, Y and w of a_h·h̄ + a_Y·Ȳ + a_w·w̄.

        Args:
            adjoint: of the VJP of the VJP.
            by_y: the harmonics' gradient too.
            flipped: the launch of edges against their pair's vector, which adds to
                what the other has stored.
        """
        name = "__".join(
            [
                "convolve__vjp" + ("_vjp" if adjoint else ""),
                "with_y" if by_y else "no_y",
                str(int(flipped)),
            ]
        )
        inputs = ("h_at", "y_at", "w_at", "g_at", *(("ah_at", "ay_at", "aw_at") if adjoint else ()))
        outputs = ("gh_at", *(("gy_at",) if by_y else ()), "gw_at")
        edge = ["j = tl.load(sender + e).to(tl.int64)", "q = tl.load(pair + back).to(tl.int64)"]
        edge += [f"sign = {-1.0 if flipped else 1.0}", *self._harmonics("y", "y_at")]
        edge += self._harmonics("z", "ay_at") if adjoint else []
        edge += [f"t{k} = {self.lanes.zeros}" for k in range(len(self.odd))] if by_y else []
        for path in self.paths:
            edge += self._pull_path(path, adjoint=adjoint, by_y=by_y, flipped=flipped)
        edge += self._write_harmonics(flipped=flipped) if by_y else []
        row = [
            "back = tl.load(reverse + e).to(tl.int64)",
            "f = tl.load(flipped + back).to(tl.int32)",
        ]
        row += block(f"if f == {int(flipped)}:", edge)
        body = [*self._start, *self._components("h", "h_at", "i")]
        body += self._components("a", "ah_at", "i") if adjoint else []
        components = range(self.n_components)
        if flipped:
            body += self._components("d", "gh_at", "i")
        else:
            body += [f"d{k} = {self.lanes.zeros}" for k in components]
        body += block("for e in range(begin, end):", row)
        body += [
            self.lanes.store(f"gh_at + ({k} * n_atoms + i) * {self.channels}", f"d{k}")
            for k in components
        ]
        return self._program(name, (*inputs, *outputs), body)

    def _pull_path(self, path: _Path, *, adjoint: bool, by_y: bool, flipped: bool) -> list[str]:
        """Lines of one path that add to d, the gradient by h, and t, that by
        Y, and write that by w.
        """
        lines = [self._weight("w", "w_at", path), *path.matrix("m", "y")]
        if adjoint:
            lines += [self._weight("v", "aw_at", path), *path.matrix("n", "z")]
        for m3 in range(2 * path.l3 + 1):
            place = "g_at " + self._place(path, m3, "j")
            lines.append(f"x{m3} = {self.lanes.load(place)}")
        lines.append(f"r = {self.lanes.zeros}")
        for m1 in range(2 * path.l1 + 1):
            ends = [m3 for a, m3 in path.entries if a == m1]
            if not ends:
                continue
            k = path.l1**2 + m1
            lines.append("u = " + total(f"m_{m1}_{m3} * x{m3}" for m3 in ends))
            if adjoint:
                lines.append("ua = " + total(f"n_{m1}_{m3} * x{m3}" for m3 in ends))
                lines += [f"d{k} += w * ua + v * u", f"r += a{k} * u + h{k} * ua"]
            else:
                lines += [f"d{k} += w * u", f"r += h{k} * u"]
        lines += self._pull_harmonics(path, adjoint=adjoint) if by_y else []
        place = f"gw_at + (q * {len(self.paths)} + {path.index}) * {self.channels}"
        lines += [f"r += {self.lanes.load(place)}"] if flipped else []
        return [*lines, self.lanes.store(place, "r")]

    def _pull_harmonics(self, path: _Path, *, adjoint: bool) -> list[str]:
        """Lines of one path that add to t."""
        lines = []
        for m2 in range(2 * path.l2 + 1):
            terms = [(path.l1**2 + m1, m3, value) for m1, b, m3, value in path.couplings if b == m2]
            if not terms:
                continue
            plain = total(f"{value!r} * (h{k} * x{m3})" for k, m3, value in terms)
            if adjoint:
                mixed = total(f"{value!r} * (a{k} * x{m3})" for k, m3, value in terms)
                lines.append(f"t{path.l2**2 + m2} += w * ({mixed}) + v * ({plain})")
            else:
                lines.append(f"t{path.l2**2 + m2} += w * ({plain})")
        return lines

    def _write_harmonics(self, *, flipped: bool) -> list[str]:
        """Lines that sum t over the channels."""
        lines = []
        for k, odd in enumerate(self.odd):
            place = f"gy_at + q * {len(self.odd)} + {k}"
            lines.append(f"whole = {'sign * ' if odd else ''}tl.sum(t{k}, axis=0)")
            lines += [f"whole += tl.load({place})"] if flipped else []
            lines.append(f"tl.store({place}, whole)")
        return lines

    @property
    def _start(self) -> list[str]:
        """Lines of a program's atom and its row; rows go in the batch's order, so that
        neighbours stay in the cache.
        """
        return [
            "i = tl.load(rank + tl.program_id(0)).to(tl.int64)",
            *self.lanes.start,
            "begin = tl.load(row_ptr + i)",
            "end = tl.load(row_ptr + i + 1)",
        ]

    def _harmonics(self, name: str, at: str) -> list[str]:
        """Lines that load a pair's harmonics, with the sign of the edge."""
        n = len(self.odd)
        return [
            f"{name}{k} = {'sign * ' if odd else ''}tl.load({at} + q * {n} + {k})"
            for k, odd in enumerate(self.odd)
        ]

    def _components(self, name: str, at: str, atom: str) -> list[str]:
        """Lines that load an atom's features."""
        places = [
            f"{at} + ({k} * n_atoms + {atom}) * {self.channels}" for k in range(self.n_components)
        ]
        return [f"{name}{k} = {self.lanes.load(place)}" for k, place in enumerate(places)]

    def _weight(self, name: str, at: str, path: _Path) -> str:
        """A line that loads the pair's weights of a path."""
        place = f"{at} + (q * {len(self.paths)} + {path.index}) * {self.channels}"
        return f"{name} = {self.lanes.load(place)}"

    def _place(self, path: _Path, m3: int, atom: str) -> str:
        """Where a component of a path's output lies, from the beginning of the blocks."""
        before = sum((2 * order + 1) * n for order, n in enumerate(self.n_paths_to[: path.l3]))
        row = f"({m3} * n_atoms + {atom}) * {self.n_paths_to[path.l3]} + {path.place}"
        return f"+ ({before} * n_atoms + {row}) * {self.channels}"

    def _program(self, name: str, tensors: Sequence[str], body: Sequence[str]) -> Program:
        return Program(
            name=name,
            pointers=(*tensors, *TABLES),
            sizes=("n_atoms",),
            body=tuple(body),
            precision=self.precision,
            lanes=self.lanes.size,
            components=self.n_components,
        )
