"""What a job gets: the project's own sources, the files that its settings name, and its
settings; nothing else.
"""

import dataclasses
import glob
import gzip
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dataloader.errors import InputError
from model_utils.files.content import PATTERN, is_data
from model_utils.settings.declared import declared, flat
from model_utils.settings.options import PipelineOptions
from model_utils.stages.place import Place
from model_utils.stages.planning import Plan
from model_utils.stages.table import STAGES
from model_utils.submission.commands import Submitted
from model_utils.submission.job import EXIT_CODE, LOGS, RESULTS, SENT, JobFolder

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("model_utils", "dataloader")
MODULES = ("losses.py", "optimizer.py", "metadata.py", "read_model.py", "pyproject.toml")
ENDINGS = (".py", ".cpp", ".h", ".html")
INPUTS = "inputs"
PROJECT = "project"  # where the sources are unpacked
RESULT = "results"  # folder that comes back where its own name cannot be taken
_FOLDER = JobFolder(path=Path())
# names of what lies beside the results, in the job or in its folder here
TAKEN = {
    "",
    ".",
    "..",
    INPUTS,
    PROJECT,
    RESULTS,
    EXIT_CODE,
    *SENT,
    *LOGS,
    _FOLDER.record.name,
    _FOLDER.work.name,
}
WRITTEN = ("output", "out_", "report")  # begin the names of options whose files are made
OF_THIS_MACHINE = ("config", "debug", "reference_cache", "info_file", "sync")
# s: 1980, which zip and tar know; no time of a file goes into an archive, so equal ones are equal
EARLIEST = 315532800


class Inputs:
    """The files that settings name, with the names that they get in a job."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}  # name in the job: where it lies here
        self._names: dict[Path, str] = {}

    def name_of(self, option: str, path: Path) -> list[str]:
        """Names in the job of what a path names: a file, a folder, or all files of a pattern.

        Raises:
            InputError: nothing is there.
        """
        if not path.exists() and PATTERN & set(str(path)):
            matches = [Path(name) for name in sorted(glob.glob(str(path)))]
            if matches:
                return [name for match in matches for name in self.name_of(option, match)]
        if not path.exists():
            raise InputError(f"{option} names {path}, which is not there; a job could not read it")
        place = path.absolute()
        if place not in self._names:
            name = f"{INPUTS}/{len(self._names)}/{place.name}"
            self._names[place] = name
            for inner, file in _files_of(place):
                self.files[f"{name}/{inner}" if inner else name] = file
        return [self._names[place]]


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a path with their names below it."""
    if not path.is_dir():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        if is_data(file):
            yield file.relative_to(path).as_posix(), file


def settings_of(command: Submitted, options: Any, inputs: Inputs) -> tuple[dict[str, Any], str]:
    """Settings of a command as it gets them in a job, and the name of the folder that comes back.

    Args:
        command: that is submitted.
        options: its options.
        inputs: gets the files that they name.

    Raises:
        InputError: one of them is not there, or a section of a pipeline cannot be used.
    """
    place = Path(getattr(options, command.place, None) or _missing(command.place))
    if isinstance(options, PipelineOptions):
        plain = _of_pipeline(options, inputs)
    else:
        plain = _plain_settings(options, inputs, leave_out={command.place})
    result = RESULT if command.is_file or place.name in TAKEN else place.name
    plain |= dict(command.fixed)
    plain[command.place] = f"{result}/{place.name}" if command.is_file else result
    if command.reads_place:
        for name, file in _files_of(place):
            inputs.files[f"{result}/{name}"] = file
    return plain, result


def _missing(name: str) -> Path:
    raise InputError(f"--{name} is missing; its name is that of the results in the job folder")


def _of_pipeline(options: PipelineOptions, inputs: Inputs) -> dict[str, Any]:
    """Settings of a pipeline with a section for each stage, without what the pipeline
    itself gives the stages.
    """
    plan = Plan(options, Place(folder=options.run_dir.absolute()))
    plan.refuse_mistakes()
    everything = frozenset(STAGES)
    plain = _plain_settings(options, inputs, leave_out={"run_dir", *STAGES})
    for name, stage in STAGES.items():
        if stage.section:  # whose settings another stage has
            continue
        found = plan.situation(name, everything)
        filled = stage.filled(found)
        given_there = {*filled.own, *filled.unless_given.keys() - found.section.keys()}
        plain[name] = _plain_settings(
            plan.options_of(name, everything), inputs, leave_out=given_there
        )
    return plain


def _plain_settings(options: Any, inputs: Inputs, leave_out: set[str]) -> dict[str, Any]:
    """Settings that are not the default, with the names that their files have in the job."""
    kind: Any = type(options)
    defaults = {option.name: option.default for option in declared(kind)}
    return {
        name: _in_job(name, value, inputs)
        for name, value in flat(options).items()
        if value != defaults[name]
        and value is not None
        and name not in leave_out
        and name not in OF_THIS_MACHINE
    }


def _in_job(name: str, value: Any, inputs: Inputs) -> Any:
    if isinstance(value, Path):
        if name.startswith(WRITTEN):
            return f"{RESULT}/{value.name}"
        return inputs.name_of(name, value)[0]
    if isinstance(value, tuple | list):
        items = [
            _in_job(name, item, inputs) if not isinstance(item, Path) else item for item in value
        ]
        paths = [inputs.name_of(name, item) if isinstance(item, Path) else [item] for item in items]
        return [item for group in paths for item in group]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {
            inner: _in_job(f"{name}: {inner}", item, inputs) for inner, item in flat(value).items()
        }
        return {inner: item for inner, item in plain.items() if item is not None}
    if isinstance(value, str) and "/" in value and _is_file(value):
        return inputs.name_of(name, Path(value))[0]
    return value


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as the file of the job has them."""
    return str(yaml.safe_dump(dict(settings), allow_unicode=True, sort_keys=True))


def sources() -> dict[str, Path]:
    """The project's own files that a command needs, by name below its root."""
    files = [
        path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in ENDINGS
    ]
    files += [ROOT / name for name in MODULES if (ROOT / name).exists()]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(files)}


def archive(files: Mapping[str, Path]) -> bytes:
    """A .tar.gz of files, the same bytes whenever and wherever it is made of the same content.

    Raises:
        InputError: a file cannot be read.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in sorted(files.items()):
            try:
                with path.open("rb") as file:
                    member = tarfile.TarInfo(name)
                    member.size = path.stat().st_size
                    member.mtime = EARLIEST
                    member.mode = 0o644
                    tar.addfile(member, file)
            except OSError as error:
                raise InputError(f"cannot pack {path}: {error.strerror}") from None
    return buffer.getvalue()


def unpack(path: Path, folder: Path, below: str) -> int:
    """Bring the files of an archive to a folder.

    Args:
        path: of a .tar.gz that a job made.
        folder: to which they come.
        below: the only folder in it that is taken.

    Returns:
        How many files there are.

    Raises:
        InputError: it is damaged, or has names that lead elsewhere.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            members = [member for member in tar.getmembers() if member.isfile() or member.isdir()]
            for member in members:
                if PurePosixPath(member.name).parts[:1] != (below,):
                    raise InputError(
                        f"{path} holds {member.name!r:.80}, expected files below {below}/"
                    )
            tar.extractall(folder, members=members, filter="data")
            return sum(member.isfile() for member in members)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"cannot unpack {path}: {' '.join(str(error).split())}") from None
