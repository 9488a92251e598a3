"""What people type who come from other programs of the field, and what it is called here.

The words are those of graph-pes, NequIP and Allegro, PyTorch Lightning, the Hugging Face trainer,
fairchem and OCP, SchNetPack, DeePMD and habit. Flags of ``mace_run_train`` are in ``mace_flags``.
"""

from collections.abc import Sequence
from difflib import get_close_matches

# Of several names of ours the first that the command at hand has.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate", "learningrate", "lrate", "initial_lr", "init_lr", "base_lr", "max_lr"),
    "epochs": (
        *(
            "max_epochs",
            "max_num_epochs",
            "num_epochs",
            "n_epochs",
            "nepochs",
            "num_train_epochs",
            "epoch_num",
        ),
        *("total_epochs", "train_epochs"),
    ),
    "max_steps": (
        *(
            "num_steps",
            "n_steps",
            "steps",
            "total_steps",
            "max_iter",
            "max_iters",
            "iterations",
            "num_iterations",
        ),
        *("max_train_steps", "training_steps", "numb_steps"),
    ),
    "batch_size": (
        *(
            "bs",
            "batch",
            "train_batch_size",
            "per_device_train_batch_size",
            "mini_batch_size",
            "minibatch_size",
        ),
        *("val_batch_size", "eval_batch_size", "batchsize", "samples_per_batch"),
    ),
    "accumulate_batches": (
        *(
            "accumulate_grad_batches",
            "gradient_accumulation_steps",
            "grad_accumulation_steps",
            "grad_accum",
        ),
        *("accumulation_steps", "accum_iter"),
    ),
    "max_atoms_per_batch": (
        "max_atoms_batch",
        "max_num_atoms",
        "max_n_nodes",
        "max_nodes_per_batch",
    ),
    "max_edges_per_batch": ("max_edges", "max_n_edges", "max_num_edges"),
    "num_workers": (
        "workers",
        "n_workers",
        "dataloader_num_workers",
        "num_dataloader_workers",
        "nworkers",
        "jobs",
    ),
    "weight_decay": ("wd", "l2", "l2_regularization"),
    "clip_grad": (
        *(
            "gradient_clip_val",
            "gradient_clip",
            "grad_clip",
            "clip_grad_norm",
            "max_grad_norm",
            "gradient_clipping",
        ),
        *("clip", "grad_norm"),
    ),
    "beta1": ("adam_beta1", "betas", "momentum"),
    "beta2": ("adam_beta2",),
    "optimizer": ("optim", "opt", "optimizer_name", "optimiser"),
    "scheduler": (
        *(
            "lr_scheduler",
            "lr_schedule",
            "schedule",
            "lr_scheduler_type",
            "scheduler_type",
            "lr_policy",
        ),
        *("learning_rate_scheduler",),
    ),
    "scheduler_patience": (
        "lr_patience",
        "lr_scheduler_patience",
        "plateau_patience",
        "reduce_lr_patience",
    ),
    "lr_factor": ("lr_scheduler_factor", "reduce_lr_factor", "scheduler_factor", "plateau_factor"),
    "lr_step": ("step_size", "lr_step_size", "decay_steps"),
    "lr_gamma": ("gamma", "lr_decay", "lr_decay_rate", "decay_rate", "scheduler_gamma"),
    "min_lr": ("lr_min", "eta_min", "final_lr", "end_lr", "stop_lr", "lr_end", "minimum_lr"),
    "warmup": (
        "warmup_epochs",
        "warmup_steps",
        "warm_up",
        "lr_warmup",
        "num_warmup_steps",
        "warmup_ratio",
    ),
    "patience": (
        "early_stopping_patience",
        "early_stopping",
        "early_stop",
        "early_stop_patience",
        "stop_patience",
    ),
    "ema": ("use_ema", "ema_weights", "exponential_moving_average"),
    "ema_decay": ("ema_rate", "ema_alpha", "ema_beta", "moving_average_decay"),
    "energy_weight": (
        *(
            "energy_coefficient",
            "e_weight",
            "weight_energy",
            "energy_loss_weight",
            "energy_coeff",
            "w_energy",
        ),
        *("lambda_e", "loss_weight_energy"),
    ),
    "forces_weight": (
        *(
            "force_weight",
            "force_coefficient",
            "forces_coefficient",
            "f_weight",
            "weight_forces",
            "w_forces",
        ),
        *("forces_loss_weight", "force_loss_weight", "lambda_f", "loss_weight_force"),
    ),
    "stress_weight": (
        "stress_coefficient",
        "s_weight",
        "weight_stress",
        "stress_loss_weight",
        "virial_weight",
    ),
    "forces_loss": ("force_loss", "loss_fn", "loss_function", "loss_type", "criterion"),
    "huber_delta": ("delta", "huber_loss_delta", "smooth_l1_beta"),
    "energy_key": ("energy_label", "energy_name", "y_key", "energies_key"),
    "forces_key": ("force_key", "forces_label", "forces_name", "force_name"),
    "stress_key": ("virial_key", "stress_label", "stress_name"),
    "train_file": (
        *(
            "train_path",
            "train_data",
            "training_data",
            "train_set",
            "train",
            "train_dataset",
            "training_file",
        ),
        *(
            "training_set",
            "dataset",
            "dataset_path",
            "dataset_file_name",
            "data",
            "data_path",
            "data_root",
        ),
        *("datapath", "train_files"),
    ),
    "valid_file": (
        *(
            "val_file",
            "val_path",
            "valid_path",
            "validation_file",
            "val_data",
            "valid_data",
            "validation_data",
        ),
        *("val_set", "validation_set", "val_dataset", "valid_set"),
    ),
    "test_file": ("test_path", "test_data", "test_set", "test_dataset", "test_files"),
    "xyz_train": ("train_xyz",),
    "xyz_val": ("xyz_valid", "val_xyz"),
    "xyz_test": ("test_xyz",),
    "lmdb_train": ("train_lmdb", "lmdb_dir", "src", "lmdb_src"),
    "lmdb_val": ("lmdb_valid", "val_lmdb", "valid_lmdb", "lmdb_validation"),
    "lmdb_test": ("test_lmdb",),
    "lmdb_train_samples": (
        "n_train",
        "num_train",
        "train_samples",
        "max_train_samples",
        "train_size",
    ),
    "lmdb_val_samples": (
        "n_val",
        "n_valid",
        "num_val",
        "val_samples",
        "max_eval_samples",
        "val_size",
        "num_batches",
    ),
    "valid_fraction": (
        "val_fraction",
        "validation_split",
        "val_split",
        "val_ratio",
        "valid_ratio",
        "val_frac",
    ),
    "data_format": ("dataset_format", "file_format", "dataset_type"),
    "device": (
        "gpus",
        "gpu",
        "accelerator",
        "cuda",
        "cpu",
        "use_cuda",
        "use_gpu",
        "devices",
        "gpu_id",
        "no_cuda",
    ),
    "dtype": ("precision", "floating_point", "float_precision", "model_dtype", "fp32", "fp64"),
    "threads": (
        "num_threads",
        "n_threads",
        "torch_threads",
        "cpu_threads",
        "omp_num_threads",
        "nthreads",
    ),
    "seed": (
        "random_seed",
        "rng_seed",
        "manual_seed",
        "seed_everything",
        "random_state",
        "dataset_seed",
    ),
    "deterministic": ("cudnn_deterministic", "reproducible", "use_deterministic_algorithms"),
    "validate_every": (
        *(
            "check_val_every_n_epoch",
            "val_interval",
            "validation_interval",
            "eval_every",
            "val_every",
            "eval_epochs",
        ),
        *("eval_freq", "val_freq"),
    ),
    "validate_every_steps": (
        "val_check_interval",
        "eval_steps",
        "evaluate_every_steps",
        "disp_freq",
    ),
    "checkpoint_every_steps": (
        "save_steps",
        "save_every",
        "save_interval",
        "save_freq",
        "every_n_train_steps",
    ),
    "log_every_steps": (
        "log_every_n_steps",
        "logging_steps",
        "log_interval",
        "print_every",
        "log_freq",
        "log_every",
    ),
    "time_limit": ("max_time", "timeout", "walltime", "wall_time"),
    "best_metric": ("monitor", "metric_for_best_model", "best_by", "selection_metric"),
    "keep_best": ("save_top_k", "save_total_limit", "keep_n_best", "n_best"),
    "loss_units": ("loss_normalization", "normalize_loss"),
    "weight_schedule": (
        "loss_weight_schedule",
        "energy_weight_schedule",
        "forces_weight_schedule",
        "loss_schedule",
    ),
    "sync": ("remote_storage_sync_fun", "sync_command", "upload_command"),
    "val_ids": ("valid_ids", "validation_ids"),
    "tensorboard": ("tb", "use_tensorboard", "tensorboard_dir", "logger", "log_tensorboard"),
    "stage_two": ("swa", "stage2", "two_stage", "stagetwo"),
    "start_stage_two": (
        "start_swa",
        "stage_two_start",
        "swa_epoch_start",
        "stage_two_epoch",
        "swa_start_epoch",
    ),
    "resume": (
        *(
            "resume_from",
            "resume_from_checkpoint",
            "restart",
            "continue",
            "auto_resume",
            "ckpt_path",
            "restart_from",
        ),
        *("continue_from", "init_from_checkpoint", "checkpoint_path"),
    ),
    "overwrite": ("overwrite_output_dir", "clobber", "exist_ok"),
    "dry_run": ("fast_dev_run", "dryrun", "sanity_check", "test_run", "debug_run"),
    "output_checkpoint": (
        *("output_dir", "out_dir", "save_dir", "results_dir", "workdir", "work_dir"),
        *(
            "checkpoint_dir",
            "default_root_dir",
            "root",
            "logdir",
            "log_dir",
            "run_name",
            "checkpoint",
            "ckpt",
        ),
    ),
    "run_dir": ("experiment_name", "experiment_dir", "exp_dir", "experiment", "runs_dir"),
    "output_safetensors": ("save_path", "safetensors", "save_safetensors"),
    "scheduler_length": ("t_max", "lr_t_max", "cosine_epochs", "cosine_steps"),
    "info_file": ("dataset_info", "statistics_file_path", "stats_file"),
    "output_model": ("model_out", "save_model", "best_model", "model_output", "output_model_path"),
    "input_model": (
        *(
            "model_path",
            "model",
            "pretrained_model",
            "pretrained",
            "weights",
            "init_model",
            "base_model",
            "load",
        ),
        *(
            "foundation_model",
            "load_from",
            "model_file",
            "base_model_dir",
            "checkpoint",
            "ckpt",
            "checkpoint_path",
        ),
        *("ckpt_path", "resume_from", "restart", "resume_from_checkpoint"),
    ),
    "input_json": ("model_json", "model_config", "architecture", "model_yaml", "model_description"),
    "data": ("configs", "input_file", "structures", "data_path", "dataset", "test_path"),
    "xyz_path": ("xyz", "xyz_file", "input_xyz"),
    "lmdb_path": ("lmdb", "lmdb_file", "data_root", "lmdb_dir", "src"),
    "output_xyz": ("output", "predictions", "output_file", "out", "write_predictions"),
    "output_json": ("out_json", "metrics_file", "results_file", "output_metrics", "output", "out"),
    "output_table": ("out_csv", "csv", "output_csv"),
    "freeze": (
        "freeze_layers",
        "frozen_layers",
        "freeze_params",
        "freeze_parameters",
        "freeze_pattern",
    ),
    "E0s": ("e0", "atomic_energies", "reference_energies", "atomrefs", "e0s_method"),
    "config": (
        "config_file",
        "cfg",
        "config_yaml",
        "settings",
        "yaml",
        "config_path",
        "config_yml",
        "config_name",
    ),
    "debug": ("verbose", "traceback", "verbosity", "print_traceback"),
    "step": ("backend", "kernel", "engine", "enable_cueq", "use_cueq", "only_cueq"),
    "elements": ("species", "chemical_symbols", "type_names", "atom_types", "type_map", "zs"),
    "r_max": ("cutoff", "rcut", "r_cut", "cutoff_radius", "radial_cutoff", "rmax", "max_radius"),
    "head": ("head_name", "default_head"),
    "trust_pickle": ("allow_pickle", "trust_remote_code"),
    "reset_scheduler": ("new_scheduler", "restart_scheduler", "reset_lr_scheduler"),
    "resume_best": ("from_best", "start_from_best", "use_best"),
    "to": ("convert_to", "target", "export_format", "target_format"),
}
SEVERAL = (
    "several processes are begun by torchrun or srun: `torchrun --nproc_per_node N "
    "model_utils/train_mace.py …`"
)
NO_MIXED_PRECISION = ("bfloat16", "bf16", "float16", "fp16", "half")
NO_MIXED = "mixed precision is not offered; --dtype is float32 or float64"
# Words for what no flag of ours does.
ANSWERS: dict[str, str] = {
    "amp": NO_MIXED,
    "bf16": NO_MIXED,
    "fp16": NO_MIXED,
    "bfloat16": NO_MIXED,
    "float16": NO_MIXED,
    "half": NO_MIXED,
    "weights_only": "files are read as data alone, always; --trust_pickle is the one exception",
    "normalize_y": (
        "use --loss_units spread; `metadata.py init` puts E0s, scale and shift into model.json"
    ),
    "balance_eh_loss": (
        "use --loss_units balanced, with --energy_weight and --forces_weight as shares"
    ),
    "num_nodes": SEVERAL,
    "nnodes": SEVERAL,
    "strategy": SEVERAL,
    "ddp": SEVERAL,
    "version": "`read_model.py show` says with which version a file was written",
}
# Values that people type for an option of ours, and what is said of them.
ANSWERS_TO_VALUES: dict[str, dict[str, str]] = {
    "dtype": dict.fromkeys(NO_MIXED_PRECISION, NO_MIXED)
}


def _by_word() -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = {}
    for ours, theirs in SYNONYMS.items():
        for word in theirs:
            words[word] = (*words.get(word, ()), ours)
    return words


OURS_FOR = _by_word()


def known_word(word: str, names: Sequence[str]) -> str | None:
    """The option of a command that a word surely means.

    Args:
        word: with underscores, however it was typed.
        names: of the command's options.

    Returns:
        A name of the command's, or a sentence where no flag does it; None where
        the word is not known.
    """
    by_letters = {_letters(name): name for name in names}
    for spelling in (word, word.removeprefix("no_")):
        if _letters(spelling) in by_letters:
            return by_letters[_letters(spelling)]
        if (known := _of_the_table(spelling.lower(), names)) is not None:
            return known
    return None


def nearest(word: str, names: Sequence[str]) -> str | None:
    """The option of a command whose name, or another word for which, is
    most like a mistyped one.
    """
    near = get_close_matches(word, names, n=1)
    if near:
        return near[0]
    similar = get_close_matches(word.lower(), OURS_FOR, n=1, cutoff=0.85)
    return _of_the_table(similar[0], names) if similar else None


def _of_the_table(word: str, names: Sequence[str]) -> str | None:
    theirs = next((name for name in OURS_FOR.get(word, ()) if name in names), None)
    return theirs or ANSWERS.get(word)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
