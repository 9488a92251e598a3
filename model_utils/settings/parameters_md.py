"""Parameters.md from the option declarations: ``python
model_utils/settings/parameters_md.py`` rewrites its tables.

And the tables of docs/other_toolkits.md and docs/from_mace.md.
"""

import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from model_utils.settings import counterparts, mace_flags
from model_utils.settings.declared import OnlyInYaml, Option, Panel, declared, names_of
from model_utils.settings.options import (
    BestOptions,
    CheckOptions,
    ConvertOptions,
    DescribeOptions,
    DiffOptions,
    EvaluateOptions,
    ExportOptions,
    FinetuneOptions,
    GenerateOptions,
    IndexOptions,
    JudgeOptions,
    MdOptions,
    MetadataFitOptions,
    MetadataInitOptions,
    PackOptions,
    PipelineOptions,
    PlotLossOptions,
    RelaxOptions,
    ReproduceOptions,
    ResumeOptions,
    SubmissionOptions,
    TrainingOptions,
    TrainOptions,
    VerifyOptions,
    VerifyResumeOptions,
    WatchOptions,
)
from model_utils.settings.table_names import NamesOf

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "Parameters.md"
OTHER_TOOLKITS = ROOT / "docs" / "other_toolkits.md"
FROM_MACE = ROOT / "docs" / "from_mace.md"
TABLES: dict[str, type] = {
    "train_mace.py": TrainOptions,
    "finetune.py": FinetuneOptions,
    "resume.py": ResumeOptions,
    "verify_resume.py": VerifyResumeOptions,
    "evaluate.py": EvaluateOptions,
    "plot_loss.py": PlotLossOptions,
    "relax.py": RelaxOptions,
    "md.py": MdOptions,
    "generate.py": GenerateOptions,
    "judge.py": JudgeOptions,
    "pipeline.py run": PipelineOptions,
    "submit.py": SubmissionOptions,
    "watch.py": WatchOptions,
    "metadata.py init": MetadataInitOptions,
    "metadata.py fit": MetadataFitOptions,
    "metadata.py check": CheckOptions,
    "dataloader/index.py": IndexOptions,
    "dataloader/pack.py": PackOptions,
    "read_model.py export": ExportOptions,
    "read_model.py verify": VerifyOptions,
    "read_model.py show": DescribeOptions,
    "read_model.py diff": DiffOptions,
    "read_model.py convert": ConvertOptions,
    "read_model.py reproduce": ReproduceOptions,
    "read_model.py best": BestOptions,
}
# not repeated
ALSO_TAKES: dict[type, type] = {VerifyResumeOptions: TrainOptions, FinetuneOptions: TrainingOptions}


def main() -> None:
    """Rewrite the tables between their markers; everything else in the
    document is written by hand.
    """
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    OTHER_TOOLKITS.write_text(
        with_counterparts(OTHER_TOOLKITS.read_text(encoding="utf-8")), encoding="utf-8"
    )
    FROM_MACE.write_text(with_mace_flags(FROM_MACE.read_text(encoding="utf-8")), encoding="utf-8")


def with_mace_flags(text: str) -> str:
    """The document for people who come from mace_run_train with its table of flags as
    the code has it today.
    """
    ours = {*names_of(TrainOptions), *names_of(FinetuneOptions)}
    return _between(text, "mace flags", mace_flags.table(ours))


def with_counterparts(text: str) -> str:
    """The document on other toolkits with its table as the code has it today."""
    return _between(text, "counterparts", counterparts.table())


def _between(text: str, name: str, table: str) -> str:
    """A document with another table between the two markers of a name."""
    begin = f"<!-- {name} -->"
    end = f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def with_tables(text: str) -> str:
    """The document with every table as the declarations have it today."""
    for name, kind in TABLES.items():
        begin = f"<!-- options: {name} -->"
        end = "<!-- end of options -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"Parameters.md has no markers for {name}")
        replacement = f"{begin}\n{table(kind)}\n{end}"
        text = pattern.sub(lambda _, new=replacement: new, text, count=1)  # type: ignore[misc]
    return text


def table(kind: type) -> str:
    """The options of a command, a titled table for every panel of its ``--help``."""
    panels: dict[Panel, list[Option]] = {}
    for option in declared(kind):
        if not _is_said_elsewhere(option, ALSO_TAKES.get(kind)):
            panels.setdefault(option.shown_in, []).append(option)
    ordered = sorted(panels, key=lambda panel: panel.position)
    return "\n\n".join(_titled(panel.title, panels[panel]) for panel in ordered)


def _is_said_elsewhere(option: Option, other: type | None) -> bool:
    """Whether another command, whose options are not repeated, has this one
    with the same default.
    """
    if other is None:
        return False
    return any(
        option.name == theirs.name and option.default == theirs.default
        for theirs in declared(other)
    )


def _titled(title: str, options: Sequence[Option]) -> str:
    rows = [f"**{title}**", "", "| flag | type | default | meaning |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option.required else _shown(option.default)
        in_yaml = option.marker(OnlyInYaml) is not None
        flag = f"`{option.name}:`" if in_yaml else f"`--{option.name}`"
        rows.append(f"| {flag} | {_values(option)} | {default} | {_escaped(option.help)} |")
    return "\n".join(rows)


def _values(option: Option) -> str:
    """Which values an option takes: the names of a table, or what its type says."""
    choices = option.marker(NamesOf)
    if choices is not None:
        return ", ".join(f"`{name}`" for name in choices.names())
    return _type_name(option.type)


def _type_name(hint: object) -> str:
    arguments = [a for a in typing.get_args(hint) if a is not type(None) and a is not ...]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if typing.get_origin(hint) is tuple:
        return f"{_type_name(arguments[0])} …"
    if arguments:
        return _type_name(arguments[0])
    return {
        "Path": "path",
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "on/off",
    }.get(getattr(hint, "__name__", ""), "list")


def _shown(default: object) -> str:
    if default is None or default == ():
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
