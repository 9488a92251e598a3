"""mace and e3nn are imported without what they would bring along, and miss nothing."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase.io import write
from torch import Tensor

from conftest import TINY, program, waters
from model_utils.models import imported_when_used, mace_import, packages_by_name
from model_utils.run import uncompiled

UNUSED = (
    "torch._dynamo",
    "torchmetrics",
    "matplotlib",
    "pandas",
    "scipy.signal",
    "torch.onnx",
    "sympy",
)
ENTERED = ("mace.tools", "e3nn.io")

assert mace_import.VERSIONS, "the import this is about"


def test_what_is_not_used_is_not_imported() -> None:
    text = (
        f"import model_utils.models.mace_import, sys; print([m for m in {UNUSED} if "
        "m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


OF_A_RUN = (*UNUSED, "scipy.stats", "scipy.sparse", "ase.io", "ase.constraints")
TRAINED = f"""
import os, sys
from model_utils import evaluate, train_mace
os.chdir("FOLDER")
words = "--input_json tiny.json --valid_fraction 0.2 --max_steps 2 --output_checkpoint run"
assert train_mace.main(["--xyz_train", "train.xyz", *words.split()]) == 0
assert evaluate.main(["--input_model", "run/run_model.pt", "--xyz_path", "train.xyz"]) == 0
assert [m for m in {OF_A_RUN} if m in sys.modules] == []
# and it is there for who asks
import torch
optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
optimizer.step()
assert "torch._dynamo" in sys.modules
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
"""


def test_an_optimizers_step_is_torchs_own() -> None:
    """In every bit, with hooks and without, in any order with steps that anybody makes."""
    calls: list[int] = []

    def weights_after(*steps: Callable[[torch.optim.Optimizer], None], hooked: bool) -> Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = torch.optim.AdamW([weight], lr=0.1, amsgrad=True)
        if hooked:
            optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for number, step in enumerate(steps):
            weight.grad = torch.cos(weight.detach() + number)
            step(optimizer)
        return weight.detach()

    def usual(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    expected = weights_after(usual, usual, usual, hooked=False)
    own = uncompiled.step
    assert torch.equal(weights_after(own, own, own, hooked=False), expected)
    assert torch.equal(weights_after(own, usual, own, hooked=False), expected)
    assert calls == []
    assert torch.equal(weights_after(own, own, own, hooked=True), expected)
    assert calls == [1, 1, 1]


def test_training_and_evaluation_import_little(tmp_path: Path) -> None:
    """Each of these would be there half a second later, or two, and a cluster's file system
    makes more of it.
    """
    write(tmp_path / "train.xyz", waters(10), format="extxyz")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    done = program(TRAINED.replace("FOLDER", str(tmp_path)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ENTERED)
def test_every_name_is_there(package: str) -> None:
    """Whoever imports mace besides, a plug-in for instance, finds the names
    of its own ``__init__``.
    """
    module = importlib.import_module(package)
    statements = ast.parse(Path(str(module.__file__)).read_text()).body
    places = [(s.module, a) for s in statements if isinstance(s, ast.ImportFrom) for a in s.names]
    assert len(places) > 1
    for submodule, alias in places:
        right = getattr(importlib.import_module(f"{package}.{submodule}"), alias.name)
        assert getattr(module, alias.asname or alias.name) is right
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = module.nonsense


def test_the_compiler_is_there_when_it_is_asked_for() -> None:
    """mace sets it up where somebody lets it follow a network; without it mace would
    silently leave that out.
    """
    text = (
        "import model_utils.models.mace_import, mace.tools.compile as c, torch; "
        "c.configure_autograd_for_compile(); print(torch._dynamo.config.trace_autograd_ops)"
    )
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert ended.stdout == "True\n"


SYMPY_IS_USED = """
import model_utils.models.mace_import
from e3nn.o3 import _angular_spherical_harmonics as polynomials, _spherical_harmonics as source
assert sorted(polynomials._poly_legendre(1, 1)) == [(0, 1)]
import sympy
from sympy.printing.pycode import pycode
assert polynomials.pi is sympy.pi and polynomials.Poly is sympy.Poly
assert source.pycode is pycode and source.sympy.pi is sympy.pi
source._generate_spherical_harmonics(1)
"""


def test_sympy_is_there_when_it_is_used() -> None:
    """e3nn's own functions find it, in whatever order they are called."""
    done = program(SYMPY_IS_USED)
    assert done.returncode == 0, done.stderr
    assert "sh_1_0 = y" in done.stdout
    assert "sh_1_2 = x" in done.stdout


def test_names_are_taken_without_their_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken_from.py").write_text("double = lambda x: 2 * x\nfour = 4\n")
    (tmp_path / "taker.py").write_text(
        "import taken_from as whole\n"
        "from taken_from import double as twice, four\n"
        "product = lambda x: twice(x) * four\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("taken_from", "taker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with imported_when_used.taken_without_import("taken_from"):
        taker = importlib.import_module("taker")
        assert "four" in vars(taker)
    assert "taken_from" not in sys.modules
    assert taker.product(5) == 40
    assert taker.four == taker.whole.four == 4
    assert taker.twice is sys.modules["taken_from"].double
    del sys.modules["taker"]
    with imported_when_used.taken_without_import("taken_from"):
        assert importlib.import_module("taker").four == 4  # it was imported already


@pytest.mark.parametrize(
    ("text", "is_entered"),
    [
        ("from .here import there\n", True),
        ('"""Package."""\nfrom .here import there as name, here\n__all__ = ["name"]\n', True),
        ("from .here import *\n", False),
        ("from . import here\n", False),
        ("import os\nfrom .here import there\n", False),
        ("from .here import there\nthere()\n", False),
        ("from .here import there\nnumber = 3\n", False),
    ],
)
def test_a_package_that_does_more_is_imported_as_usual(
    text: str, is_entered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, init in (("parent", ""), ("parent/package", text)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(init)
    (tmp_path / "parent/package/here.py").write_text("there = lambda: 1\nhere = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("parent", "parent.package", "parent.package.here"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("parent")
    packages_by_name.enter("parent.package")
    try:
        assert ("parent.package" in sys.modules) is is_entered
        package = importlib.import_module("parent.package")
        assert ("parent.package.here" in sys.modules) is not is_entered
        assert package.here is not None
        assert "parent.package.here" in sys.modules
    finally:
        for name in ("parent", "parent.package", "parent.package.here"):
            sys.modules.pop(name, None)
