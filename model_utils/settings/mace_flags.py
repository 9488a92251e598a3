"""What people type who come from mace_run_train, and what it is called here: for answers and
for docs/from_mace.md.
"""

import re
from collections.abc import Collection

FLAG = re.compile(r"(?<!`)(?:finetune\.py |metadata\.py init )?--\w+")  # as a reader types it

SEVERAL = "start the command with torchrun or srun"
IN_MODEL_JSON = "the network is described in model.json"

OURS = {
    "test_dir": "use --test_file with the folder",
    "max_num_epochs": "use --epochs",
    "default_dtype": "use --dtype",
    "eval_interval": "use --validate_every",
    "valid_batch_size": "use --batch_size; validation uses the same",
    "foundation_model": "use finetune.py --input_model",
    "multiheads_finetuning": "use finetune.py",
    "restart_latest": "use --resume auto, or resume.py",
    "swa": "use --stage_two",
    "start_swa": "use --start_stage_two",
    "swa_lr": "use --stage_two_lr",
    "swa_energy_weight": "use --stage_two_energy_weight",
    "swa_forces_weight": "use --stage_two_forces_weight",
    "swa_stress_weight": "use --stage_two_stress_weight",
    "beta": "use --beta1",
    "lr_scheduler_gamma": "use --lr_gamma",
    "E0s": "E0s are atomic_energies in model.json; `metadata.py init` or `fit` computes them",
    "mean": "use atomic_inter_shift in model.json; `metadata.py fit` computes it",
    "std": "use atomic_inter_scale in model.json; `metadata.py fit` computes it",
    "scaling": "use metadata.py init --scaling",
    "statistics_file": (
        "statistics stand in model.json; `metadata.py init` takes those that a YAML of mace names"
    ),
    "compute_avg_num_neighbors": "`metadata.py fit` computes avg_num_neighbors into model.json",
    "name": "the run's name follows from --output_checkpoint",
    "work_dir": "use --output_checkpoint and --output_model",
    "model_dir": "use --output_model",
    "checkpoints_dir": "use --output_checkpoint",
    "log_dir": "train.log lies beside the checkpoint",
    "results_dir": "metrics.jsonl lies beside the checkpoint",
    "model": f"use model_class: {IN_MODEL_JSON}",
    "num_channels": f"use hidden_irreps: {IN_MODEL_JSON}",
    "max_L": f"use hidden_irreps: {IN_MODEL_JSON}",
    "num_radial_basis": f"use num_bessel: {IN_MODEL_JSON}",
    "num_cutoff_basis": f"use num_polynomial_cutoff: {IN_MODEL_JSON}",
    "interaction": f"use interaction_cls: {IN_MODEL_JSON}",
    "interaction_first": f"use interaction_cls_first: {IN_MODEL_JSON}",
    "save_cpu": "models are always saved for the CPU",
    "save_all_checkpoints": "the two newest checkpoints and the best model are kept",
    "keep_checkpoints": "the two newest checkpoints and the best model are kept",
    "distributed": SEVERAL,
    "wandb": "use --loggers wandb",
    "virials_key": "use --stress_key, which takes virials too",
    "pin_memory": "memory is pinned where the device is CUDA",
    "error_table": "RMSE and MAE of every labelled quantity are printed, none of them relative",
    "keep_isolated_atoms": "IsolatedAtom frames give reference energies and are never trained on",
    "head_key": "write `head` into the frames, or give sources a head in the YAML",
    "total_charge_key": (
        "write total_charge into the frames; model.json says in embedding_specs "
        "what the network takes"
    ),
    "total_spin_key": (
        "write total_spin into the frames; model.json says in embedding_specs "
        "what the network takes"
    ),
    "virials_weight": "use --stress_weight; virial labels are converted",
    "charges_key": "charges of atoms are not read; mace-torch adds them to dipoles as a baseline",
    "dipole_key": "use --label_keys dipole=NAME",
    "dipole_weight": (
        "use --quantity_weights dipole=WEIGHT, or --loss dipole, --loss energy_forces_dipole"
    ),
    "lora": "low-rank adapters are not offered; use finetune.py --freeze",
    "lbfgs": "use --optimizer adam or adamw",
    "launcher": SEVERAL,
    "log_level": "the log has one level; --debug shows tracebacks",
    "plot": "plot_loss.py draws metrics.jsonl, also while the run goes on; or use --tensorboard",
    "wandb_project": "use --loggers wandb, and the variable WANDB_PROJECT",
    "wandb_entity": "use --loggers wandb, and the variable WANDB_ENTITY",
    "wandb_name": "use --loggers wandb, and the variable WANDB_NAME",
    "compute_stress": "use --stress_weight",
    "enable_cueq": "use --step cueq",
    "only_cueq": "use --step cueq; files hold the same weights whatever computes",
    "enable_oeq": "use --step oeq",
    "downloads_dir": "nothing is downloaded",
    "compute_forces": "forces are always computed",
    "multi_processed_test": "use --test_file with the folder or a pattern",
    "foundation_head": "use finetune.py --copy_head, or --head of the data",
    "foundation_filter_elements": "use finetune.py --elements",
    "foundation_model_elements": "use finetune.py --elements",
    "foundation_model_readout": (
        "readouts are always taken over; --freeze and --lr_of say what they do"
    ),
    "pt_train_file": "use finetune.py --replay",
    "pt_valid_file": "name it in the YAML's sources with role: val",
    "num_samples_pt": "use finetune.py --replay_ratio, structures for each new one",
    "subselect_pt": "finetune.py draws from --replay by --seed",
    "filter_type_pt": "use --elements, which leaves out structures with others",
    "weight_pt_head": "use finetune.py --replay_weight",
    "pseudolabel_replay": "use finetune.py --replay_labels source",
    "force_mh_ft_lr": "the rate is that of --lr",
    "lora_rank": "low-rank adapters are not offered; use finetune.py --freeze",
    "lora_alpha": "low-rank adapters are not offered; use finetune.py --freeze",
    "lr_params_factors": "use --lr_of PATTERN=RATE",
    "skip_evaluate_heads": "errors of every head are printed",
    "swa_virials_weight": "use --stage_two_stress_weight; virial labels are converted",
    "beta1_schedulefree": "schedulefree is not offered; use --optimizer adam or adamw",
    "beta2_schedulefree": "schedulefree is not offered; use --optimizer adam or adamw",
    "wandb_dir": "what --loggers wandb writes lies beside the checkpoint",
    "wandb_log_hypers": "--loggers wandb is told all settings",
    "plot_frequency": "plot_loss.py draws when it is called",
    **{
        name: f"it is a field of model.json: {IN_MODEL_JSON}"
        for name in [
            "r_max",
            "radial_type",
            "pair_repulsion",
            "distance_transform",
            "apply_cutoff",
            "use_last_readout_only",
            "use_embedding_readout",
            "max_ell",
            "correlation",
            "use_reduced_cg",
            "use_so3",
            "use_agnostic_product",
            "num_interactions",
            "MLP_irreps",
            "radial_MLP",
            "hidden_irreps",
            "edge_irreps",
            "use_edge_irreps_first",
            "gate",
            "avg_num_neighbors",
            "atomic_numbers",
            "heads",
            "embedding_specs",
        ]
    },
}


# Its further settings (mace-torch 0.3.16): those of the same name, some of the above, and those
# without a counterpart.
OTHERS = frozenset(
    (
        *(
            "add_local_electron_energy",
            "allow_random_padding_pt",
            "amsgrad",
            "atomic_multipoles_max_l",
        ),
        *(
            "atomic_multipoles_smearing_width",
            "batch_size",
            "beta1_schedulefree",
            "beta2_schedulefree",
        ),
        *(
            "clip_grad",
            "compute_atomic_dipole",
            "compute_forces",
            "compute_polarizability",
            "config",
            "config_type_weights",
        ),
        *(
            "device",
            "downloads_dir",
            "dry_run",
            "elec_temp_key",
            "ema",
            "ema_decay",
            "enable_cueq",
            "enable_oeq",
        ),
        *(
            "energy_key",
            "energy_weight",
            "field_feature_max_l",
            "field_feature_norms",
            "field_feature_widths",
        ),
        *(
            "field_norm_factor",
            "field_readout_config",
            "field_si",
            "filter_type_pt",
            "fixedpoint_update_config",
        ),
        *(
            "force_mh_ft_lr",
            "forces_key",
            "forces_weight",
            "foundation_filter_elements",
            "foundation_head",
        ),
        *(
            "foundation_model_elements",
            "foundation_model_kwargs",
            "foundation_model_readout",
            "freeze",
        ),
        *(
            "huber_delta",
            "include_electrostatic_self_interaction",
            "kspace_cutoff_factor",
            "les_arguments",
            "loss",
        ),
        *(
            "lora_alpha",
            "lora_rank",
            "lr",
            "lr_factor",
            "lr_params_factors",
            "multi_processed_test",
        ),
        *(
            "num_recursion_steps",
            "num_samples_pt",
            "num_workers",
            "only_cueq",
            "optimizer",
            "patience",
        ),
        *("plot_frequency", "plot_interaction_e", "polarizability_key", "polarizability_weight"),
        *(
            "pseudolabel_replay",
            "pseudolabel_replay_compute_stress",
            "pt_train_file",
            "pt_valid_file",
        ),
        *(
            "quadrupole_feature_corrections",
            "real_pt_data_ratio_threshold",
            "return_electrostatic_potentials",
        ),
        *(
            "scheduler",
            "scheduler_patience",
            "seed",
            "skip_evaluate_heads",
            "stress_key",
            "stress_weight",
        ),
        *("train_file", "valid_file", "test_file"),
        *(
            "subselect_pt",
            "swa_dipole_weight",
            "swa_polarizability_weight",
            "swa_virials_weight",
            "valid_fraction",
        ),
        *("wandb_dir", "wandb_log_hypers", "weight_decay", "weight_pt_head"),
    )
)


OTHER_WORDS = {  # of the same name here, but not with the same words after it
    "config_type_weights": "written `bulk=2 surface=0.5`",
    "freeze": "with patterns of names in place of a number of layers",
    "optimizer": "`adam` or `adamw`",
    "scheduler": "`plateau`, `exponential` and others in place of the classes of torch",
}


def is_known(name: str) -> bool:
    """Whether mace_run_train has a setting of this name."""
    return name in OURS or name in OTHERS


def ours_for(name: str) -> str | None:
    """What to use in place of a flag of mace_run_train; None where it is not one that we know."""
    return OURS.get(name)


def table(ours: Collection[str]) -> str:
    """Every setting of mace_run_train in alphabetical order with what it is here, as Markdown.

    Args:
        ours: names of the options of a training and a fine-tuning.
    """
    rows = [
        f"| `--{name}` | {_here(name, ours)} |" for name in sorted({*OURS, *OTHERS}, key=str.lower)
    ]
    return "\n".join(["| `mace_run_train` | here |", "|---|---|", *rows])


def _here(name: str, ours: Collection[str]) -> str:
    if name in OURS:
        return FLAG.sub(r"`\g<0>`", OURS[name].removeprefix("use "))
    if name not in ours:
        return "no counterpart"
    return f"`--{name}`, {OTHER_WORDS[name]}" if name in OTHER_WORDS else f"`--{name}`"
