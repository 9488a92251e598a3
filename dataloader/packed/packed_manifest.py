"""The manifest of a packed data set: its shards with their checksums, and from what
and how they were made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import durable, input_files, plain_json
from dataloader.errors import InputError
from dataloader.limits import JSON_BYTES

NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """A packed data set: its folder, and what its manifest says of its shards."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def shards(self) -> list[Path]:
        """Files of the shards, in order."""
        return [self.folder / shard["file"] for shard in self.content["shards"]]

    def compare(self, digests: Sequence[str | None]) -> None:
        """Compare the sha256 of the shards, as their indexes have them, with those of the manifest.

        Raises:
            InputError: a shard is another than the one that was packed.
        """
        for shard, digest in zip(self.content["shards"], digests, strict=True):
            if shard["sha256"] != digest:
                raise InputError(
                    f"{self.folder / shard['file']} is not the shard that was packed: its sha256 "
                    f"is {digest}, {NAME} has {shard['sha256']}; copy it again"
                )


def is_name(name: str) -> bool:
    """Whether a file is called like a manifest: of a data set, or of a staged subset of it."""
    return name == NAME or (name.startswith("stage_") and name.endswith(".json"))


def beside(path: Path) -> Manifest | None:
    """The manifest of a directory, or that is named itself; None where there is none.

    Raises:
        InputError: it is damaged, or names a file outside its directory.
    """
    file = path / NAME if path.is_dir() else path
    if not is_name(file.name) or not file.exists():
        return None
    try:
        content = plain_json.loads(input_files.read_text(file, JSON_BYTES))
        shards = content["shards"]
        names = [shard["file"] for shard in shards if isinstance(shard["sha256"], str)]
        if content["format"] != FORMAT or not names or len(names) != len(shards):
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is no manifest of dataloader/pack.py ({error}); pack the data again"
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise InputError(
                f"{file} names the shard {name!r:.80}; expected the name of a file beside it"
            )
    return Manifest(file.parent, content)


def write_manifests(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    stages: Sequence[int],
    work: Path,
) -> None:
    """Write the manifest of one split, and one for each of its stages.

    Args:
        folder: of the shards.
        entries: what is said of each shard, in order; shards end where a stage ends.
        about: the split and what was asked for.
        stages: numbers of structures.
        work: folder of the same file system where files lie until they are whole.
    """
    content = {"format": FORMAT, **about}
    rows = np.cumsum([entry["rows"] for entry in entries])
    for size in stages:
        part = list(entries[: int(np.searchsorted(rows, size)) + 1])
        write_json(folder / f"stage_{size}.json", content | {"rows": size, "shards": part}, work)
    write_json(folder / NAME, content | {"rows": int(rows[-1]), "shards": list(entries)}, work)


def write_json(path: Path, content: Mapping[str, Any], work: Path) -> None:
    """Written in the work folder, which goes when all is done, and named when it is on the disk."""
    with durable.text_stream(path, made_in=work) as file:
        json.dump(content, file, indent=1, sort_keys=True)
