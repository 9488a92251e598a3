"""model.json of networks of other libraries, which needs none of them; those of
MACE are what they were.
"""

import json
from typing import Any

import pytest
import torch

from architectures.networks import COMMON, SMALL, VARIANTS, fields_of
from conftest import TINY
from dataloader.errors import InputError
from model_utils import model_loader
from model_utils.models import description as model_json
from model_utils.models.architecture import ARCHITECTURES
from model_utils.models.description import differing_fields
from model_utils.models.libraries import library_architecture
from model_utils.models.libraries.not_here import NOT_HERE
from model_utils.models.schema import ModelDescription

HASHES: dict[str, str] = {
    "PaiNN": "38118280e7e5bb6f669c30a551ae101defab7b3e02064b9a6929c6df29339778",
    "TensorNet": "f4acb7f1f43f29d4c5bc9ea8812287dcfebd900b0f02a9bb2ebb90ab31fdef59",
    "ZEmbeddingNequIP": "851e1aee4776538a63035eb394d1d8ee3a844056b41de68da4905936a17eb853",
    "SchNet": "0f7b97f73727160047bd3bbb81fcf7a7f3fb7a5a9a552a9c959ece4f0065a142",
    "ViSNet": "168eb2689204b604e159437316edec2d630e05d0ea5dd9e980b6942d2c3667ed",
    "TensorNet, Bessel": "5e3fc5412e8d0e92ae94188271944e7a26dba6ea9cf49d9a8beafc4475fd7cb2",
    "NequIP, odd": "dfdb3d0e8aca75c4083805f39417d9cd6f7adc60337cb2d41f9f62a49fcc2d61",
    "ViSNet, vertex": "b8bcaed7e7439e31718816d89811ef9dd4bd78ef359235719747798ac8b9fb53",
}
HASHES_OF_MACE: dict[str, tuple[dict[str, Any], str]] = {  # of before there were other families
    "tiny": ({}, "a42bfb71e3243a45839221fe69502a16bc3691f8d5b14a66ea748b9e767958dc"),
    "class MACE": (
        {"model_class": "MACE", "atomic_inter_scale": None, "atomic_inter_shift": None},
        "a2fc34e5d22a5bce05b702bf085d0d02fc593c123a318b1dc39872d999be9d53",
    ),
    "two heads": (
        {
            "heads": ["a", "b"],
            "atomic_energies": {"a": [-1.0, -2.0], "b": [-3.0, -4.0]},
            "atomic_inter_scale": [1.0, 2.0],
            "atomic_inter_shift": [0.0, 0.5],
        },
        "a004849f82c350c986ed876eeaa89998dffea7ca49af309c7942101b4e4f9dd9",
    ),
    "embeddings": (
        {"embedding_specs": {"total_charge": {"type": "continuous", "per": "graph", "emb_dim": 4}}},
        "bb0f1c509b14e6f572f4b0c64e00571c2d5a15844aa1c5e7db7c910d79118463",
    ),
    "attention": (
        {
            "interaction_cls": "RealAgnosticAttResidualInteractionBlock",
            "radial_type": "gaussian",
            "pair_repulsion": True,
            "distance_transform": "Agnesi",
        },
        "61998ebf40ab8d738562100ec222760ba6a62db32a0abdad93b7a7126dcad9b1",
    ),
}


def described(fields: dict[str, Any]) -> ModelDescription:
    return model_json.parse(json.dumps(fields), "it.json")


@pytest.mark.parametrize("name", [*SMALL, *VARIANTS])
def test_a_text_with_every_field_a_hash_and_back(name: str) -> None:
    description = described(fields_of(name))
    text = description.canonical_text()
    assert set(json.loads(text)) == set(
        ARCHITECTURES[description.model_class].description.model_fields
    )
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert model_json.parse(text, "again").canonical_text() == text
    assert description.hash() == HASHES[name], "files that people have would be of another network"
    other = described({**fields_of(name), "r_max": 3.5})
    assert differing_fields(description, other) == ["r_max: 3.0 against 3.5"]


def test_a_field_that_another_class_has_not_is_absent_and_not_none() -> None:
    differing = differing_fields(described(fields_of("PaiNN")), described(TINY))
    assert "channels: 8 against absent" in differing
    assert "max_ell: absent against 1" in differing
    assert any(text.startswith("model_class: ") for text in differing)


@pytest.mark.parametrize("name", HASHES_OF_MACE)
def test_hashes_of_mace_are_what_they_were(name: str) -> None:
    changes, expected = HASHES_OF_MACE[name]
    assert described({**TINY, **changes}).hash() == expected


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("PaiNN", {"chanels": 8}, "unknown field 'chanels'; did you mean 'channels'?"),
        ("PaiNN", {"hidden_irreps": "8x0e"}, "unknown field 'hidden_irreps'"),
        (
            "PaiNN",
            {"channels": 0},
            "channels: input should be greater than or equal to 1 .found 0.",
        ),
        ("PaiNN", {"channels": 10**6}, "channels: input should be less than or equal to 1024"),
        ("PaiNN", {"heads": ["a", "b"]}, "one head|given per head"),
        (
            "PaiNN",
            {"atomic_inter_scale": ...},
            "atomic_inter_scale is missing; `metadata.py fit` computes it",
        ),
        (
            "TensorNet",
            {"radial_expansion": "Gaussian"},
            "radial_expansion: input should be 'Bessel'",
        ),
        ("ZEmbeddingNequIP", {"channels": [4, 4]}, "2 numbers for the 3 orders up to l_max"),
        (
            "ZEmbeddingNequIP",
            {"neighbour_aggregation": "mean"},
            "neighbour_aggregation: input should be 'sum'",
        ),
        ("ViSNet", {"num_heads": 3}, "hidden_channels: 8 cannot be shared by 3 num_heads"),
        ("ViSNet", {"max_num_neighbors": 32}, "unknown field 'max_num_neighbors'"),
    ],
)
def test_what_does_not_fit_is_named(name: str, change: dict[str, Any], message: str) -> None:
    fields = {
        key: value for key, value in {**fields_of(name), **change}.items() if value is not ...
    }
    with pytest.raises(InputError, match=f"it.json: .*{message}"):
        described(fields)


@pytest.mark.parametrize(
    "name", ["EquiformerV2", "Equiformer V2", "uma", "LiTEN", "PET", "Orb", "EDDP", "NequIP"]
)
def test_what_cannot_be_had_here_is_named_with_its_reason(name: str) -> None:
    with pytest.raises(InputError) as refused:
        described({**COMMON, "model_class": name})
    reason = NOT_HERE[name.lower().replace(" ", "")]
    assert str(refused.value) == f"it.json: model_class {name!r} cannot be had here: {reason}"


def test_a_class_that_is_no_text_is_an_ordinary_mistake() -> None:
    with pytest.raises(InputError, match="model_class: input should be"):
        described({**COMMON, "model_class": ["uma"]})


@pytest.mark.parametrize("name", SMALL)
def test_a_library_that_is_not_there_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise ModuleNotFoundError("No module named 'it'")

    monkeypatch.setattr(ARCHITECTURES[name], "_home", absent)
    package = ARCHITECTURES[name].description.package  # type: ignore[attr-defined]
    with pytest.raises(InputError) as refused:
        model_loader.build(
            described({**fields_of(name), "r_max": 2.9}), torch.float32, seed=1, where="it.json"
        )
    assert str(refused.value) == (
        f"it.json: {name} is computed by {package}, which cannot be imported (No module named "
        f"'it'): {library_architecture.EXTRA}"
    )
