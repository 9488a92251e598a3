"""Resident memory of `metadata.py init` on extended-XYZ files of 10³ and of 10⁶ small
structures of our own making.

    python benchmarks/statistics_memory.py [1000 1000000]

About seven minutes on one core, and 160 MB of disk while it runs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import resource, sys
import metadata
code = metadata.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"{used.ru_maxrss / 1024:.0f} {used.ru_utime:.0f}")
sys.exit(code)
"""


def main() -> None:
    """Measure each size in a process of its own."""
    print("structures  resident MB  CPU s")
    for n in [int(word) for word in sys.argv[1:]] or [1000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "dimers.xyz"
            out = Path(folder) / "model.json"
            write_dimers(data, n)
            words = ["init", "--xyz_train", str(data), "--output_json", str(out)]
            done = subprocess.run(
                [sys.executable, "-c", CHILD, *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            memory, seconds = done.stdout.splitlines()[-1].split()
            print(f"{n:10d} {memory:>12s} {seconds:>6s}", flush=True)


def write_dimers(path: Path, n: int) -> None:
    """H2 and OH with labels around a bond of 1 Å."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for i in range(n):
            bond, force, energy = 1.0 + rng.normal(0.0, 0.05, 3)
            stream.write(
                "2\n"
                f"Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy={-14.0 * energy:.6f}\n"
            )
            stream.write(
                f"H 0 0 0 0 0 {-force:.6f}\n{'HO'[i % 2]} 0 0 {bond:.6f} 0 0 {force:.6f}\n"
            )


if __name__ == "__main__":
    main()
