"""Texts of the first layer's sums over segments, S[m, s, k] = Σ Y[m] R[k] over the edges of a
segment, and their VJP.

The sums are stated in ``fast/first_layer.py``. A program has one segment and all radial features;
as in the convolution, a pair's gradients have a term of each of its two edges, stored by one launch
and added by the next.
"""

from collections.abc import Sequence

from model_utils.models.fast.triton.program import Lanes, Program, block

TABLES = ("segment_ptr:i32", "pair:i32", "flipped:i8")


class SegmentTexts:
    """Kernels over the segments of one first layer in one precision."""

    def __init__(self, odd: Sequence[bool], n_radial: int, precision: str) -> None:
        self.odd = odd
        self.n_radial = n_radial
        self.lanes = Lanes(n_radial)
        self.precision = precision

    def programs(self) -> list[Program]:
        """All kernels that a step may ask for."""
        programs = [self.forward(adjoint=adjoint) for adjoint in (False, True)]
        for by_y in (False, True):
            programs += [self.vjp(by_y=by_y, flipped=flipped) for flipped in (False, True)]
        return programs

    def forward(self, *, adjoint: bool) -> Program:
        """S(R, Y); with ``adjoint`` S(a_R, Y) + S(R, a_Y)."""
        name = "segment_sums__adjoint" if adjoint else "segment_sums"
        inputs = ("r_at", "y_at", *(("ar_at", "ay_at") if adjoint else ()))
        edge = [
            "q = tl.load(pair + e).to(tl.int64)",
            "sign = (1 - 2 * tl.load(flipped + e).to(tl.int32)).to(REAL)",
        ]
        edge.append(f"r = {self.lanes.load(f'r_at + q * {self.n_radial}')}")
        edge += [f"a = {self.lanes.load(f'ar_at + q * {self.n_radial}')}"] if adjoint else []
        for m in range(len(self.odd)):
            y = self._harmonic("y_at", m)
            edge.append(
                f"o{m} += a * ({y}) + r * ({self._harmonic('ay_at', m)})"
                if adjoint
                else f"o{m} += r * ({y})"
            )
        body = [*self._start, *(f"o{m} = {self.lanes.zeros}" for m in range(len(self.odd)))]
        body += block("for e in range(begin, end):", edge)
        body += [self.lanes.store(f"out + {self._row(m)}", f"o{m}") for m in range(len(self.odd))]
        return self._program(name, (*inputs, "out"), body)

    def vjp(self, *, by_y: bool, flipped: bool) -> Program:
        """(R̄, Ȳ) from (R, Y, S̄) in the launch of edges along, or against, their pair's vector."""
        name = f"segment_sums__vjp__{'with_y' if by_y else 'no_y'}__{int(flipped)}"
        place = f"gr_at + q * {self.n_radial}"
        edge = ["q = tl.load(pair + e).to(tl.int64)", f"sign = {-1.0 if flipped else 1.0}"]
        edge.append(f"b = {self.lanes.load(place) if flipped else self.lanes.zeros}")
        edge += [f"b += g{m} * ({self._harmonic('y_at', m)})" for m in range(len(self.odd))]
        edge.append(self.lanes.store(place, "b"))
        edge += self._pull_harmonics(flipped=flipped) if by_y else []
        body = [*self._start]
        body += [
            f"g{m} = {self.lanes.load(f'g_at + {self._row(m)}')}" for m in range(len(self.odd))
        ]
        row = ["f = tl.load(flipped + e).to(tl.int32)", *block(f"if f == {int(flipped)}:", edge)]
        body += block("for e in range(begin, end):", row)
        outputs = ("gr_at", *(("gy_at",) if by_y else ()))
        return self._program(name, ("r_at", "y_at", "g_at", *outputs), body)

    def _pull_harmonics(self, *, flipped: bool) -> list[str]:
        """Lines that give a pair's gradient by harmonics."""
        lines = [f"r = {self.lanes.load(f'r_at + q * {self.n_radial}')}"]
        for m, odd in enumerate(self.odd):
            place = f"gy_at + q * {len(self.odd)} + {m}"
            lines.append(f"whole = {'sign * ' if odd else ''}tl.sum(g{m} * r, axis=0)")
            lines += [f"whole += tl.load({place})"] if flipped else []
            lines.append(f"tl.store({place}, whole)")
        return lines

    @property
    def _start(self) -> list[str]:
        """Lines of a program's segment."""
        first = ["s = tl.program_id(0).to(tl.int64)", *self.lanes.start]
        return [*first, "begin = tl.load(segment_ptr + s)", "end = tl.load(segment_ptr + s + 1)"]

    def _harmonic(self, at: str, m: int) -> str:
        """A harmonic of the pair with the sign of the edge."""
        return f"{'sign * ' if self.odd[m] else ''}tl.load({at} + q * {len(self.odd)} + {m})"

    def _row(self, m: int) -> str:
        """Where the sums of a harmonic begin."""
        return f"({m} * n_segments + s) * {self.n_radial}"

    def _program(self, name: str, tensors: Sequence[str], body: Sequence[str]) -> Program:
        return Program(
            name=name,
            pointers=(*tensors, *TABLES),
            sizes=("n_segments",),
            body=tuple(body),
            precision=self.precision,
            lanes=self.lanes.size,
        )
