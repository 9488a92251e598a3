"""What is kept of a stage: its state, what decided it, what it made, how
often and how long it ran.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dataloader import durable, input_files, plain_json
from dataloader.limits import JSON_BYTES
from model_utils.files import content
from model_utils.runtime import log
from model_utils.stages.place import FORMAT, Place

State = Literal["running", "stopped", "failed", "done", "left out"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a stage.

    Attributes:
        stage: its name.
        state: ``running`` also of a stage whose process was killed.
        key: hash of ``inputs``.
        inputs: what decides its results, by name.
        model: which model it took, where it takes one.
        starts: how often it was begun or continued.
        started: when it was begun last, UTC.
        seconds: of all its starts that came to an end.
        exit_code: of its command; None while it has not ended.
        error: why it failed, one line.
        products: sha256 of the files that it made, by name below the folder of the pipeline.
        packages: versions of what computed.
    """

    stage: str
    state: State
    key: str
    inputs: Mapping[str, Any]
    model: str | None = None
    starts: int = 0
    started: str = ""
    seconds: float = 0.0
    exit_code: int | None = None
    error: str | None = None
    products: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    def with_products(self, place: Place, files: Iterable[Path]) -> "Record":
        """The record of a stage that made these files.

        Raises:
            OSError: one of them is not there.
        """
        return replace(
            self, products={place.within(path): content.file_hash(path) for path in files}
        )

    def changed_product(self, place: Place) -> str | None:
        """Name of a file that is not any more as the stage left it; None where all are."""
        for name, digest in self.products.items():
            try:
                is_same = content.file_hash(place.folder / name) == digest
            except OSError:
                is_same = False
            if not is_same:
                return name
        return None


def write(place: Place, record: Record) -> None:
    """Put a record on the disk.

    Raises:
        OSError: it cannot be written; the record before it is untouched.
    """
    text = json.dumps(
        {"format": FORMAT, **asdict(record)}, indent=2, ensure_ascii=False, default=str
    )
    durable.write_text(place.record(record.stage), text + "\n")


def read(place: Place, stage: str) -> Record | None:
    """What is known of a stage; None of one that was never begun, or whose record is
    damaged, which is said.
    """
    path = place.record(stage)
    try:
        content = plain_json.loads(input_files.read_text(path, JSON_BYTES))
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError("no record of a stage")
        return _checked(stage, content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("warning: %s cannot be read (%s); the stage is done again", path, error)
        return None


def _checked(stage: str, content: Mapping[str, Any]) -> Record:
    """A record from its JSON.

    Raises:
        ValueError, TypeError: it is of something else.
    """
    known = {item.name for item in fields(Record)}
    record = Record(**{name: value for name, value in content.items() if name in known})
    texts = (record.key, record.started)
    tables = (record.inputs, record.products, record.packages)
    numbers = (record.starts, record.seconds)
    if (
        record.stage != stage
        or record.state not in STATES
        or not all(isinstance(text, str) for text in texts)
        or not all(isinstance(table, dict) for table in tables)
        or not all(isinstance(number, int | float) for number in numbers)
    ):
        raise ValueError(f"no record of the stage {stage}")
    return record
