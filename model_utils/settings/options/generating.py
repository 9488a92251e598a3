"""Options of generate.py and judge.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count, Duration, NonNegative, NonNegativeInt, Positive
from model_utils.settings.options.common import CommonOptions, DeviceOptions
from model_utils.settings.options.simulating import MinimizingOptions
from model_utils.settings.table_names import FORMS_OF_STEP, NamesOf

NAMES_OF_GENERATORS = NamesOf("model_utils.generation.generators", "GENERATORS")
NAMES_OF_MATCHERS = NamesOf("model_utils.judging.matching", "MATCHERS")


@panel("What is asked for", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class WantedCrystals:
    """Composition and size of what is generated."""

    composition: tuple[str, ...] = ()
    """Formulas such as MgO or SrTiO3; a cell has one of them, or a whole multiple of it."""
    elements: tuple[str, ...] = ()
    """Elements of which compositions are drawn, where no formula is given; prototypes are filled with them."""
    space_group: tuple[Count, ...] = ()
    """Space groups (1 to 230) of random crystals; drawn from all that fit the composition unless given."""
    min_atoms: Count = 1
    """Fewest atoms of a cell."""
    max_atoms: Count = 20
    """Most atoms of a cell."""


@panel("Sources of generators", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class GeneratorSources:
    """What generators other than `random` begin with."""

    prototypes: tuple[Path, ...] = ()
    """Crystals of any format; their atoms are replaced by those of the composition or the elements, their volumes fitted to the radii, cells strained and atoms rattled."""
    rattle: NonNegative = 0.1
    """Standard deviation by which atoms of prototypes are moved (Å)."""
    strain: NonNegative = 0.05
    """Standard deviation of the strain of prototypes' cells."""
    parents: tuple[Path, ...] = ()
    """Relaxed crystals, as relax.py and judge.py write them, of which the best are mutated and crossed."""
    best: Count = 10
    """How many parents of each composition take part, those of the lowest energy."""
    input_model: tuple[Path, ...] = ()
    """Model that says the energies of parents; those that relax.py or judge.py wrote beside them unless given."""
    external_files: tuple[Path, ...] = ()
    """Crystals that another program made, of any format, and zips of cifs."""
    external_command: str | None = None
    """A command that makes crystals, run without a shell in a folder of its own; {output_dir}, {num_gen} and {seed} are filled in. What it writes as .extxyz or .xyz is taken, else its .cif files, else its zips of them: `mattergen-generate {output_dir} --pretrained_name=mattergen_base --batch_size=16`."""
    external_time_limit: Duration = 60.0
    """Minutes, or HH:MM:SS, after which the command is ended."""


@panel("Guards", 7, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """What is no candidate."""

    min_distance: Positive = 0.6
    """Shortest distance of two atoms, as a share of the sum of their covalent radii."""
    min_volume: Positive = 2.0
    """Smallest volume of an atom (Å³)."""
    max_volume: Positive = 100.0
    """Largest volume of an atom (Å³)."""
    deduplicate: bool = True
    """Leave out what pymatgen's StructureMatcher takes for a crystal that is there already."""
    duplicate_tolerance: Positive = 0.3
    """How far atoms of one crystal may lie apart, in units of the cube root of the volume of an atom; smaller values keep rattled copies apart. Tolerances of lengths (0.2) and angles (5 degrees) go with it."""
    max_tries: Count = 100
    """Attempts for each candidate that is asked for, after which it is said why there are not so many."""

    def __post_init__(self) -> None:
        if self.min_volume >= self.max_volume:
            raise InputError(
                f"--min_volume {self.min_volume:g} is not below --max_volume {self.max_volume:g}; "
                "nothing could pass"
            )


@panel("Generation", 4, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Generate candidate crystals, just as many as are asked for."""

    common: CommonOptions
    device: DeviceOptions
    output_dir: Path
    """A folder for `generated_crystals.extxyz`, `generated_crystals_cif.zip` and `generation.json`; where there cannot be so many, `GENERATION_FAILED.txt` says why. Repeated, the command gives the same bytes."""
    num_gen: Count
    """How many candidates; just as many are written, or none."""
    generator: Annotated[str, NAMES_OF_GENERATORS] = "random"
    """Symmetric random crystals; mutated and crossed parents; substituted, strained and rattled prototypes; what another program makes."""
    seed: NonNegativeInt = 123
    """Seed of everything that is drawn."""
    wanted: WantedCrystals
    sources: GeneratorSources
    guards: GuardOptions
    overwrite: bool = False
    """Begin anew in a folder that holds another generation."""

    def __post_init__(self) -> None:
        if self.wanted.min_atoms > self.wanted.max_atoms:
            raise InputError(
                f"--min_atoms {self.wanted.min_atoms} is above --max_atoms "
                f"{self.wanted.max_atoms}; nothing could pass"
            )
        for group in self.wanted.space_group:
            if group > 230:
                raise InputError(f"--space_group {group}: expected numbers from 1 to 230")


@panel("Judgement", 4, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Judge generated crystals: stable, unique, novel, under the names and
    definitions of MatterGen.
    """

    common: CommonOptions
    device: DeviceOptions
    results_dir: Path
    """Folder with `generated_crystals.extxyz`; `relaxed.extxyz`, `metrics.json`, `metrics_summary.json` and `structures.csv` are written beside it. Repeated after a kill, the command does what is missing."""
    input_model: tuple[Path, ...]
    """Model that relaxes the candidates: a `*_model.pt`, a `*_checkpoint.pt`, a `.model` of mace, or safetensors; several are a committee, whose mean counts."""
    head: str | None = None
    """Head of the model, where it has several."""
    compare_with: tuple[Path, ...] = ()
    """Another model, as the one before fine-tuning: it judges the same candidates, and both stand in the files."""
    compare_head: str | None = None
    """Head of that model, where it has several."""
    step: Annotated[str, FORMS_OF_STEP] = "fast"
    """Form of the network's arithmetic, as in training."""
    references: tuple[Path, ...] = ()
    """Known crystals of any format, elements among them: their energies are the convex hull, and what is among them is not novel. Without them energies above the hull are null."""
    reference_kind: Literal["potential", "dft"] = "potential"
    """Whose energies are the hull: the model's own, for which the references are relaxed once and kept, or the labels in their file, where you know that the model was trained on labels of the same kind."""
    reference_cache: Path | None = None
    """Folder that keeps relaxed references by the hashes of model and structures; one in your cache folder unless given."""
    relax: bool = True
    """Relax the candidates, cells too; otherwise they are judged as they are."""
    minimizing: MinimizingOptions
    structure_matcher: Annotated[str, NAMES_OF_MATCHERS] = "disordered"
    """When two crystals are one: by pymatgen's StructureMatcher, or (MatterGen's default) also where they are two orders of one alloy."""
    stability_threshold: NonNegative = 0.1
    """Largest energy above the hull of what counts as stable (eV/atom)."""
    hole_below: Positive = 0.5
    """What lies further below the hull (eV/atom) is taken for a hole of the model, and left out of the `*_trusted` values."""
    draws: Count = 2000
    """Sets of structures that are drawn for an interval of a mean."""
    draws_seed: NonNegativeInt = 0
    """Seed of these draws."""

    def __post_init__(self) -> None:
        if self.reference_kind == "dft" and not self.references:
            raise InputError(
                "--reference_kind dft says whose energies the references have; name "
                "them with --references"
            )
        if self.compare_head is not None and not self.compare_with:
            raise InputError(
                "--compare_head is given and no --compare_with; name the model, or leave it out"
            )
