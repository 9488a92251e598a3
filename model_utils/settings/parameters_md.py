"""Parameters.md from the option declarations: ``python model_utils/settings/parameters_md.py`` rewrites its tables."""

import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from docstring_parser import parse_from_object

from model_utils.settings.options import (
    CheckOptions,
    ConvertOptions,
    DescribeOptions,
    DiffOptions,
    EvaluateOptions,
    ExportOptions,
    FinetuneOptions,
    MetadataFitOptions,
    MetadataInitOptions,
    PackOptions,
    ResumeOptions,
    TrainingOptions,
    TrainOptions,
    VerifyOptions,
    VerifyResumeOptions,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "Parameters.md"
TABLES: dict[str, type] = {
    "train_mace.py": TrainOptions,
    "finetune.py": FinetuneOptions,
    "resume.py": ResumeOptions,
    "verify_resume.py": VerifyResumeOptions,
    "evaluate.py": EvaluateOptions,
    "metadata.py init": MetadataInitOptions,
    "metadata.py fit": MetadataFitOptions,
    "metadata.py check": CheckOptions,
    "dataloader/pack.py": PackOptions,
    "read_model.py export": ExportOptions,
    "read_model.py verify": VerifyOptions,
    "read_model.py show": DescribeOptions,
    "read_model.py diff": DiffOptions,
    "read_model.py convert": ConvertOptions,
}
ALSO_TAKES: dict[type, type] = {VerifyResumeOptions: TrainOptions, FinetuneOptions: TrainingOptions}  # not repeated


def main() -> None:
    """Rewrite the tables between their markers; everything else in the document is written by hand."""
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """The document with every table as the declarations have it today."""
    for name, kind in TABLES.items():
        begin, end = f"<!-- options: {name} -->", "<!-- end of options -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"Parameters.md has no markers for {name}")
        replacement = f"{begin}\n{table(kind)}\n{end}"
        text = pattern.sub(lambda _, new=replacement: new, text, count=1)  # type: ignore[misc]
    return text


def table(kind: type) -> str:
    """Flag, type, default and help of every option, own options of the command first."""
    hints, helps = typing.get_type_hints(kind), _helps(kind)
    rows = ["| flag | type | default | meaning |", "|---|---|---|---|"]
    known = ALSO_TAKES.get(kind)
    for item in reversed(_by_class(kind)):
        if known is not None and item.name in {f.name: f for f in dataclasses.fields(known) if not _redefined(kind, f)}:
            continue
        default = "required" if item.default is dataclasses.MISSING else _shown(item.default)
        flag = f"`--{item.name}`" if item.name != "sources" else "`sources:`"
        rows.append(f"| {flag} | {_type_name(hints[item.name])} | {default} | {_escaped(helps[item.name])} |")
    return "\n".join(rows)


def _redefined(kind: type, inherited: dataclasses.Field[object]) -> bool:
    """Whether a class gives an option it inherits another default."""
    own = {field.name: field for field in dataclasses.fields(kind)}[inherited.name]
    return own.default != inherited.default


def _by_class(kind: type) -> list[dataclasses.Field[object]]:
    """Fields grouped by the class that declares them; the caller reverses, so that a command's own come first."""
    groups: list[list[dataclasses.Field[object]]] = []
    all_fields = {item.name: item for item in dataclasses.fields(kind)}
    for cls in reversed(kind.__mro__):
        own = [all_fields[name] for name in inspect.get_annotations(cls) if name in all_fields]
        groups.append(list(reversed(own)))
    seen: dict[str, dataclasses.Field[object]] = {}
    for group in groups:
        for item in group:
            seen.pop(item.name, None)
            seen[item.name] = item
    return list(seen.values())


def _helps(kind: type) -> dict[str, str]:
    helps: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if dataclasses.is_dataclass(cls):
            for parameter in parse_from_object(cls).params:
                helps[parameter.arg_name] = parameter.description or ""
    return helps


def _type_name(hint: object) -> str:
    arguments = [a for a in typing.get_args(hint) if a is not type(None) and a is not ...]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if typing.get_origin(hint) is tuple:
        return f"{_type_name(arguments[0])} …"
    if arguments:
        return _type_name(arguments[0])
    return {"Path": "path", "str": "text", "int": "whole number", "float": "number", "bool": "on/off"}.get(
        getattr(hint, "__name__", ""), "list"
    )


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
