"""Reference energies with which ``metadata.py check`` compares data: of the model.json, and of
isolated atoms among them.
"""

from collections.abc import Iterable, Mapping

from dataloader.data_check.looking import Finding, Set
from dataloader.structure import Structure, symbols
from model_utils.models.description import ModelDescription

DEFAULT_HEAD = "Default"
MODEL_JSON = "model.json"

EnergiesByHead = Mapping[str, Mapping[str, Mapping[int, float]]]  # [head][whose][atomic number], eV


def references(
    model: ModelDescription | None, isolated: Iterable[Structure], default: str
) -> EnergiesByHead:
    """E0s that are given for each head: in the model.json, by isolated atoms; those that name
    no head are of the default one, or of none where that is empty.
    """
    given: dict[str, dict[str, dict[int, float]]] = {}
    if model is not None:
        for head, row in zip(model.heads, model.atomic_energies, strict=True):
            given.setdefault(head, {})[MODEL_JSON] = dict(
                zip(model.atomic_numbers, row, strict=True)
            )
    for atom in isolated:
        if atom.energy is not None and (atom.head or default):
            of_head = given.setdefault(atom.head or default, {})
            of_head.setdefault("the IsolatedAtom frames", {})[int(atom.atomic_numbers[0])] = (
                atom.energy
            )
    return given


def head_of_nameless_atoms(train: Set, model: ModelDescription | None) -> str:
    """The head of isolated atoms that name none, as in training and in ``init``: the model's only
    one, that of structures that name none either, or the only one of the structures; empty where
    nobody can tell.
    """
    if model is not None and len(model.heads) == 1:
        return model.heads[0]
    heads = list(train.by_head(DEFAULT_HEAD))
    if model is None and DEFAULT_HEAD in heads:
        return DEFAULT_HEAD
    return heads[0] if len(heads) == 1 else ""


def nameless_atoms(isolated: Iterable[Structure], head: str, name: str) -> list[Finding]:
    """Isolated atoms that nothing can be compared with."""
    left = sorted({int(atom.atomic_numbers[0]) for atom in isolated if not (atom.head or head)})
    if not left:
        return []
    text = (
        f"IsolatedAtom frames of {symbols(left)} name no head and are compared with nothing; "
        "write `head` into them"
    )
    return [Finding(level="warning", check="E0s", text=text, data=name)]
