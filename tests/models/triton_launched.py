"""Kernels compiled by processes, kept, loaded and launched, with a driver that only
notes what it is given.

    python triton_launched.py few|all      in a cache of its own ($XDG_CACHE_HOME)

Prints as JSON what was compiled by the first load and the second, and every launch: kernel,
grid, number of arguments.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton_interpreted import network_and_batch, step

from model_utils.models.fast.backends import only
from model_utils.models.fast.backends.triton import Triton
from model_utils.models.fast.triton import library

SM = 90
launches: list[dict[str, Any]] = []


class Utils:
    """What Triton's driver does with machine code."""

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        assert code[:4] == b"\x7fELF"
        return name, name, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 10**5}


class Launcher:
    """What hands arguments on."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.types = list(source.signature.values())

    def __call__(self, x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
        arguments = rest[4:]  # behind metadata and hooks
        assert stream == 7
        assert len(arguments) == len(self.types)
        for argument, kind in zip(arguments, self.types, strict=True):
            assert isinstance(argument, int)
            assert kind == "i64" or argument % 16 == 0
        launches.append({"kernel": function, "grid": [x, y, z]})


class Driver:
    utils = Utils()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", SM, 32)


class OnThisCpu(Triton):
    def takes(self, tensor: Tensor) -> bool:
        return tensor.dtype == torch.float64


def pairs(backend: Triton) -> None:
    """The kernels over pairs alone; the second has vectors that begin within 16 bytes."""
    for vectors in (torch.randn(5, 3), torch.randn(6, 3)[1:]):
        lengths = torch.empty(5, 1)
        backend.directions(vectors, lengths, torch.empty(5, 9))
        backend.directions_vjp(
            (vectors, lengths, torch.empty(5, 1), torch.empty(5, 9)), torch.empty(5, 3)
        )


def main(which: str) -> None:
    torch.set_default_dtype(torch.float64)
    driver.set_active(Driver())
    torch.cuda.current_device = lambda: -1  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: divmod(SM, 10)  # type: ignore[assignment]
    compiled = []
    before = library._compile

    def noted(programs: Any, *rest: Any) -> None:
        compiled.append(len(programs))
        before(programs, *rest)

    library._compile = noted
    per_load = []
    for _ in range(2):
        backend = OnThisCpu()
        if which == "all":
            network, batch = network_and_batch({})
            with only(backend):
                backend.prepare(network.plan, dict(network.module.named_parameters()))
                assert backend._refused is None, backend._refused
                step(network, batch)
        else:
            pairs(backend)
        per_load.append(list(compiled))
        compiled.clear()
    print(json.dumps({"compiled": per_load, "launches": launches}))


if __name__ == "__main__":
    main(sys.argv[1])
