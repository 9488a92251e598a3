"""A Triton kernel as text: all constants of a network stand in it, so its arguments are
pointers and whole numbers.

Straight-line code over a network's couplings needs no tables at run time, and a text without
specialised arguments is compiled once, whatever the sizes of a batch. Indices are 64-bit;
floating-point arguments have one precision.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from torch import Tensor

from model_utils.models.fast.triton.threads import tuned, warps

HEAD = "import triton\nimport triton.language as tl\n\n\n"
INTEGERS = {"i32": "*i32", "i8": "*i8"}  # pointers to whole numbers are named so: "sender:i32"
WIDTHS = {"fp32": "tl.float32", "fp64": "tl.float64"}
# a kernel has a multiple of these: Triton 3.6 compiles C code for every other number of arguments
POINTERS = 8
SIZES = 3


@dataclass(frozen=True, kw_only=True)
class Program:
    """One kernel of one precision.

    Attributes:
        name: of the function.
        pointers: arguments that are tensors; of whole numbers where a type stands behind a colon.
        sizes: arguments that are whole numbers.
        body: lines of the function, in which REAL stands for the type of the numbers.
        precision: fp32 or fp64.
        lanes: numbers that lie beside each other in a program.
        components: of the features that the convolution reads.
    """

    name: str
    pointers: tuple[str, ...]
    sizes: tuple[str, ...]
    body: tuple[str, ...]
    precision: str
    lanes: int
    components: int = 0

    @cached_property
    def n_spare_pointers(self) -> int:
        """Pointers that are there for the number of arguments alone."""
        return -len(self.pointers) % POINTERS

    @cached_property
    def n_spare_sizes(self) -> int:
        """Whole numbers that are there for the number of arguments alone."""
        return SIZES - len(self.sizes)

    def types(self) -> dict[str, str]:
        """Triton's types of the arguments by name, in order."""
        types = {}
        for pointer in self.pointers:
            name, _, integer = pointer.partition(":")
            types[name] = INTEGERS[integer] if integer else f"*{self.precision}"
        types |= {f"spare_{k}": f"*{self.precision}" for k in range(self.n_spare_pointers)}
        types |= dict.fromkeys(self.sizes, "i64")
        return types | {f"spare_size_{k}": "i64" for k in range(self.n_spare_sizes)}

    def text(self) -> str:
        """The source of a module with the kernel."""
        names = list(self.types())
        whole = [name for name, kind in self.types().items() if kind == "i64"]
        head = f"@triton.jit(do_not_specialize={whole!r})\ndef {self.name}({', '.join(names)}):\n"
        body = "\n".join(indented(self.body))
        return HEAD + head + body.replace("REAL", WIDTHS[self.precision]) + "\n"

    def arguments(
        self, tensors: Sequence[Tensor], sizes: Sequence[int]
    ) -> tuple[Tensor | int, ...]:
        """All arguments in order, spare ones included."""
        assert len(tensors) == len(self.pointers), self.name
        assert len(sizes) == len(self.sizes), self.name
        spare = [tensors[-1]] * self.n_spare_pointers
        return (*tensors, *spare, *sizes, *[1] * self.n_spare_sizes)

    def task(self, architecture: int) -> dict[str, Any]:
        """What ``assemble.compiled`` asks for."""
        own = tuned(self.name, self.components, self.precision)
        return {
            "name": self.name,
            "text": self.text(),
            "types": self.types(),
            "lanes": self.lanes,
            "warps": warps(self.name, self.lanes, own.channels),
            "registers": own.registers,
            "architecture": architecture,
        }

    @cached_property
    def key(self) -> str:
        """A hash of the text and the types of its arguments; a launch asks for it."""
        return sha256(f"{self.text()}\0{self.types()}".encode()).hexdigest()[:24]


def indented(lines: Iterable[str]) -> list[str]:
    """Lines of a block, one step further in."""
    return [f"    {line}" for line in lines]


def block(header: str, lines: Iterable[str]) -> list[str]:
    """A header such as ``for …:`` with its lines."""
    return [header, *indented(lines)]


def total(terms: Iterable[str]) -> str:
    """A sum as text."""
    return " + ".join(terms)


def lanes_of(count: int) -> int:
    """The power of two that holds a number of channels: Triton's blocks have no other lengths."""
    return 1 << max(count - 1, 0).bit_length()


@dataclass(frozen=True)
class Lanes:
    """The channels that a program has beside each other, masked where they are no power of two."""

    count: int

    @property
    def size(self) -> int:
        """Length of the block."""
        return lanes_of(self.count)

    @property
    def start(self) -> list[str]:
        """Lines that define the channels ``c`` and which of them there are."""
        lines = [f"c = tl.arange(0, {self.size})"]
        return lines if self.count == self.size else [*lines, f"inside = c < {self.count}"]

    @property
    def zeros(self) -> str:
        """An empty sum per channel."""
        return f"tl.zeros([{self.size}], REAL)"

    def load(self, place: str) -> str:
        """The channels that begin at a place, zero where there are none."""
        masked = "" if self.count == self.size else ", mask=inside, other=0.0"
        return f"tl.load({place} + c{masked})"

    def store(self, place: str, value: str) -> str:
        """Write the channels that begin at a place."""
        masked = "" if self.count == self.size else ", mask=inside"
        return f"tl.store({place} + c, {value}{masked})"
