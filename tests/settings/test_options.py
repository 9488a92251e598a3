"""What every option says of itself, and what is derived from it: natures, resume.py,
panels, stored settings.
"""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from test_usable_paths import COMMANDS

import losses
from conftest import ROOT
from model_utils import evaluate, resume, train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.settings import declared, parser, reading, table_names
from model_utils.settings import options as settings
from model_utils.settings.counterparts import OF_TEMPLATES
from model_utils.settings.declared import FIXED, MAY_CHANGE, OF_THE_COMMAND, Option, names_of
from model_utils.settings.options import (
    FIXED_IN_A_RUN,
    ResumeOptions,
    TrainingOptions,
    TrainOptions,
)
from model_utils.settings.table_names import NamesOf

KINDS = [kind for kinds in COMMANDS.values() for kind in kinds.values()]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SETTINGS_OF_A_RUN = 88  # how many there are at least: a test that looks at none would pass


OF_A_CONTINUATION = (
    "run_dir",
    "resume_best",
    "resume_new_lr",
    "reset_scheduler",
    "resume_reset_scheduler",
)


def groups_of(kind: type) -> Iterator[type]:
    for hint in typing.get_type_hints(kind, include_extras=True).values():
        group = declared.group_of(hint)
        if group is not None:
            yield group
            yield from groups_of(group)


# natures


@by_kind
def test_every_option_has_one_name_a_nature_a_help_and_a_panel(kind: type) -> None:
    options = declared.declared(kind)
    assert len({option.name for option in options}) == len(options) > 2
    for option in options:
        assert option.nature in (OF_THE_COMMAND, MAY_CHANGE, FIXED), option.name
        assert option.help.endswith((".", ")")), option.name
        assert option.panel.title, option.name


def test_an_option_that_does_not_say_what_it_is_cannot_be_declared() -> None:
    @declared.panel("Some", 1)
    @dataclass(frozen=True, kw_only=True)
    class Silent:
        """Some options."""

        what: int = 1
        """A number."""

    with pytest.raises(
        TypeError, match=r"Silent\.what does not say whether it may change in a resumed run"
    ):
        declared.declared(Silent)


def test_options_of_a_training_say_it_one_by_one() -> None:
    """A group of a training has no nature for all: a new option would get it unseen."""
    for group in groups_of(TrainOptions):
        for name, hint in typing.get_type_hints(group, include_extras=True).items():
            if declared.group_of(hint) is None and name not in ("PANEL", "NATURE"):
                assert declared._marker(hint, declared.Nature) is not None, (
                    f"{group.__name__}.{name}"
                )


def test_what_a_step_computes_is_fixed() -> None:
    """The list is short on purpose: only what no number of a run depends on may
    change without a word.
    """
    assert names_of(TrainOptions, OF_THE_COMMAND) == (
        "config",
        "plugin",
        "debug",
        "physics_gate",
        "dry_run",
        "as_ranks",
        *OF_A_CONTINUATION,
        "overwrite",
        "resume",
    )
    fixed = names_of(TrainOptions, FIXED)
    assert {
        "seed",
        "lr",
        "dtype",
        "batch_size",
        "energy_loss",
        "forces_weight",
        "scheduler",
        "ema",
    } <= set(fixed)
    assert len(fixed) > 50
    assert len(names_of(TrainOptions)) >= SETTINGS_OF_A_RUN


# resume.py


def test_resume_takes_what_may_change_and_nothing_else_of_a_training() -> None:
    own = {
        option.name for option in declared.declared(ResumeOptions) if "changed" not in option.name
    }
    may_change = set(names_of(TrainingOptions, MAY_CHANGE))
    taken = set(names_of(ResumeOptions)) & set(names_of(TrainingOptions))
    assert may_change <= own
    acting = {"lr", "ema", *OF_A_CONTINUATION} - {"run_dir"}  # on the state that is taken over
    assert taken - may_change == {"config", "plugin", "debug", *acting}
    assert set(FIXED_IN_A_RUN) == set(names_of(TrainOptions)) - set(names_of(ResumeOptions))


def test_resume_options_are_those_of_training_but_for_their_default() -> None:
    training = {option.name: option for option in declared.declared(TrainingOptions)}
    for option in declared.declared(ResumeOptions):
        if option.nature is not MAY_CHANGE:
            continue
        theirs = training[option.name]
        said = theirs.marker(declared.InResume)
        assert option.help == (theirs.help if said is None else said.help)
        assert option.panel == theirs.panel
        assert option.default in (None, ())
        kept = declared.bare(option.type)
        assert kept in (declared.bare(theirs.type), theirs.type | None)


@pytest.mark.parametrize("name", sorted(FIXED_IN_A_RUN))
def test_what_is_fixed_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main(["--input_model", "run", f"--{name}", "1"]) == 2
    assert f"--{name} cannot change in a resumed run" in capsys.readouterr().err


# groups and flat settings


def example(option: Option) -> Any:
    """A value that is not the default."""
    hint = str(option.type)
    table = option.marker(NamesOf)
    if table is not None:
        return list(table.names()) if "tuple" in hint else table.names()[-1]
    if "bool" in hint:
        return not option.default
    if "SourceOptions" in hint:
        return [{"path": "/s.xyz", "role": "train", "weight": 2.0, "energy_key": "auto"}]
    literal = re.search(r"Literal\[(.*?)\]", hint)
    if literal:
        return [word.strip("' ") for word in literal[1].split(",")][-1]
    if "tuple" in hint:
        return {"Path": ["/a.xyz", "/b.xyz"], "int": [3, 4]}.get(
            next((word for word in ("Path", "int") if word in hint), ""), ["H", "C"]
        )
    if "Path" in hint:
        return f"/some/{option.name}"
    if "int" in hint:
        return 7
    return 0.0625 if "float" in hint else f"some_{option.name}"


SPECIAL: dict[str, dict[str, Any]] = {
    "": {
        "resume": None,
        "lr_of": ["readouts.*=0.001"],
        "label_keys": ["dipole=d"],
        "data_format": None,
    },
    "FinetuneOptions": {"add_head": None},
    "EvaluateOptions": {"lmdb_path": [], "data": []},
    "IndexOptions": {"share": "3/64"},
    "GenerateOptions": {"max_volume": 50.0},
    "PackOptions": {"share": "3/64", "finish": False},
    "MetadataInitOptions": {"E0s": "auto"},
    "MetadataFitOptions": {"E0s": "auto"},
}


@by_kind
def test_settings_are_flat_and_come_back(kind: type) -> None:
    """Every option other than by default, through groups and back: names, order and values."""
    chosen = {option.name: example(option) for option in declared.declared(kind)}
    chosen |= {
        k: v for k, v in (SPECIAL[""] | SPECIAL.get(kind.__name__, {})).items() if k in chosen
    }
    options = reading.from_plain(kind, chosen, Path("here"))
    plain = reading.as_plain(options)
    assert tuple(plain) == names_of(kind)
    for name, value in chosen.items():
        if name == "sources":
            assert [
                {k: v for k, v in item.items() if v is not None} for item in plain[name]
            ] == value
        else:
            assert plain[name] == value, name
    assert reading.from_plain(kind, json.loads(json.dumps(plain)), Path("here")) == options


@by_kind
def test_a_yaml_has_the_flags_names(kind: type, tmp_path: Path) -> None:
    """A group's name is no key, unless templates have a section of it, and a setting's key is
    its flag.
    """
    groups = {field.name for field in dataclasses.fields(kind)} - set(names_of(kind))
    for group in groups - set(OF_TEMPLATES):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({group: {}}))
        with pytest.raises(InputError, match="unknown setting"):
            reading.parse(kind, ["--config", str(tmp_path / "a.yaml")])


def test_stored_settings_have_the_order_that_they_had() -> None:
    """What checkpoints and config.resolved.yaml of earlier states hold, and
    what was added since.
    """
    for folder in sorted((ROOT / "tests" / "data").glob("state_*")):
        for path in folder.glob("*/run_checkpoint.pt"):
            stored = checkpoint.read(path).content["train_state"]["config"]
            assert [name for name in names_of(TrainOptions) if name in stored] == list(stored)


# --help


HELPS = {
    "model_utils.train_mace": [],
    "model_utils.resume": [],
    "model_utils.finetune": [],
    "dataloader.pack": [],
} | {
    "metadata": ["init"],
    "read_model": ["convert"],
    "model_utils.evaluate": [],
}


@pytest.mark.parametrize("module", HELPS)
def test_help_has_titled_panels_the_required_first_and_the_command_last(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert importlib.import_module(module).main([*HELPS[module], "--help"]) == 0
    shown = capsys.readouterr().out
    kind = COMMANDS[module]["".join(HELPS[module])]
    titles = re.findall(r"╭─ (.*?) ─+╮", shown)
    assert titles[0] == "Required"
    assert titles[-1] == "This command"
    assert set(titles) == {option.shown_in.title for option in declared.declared(kind)}
    first, last = (
        shown.split(f"╭─ {title} ─")[1].split("╰")[0] for title in (titles[0], titles[-1])
    )
    required = {option.name for option in declared.declared(kind) if option.required}
    assert set(re.findall(r"│ \*? +--(\w+)", first)) == required
    assert set(re.findall(r"│ \*? *--(\w+)", last)) == {"config", "plugin", "debug", "help"}


def test_help_and_mistakes_import_no_torch() -> None:
    """Which takes seconds: the names of a table are read from the text of its module."""
    for words in (["--help"], ["--energy_loss", "squared"], ["--learning_rate", "3"]):
        code = (
            f"import sys; from model_utils.train_mace import main; code = main({words}); "
            "print('imported' if 'torch' in sys.modules else 'free of it', code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout.splitlines()[-1] == f"free of it {0 if words == ['--help'] else 2}", (
            done.stderr
        )


# choices that are the names of a table


TABLES = {option.marker(NamesOf) for kind in KINDS for option in declared.declared(kind)} - {None}


def test_names_in_the_text_of_a_module_are_those_of_its_table() -> None:
    assert TABLES
    for table in TABLES:
        assert table is not None
        live = vars(importlib.import_module(table.module))[table.table]
        assert set(table_names._declared(table.module, table.table)) <= set(live)


def test_a_name_that_is_added_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--input_json",
        "m.json",
        "--output_checkpoint",
        "run",
        "--xyz_train",
        "a.xyz",
        "--forces_loss",
    ]
    with pytest.raises(InputError, match="there are mse, huber, mae, l2norm"):
        reading.parse(TrainOptions, [*words, "log_cosh"])
    monkeypatch.setitem(losses.SHAPES, "log_cosh", losses.SHAPES["mse"])
    options = reading.parse(TrainOptions, [*words, "log_cosh"])
    assert options is not None
    assert options.loss.forces_loss == "log_cosh"
    assert train_mace.main(["--help"]) == 0
    assert "log_cosh" in " ".join(capsys.readouterr().out.split())


def test_a_name_that_is_none_is_answered_with_the_nearest_and_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input_json", "m.json", "--output_checkpoint", "run", "--xyz_train", "a.xyz"]
    assert train_mace.main([*words, "--energy_loss", "hubber"]) == 2
    line = capsys.readouterr().err
    assert "--energy_loss" in line
    assert "'hubber' is not known; did you mean huber? there are mse, huber, mae, l2norm" in line
    path = tmp_path / "a.yaml"
    path.write_text("energy_loss: hubber\n")
    assert train_mace.main([str(path), *words]) == 2
    line = capsys.readouterr().err
    assert "did you mean huber?" in line
    assert str(path) in line


def test_a_list_of_names_is_checked_name_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "more_ideas.py").write_text("TABLE = {'red': 1, 'green': 2}\n")
    monkeypatch.syspath_prepend(tmp_path)

    @declared.panel("Some", 1)
    @dataclass(frozen=True, kw_only=True)
    class Chosen:
        """Some options."""

        colours: Annotated[tuple[str, ...], NamesOf("more_ideas", "TABLE"), FIXED] = ()
        """Colours."""

    assert reading.parse(Chosen, ["--colours", "green", "red"]) == Chosen(colours=("green", "red"))
    with pytest.raises(
        InputError, match=r"--colours 'gren' is not known; did you mean green. there are red, green"
    ):
        reading.parse(Chosen, ["--colours", "red", "gren"])
    assert reading.from_plain(Chosen, {"colours": ["red"]}, Path("here")).colours == ("red",)


def test_names_that_are_written_and_not_a_dict_are_our_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_ideas.py").write_text("TABLE = {'a': 1, 'b': 2}\nOTHER = dict(TABLE)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert NamesOf("some_ideas", "TABLE").names() == ("a", "b")
    with pytest.raises(AssertionError, match="declares no table OTHER"):
        NamesOf("some_ideas", "OTHER").names()


# a resumed run


def test_what_may_change_reaches_a_resumed_run(
    tiny_json: Path,
    water_xyz: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz()),
        "--valid_fraction",
        "0.3",
    ]
    folder = tmp_path / "run"
    assert train_mace.main([*words, "--max_steps", "1", "--output_checkpoint", str(folder)]) == 0
    changed = ["--max_steps", "2", "--log_every_steps", "1", "--no_export_mace_model"]
    assert resume.main(["--input_model", str(folder), *changed, "--debug"]) == 0, (
        capsys.readouterr().err
    )
    config = checkpoint.read(folder / "run_checkpoint.pt").content["train_state"]["config"]
    assert tuple(config) == names_of(TrainOptions)
    assert (config["max_steps"], config["log_every_steps"], config["export_mace_model"]) == (
        2,
        1,
        False,
    )
    assert (config["seed"], config["debug"], config["resume"]) == (123, False, "auto")
    resolved = yaml.safe_load((folder / "config.resolved.yaml").read_text())
    assert list(resolved) == [
        name for name in config if name not in names_of(TrainOptions, OF_THE_COMMAND)
    ]


def test_two_options_of_one_name_are_our_mistake() -> None:
    @declared.panel("Some", 1, nature=FIXED)
    @dataclass(frozen=True, kw_only=True)
    class Twice:
        """Two groups with a name in common."""

        device: settings.DeviceOptions
        dtype: Annotated[str, FIXED] = ""
        """A word."""

    with pytest.raises(TypeError, match="declares an option twice"):
        declared.declared(Twice)


def test_evaluate_refuses_an_empty_label_as_training_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate.main(["--input_model", "m.pt", "--xyz_path", "a.xyz", "--energy_key", ""]) == 2
    assert "--energy_key is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--lr",
        "--lr x",
        "--lr=0.5",
        "--lr -1",
        "--lr 1e-3 --lr -1e-3",
        "--no_ema",
        "--ema=False",
        "--ema --batch_size 4 5",
        "--xyz_train a.xyz b.xyz --ema",
        "--scheduler cosin",
        "--batch_size 4 -- 5",
        "--batch_size 4 -x",
        "--time_limit 2:00",
    ],
)
def test_a_parser_of_what_is_given_answers_as_that_of_all_options(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--input_json", "a.json", "--output_checkpoint", "run", *words.split()] if words else []

    def answer() -> object:
        try:
            return parser.parsed_values(
                TrainOptions, argv, {"epochs": 3, "stress_key": "s"}, Path("a.yaml")
            )
        except InputError as error:
            return str(error)

    short = answer()
    monkeypatch.setattr(
        parser, "_looked_for", lambda kind, argv, settings: list(declared.declared(kind))
    )
    assert short == answer()


def test_a_stored_value_is_the_default_where_it_has_its_type_too() -> None:
    default = reading.parse(
        TrainOptions,
        ["--input_json", "/a.json", "--output_checkpoint", "/run", "--xyz_train", "/a.xyz"],
    )
    stored = reading.as_plain(default)
    assert reading.from_plain(TrainOptions, stored, Path("it")) == default
    with pytest.raises(InputError, match="accumulate_batches"):
        reading.from_plain(TrainOptions, {**stored, "accumulate_batches": True}, Path("it"))


def test_a_yaml_of_mace_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mace.yaml"
    path.write_text("model: MACE\nr_max: 5.0\nmax_num_epochs: 3\nnum_channels: 8\nE0s: average\n")
    with pytest.raises(InputError, match=r"is a YAML of mace_run_train .*--mace_config"):
        reading.parse(TrainOptions, ["--config", str(path)])


def test_schedules_by_torchs_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean plateau"):
        reading.parse(TrainOptions, ["--scheduler", "ReduceLROnPlateau"])


def test_a_value_that_begins_with_a_dash_is_not_called_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--input_json", "a.json", "--train_file", "t.xyz", "--output_checkpoint", "-runs"]
    assert train_mace.main(words) == 2
    said = capsys.readouterr().err
    assert "the value -runs begins with a dash, as flags do" in said
    assert "write --output_checkpoint=-runs" in said
