"""model.json: one canonical text per structure, a hash that means it,
refusals that name the field.
"""

import json

import pytest

from conftest import TINY
from dataloader.errors import InputError
from model_utils.models.description import ModelDescription, differing_fields, parse
from model_utils.models.mace_description import MaceDescription


def described(**changes: object) -> ModelDescription:
    fields = {**TINY, **changes}
    return parse(json.dumps({k: v for k, v in fields.items() if v is not ...}), "test.json")


def test_ten_lines_become_every_field_and_stay_so() -> None:
    text = described().canonical_text()
    assert set(json.loads(text)) == set(MaceDescription.model_fields)
    assert parse(text, "again").canonical_text() == text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize(
    "spelling",
    [
        {"r_max": 3},
        {"hidden_irreps": "4x0e + 4x1o"},
        {"correlation": [2, 2]},
        {"atomic_energies": [-13.6, -430.0]},
        {"atomic_energies": [[-13.6, -430]]},
        {"atomic_energies": {"8": -430.0, "1": -13.6}},
        {"atomic_energies": {"Default": {"H": -13.6, "O": -430.0}}},
        {"atomic_inter_shift": -0.0},
        {"atomic_inter_scale": [1]},
        {"heads": ["Default"]},
        {"edge_irreps": None},
        {"schema_version": 1},
    ],
)
def test_spellings_of_one_structure_have_one_hash(spelling: dict[str, object]) -> None:
    assert described(**spelling).hash() == described().hash()


@pytest.mark.parametrize(
    "change",
    [
        {"r_max": 3.0000001},
        {"atomic_numbers": [8, 1]},
        {"gate": "tanh"},
        {"avg_num_neighbors": 2.5},
        {"use_so3": True},
    ],
)
def test_another_structure_has_another_hash_and_is_named(change: dict[str, object]) -> None:
    other = described(**change)
    assert other.hash() != described().hash()
    assert any(
        difference.startswith(next(iter(change)))
        for difference in differing_fields(described(), other)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r_maxx": 3.0}, "unknown field 'r_maxx'; did you mean 'r_max'?"),
        (
            {"avg_num_neighbors": ...},
            "avg_num_neighbors is missing; `metadata.py fit` computes it from data",
        ),
        ({"atomic_inter_scale": ...}, "atomic_inter_scale is missing, which ScaleShiftMACE needs"),
        ({"gate": None}, "gate: input should be 'silu'"),
        ({"r_max": "3"}, "r_max: input should be a valid number (found '3')"),
        ({"r_max": True}, "r_max"),
        ({"r_max": 1e9}, "less than or equal to 50"),
        ({"hidden_irreps": "99999x0e"}, "out of range"),
        ({"hidden_irreps": "4x0e+8x1o"}, "one number of channels"),
        ({"atomic_numbers": [1, 1], "atomic_energies": [1.0, 1.0]}, "an element stands twice"),
        ({"atomic_energies": {"H": 1.0}}, "atomic_energies name [1] but atomic_numbers are [1, 8]"),
        ({"heads": ["a", "b"]}, "per head"),
        ({"correlation": [2]}, "1 values for 2 layers"),
        ({"max_ell": 9, "correlation": 3}, "beyond l = 11"),
        ({"max_ell": 11, "correlation": 4}, "too large"),
        ({"model_class": "MACE"}, "belong to ScaleShiftMACE"),
        ({"readout_cls": "LinearReadoutBlock"}, "readout_cls"),
        ({"use_reduced_cg": 1}, "use_reduced_cg"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_refusals_name_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=r"^test\.json") as refused:
        described(**change)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a model.json"),
        ("[]", "expected an object"),
        ('{"r_max": NaN}', "NaN is not a number"),
        ('{"r_max": 5, "r_max": 6}', "'r_max' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"r_max": ' + "9" * 5000 + "}", "is not a model.json"),
        ('{"a": "\\ud800"}', "unknown field"),
        ("x" * 2_000_000, "far more than any model.json"),
    ],
)
def test_damaged_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(text, "test.json")
    assert message in str(refused.value)
    str(refused.value).encode(errors="strict")


def test_the_schema_of_version_one_still_reads_its_stored_example() -> None:
    stored = "tests/data/model_v1.json"
    from conftest import ROOT

    text = (ROOT / stored).read_text(encoding="utf-8")
    description = parse(text, stored)
    assert description.canonical_text() == text
    assert description.hash() == (ROOT / "tests/data/model_v1.sha256").read_text().strip()
