"""What read_model.py says of runs: the command that repeats one, and what tells two of them apart.

What is known of a run stands in its checkpoint: settings, data, versions. The folder of a run that
was begun with ``--run_dir`` also holds its ``run.json``, which has the command as it was typed, a
fine-tuning's own options, and the machine.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloader import streams
from model_utils.errors import InputError, VerificationError
from model_utils.files.outputs import sidecar
from model_utils.models.description import differing_fields
from model_utils.models.versions import code_version
from model_utils.run.beginnings import resume_settings
from model_utils.run.beginnings.stored_run import CHANGEABLE, LENGTHS, StoredRun
from model_utils.run.folder import run_record
from model_utils.runtime import dtype_name, log, start_log
from model_utils.settings.declared import OF_THE_COMMAND, OnlyInYaml, Option, declared, names_of
from model_utils.settings.options import (
    DiffOptions,
    FinetuneOptions,
    ReproduceOptions,
    TrainOptions,
)

OF_THE_PLACE = (
    "output_checkpoint",
    "output_model",
    "output_safetensors",
    "input_json",
    "info_file",
)
NOT_REPEATED = (
    "output_checkpoint",
    "output_model",
    "output_safetensors",
    "network",
    "info_file",
    "time_limit",
)
# files that the settings of a run may name beside its folder
PLACES = ("output_model", "output_safetensors")
SCRIPTS: dict[str, type] = {"train_mace.py": TrainOptions, "finetune.py": FinetuneOptions}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run, and its run.json where it has one."""

    stored: StoredRun
    record: Mapping[str, Any]

    @classmethod
    def at(cls, path: Path) -> "_Run":
        stored = resume_settings.stored_run(path)
        return cls(stored=stored, record=run_record.read(stored.path.parent) or {})

    def facts(self) -> Iterator[tuple[str, str, Any]]:
        """What may tell it from another one: kind, name and value."""
        of_the_call = {*names_of(TrainOptions, OF_THE_COMMAND), *OF_THE_PLACE}
        for name, value in self.stored.config.items():
            if name not in of_the_call:
                yield "setting", name, value
        for role, part in self.stored.data.items():
            yield "data", f"{role} structures", part.get("structures")
            yield "data", f"{role} sha256", str(part.get("sha256"))[:12]
        if self.stored.source is not None:
            yield "data", "source model.json", str(self.stored.source.get("model_json_hash"))[:12]
        for name, value in self.stored.code_version.items():
            yield "version", name, value
        for name, value in self._last_start().get("packages", {}).items():
            yield "version", name, value
        for name, value in self.stored.computed_on.items():
            yield "computed on", name, value

    def _last_start(self) -> Mapping[str, Any]:
        starts = self.record.get("starts") or [{}]
        return starts[-1] if isinstance(starts[-1], dict) else {}


def diff(options: DiffOptions) -> None:
    """Say which settings, data and versions of two runs differ.

    Raises:
        VerificationError: some do.
        InputError: a folder holds no run, or several.
    """
    start_log()
    first = _Run.at(options.input_model)
    second = _Run.at(options.other_model)
    lines = [*_differing(first, second)]
    lines += [
        f"model.json: {text}"
        for text in differing_fields(first.stored.description, second.stored.description)
    ]
    for line in lines:
        log.info("%s", line)
    if lines:
        raise VerificationError(
            f"{options.input_model} and {options.other_model} differ in {len(lines)} points"
        )
    log.info("equal: settings, data, versions and model.json")


def _differing(first: _Run, second: _Run) -> Iterator[str]:
    """A line for every fact in which two runs differ."""
    mine = {(kind, name): value for kind, name, value in first.facts()}
    theirs = {(kind, name): value for kind, name, value in second.facts()}
    for kind, name in {**mine, **theirs}:
        a = mine.get((kind, name), "–")
        b = theirs.get((kind, name), "–")
        if a != b:
            yield f"{kind}: {name}: {_shown(a)} against {_shown(b)}"


def _shown(value: Any) -> str:
    text = (
        json.dumps(value, ensure_ascii=False, default=str)
        if isinstance(value, list | dict)
        else str(value)
    )
    return text if len(text) <= 80 else f"{text[:77]}…"


def reproduce(options: ReproduceOptions) -> None:
    """Print the command that repeats a run, after lines on what it needs: code, data, versions.

    Raises:
        InputError: the folder holds no run, or one of which too little is known.
    """
    run = _Run.at(options.input_model)
    for line in _needed(run):
        print(f"# {streams.printable(line)}")
    place = options.output_checkpoint or Path("repeated")
    words = [*_command(run, place)]
    if _has_place_in_its_yaml(run):
        print(
            "# its YAML names the folder of the experiment: the repetition gets a "
            "folder of its own there"
        )
    else:
        words += ["--output_checkpoint", str(place)]
    print(streams.printable(shlex.join(["python", *words])))
    for line in _continuations(run, place):
        print(streams.printable(line))


def _needed(run: _Run) -> Iterator[str]:
    """What the run was made with, and what of it is other here."""
    stored = run.stored
    yield (
        f"{stored.file.content['run_name']}: {stored.epoch} epochs, {stored.step} steps, "
        f"{dtype_name(stored.dtype)}"
    )
    if run.record:
        yield f"typed: {shlex.join([run.record['command'], *map(str, run.record['argv'])])}"
    here = code_version(stored.description)
    for name, version in stored.code_version.items():
        other = "" if here.get(name) == version else f" (here {here.get(name)})"
        yield f"{name} {version}{other}"
    computed_on = ", ".join(f"{name} {value}" for name, value in stored.computed_on.items())
    yield f"computed on {computed_on}"
    for role, part in stored.data.items():
        files = ", ".join(map(str, part.get("files", ())))
        yield (
            f"{role} data: {part.get('structures')} structures, sha256 "
            f"{str(part.get('sha256'))[:12]}…, of {files}"
        )


def _command(run: _Run, place: Path) -> list[str]:
    """Script and flags, without the place.

    Raises:
        InputError: of a fine-tuning its own options are not known.
    """
    stored = run.stored
    threads = [] if stored.threads is None else ["--threads", str(stored.threads)]
    parts = ["--step_parts", str(stored.computed_on["step_parts"])]
    script = str(run.record.get("command", "train_mace.py"))
    if run.record and script in SCRIPTS:
        words = [*_of_the_yaml(run, place), *_flags(SCRIPTS[script], run.record["asked"])]
    elif stored.source is None:
        words = [*_resolved(run, place), *_as_it_began(run)]
    else:
        raise InputError(
            f"{stored.path}: a fine-tuning without run.json, which --run_dir writes; its source "
            f"was {stored.source.get('path')}"
        )
    # the model.json of the run, whatever became of the one that it was made from
    if stored.source is None:
        words += ["--input_json", str(sidecar(stored.outputs().checkpoint))]
    return [f"model_utils/{script}", *words, *parts, *threads]


def _resolved(run: _Run, place: Path) -> Iterator[str]:
    """The settings of a run as its own file has them, with files of the repetition
    in place of the run's.
    """
    yield from ("--config", str(run.stored.outputs().config))
    stop = _first_stop(run)
    if stop is not None:
        yield from ("--max_steps", str(stop))
    for name in PLACES:
        if named := run.stored.config.get(name):
            yield from (f"--{name}", str(place / Path(named).name))


def _as_it_began(run: _Run) -> Iterator[str]:
    """Flags of what a continuation changed, of a run whose own file is all that is known.

    Raises:
        InputError: it was continued by a version that did not keep what it changed.
    """
    first: Mapping[str, Any] = {}
    for entry in run.stored.history:
        first = entry.get("before", {})
        if first:
            break
        if {*entry.get("changes", {})} & {*CHANGEABLE}:
            raise InputError(
                f"{run.stored.path}: the run was continued with other settings at step "
                f"{entry.get('step')}, and those of before are not kept"
            )
    said = {"max_steps"} if _first_stop(run) is not None else set()
    for option in declared(TrainOptions):
        if option.name in CHANGEABLE and option.name not in said:
            began = first.get(option.name)
            if began is not None and began != run.stored.config.get(option.name):
                yield from _words(option, began)


def _first_stop(run: _Run) -> int | None:
    """The step at which the first command ended, where the run's own file says another one: that
    of the continuation.
    """
    continued = [e for e in run.stored.history if e.get("changes") or e.get("before")]
    if not continued or run.stored.config.get("max_steps") is None:
        return None
    return int(continued[0]["step"])


def _of_the_yaml(run: _Run, place: Path) -> Iterator[str]:
    """What no flag can say, as a list of sources: the file that has it, and what in it
    is not as the run began.

    Of a training it is the run's own, since the one that it was given may also name a place
    or describe the network.
    """
    asked = run.record["asked"]
    if not _needs_yaml(run):
        return
    if run.stored.source is not None:
        yield from ("--config", str(asked.get("config")))
        return
    yield from _resolved(run, place)
    for option in declared(TrainOptions):
        began = asked.get(option.name)
        is_default = began == option.default and began is not None  # else ``_flags`` says it
        if option.name in CHANGEABLE and is_default and run.stored.config.get(option.name) != began:
            yield from _words(option, began)


def _needs_yaml(run: _Run) -> bool:
    """Whether a setting of a run stands in a YAML alone."""
    asked = run.record.get("asked", {})
    kind = SCRIPTS.get(str(run.record.get("command")))
    alone = (
        []
        if kind is None
        else [option for option in declared(kind) if option.marker(OnlyInYaml) is not None]
    )
    return any(asked.get(option.name) for option in alone if option.name not in NOT_REPEATED)


def _has_place_in_its_yaml(run: _Run) -> bool:
    """Whether the repetition of a fine-tuning reads a YAML that says where runs lie, beside
    which no place is given.
    """
    if run.stored.source is None or not _needs_yaml(run):
        return False
    flags = {str(word).partition("=")[0] for word in run.record["argv"]}
    return run.record["asked"].get("run_dir") is not None and not flags & {
        "--run_dir",
        "--exp_name",
    }


def _flags(kind: type, asked: Mapping[str, Any]) -> Iterator[str]:
    """Flags of all settings that are not the default, but for those of a YAML alone."""
    for option in declared(kind):
        value = asked.get(option.name)
        if (
            option.name in _not_repeated(kind)
            or value is None
            or value == []
            or value == option.default
        ):
            continue
        if option.marker(OnlyInYaml) is None:
            yield from _words(option, value)


def _not_repeated(kind: type) -> set[str]:
    """Options that say where a run lies, how its command was called, and what the
    model.json beside it has.
    """
    of_the_call = {*names_of(kind, OF_THE_COMMAND)} - {"plugin"}
    return {*of_the_call, *NOT_REPEATED, *({"input_json"} if kind is TrainOptions else ())}


def _words(option: Option, value: Any) -> Sequence[str]:
    if isinstance(value, bool):
        return [f"--{option.name}" if value else f"--no_{option.name}"]
    return [f"--{option.name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def _continuations(run: _Run, place: Path) -> Iterator[str]:
    """The commands that repeat what a run did after its first one, each after a line that says
    when it was given.
    """
    history = run.stored.history
    last = {name: run.stored.config.get(name) for name in CHANGEABLE}
    # a run that was begun with --run_dir keeps what was asked for at first
    known = [entry["before"] for entry in history if "before" in entry]
    asked = run.record.get("asked") or (known[0] if known else last)
    now = {name: asked.get(name) for name in LENGTHS}
    for number, entry in enumerate(history):
        before = entry.get("before", now)
        if _lengths(before) != _lengths(now):
            yield from _continued(place, "made longer by its own command", {}, before)
        later = history[number + 1] if number + 1 < len(history) else {"before": last}
        epochs, max_steps = entry.get("end", [None, None])
        after = later.get("before", {**before, "epochs": epochs, "max_steps": max_steps})
        if entry.get("changes") or _lengths(after) != _lengths(before):
            when = f"stopped after step {entry.get('step')}, and gone on with"
            yield from _continued(place, when, entry.get("changes", {}), after)
        now = after
    if _lengths(now) != _lengths(last):
        yield from _continued(place, "made longer by its own command", {}, last)


def _lengths(settings: Mapping[str, Any]) -> list[Any]:
    return [settings.get(name) for name in LENGTHS]


def _continued(
    place: Path, when: str, changes: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[str]:
    """The command that repeats a continuation.

    Args:
        place: of the repeated run.
        when: it was given.
        changes: settings that it changed, but for the length of the run.
        after: settings with which the run went on.
    """
    words: list[str] = []
    for name, value in changes.items():
        words += (
            [f"--{name}" if value else f"--no_{name}"]
            if isinstance(value, bool)
            else [f"--{name}", str(value)]
        )
    for name in LENGTHS:
        if after.get(name) is not None:
            words += [f"--{name}", str(after[name])]
    yield f"# {when}:"
    yield shlex.join(["python", "model_utils/resume.py", "--input_model", str(place), *words])
