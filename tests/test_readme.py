"""Every command line of the README is run, as it stands there, on small data of the names it has there."""

import importlib
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from lmdb_material import dict_row, labelled, put, write_dicts

from conftest import ROOT, TINY, waters
from model_utils import model_loader
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.settings import cli
from model_utils.settings.options import PipelineOptions, VerifyResumeOptions, submitted

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.startswith("python ")]
COMMANDS = {"model_utils/train_mace.py", "model_utils/finetune.py", "model_utils/resume.py", "model_utils/evaluate.py"}
COMMANDS |= {"model_utils/verify_resume.py", "metadata.py", "read_model.py"}
COMMANDS |= {"dataloader/index.py", "dataloader/pack.py", "model_utils/relax.py", "model_utils/md.py"}
COMMANDS |= {"model_utils/watch.py"}
COMMANDS |= {"model_utils/plot_loss.py"}
OF_THE_PIPELINE = {"model_utils/generate.py", "model_utils/judge.py"}  # need an extra
COMMANDS |= OF_THE_PIPELINE
OF_OTHERS = {  # commands that run others, in tests/stages and tests/submission: here their words are looked at
    "model_utils/pipeline.py": PipelineOptions,
    "model_utils/submit.py": submitted(PipelineOptions, "Submit."),
}
COMMANDS |= set(OF_OTHERS)

SMALL = ["--hidden_irreps", "4x0e", "--num_interactions", "1", "--correlation", "1", "--max_ell", "1", "--r_max", "3"]
SHORT = ["--max_steps", "2", "--batch_size", "4", "--lr", "1e-4"]
LESS = {  # of a size for a test; a flag that is given twice is the last one
    "metadata.py init": SMALL,
    "model_utils/train_mace.py": ["--epochs", "1", *SHORT, "--no_dry_run"],
    "model_utils/finetune.py": ["--epochs", "1", *SHORT],
    "model_utils/resume.py": ["--epochs", "2", "--max_steps", "4"],
    "dataloader/pack.py": ["--stages", "2", "4"],
    "model_utils/relax.py": ["--max_steps", "2"],
    "model_utils/md.py": ["--n_steps", "2"],
    "model_utils/generate.py": ["--num_gen", "2", "--composition", "H2O"],
    "model_utils/judge.py": ["--max_steps", "2", "--reference_cache", "cache", "--processes", "1"],
}
ENDS = {"read_model.py diff": 3}  # the two differ


def test_every_command_has_an_example() -> None:
    assert {shlex.split(line)[1] for line in LINES} == COMMANDS
    assert {shlex.split(line)[2] for line in LINES if " read_model.py " in line} == {
        *("show", "export", "verify", "diff", "convert")
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data under the names that the README has."""
    monkeypatch.chdir(tmp_path)
    for name, n, seed in (("train.xyz", 12, 0), ("test.xyz", 4, 1), ("some_mptrj.xyz", 6, 2), ("more.xyz", 5, 3)):
        frames = waters(n, seed)
        for i, atoms in enumerate(frames):
            atoms.info |= {"sid": 100 + i, "system": 100 + i}
        write(tmp_path / name, frames, format="extxyz")
    known = waters(1)[0]
    known.set_cell([4.0, 4.0, 4.0])
    known.pbc = True
    write(tmp_path / "known.xyz", known, format="extxyz")
    (tmp_path / "train").mkdir()
    write_dicts(tmp_path / "train" / "data.0000.lmdb", labelled(12, seed=4))
    write_dicts(tmp_path / "val.aselmdb", labelled(4, seed=5))
    (tmp_path / "oc20").mkdir()
    rows = {str(i).encode(): dict_row(a, sid=i, system=i // 2) for i, a in enumerate(labelled(40, seed=6))}
    put(tmp_path / "oc20" / "a.lmdb", rows)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    module = model_loader.build(model_json.read(tmp_path / "tiny.json"), torch.float64, 3)
    checkpoint.write_bare_module(tmp_path / "mace_mp_small.model", module)
    return tmp_path


def test_every_command_line_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in LINES:
        words = shlex.split(line.replace("stage_10000.json", "stage_4.json"), comments=True)[1:]
        subcommand = " ".join(words[:2])
        words += LESS.get(words[0], LESS.get(subcommand, []))
        if "--report" in words and find_spec("chemiscope") is None:
            words += ["--worst", "0"]
        if words[0] in OF_THE_PIPELINE and find_spec("pyxtal") is None:
            continue
        if words[0] in OF_OTHERS:
            config = words.index("--config")  # lies in the checkout, or is the reader's own
            assert cli.parse(OF_OTHERS[words[0]], words[2:config] + words[config + 2 :]) is not None
            continue
        if words[0] == "model_utils/verify_resume.py":  # three processes; tests/test_verify_resume.py runs it
            assert cli.parse(VerifyResumeOptions, words[1:]) is not None
            continue
        main = importlib.import_module(words[0].removesuffix(".py").replace("/", ".")).main
        code = main(words[1:])
        shown = capsys.readouterr()
        assert code == ENDS.get(subcommand, 0), f"{line}\n{shown.out[-2000:]}\n{shown.err[-2000:]}"
    assert np.isfinite(json.loads((place / "errors.json").read_text())["forces_rmse"])
