"""An unknown flag is answered with the nearest of ours, or with ours for the word
that people use elsewhere.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_usable_paths import COMMANDS

import metadata
import read_model
from dataloader import pack
from model_utils import evaluate, finetune, resume, train_mace
from model_utils.settings import declared, synonyms
from model_utils.settings import options as settings

Main = Callable[[Sequence[str]], int]
KINDS = [kind for kinds in COMMANDS.values() for kind in kinds.values()]
MEANT: list[tuple[Main, list[str], str]] = [
    (train_mace.main, ["--learning_rate"], "--lr"),
    (train_mace.main, ["--learning-rate"], "--lr"),
    (train_mace.main, ["--learningRate"], "--lr"),
    (train_mace.main, ["--max_epochs"], "--epochs"),
    (train_mace.main, ["--max-epochs"], "--epochs"),
    (train_mace.main, ["--max_num_epochs"], "--epochs"),
    (train_mace.main, ["--num_epochs"], "--epochs"),
    (train_mace.main, ["--weight-decay"], "--weight_decay"),
    (train_mace.main, ["--ema-decay"], "--ema_decay"),
    (train_mace.main, ["--bs"], "--batch_size"),
    (train_mace.main, ["--batchSize"], "--batch_size"),
    (train_mace.main, ["--train_path"], "--train_file"),
    (train_mace.main, ["--checkpoint"], "--output_checkpoint"),
    (evaluate.main, ["--checkpoint"], "--input_model"),
    (evaluate.main, ["--model"], "--input_model"),
    (evaluate.main, ["--configs"], "--data"),
    (resume.main, ["--resume_from"], "--input_model"),
    (train_mace.main, ["--gpus"], "--device"),
    (train_mace.main, ["--precision"], "--dtype"),
    (train_mace.main, ["--gradient_clip_val"], "--clip_grad"),
    (train_mace.main, ["--accumulate_grad_batches"], "--accumulate_batches"),
    (train_mace.main, ["--experiment_name"], "--run_dir"),
    (train_mace.main, ["--save_path"], "--output_safetensors"),
    (finetune.main, ["--pretrained_model"], "--input_model"),
    (finetune.main, ["--ckpt"], "--output_checkpoint"),
    (resume.main, ["--ckpt"], "--output_checkpoint"),
    (metadata.main, ["init", "--cutoff"], "--r_max"),
    (read_model.main, ["show", "--ckpt"], "--input_model"),
    (pack.main, ["--species"], "--elements"),
    (train_mace.main, ["--learning_rte"], "--lr"),
    (train_mace.main, ["--epoch"], "--epochs"),
]


def id_of(value: object) -> str:
    """The module of a command, which has no address in it as the text of a function has."""
    return getattr(value, "__module__", None) or str(value)


@pytest.mark.parametrize(("main", "words", "ours"), MEANT, ids=id_of)
def test_a_word_of_other_programs(
    main: Main, words: list[str], ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "3"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: unknown flag {words[-1]}")
    assert re.search(rf"(did you mean|use) {ours}\b", line), line


def test_a_key_of_a_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 0.1\n")
    assert train_mace.main([str(path)]) == 2
    assert f"unknown setting 'learning_rate' in {path}; did you mean lr?" in capsys.readouterr().err


def test_a_word_without_a_counterpart_and_one_that_nobody_knows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_mace.main(["--nnodes", "2"]) == 2
    assert (
        "unknown flag --nnodes; several processes are begun by torchrun or srun"
        in capsys.readouterr().err
    )
    for value in ("bfloat16", "BF16", "half"):
        assert train_mace.main(["--input_json", "m.json", "--dtype", value]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"error: --dtype {value}: mixed precision is not offered; --dtype is "
            "float32 or float64\n"
        )
    assert train_mace.main(["--quux", "2"]) == 2
    assert "unknown flag --quux; see --help" in capsys.readouterr().err


def test_the_table_names_options_that_exist_and_no_word_that_means_itself() -> None:
    ours = {name for kind in KINDS for name in declared.names_of(kind)}
    assert set(synonyms.SYNONYMS) <= ours
    training = set(declared.names_of(settings.TrainOptions))
    for name, words in synonyms.SYNONYMS.items():
        assert len(set(words)) == len(words), name
        assert not training & set(words), f"{name}: a word is an option of training itself"
        assert all(re.fullmatch("[a-z0-9_]+", word) for word in words), name
