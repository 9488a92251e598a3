"""How much a program of each kernel has to do, by how many threads: a fixed table,
never measured at run time.

Last bits of sums depend on these numbers, so what is tuned at run time would give other
last bits from start to start; and tuning costs time. Whoever changes an entry raises
``TABLE``, which runs record.
"""

from dataclasses import dataclass

TABLE = 4
WARP = 32  # threads
PAIRS = 128  # of one program of a kernel over pairs
NUMBERS = 1024  # of one program of a kernel over numbers
TILE = 32  # atoms over which one program sums gradients by the contraction's terms
GROUP = 24  # terms that it sums, each in a register of its own
MOST_LANES = 256  # channels that one program takes; more would not stay in registers
_THREADS: dict[str, int] = {
    # unless tuned below, a thread for each channel
    "convolve": 128,
    "contract": 128,
    # sums over the few radial channels stay within one warp
    "segment_sums": 32,
    "directions": 128,
    "bessel": 128,
    "silu": 128,
}


@dataclass(frozen=True)
class Tuned:
    """What a kernel was measured to run fastest with, on an H100 and an H200; other cards and
    other numbers of channels have the same.

    Attributes:
        channels: of one thread.
        registers: of a thread, which the compiler fills; None: as many as it takes.
        holds_own: what all edges read of the program's own atom stays in registers.
    """

    channels: int = 1
    registers: int | None = None
    holds_own: bool = False


# By kernel, components of the features and precision; measured with 64 channels for one component
# and with 128 for the others. At most 32 bytes are spilled.
_TUNED: dict[tuple[str, int, str], Tuned] = {
    ("convolve", 1, "fp32"): Tuned(channels=2),
    ("convolve__adjoint", 1, "fp32"): Tuned(channels=2, registers=128),
    ("convolve__vjp__no_y", 1, "fp32"): Tuned(channels=2, registers=128, holds_own=True),
    ("convolve__vjp__with_y", 1, "fp32"): Tuned(channels=2, registers=128, holds_own=True),
    ("convolve__vjp_vjp__no_y", 1, "fp32"): Tuned(channels=2, registers=128, holds_own=True),
    ("convolve", 4, "fp32"): Tuned(registers=96),
    ("convolve__adjoint", 4, "fp32"): Tuned(registers=168),
    ("convolve__vjp__no_y", 4, "fp32"): Tuned(channels=2, holds_own=True),
    ("convolve__vjp__with_y", 4, "fp32"): Tuned(holds_own=True),
    ("convolve__vjp_vjp__no_y", 4, "fp32"): Tuned(channels=2, holds_own=True),
    ("convolve", 9, "fp32"): Tuned(registers=168),
    ("convolve__vjp__no_y", 9, "fp32"): Tuned(holds_own=True),
}


def tuned(name: str, components: int, precision: str) -> Tuned:
    """How a kernel runs.

    Args:
        name: of the kernel.
        components: of the features that it reads.
        precision: fp32 or fp64.
    """
    return _TUNED.get((name, components, precision), Tuned())


def warps(name: str, lanes: int, channels: int) -> int:
    """Warps of a program.

    Args:
        name: of the kernel; what stands before its first double underscore is looked up.
        lanes: numbers beside each other in it.
        channels: of one thread.
    """
    family = name.partition("__")[0]
    threads = _THREADS[family]
    if family in ("convolve", "contract"):
        threads = max(threads, min(lanes, MOST_LANES))
    return max(1, min(threads, lanes) // (channels * WARP))
