"""Which structures are trained on, validated on and tested on: what lists name, what is drawn,
what is set aside. Training, and the commands that measure or check its data, choose here.
"""

from collections.abc import Mapping

from dataloader.errors import InputError
from dataloader.selection import Part, sample, split
from model_utils.run.data.id_splits import divided, require_some
from model_utils.runtime import log
from model_utils.settings.options import DataOptions


def are_chosen(options: DataOptions) -> bool:
    """Whether lists or a number of samples leave out some structures of the training data."""
    return bool(options.splits.lists()) or options.lmdb_train_samples is not None


def parts_of(
    pools: Mapping[str, Part | None], options: DataOptions, seed: int
) -> dict[str, Part | None]:
    """The structures of each role that lists name and of which a number is drawn; all of them
    where neither is asked for.

    Args:
        pools: opened data by role; None where no files are named.
        options: the lists and numbers.
        seed: of what is drawn.

    Returns:
        Data by role; None where there is neither a file nor a list.

    Raises:
        InputError: a list or a number does not fit the data, or nothing is left.
    """
    parts = divided(pools, options.splits)
    train = parts["train"]
    assert train is not None
    parts["train"] = _drawn("train", train, options.lmdb_train_samples, seed)
    require_some(train, "train")
    valid = parts.get("val")
    if valid is not None:
        parts["val"] = _drawn("val", valid, options.lmdb_val_samples, seed)
        require_some(valid, "validate")
    is_given = options.valid_fraction not in (0, DataOptions.valid_fraction)
    if is_given and (valid is not None or options.files("val")):
        log.warning(
            "warning: --valid_fraction %g changes nothing: the validation structures are named by "
            "%s; leave one of the two out",
            options.valid_fraction,
            "a file" if options.files("val") else "a list",
        )
    return parts


def _drawn(role: str, data: Part, n_samples: int | None, seed: int) -> Part:
    """The structures that are drawn where --lmdb_train_samples or --lmdb_val_samples asks
    for a number; else all.

    Raises:
        InputError: none of the sources is an LMDB, or they have fewer.
    """
    if n_samples is None:
        return data
    if all(source.in_memory for source in data.sources):
        raise InputError(
            f"--lmdb_{role}_samples {n_samples} is given but no LMDB to draw from; name "
            "one or leave it out"
        )
    drawn = sample(data, n_samples, seed)
    log.info("%s: %d of these structures are drawn (seed %d)", role, len(drawn), seed)
    return drawn


def set_aside(train: Part, options: DataOptions, seed: int) -> tuple[Part, Part]:
    """Set structures aside for validation: those that remain, and those.

    Raises:
        InputError: a sample of validation LMDBs is asked for, and there are none, or one of the
            two would be empty.
    """
    if options.lmdb_val_samples is not None:
        raise InputError(
            "--lmdb_val_samples is given but no validation LMDB; name one with --lmdb_val"
        )
    remaining, valid = split(train, options.valid_fraction, seed)
    log.info(
        "%d of these structures are set aside for validation (seed %d), %d remain",
        len(valid),
        seed,
        len(remaining),
    )
    return remaining, valid


def trained_on(pools: Mapping[str, Part | None], options: DataOptions, seed: int) -> Part:
    """The structures that a training with these options would train on.

    Args:
        pools: opened data by role; None where no files are named, and where neither lists nor
            numbers are given, as validation data then choose nothing.
        options: lists, numbers, share that is set aside; 0: none is.
        seed: of what is drawn and set aside.

    Raises:
        InputError: as ``parts_of`` and ``set_aside``.
    """
    parts = parts_of(pools, options, seed)
    train = parts["train"]
    assert train is not None
    if options.valid_fraction > 0 and parts.get("val") is None and not options.files("val"):
        train, _ = set_aside(train, options, seed)
    return train
