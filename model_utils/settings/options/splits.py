"""Options that divide data by lists of identifiers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dataloader.errors import InputError
from model_utils.settings.declared import MAY_CHANGE, InResume, panel

MOVED = InResume("Where the list is now; it must name the same structures.")


@panel("Data by lists of identifiers", 13)
@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which structures are trained on, validated on and tested on, by their identifiers."""

    train_ids: Annotated[Path | None, MAY_CHANGE, MOVED] = None
    """File of the identifiers, one on each line, to train on; those of the training data that no other list names unless given. `dataloader/pack.py --id_key` writes such files."""
    val_ids: Annotated[Path | None, MAY_CHANGE, MOVED] = None
    """File of the identifiers to validate on: of the validation data, or of the training data where no others are named."""
    test_ids: Annotated[Path | None, MAY_CHANGE, MOVED] = None
    """File of the identifiers to test the best model on at the end, in the same way. An identifier in two files is an error."""
    id_key: Annotated[str | None, MAY_CHANGE, InResume("As in training.")] = None
    """Name of the records' identifier, of which the lists speak, as `sid`. With it every structure is read once before training, and what training, validation and test data share is said."""
    group_key: Annotated[str | None, MAY_CHANGE, InResume("As in training.")] = None
    """Name of an entry (trajectory, system): groups that lie in two of the three are said."""

    def __post_init__(self) -> None:
        if (self.lists() or self.group_key) and self.id_key is None:
            raise InputError(
                "lists of identifiers are given but not what they speak of; name it with --id_key"
            )

    def lists(self) -> dict[str, Path]:
        """The files that are given, by train, val and test."""
        named = {"train": self.train_ids, "val": self.val_ids, "test": self.test_ids}
        return {role: path for role, path in named.items() if path is not None}
