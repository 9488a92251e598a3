"""Arguments that follow no flag: one YAML is --config, in every command; nothing else is
left aside without a word.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import metadata
import read_model
from dataloader import pack
from model_utils import evaluate, finetune, resume, train_mace, verify_resume
from model_utils.settings import reading
from model_utils.settings.options import TrainOptions

Main = Callable[[Sequence[str]], int]
COMMANDS: dict[str, tuple[Main, list[str]]] = {
    "train": (train_mace.main, []),
    "finetune": (finetune.main, []),
    "resume": (resume.main, []),
    "evaluate": (evaluate.main, []),
    "verify_resume": (verify_resume.main, []),
    "pack": (pack.main, []),
    **{f"metadata {word}": (metadata.main, [word]) for word in ("init", "fit", "check")},
    **{
        f"read_model {word}": (read_model.main, [word])
        for word in ("export", "verify", "show", "diff", "convert")
    },
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("ending", [".yaml", ".yml"])
def test_one_yaml_is_the_config(
    name: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, words = COMMANDS[name]
    path = tmp_path / f"settings{ending}"
    path.write_text("no_such_setting: 1\n")
    for arguments in ([*words, str(path)], [*words, "--debug", str(path)]):
        assert main(arguments) == 2
        assert f"unknown setting 'no_such_setting' in {path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["train.xyz"], "train.xyz"),
        (["runs/first"], "runs/first"),
        (["settings.yaml", "more.yaml"], "more.yaml"),
        (["settings.yaml", "train.xyz"], "train.xyz"),
        (["train.xyz", "settings.yaml"], "train.xyz"),
        (["--debug", "yes"], "yes"),
        (["--config", "settings.yaml", "4"], "4"),
    ],
)
def test_anything_else_is_refused(
    name: str, arguments: list[str], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, words = COMMANDS[name]
    assert main([*words, *arguments]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: '{culprit}' stands alone")


def test_more_runs_than_two_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_model.main(["diff", "a", "b", "c", "d"]) == 2
    line = "4 paths stand alone (a b c d); the command takes 2, without their flags or as "
    assert line + "--input_model and --other_model" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_two_files_of_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, words = COMMANDS[name]
    assert main([*words, "one.yaml", "--config", "other.yaml"]) == 2
    assert (
        "one.yaml is a second file of settings beside --config other.yaml"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("flag", ["--xyz_train", "--elements", "--lmdb_val"])
def test_a_yaml_after_a_list_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be one of the list's values, and whoever typed it meant --config."""
    assert train_mace.main(["--output_checkpoint", "run", flag, "a.xyz", "settings.yaml"]) == 2
    line = (
        f"error: 'settings.yaml' follows {flag}, which takes any number of values, and "
        "would be one of them; "
    )
    assert (
        line + "write --config settings.yaml, or put it before all flags\n"
        == capsys.readouterr().err
    )


def test_values_are_not_mistaken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("lr: 0.5\nbatch_size: 3\n")
    words = [
        "--input_json",
        "m.json",
        "--output_checkpoint",
        "run",
        "--xyz_train",
        "a.xyz",
        "b.xyz",
    ]
    for arguments in (
        [str(path), *words],
        [*words, "--ema", str(path)],
        [*words, "--no_amsgrad", str(path)],
    ):
        options = reading.parse(TrainOptions, [*arguments, "--batch_size=4"])
        assert options is not None
        assert (options.common.config, options.optimizer.lr, options.batches.batch_size) == (
            path,
            0.5,
            4,
        )
        assert options.data.xyz_train == (Path("a.xyz"), Path("b.xyz"))
