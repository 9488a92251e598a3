"""Texts of the convolution's kernels: a network's paths and Clebsch-Gordan numbers
as straight-line code.

The sums are stated in ``fast/convolution.py``. A program has one atom and all channels of it; its
sums stay in registers, and no two programs write to one place in one launch, so there are no
atomics and one order of sums:

    convolve: the atom's row of edges j → i gives A of the atom;
    its VJP:  the row of reverse edges i → j, with G of the neighbour. The w̄ and Ȳ of a pair have a
              term of each of its edges, and so do the h̄ of its two atoms: the program of the edge
              along the pair's vector has all of them, from h and G of both atoms. It adds its own
              atom's h̄, and writes the neighbour's into an array of pairs; a second launch adds
              these to each atom. G of a neighbour is by far the most that is read, and comes
              once for a pair in this way.

The VJP of the VJP is the same with adjoints. Where every edge has arrays of its own, as in
``graph_views.directed``, a pair has one edge and one term, and one launch has all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from model_utils.models.fast.triton.program import Lanes, Program, block, lanes_of, total
from model_utils.models.fast.triton.threads import tuned

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

    @property
    def sign(self) -> str:
        """The sign (−1)^l2 that harmonics, and with them the matrix M, have for the edge against
        a pair's vector.
        """
        return "-" if self.l2 % 2 else "+"

    @property
    def own(self) -> str:
        """How the components of G of the program's own atom are called."""
        return f"p{self.index}_"

    @property
    def by_weights(self) -> str:
        """How the gradient by the path's weights is called."""
        return f"r{self.index}"

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


def backward_name(adjoint: bool, by_y: bool, directed: bool) -> str:
    """The name of a kernel of the VJP or, with ``adjoint``, of its VJP."""
    parts = ["convolve__vjp_vjp" if adjoint else "convolve__vjp", "with_y" if by_y else "no_y"]
    return "__".join([*parts, *(["directed"] if directed else [])])


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
        # An edge writes when it has read all: the compiler moves no load to before a store, which
        # might be to the same place, so each path would wait for memory. Double precision has no
        # registers left for that.
        self.writes_last = precision == "fp32"
        self.n_paths_to = [width // self.channels for width in convolution.widths]

    def programs(self, *, directed: bool) -> list[Program]:
        """All kernels that a step may ask for; ``directed``: every edge has arrays of its own."""
        return (
            [self.forward(adjoint=adjoint) for adjoint in (False, True)]
            + [
                self.backward(adjoint=adjoint, by_y=by_y, directed=directed)
                for adjoint in (False, True)
                for by_y in (False, True)
            ]
            + ([] if directed else [self.add_neighbours()])
        )

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

    def backward(self, *, adjoint: bool, by_y: bool, directed: bool) -> Program:
        """(h̄, Ȳ, w̄), or with ``adjoint`` the gradients by h, Y and w of a_h·h̄ + a_Y·Ȳ + a_w·w̄.

        Args:
            adjoint: of the VJP of the VJP.
            by_y: the harmonics' gradient too.
            directed: every edge has harmonics and weights of its own.
        """
        name = backward_name(adjoint, by_y, directed)
        holds_own = not directed and tuned(name, self.n_components, self.precision).holds_own
        inputs = ("h_at", "y_at", "w_at", "g_at", *(("ah_at", "ay_at", "aw_at") if adjoint else ()))
        outputs = ("gh_at", *(("gy_at",) if by_y else ()), "gw_at")
        outputs += () if directed else ("ghj_at",)
        along = self._pull_edge(adjoint=adjoint, by_y=by_y, both=not directed, holds_own=holds_own)
        row = ["j = tl.load(sender + e).to(tl.int64)"]
        if directed:
            row += ["back = tl.load(reverse + e)", "q = tl.load(pair + back).to(tl.int64)"]
            row += along
        else:
            row += ["q = tl.load(pair + e).to(tl.int64)"]
            row = block("if tl.load(flipped + e).to(tl.int32) == 1:", [*row, *along])
        body = [*self._start, *self._components("h", "h_at", "i")]
        body += self._components("a", "ah_at", "i") if adjoint else []
        for path in self.paths if holds_own else ():
            body += self._outputs_of(path.own, path, "i")
        components = range(self.n_components)
        body += [f"d{k} = {self.lanes.zeros}" for k in components]
        body += block("for e in range(begin, end):", row)
        body += [
            self.lanes.store(f"gh_at + ({k} * n_atoms + i) * {self.channels}", f"d{k}")
            for k in components
        ]
        return self._program(name, (*inputs, *outputs), body)

    def add_neighbours(self) -> Program:
        """Add to each atom's h̄ what the edges along their pairs' vectors wrote for it as their
        neighbour.
        """
        components = range(self.n_components)
        places = [f"gh_at + ({k} * n_atoms + i) * {self.channels}" for k in components]
        body = [*self._start]
        body += [f"d{k} = {self.lanes.load(places[k])}" for k in components]
        edge = ["q = tl.load(pair + e).to(tl.int64)"]
        edge += [f"d{k} += {self.lanes.load(f'ghj_at + {self._of_pair(k)}')}" for k in components]
        along = block("if tl.load(flipped + e).to(tl.int32) == 0:", edge)
        body += block("for e in range(begin, end):", along)
        body += [self.lanes.store(places[k], f"d{k}") for k in components]
        return self._program("convolve__neighbours", ("ghj_at", "gh_at"), body)

    def _of_pair(self, component: int) -> str:
        """Where a component of the array of pairs lies."""
        return f"(q * {self.n_components} + {component}) * {self.channels}"

    def _pull_edge(self, *, adjoint: bool, by_y: bool, both: bool, holds_own: bool) -> list[str]:
        """Lines of an edge along its pair's vector, by all paths; ``both``: of the edge against
        it too, ``holds_own``: with G of the program's atom loaded before.
        """
        lines = [f"t{k} = {self.lanes.zeros}" for k in range(len(self.odd))] if by_y else []
        components = range(self.n_components)
        lines += [f"dj{k} = {self.lanes.zeros}" for k in components] if both else []
        written: list[str] = []
        for path in self.paths:
            lines += [] if holds_own or not both else self._outputs_of(path.own, path, "i")
            lines += self._pull_path(path, adjoint=adjoint, by_y=by_y, both=both)
            place = f"gw_at + (q * {len(self.paths)} + {path.index}) * {self.channels}"
            (written if self.writes_last else lines).append(
                self.lanes.store(place, path.by_weights)
            )
        lines += written
        if both:
            lines += [
                self.lanes.store(f"ghj_at + {self._of_pair(k)}", f"dj{k}") for k in components
            ]
        return lines + (self._write_harmonics() if by_y else [])

    def _pull_path(self, path: _Path, *, adjoint: bool, by_y: bool, both: bool) -> list[str]:
        """Lines of one path that add to d and dj, the gradients by h of the two atoms, and t,
        that by Y, and make r, that by w.
        """
        lines = self._coupled(path, adjoint=adjoint)
        if both:
            own = range(path.l1**2, (path.l1 + 1) ** 2)
            lines += self._components("hj", "h_at", "j", own)
            lines += self._components("aj", "ah_at", "j", own) if adjoint else []
        r = path.by_weights
        lines.append(f"{r} = {self.lanes.zeros}")
        for m1 in range(2 * path.l1 + 1):
            ends = [m3 for a, m3 in path.entries if a == m1]
            if not ends:
                continue
            k = path.l1**2 + m1
            lines += self._pulled("u", "x", m1, ends, adjoint=adjoint)
            lines += self._pulled("s", path.own, m1, ends, adjoint=adjoint) if both else []
            lines.append(f"d{k} += " + ("w * ua + v * u" if adjoint else "w * u"))
            lines.append(f"{r} += " + (f"a{k} * u + h{k} * ua" if adjoint else f"h{k} * u"))
            if both:
                other = f"aj{k} * s + hj{k} * sa" if adjoint else f"hj{k} * s"
                lines.append(f"{r} {path.sign}= {other}")
                added = "w * sa + v * s" if adjoint else "w * s"
                lines.append(f"dj{k} {path.sign}= {added}")
        return lines + (self._pull_harmonics(path, adjoint=adjoint, both=both) if by_y else [])

    def _coupled(self, path: _Path, *, adjoint: bool) -> list[str]:
        """Lines with a path's weights, its couplings' matrix and G of the neighbour.

        Harmonics are read by every path anew: they are in the cache, and all of them at once
        would take registers.
        """
        names = [("w", "w_at", "m", "y", "y_at")]
        names += [("v", "aw_at", "n", "z", "ay_at")] if adjoint else []
        lines = []
        n = len(self.odd)
        for weight, weights_at, matrix, harmonic, harmonics_at in names:
            lines.append(self._weight(weight, weights_at, path))
            lines += [
                f"{harmonic}{k} = tl.load({harmonics_at} + q * {n} + {k})"
                for k in range(path.l2**2, (path.l2 + 1) ** 2)
            ]
            lines += path.matrix(matrix, harmonic)
        return lines + self._outputs_of("x", path, "j")

    def _outputs_of(self, name: str, path: _Path, atom: str) -> list[str]:
        """Lines that load G of an atom, the components of one path."""
        places = ["g_at " + self._place(path, m3, atom) for m3 in range(2 * path.l3 + 1)]
        return [f"{name}{m3} = {self.lanes.load(place)}" for m3, place in enumerate(places)]

    def _pulled(
        self, name: str, of: str, m1: int, ends: Sequence[int], *, adjoint: bool
    ) -> list[str]:
        """Lines with a row of the couplings' matrix times G; with ``adjoint`` that of
        the adjoint's too.
        """
        lines = [f"{name} = " + total(f"m_{m1}_{m3} * {of}{m3}" for m3 in ends)]
        if adjoint:
            lines.append(f"{name}a = " + total(f"n_{m1}_{m3} * {of}{m3}" for m3 in ends))
        return lines

    def _pull_harmonics(self, path: _Path, *, adjoint: bool, both: bool) -> list[str]:
        """Lines of one path that add to t."""

        def summed(terms: Sequence[tuple[int, int, float]], name: str) -> str:
            other = f" {path.sign} {name}j{{k}} * {path.own}{{m3}}" if both else ""
            form = f"{{value!r}} * ({name}{{k}} * x{{m3}}{other})"
            return total(form.format(k=k, m3=m3, value=value) for k, m3, value in terms)

        lines = []
        for m2 in range(2 * path.l2 + 1):
            terms = [(path.l1**2 + m1, m3, value) for m1, b, m3, value in path.couplings if b == m2]
            if not terms:
                continue
            added = f"w * ({summed(terms, 'h')})"
            if adjoint:
                added = f"w * ({summed(terms, 'a')}) + v * ({summed(terms, 'h')})"
            lines.append(f"t{path.l2**2 + m2} += {added}")
        return lines

    def _write_harmonics(self) -> list[str]:
        """Lines that sum every t over the channels and write them: joined, so that the threads
        wait for each other once and not for each of them.
        """
        n = len(self.odd)
        size = lanes_of(n)
        names = [f"t{k}" if k < n else "none" for k in range(size)]
        lines = [f"none = {self.lanes.zeros}"] if n < size else []
        while len(names) > 1:
            half = len(names) // 2
            joined = [f"joined_{half}_{k}" for k in range(half)]
            pairs = zip(joined, names[:half], names[half:], strict=True)
            lines += [f"{name} = tl.join({one}, {two})" for name, one, two in pairs]
            names = joined
        lines += [f"whole = tl.reshape(tl.sum({names[0]}, axis=0), [{size}])"]
        lines += [f"k = tl.arange(0, {size})"]
        masked = f", mask=k < {n}" if n < size else ""
        return [*lines, f"tl.store(gy_at + q * {n} + k, whole{masked})"]

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

    def _components(
        self, name: str, at: str, atom: str, which: Sequence[int] | None = None
    ) -> list[str]:
        """Lines that load an atom's features, or some components of them."""
        which = range(self.n_components) if which is None else which
        places = [f"{at} + ({k} * n_atoms + {atom}) * {self.channels}" for k in which]
        loads = [self.lanes.load(place) for place in places]
        return [f"{name}{k} = {load}" for k, load in zip(which, loads, strict=True)]

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
