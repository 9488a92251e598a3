"""Every path of every command that can be none is refused in one line; long names, no
home and where caches lie.
"""

import ast
import importlib
import os
import pwd
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from dataloader import cache_folder, durable
from dataloader.lmdb_shards import shard_index
from model_utils import evaluate, train_mace
from model_utils.errors import InputError
from model_utils.files.outputs import Outputs
from model_utils.settings import options as settings
from model_utils.settings.declared import bare, declared

COMMANDS = {
    "model_utils.train_mace": {"": settings.TrainOptions},
    "model_utils.finetune": {"": settings.FinetuneOptions},
    "model_utils.resume": {"": settings.ResumeOptions},
    "model_utils.evaluate": {"": settings.EvaluateOptions},
    "model_utils.verify_resume": {"": settings.VerifyResumeOptions},
    "model_utils.relax": {"": settings.RelaxOptions},
    "model_utils.md": {"": settings.MdOptions},
    "model_utils.generate": {"": settings.GenerateOptions},
    "model_utils.judge": {"": settings.JudgeOptions},
    "model_utils.pipeline": {"run": settings.PipelineOptions},
    "model_utils.watch": {"": settings.WatchOptions},
    "model_utils.plot_loss": {"": settings.PlotLossOptions},
    "dataloader.index": {"": settings.IndexOptions},
    "dataloader.pack": {"": settings.PackOptions},
    "metadata": {"init": settings.MetadataInitOptions, "fit": settings.MetadataFitOptions}
    | {"check": settings.CheckOptions},
    "read_model": {
        "export": settings.ExportOptions,
        "verify": settings.VerifyOptions,
        "show": settings.DescribeOptions,
    }
    | {
        "diff": settings.DiffOptions,
        "convert": settings.ConvertOptions,
        "reproduce": settings.ReproduceOptions,
    }
    | {"best": settings.BestOptions},
}
UNUSABLE = {  # of any command, whatever lies there
    "a circle of links": ("circle", "links that lead in a circle"),
    "in a circle": ("circle/file.pt", "links that lead in a circle"),
    "a name too long": ("n" * 256, "too long for this file system"),
    "a path too long": ("d/" * 2500 + "x", "too long for this file system"),
}


def every_path() -> Iterator[tuple[str, str, type, str]]:
    for module, kinds in COMMANDS.items():
        for word, kind in kinds.items():
            for option in declared(kind):
                if "Path" in str(bare(option.type)) and option.name != "config":
                    yield module, word, kind, option.name


def arguments(word: str, kind: type, name: str, given: str) -> list[str]:
    """A command line that is whole, with one path as given."""
    options = declared(kind)
    needed = [option.name for option in options if option.required]
    # which has its place
    needed = [needs for needs in needed if needs != "output_checkpoint" or name != "run_dir"]
    data = "lmdb" if name.startswith("lmdb") else "xyz"
    if name != "data":  # which stands alone
        needed += [
            option.name for option in options if option.name in (f"{data}_train", f"{data}_path")
        ]
    needed += ["id_key"] if name.endswith("_ids") else []
    fitting = {"to": "module", "n_steps": "1", "num_gen": "1"}
    words = {needs: fitting.get(needs, f"some_{needs}") for needs in needed} | {name: given}
    return [
        *([word] if word else []),
        *(text for flag, value in words.items() for text in (f"--{flag}", value)),
    ]


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_path_that_can_be_none(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    given, said = UNUSABLE[what]
    for module, word, kind, name in every_path():
        if what != "a circle of links" and not module.endswith("evaluate"):
            continue  # the whole table takes seconds, and all of them are met in one place
        words = arguments(word, kind, name, given)
        assert importlib.import_module(module).main(words) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--{name}" in line, words
        assert said in line, words
    assert [path.name for path in tmp_path.iterdir()] == ["circle"], "nothing was made"


def test_the_table_holds_every_command() -> None:
    kinds = {kind for kinds in COMMANDS.values() for kind in kinds.values()}
    entries = {
        kind
        for kind in vars(settings).values()
        if isinstance(kind, type) and _is_of_a_command(kind)
    }
    assert entries <= kinds


def _is_of_a_command(kind: type) -> bool:
    name = kind.__name__
    calls = re.compile(rf"(run\({name},|: \({name},)")
    sources = [*ROOT.glob("*.py"), *ROOT.glob("model_utils/*.py"), *ROOT.glob("dataloader/*.py")]
    return any(calls.search(path.read_text(encoding="utf-8")) for path in sources)


def test_stored_paths_that_lead_in_a_circle(tmp_path: Path) -> None:
    """Those of a checkpoint's settings, which nobody typed."""
    (tmp_path / "circle").symlink_to("circle")
    for path in ("circle", "circle/run"):
        config = {
            "output_checkpoint": str(tmp_path / path),
            "output_model": str(tmp_path / path / "x_model.pt"),
        }
        place = Outputs.of_checkpoint(tmp_path / "run" / "run_checkpoint.pt", config)
        assert place.model == tmp_path / "run" / "run_model.pt"


# ---- long names


@pytest.mark.parametrize("n", [215, 233])
def test_a_run_with_a_long_name(
    n: int, tiny_json: Path, water_xyz: Callable[..., Path], tmp_path: Path
) -> None:
    """Every file that it may write has a name that fits."""
    outputs = Outputs.named(tmp_path / f"{'n' * n}.pt", None)
    for path in outputs._all_named_after_the_run():
        durable.write(path, b"whole")
        assert path.read_bytes() == b"whole"
        path.unlink()
    words = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz()),
        "--valid_fraction",
        "0.3",
    ]
    assert (
        train_mace.main(
            [*words, "--max_steps", "1", "--output_checkpoint", str(outputs.checkpoint)]
        )
        == 0
    )
    evaluated = ["--input_model", str(outputs.model), "--xyz_path", str(water_xyz())]
    for flag, ending in (("output_json", ".jsn"), ("output_table", ".csv"), ("output_xyz", ".xyz")):
        evaluated += [f"--{flag}", str(tmp_path / f"{'m' * (min(n, 230) - 4)}{ending}")]
    assert evaluate.main(evaluated) == 0


@pytest.mark.parametrize(
    ("checkpoint", "model"), [("n" * 236, None), ("ü" * 120, None), ("run", f"{'m' * 238}.pt")]
)
def test_a_run_whose_files_would_have_names_too_long(
    checkpoint: str, model: str | None, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"would have a name of 2\d\d bytes, and file systems take 255; give a shorter",
    ):
        Outputs.named(tmp_path / checkpoint, None if model is None else tmp_path / model)
    assert list(tmp_path.iterdir()) == []


def test_outputs_whose_names_are_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read: the other paths need not even be there."""
    n = 0
    for module, word, kind, name in every_path():
        if not name.startswith("output") or name in (
            "output_checkpoint",
            "output_model",
            "output_dir",
        ):
            continue
        assert importlib.import_module(module).main(arguments(word, kind, name, "n" * 240)) == 2
        assert f"--{name} nnn" in (line := capsys.readouterr().err)
        assert "a name of 240 bytes leaves no room" in line
        n += 1
    assert n >= 7


# ---- no home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A user that the system does not know, without HOME; gives the folder of temporary files."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache_folder._in_temporary.cache_clear()
    yield tmp_path
    cache_folder._in_temporary.cache_clear()


def test_a_cache_without_a_home(homeless: Path) -> None:
    own = homeless / f"mace-pretrain-{os.getuid()}"
    assert cache_folder.cache_folder() == own / ".cache" / "mace-pretrain"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    recipe = type("Recipe", (), {"digest": lambda self: "x"})()
    assert shard_index.places(homeless / "a.lmdb", recipe)[1].is_relative_to(own)
    cache_folder.settle()
    assert os.environ["HOME"] == str(own)
    assert cache_folder.cache_folder() == own / ".cache" / "mace-pretrain"


@pytest.mark.parametrize("planted", ["open to others", "a link", "a file"])
def test_a_folder_that_somebody_else_made_is_not_used(planted: str, homeless: Path) -> None:
    own = homeless / f"mace-pretrain-{os.getuid()}"
    if planted == "a link":
        (homeless / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(homeless / "elsewhere")
    elif planted == "a file":
        own.touch()
    else:
        own.mkdir(mode=0o777)
        own.chmod(0o777)
    used = cache_folder.cache_folder()
    assert not used.is_relative_to(own)
    assert stat.S_IMODE(used.parents[1].stat().st_mode) == 0o700
    assert used == cache_folder.cache_folder(), "one for this process"


def test_a_relative_cache_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folder.cache_folder() == tmp_path / ".cache" / "mace-pretrain"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder.cache_folder() == tmp_path / "xdg" / "mace-pretrain"


NOBODY = "import pwd, runpy, sys; pwd.getpwuid = lambda n: {}[n]; sys.argv = sys.argv[1:]; "
NOBODY += "runpy.run_path(sys.argv[0], run_name='__main__')"


def test_a_command_of_a_user_without_a_home(water_xyz: Callable[..., Path], tmp_path: Path) -> None:
    """Libraries ask for a home when they are imported."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    words = [ROOT / "metadata.py", "check", "--xyz_train", water_xyz()]
    command = [sys.executable, "-c", NOBODY, *map(str, words)]
    done = subprocess.run(
        command, env={**environment, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_homes_and_caches_are_looked_up_in_one_place() -> None:
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("model_utils/**/*.py"),
        *ROOT.glob("dataloader/**/*.py"),
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value == "XDG_CACHE_HOME"
        }
        if asked & {"Path.home", "os.path.expanduser"} or words:
            assert path == ROOT / "dataloader" / "cache_folder.py"
