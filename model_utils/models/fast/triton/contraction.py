"""Texts of the symmetric contraction's kernels: a network's polynomial, nested by its factors,
as straight-line code.

The polynomial y_w = Σ_a x_a (T_wa + Σ_b x_b (T_wab + …)) and its derivatives are stated in
``fast/contraction.py``. A program of ``contract``, ``contract__vjp`` and ``contract__vjp_vjp`` has
one atom and all its channels. The gradient by T is a sum over the atoms of an element, in two
launches: ``contract__terms`` sums a few terms over a tile of atoms of one element in registers,
``contract__collect`` adds the tiles in their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model_utils.models.fast.triton.program import Lanes, Program, block, total
from model_utils.models.fast.triton.threads import GROUP, TILE

if TYPE_CHECKING:
    from model_utils.models.fast.contraction import Contraction


@dataclass
class _Node:
    """A factor x_a, the term that ends with it (−1: none), and the factors that may follow."""

    a: int
    term: int = -1
    following: dict[int, "_Node"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Term:
    """A term of the polynomial: its number, its output component and its factors."""

    number: int
    w: int
    factors: tuple[int, ...]


class ContractionTexts:
    """Kernels of one contraction in one precision."""

    def __init__(self, contraction: "Contraction", precision: str) -> None:
        self.precision = precision
        self.channels = contraction.n_channels
        self.lanes = Lanes(contraction.n_channels)
        self.n_in = contraction.n_in
        self.n_out = contraction.n_out
        self.terms = list(_terms(contraction))
        self.n_terms = len(self.terms)
        self.roots = [_nested(t for t in self.terms if t.w == w) for w in range(self.n_out)]
        in_order = sorted(self.terms, key=lambda t: (t.w, t.factors))
        self.groups = [in_order[k : k + GROUP] for k in range(0, self.n_terms, GROUP)]

    def programs(self) -> list[Program]:
        """All kernels that a step may ask for."""
        by_terms = [self.by_terms(adjoint=adjoint) for adjoint in (False, True)]
        return [self.forward(), self.vjp(), self.vjp_vjp(), *by_terms, self.collect()]

    def forward(self) -> Program:
        """The contraction y from (x, T)."""
        body = [*self._start, *self._load("x", "x_at", self.n_in)]
        for w, root in enumerate(self.roots):
            body += self._value(root, 0)
            body.append(self._store("y_at", w, "v0"))
        return self._program("contract", ("x_at", "t_at", "y_at", "species:i32"), body)

    def _value(self, node: _Node, depth: int) -> list[str]:
        """Lines that give v of a depth: the polynomial behind a factor."""
        lines = [f"v{depth} = {self._coefficient(node)}"]
        for child in node.following.values():
            lines += self._value(child, depth + 1)
            lines.append(f"v{depth} += v{depth + 1} * x{child.a}")
        return lines

    def vjp(self) -> Program:
        """The gradient x̄ from (x, T, ȳ)."""
        body = [
            *self._start,
            *self._load("x", "x_at", self.n_in),
            *self._load("g", "g_at", self.n_out),
        ]
        body += [f"d{a} = {self.lanes.zeros}" for a in range(self.n_in)]
        for w, root in enumerate(self.roots):
            for child in root.following.values():
                body += self._pull(child, 1, f"g{w}")
        body += [self._store("gx_at", a, f"d{a}") for a in range(self.n_in)]
        return self._program(
            "contract__vjp", ("x_at", "t_at", "g_at", "gx_at", "species:i32"), body
        )

    def _pull(self, node: _Node, depth: int, before: str) -> list[str]:
        """Lines that give v of a depth and add to d; ``before`` is ȳ times the
        factors before the node's.
        """
        lines = [f"v{depth} = {self._coefficient(node)}"]
        if node.following:
            lines.append(f"p{depth} = {before} * x{node.a}")
        for child in node.following.values():
            lines += self._pull(child, depth + 1, f"p{depth}")
            lines.append(f"v{depth} += v{depth + 1} * x{child.a}")
        return [*lines, f"d{node.a} += {before} * v{depth}"]

    def vjp_vjp(self) -> Program:
        """The gradients by x and ȳ of a·x̄, from (x, T, ȳ, a): every number
        carries its change along a.
        """
        body = [
            *self._start,
            *self._load("x", "x_at", self.n_in),
            *self._load("a", "ax_at", self.n_in),
        ]
        body += [f"d{a} = {self.lanes.zeros}" for a in range(self.n_in)]
        for w, root in enumerate(self.roots):
            body += self._load("g", "g_at", self.n_out)[w : w + 1]
            body.append(f"change = {self.lanes.zeros}")
            for child in root.following.values():
                body += self._pull_change(child, 1, f"g{w}", None)
                body.append(f"change += v1 * a{child.a}")
                body += [f"change += c1 * x{child.a}"] if child.following else []
            body.append(self._store("dg_at", w, "change"))
        body += [self._store("dx_at", a, f"d{a}") for a in range(self.n_in)]
        pointers = ("x_at", "t_at", "g_at", "ax_at", "dx_at", "dg_at", "species:i32")
        return self._program("contract__vjp_vjp", pointers, body)

    def _pull_change(self, node: _Node, depth: int, before: str, change: str | None) -> list[str]:
        """Lines that give v of a depth with its change c, and add to d; so has
        ``before`` its ``change``.
        """
        a = node.a
        lines = [f"v{depth} = {self._coefficient(node)}"]
        if node.following:
            lines += [f"c{depth} = {self.lanes.zeros}", f"p{depth} = {before} * x{a}"]
            changed = "" if change is None else f" + {change} * x{a}"
            lines.append(f"e{depth} = {before} * a{a}{changed}")
        for child in node.following.values():
            lines += self._pull_change(child, depth + 1, f"p{depth}", f"e{depth}")
            lines.append(f"c{depth} += v{depth + 1} * a{child.a}")
            lines += [f"c{depth} += c{depth + 1} * x{child.a}"] if child.following else []
            lines.append(f"v{depth} += v{depth + 1} * x{child.a}")
        lines += [f"d{a} += {before} * c{depth}"] if node.following else []
        return [*lines, *([] if change is None else [f"d{a} += {change} * v{depth}"])]

    def by_terms(self, *, adjoint: bool) -> Program:
        """Sums over tiles of atoms of ȳ_w x_a x_b …, or with ``adjoint`` of its change along a.

        A program has one tile, the ``program_id(1)``-th of the ``program_id(2)``-th element,
        and one group of terms.
        """
        name = "contract__terms_adjoint" if adjoint else "contract__terms"
        body = [
            "group = tl.program_id(0)",
            "z = tl.program_id(2)",
            "tile = tl.program_id(1)",
            *self.lanes.start,
        ]
        body += [f"begin = tl.load(species_ptr + z).to(tl.int64) + tile * {TILE}"]
        body += [
            "stop = tl.load(species_ptr + z + 1).to(tl.int64)",
            f"end = tl.minimum(begin + {TILE}, stop)",
        ]
        body += [*self._first_tile, f"place = (first + tile) * {self.n_terms * self.channels}"]
        guarded = []
        for number, group in enumerate(self.groups):
            guarded += block(f"if group == {number}:", self._group(group, adjoint=adjoint))
        body += block("if begin < end:", guarded)  # the largest element has the most tiles
        pointers = ("x_at", "g_at", *(("ax_at",) if adjoint else ()), "sums_at", "species_ptr:i32")
        return self._program(name, pointers, body)

    @property
    def _first_tile(self) -> list[str]:
        """Lines that give the first tile of an element among those of all."""
        count = "tl.load(species_ptr + y + 1).to(tl.int64) - tl.load(species_ptr + y).to(tl.int64)"
        lines = block("for y in range(0, z):", [f"first += ({count} + {TILE - 1}) // {TILE}"])
        return ["first = tl.zeros([], tl.int64)", *lines]

    def _group(self, group: Sequence[_Term], *, adjoint: bool) -> list[str]:
        """Lines that sum some terms over the atoms of a tile."""
        used = sorted({a for term in group for a in term.factors})
        atom: list[str] = []
        atom += [line for a in used for line in self._load("x", "x_at", self.n_in)[a : a + 1]]
        atom += (
            [line for a in used for line in self._load("a", "ax_at", self.n_in)[a : a + 1]]
            if adjoint
            else []
        )
        for w in sorted({term.w for term in group}):
            atom += self._load("g", "g_at", self.n_out)[w : w + 1]
        for term in group:
            atom += self._product(term, adjoint=adjoint)
        lines = [f"s{term.number} = {self.lanes.zeros}" for term in group]
        lines += block("for i in range(begin, end):", atom)
        for term in group:
            lines.append(
                self.lanes.store(
                    f"sums_at + place + {term.number * self.channels}", f"s{term.number}"
                )
            )
        return lines

    def _product(self, term: _Term, *, adjoint: bool) -> list[str]:
        """A line that adds ȳ_w and the factors, or their change by the product rule."""
        factors = [f"x{a}" for a in term.factors]
        if not adjoint:
            return [f"s{term.number} += {' * '.join([f'g{term.w}', *factors])}"]
        changes = [
            " * ".join([*factors[:k], f"a{a}", *factors[k + 1 :]])
            for k, a in enumerate(term.factors)
        ]
        return [f"s{term.number} += g{term.w} * ({total(changes)})"]

    def collect(self) -> Program:
        """T̄ of an element from its tiles; a program has one term of one element."""
        body = ["term = tl.program_id(0).to(tl.int64)", "z = tl.program_id(1)", *self.lanes.start]
        body += [
            "n = tl.load(species_ptr + z + 1).to(tl.int64) - tl.load(species_ptr + z).to(tl.int64)"
        ]
        body += [f"n_own = (n + {TILE - 1}) // {TILE}", f"sum = {self.lanes.zeros}"]
        body += self._first_tile
        place = f"sums_at + ((first + tile) * {self.n_terms} + term) * {self.channels}"
        body += block("for tile in range(0, n_own):", [f"sum += {self.lanes.load(place)}"])
        body.append(
            self.lanes.store(f"gt_at + (z * {self.n_terms} + term) * {self.channels}", "sum")
        )
        return self._program("contract__collect", ("sums_at", "gt_at", "species_ptr:i32"), body)

    @property
    def _start(self) -> list[str]:
        """Lines of a program's atom and its element."""
        element = "z = tl.load(species + i).to(tl.int64)"
        return ["i = tl.program_id(0).to(tl.int64)", element, *self.lanes.start]

    def _load(self, name: str, at: str, count: int) -> list[str]:
        """Lines that load the components of an atom, one each."""
        places = [f"{at} + ({k} * n_atoms + i) * {self.channels}" for k in range(count)]
        return [f"{name}{k} = {self.lanes.load(place)}" for k, place in enumerate(places)]

    def _store(self, at: str, component: int, value: str) -> str:
        return self.lanes.store(f"{at} + ({component} * n_atoms + i) * {self.channels}", value)

    def _coefficient(self, node: _Node) -> str:
        """The value of T where a term ends with the node, else zero."""
        if node.term < 0:
            return self.lanes.zeros
        return self.lanes.load(f"t_at + (z * {self.n_terms} + {node.term}) * {self.channels}")

    def _program(self, name: str, pointers: Sequence[str], body: Sequence[str]) -> Program:
        return Program(
            name=name,
            pointers=tuple(pointers),
            sizes=("n_atoms",),
            body=tuple(body),
            precision=self.precision,
            lanes=self.lanes.size,
        )


def _terms(contraction: "Contraction") -> Iterator[_Term]:
    """The terms, numbered as ``Contraction.terms`` lays them out."""
    number = 0
    before = 0  # output components of lower orders
    for order, degrees in enumerate(contraction.orders):
        for monomials in degrees:
            for w, *factors in monomials.rows.tolist():
                yield _Term(number, before + w, tuple(factors))
                number += 1
        before += 2 * order + 1


def _nested(terms: Iterator[_Term]) -> _Node:
    """The terms of one output component by their factors; the root has none."""
    root = _Node(-1)
    for term in sorted(terms, key=lambda t: t.factors):
        node = root
        for a in term.factors:
            node = node.following.setdefault(a, _Node(a))
        node.term = term.number
    return root
