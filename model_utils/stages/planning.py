"""From the options of a pipeline to those of the command of each stage."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dataloader.errors import InputError
from model_utils.settings import reading
from model_utils.settings.command_sections import in_section, sections_of
from model_utils.settings.declared import declared, names_of
from model_utils.settings.options import FinetuneOptions, PipelineOptions
from model_utils.stages.place import Place
from model_utils.stages.table import STAGES, Filled, Situation

INHERITED = ("device", "threads", "plugin")  # settings of the fine-tuning that hold for every stage


@dataclass(frozen=True)
class Plan:
    """What a pipeline was asked to do.

    Attributes:
        options: of the pipeline.
        place: of the pipeline.
    """

    options: PipelineOptions
    place: Place

    @cached_property
    def kinds(self) -> Mapping[str, type]:
        """Options of the command of each section, by its name."""
        return {name: section.kind for name, section in sections_of(PipelineOptions).items()}

    @cached_property
    def finetuning(self) -> FinetuneOptions:
        """Options of the fine-tuning."""
        options = self._options_of("finetune", None, frozenset())
        assert isinstance(options, FinetuneOptions)
        return options

    def refuse_mistakes(self) -> None:
        """Make the options of every stage as they are where all goes well, before anything begins.

        Raises:
            InputError: a section cannot be used, or the model to begin with is not there.
        """
        if not self.options.input_model.exists():
            raise InputError(
                f"--input_model {self.options.input_model} is not there; name the "
                "model to begin with"
            )
        for name in STAGES:
            self.options_of(name, frozenset(STAGES))

    def options_of(self, stage: str, done: frozenset[str]) -> Any:
        """Options of the command of a stage.

        Args:
            stage: its name.
            done: stages that are done, which say which model there is.

        Raises:
            InputError: its section cannot be used.
        """
        if stage == "finetune":
            return self.finetuning
        return self._options_of(stage, self.finetuning, done)

    def situation(self, stage: str, done: frozenset[str]) -> Situation:
        """What a stage finds after those that are done."""
        return self._situation(stage, None if stage == "finetune" else self.finetuning, done)

    def _situation(
        self, stage: str, finetuning: FinetuneOptions | None, done: frozenset[str]
    ) -> Situation:
        return Situation(
            place=self.place,
            options=self.options,
            section=self._section(stage),
            finetuning=finetuning,
            done=done,
        )

    def _options_of(
        self, stage: str, finetuning: FinetuneOptions | None, done: frozenset[str]
    ) -> Any:
        section = STAGES[stage].section or stage
        where = in_section(self._config, section)
        try:
            filled = STAGES[stage].filled(self._situation(stage, finetuning, done))
            settings = self._settings(stage, filled, finetuning)
            return reading.of_settings(self.kinds[section], settings, where)
        except InputError as error:
            said = str(error)
            raise InputError(said if str(where) in said else f"{where}: {said}") from None

    def _settings(
        self, stage: str, filled: Filled, finetuning: FinetuneOptions | None
    ) -> dict[str, Any]:
        """Settings of a stage by name: its section, what the pipeline gives, and
        what holds for all stages.

        Raises:
            InputError: the section has one that is the pipeline's own.
        """
        section = {
            name: value
            for name, value in self._section(stage).items()
            if name not in filled.leaves_out
        }
        replaceable = {"epochs", "num_gen"}  # by --max_epochs and --num_gen
        taken = [name for name in section if name in filled.own and name not in replaceable]
        if taken:
            raise InputError(f"{taken[0]} is given by the pipeline; leave it out")
        names = names_of(self.kinds[STAGES[stage].section or stage])
        inherited = {} if finetuning is None else reading.as_plain(finetuning)
        shared = {
            name: inherited[name] for name in INHERITED if name in names and name in inherited
        }
        settings = {**shared, **_absolute(filled.unless_given), **section, **_absolute(filled.own)}
        return {
            name: value for name, value in settings.items() if value is not None and value != []
        }

    def _section(self, stage: str) -> Mapping[str, Any]:
        content: dict[str, Any] = json.loads(
            getattr(self.options, STAGES[stage].section or stage) or "{}"
        )
        return content

    @property
    def _config(self) -> Path:
        return self.options.common.config or Path("settings")


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them, whose paths hold wherever the file lies."""
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def settings_text(options: Any) -> str:
    """A file of settings that gives these options: everything that is not the
    default, paths absolute.
    """
    kind: Any = type(options)
    defaults = {option.name: option.default for option in declared(kind)}
    plain = {
        name: reading.without_none(value)
        for name, value in reading.as_plain(options).items()
        if name != "config" and value not in (None, []) and value != defaults[name]
    }
    return str(yaml.safe_dump(plain, allow_unicode=True, sort_keys=True))
