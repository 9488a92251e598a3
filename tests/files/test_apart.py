"""Outputs at a place of their own."""

from pathlib import Path

import pytest

from model_utils.errors import InputError
from model_utils.files.apart import refuse_shared_places
from model_utils.files.lasting import lasting


def test_a_word_of_a_pattern_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    beside, below = tmp_path / "data" / "a.json", tmp_path / "data" / "sub" / "a.json"
    for path in (beside, below):
        path.write_text("{}")
    read = [("the data", tmp_path / "data" / "*")]
    refuse_shared_places({"--output_json": below}, read)
    with pytest.raises(InputError, match="--output_json and the data are both"):
        refuse_shared_places({"--output_json": beside}, read)


def test_only_the_link_to_the_newest_run_is_followed(tmp_path: Path) -> None:
    """Others may lead elsewhere on another machine."""
    (tmp_path / "disk" / "first").mkdir(parents=True)
    (tmp_path / "home").symlink_to("disk")
    (tmp_path / "disk" / "latest").symlink_to("first")
    found = lasting(tmp_path / "home" / "latest" / "first_model.pt")
    assert found == tmp_path / "home" / "first" / "first_model.pt"
    assert lasting(Path("latest")) == Path("latest")
