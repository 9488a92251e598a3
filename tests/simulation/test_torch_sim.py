"""torch-sim with our model: the numbers of the calculator, and a relaxation of
several systems at once.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from model_utils.calculator import Calculator
from simulation.conftest import kinds

torch_sim = pytest.importorskip(
    "torch_sim", reason="torch-sim is not installed (extra `simulation`): make test_extras"
)


@pytest.fixture(scope="module")
def crystals() -> list:
    return [kinds()["crystal"], kinds()["skewed crystal"]]


def test_gives_what_the_calculator_gives(models: list[Path], crystals: list) -> None:
    from model_utils.simulation.torch_sim_model import TorchSimModel

    model = TorchSimModel(models[0], device="cpu")
    state = torch_sim.io.atoms_to_state(crystals, model.device, model.dtype)
    results = model(state)
    forces = []
    for number, atoms in enumerate(crystals):
        atoms.calc = Calculator(models[0])
        assert float(results["energy"][number]) == pytest.approx(
            atoms.get_potential_energy(), abs=1e-10
        )
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(results["stress"][number].numpy(), stress, rtol=0, atol=1e-12)
        forces.append(atoms.get_forces())
    np.testing.assert_allclose(
        results["forces"].numpy(), np.concatenate(forces), rtol=0, atol=1e-11
    )


def test_torch_sim_relaxes_with_it(models: list[Path], crystals: list) -> None:
    from model_utils.simulation.torch_sim_model import TorchSimModel

    model = TorchSimModel(models[0], device="cpu")
    state = torch_sim.io.atoms_to_state(crystals, model.device, model.dtype)
    before = model(state)["energy"]
    relaxed = torch_sim.optimize(
        system=state,
        model=model,
        optimizer=torch_sim.optimizers.fire,
        max_steps=60,
        convergence_fn=torch_sim.runners.generate_force_convergence_fn(
            force_tol=0.01, include_cell_forces=False
        ),
    )
    results = model(relaxed)
    assert (results["energy"] < before).all()
    assert torch.linalg.vector_norm(results["forces"], dim=1).max() < 0.05
