"""What several tests share: where the measured data lie, a tiny network, a few labelled
structures, how to wait.

No test depends on the clock, on the load, on free memory, or on the machine: a test waits for what
has to happen, and limits of time stand only where a process might hang.
"""

import copy
import functools
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

# also of the commands that tests start; before torch is imported
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from hypothesis import settings
from torch import fx, jit, nn

from dataloader.quantities import QUANTITIES

ROOT = Path(__file__).resolve().parents[1]
# where a process of its own finds the product and what tests share
OF_TESTS = os.pathsep.join(
    str(ROOT / place) for place in (".", "tests", "tests/models", "tests/run")
)
HANGING = 1200.0  # s after which a process is taken to hang; proves nothing else
# variables that change what a command does or says
STEERING = ("SLURM_", "SBATCH_", "TORCH_FORCE_", "PYTHONWARNINGS")
# every case of what has many: `make battery`
LONG = os.environ.get("BATTERY") in ("full", "product")
in_the_battery = pytest.mark.skipif(not LONG, reason="one more case of its kind: make battery")
KEPT_TEXTS = 1000  # of e3nn's generated functions; the default tests have some hundred in a process
# drawn from the test's own text, so that what passes today passes tomorrow
settings.register_profile("the same every time", derandomize=True, database=None, deadline=None)
settings.load_profile("the same every time")
torch.set_num_threads(1)  # the networks here are tiny, and pytest-xdist uses the cores
# the collector looks through all that e3nn and torch made: it took a tenth of the time, and what is
# right only after it came by is not right
gc.set_threshold(20_000, 10, 10)

TINY = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": {"H": -13.6, "O": -430.0},
    "avg_num_neighbors": 2.0,
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "correlation": 2,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
}


def every(n: int, cases: Sequence[Any], *, of_several: bool = False) -> list[Any]:
    """Cases of which the first and every n-th after it run by default; the others in the battery.

    Args:
        n: 2 for every second one.
        cases: as ``parametrize`` takes them.
        of_several: each has values of several arguments.
    """
    return [
        case
        if number % n == 0
        else pytest.param(*(case if of_several else [case]), marks=in_the_battery)
        for number, case in enumerate(cases)
    ]


def pytest_configure(config: pytest.Config) -> None:
    """All machines alike: no job of a scheduler around the tests, no GPU but for
    ``pytest tests/test_cuda.py``.
    """
    for name in [name for name in os.environ if name.startswith(STEERING)]:
        del os.environ[name]
    if not any("_cuda" in str(word) for word in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # a shell's `&` and nohup ignore it, for children too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """A failed test may have printed bytes that are no text, which no worker of xdist can hand
    on: without this the session would end there, and name no test.
    """
    outcome = yield
    report = outcome.get_result()
    report.sections = [(name, _as_text(text)) for name, text in report.sections]
    if report.longrepr is not None:
        text = str(report.longrepr)
        if text != _as_text(text):
            report.longrepr = _as_text(text)


def _as_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def wait_until(reached: Callable[[], object], what: str) -> None:
    """Wait for something that another process does, however busy the machine is."""
    end = time.monotonic() + HANGING
    while not reached():
        assert time.monotonic() < end, f"{what}: not within {HANGING:.0f} s"
        time.sleep(0.01)


def program(text: str, *folders: Path) -> "subprocess.CompletedProcess[str]":
    """A program of the project's modules, and of those in further folders, run to its end."""
    own = [path for path in [os.environ.get("PYTHONPATH", "")] if path]
    return subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *map(str, folders), *own])},
        capture_output=True,
        text=True,
        timeout=HANGING,
        check=False,
    )


def living(session: int) -> list[int]:
    """Processes of a session, without those that are dead and nobody has waited for."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = place.read_text().rpartition(")")[2].split()
        except OSError:  # it just ended
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(place.parent.name))
    return found


PAUSING = """
import runpy, sys, time
from pathlib import Path
root, step, reached, over, *sys.argv = sys.argv[1:]
sys.path.insert(0, root)
from model_utils.run import fit
gradients, calls = fit.loss_and_gradients, 0
def pausing(*words):
    global calls
    calls += 1
    if calls == int(step):
        Path(reached).touch()
        while not Path(over).exists():
            time.sleep(0.005)
    return gradients(*words)
fit.loss_and_gradients = pausing
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pausing(step: int, reached: Path, over: Path) -> list[str]:
    """Words before the training command's own with which a process of it stays in its n-th step.

    Args:
        step: counted from 1, from where this process begins.
        reached: appears when the step is.
        over: the step goes on when this file is there; never, where nobody makes it.
    """
    script = ROOT / "model_utils" / "train_mace.py"
    return [
        str(word) for word in (sys.executable, "-c", PAUSING, ROOT, step, reached, over, script)
    ]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data with independently measured answers; tests that need it are
    skipped where it is absent.
    """
    folder = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the measured real data are not at {folder} (set MACE_TRAIN_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _default_precision():
    """A command sets torch's default precision for its process; tests share one."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _quantities_of_a_process() -> Iterator[None]:
    """A command puts quantities that are offered into its process's table; tests share one."""
    before = dict(QUANTITIES)
    yield
    QUANTITIES.clear()
    QUANTITIES.update(before)


@pytest.fixture(scope="session", autouse=True)
def _networks_are_built_once() -> Iterator[None]:
    """What was built before from the same state of torch's generator is copied: the same bits
    in a tenth of the time.

    Building takes most of a tiny run's time. The parity tests and all commands in
    processes of their own build anew; in the former, what e3nn makes of a generated text
    is made once for each text.
    """
    if not {"model_utils.model_loader", "model_utils.train_mace", "model_utils.evaluate"} & set(
        sys.modules
    ):
        yield  # these tests need no network, and are spared its imports
        return
    from model_utils import model_loader

    with pytest.MonkeyPatch.context() as patch:
        for place, name, kept in texts_made_once():
            patch.setattr(place, name, kept)
        patch.setattr(model_loader, "build_module", built_once(model_loader.build_module))
        patch.setattr(model_loader, "to_be_filled", filled_once(model_loader.to_be_filled))
        patch.setattr(model_loader, "prove", proved_once(model_loader.prove))
        yield


def texts_made_once() -> Iterator[tuple[object, str, object]]:
    """What e3nn makes of a generated text, by place and name; nine tenths of a building.

    Copies share no tensor.
    """
    from model_utils.model_loader import copied

    importlib.import_module("model_utils.models.mace_import")  # makes the next imports possible
    import opt_einsum_fx
    from e3nn.math import _normalize_activation
    from e3nn.o3 import _linear
    from e3nn.o3._tensor_product import _codegen
    from e3nn.util.codegen import _mixin

    def text_of(generated: fx.GraphModule) -> tuple[object, ...]:
        constants = (
            (name, value.dtype, value.numpy().tobytes())
            for name, value in generated.state_dict().items()
        )
        return type(generated).__name__, generated.code, *constants

    compiled: dict[tuple[object, ...], jit.ScriptModule] = {}
    optimised: dict[tuple[object, ...], nn.Module] = {}

    def compiled_once(generated: fx.GraphModule) -> nn.Module:
        """In place of the step before ``torch.jit.script``, which leaves alone what is compiled."""
        key = text_of(generated)
        if key not in compiled:
            while len(compiled) > KEPT_TEXTS:
                del compiled[next(iter(compiled))]
            compiled[key] = jit.script(jitable(generated))
        return copy.deepcopy(compiled[key])

    def optimised_once(
        model: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]
    ) -> nn.Module:
        key = (*text_of(model), *(tuple(value.shape) for value in example_inputs))
        if key not in optimised:
            while len(optimised) > KEPT_TEXTS:
                del optimised[next(iter(optimised))]
            optimised[key] = optimize(model, example_inputs)
        return copied(optimised[key])

    written: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], bytes]] = WeakKeyDictionary()

    def written_once(module: nn.Module, file: Any, *more: Any, **words: Any) -> None:
        """In place of ``torch.jit.save``, which makes the same bytes at every save of a network."""
        if more or words or next(module.parameters(), None) is not None:
            return save(module, file, *more, **words)
        constants = tuple(
            (name, value.dtype, value.device, value.data_ptr(), value._version)
            for name, value in module.state_dict().items()
        )
        if module not in written or written[module][0] != constants:
            stream = io.BytesIO()
            save(module, stream)
            written[module] = (constants, stream.getvalue())
        file.write(written[module][1])

    save = jit.save
    yield jit, "save", written_once
    jitable = _mixin.jitable
    optimize = _linear.optimize_einsums_full
    yield _mixin, "jitable", compiled_once
    for module in (_linear, _codegen, opt_einsum_fx):
        yield module, "optimize_einsums_full", optimised_once
    # of a million numbers
    yield _normalize_activation, "moment", functools.cache(_normalize_activation.moment)


def built_once(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``build_module`` that keeps the last 32 networks with the state in which
    building left the generator.
    """
    from model_utils.model_loader import copied

    kept: dict[tuple[type, str, torch.dtype, bytes], tuple[nn.Module, torch.Tensor]] = {}

    def build_or_copy(description: Any, dtype: torch.dtype, where: str = "model.json") -> nn.Module:
        key = (
            type(description),
            description.hash(),
            dtype,
            torch.get_rng_state().numpy().tobytes(),
        )
        if key not in kept:
            module = build(description, dtype, where)
            kept[key] = (copied(module), torch.get_rng_state())
            if len(kept) > 32:
                del kept[next(iter(kept))]
            return module
        pristine, state = kept[key]
        torch.set_rng_state(state)
        return copied(pristine)

    return build_or_copy


def filled_once(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``to_be_filled``, whose networks get their weights from a file,
    building each structure once.
    """
    from model_utils.model_loader import copied

    kept: dict[tuple[type, str, torch.dtype], nn.Module] = {}

    def build_or_copy(description: Any, dtype: torch.dtype, where: str = "model.json") -> nn.Module:
        key = (type(description), description.hash(), dtype)
        if key not in kept:
            kept[key] = build(description, dtype, where)
        return copied(kept[key])

    return build_or_copy


def proved_once(prove: Callable[..., None]) -> Callable[..., None]:
    """``prove``, which opens what a new run would write, for the first run of each kind of
    network and of training state; a test of what it refuses unwraps it.
    """
    proven: set[tuple[object, ...]] = set()

    @functools.wraps(prove)
    def prove_or_trust(writer: Any, parameters: Any, module: nn.Module, train_state: Any) -> None:
        description = writer.description
        dtype = next(module.parameters()).dtype
        key = (type(description), description.hash(), dtype, *sorted(train_state))
        if key not in proven:
            prove(writer, parameters, module, train_state)
            proven.add(key)

    return prove_or_trust


@pytest.fixture
def tiny_json(tmp_path: Path) -> Path:
    """A hand-written model.json of a network with a few hundred weights."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def waters(n: int, seed: int = 0, *, prefix: str = "REF_") -> list[Atoms]:
    """Water molecules with random bends and labels of a pair potential, one
    to two molecules each.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(n):
        base = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
        copies = 1 + i % 2
        positions = np.concatenate([base + np.array([0, 0, 2.5 * c]) for c in range(copies)])
        positions = positions + rng.normal(0, 0.05, positions.shape)
        atoms = Atoms("OHH" * copies, positions=positions)
        energy, forces = pair_potential(atoms)
        atoms.info[f"{prefix}energy"] = energy
        atoms.arrays[f"{prefix}forces"] = forces
        frames.append(atoms)
    return frames


def pair_potential(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of Gaussian wells between all pairs, on top of
    the tiny network's E0s.
    """
    energy = sum({1: -13.6, 8: -430.0}[int(z)] for z in atoms.numbers)
    forces = np.zeros((len(atoms), 3))
    for i in range(len(atoms)):
        for j in range(i):
            vector = atoms.positions[i] - atoms.positions[j]
            distance = float(np.linalg.norm(vector))
            well = -np.exp(-((distance - 1.0) ** 2))
            energy += well
            forces[i] += 2 * (distance - 1.0) * well * vector / distance
            forces[j] -= 2 * (distance - 1.0) * well * vector / distance
    return energy, forces


@pytest.fixture
def water_xyz(tmp_path: Path) -> Callable[..., Path]:
    """Write an extended-XYZ file of waters."""

    def make(name: str = "water.xyz", n: int = 8, seed: int = 0) -> Path:
        path = tmp_path / name
        write(path, waters(n, seed), format="extxyz")
        return path

    return make
