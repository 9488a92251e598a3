"""What the reliability tests share: a tiny run that is quick to begin, and how much
of each battery to run.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase.io import write
from torch import nn

from conftest import TINY, waters
from model_utils import model_loader, train_mace
from model_utils.files import pair
from model_utils.models.description import ModelDescription

FULL = os.environ.get("BATTERY") in ("full", "product")
# of all settings of a run that is resumed at every step
PRODUCT = os.environ.get("BATTERY") == "product"


def amount(default: int, full: int) -> int:
    """How many cases: few in the default tests, all of them in ``make battery``."""
    return full if FULL else default


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model.json and waters as extended XYZ and as LMDB."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    for name, n, seed in (("train", 14, 0), ("val", 6, 1)):
        frames = waters(n, seed)
        write(folder / f"{name}.xyz", frames, format="extxyz")
        environment = lmdb.open(str(folder / f"{name}.lmdb"), subdir=False, map_size=2**24)
        with environment.begin(write=True) as transaction:
            for i, atoms in enumerate(frames):
                record = {
                    "pos": atoms.positions,
                    "atomic_numbers": atoms.numbers,
                    "cell": np.zeros((3, 3)),
                }
                record |= {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
                transaction.put(str(i).encode(), pickle.dumps(record))
        environment.close()
    return folder


_networks: dict[tuple[str, torch.dtype, str], nn.Module] = {}


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build each network once and use it in one run after another: building is nine
    tenths of a tiny run's time.
    """
    build, copied = model_loader.build_module, model_loader.copied

    def kept(key: tuple[str, torch.dtype, str], make: Callable[[], nn.Module]) -> nn.Module:
        if key not in _networks:
            _networks[key] = make()
        return _networks[key]

    def build_once(description: ModelDescription, dtype: torch.dtype, where: str) -> nn.Module:
        generator = torch.get_rng_state()
        module = kept(
            (description.hash(), dtype, "network"), lambda: build(description, dtype, where)
        )
        torch.set_rng_state(generator)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
                    parameter.grad = None
        return module

    def filled_once(
        description: ModelDescription, dtype: torch.dtype, where: str = "model.json"
    ) -> nn.Module:
        """Never the network that is being trained: a file that is opened is loaded into it."""
        generator = torch.get_rng_state()
        module = kept(
            (description.hash(), dtype, "filled"), lambda: build(description, dtype, where)
        )
        # as the product's own, whether the network was built now or before
        torch.set_rng_state(generator)
        return module

    def copy_once(module: nn.Module) -> nn.Module:
        dtype = next(module.parameters()).dtype
        copy = kept((str(id(module)), dtype, "copy"), lambda: copied(module))
        if any(module is filled for (_, _, use), filled in _networks.items() if use == "filled"):
            copy.load_state_dict(module.state_dict())
        return copy

    monkeypatch.setattr(model_loader, "build_module", build_once)
    monkeypatch.setattr(model_loader, "to_be_filled", filled_once)
    monkeypatch.setattr(model_loader, "copied", copy_once)
    monkeypatch.setattr(pair, "copied", copy_once)


@pytest.fixture
def train(material: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run train_mace in this process on the waters, into a folder of the given name."""

    def go(name: str, *flags: str, data: str = "xyz", code: int = 0) -> Path:
        folder = tmp_path / name
        arguments = [
            "--input_json",
            str(material / "tiny.json"),
            f"--{data}_train",
            str(material / f"train.{data}"),
        ]
        arguments += [
            f"--{data}_val",
            str(material / f"val.{data}"),
            "--epochs",
            "2",
            "--no_export_mace_model",
        ]
        assert train_mace.main([*arguments, "--output_checkpoint", str(folder), *flags]) == code
        return folder

    return go
