"""What people type who come from mace_run_train, and what it is called here."""

IN_MODEL_JSON = "the network is described in model.json"

OURS = {
    "train_file": "use --xyz_train (or --lmdb_train)",
    "valid_file": "use --xyz_val (or --lmdb_val)",
    "test_file": "use --xyz_test (or --lmdb_test)",
    "test_dir": "use --xyz_test with all its files",
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
    "loss": "use --energy_loss, --forces_loss, --stress_loss",
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
    "distributed": "one process on one device for now",
    "wandb": "use --tensorboard, or read metrics.jsonl",
    "virials_key": "use --stress_key, which takes virials too",
    "pin_memory": "memory is pinned where the device is CUDA",
    "error_table": "all metrics are printed",
    "compute_stress": "use --stress_weight",
    "config_type_weights": "write config_weight into the frames, or give sources a weight in the YAML",
    **{
        name: f"it is a field of model.json: {IN_MODEL_JSON}"
        for name in (
            "r_max radial_type pair_repulsion distance_transform apply_cutoff use_last_readout_only use_embedding_readout "
            "max_ell correlation use_reduced_cg use_so3 use_agnostic_product num_interactions MLP_irreps radial_MLP "
            "hidden_irreps edge_irreps use_edge_irreps_first gate avg_num_neighbors atomic_numbers heads embedding_specs"
        ).split()
    },
}


def ours_for(name: str) -> str | None:
    """What to use in place of a flag of mace_run_train; None where it is not one that we know."""
    return OURS.get(name)
