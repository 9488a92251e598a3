"""Resumed from any step, a run equals the unbroken one bit for bit; without any one item of
its state it does not.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path

import covering
import pytest

from conftest import every
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.run.folder.run_files import RunFiles
from model_utils.run.interruption import Interruption
from model_utils.run.train_state import TrainState
from model_utils.tasks import same_bits
from model_utils.tasks.resume_check import FORGET, plant
from model_utils.tasks.same_bits import differences
from reliability.conftest import FULL, PRODUCT, amount

AXES: dict[str, dict[str, list[str]]] = {
    "ema": {"off": [], "on": ["--ema", "--ema_decay", "0.9"]},
    "optimizer": {
        "adam": [],
        "adamw": ["--optimizer", "adamw", "--no_amsgrad", "--weight_decay", "0.01"],
    },
    "schedule": {
        "plateau": [
            "--scheduler_patience",
            "0",
            "--lr_factor",
            "0.5",
            "--validate_every_steps",
            "1",
        ],
        "step": [
            "--scheduler",
            "step",
            "--scheduler_unit",
            "step",
            "--lr_step",
            "2",
            "--warmup",
            "2",
        ],
        "cosine": ["--scheduler", "cosine"],
        "onecycle": ["--scheduler", "onecycle", "--scheduler_unit", "step"],
    },
    "workers": {"none": [], "two": ["--num_workers", "2"]},
    "data": {"xyz": [], "lmdb": []},
    "stage_two": {"no": [], "yes": ["--stage_two", "--start_stage_two", "1"]},
    "batches": {"structures": ["--batch_size", "4"], "edges": ["--max_edges_per_batch", "90"]},
    "accumulate": {"one": [], "two": ["--accumulate_batches", "2"]},
}
EVERY_CASE = [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]
CASES = EVERY_CASE if PRODUCT else covering.pairwise(AXES)
Train = Callable[..., Path]


def flags_of(case: Mapping[str, str]) -> list[str]:
    return [flag for axis, value in case.items() for flag in AXES[axis][value]]


def test_the_covering_array_is_small() -> None:
    assert len(covering.pairwise(AXES)) <= 20


@pytest.fixture(autouse=True)
def _files_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unbroken run is compared with a dozen others."""
    read = cache(lambda path, _: content_of(path))
    content_of = same_bits._content
    monkeypatch.setattr(same_bits, "_content", lambda path: read(path, path.stat().st_mtime_ns))


@contextmanager
def kept_copies(place: Path) -> Iterator[list[Path]]:
    """Folders with a run's files as they were right after each of its saves."""
    copies: list[Path] = []
    save = RunFiles.save

    def save_and_keep(self: RunFiles, state: TrainState, reason: str) -> bool:
        done = save(self, state, reason)
        copies.append(place / f"kept{len(copies)}" / "run")
        shutil.copytree(self.outputs.checkpoint.parent, copies[-1])
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFiles, "save", save_and_keep)
        yield copies


@pytest.mark.parametrize(
    "case", CASES if FULL else CASES[::3], ids=lambda case: "-".join(case.values())
)
def test_resumed_at_every_boundary(
    case: Mapping[str, str], train: Train, quick_build: None, tmp_path: Path
) -> None:
    flags = flags_of(case)
    with kept_copies(tmp_path) as boundaries:
        whole = train("run", *flags, "--checkpoint_every_steps", "1", data=case["data"])
    assert len(boundaries) >= 4
    first = CASES.index(case) % 3
    for folder in boundaries if FULL else boundaries[first::3]:  # the others in the next cases
        train(str(folder), *flags, "--resume", "auto", data=case["data"])
        assert differences(outputs_in(whole), outputs_in(folder)) == [], folder


def outputs_in(folder: Path) -> Outputs:
    return Outputs.named(folder / "run_checkpoint.pt", None)


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_stopped_at_every_point_where_a_run_looks_for_requests(
    schedule: str, train: Train, quick_build: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every step, before every batch of every validation, the first one included."""
    flags = [
        *AXES["schedule"][schedule],
        "--batch_size",
        "4",
        "--ema",
        "--stage_two",
        "--start_stage_two",
        "1",
    ]
    look, looks = Interruption._look_at_the_clock, 0

    def stop_at(number: int) -> Callable[[Interruption], None]:
        def count(self: Interruption) -> None:
            nonlocal looks
            looks += 1
            if looks == number:
                self.reason = "asked to"
            look(self)

        return count

    monkeypatch.setattr(Interruption, "_look_at_the_clock", stop_at(-1))
    whole = train("whole/run", *flags)
    for number in range(1, looks + 1, amount(7, 1)):
        looks = 0
        monkeypatch.setattr(Interruption, "_look_at_the_clock", stop_at(number))
        folder = train(f"{number}/run", *flags, code=75)
        monkeypatch.setattr(Interruption, "_look_at_the_clock", look)
        train(f"{number}/run", *flags, "--resume", "auto")
        assert differences(outputs_in(whole), outputs_in(folder)) == [], number


OVERWRITTEN_BY_THE_NEXT_VALIDATION = ("best_epoch", "best_step", "validated_step")


@pytest.fixture(scope="module")
def broken_off(
    material: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path, Path]:
    """Flags, the unbroken run, and one that ended in the middle of an epoch of stage two."""
    from model_utils import train_mace

    folder = tmp_path_factory.mktemp("broken_off")
    flags = [
        "--input_json",
        str(material / "tiny.json"),
        "--xyz_train",
        str(material / "train.xyz"),
    ]
    flags += ["--xyz_val", str(material / "val.xyz"), "--batch_size", "4", "--ema", "--epochs", "3"]
    flags += [
        "--validate_every_steps",
        "2",
        "--scheduler_patience",
        "0",
        "--stage_two",
        "--start_stage_two",
        "1",
    ]
    flags += ["--patience", "50", "--no_export_mace_model"]
    with kept_copies(folder) as copies:
        every_step = [
            "--checkpoint_every_steps",
            "1",
            "--output_checkpoint",
            str(folder / "whole/run"),
        ]
        assert train_mace.main([*flags, *every_step]) == 0
    (part,) = (
        c
        for c in copies
        if checkpoint.read(c / "run_checkpoint.pt").content["train_state"]["step"] == 7
    )
    return flags, folder / "whole/run", part


@pytest.mark.parametrize("item", every(3, ["nothing", *FORGET]))
def test_every_item_of_the_state_is_needed(
    item: str,
    broken_off: tuple[list[str], Path, Path],
    train: Train,
    quick_build: None,
    tmp_path: Path,
) -> None:
    flags, whole, part = broken_off
    folder = tmp_path / "run"
    shutil.copytree(whole if item in OVERWRITTEN_BY_THE_NEXT_VALIDATION else part, folder)
    if item != "nothing":
        plant(folder / "run_checkpoint.pt", item)
    train("run", *flags, "--resume", "auto")
    assert bool(differences(outputs_in(whole), outputs_in(folder))) == (item != "nothing")


def test_nothing_of_the_state_was_forgotten_here(broken_off: tuple[list[str], Path, Path]) -> None:
    state = checkpoint.read(broken_off[2] / "run_checkpoint.pt").content["train_state"]
    covered = {
        "optimizer",
        "scheduler",
        "ema_state_dict",
        "tally",
        "rng",
        "epoch",
        "steps_in_epoch",
        "step",
        "samples",
    }
    covered |= {
        "stage",
        "best_loss",
        "best_epoch",
        "best_step",
        "waited",
        "rate",
        "validated_step",
        "validation_due",
    }
    covered |= {"metrics_offset"}
    fixed = {
        "stage_starts",
        "config",
        "dtype",
        "data",
        "lmdb_indices",
        "loss_units",
    }  # compared with the command line's, refused
    # of the past, no part of what comes
    said = {"source", "reason", "finished", "history", "computed_on"}
    assert set(state) == covered | fixed | said
