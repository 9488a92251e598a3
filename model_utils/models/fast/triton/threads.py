"""How much a program of each kernel has to do, by how many threads: a fixed table,
never measured at run time.

Last bits of sums depend on these numbers, so what is tuned at run time would give other
last bits from start to start; and tuning costs time. Whoever changes an entry raises
``TABLE``, which runs record.
"""

TABLE = 1
WARP = 32  # threads
PAIRS = 128  # of one program of a kernel over pairs
NUMBERS = 1024  # of one program of a kernel over numbers
TILE = 32  # atoms over which one program sums gradients by the contraction's terms
GROUP = 24  # terms that it sums, each in a register of its own
MOST_LANES = 256  # channels that one program takes; more would not stay in registers
_THREADS: dict[str, int] = {
    # fewer threads would load 16 bytes at once, but 128 are what holds all sums of 128
    # channels without spilling
    "convolve": 128,
    "contract": 128,
    # sums over the few radial channels stay within one warp
    "segment_sums": 32,
    "directions": 128,
    "bessel": 128,
    "silu": 128,
}
# by kernel, precision and architecture, where they differ
_ELSEWHERE: dict[tuple[str, str, int], int] = {}
# Registers of a thread, at most, where the compiler would take more than it needs and
# fewer programs run at once: by kernel, components of the features and precision. Nothing
# may be spilled with them.
_REGISTERS: dict[tuple[str, int, str], int] = {
    ("convolve__vjp__no_y", 4, "fp32"): 72,
    ("convolve__vjp__with_y", 4, "fp32"): 136,
}


def registers(name: str, components: int, precision: str) -> int | None:
    """The most registers that a thread may have; None: as many as the compiler takes."""
    return _REGISTERS.get((name.rpartition("__")[0], components, precision))


def warps(name: str, precision: str, lanes: int, architecture: int) -> int:
    """Warps of a program.

    Args:
        name: of the kernel; what stands before its first double underscore is looked up.
        precision: fp32 or fp64.
        lanes: numbers beside each other in it.
        architecture: 80, 90, …
    """
    family = name.partition("__")[0]
    threads = _ELSEWHERE.get((family, precision, architecture), _THREADS[family])
    if family in ("convolve", "contract"):
        threads = max(threads, min(lanes, MOST_LANES))  # one channel each
    return max(1, min(threads, lanes) // WARP)
