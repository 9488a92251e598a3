"""The commands on a device that pretends to be CUDA: no mixed devices, no wait within a step,
one copy for each batch.

What a GPU alone can show is in ``test_cuda.py``.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from lmdb_material import labelled, write_dicts
from pretended_cuda import Notes, as_move, as_step, notes, pretended
from test_fast_step import EVERY_PART, LOSSES, Both, fields_of, many_elements
from torch import Tensor

from conftest import TINY, in_the_battery, waters
from dataloader.batch import Batch
from losses import Loss
from model_utils import evaluate, finetune, model_loader, resume, train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.models import reference
from model_utils.models.accelerated import AcceleratedNetwork
from model_utils.models.fast.convolution import odd_on
from model_utils.run import evaluation, fit
from model_utils.run import step as step_module
from model_utils.run.beginnings import finetuning
from model_utils.run.step import loss_and_gradients

COPIES = {  # of all commands, but for tables of couplings
    "to the device by copy_ in model_utils/models/weights.py:load_tensors",
    "to the device by copy_ in model_utils/run/ema.py:load_state_dict",
    "to the device, pageable, blocking, in model_utils/run/stored_sums.py:sums_of_named",
    "to the device, pageable, blocking, in model_utils/tasks/opened_models.py:<listcomp>",
    "to the device, pageable, blocking, in model_utils/run/optimization.py:training_state",
    "to the device, pageable, blocking, in model_utils/run/closing.py:_judged",
    "to the device, pageable, blocking, in model_utils/run/beginnings/finetuning.py:network_on",
    "to the device, pageable, blocking, in model_utils/run/train_state.py:load_state_dict",
    "to the device, pageable, blocking, in model_utils/run/train_state.py:_load_optimizer",
    "to the device, pinned, in dataloader/batch.py:__call__",
    "to the host in model_utils/files/pair.py:<dictcomp>",
    "to the host in model_utils/files/pair.py:_best_content",
    "to the host in model_utils/models/weights.py:check_buffers",
    "to the host in model_utils/run/beginnings/finetuning.py:<dictcomp>",
    "to the host in model_utils/run/predictions.py:with_references",
    "to the host in model_utils/run/train_state.py:_on_cpu",
    "to the host in model_utils/run/train_state.py:state_dict",
    "to the host in model_utils/tasks/breakdown.py:__call__",
    "to the host in model_utils/tasks/breakdown.py:_add_by_element",
    "to the host in model_utils/tasks/breakdown.py:_other_errors",
}
TABLES = {
    "to the device, pageable, blocking, in model_utils/models/fast/contraction.py:<listcomp>",
    "to the device, pageable, blocking, in model_utils/models/fast/convolution.py:odd_on",
    "to the device, pageable, blocking, in model_utils/models/fast/convolution.py:table",
    "to the device, pageable, blocking, in model_utils/models/fast/first_layer.py:scaled",
    "to the host in model_utils/models/fast/contraction.py:_monomials",
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    """A pretended device, on which steps and predictions are watched.

    What computes is a processor, and TorchScript is run as for one: its functions are kept from
    test to test here, and one that a GPU's executor saw first fails within torch when it is run by
    the other one in single precision.
    """
    monkeypatch.setattr(reference, "choose_executor", lambda device: None)
    monkeypatch.setattr(fit._Run, "_optimizer_step", as_step(fit._Run._optimizer_step))
    monkeypatch.setattr(evaluation, "predict", as_step(evaluation.predict))
    monkeypatch.setattr(evaluation, "error_sums", as_step(evaluation.error_sums))
    monkeypatch.setattr(Batch, "to", as_move(Batch.to))
    with pretended():
        yield notes


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    for name, n in (("train", 9), ("valid", 3)):
        write(tmp_path / f"{name}.xyz", waters(n, n), format="extxyz")
    return tmp_path


def trained(place: Path, step: str, *more: str, data: tuple[str, str] = ("xyz", "xyz")) -> Path:
    kind, suffix = data
    words = ["--input_json", place / "tiny.json", f"--{kind}_train", place / f"train.{suffix}"]
    words += [f"--{kind}_val", place / f"valid.{suffix}"]
    words += [
        "--output_checkpoint",
        place / "run",
        "--device",
        "cuda",
        "--batch_size",
        4,
        "--ema",
        "--step",
        step,
    ]
    assert train_mace.main([*map(str, words), *more]) == 0
    return place / "run" / "run_model.pt"


def assert_like_a_step(device: Notes) -> None:
    assert not device.waits_in_steps
    assert device.copies_of_batches
    for copies in device.copies_of_batches:
        assert len(copies) == 1, copies
        assert "to the device, pinned, in" in copies[0]


@pytest.mark.parametrize("step", ["fast", pytest.param("reference", marks=in_the_battery)])
def test_commands(
    step: str,
    place: Path,
    device: Notes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two stages, a resumed run with a worker, an evaluation with tables, a
    fine-tuning with other energies.
    """
    odd_on.cache_clear()  # made once in a process: whichever test is the first
    compared_on = []
    deviations = finetuning.Origin._deviations

    def noted(origin: Any, source: Any, own: Any, batch: Batch) -> tuple[float, float]:
        compared_on.extend(
            next(network.module.parameters()).device.type for network in (source, own)
        )
        return deviations(origin, source, own, batch)

    monkeypatch.setattr(finetuning.Origin, "_deviations", noted)
    model = trained(place, step, "--epochs", "2", "--stage_two", "--start_stage_two", "1")
    words = [
        "--input_model",
        str(model.with_name("run_checkpoint.pt")),
        "--epochs",
        "3",
        "--num_workers",
        "1",
    ]
    assert resume.main(words) == 0
    words = [
        "--input_model",
        str(model),
        "--xyz_path",
        str(place / "valid.xyz"),
        "--device",
        "cuda",
        "--step",
        step,
    ]
    assert (
        evaluate.main(
            [*words, "--output_xyz", str(place / "out.xyz"), "--output_table", str(place / "t.csv")]
        )
        == 0
    )
    words = [
        "--input_model",
        str(model),
        "--xyz_train",
        str(place / "train.xyz"),
        "--device",
        "cuda",
        "--step",
        step,
    ]
    words += [
        "--output_checkpoint",
        str(place / "tuned"),
        "--epochs",
        "1",
        "--batch_size",
        "4",
        "--E0s",
        "shift",
    ]
    assert finetune.main([*words, "--xyz_val", str(place / "valid.xyz")]) == 0
    assert set(compared_on) == {"cuda"}
    assert_like_a_step(device)
    assert set(device.copies) == COPIES | (TABLES if step == "fast" else set())
    said = (
        "plain torch; there are no compiled kernels for cuda here"
        if step == "fast"
        else "mace-torch"
    )
    assert capsys.readouterr().out.count(f"step: {step} on cuda:0, computed by {said}") == 4
    computed_on = checkpoint.read(model.with_name("run_checkpoint.pt")).content["train_state"][
        "computed_on"
    ]
    assert computed_on["device"] == "Pretended"
    assert computed_on["tf32"] is False


def test_the_reference_step_on_an_lmdb(place: Path, device: Notes) -> None:
    for name, n in (("train", 8), ("valid", 3)):
        write_dicts(place / f"{name}.lmdb", labelled(n, n))
    trained(
        place,
        "reference",
        "--epochs",
        "1",
        "--max_steps",
        "2",
        "--num_workers",
        "1",
        data=("lmdb", "lmdb"),
    )
    assert_like_a_step(device)


@pytest.mark.parametrize("name", EVERY_PART)
def test_a_step_of_every_part(name: str, device: Notes) -> None:
    """Repulsion, transform, densities, heads, stress of crystals, molecules: what the
    commands above do not have.
    """
    both = Both.of(EVERY_PART[name])
    loss = Loss.of(energy=1.0, forces=1.0, stress=1.0)
    weights = model_loader.trainable(both.module)
    expected = loss_and_gradients(both.reference, weights, [both.batch()], loss)
    both.module.to("cuda")
    weights = model_loader.trainable(both.module)
    results = []
    for network in (both.fast, both.reference):
        batches = [network.prepared(both.batch()).to(torch.device("cuda")) for _ in range(2)]
        results.append(as_step(loss_and_gradients)(network, weights, batches[:1], loss))
        as_step(evaluation.evaluate)(
            network, weights, batches[1:], loss, torch.device("cuda"), everything=True
        )
    assert not device.waits_in_steps
    for result in results:
        for ours, theirs in zip(result.gradients, expected.gradients, strict=True):
            torch.testing.assert_close(
                ours.to("cpu"), theirs, rtol=0, atol=1e-11 * max(float(theirs.abs().max()), 1e-2)
            )


def test_many_elements_wait_for_nothing(device: Notes) -> None:
    """Tiles that are not full, and segments that are not dense."""
    both, batch = many_elements()
    both.module.to("cuda")
    network = both.fast
    batch = network.prepared(batch).to(torch.device("cuda"))
    as_step(loss_and_gradients)(
        network, model_loader.trainable(both.module), [batch], LOSSES["forces"]
    )
    assert not device.waits_in_steps


def test_a_wait_and_a_copy_more_are_seen(device: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail."""
    both = Both.of(fields_of({}))
    both.module.to("cuda")
    network = both.fast
    weights = model_loader.trainable(both.module)
    sums = step_module.error_sums
    move = Batch.to

    def reading(prediction: Any, *words: Any) -> Tensor:
        assert float(prediction["energy"].detach().sum()) != 0
        return sums(prediction, *words)

    def moving_more(batch: Batch, to: torch.device) -> Batch:
        return replace(move.__wrapped__(batch, to), head=batch.head.clone().to(to))  # type: ignore[attr-defined]

    def step() -> None:
        batch = network.prepared(both.batch()).to(torch.device("cuda", 0))
        as_step(loss_and_gradients)(network, weights, [batch], LOSSES["forces"])

    step()
    assert_like_a_step(device)
    usual = set(device.copies)
    monkeypatch.setattr(step_module, "error_sums", reading)
    step()
    assert list(device.waits_in_steps) == ["item in tests/test_pretended_cuda.py:reading"]
    monkeypatch.setattr(Batch, "to", as_move(moving_more))
    step()
    assert [len(copies) for copies in device.copies_of_batches] == [1, 1, 2]
    assert set(device.copies) - usual == {
        "to the device, pageable, blocking, in tests/test_pretended_cuda.py:moving_more"
    }


def test_mixed_devices_are_refused(device: Notes) -> None:
    here = torch.zeros(2, 2)
    there = torch.zeros(2, 2, device="cuda")
    assert there.device == torch.device("cuda", 0)
    assert (there + torch.tensor(1.0)).device.type == "cuda"
    for mixed in (lambda: here + there, lambda: here @ there, lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


@pytest.mark.parametrize("kind", ["cueq", "oeq"])
def test_atomics_are_refused_where_sums_shall_have_an_order(kind: str, device: Notes) -> None:
    both = Both.of(fields_of({}))
    both.module.to("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(InputError, match=f"--step {kind} adds by atomics.*--deterministic"):
            AcceleratedNetwork(both.module, kind, both.description)  # type: ignore[arg-type]
    finally:
        torch.use_deterministic_algorithms(False)
