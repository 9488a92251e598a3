"""Every command of README.md and docs/ is run as it stands there, page by page, on small
data of the names it has.

A block whose title begins with ``needs`` or ``takes`` is not run: a GPU, a cluster, a service, a
data set is not here, or another test runs it. The options of its commands are parsed. Code within a
sentence names options that there are.
"""

import importlib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from lmdb_material import dict_row, labelled, put, write_dicts
from plugged import restored_tables  # noqa: F401 - a fixture

from conftest import LONG, ROOT, TINY, waters
from model_utils import model_loader, train_mace
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.settings import reading
from model_utils.settings.declared import names_of
from model_utils.settings.mace_flags import is_known
from model_utils.settings.options import PipelineOptions, submitted
from model_utils.settings.parameters_md import TABLES

GENERATED = "parameters.md"  # of the options themselves
OTHER_TOOLKITS = "other_toolkits.md"  # every row of which has a test of its own
# pages that also name its flags
OF_MACE = {"from_mace.md", "model_json.md", "losses.md", "many_devices.md"}
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
del PAGES[GENERATED]
BLOCK = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMANDS = {
    "model_utils/train_mace.py",
    "model_utils/finetune.py",
    "model_utils/resume.py",
    "model_utils/evaluate.py",
}
COMMANDS |= {"model_utils/verify_resume.py", "metadata.py", "read_model.py"}
COMMANDS |= {
    "dataloader/index.py",
    "dataloader/pack.py",
    "model_utils/relax.py",
    "model_utils/md.py",
}
COMMANDS |= {"model_utils/watch.py"}
COMMANDS |= {"model_utils/plot_loss.py"}
COMMANDS |= {
    "model_utils/generate.py",
    "model_utils/judge.py",
    "model_utils/pipeline.py",
    "model_utils/submit.py",
}
WITH_SUBCOMMANDS = {
    "metadata.py",
    "read_model.py",
    "model_utils/pipeline.py",
    "model_utils/submit.py",
}
OF_JOB_FILES = {
    "configs/slurm/train.sbatch": ["model_utils/train_mace.py"],
    "configs/slurm/prepare.sbatch": [],
}

SMALL = [
    "--hidden_irreps",
    "4x0e",
    "--num_interactions",
    "1",
    "--correlation",
    "1",
    "--max_ell",
    "1",
    "--r_max",
    "3",
]
SHORT = ["--max_steps", "2", "--batch_size", "4", "--lr", "1e-4"]
LESS = {  # of a size for a test; a flag that is given twice is the last one
    "metadata.py init": SMALL,
    "model_utils/train_mace.py": ["--epochs", "1", *SHORT],
    "model_utils/finetune.py": ["--epochs", "1", *SHORT],
    "model_utils/resume.py": ["--epochs", "2", "--max_steps", "4"],
    "dataloader/pack.py": ["--stages", "2", "4"],
    "model_utils/relax.py": ["--max_steps", "2"],
    "model_utils/md.py": ["--n_steps", "2"],
}
TWO_STAGES = ["--epochs", "2", "--start_stage_two", "1", "--batch_size", "4"]
ENDS = {"read_model.py diff": 3}  # the two differ


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        language: bash, python, or another one.
        needs: what the page says that it takes; empty where it is run.
        text: as it stands there.
    """

    language: str
    needs: str
    text: str

    def commands(self) -> list[list[str]]:
        """The words of each command line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: str) -> list[Block]:
    found = BLOCK.findall(PAGES[page].read_text(encoding="utf-8"))
    return [Block(language, title, text) for language, title, text in found]


def commands_of(page: str) -> Iterator[list[str]]:
    for block in blocks_of(page):
        if block.language == "bash":
            yield from block.commands()


RUN = [
    name for name in PAGES if any(block.language in ("bash", "python") for block in blocks_of(name))
]


def of_ours(words: Sequence[str]) -> list[str]:
    """The words of a command of ours, from its file on, whoever starts it; none
    where it is another one.
    """
    for position, word in enumerate(words):
        if word in OF_JOB_FILES:
            return [*OF_JOB_FILES[word], *words[position + 1 :]]
        if word in COMMANDS:
            return list(words[position:])
    return []


def named(words: Sequence[str]) -> tuple[str, list[str]]:
    """Name of a command with its subcommand, and the words that follow."""
    if words[0] in WITH_SUBCOMMANDS and len(words) > 1:
        return f"{words[0]} {words[1]}", list(words[2:])
    return words[0], list(words[1:])


def options_of(command: str) -> type:
    """The options that a command has; Parameters.md lists those of every one."""
    if command == "model_utils/submit.py pipeline":
        return submitted(PipelineOptions, "Submit a pipeline.")
    return TABLES[command.removeprefix("model_utils/")]


def check_options(words: Sequence[str]) -> None:
    """A command that cannot be run here is one that the parser takes."""
    command, rest = named(words)
    assert reading.parse(options_of(command), rest) is not None, words


def check_of_another_program(words: Sequence[str]) -> None:
    """A command that is not ours names what is there."""
    if words[0] == "make":
        assert re.search(
            rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        ), words
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        assert set(words[-1].strip(".[]").split(",")) <= set(extras), words
    else:
        assert words == [".", ".venv/bin/activate"], (
            f"{words}: a test has to know how to check this"
        )


def run(words: Sequence[str], *, as_written: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command in this process, of a size for a test unless it is to
    be run as it is written.
    """
    command, rest = named(words)
    if not as_written:
        rest = [word.replace("stage_10000.json", "stage_4.json") for word in rest]
        rest += TWO_STAGES if "--start_stage_two" in rest else LESS.get(command, [])
    if "--report" in rest and find_spec("chemiscope") is None:
        rest += ["--worst", "0"]
    main = importlib.import_module(words[0].removesuffix(".py").replace("/", ".")).main
    subcommand = words[1:2] if " " in command else []
    code = main([*subcommand, *rest])
    shown = capsys.readouterr()
    expected = ENDS.get(command, 0)
    assert code == expected, f"{shlex.join(words)}\n{shown.out[-2000:]}\n{shown.err[-2000:]}"


def walk(page: str, capsys: pytest.CaptureFixture[str], *, as_written: bool = False) -> None:
    """Run the commands and the Python of a page in their order, in the working directory."""
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.language == "python":
            text = block.text if as_written else block.text.replace('"epochs": 50', '"epochs": 1')
            exec(compile(text, page, "exec"), names)
        for words in block.commands() if block.language == "bash" else ():
            ours = of_ours(words)
            if not ours:
                check_of_another_program(words)
            elif block.needs:
                check_options(ours)
            else:
                assert words[0] == "python", words
                run(ours, as_written=as_written, capsys=capsys)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data under the names that the pages have, a model.json, and two runs: what a reader
    of the first page has.
    """
    folder = tmp_path_factory.mktemp("material")
    for name, n, seed in (
        ("train", 12, 0),
        ("test", 4, 1),
        ("valid", 4, 5),
        ("some_mptrj", 6, 2),
        ("more", 5, 3),
    ):
        write(folder / f"{name}.xyz", described(waters(n, seed)), format="extxyz")
    write(folder / "named.xyz", waters(4, 6, prefix="dft_"), format="extxyz")
    (folder / "train").mkdir()
    write_dicts(folder / "train" / "data.0000.lmdb", labelled(12, seed=4))
    (folder / "oc20").mkdir()
    rows = {
        str(i).encode(): dict_row(a, sid=i, system=i // 2)
        for i, a in enumerate(labelled(40, seed=6))
    }
    put(folder / "oc20" / "a.lmdb", rows)
    for name in ("model.json", "mine.json"):
        (folder / name).write_text(json.dumps(TINY))
    (folder / "mace_config.yaml").write_text("model: MACE\nr_max: 4.0\nnum_channels: 8\nmax_L: 0\n")
    (folder / "my.yaml").write_text("input_json: model.json\ntrain_file: [train.xyz]\n")
    module = model_loader.build(model_json.read(folder / "model.json"), torch.float64, 3)
    checkpoint.write_bare_module(folder / "mace_mp_small.model", module)
    for seed, name in enumerate(("first", "second")):
        words = [
            "--input_json",
            str(folder / "model.json"),
            "--train_file",
            str(folder / "train.xyz"),
            *SHORT,
        ]
        words += [
            "--epochs",
            "1",
            "--seed",
            str(seed),
            "--output_checkpoint",
            str(folder / "runs" / name),
        ]
        assert train_mace.main(words) == 0
    return folder


def described(frames: list[Atoms]) -> list[Atoms]:
    """Structures with identifiers and a config_type each."""
    for i, atoms in enumerate(frames):
        atoms.info |= {
            "sid": 100 + i,
            "system": 100 + i,
            "config_type": ("bulk", "surface", "liquid")[i % 3],
        }
    return frames


@pytest.mark.usefixtures("restored_tables")
@pytest.mark.parametrize("page", [page for page in RUN if page != "first_run.md"])
def test_every_command_of_a_page_runs(
    page: str,
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    walk(page, capsys)


def test_the_first_run_on_data_that_nobody_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alloys of ASE's effective-medium theory, in a folder that holds nothing else."""
    monkeypatch.chdir(tmp_path)
    write("train.xyz", alloys(16, seed=0), format="extxyz")
    write("test.xyz", alloys(4, seed=1), format="extxyz")
    walk("first_run.md", capsys)
    assert np.isfinite(json.loads(Path("errors.json").read_text())["forces_rmse"])
    assert "<h2>" in Path("report.html").read_text(encoding="utf-8")
    assert len(read("dynamics/trajectory.xyz", index=":")) >= 1


@pytest.mark.skipif(
    not LONG, reason="the first page as it is written, a hundred epochs: make battery"
)
def test_the_first_run_as_it_is_written(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Acetylacetone, as people have it: labels called energy and forces, isolated atoms
    in a file of their own.
    """
    monkeypatch.chdir(tmp_path)
    texts = [
        (shared_data / "acac" / f"{name}.xyz").read_text()
        for name in ("isolated_atoms", "train_300K")
    ]
    Path("train.xyz").write_text("".join(texts))
    shutil.copy(shared_data / "acac" / "test_MD_300K.xyz", "test.xyz")
    walk("first_run.md", capsys, as_written=True)
    errors = json.loads(Path("errors.json").read_text())
    assert errors["forces_rmse"] < 0.1, "the forces themselves: about 1 eV/Å"
    assert len(read("dynamics/trajectory.xyz", index=":")) == 101


def alloys(n: int, seed: int) -> list[Atoms]:
    """Cells of two copper and gold atoms, strained and shaken, with energies,
    forces and stress of EMT.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(n):
        atoms = bulk("Cu" if i % 3 else "Au", "fcc", a=3.9, cubic=True)
        atoms.symbols[i % 4] = "Au"
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def test_the_first_run_is_short() -> None:
    assert sum(1 for _ in commands_of("first_run.md")) <= 6
    assert len(PAGES["first_run.md"].read_text(encoding="utf-8").split()) <= 1500


def test_every_command_has_an_example() -> None:
    examples = [of_ours(words) for page in PAGES for words in commands_of(page)]
    assert {words[0] for words in examples if words} == COMMANDS
    subcommands = {
        named(words)[0]
        for words in examples
        if words and words[0] in ("metadata.py", "read_model.py")
    }
    assert subcommands == {
        name for name in TABLES if name.startswith(("metadata.py", "read_model.py"))
    }


def test_what_is_not_run_says_what_it_needs() -> None:
    known = {
        "needs a GPU",
        "needs several GPUs",
        "needs SLURM",
        "needs SLURM and the extra cluster",
        "needs the extra architectures",
        "needs the extra pipeline",
        "needs the network",
        "needs W&B",
        "needs the data set",
        "takes three processes",
    }
    said = {block.needs for page in PAGES for block in blocks_of(page) if block.needs}
    assert said == known


@pytest.mark.parametrize("page", [page for page in PAGES if page != OTHER_TOOLKITS])
def test_options_within_sentences_are_there(page: str) -> None:
    """Code within a sentence, and commands there that leave out some of their options."""
    every = {name for kind in TABLES.values() for name in names_of(kind)}
    text = BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`]+)`", text):
        ours = of_ours(code.split())
        is_whole = len(ours) > 2 and "…" not in code
        names = set(names_of(options_of(named(ours)[0]))) if is_whole else every
        for flag in re.findall(r"(?<![\w-])--(\w[\w-]*)", code):
            is_there = flag in names or flag.removeprefix("no_") in names
            assert is_there or (page in OF_MACE and is_known(flag)) or flag in OF_OTHERS, (
                f"{code}: --{flag}"
            )


# torchrun's; of every command; of a benchmark
OF_OTHERS = {"nproc-per-node", "standalone", "help", "settings"}
