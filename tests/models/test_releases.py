"""Models of every mace-torch release since 0.3.3 are read without executing them, and give
that release's energies.

``benchmarks/foreign_models.py`` made them; FOREIGN=full computes all of them, the default one of
each kind, the battery some more.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import read_model
from conftest import LONG, ROOT, in_the_battery
from dataloader.batch import Batch, collate
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from model_utils import model_loader
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.outputs import sidecar
from model_utils.model_loader import LoadedModel
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.models.network import predict

ARCHIVE = ROOT / "tests/data/foreign/mace_torch.tar.xz"
FULL = os.environ.get("FOREIGN") == "full"
with tarfile.open(ARCHIVE) as _archive:
    NAMES = _archive.getnames()
RELEASES = sorted(
    {name.partition("/")[0] for name in NAMES}, key=lambda release: int(release.rpartition(".")[2])
)
MODELS = [
    (release, name.partition("/")[2].removesuffix(".model"))
    for release in RELEASES
    for name in NAMES
    if name.startswith(f"{release}/") and name.endswith(".model")
]
REFUSED = {  # by name of the network and releases: what is said
    "element_dependent": (
        RELEASES,
        "ResidualElementDependentInteractionBlock, which model.json does not describe",
    ),
    "soft": (
        [f"0.3.{n}" for n in range(5, 10)],
        "the Soft transform of mace-torch 0.3.5 to 0.3.9, another formula",
    ),
    "one_layer": (
        [f"0.3.{n}" for n in range(3, 15)],
        "one layer whose product has more than scalars",
    ),
    "mh_0": (
        ["0.3.14"],
        "NonLinearBiasReadoutBlock of several heads, which later releases compute otherwise",
    ),
}


def is_refused(release: str, network: str) -> bool:
    return network in REFUSED and release in REFUSED[network][0]


READ = [model for model in MODELS if not is_refused(*model)]


def computed() -> list[tuple[str, str]]:
    """All, or: of every network the oldest release's; in the battery one more of every third
    release, each another.
    """
    if FULL:
        return READ
    oldest = {network: (release, network) for release, network in reversed(READ)}
    others = [[model for model in READ if model[0] == release] for release in RELEASES]
    drawn = [own[5 * k % len(own)] for k, own in enumerate(others) if k % 3 == 0 and LONG]
    return sorted({*oldest.values(), *drawn}, key=READ.index)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per release."""
    folder = tmp_path_factory.mktemp("foreign")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def structures(facts: dict[str, Any], description: ModelDescription, head: str) -> list[Batch]:
    batches = []
    for fact in facts["structures"]:
        structure = Structure(
            atomic_numbers=np.array(fact["numbers"]),
            positions=np.array(fact["positions"]),
            cell=np.array(fact["cell"]),
            pbc=(fact["periodic"],) * 3,
            identifier="it",
            head=head,
            features={
                spec.name: np.array([float(fact[spec.name])])
                for spec in description.facts().features
            },
        )
        graph = build_graph(structure, description.r_max)
        batches.append(
            collate(
                [structure], [graph], [0], description.facts(), torch.float64, free_atoms_only=False
            )
        )
    return batches


def worst_deviation(loaded: LoadedModel, facts: dict[str, Any], network: str) -> float:
    """Largest deviation of energies and forces, over heads and structures,
    relative to the largest.
    """
    form = model_loader.build_network(loaded.module, "reference", loaded.description)
    weights, worst = model_loader.trainable(loaded.module), 0.0
    for head, results in zip(
        loaded.description.heads, facts["networks"][network]["results"], strict=True
    ):
        for batch, expected in zip(
            structures(facts, loaded.description, head), results, strict=True
        ):
            found = predict(form, weights, batch, wanted=(), training=False)
            energy, forces = (
                float(found["energy"][0] + batch.reference_energy[0]),
                np.array(expected["forces"]),
            )
            worst = max(worst, abs(energy - expected["energy"]) / abs(expected["energy"]))
            worst = max(
                worst, float(np.abs(found["forces"].numpy() - forces).max() / np.abs(forces).max())
            )
    return worst


def expected(foreign: Path, release: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((foreign / release / "expected.json").read_text())
    assert facts["release"] == release
    return facts


@pytest.mark.parametrize(("release", "network"), computed())
def test_a_model_gives_the_energies_of_its_release(
    release: str, network: str, foreign: Path
) -> None:
    loaded = model_loader.load(foreign / release / f"{network}.model")
    assert worst_deviation(loaded, expected(foreign, release), network) < 1e-10


@pytest.mark.parametrize("release", RELEASES)
def test_every_model_of_a_release_is_described_as_it_was_built(release: str, foreign: Path) -> None:
    facts = expected(foreign, release)
    for network in (network for own, network in READ if own == release):
        fields = facts["networks"][network]["fields"]
        description = model_loader.weights_file(foreign / release / f"{network}.model").description
        shown = json.loads(description.canonical_text())
        n_heads = len(shown["heads"])
        given = {name: value for name, value in fields.items() if name in shown}
        if fields["model_class"] == "MACE":
            given |= {"atomic_inter_scale": None, "atomic_inter_shift": None}
        else:
            for name in ("atomic_inter_scale", "atomic_inter_shift"):
                given[name] = [fields[name] + 0.25 * head for head in range(n_heads)]
        if isinstance(given["correlation"], int):
            given["correlation"] = [given["correlation"]] * fields["num_interactions"]
        if "embedding_specs" in given:
            # JSON's order; energies know the other one
            shown["embedding_specs"].sort(key=lambda spec: spec["name"])
            given["embedding_specs"] = [
                {"in_dim": 1, "use_bias": True, "offset": 0, "name": name, **spec}
                for name, spec in sorted(given["embedding_specs"].items())
            ]
        if network == "one_layer":  # its readout is linear, and it has scalars alone
            for name in ("gate", "MLP_irreps", "interaction_cls"):
                del given[name]
            given["hidden_irreps"] = "2x0e"
        given["use_reduced_cg"] = False  # what was built
        assert {name: shown[name] for name in given} == given, network


@pytest.mark.parametrize(("release", "network"), [model for model in MODELS if is_refused(*model)])
def test_what_cannot_be_read_is_said(
    release: str, network: str, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign / release / f"{network}.model"
    assert read_model.main(["show", "--input_model", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert REFUSED[network][1] in line
    assert str(path) in line


def changed(
    path: Path, to: Path, change: Callable[[nn.Module], object], description: ModelDescription
) -> Path:
    """A bare module of this release with something changed, as an older or
    a tampered file has it.
    """
    module = model_loader.build(description, torch.float64, 1)
    change(module)
    checkpoint.write_bare_module(to, module)
    return to


@pytest.fixture
def omat(foreign: Path) -> ModelDescription:
    return model_loader.weights_file(foreign / "0.3.9" / "omat.model").description


@pytest.mark.parametrize(
    ("name", "value"), [("r_max", 3.6), ("cutoff.r_max", 3.6), ("cutoff.p", 6.0), ("surprise", 1.0)]
)
def test_an_obsolete_tensor_must_agree(
    name: str, value: float, omat: ModelDescription, tmp_path: Path
) -> None:
    """What older releases stored and nothing uses is left out where it says what the
    rest says, and only there.
    """

    def with_old_buffers(module: nn.Module) -> None:
        repulsion = module.get_submodule("pair_repulsion_fn")
        repulsion.cutoff = nn.Identity()
        for key, number in {"r_max": 3.7, "cutoff.r_max": 3.7, "cutoff.p": 5.0, **tampered}.items():
            owner, _, own = key.rpartition(".")
            repulsion.get_submodule(owner).register_buffer(
                own, torch.tensor(number, dtype=torch.float64)
            )

    tampered: dict[str, float] = {}
    path = changed(tmp_path / "x", tmp_path / "it.model", with_old_buffers, omat)
    assert model_loader.load(path).description.hash() == omat.hash()
    tampered = {name: value}
    path = changed(tmp_path / "x", tmp_path / "it.model", with_old_buffers, omat)
    with pytest.raises(VerificationError, match=f"pair_repulsion_fn.{name}"):
        model_loader.load(path)


def test_a_module_of_2022_needs_its_elements(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no atomic_numbers; export takes them once, and its model.json
    is enough from then on.
    """
    description = model_loader.weights_file(foreign / "0.3.3" / "mace.model").description
    module = model_loader.build(description, torch.float64, 1)
    whole = tmp_path / "whole.model"
    checkpoint.write_bare_module(whole, module)
    del module._buffers["atomic_numbers"]
    for name in ("heads", "apply_cutoff", "use_reduced_cg", "edge_irreps", "use_edge_irreps_first"):
        del module.__dict__[name]
    path, made = tmp_path / "old.model", tmp_path / "old.json"
    checkpoint.write_bare_module(path, module)
    export = ["export", "--input_model", str(path), "--output_json", str(made)]
    for words, said in (
        (
            [],
            (
                "does not say which 3 elements its weights are for, as modules of 2022 do not; "
                "name them with `read_model"
            ),
        ),
        (["--elements", "H", "O"], "has weights for 3 elements, and 2 are given: H, O"),
        (["--elements", "H", "O", "Xx"], "--elements Xx is no element"),
    ):
        assert read_model.main([*export, *words]) == 2
        assert said in capsys.readouterr().err
    assert read_model.main([*export, "--elements", "O", "C", "H"]) == 0
    assert json.loads(made.read_text())["atomic_numbers"] == [1, 6, 8]
    assert read_model.main(["verify", "--input_model", str(path), "--input_json", str(made)]) == 0
    assert (
        read_model.main(
            [
                "diff",
                "--input_model",
                str(path),
                "--input_json",
                str(made),
                "--other_model",
                str(whole),
            ]
        )
        == 3
    )
    assert "atomic_numbers: only in the second" in capsys.readouterr().out
    own, theirs = (model_loader.load(p, input_json=made).module.state_dict() for p in (path, whole))
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    words = [
        "export",
        "--input_model",
        str(whole),
        "--output_json",
        str(tmp_path / "x.json"),
        "--elements",
        "H",
        "C",
    ]
    assert read_model.main(words) == 2
    assert "says itself that it is of H, C, O" in capsys.readouterr().err


ONE_HEAD = [("0.3.7", "heads"), ("0.3.15", "mh_0"), ("0.3.16", "mh_1")]


@pytest.mark.parametrize(
    ("release", "network", "form"),
    [
        pytest.param(*model, form, marks=in_the_battery if (row + column) % 2 else ())
        for row, model in enumerate(ONE_HEAD)
        for column, form in enumerate(("module", "safetensors"))
    ],
)
def test_a_head_becomes_a_model_of_its_own(
    release: str,
    network: str,
    form: str,
    foreign: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Energies and forces of that head by the release that wrote the model with two."""
    facts, source = expected(foreign, release), tmp_path / "two.model"
    shutil.copy(foreign / release / f"{network}.model", source)
    k = 1 if form == "module" else 0
    head = facts["networks"][network]["heads"][k]
    output = tmp_path / ("one.safetensors" if form == "safetensors" else "one.model")
    words = [
        "convert",
        "--input_model",
        str(source),
        "--to",
        form,
        "--output",
        str(output),
        "--head",
    ]
    assert read_model.main([*words, "third"]) == 2
    assert "--head third is none of the model's" in capsys.readouterr().err
    assert read_model.main([*words, head]) == 0
    loaded = model_loader.load(output)
    assert loaded.description.heads == [head]
    if form == "safetensors":
        assert model_json.read(sidecar(output)).heads == [head]
    results = facts["networks"][network]["results"]
    facts["networks"][network]["results"] = [results[k]]
    assert worst_deviation(loaded, facts, network) < 1e-10


def test_a_head_whose_readout_is_not_known_is_refused(foreign: Path) -> None:
    from model_utils.models import heads

    loaded = model_loader.load(foreign / "0.3.7" / "heads.model")
    loaded.module.get_submodule("readouts.1").register_parameter(
        "strange", nn.Parameter(torch.zeros(2))
    )
    target = model_loader.load(foreign / "0.3.7" / "scale_shift.model").module
    target.get_submodule("readouts.1").register_parameter("strange", nn.Parameter(torch.zeros(1)))
    with pytest.raises(InputError, match=r"readouts\.1\.strange belongs to a readout"):
        heads.with_copied_heads(loaded.module, target, [0])
