"""Crystals of a file as candidates: their names."""

from pathlib import Path

from ase.build import bulk
from ase.io import write

from model_utils.judging.candidates import crystals_in


def test_a_name_that_looks_like_a_number_is_a_name(tmp_path: Path) -> None:
    frames = [bulk("Cu") for _ in range(3)]
    for atoms, name in zip(frames, ("12e45678", "34e99999", "007"), strict=True):
        atoms.info["id"] = name
    write(tmp_path / "some.xyz", frames, format="extxyz")
    names = [candidate.identifier for candidate in crystals_in(tmp_path / "some.xyz")]
    assert names == ["12e45678", "34e99999", "007"]
