"""summary.json: the whole pipeline in one file, made of the records of its stages
and of what they wrote.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataloader import input_files, plain_json
from dataloader.limits import JSON_BYTES
from model_utils.run.folder.run_record import packages
from model_utils.runtime import log
from model_utils.stages.place import FORMAT, Place
from model_utils.stages.planning import Plan
from model_utils.stages.records import Record

COMPARED = ("baseline", "finetuned", "delta", "delta_intervals", "p_values", "n_configs", "n_atoms")
KEYS = ("checkpoint", "metrics", "generation_dir", "generation_eval")  # which every summary has


def text_of(plan: Plan, kept: Mapping[str, Record]) -> str:
    """The summary as its file holds it.

    Args:
        plan: of the pipeline.
        kept: records of the stages that had their turn.
    """
    return json.dumps(content_of(plan, kept), indent=2, ensure_ascii=False, default=str) + "\n"


def content_of(plan: Plan, kept: Mapping[str, Record]) -> dict[str, Any]:
    """What the summary says; paths are those below the folder of the pipeline, so that they
    hold where it is moved.
    """
    place = plan.place
    return {
        "checkpoint": _unless_failed(
            kept, "finetune", lambda: place.within(place.finetuned_checkpoint)
        ),
        "metrics": _unless_failed(kept, "compare", lambda: _comparison(place)),
        "generation_dir": _unless_failed(kept, "generate", lambda: place.within(place.generated)),
        "generation_eval": _unless_failed(kept, "judge", lambda: _read(place.judged)),
        "model": _model(place, kept),
        "stages": {name: _stage(record) for name, record in kept.items()},
        "versions": dict(packages()),
        "format": FORMAT,
    }


def _unless_failed(kept: Mapping[str, Record], stage: str, value: Any) -> Any:
    """A value of a stage; ``{"error": …}`` where it failed, None where it had no turn yet."""
    record = kept.get(stage)
    if record is None:
        return None
    if record.state != "done":
        return {"error": record.error}
    try:
        return value()
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def _comparison(place: Place) -> dict[str, Any]:
    content = _read(place.comparison)
    return {name: content[name] for name in COMPARED if name in content}


def _model(place: Place, kept: Mapping[str, Record]) -> dict[str, Any] | None:
    """Which model relaxed and judged."""
    record = kept.get("judge") or kept.get("relax")
    if record is None or record.model is None:
        return None
    path = place.within(place.finetuned_model) if record.model == "fine-tuned" else None
    digests = record.inputs.get("input_model")
    return {
        "is": record.model,
        "path": path,
        "sha256": digests[0] if isinstance(digests, list | tuple) else digests,
    }


def _stage(record: Record) -> dict[str, Any]:
    shown = {
        "state": record.state,
        "key": record.key,
        "exit_code": record.exit_code,
        "starts": record.starts,
        "started": record.started,
        "seconds": round(record.seconds, 3),
        "products": dict(record.products),
        "inputs": dict(record.inputs),
    }
    return {"error": record.error, **shown} if record.error is not None else shown


def _read(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a stage.

    Raises:
        OSError, ValueError: it cannot be read, or holds something else.
    """
    try:
        content = plain_json.loads(input_files.read_text(path, JSON_BYTES))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def say_if_lost(place: Place) -> None:
    """Say that the summary is made again, where stages have records and it is gone or damaged."""
    if not list(place.records.glob("*.json")) or not any(
        path != place.mark for path in place.records.glob("*.json")
    ):
        return
    try:
        content = _read(place.summary)
        missing = [name for name in KEYS if name not in content]
        reason = f"it has no {missing[0]}" if missing else None
    except FileNotFoundError:
        reason = "it is not there"
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason is not None:
        log.warning(
            "warning: %s is made again from the records of the stages: %s", place.summary, reason
        )


def lines(place: Place, kept: Mapping[str, Record]) -> Iterator[str]:
    """A table of the stages for the log."""
    for name, record in kept.items():
        end = f": {record.error}" if record.error is not None else ""
        yield f"{name:9s} {record.state:8s} {record.seconds:8.1f} s{end}"
    yield f"wrote {place.summary}"
