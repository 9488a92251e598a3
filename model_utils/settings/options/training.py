"""Options of a training, in groups: loss, optimizer, second stage, how long
it runs, what it writes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import FIXED, MAY_CHANGE, OF_THE_COMMAND, InResume, panel
from model_utils.settings.option_types import (
    Count,
    Decay,
    Duration,
    Factor,
    NonNegative,
    NonNegativeInt,
    Positive,
    Rate,
    StepsOfProof,
    WeightDecay,
)
from model_utils.settings.options.common import CommonOptions, DeviceOptions
from model_utils.settings.options.data import BatchOptions, DataOptions
from model_utils.settings.options.objective import JudgingOptions
from model_utils.settings.options.running import InlineModelOptions, RunningOptions
from model_utils.settings.table_names import FORMS_OF_STEP, NamesOf

SCHEDULES_OF_TORCH = (
    ("ReduceLROnPlateau", "plateau"),
    ("ExponentialLR", "exponential"),
    ("StepLR", "step"),
    ("CosineAnnealingLR", "cosine"),
    ("OneCycleLR", "onecycle"),
)


@panel("Loss: weights and shapes of its terms", 30)
@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Weights and shapes of the loss terms."""

    loss: Annotated[str, NamesOf("losses", "LOSSES"), FIXED] = "terms"
    """The whole loss: `terms`, every term with the shape that --energy_loss, --forces_loss … give it; `mse` and `huber` of all errors; and mace-torch's: `weighted` (squared errors of energy and forces), `ef` (with weights of 1), `forces_only`, `stress`, `virials` (squared errors of V/N times the stress), `l1l2energyforces`, `universal` (Huber, of forces with a smaller --huber_delta where the label is large), and of networks of dipoles `dipole` and `energy_forces_dipole` (weight 1 of the dipole unless --quantity_weights gives one, where mace-torch multiplies by 100 besides)."""
    energy_weight: Annotated[NonNegative, FIXED] = 1.0
    """Weight of the mean over configurations of the loss of (ΔE / atoms)."""
    forces_weight: Annotated[NonNegative, FIXED] = 100.0
    """Weight of the mean over force components."""
    stress_weight: Annotated[NonNegative | None, FIXED] = None
    """Weight of the mean over the nine stress components; 0: stress is not trained. 0 unless given, but 1 with `--loss stress` and `--loss virials`."""
    energy_loss: Annotated[str | None, NamesOf("losses", "SHAPES"), FIXED] = None
    """Shape of the energy term; mse unless given."""
    forces_loss: Annotated[str | None, NamesOf("losses", "SHAPES"), FIXED] = None
    """Shape of the forces term; mse unless given. l2norm is the mean over atoms of the length of the force error."""
    stress_loss: Annotated[str | None, NamesOf("losses", "SHAPES"), FIXED] = None
    """Shape of the stress term; mse unless given."""
    quantity_weights: Annotated[tuple[str, ...], FIXED] = ()
    """Weights of the terms of quantities beside energy, forces and stress, as `dipole=10`: of networks of dipoles (e·Å, components per atom), and of what a plug-in adds; 0 unless given, or as --loss has them."""
    quantity_losses: Annotated[tuple[str, ...], FIXED] = ()
    """Shapes of these terms, as `dipole=huber`; mse unless given."""
    huber_delta: Annotated[Positive, FIXED] = 0.01
    """Where Huber turns from square to linear, in eV/atom, eV/Å and eV/Å³, or in the unit that --loss_units gives."""
    weight_schedule: Annotated[tuple[str, ...], FIXED] = ()
    """Weights that change with the epoch: `QUANTITY=COURSE:EPOCH=WEIGHT,…`, where COURSE is `piecewise`, `linear` or `constant`, as `energy=piecewise:0=1,100=25 forces=linear:0=100,50=10`. Validations are judged by the weights that the schedules end with."""
    loss_units: Annotated[Literal["absolute", "spread", "balanced"], FIXED] = "absolute"
    """`absolute`: errors in eV/atom, eV/Å, eV/Å³. `spread`: in units of the standard deviation of the labels that are trained on, which is kept with the run (`loss_units.json`); give --energy_weight and --forces_weight near 1 then, the defaults are for `absolute`. `balanced`: the same, and the weights are shares of their sum."""

    def __post_init__(self) -> None:
        weights = (self.energy_weight, self.forces_weight, self.stress_weight or 0.0)
        if (
            not any(weights)
            and not self.quantity_weights
            and not self.weight_schedule
            and self.loss == "terms"
        ):
            raise InputError(
                "all loss weights are 0; give at least one of --energy_weight, "
                "--forces_weight, --stress_weight"
            )


@panel("Optimizer, learning rate and average", 32)
@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights are moved."""

    optimizer: Annotated[str, NamesOf("optimizer", "OPTIMIZERS"), FIXED] = "adam"
    """adam adds weight decay to the gradient, adamw takes it from the weight."""
    lr: Annotated[Rate, FIXED] = 0.01
    """Learning rate."""
    weight_decay: Annotated[WeightDecay, FIXED] = 5e-7
    """Weight decay; never on biases, norms, scales, shifts and scalars."""
    amsgrad: Annotated[bool, FIXED] = True
    """Keep the largest second moment (Reddi et al. 2018), as mace does."""
    beta1: Annotated[Decay, FIXED] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[Decay, FIXED] = 0.999
    """Decay of the second moment."""
    freeze: Annotated[tuple[str, ...], FIXED] = ()
    """Leave parameters as they are: patterns of names, for example `node_embedding.*` `interactions.0.*`."""
    lr_of: Annotated[tuple[str, ...], FIXED] = ()
    """Learning rates of their own: `PATTERN=RATE`, for example `readouts.*=0.001`; the first pattern that fits counts, the schedule acts on all alike."""
    clip_grad: Annotated[NonNegative, FIXED] = 10.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate_batches: Annotated[Count, FIXED] = 1
    """Batches per optimizer step, shared by all processes; the loss is that of one large batch."""
    step_parts: Annotated[Count | None, MAY_CHANGE] = None
    """Parts of equal cost to which a step is dealt, a multiple of the number of processes and at least
    `accumulate_batches`: with the same number, any number of processes that divides it gives the same bits. 1 where one
    process trains, else 8 or the next larger number that fits."""
    scheduler: Annotated[
        str, NamesOf("optimizer", "SCHEDULES", words=SCHEDULES_OF_TORCH), FIXED
    ] = "plateau"
    """Learning-rate schedule."""
    scheduler_unit: Annotated[Literal["epoch", "step"], FIXED] = "epoch"
    """Whether schedule and warm-up count epochs or optimizer steps."""
    scheduler_patience: Annotated[NonNegativeInt, FIXED] = 50
    """plateau: validations that are no better (by `--best_metric`) before the rate is reduced."""
    lr_factor: Annotated[Factor, FIXED] = 0.8
    """plateau and step: factor of a reduction."""
    lr_step: Annotated[Count, FIXED] = 100
    """step: epochs or steps between reductions."""
    lr_gamma: Annotated[Factor, FIXED] = 0.9993
    """exponential: factor per epoch or step."""
    min_lr: Annotated[NonNegative, FIXED] = 0.0
    """Lower end of every schedule, the warm-up aside."""
    warmup: Annotated[NonNegative, FIXED] = 0.0
    """Length of the linear warm-up in epochs or steps; onecycle takes 30 % of the run unless given."""
    ema: Annotated[bool, FIXED] = False
    """Keep an exponential moving average of the weights; validation, the best model and schedules then look at it."""
    ema_decay: Annotated[Decay, FIXED] = 0.99
    """Decay of the average."""

    def __post_init__(self) -> None:
        self.rates_by_pattern()

    def rates_by_pattern(self) -> dict[str, float]:
        """Learning rates of --lr_of, by pattern of parameter names.

        Raises:
            InputError: one is not PATTERN=RATE.
        """
        rates = {}
        for text in self.lr_of:
            pattern, _, rate = text.partition("=")
            if pattern in rates:
                raise InputError(f"--lr_of names {pattern} twice; leave one of the two out")
            try:
                rates[pattern] = float(rate)
            except ValueError:
                rates[pattern] = 0.0
            if not pattern or not 0 < rates[pattern] <= 1e30:
                raise InputError(
                    f"--lr_of {text!r} is not PATTERN=RATE, for example readouts.*=0.001"
                )
        return rates


@panel("Second stage", 34)
@dataclass(frozen=True, kw_only=True)
class StageTwoOptions:
    """A second stage with other loss weights and rate (mace's SWA stage)."""

    stage_two: Annotated[bool, FIXED] = False
    """Train a second stage; its best model becomes the model of the run, stage one's is kept under its own name."""
    start_stage_two: Annotated[Count | None, FIXED] = None
    """Epochs of stage one; three quarters of all unless given."""
    stage_two_lr: Annotated[Rate, FIXED] = 0.001
    """Learning rate of stage two."""
    stage_two_energy_weight: Annotated[NonNegative, FIXED] = 1000.0
    """Energy weight of stage two."""
    stage_two_forces_weight: Annotated[NonNegative, FIXED] = 100.0
    """Forces weight of stage two."""
    stage_two_stress_weight: Annotated[NonNegative | None, FIXED] = None
    """Stress weight of stage two; that of stage one unless given."""

    def __post_init__(self) -> None:
        if self.start_stage_two is not None and not self.stage_two:
            raise InputError(
                "--start_stage_two is given but --stage_two is not; add --stage_two or drop it"
            )


@panel("How long, how often, with which seed", 20)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How long, how often, with which seed."""

    epochs: Annotated[
        Count,
        MAY_CHANGE,
        InResume(
            "Passes over the training data in all, those done included. Without --lr or "
            "--reset_scheduler cosine and onecycle keep the end they had and hold their last rate, "
            "which must not be 0."
        ),
    ] = 100
    """Passes over the training data."""
    max_steps: Annotated[
        Count | None,
        MAY_CHANGE,
        InResume("Optimizer steps in all, those done included."),
    ] = None
    """Stop after this many optimizer steps, whatever the epoch."""
    patience: Annotated[
        Count | None,
        MAY_CHANGE,
        InResume("Validations that are no better (by `--best_metric`) after which the run ends."),
    ] = None
    """Stop (or go on to stage two) after this many validations that are no better (by `--best_metric`). A run stops at once, with --validate_every_steps within an epoch; stage two begins at the end of the epoch."""
    seed: Annotated[NonNegativeInt, FIXED] = 123
    """Seed of initial weights, order and split."""
    step: Annotated[str, FORMS_OF_STEP, FIXED] = "fast"
    """Form of the network's arithmetic: `fast` does the same in less time, on the same weights; `reference` is mace-torch's own module; `cueq` and `oeq` are its modules over cuequivariance and openequivariance, for CUDA, compared with the reference on the first batch. A network that the fast one does not cover runs the reference, and the log says so."""
    physics_gate: Annotated[Literal["refuse", "warn", "off"], OF_THE_COMMAND] = "refuse"
    """Before the first step of a network that is not MACE's own: `refuse` one whose forces are no slopes, or that depends on where atoms are, on their order, on what else is in a batch, or fails on a single atom, and warn of one that depends on how a structure is turned or jumps at the cutoff; `warn` of all of these; `off`."""
    deterministic: Annotated[bool, MAY_CHANGE] = False
    """On CUDA: only operations whose sums have a fixed order, at some cost. The CPU's always have."""
    validate_every: Annotated[Count, FIXED] = 1
    """Epochs between validations; the end of a stage and that of the run are validated in any case."""
    validate_every_steps: Annotated[Count | None, FIXED] = None
    """Optimizer steps between validations, in place of epochs."""
    checkpoint_every_steps: Annotated[Count | None, MAY_CHANGE] = None
    """Optimizer steps between checkpoints, besides the one after each epoch."""
    checkpoint_every_minutes: Annotated[Positive | None, MAY_CHANGE] = None
    """Minutes between checkpoints, besides the one after each epoch."""
    log_every_steps: Annotated[Count | None, MAY_CHANGE] = None
    """Optimizer steps between records in metrics.jsonl, besides those of each epoch."""
    time_limit: Annotated[
        Duration | None,
        MAY_CHANGE,
        InResume("As in training; the limit of the stored run does not count."),
    ] = None
    """Stop in time, saved and with exit code 75, when the run has lasted so long: minutes, or HH:MM:SS."""
    tensorboard: Annotated[bool, MAY_CHANGE] = False
    """Write TensorBoard events beside the checkpoint; short for `--loggers tensorboard`."""
    loggers: Annotated[
        tuple[str, ...],
        NamesOf("model_utils.run.loggers", "LOGGERS"),
        MAY_CHANGE,
        InResume("As in training; those of the run unless given."),
    ] = ()
    """What hears of the run's records besides the log and metrics.jsonl: `rich`, a table in the log after each validation; `tensorboard`, events; `csv`, the table `metrics.csv`; `wandb`, Weights & Biases, which its own variables steer (WANDB_MODE=offline, WANDB_PROJECT); or what a plug-in adds. One that fails is reported once; none delays or stops the run."""
    sync: Annotated[
        str | None,
        MAY_CHANGE,
        InResume("As in training; that of the stored run is not kept."),
    ] = None
    """A command for the shell after each checkpoint, in a process of its own, as `rsync -a "$RUN_FOLDER" host:backup/`; it finds $RUN_FOLDER, $RUN_CHECKPOINT and $RUN_MODEL in its environment. It is stored nowhere: give it again with each start."""
    dry_run: Annotated[bool, OF_THE_COMMAND] = False
    """Build everything, take one step on the largest batch, print sizes, memory and time, write nothing."""
    as_ranks: Annotated[Count | None, OF_THE_COMMAND] = None
    """With --dry_run: say what each of so many processes would get of a step, and how long they would wait for one another."""

    def __post_init__(self) -> None:
        if self.as_ranks is not None and not self.dry_run:
            raise InputError(
                "--as_ranks says what a run would do; give --dry_run too, or start it "
                "with torchrun or srun"
            )


@panel("What is written", 40)
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the run writes."""

    output_checkpoint: Annotated[
        Path,
        MAY_CHANGE,
        InResume(
            "Continue at another place, which then gets the best models and records so far; at "
            "its own unless given."
        ),
    ]
    """A directory `run/` for `run/run_checkpoint.pt`, or a file ending in .pt or .pth; left out where `run_dir` is given."""
    output_model: Annotated[
        Path | None,
        MAY_CHANGE,
        InResume("The same for the best model."),
    ] = None
    """Place of the best model: a directory `run/` for `run/run_model.pt`, or a file; beside the checkpoint unless given."""
    overwrite: Annotated[bool, OF_THE_COMMAND] = False
    """Start although the place holds another run's files; they are removed when training begins."""
    resume: Annotated[Literal["auto"] | None, OF_THE_COMMAND] = None
    """auto (or nothing after the flag): continue the run that lies at the output place, or start it where there is none."""
    export_mace_model: Annotated[bool, MAY_CHANGE] = True
    """At the end also write `<name>.model`, the bare module that mace's calculator opens."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise InputError(
                "--resume and --overwrite contradict each other: one keeps the run that is "
                "there, one removes it"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Everything of a training but where the network comes from."""

    common: CommonOptions
    device: DeviceOptions
    data: DataOptions
    batches: BatchOptions
    loss: LossOptions
    optimizer: OptimizerOptions
    stage_two: StageTwoOptions
    judging: JudgingOptions
    run: RunOptions
    running: RunningOptions
    output: OutputOptions

    def __post_init__(self) -> None:
        self.data.check()


@panel("The network", 5)
@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a MACE model from a model.json."""

    input_json: Annotated[Path, MAY_CHANGE]
    """Description of the network; ten lines are enough, `metadata.py init` writes one from data. Not with a section `model` in the YAML."""
    inline: InlineModelOptions


StateItem = Literal["moments", "schedule", "average", "position", "best_loss", "metrics_offset"]


@panel("The proof", 18, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class VerifyResumeOptions(TrainOptions):
    """Run some steps straight and once more with a kill -9 in the middle, resume, and
    compare to the last bit.

    Takes all settings of train_mace.py; --output_checkpoint is the folder that gets the two runs.
    """

    steps: StepsOfProof = 20
    """Optimizer steps of each of the two runs."""
    planted_fault: StateItem | None = None
    """Let the checkpoint forget this before the run is resumed: shows that the comparison would find it."""
