"""What a run says of its data."""

from pathlib import Path

import pytest
import torch
from ase.io import write

from conftest import waters
from dataloader.data_file import SourceSpec
from dataloader.dataset import Dataset
from dataloader.labels import TO_EVALUATE
from dataloader.sources import open_sources
from model_utils.models import description as model_json
from model_utils.run.data import data_log, open_data


def test_what_was_converted_is_said_of_every_source_once(
    tmp_path: Path, tiny_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not structures were left out of the data set."""
    specs = []
    for number, (energy_unit, forces_unit) in enumerate(
        [("kcal/mol", "kcal/mol/Å"), ("eV", "eV/Å")]
    ):
        frames = waters(3, number)
        for atoms in frames:
            atoms.info |= {"energy_unit": energy_unit, "forces_unit": forces_unit}
        path = tmp_path / f"{number}.xyz"
        write(path, frames, format="extxyz")
        specs.append(SourceSpec(path=path, format="xyz"))
    sources = open_sources(specs, needs=TO_EVALUATE, max_dropped=0.0)
    data = Dataset(sources, model_json.read(tiny_json).facts(), torch.float64)
    lines: list[str] = []
    monkeypatch.setattr(open_data.log, "info", lambda text, *values: lines.append(text % values))
    data_log.describe("train", data)
    notes = [line for line in lines if "kcal/mol" in line]
    assert notes, lines
    assert all(line.startswith("  ") and line.endswith(": 3 structures") for line in notes)
    assert len(set(notes)) == len(notes)
