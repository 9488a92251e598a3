"""The Triton kernels without a GPU: their numbers by Triton's interpreter, their machine code,
launches and the cache.

    pytest tests/models/test_triton.py              one network and one convolution
    KERNELS=full pytest tests/models/test_triton.py a covering array; S, M and L (``make kernels``)

Without triton (``pip install -e '.[triton]'``) only what needs none of it is tested.
"""

import ast
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import covering
import numpy as np
import pytest
import torch
from triton_interpreted import network_and_batch, step

from model_utils import runtime
from model_utils.models.fast.backends import BACKENDS, backend_of, only
from model_utils.models.fast.backends.triton import Launch, Triton
from model_utils.models.fast.compiler import BuildError
from model_utils.models.fast.triton import library
from model_utils.models.fast.triton.catalogue import Catalogue
from model_utils.models.fast.triton.pairs import harmonics
from model_utils.models.fast.triton.threads import TABLE

HERE = Path(__file__).parent
FULL = os.environ.get("KERNELS") == "full"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not HAS_TRITON, reason="triton is not installed (the extra 'triton')"
)

AXES: dict[str, dict[str, Any]] = {
    "irreps": {"vectors": "{c}x0e+{c}x1o", "scalars": "{c}x0e", "tensors": "{c}x0e+{c}x1o+{c}x2e"},
    "channels": {"3": 3, "4": 4, "1": 1},
    "max_ell": {"2": 2, "1": 1, "3": 3},
    "correlation": {"3": 3, "2": 2, "1": 1},
    "layers": {"two": 2, "one": 1, "three": 3},
    "radial": {"one": [5], "two": [4, 3]},
    "cutoff": {"on basis": True, "on weights": False},
}


def fields_of(case: covering.Case) -> dict[str, Any]:
    value = {axis: AXES[axis][name] for axis, name in case.items()}
    return {
        "hidden_irreps": value["irreps"].format(c=value["channels"]),
        "max_ell": value["max_ell"],
        "correlation": [value["correlation"]] * value["layers"],
        "num_interactions": value["layers"],
        "radial_MLP": value["radial"],
        "apply_cutoff": value["cutoff"],
    }


def possible(case: covering.Case) -> bool:
    return not (case.get("irreps") == "tensors" and case.get("max_ell") == "1")


BLOCK = "RealAgnosticResidualNonLinearInteractionBlock"
GATED = {  # every edge has weights of its own
    "interaction_cls": BLOCK,
    "interaction_cls_first": BLOCK,
    "readout_cls": "NonLinearBiasReadoutBlock",
    "correlation": [2, 2],
}
CASES = [*map(fields_of, covering.pairwise(AXES, possible)), GATED] if FULL else [{}]


def run(script: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """Lines that a script of this folder prints, in a process of its own."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
@pytest.mark.parametrize(
    "fields", CASES, ids=lambda fields: "-".join(str(v) for v in fields.values()) or "default"
)
def test_interpreted_kernels_give_plain_torchs_numbers(fields: dict[str, Any]) -> None:
    """Energies, forces, all gradients of a loss of both; the convolution's second
    derivatives by all inputs; bits.
    """
    lines = run("triton_interpreted.py", json.dumps(fields), TRITON_INTERPRET="1")
    launched = lines.pop()["launched"]
    errors = {line["what"]: line["error"] for line in lines}
    assert len(errors) > 10
    assert max(errors.values()) <= 1e-13, errors
    assert all(line["same_again"] for line in lines)
    if not fields:
        network, _ = network_and_batch(fields)
        programs = Catalogue().of_network(network.plan, dict(network.module.named_parameters()))
        rare = {"contract__terms"}  # of a loss without forces
        assert {p.name for p in programs} - rare <= set(launched)


# of the convolution, float32, as the table of threads has it; 10 % more are allowed
REGISTERS = {
    "128x0e+128x1o": {
        "convolve": 96,
        "convolve__adjoint": 168,
        "convolve__vjp__with_y": 168,
        "convolve__vjp__no_y": 255,
        "convolve__vjp_vjp__no_y": 255,
    },
    "128x0e+128x1o+128x2e": {
        "convolve": 168,
        "convolve__adjoint": 255,
        "convolve__vjp__with_y": 255,
        "convolve__vjp__no_y": 255,
        "convolve__vjp_vjp__no_y": 255,
    },
}
LOCAL = {"bessel": 48}  # not spilled: the table by which arguments of sin and cos are reduced
SPILLED = {  # bytes, float32; writing each path at once spills none, and takes up to twice as long
    "128x0e+128x1o": {"convolve__vjp_vjp__no_y": 8},  # by Triton 3.7
    "128x0e+128x1o+128x2e": {
        "convolve__vjp__with_y": 24,  # on sm_80 by Triton 3.6, as the next
        "convolve__vjp_vjp__no_y": 24,
        "convolve__vjp_vjp__with_y": 32,
    },
}
MEDIUM = "128x0e+128x1o"
COMPILED = (
    [
        ("64x0e", "fp32", ".*"),
        ("64x0e", "fp64", ".*"),
        *((hidden, "fp32", ".*") for hidden in REGISTERS),
        (MEDIUM, "fp64", ".*"),
    ]
    if FULL
    else [(MEDIUM, "fp32", f"({'|'.join(REGISTERS[MEDIUM])})")]
)


@needs_triton
@pytest.mark.parametrize(("hidden", "precision", "which"), COMPILED)
def test_kernels_compile_for_gpus_that_are_not_here(
    hidden: str, precision: str, which: str
) -> None:
    lines = run("triton_compiled.py", hidden, precision, which, "80", "90")
    assert {line["sm"] for line in lines} == {"80", "90"}
    for line in lines:
        allowed = LOCAL.get(line["kernel"], 0)
        if precision == "fp32":
            allowed += SPILLED.get(hidden, {}).get(line["kernel"], 0)
        assert line["spilled"] <= allowed, line
        known = REGISTERS.get(hidden, {}).get(line["kernel"], 255)
        assert line["registers"] <= 1.1 * (known if precision == "fp32" else 255), line


def test_no_kernel_adds_what_others_may_add_to_at_the_same_time() -> None:
    network, _ = network_and_batch({})
    programs = Catalogue().of_network(network.plan, dict(network.module.named_parameters()))
    assert len(programs) > 20
    assert not any("atomic" in program.text() for program in programs)
    for program in programs:
        assert len(program.types()) in (11, 19, 27), "few numbers of arguments"


@pytest.mark.parametrize("max_ell", [1, 2, 3])
def test_harmonics_as_polynomials_are_geometrys_own(max_ell: int) -> None:
    from model_utils.models.fast.geometry import by_torch

    vectors = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 3)))
    lengths, expected = by_torch(vectors, max_ell)
    units = vectors / lengths
    for polynomial, column in zip(harmonics(max_ell), expected.unbind(1), strict=True):
        value = sum(
            c * (units ** torch.tensor(powers)).prod(dim=1) for powers, c in polynomial.items()
        )
        assert float((value - column).abs().max()) < 1e-14


def test_triton_is_imported_only_where_a_gpu_asks() -> None:
    """Within functions: importing the product does not need it."""
    files = [*(HERE.parent / "model_utils").rglob("*.py")]
    for file in files:
        at_import = ast.parse(file.read_text(encoding="utf-8")).body
        names = [
            alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)]
        assert not any(name.split(".")[0] == "triton" for name in names), file


# --- what a step launches -------------------------------------------------------------------------


def launches(fields: dict[str, Any]) -> list[Launch]:
    network, batch = network_and_batch(fields)
    backend = Triton()
    with only(backend), backend.counted() as counts:
        step(network, batch)
    return counts


def test_launches_of_a_step_are_counted_and_do_not_grow_with_the_elements() -> None:
    two = launches({})
    names = [launch.name for launch in two]
    assert len(names) <= 47, names
    elements = [8, 12, 1, 6, 7]
    more = launches({"atomic_numbers": elements, "atomic_energies": [-1.0] * 5})
    assert [launch.name for launch in more] == names


@pytest.mark.parametrize("fields", [{}, GATED], ids=["pairs", "edges"])
def test_what_a_step_launches_was_foreseen(fields: dict[str, Any]) -> None:
    network, _ = network_and_batch(fields)
    programs = Catalogue().of_network(network.plan, dict(network.module.named_parameters()))
    assert {launch.name for launch in launches(fields)} <= {program.name for program in programs}


def test_bytes_of_a_launch_follow_from_shapes() -> None:
    network, batch = network_and_batch({})
    first = next(launch for launch in launches({}) if launch.name == "convolve")
    convolution = network.plan.interactions[1].couplings
    n_pairs = batch.n_edges // 2
    weights = 8 * n_pairs * len(convolution.paths) * 3
    harmonics = 8 * n_pairs * 9
    features = 8 * 4 * batch.n_atoms * 3
    assert first.n_programs == batch.n_atoms
    assert first.read == 2 * weights + 2 * harmonics + features
    assert first.written == 8 * batch.n_atoms * sum(
        (2 * k + 1) * w for k, w in enumerate(convolution.widths)
    )


# --- where there are no kernels -------------------------------------------------------------------


class OnCuda(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    runtime.log.addHandler(handler)
    yield said
    runtime.log.removeHandler(handler)


def on_cuda() -> torch.Tensor:
    return torch.zeros(2).as_subclass(OnCuda)


def test_without_triton_one_warning_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with only(Triton()):
        assert backend_of(on_cuda()) is None
        assert backend_of(on_cuda()) is None
    assert len(warnings) == 1
    assert "runs in plain torch" in warnings[0]
    assert "triton cannot be imported" in warnings[0]


def test_on_an_old_card_one_warning_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with only(Triton()):
        assert backend_of(on_cuda()) is None
    assert len(warnings) == 1
    assert "the GPU is sm_75, and they are for sm_80 and later" in warnings[0]


def test_without_a_driver_one_warning_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))

    def fail() -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    with only(Triton()):
        assert backend_of(on_cuda()) is None
    assert len(warnings) == 1
    assert "the GPU does not say what it is (Torch not compiled with CUDA enabled)" in warnings[0]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "the compiler said so"),
        ({"hidden_irreps": "257x0e"}, "a layer is 257 numbers wide, and a program takes 256"),
    ],
)
def test_a_network_that_does_not_compile_runs_in_plain_torch(
    fields: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    network, _ = network_and_batch(fields)
    backend = Triton()

    def refuse(*_: Any) -> None:
        raise BuildError("the compiler said so")

    monkeypatch.setattr(backend, "_load", refuse)
    assert backend.takes(on_cuda())
    assert backend.name == f"triton 3.6.0, table {TABLE}, sm_90"
    backend.prepare(network.plan, dict(network.module.named_parameters()))
    assert not backend.takes(on_cuda())
    assert len(warnings) == 1
    assert warnings[0].endswith(reason)


def test_kernels_of_gpus_are_in_the_table() -> None:
    assert isinstance(BACKENDS["triton"], Triton)
    assert not BACKENDS["triton"].takes(torch.zeros(2))


@needs_triton
def test_kernels_are_compiled_by_processes_loaded_and_launched(tmp_path: Path) -> None:
    """With a driver that notes what it is given; in full a whole step, of which no kernel
    is compiled within it.
    """
    result = run("triton_launched.py", "all" if FULL else "few", XDG_CACHE_HOME=str(tmp_path))[-1]
    names = [launch["kernel"] for launch in result["launches"]]
    if FULL:
        assert result["compiled"][0][0] > 20
        assert len(result["compiled"][0]) == 1, "what was not foreseen is compiled within the step"
        assert names[: len(names) // 2] == [launch.name for launch in launches({})]
    else:
        assert result["compiled"][0] == [1, 1]
        assert names == ["directions", "directions__vjp"] * 4
    assert result["compiled"][1] == []
    sealed = list((tmp_path / "mace-pretrain").glob("triton-*.sha256"))  # beside the CPU's own
    assert len(sealed) == len(result["compiled"][0])


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cache into which something is "compiled" that loads without a GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "version", lambda _: "3.6.0")
    state = SimpleNamespace(compiled=0, folder=tmp_path / "mace-pretrain")

    def compile_into(programs: Any, architecture: int, folder: Path) -> None:
        state.compiled += 1
        for p in programs:
            (folder / p.key).mkdir()
            (folder / p.key / "kernel.cubin").write_bytes(p.text().encode())

    def load(programs: Any, architecture: int, folder: Path) -> dict[str, bytes]:
        return {p.key: (folder / p.key / "kernel.cubin").read_bytes() for p in programs}

    monkeypatch.setattr(library, "_compile", compile_into)
    monkeypatch.setattr(library, "_loaded", load)
    network, _ = network_and_batch({})
    state.programs = Catalogue().of_network(network.plan, dict(network.module.named_parameters()))[
        :3
    ]
    state.load = lambda: library.kernels_of(state.programs, 90)
    return state


def test_kernels_are_compiled_once_and_kept_for_this_user_alone(kept: Any) -> None:
    first = kept.load()
    assert set(first) == {p.key for p in kept.programs}
    assert kept.load() == first
    assert kept.compiled == 1
    names = sorted(path.name for path in kept.folder.iterdir())
    assert len(names) == 2
    assert names[0] + ".sha256" == names[1]
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept.folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("damage", ["bit", "missing", "more", "no seal", "open to others"])
def test_kernels_that_are_not_what_was_compiled_are_compiled_again(
    damage: str, kept: Any, warnings: list[str]
) -> None:
    first = kept.load()
    folder = next(path for path in kept.folder.iterdir() if path.is_dir())
    file = sorted(folder.rglob("*.cubin"))[0]
    content = file.read_bytes()
    if damage == "bit":
        file.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "missing":
        file.unlink()
    elif damage == "more":
        file.with_name("other.cubin").write_bytes(content)
    elif damage == "no seal":
        folder.with_suffix(".sha256").unlink()
    else:
        file.chmod(0o666)
    assert kept.load() == first
    assert kept.compiled == 2
    assert any("compiled again" in warning for warning in warnings)
    assert kept.load() == first
    assert kept.compiled == 2
