"""Options of dataloader/pack.py."""

from dataclasses import dataclass
from pathlib import Path

from dataloader.errors import InputError
from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count, NonNegativeInt, Positive, ShareText
from model_utils.settings.options.common import CommonOptions
from model_utils.settings.options.data import FilterOptions, LabelOptions


@panel("What is packed, and how", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Pack data into shards of compact arrays with checksums, split without leaks."""

    common: CommonOptions
    filters: FilterOptions
    labels: LabelOptions
    input: tuple[Path, ...]
    """What to pack: data of any format, known by ending or content: extended-XYZ files, LMDBs, directories or patterns of shards, packed data, HDF5 of mace_prepare_data, files of ASE, outputs of VASP, Quantum Espresso, CP2K, FHI-aims."""
    output_dir: Path
    """A new folder; with --split it gets one folder for each part. Repeated after a kill, the command goes on."""
    rows_per_shard: Count = 20000
    """Structures of one shard."""
    r_max: Positive | None = None
    """Store the neighbour lists within this cutoff (Å); models with it or a shorter one need not compute them."""
    split: tuple[str, ...] = ()
    """Shares, for example `train=0.8 valid=0.1 test=0.1`; the first is the pool."""
    id_key: str | None = None
    """Name of the records' identifier; equal ones stay together, and ID files speak of it."""
    group_key: str | None = None
    """Name of an entry (trajectory, system); records of one group stay in one part."""
    valid_ids: Path | None = None
    """File of the identifiers, one on each line, that are the fixed validation set."""
    test_ids: Path | None = None
    """File of the identifiers, one on each line, that are the final test set."""
    stages: tuple[Count, ...] = ()
    """Sizes of nested subsets of the pool; each becomes `stage_<size>.json` beside its manifest, which --lmdb_train takes."""
    drop_duplicates: bool = False
    """Leave out structures that repeat another; they are reported in any case."""
    allow_missing_labels: bool = False
    """Pack structures without energy or forces too."""
    seed: NonNegativeInt = 123
    """Seed of the split and of the pool's order."""
    share: ShareText | None = None
    """Do one of several equal shares of the work beside other processes, counted from 0: `3/64`, or `$SLURM_ARRAY_TASK_ID/64` in a job array. Every share is started twice: first it looks at its structures, and when all have looked, it writes its shards; the last one finishes. What is written is the same, byte for byte, however many shares there are."""
    wait_for_shares: bool = False
    """With --share: wait until the others have looked, which must be running, in place of the second start."""
    finish: bool = False
    """After the shares: see that none is missing, and write manifests and report."""

    def __post_init__(self) -> None:
        if self.finish and self.share is not None:
            raise InputError(
                "--finish and --share are two things; give the shares first, then "
                "--finish without --share"
            )
        if self.wait_for_shares and self.share is None:
            raise InputError(
                "--wait_for_shares is given but no --share; there is nothing to "
                "wait for, leave it out"
            )
        if (self.valid_ids or self.test_ids) and self.id_key is None:
            raise InputError(
                "ID files are given but not what they speak of; name the identifier with --id_key"
            )
