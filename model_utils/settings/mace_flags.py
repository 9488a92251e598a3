"""What people type who come from mace_run_train, and what it is called here."""

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
    "statistics_file": "statistics stand in model.json",
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
    "error_table": "all metrics are printed",
    "keep_isolated_atoms": "IsolatedAtom frames give reference energies and are never trained on",
    "head_key": "write `head` into the frames, or give sources a head in the YAML",
    "total_charge_key": "write total_charge into the frames; model.json says in embedding_specs what the network takes",
    "total_spin_key": "write total_spin into the frames; model.json says in embedding_specs what the network takes",
    "virials_weight": "use --stress_weight; virial labels are converted",
    "charges_key": "charges of atoms are not read; mace-torch adds them to dipoles as a baseline",
    "dipole_key": "use --label_keys dipole=NAME",
    "dipole_weight": "use --quantity_weights dipole=WEIGHT, or --loss dipole, --loss energy_forces_dipole",
    "lora": "low-rank adapters are not offered; use finetune.py --freeze",
    "lbfgs": "use --optimizer adam or adamw",
    "launcher": SEVERAL,
    "log_level": "the log has one level; --debug shows tracebacks",
    "plot": "plot_loss.py draws metrics.jsonl, also while the run goes on; or use --tensorboard",
    "wandb_project": "use --loggers wandb, and the variable WANDB_PROJECT",
    "wandb_entity": "use --loggers wandb, and the variable WANDB_ENTITY",
    "wandb_name": "use --loggers wandb, and the variable WANDB_NAME",
    "compute_stress": "use --stress_weight",
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


# Its further settings (mace-torch 0.3.16), which have the same name here or no counterpart.
OTHERS = frozenset(
    (
        *("add_local_electron_energy", "allow_random_padding_pt", "amsgrad", "atomic_multipoles_max_l"),
        *("atomic_multipoles_smearing_width", "batch_size", "beta1_schedulefree", "beta2_schedulefree"),
        *(
            "clip_grad",
            "compute_atomic_dipole",
            "compute_forces",
            "compute_polarizability",
            "config",
            "config_type_weights",
        ),
        *("device", "downloads_dir", "dry_run", "elec_temp_key", "ema", "ema_decay", "enable_cueq", "enable_oeq"),
        *("energy_key", "energy_weight", "field_feature_max_l", "field_feature_norms", "field_feature_widths"),
        *("field_norm_factor", "field_readout_config", "field_si", "filter_type_pt", "fixedpoint_update_config"),
        *("force_mh_ft_lr", "forces_key", "forces_weight", "foundation_filter_elements", "foundation_head"),
        *("foundation_model_elements", "foundation_model_kwargs", "foundation_model_readout", "freeze"),
        *("huber_delta", "include_electrostatic_self_interaction", "kspace_cutoff_factor", "les_arguments", "loss"),
        *("lora_alpha", "lora_rank", "lr", "lr_factor", "lr_params_factors", "multi_processed_test"),
        *("num_recursion_steps", "num_samples_pt", "num_workers", "only_cueq", "optimizer", "patience"),
        *("plot_frequency", "plot_interaction_e", "polarizability_key", "polarizability_weight"),
        *("pseudolabel_replay", "pseudolabel_replay_compute_stress", "pt_train_file", "pt_valid_file"),
        *("quadrupole_feature_corrections", "real_pt_data_ratio_threshold", "return_electrostatic_potentials"),
        *("scheduler", "scheduler_patience", "seed", "skip_evaluate_heads", "stress_key", "stress_weight"),
        *("train_file", "valid_file", "test_file"),
        *("subselect_pt", "swa_dipole_weight", "swa_polarizability_weight", "swa_virials_weight", "valid_fraction"),
        *("wandb_dir", "wandb_log_hypers", "weight_decay", "weight_pt_head"),
    )
)


def is_known(name: str) -> bool:
    """Whether mace_run_train has a setting of this name."""
    return name in OURS or name in OTHERS


def ours_for(name: str) -> str | None:
    """What to use in place of a flag of mace_run_train; None where it is not one that we know."""
    return OURS.get(name)
