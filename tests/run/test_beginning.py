"""How a run begins: three kinds behind one interface, and a stored run that
is parsed in one place.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest

from model_utils.errors import VerificationError
from model_utils.files.checkpoint import WeightsFile
from model_utils.models import description as model_json
from model_utils.run.beginnings.beginning import Beginning, Continued, Fresh
from model_utils.run.beginnings.continuation import UNCHANGED, Changes
from model_utils.run.beginnings.from_model import FromModel
from model_utils.run.beginnings.stored_run import KINDS, StoredRun

STATE: dict[str, Any] = {
    "optimizer": {},
    "scheduler": {},
    "config": {"epochs": 3, "output_model": None},
    "history": [],
    "computed_on": {"threads": 10**6},
    "data": {},
    "epoch": 1,
    "step": 4,
    "metrics_offset": 120,
    "dtype": "float64",
    "rng": {},
    "tally": {},
    "ema_state_dict": None,
}


def checkpoint_with(tiny_json: Path, **state: Any) -> WeightsFile:
    description = model_json.read(tiny_json)
    content = {
        "train_state": {
            name: value for name, value in {**STATE, **state}.items() if value is not ...
        },
        "code_version": {},
        "model_json_history": ["earlier", description.hash()],
    }
    return WeightsFile(
        path=Path("run_checkpoint.pt"),
        kind="checkpoint",
        tensors={},
        description=description,
        weights="raw",
        content=content,
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [..., None])
def test_a_checkpoint_that_lacks_something_is_refused_by_name(
    name: str, value: object, tiny_json: Path
) -> None:
    with pytest.raises(
        VerificationError, match=f"run_checkpoint.pt is not as we write it: {name} missing"
    ):
        StoredRun.of_checkpoint(checkpoint_with(tiny_json, **{name: value}))


def test_a_precision_that_is_none_is_refused(tiny_json: Path) -> None:
    with pytest.raises(
        VerificationError, match="not as we write it: dtype missing or of another kind"
    ):
        StoredRun.of_checkpoint(checkpoint_with(tiny_json, dtype="float8"))


def test_a_continued_run_has_what_was_stored(tiny_json: Path) -> None:
    stored = StoredRun.of_checkpoint(
        checkpoint_with(tiny_json, source={"path": "a.model", "model_json_hash": "h"})
    )
    beginning = Continued(stored, UNCHANGED)
    assert str(beginning.dtype) == "torch.float64"
    assert beginning.threads is None, "no machine has so many cores"
    assert beginning.is_fine_tuned
    assert beginning.earlier_hashes == ("earlier",)
    assert (beginning.known_records.offset, beginning.known_records.step) == (120, 4)
    assert not Continued(
        StoredRun.of_checkpoint(checkpoint_with(tiny_json)), UNCHANGED
    ).is_fine_tuned


def test_every_kind_answers_all_that_a_training_asks() -> None:
    asked = [name for name in vars(Beginning) if not name.startswith("_")]
    assert len(asked) > 10
    for kind in (Fresh, FromModel, Continued):
        named = {*dir(kind), *getattr(kind, "__dataclass_fields__", {})}
        assert set(asked) <= named, kind
        for name in asked:
            if inspect.isfunction(vars(Beginning)[name]):
                expected = list(inspect.signature(vars(Beginning)[name]).parameters)
                assert list(inspect.signature(getattr(kind, name)).parameters) == expected, (
                    kind,
                    name,
                )


def test_changes_are_kept_by_the_names_of_their_flags() -> None:
    assert UNCHANGED.as_plain() == {}
    changes = Changes(
        begin_with=Path("a.pt"), lr=0.1, ema=False, reset_scheduler=True, resume_best=True
    )
    assert changes.as_plain() == {
        "lr": 0.1,
        "ema": False,
        "reset_scheduler": True,
        "resume_best": True,
    }
