"""Our weights files: every damage is noticed, nothing of them runs, the model.json inside rules."""

import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import TINY
from dataloader import durable
from model_utils import model_loader
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.model_loader import PairWriter
from model_utils.models import description as model_json
from model_utils.models.build import ENERGIES


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a best model of the tiny network, with their model.json."""
    from losses import Loss, sum_names
    from model_utils.metrics import metrics

    folder = tmp_path_factory.mktemp("pair")
    description = model_json.parse(json.dumps(TINY), "tiny")
    module = model_loader.build(description, torch.float64, seed=1)
    outputs = Outputs.named(folder / "x_checkpoint.pt", None)
    writer = PairWriter(outputs, description, module, {"torch": "test"})
    model_loader.write_description(outputs, description, None, overwrite=False)
    writer.save_checkpoint(module, {"epoch": 1, "step": 2})
    writer.save_best(
        model_loader.trainable(module),
        weights="raw",
        epoch=1,
        step=2,
        metrics=metrics([1.0] * len(sum_names()), Loss.of()),
    )
    return folder


@pytest.mark.parametrize("name", ["x_checkpoint.pt", "x_model.pt"])
def test_both_files_load_into_the_same_module(pair: Path, name: str) -> None:
    loaded = model_loader.load(pair / name)
    assert loaded.description.hash() == loaded.file.content["model_json_hash"]
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float64}
    assert torch.equal(
        loaded.module.get_buffer(ENERGIES), torch.tensor([[-13.6, -430.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["x_checkpoint.pt", "x_model.pt"])
def test_flipped_bits_are_never_loaded_with_other_content(
    pair: Path, name: str, tmp_path: Path
) -> None:
    good, rng = (pair / name).read_bytes(), random.Random(1)
    reference = checkpoint.read(pair / name).tensors
    harmless = 0
    for _ in range(60):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(damaged)
        try:
            found = checkpoint.read(tmp_path / name).tensors
        except (InputError, VerificationError):
            continue
        harmless += 1
        assert all(torch.equal(found[key], reference[key]) for key in reference)
    assert harmless < 30


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_off_files_are_refused(pair: Path, share: float, tmp_path: Path) -> None:
    good = (pair / "x_checkpoint.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(good[: int(share * len(good))])
    with pytest.raises(VerificationError, match=r"cut\.pt"):
        checkpoint.read(tmp_path / "cut.pt")


class Bomb:
    """Runs a harmless command when it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save(
        {"format_version": 1, "digest": "", "model_json_text": "", "x": Bomb(marker)},
        tmp_path / "bomb.pt",
    )
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(marker)))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(VerificationError):
            checkpoint.read(tmp_path / name)
    assert not marker.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert marker.exists(), "the bomb is real"


def test_a_compressed_record_is_refused_before_it_is_unpacked(pair: Path, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(pair / "x_checkpoint.pt") as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    (tmp_path / "packed.pt").write_bytes(packed.getvalue())
    with pytest.raises(VerificationError, match="compressed"):
        checkpoint.read(tmp_path / "packed.pt")


def test_an_edited_model_json_beside_is_named_field_by_field(pair: Path, tmp_path: Path) -> None:
    for name in ("x_model.pt", "x_model.json"):
        (tmp_path / name).write_bytes((pair / name).read_bytes())
    fields = json.loads((tmp_path / "x_model.json").read_text())
    (tmp_path / "x_model.json").write_text(json.dumps({**fields, "r_max": 9.0}))
    with pytest.raises(VerificationError, match=r"r_max: 3\.0 against 9\.0"):
        model_loader.load(tmp_path / "x_model.pt")
    (tmp_path / "x_model.json").unlink()
    model_loader.load(tmp_path / "x_model.pt")
    assert not (tmp_path / "x_model.json").exists(), "commands that only read write nothing"
    model_loader.load(tmp_path / "x_model.pt", restore_sidecar=True)
    assert (tmp_path / "x_model.json").read_bytes() == (pair / "x_model.json").read_bytes()


def test_a_buffer_that_contradicts_the_description_is_named(pair: Path) -> None:
    file = checkpoint.read(pair / "x_checkpoint.pt")
    file.tensors[ENERGIES][0, 0] += 1
    module = model_loader.build(file.description, torch.float64, seed=1)
    with pytest.raises(VerificationError, match="atomic_energies"):
        model_loader.load_tensors(module, file.tensors, file.description, "file")


def test_weights_of_another_network_are_named(pair: Path) -> None:
    file = checkpoint.read(pair / "x_checkpoint.pt")
    other = model_json.parse(json.dumps({**TINY, "hidden_irreps": "5x0e+5x1o"}), "other")
    with pytest.raises(VerificationError, match="has shape"):
        model_loader.load_tensors(
            model_loader.build(other, torch.float64, 1), file.tensors, other, "file"
        )


def test_numpy_numbers_and_paths_may_not_stand_in_a_checkpoint(tmp_path: Path) -> None:
    import numpy as np

    for value in (np.float64(1.0), tmp_path, {1, 2}):
        with pytest.raises(TypeError, match="may not stand in a checkpoint"):
            checkpoint.write_checkpoint(tmp_path / "x.pt", {"a": value})
    assert not (tmp_path / "x.pt").exists()


def test_the_generation_before_stays(tmp_path: Path) -> None:
    path, previous = tmp_path / "a.pt", tmp_path / "a.prev.pt"
    for content in (b"one", b"two", b"three"):
        durable.write(path, content, previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three", b"two")
    assert {p.name for p in tmp_path.iterdir()} == {"a.pt", "a.prev.pt"}


def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    durable.write(path, b"old")

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="No space"):
                durable.write(path, b"new")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
