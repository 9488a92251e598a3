"""Documents and configurations that promise something: Parameters.md, configs, the
tree of files, the site.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT
from model_utils.models import description
from model_utils.settings import counterparts, parameters_md, reading
from model_utils.settings.declared import names_of
from model_utils.settings.mace_flags import OTHERS, OURS
from model_utils.settings.options import (
    EvaluateOptions,
    FinetuneOptions,
    PipelineOptions,
    TrainOptions,
)
from model_utils.stages.place import Place
from model_utils.stages.planning import Plan
from model_utils.stages.table import STAGES


def test_parameters_md_has_todays_options() -> None:
    text = (ROOT / "Parameters.md").read_text(encoding="utf-8")
    assert parameters_md.with_tables(text) == text, "run `make parameters`"


def test_the_table_of_other_toolkits_is_that_of_the_code() -> None:
    text = parameters_md.OTHER_TOOLKITS.read_text(encoding="utf-8")
    assert parameters_md.with_counterparts(text) == text, "run `make parameters`"
    assert text.count("\n| `") == len(counterparts.COUNTERPARTS)


def test_the_table_of_maces_flags_is_that_of_the_code() -> None:
    text = parameters_md.FROM_MACE.read_text(encoding="utf-8")
    assert parameters_md.with_mace_flags(text) == text, "run `make parameters`"
    table = text.partition("<!-- mace flags -->")[2]
    assert table.count("\n| `--") == len({*OURS, *OTHERS})


# configuration: options of its command, flags that it needs
OF_ANOTHER_COMMAND: dict[str, tuple[type, list[str]]] = {
    "finetune_replay.yaml": (
        FinetuneOptions,
        [
            "--input_model",
            "a.pt",
            "--replay",
            "b.xyz",
            "--output_checkpoint",
            "run",
            "--xyz_train",
            "x.xyz",
        ],
    ),
    "evaluate.yaml": (EvaluateOptions, ["--input_model", "a.pt"]),
    "pipeline_quick.yaml": (PipelineOptions, ["--input_model", "a.pt"]),
}


PROFILES = ROOT / "configs/submit"  # no options; tests/submission reads them
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent != PROFILES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_parses_and_names_files_that_are_there(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training: tuple[type, list[str]] = (
        TrainOptions,
        ["--output_checkpoint", "run", "--xyz_train", "x.xyz"],
    )
    kind, words = OF_ANOTHER_COMMAND.get(path.name, training)
    if kind is PipelineOptions:  # whose settings are those of its stages
        asked = reading.parse(PipelineOptions, ["--config", str(path), *words])
        assert asked is not None
        plan = Plan(asked, Place(folder=path.parent / "run"))
        options = plan.finetuning
        assert all(plan.options_of(stage, frozenset(STAGES)) for stage in STAGES)
    else:
        options = reading.parse(kind, ["--config", str(path), *words])
    assert options is not None
    plain = reading.as_plain(options)
    named = [
        *plain.get("xyz_val", ()),
        *plain.get("xyz_test", ()),
        *plain.get("valid_file", ()),
        *plain.get("data", ()),
    ]
    assert all(Path(file).exists() for file in named)
    assert capsys.readouterr().err == "", "nothing of ours has to be answered"
    if kind is TrainOptions:
        network = plain["network"]
        assert (
            description.read(Path(plain["input_json"])) if network is None else completed(network)
        )


def completed(network: str) -> description.ModelDescription:
    """The description of a network whose data said this."""
    measured = {"atomic_numbers": [1, 8], "atomic_energies": [[0.0, 0.0]], "avg_num_neighbors": 9.0}
    fields = {
        "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0,
        **measured,
        **json.loads(network),
    }
    return description.parse(json.dumps(fields), "configuration")


def test_a_paths_in_a_yaml_is_relative_to_the_yaml_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "input_json: m.json\nlr: 1e-3\nxyz_train: [t.xyz]\nepochs: 7\noutput_checkpoint: run\n"
    )
    for argv in (
        ["--lr", "0.5", "--config", f"{tmp_path}/a.yaml"],
        [f"--config={tmp_path}/a.yaml", "--lr", "0.5"],
    ):
        options = reading.parse(TrainOptions, argv)
        assert options is not None
        assert (options.optimizer.lr, options.run.epochs) == (0.5, 7)
        assert (options.input_json, options.data.xyz_train) == (
            tmp_path / "m.json",
            (tmp_path / "t.xyz",),
        )
    options = reading.parse(TrainOptions, ["--config", f"{tmp_path}/a.yaml"])
    assert options is not None
    assert options.optimizer.lr == 1e-3


def test_hints_for_mace_flags_name_flags_that_exist() -> None:
    ours = {*names_of(TrainOptions), *names_of(FinetuneOptions), "scaling"}
    for name, hint in OURS.items():
        assert name not in names_of(TrainOptions), f"--{name} is ours and needs no hint"
        for flag in re.findall(r"--(\w+)", hint):
            assert flag in ours, (name, hint)


def test_the_tree_names_what_is_there() -> None:
    text = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
    tree = text.split("```text")[1].split("```")[0]
    named = paths_in(tree)
    assert [path for path in named if not (ROOT / path).exists()] == []
    top = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["py-modules"]
    modules = [*ROOT.glob("model_utils/**/*.py"), *ROOT.glob("dataloader/**/*.py")]
    there = {str(path.relative_to(ROOT)) for path in modules if path.name != "__init__.py"}
    assert {*there, *(f"{name}.py" for name in top)} <= set(named)


def test_the_architecture_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w[\w/]*\.(?:py|md)|\w+/[\w/]*", text))
    # the picture leaves out the folder of a row
    folders = ("", "docs", "model_utils", "model_utils/models", "model_utils/run")
    missing = [
        name for name in named if not any((ROOT / folder / name).exists() for folder in folders)
    ]
    assert sorted(missing) == []
    assert len(named) > 40
    assert "docs/architecture.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_architecture_names_tables_that_are_there() -> None:
    """Where the document sends the reader there is a table of that name, with what
    it says a plug-in adds.
    """
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tables = re.findall(r"`([A-Z]+)`(?:, `([A-Z]+)`)? in `([\w/]+\.py)`", text)
    assert len(tables) >= 9
    for first, second, path in tables:
        module = (ROOT / path).read_text(encoding="utf-8")
        assert all(
            re.search(rf"^{name}: .*{{", module, re.MULTILINE) for name in (first, second) if name
        ), path
    for names, path in re.findall(r"((?:`\w+`(?:, )?)+) in `(configs/plugins/\w+\.py)`", text):
        plugin = (ROOT / path).read_text(encoding="utf-8")
        assert all(f'"{name}"' in plugin for name in re.findall(r"\w+", names)), (names, path)


def paths_in(tree: str) -> list[str]:
    """Of lines indented by two spaces below the folder they lie in, whose
    name ends with a slash.
    """
    folders: list[str] = []
    found = []
    for line in filter(str.strip, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        found.append("".join([*folders[:depth], name.rstrip("/")]))
        folders[depth:] = [name]
    return found


def test_the_pages_make_a_site_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (extra docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first_run.html").exists()
