"""Compile Triton's kernels for GPUs that are not there: ``python triton_compiled.py HIDDEN
PRECISION WHICH SM …``.

WHICH is a pattern of kernels' names. Every line of the output is one kernel as JSON:
registers and spilled bytes as Triton's own cuobjdump reads them from the machine code, and
the seconds that compiling took.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from model_utils import model_loader
from model_utils.models import description as model_json
from model_utils.models.fast.plan import plan_of
from model_utils.models.fast.triton import assemble
from model_utils.models.fast.triton.catalogue import Catalogue

FIELDS = {
    "model_class": "ScaleShiftMACE",
    "r_max": 5.0,
    "atomic_numbers": [8, 12],
    "atomic_energies": [-1.0, -1.0],
    "avg_num_neighbors": 50.0,
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
}
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of local memory, which is where spilled registers go."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    read = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", done.stdout + done.stderr))
    return {"registers": int(read["REG"]), "spilled": int(read["STACK"]) + int(read["LOCAL"])}


def main(hidden: str, precision: str, which: str, *architectures: str) -> None:
    described = model_json.parse(json.dumps({**FIELDS, "hidden_irreps": hidden}), "a test")
    module = model_loader.build(described, DTYPES[precision], 1)
    plan = plan_of(module)
    programs = Catalogue().of_network(plan, dict(module.named_parameters()))
    programs = [p for p in programs if re.fullmatch(which, p.name)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for architecture in architectures:
            for p in programs:
                start = time.process_time()
                kernel = assemble.compiled(**p.task(int(architecture)))
                seconds = time.process_time() - start
                line = {
                    "kernel": p.name,
                    "lines": len(p.body),
                    "sm": architecture,
                    "seconds": round(seconds, 2),
                }
                print(json.dumps(line | usage(kernel.asm["cubin"])), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
