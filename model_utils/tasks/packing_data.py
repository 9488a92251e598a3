"""What dataloader/pack.py does: options to sources and a recipe, and what is said of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dataloader import id_lists
from dataloader.data_file import Source, SourceSpec
from dataloader.formats import format_of
from dataloader.labels import TO_EVALUATE, TO_TRAIN
from dataloader.lmdb_shards.indexing import index_shards
from dataloader.packed import packed_manifest, packing
from dataloader.packed.recipe import PackingRecipe
from dataloader.packed.shard_writer import IDS_ENDING
from dataloader.packed.splitting import parse_shares
from dataloader.portion import Portion
from dataloader.sources import open_sources
from model_utils.errors import cannot_write
from model_utils.run.data.data_log import describe_source
from model_utils.run.data.open_data import filters_of, numbers_of
from model_utils.runtime import log, start_log
from model_utils.settings import terms
from model_utils.settings.options import PackOptions
from model_utils.tasks.own_portion import own_portion

KEPT = ("sid", "fid")  # names that travel with a record, besides labels, charge, spin and weights


def pack(options: PackOptions) -> None:
    """Pack, and say what became of the structures.

    Raises:
        InputError: an input cannot be used, or the folder cannot be written.
    """
    start_log()
    recipe = _recipe(options)
    portion = own_portion(options.share)
    sources = _sources(options, portion)
    for source in sources:
        log.info("%s: %d structures, %d atoms", source.path, len(source), source.n_atoms.sum())
        describe_source(source, "are not packed: give them to metadata.py")
        for text, count in source.census.notes.items():
            log.info("  %s: %d structures", text, count)
    try:
        report = _packed(
            options, packing.Packing(sources, options.output_dir, recipe, log.info), portion
        )
    except OSError as error:
        raise cannot_write(f"--output_dir {options.output_dir}", error) from None
    if report is not None:
        log.info(
            "packed into %s; read it with %s",
            options.output_dir,
            _flags(options.output_dir, recipe),
        )
        for path in sorted(options.output_dir.glob(f"*{IDS_ENDING}")):
            log.info("  identifiers (--id_key %s): %s", options.id_key, path)


def _packed(options: PackOptions, work: packing.Packing, portion: Portion) -> dict[str, Any] | None:
    """The report of what is packed; None where other shares have not done theirs."""
    if options.finish:
        return packing.finish(work)
    if portion.is_whole:
        return packing.pack(work)
    of_launcher = options.share is None  # then all run at once
    return packing.pack_share(work, portion, wait=options.wait_for_shares or of_launcher)


def _recipe(options: PackOptions) -> PackingRecipe:
    """How the structures are to be split and written, with the identifiers of
    the sets that are fixed.
    """
    listed = {
        split: frozenset(id_lists.read(path, f"--{split}_ids").ids)
        for split, path in (("valid", options.valid_ids), ("test", options.test_ids))
        if path is not None
    }
    return PackingRecipe(
        rows_per_shard=options.rows_per_shard,
        r_max=options.r_max,
        max_neighbors=options.filters.max_neighbors,
        id_key=options.id_key,
        group_key=options.group_key,
        shares=parse_shares(options.split),
        listed=listed,
        stages=sorted(set(options.stages)),
        drop_duplicates=options.drop_duplicates,
        seed=options.seed,
        elements=_elements(options),
    )


def _elements(options: PackOptions) -> tuple[int, ...] | None:
    """Atomic numbers of --elements; None where the option was not given."""
    numbers = numbers_of(options.filters.elements)
    return None if numbers is None else tuple(numbers)


def _sources(options: PackOptions, portion: Portion) -> list[Source]:
    """The data, opened and filtered; structures with a charge are kept,
    whatever model will read them.

    LMDBs of this share are indexed first: those of others are, meanwhile, by them, or
    else by this process too.
    """
    keep = tuple(
        dict.fromkeys([*KEPT, *(name for name in (options.id_key, options.group_key) if name)])
    )
    keys = terms.label_keys(options.labels)
    specs = [
        SourceSpec(path=path, format=format_of(path), keys=keys, keep=keep)
        for path in options.input
    ]
    if not portion.is_whole:
        index_shards(specs, portion)
    return open_sources(
        specs,
        needs=TO_EVALUATE if options.allow_missing_labels else TO_TRAIN,
        max_dropped=options.filters.max_dropped,
        filters=replace(
            filters_of(options.filters, keep_charges=True), elements=_elements(options)
        ),
    )


def _flags(folder: Path, recipe: PackingRecipe) -> str:
    """The flags that read what was packed: of each part where it was split."""
    parts = tuple(dict.fromkeys([*recipe.shares, *recipe.listed]))
    written = [name for name in parts if (folder / name / packed_manifest.NAME).is_file()]
    if not written:
        return f"--lmdb_train {folder}"
    roles = {"train": "train", "valid": "val", "val": "val", "validation": "val"}
    otherwise = ["train", *["test"] * len(written)]  # the first is the pool
    return " ".join(
        f"--lmdb_{roles.get(name, other)} {folder / name}"
        for name, other in zip(written, otherwise, strict=False)
    )
