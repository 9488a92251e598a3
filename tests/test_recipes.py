"""configs/recipes against the settings of the scripts that they were taken from, which
are written down here.
"""

from typing import Any

import pytest
from test_documents import completed

from conftest import ROOT
from model_utils.models import description
from model_utils.settings import reading
from model_utils.settings.options import TrainOptions
from model_utils.tasks.mace_yaml import MACE_SETTINGS

RECIPES = ROOT / "configs" / "recipes"
OURS = {  # a setting of mace_run_train with another name here
    **MACE_SETTINGS,
    "max_num_epochs": "epochs",
    "default_dtype": "dtype",
    "swa": "stage_two",
    "start_swa": "start_stage_two",
    "swa_lr": "stage_two_lr",
    "swa_forces_weight": "stage_two_forces_weight",
    "swa_energy_weight": "stage_two_energy_weight",
    "mean": "atomic_inter_shift",
    "std": "atomic_inter_scale",
    "E0s": "atomic_energies",
}
DEFAULTS: dict[str, Any] = {  # of mace_run_train 0.3.16, where a script says nothing
    "default_dtype": "float64",
    "max_ell": 3,
    "correlation": 3,
    "num_radial_basis": 8,
    "num_cutoff_basis": 5,
    "num_interactions": 2,
    "MLP_irreps": "16x0e",
    "lr": 0.01,
    "lr_factor": 0.8,
    "scheduler_patience": 50,
    "weight_decay": 5e-7,
    "amsgrad": True,
    "clip_grad": 10,
    "ema_decay": 0.99,
    "interaction": "RealAgnosticResidualInteractionBlock",
    "pair_repulsion": False,
    "distance_transform": "None",
    "swa": False,
}
MPTRJ: dict[str, Any] = {
    "loss": "universal",
    "energy_weight": 1,
    "forces_weight": 10,
    "num_interactions": 2,
    "correlation": 3,
    "max_ell": 3,
    "r_max": 6.0,
    "num_radial_basis": 10,
    "MLP_irreps": "16x0e",
    "lr": 0.005,
    "weight_decay": 1e-8,
    "ema": True,
    "ema_decay": 0.995,
    "scheduler_patience": 5,
    "batch_size": 16,
    "seed": 1,
    "clip_grad": 100,
}
MP_0: dict[str, Any] = {
    **MPTRJ,
    "stress_weight": 100,
    "interaction_first": "RealAgnosticResidualInteractionBlock",
    "interaction": "RealAgnosticResidualInteractionBlock",
    "max_num_epochs": 200,
    "patience": 50,
}
DENSITY: dict[str, Any] = {
    "interaction_first": "RealAgnosticDensityInteractionBlock",
    "interaction": "RealAgnosticDensityResidualInteractionBlock",
    "pair_repulsion": True,
    "distance_transform": "Agnesi",
    "mean": 0.0,  # --model MACE
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "mace_mp_0_small": {**MP_0, "hidden_irreps": "128x0e"},
    "mace_mp_0_medium": {**MP_0, "hidden_irreps": "128x0e+128x1o", "forces_weight": 1},
    "mace_mp_0_large": {**MP_0, "hidden_irreps": "128x0e+128x1o+128x2e"},
    "mace_mp_0b3_medium": {
        **MPTRJ,
        **DENSITY,
        "hidden_irreps": "128x0e+128x1o",
        "stress_weight": 10,
        "ema_decay": 0.99999,
        "max_num_epochs": 100,
        "patience": 40,
    },
    "mace_mpa_0_medium": {
        **DENSITY,
        "std": 1.0,
        "hidden_irreps": "128x0e+128x1o",
        "r_max": 6.0,
        "energy_weight": 1,
        "forces_weight": 10,
        "stress_weight": 10,
        "batch_size": 16,
        "ema": True,
        "ema_decay": 0.999,
        "weight_decay": 1e-8,
        "seed": 1,
        "clip_grad": 10,
    },
    "mace_off23_medium": {
        "interaction_first": "RealAgnosticInteractionBlock",  # which --model MACE takes
        "mean": 0.0,
        "hidden_irreps": "128x0e+128x1o",
        "correlation": 3,
        "r_max": 5.0,
        "loss": "weighted",
        "forces_weight": 1000,
        "energy_weight": 40,
        "weight_decay": 5e-10,
        "clip_grad": 1.0,
        "batch_size": 128,
        "max_num_epochs": 190,
        "scheduler_patience": 20,
        "patience": 50,
        "ema": True,
        "swa": True,
        "start_swa": 115,
        "swa_lr": 0.00025,
        "swa_forces_weight": 10,
        "swa_energy_weight": 1000,
        "seed": 123,
        "E0s": {
            35: -70045.28385080204,
            6: -1030.5671648271828,
            17: -12522.649269035726,
            9: -2715.318528602957,
        }
        | {
            1: -13.571964772646918,
            53: -8102.524593409054,
            7: -1486.3750255780376,
            8: -2043.933693071156,
        }
        | {15: -9287.407133426237, 16: -10834.4844708122},
    },
}


def test_every_recipe_is_compared() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_settings_of_its_script(name: str) -> None:
    options = reading.parse(
        TrainOptions, [str(RECIPES / f"{name}.yaml"), "--train_file", "x.xyz", "--run_dir", "run"]
    )
    assert options is not None
    settings = reading.as_plain(options)
    network = completed(settings["network"])
    wrong = {}
    for theirs, value in {**DEFAULTS, **PUBLISHED[name]}.items():
        ours = OURS.get(theirs, theirs)
        found = settings[ours] if ours in settings else of_the_network(network, ours)
        if found != value:
            wrong[theirs] = (found, value)
    assert wrong == {}


def of_the_network(network: description.ModelDescription, field: str) -> Any:
    """A field of a description of one head, as mace_run_train has it."""
    value = getattr(network, field)
    if field == "atomic_energies":
        [energies] = value
        return dict(zip(network.atomic_numbers, energies, strict=True))
    if field == "correlation":
        [number] = set(value)
        return number
    if field in ("atomic_inter_scale", "atomic_inter_shift"):
        [number] = value
        return number
    return value
