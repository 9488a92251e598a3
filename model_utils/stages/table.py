"""The stages of a pipeline, in their order: one table, over which everything else iterates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.settings.declared import flat, names_of
from model_utils.settings.options import (
    FORMAT_FLAGS,
    FilterOptions,
    FinetuneOptions,
    LabelOptions,
    PipelineOptions,
)
from model_utils.stages.place import Place

Settings = Mapping[str, Any]
AFTER_RELAXATION = (  # options of judge.py that decide no relaxation of a candidate
    "references",
    "reference_kind",
    "reference_cache",
    "compare_with",
    "compare_head",
    "structure_matcher",
    "stability_threshold",
    "hole_below",
    "draws",
    "draws_seed",
)
DATA_FLAGS = ("data", *(f"{name}_path" for name in FORMAT_FLAGS))  # by which evaluate.py takes data
KEYS = ("energy", "forces", "stress", "charge", "spin")  # of a source of its own


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a stage finds when its turn comes.

    Attributes:
        place: of the pipeline.
        options: of the pipeline.
        section: what the file of settings says of the stage.
        finetuning: options of the fine-tuning; None of that stage itself.
        done: stages that are done.
    """

    place: Place
    options: PipelineOptions
    section: Settings
    finetuning: FinetuneOptions | None
    done: frozenset[str]

    @property
    def has_finetuned(self) -> bool:
        """Whether there is a fine-tuned model."""
        return "finetune" in self.done

    @property
    def model(self) -> Path:
        """The model that relaxes and judges: the fine-tuned one, or the
        baseline where there is none.
        """
        return self.place.finetuned_model if self.has_finetuned else self.options.input_model

    @property
    def model_name(self) -> str:
        """Which of the two that is, for people."""
        return "fine-tuned" if self.has_finetuned else "baseline"


@dataclass(frozen=True, kw_only=True)
class Filled:
    """Settings of a stage that are not typed.

    Attributes:
        own: are the pipeline's alone.
        unless_given: hold where the section says nothing of them.
        leaves_out: names in the section that are for another stage of it.
    """

    own: Settings = field(default_factory=dict)
    unless_given: Settings = field(default_factory=dict)
    leaves_out: tuple[str, ...] = ()


def _nothing_else(_: Place) -> Mapping[str, Path]:
    return {}


def _nothing(_: Place) -> tuple[Path, ...]:
    return ()


def _never(_: Situation) -> str | None:
    return None


def _candidates(place: Place) -> Mapping[str, Path]:
    """What is read of the folder of results: the candidates; everything
    else there is made of them.
    """
    return {"results_dir": place.candidates}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command of ours as a part of a pipeline.

    Attributes:
        script: below model_utils/.
        what: it does, for people.
        filled: settings that it gets from the pipeline.
        needs: stages without which it has nothing to do.
        takes_model: whether the fine-tuned model, or else the baseline, decides what it makes.
        reads: files that are read in place of a folder which an option names,
            by name of the option.
        left_out: why it is not to be done at all, by its settings; None where it is.
        products: files that it makes.
        section: of the file of settings that says how; the one of its own name unless given.
        clears: folders and files that go before it is done anew.
    """

    script: str
    what: str
    filled: Callable[[Situation], Filled]
    products: Callable[[Place], tuple[Path, ...]]
    section: str = ""
    clears: Callable[[Place], tuple[Path, ...]] = _nothing
    needs: tuple[str, ...] = ()
    takes_model: bool = False
    reads: Callable[[Place], Mapping[str, Path]] = _nothing_else
    left_out: Callable[[Situation], str | None] = _never


def _finetune(found: Situation) -> Filled:
    epochs = found.options.max_epochs
    return Filled(
        own={
            "input_model": found.options.input_model,
            "output_checkpoint": found.place.finetuned_checkpoint,
            "resume": "auto",
            **({} if epochs is None else {"epochs": epochs}),
        }
    )


def _compare(found: Situation) -> Filled:
    return Filled(
        own={
            "input_model": found.place.finetuned_model,
            "compare_with": found.options.input_model,
            "output_json": found.place.comparison,
            "overwrite": True,
        },
        unless_given=_compared_data(found),
    )


def _compared_data(found: Situation) -> dict[str, Any]:
    """Names of labels and filters, which are those of the fine-tuning, and its data where
    the section names none.

    Raises:
        InputError: there are none, or they have settings of their own, which
            the comparison has not.
    """
    assert found.finetuning is not None  # its settings are looked at before those of others
    data = found.finetuning.data
    everything = {**flat(data.labels), **flat(data.filters)}
    given = {name: everything[name] for name in names_of(LabelOptions) + names_of(FilterOptions)}
    given["eval_on_free_atoms"] = data.eval_on_free_atoms
    if any(found.section.get(name) for name in DATA_FLAGS):
        return given
    files = data.files("test") or data.files("val")
    if not files:
        raise InputError(
            "the section finetune names neither test nor validation data; name data in "
            "the section compare"
        )
    if data.splits.lists():
        raise InputError(
            "the section finetune divides its data by lists of identifiers, which the comparison "
            "cannot: it would be of structures that were trained on; name data in the section "
            "compare"
        )
    formats = {file.format for file in files}
    if len(formats) > 1 or any(
        any(getattr(file, f"{name}_key") for name in KEYS) for file in files
    ):
        raise InputError(
            "the data have settings of their own in the list of sources; name data in "
            "the section compare"
        )
    return {**given, "data": [file.path for file in files], "data_format": formats.pop()}


def _generate(found: Situation) -> Filled:
    number = found.options.num_gen
    own: Settings = {"output_dir": found.place.generated}
    return Filled(own=own if number is None else {**own, "num_gen": number})


def _relax(found: Situation) -> Filled:
    own = {"results_dir": found.place.generated, "input_model": [found.model]}
    of_baseline = _head_of_baseline(found)
    return Filled(
        own={**own, **of_baseline.own}, leaves_out=(*AFTER_RELAXATION, *of_baseline.leaves_out)
    )


def _judge(found: Situation) -> Filled:
    baseline = {"compare_with": [found.options.input_model]} if found.has_finetuned else {}
    own = {"results_dir": found.place.generated, "input_model": [found.model]}
    of_baseline = _head_of_baseline(found)
    return Filled(
        own={**own, **of_baseline.own},
        unless_given=baseline,
        leaves_out=of_baseline.leaves_out,
    )


def _head_of_baseline(found: Situation) -> Filled:
    """The baseline's head where it takes the place of the fine-tuned model, whose head
    may have another name.

    The section calls it ``compare_head``, unless it names a third model to compare with.
    """
    if found.has_finetuned or found.section.get("compare_with"):
        return Filled()
    head = found.section.get("compare_head")
    return Filled(own={} if head is None else {"head": head}, leaves_out=("head", "compare_head"))


def _not_to_be_relaxed(found: Situation) -> str | None:
    is_wanted = found.section.get("relax", True)
    return None if is_wanted else "the section judge says that candidates are judged as they are"


def _relaxations(place: Place) -> tuple[Path, ...]:
    """Journals of relaxations, which judge.py goes on with; each is called by what it is of."""
    return tuple(sorted((place.generated / "judging").glob("*.jsonl")))


def _judged_files(place: Place) -> tuple[Path, ...]:
    names = ("relaxed.extxyz", "metrics.json", "structures.csv")
    return (*(place.generated / name for name in names), place.judged)


STAGES: dict[str, Stage] = {
    "finetune": Stage(
        script="finetune.py",
        what="fine-tuning",
        filled=_finetune,
        products=lambda place: (place.finetuned_model, place.finetuned_checkpoint),
        clears=lambda place: (place.finetuned_model.parent,),
    ),
    "compare": Stage(
        script="evaluate.py",
        what="comparison of baseline and fine-tuned model",
        filled=_compare,
        products=lambda place: (place.comparison,),
        clears=lambda place: (place.comparison,),
        needs=("finetune",),
    ),
    "generate": Stage(
        script="generate.py",
        what="generation of candidates",
        filled=_generate,
        products=lambda place: (
            place.candidates,
            place.generated / "generated_crystals_cif.zip",
            place.generated / "generation.json",
        ),
        clears=lambda place: (place.generated,),
    ),
    "relax": Stage(
        script="judge.py",
        section="judge",
        what="relaxation of the candidates",
        filled=_relax,
        products=_relaxations,
        needs=("generate",),
        takes_model=True,
        reads=_candidates,
        left_out=_not_to_be_relaxed,
    ),
    "judge": Stage(
        script="judge.py",
        what="judgement of the candidates",
        filled=_judge,
        products=_judged_files,
        needs=("generate",),
        takes_model=True,
        reads=_candidates,
    ),
}
