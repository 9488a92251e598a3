"""What people write for other training toolkits, and what it is here: one table for the YAML
and for the documents.

Three toolkits are covered: dipm, whose YAML has the sections model, dataset and train; a template
for torch with run folders and flags to resume; and mlip, whose training is called from Python. A
row with ``take`` is a key of a YAML: it is accepted in a file of settings of ``train_mace.py`` and
``finetune.py``, within its section or flat. The others are commands, flags and calls.
``docs/other_toolkits.md`` has all of them, and a test for every row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model_utils.settings import taken
from model_utils.settings.taken import Asked, as_is, nothing_needed, renamed

Toolkit = Literal["dipm", "template", "mlip"]
# a key with its value → settings of ours, or fields of the network
Take = Callable[[Asked], Mapping[str, Any]]
OF_TEMPLATES = ("data", "optim", "loss", "ckpt")  # sections
TOOLKITS: dict[Toolkit, str] = {
    "dipm": "dipm: a YAML of three sections",
    "template": "Templates for torch: run folders and resuming",
    "mlip": "mlip: a training from Python",
}


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """One thing that people write elsewhere.

    Attributes:
        toolkit: whose it is.
        theirs: as it is written there; of a key of a YAML ``section.key``.
        ours: what it is here, for the documents.
        take: what a file of settings makes of it; None where it is no key of one.
    """

    toolkit: Toolkit
    theirs: str
    ours: str
    take: Take | None = None

    @property
    def section(self) -> str:
        """Section of the YAML that it stands in."""
        return self.theirs.partition(".")[0]

    @property
    def key(self) -> str:
        """Name within the section."""
        return self.theirs.partition(".")[2] or self.theirs


def _dipm(theirs: str, ours: str, take: Take | None = None) -> Counterpart:
    return Counterpart(toolkit="dipm", theirs=theirs, ours=ours, take=take)


def _template(theirs: str, ours: str, take: Take | None = None) -> Counterpart:
    return Counterpart(toolkit="template", theirs=theirs, ours=ours, take=take)


def _mlip(theirs: str, ours: str) -> Counterpart:
    return Counterpart(toolkit="mlip", theirs=theirs, ours=ours)


IN_THE_NETWORK = "of the network in `model.json`"

COUNTERPARTS: tuple[Counterpart, ...] = (
    _dipm("python scripts/train.py train.yaml", "`python model_utils/train_mace.py train.yaml`"),
    _dipm(
        "model.pretrained",
        "a fine-tuning, `finetune.py --input_model`; its structure stays",
        renamed("input_model"),
    ),
    _dipm(
        "model.drop_force_head",
        "accepted, and said: forces of MACE are the slope of the energy, there is no head to drop",
        nothing_needed(
            "forces of MACE are the slope of its energy, there is no force head to drop"
        ),
    ),
    _dipm(
        "model.target",
        "`model_class`; `MACE` is what `mace_run_train` builds, `ScaleShiftMACE`, and `NequIP` is "
        "`ZEmbeddingNequIP`",
        taken.target,
    ),
    _dipm("model.seed", "`--seed`", as_is),
    _dipm("model.dtype", "`--dtype`; of `bfloat16` as below", taken.precision),
    _dipm(
        "model.num_layers",
        f"`num_interactions` {IN_THE_NETWORK}",
        taken.field_of_network("num_interactions"),
    ),
    _dipm("model.num_channels", f"with `max_L` `hidden_irreps` {IN_THE_NETWORK}", taken.channels),
    _dipm("model.max_L", f"with `num_channels` `hidden_irreps` {IN_THE_NETWORK}", taken.channels),
    _dipm("model.node_symmetry", "as `max_L`", taken.channels),
    _dipm("model.l_max", f"`max_ell` {IN_THE_NETWORK}", taken.field_of_network("max_ell")),
    _dipm("model.lmax", f"`max_ell` {IN_THE_NETWORK}", taken.field_of_network("max_ell")),
    _dipm("model.num_rbf", f"`num_bessel` {IN_THE_NETWORK}", taken.field_of_network("num_bessel")),
    _dipm(
        "model.num_radial_basis",
        f"`num_bessel` {IN_THE_NETWORK}",
        taken.field_of_network("num_bessel"),
    ),
    _dipm(
        "model.num_cutoff_basis",
        f"`num_polynomial_cutoff` {IN_THE_NETWORK}",
        taken.field_of_network("num_polynomial_cutoff"),
    ),
    _dipm("model.activation", f"`gate` {IN_THE_NETWORK}", taken.field_of_network("gate")),
    _dipm("dataset.train_dataset_paths", "`--train_file`, any format", renamed("train_file")),
    _dipm("dataset.valid_dataset_paths", "`--valid_file`", renamed("valid_file")),
    _dipm("dataset.test_dataset_paths", "`--test_file`", renamed("test_file")),
    _dipm("dataset.graph_cutoff_angstrom", f"`r_max` {IN_THE_NETWORK}", taken.cutoff),
    _dipm("dataset.batch_size", "`--batch_size`", as_is),
    _dipm(
        "dataset.info_file", "`--info_file`: E0s, neighbours, scale and shift, measured once", as_is
    ),
    _dipm("train.num_epochs", "`--epochs`", renamed("epochs")),
    _dipm(
        "train.loss",
        "`--loss` where it is one of ours, else the shape of all terms: `MSELoss`, `huber_loss` …",
        taken.loss,
    ),
    _dipm("train.extended_metrics", "accepted: all metrics are always written", nothing_needed()),
    _dipm(
        "train.parallel",
        "accepted, and said: `torchrun` or `srun` say how many processes there are",
        nothing_needed("how many processes there are, torchrun or srun says"),
    ),
    _dipm(
        "train.dtype",
        "`--dtype`; `bfloat16` is answered: there is no mixed precision, float32 is used",
        taken.precision,
    ),
    _dipm(
        "train.save_path",
        "`--output_safetensors`; with `--run_dir` in the folder of the run",
        taken.save_path,
    ),
    _dipm(
        "train.stage_splits",
        "`--stage_two --start_stage_two`, from shares of the epochs; the rate goes on",
        taken.splits,
    ),
    _dipm(
        "train.energy_weights",
        "`--energy_weight`, `--stage_two_energy_weight`",
        taken.weights("energy"),
    ),
    _dipm(
        "train.forces_weights",
        "`--forces_weight`, `--stage_two_forces_weight`",
        taken.weights("forces"),
    ),
    _dipm(
        "train.tensorboard",
        "`--loggers tensorboard`; events lie beside the checkpoint",
        taken.logger,
    ),
    _dipm(
        "train.wandb",
        "`--loggers wandb` where the package is installed, else answered",
        taken.logger,
    ),
    _dipm(
        "train.final_learning_rate",
        "`--min_lr`, and said without a `scheduler`: `cosine` ends there, plateau may not",
        taken.final_rate,
    ),
    _dipm("train.peak_learning_rate", "`--lr`", renamed("lr")),
    _dipm(
        "train.init_learning_rate",
        "accepted, and said: a warm-up begins near zero",
        nothing_needed("a warm-up (--warmup) begins near zero and rises to --lr"),
    ),
    _dipm("train.warmup_steps", "`--warmup` with `--scheduler_unit step`", taken.warmup_steps),
    _dipm(
        "train.transition_steps",
        "accepted, and said: a schedule ends with the run, or after `--scheduler_length`",
        nothing_needed(
            "a schedule ends with the run; --scheduler cosine with --scheduler_length ends earlier"
        ),
    ),
    _dipm("train.random_seed", "`--seed`", renamed("seed")),
    _dipm(
        "train.use_ema_params_for_eval",
        "accepted, and said: with `--ema` the average is what is judged",
        nothing_needed("with --ema the average of the weights is what is judged, else they are"),
    ),
    _dipm(
        "train.run_eval_at_start",
        "accepted: there is a validation before the first step",
        nothing_needed(),
    ),
    _dipm(
        "train.eval_num_graphs",
        "accepted, and said: every validation is of all structures",
        nothing_needed("every validation is of all structures; give fewer in --valid_file"),
    ),
    _dipm("train.grad_norm", "`--clip_grad`", renamed("clip_grad")),
    _dipm(
        "train.num_gradient_accumulation_steps",
        "`--accumulate_batches`",
        renamed("accumulate_batches"),
    ),
    _dipm("train.local_model_output_dir", "`--output_checkpoint`", renamed("output_checkpoint")),
    _dipm("train.restore_checkpoint_if_exists", "`--resume`", taken.resume),
    _dipm(
        "train.restore_optimizer_state",
        "accepted; `false` is answered: `--resume --resume_best` begins with fresh moments",
        taken.moments,
    ),
    _template(
        "scripts/train.py --config FILE --exp_name NAME",
        "`train_mace.py --config FILE --exp_name NAME`, `--run_dir runs/NAME`",
    ),
    _template("exp_name", "`--run_dir runs/NAME`", taken.experiment),
    _template("runs/NAME/RUN_ID/", "the same; `runs/NAME/latest` leads to the newest"),
    _template("config.resolved.yaml", "the same"),
    _template("metrics.jsonl", "the same"),
    _template("last.pth", "`RUN_ID_checkpoint.pt`"),
    _template("best.pth", "`RUN_ID_model.pt`"),
    _template("--resume", "`--resume`, the same as `--resume auto`"),
    _template("resume", "`--resume`", taken.resume),
    _template(
        "--resume --lr RATE",
        "with `--resume_new_lr`: alone, another rate is another run in a `--run_dir`, and "
        "refused at a place",
    ),
    _template("--resume --resume_best --lr RATE", "the same"),
    _template("--resume --resume_new_lr", "the same; the rate is that of `--lr` or of the YAML"),
    _template("--resume --resume_reset_scheduler", "the same, or `--reset_scheduler`"),
    _template(
        "scheduler.name",
        "`--scheduler`: `step`, `cosine`, `onecycle` and others",
        taken.schedule("scheduler"),
    ),
    _template(
        "scheduler.t_max",
        "`--scheduler_length`; afterwards the rate stays low",
        taken.schedule("scheduler_length"),
    ),
    _template("scheduler.eta_min", "`--min_lr`", taken.schedule("min_lr")),
    _template("scheduler.step_size", "`--lr_step`", taken.schedule("lr_step")),
    _template(
        "scheduler.gamma",
        "`--lr_factor` of `step` and `plateau`, `--lr_gamma` of `exponential`",
        taken.gamma,
    ),
    _template(
        "optim.name", "`--optimizer`; `lr` and `weight_decay` beside it", renamed("optimizer")
    ),
    _template("data.name", "accepted: a name that nothing depends on", nothing_needed()),
    _template("loss.name", "as `train.loss`; without one, the default", taken.loss),
    _template("loss.normalize_y", "`--loss_units spread`", taken.loss_units("spread")),
    _template("loss.balance_eh_loss", "`--loss_units balanced`", taken.loss_units("balanced")),
    _template("scripts/eval.py", "`evaluate.py --input_model … --data …`"),
    _template(
        "scripts/infer.py",
        "`evaluate.py --data … --output_xyz predicted.xyz`; labels are not needed",
    ),
    _template("scripts/plot_loss.py", "`plot_loss.py`, with the same flags"),
    _template("--train_ids FILE --val_ids FILE", "the same: names of the records of each part"),
    _template("--normalize_y", "`--loss_units spread`"),
    _template("--balance_eh_loss", "`--loss_units balanced`, in which weights are shares"),
    _template("plug-ins that register themselves", "`--plugin my_code.py`, which adds to tables"),
    _mlip("TrainingLoop(…).run()", "`run = api.train(options)`"),
    _mlip("training_loop.training_state", "`run.state`"),
    _mlip("training_loop.best_model", "`run.best_model`"),
    _mlip("training_loop.test(data)", "`run.test(path)`"),
    _mlip(
        "save_model_to_zip(model)",
        "`--output_safetensors`, or `read_model.py convert --to safetensors`",
    ),
    _mlip("load_parameters_from_checkpoint(path)", "`api.opened(path).best_model`"),
    _mlip("should_parallelize=True", "`torchrun model_utils/train_mace.py …`"),
    _mlip("MSELoss()", "`--loss terms`, the default"),
    _mlip("HuberLoss()", "`--loss huber`"),
    _mlip(
        "piecewise_constant_schedule(1.0, {100: 25.0})",
        "`--weight_schedule energy=piecewise:0=1,100=25 forces=piecewise:0=25,100=1`",
    ),
    _mlip(
        "get_default_mlip_optimizer(OptimizerConfig(…))",
        "`--optimizer --lr --weight_decay --clip_grad --accumulate_batches --warmup --ema`",
    ),
    _mlip(
        "TrainingIOHandler.Config(local_model_output_dir=…)",
        "`--output_checkpoint`, or `--run_dir` for a folder each",
    ),
    _mlip(
        "dataset_info.json",
        "`--info_file`, of a network that the YAML describes; else the numbers "
        "stand in `model.json`",
    ),
    _mlip(
        "io_handler.attach_logger(function)", '`--plugin` with `LOGGERS["mine"] = hook(function)`'
    ),
    _mlip("log_metrics_to_line", "the log, always"),
    _mlip("log_metrics_to_table", "`--loggers rich`"),
    _mlip(
        "remote_storage_sync_fun",
        "`--sync 'rsync -a \"$RUN_FOLDER\" …'`, a command that runs after each checkpoint",
    ),
)


def keys(section: str | None = None) -> dict[str, Take]:
    """What a file of settings makes of the keys that are not ours, of a section or (None)
    where they stand flat.
    """
    rows = [row for row in COUNTERPARTS if row.take is not None]
    if section is not None:
        return {
            row.key: row.take for row in rows if row.section == section and row.take is not None
        }
    # a flat file has no fields of the network, no nested schedule and no sections of templates
    return {
        row.key: row.take
        for row in rows
        if row.section not in ("model", "scheduler", *OF_TEMPLATES) and row.take is not None
    }


def table() -> str:
    """The table as the documents have it, a titled part for each toolkit."""
    parts = []
    for toolkit, title in TOOLKITS.items():
        rows = [row for row in COUNTERPARTS if row.toolkit == toolkit]
        lines = [f"**{title}**", "", "| there | here |", "|---|---|"]
        lines += [f"| `{row.theirs}` | {row.ours} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
