"""finetune.py with several heads: copies of any head, and reference energies head by head."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write

from conftest import TINY, waters
from dataloader.batch import collate
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from dataloader.xyz import stream_xyz
from model_utils import finetune, model_loader
from model_utils.calculator import Calculator
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models.heads import with_copied_heads
from model_utils.models.reference import ReferenceNetwork
from model_utils.run.beginnings.finetuning import predicted


def bare_module(folder: Path, readout: str) -> Path:
    """With two heads that have reference energies, scales and weights of their own."""
    fields = {**TINY, "hidden_irreps": "4x0e", "readout_cls": readout, "heads": ["pbe", "r2scan"]}
    fields |= {"atomic_energies": [[-13.6, -430.0], [-14.0, -431.0]]}
    fields |= {"atomic_inter_scale": [1.0, 1.5], "atomic_inter_shift": [0.0, 0.25]}
    (folder / "two.json").write_text(json.dumps(fields))
    module = model_loader.build(model_json.read(folder / "two.json"), torch.float64, 3)
    checkpoint.write_bare_module(folder / "two.model", module)
    return folder / "two.model"


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that is fine-tuned."""
    return bare_module(tmp_path_factory.mktemp("two"), "NonLinearReadoutBlock")


def structures(folder: Path, head: str) -> list[Structure]:
    write(folder / "s.xyz", waters(3), format="extxyz")
    found = [frame.structure for frame in stream_xyz(folder / "s.xyz", LabelKeys(), TO_TRAIN)]
    return [dataclasses.replace(structure, head=head) for structure in found]


@pytest.mark.parametrize("readout", ["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"])
def test_every_head_is_a_copy_of_its_parent(readout: str, tmp_path: Path) -> None:
    """Whatever heads are made of two, energies and forces are those of the
    head that each copies.
    """
    source = model_loader.load(bare_module(tmp_path, readout))
    for parents in ((0, 1, 1), (1,)):
        fields = json.loads(source.description.canonical_text())
        for name in ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift"):
            fields[name] = [fields[name][parent] for parent in parents]
        fields["heads"] = [f"h{i}" for i in range(len(parents))]
        described = model_json.parse(json.dumps(fields), "made")
        module = model_loader.build(described, torch.float64, 11)
        module.load_state_dict(with_copied_heads(source.module, module, parents))
        for head, parent in enumerate(parents):
            energies = []
            for model, facts, number in (
                (module, described.facts(), head),
                (source.module, source.description.facts(), parent),
            ):
                named = structures(tmp_path, facts.heads[number])
                graphs = [build_graph(structure, facts.r_max) for structure in named]
                batch = collate(
                    named, graphs, [0, 1, 2], facts, torch.float64, free_atoms_only=False
                )
                energies.append(predicted(ReferenceNetwork(model), batch))
            torch.testing.assert_close(energies[0], energies[1], rtol=1e-12, atol=1e-12)


@pytest.fixture
def tune(two_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Fine-tune the model with two heads on waters of given heads, their oxygens shifted; dry.

    Gives what was said.
    """

    def go(shifts: Mapping[str | None, float], *flags: str, atoms: str = "", code: int = 0) -> str:
        frames = []
        for seed, (head, shift) in enumerate(shifts.items()):
            own = waters(6, seed)
            for frame in own:
                frame.info["REF_energy"] += shift * (frame.numbers == 8).sum()
            own += [
                Atoms(z, info={"REF_energy": -10.0 + shift, "config_type": "IsolatedAtom"})
                for z in atoms
            ]
            for frame in own if head is not None else []:
                frame.info["head"] = head
            frames += own
        write(tmp_path / "data.xyz", frames, format="extxyz")
        words = [
            "--input_model",
            str(two_heads),
            "--xyz_train",
            str(tmp_path / "data.xyz"),
            "--dry_run",
        ]
        words += ["--output_checkpoint", str(tmp_path / "run"), "--valid_fraction", "0.3", *flags]
        assert finetune.main(words) == code
        return "".join(capsys.readouterr())

    return go


def test_a_third_head_beside_two_with_energies_head_by_head(tune: Callable[..., str]) -> None:
    """A copy of the head that is named; each head is shifted by its own data, and at
    step 0 equals its parent.
    """
    shown = tune(
        {"pbe": 30.0, "new": -60.0}, "--E0s", "shift", "--add_head", "new", "--copy_head", "r2scan"
    )
    assert "heads: pbe, r2scan (the source's) and new, a copy of r2scan" in shown
    assert "head pbe: E0 shift fitted to" in shown
    assert "warning: head new: the compositions determine only 1 of 2 shifts of E0s" in shown
    lines = [line.split() for line in shown.splitlines() if " E0 of O " in line]
    assert [words[4] for words in lines] == ["(pbe):", "(new):"], "of r2scan there are no data"
    pbe, new = (float(words[-2]) - float(words[-4]) for words in lines)
    assert pbe - new == pytest.approx(90 / 5, rel=0.1), (
        "the shortest: 2/5 of it on each H, 1/5 on O"
    )
    assert "step 0: energies and forces of 8 structures are the source's to" in shown


def test_what_is_refused_of_heads(tune: Callable[..., str]) -> None:
    for heads, flags, said in (
        (
            ["pbe", None],
            ["--add_head", "new"],
            "names no head but model.json has ['pbe', 'r2scan', 'new']; write `head`",
        ),
        (
            ["pbe"],
            ["--copy_head", "b3lyp", "--add_head", "new"],
            "--copy_head b3lyp: the source has pbe, r2scan",
        ),
        (["pbe"], ["--copy_head", "pbe"], "--copy_head is given but no new head"),
        (["pbe"], ["--add_head", "pbe"], "a head of the source has this name"),
        (
            ["pbe"],
            ["--E0s", '{"b3lyp": {"H": 1}}'],
            "--E0s names head 'b3lyp', but the heads are pbe, r2scan",
        ),
        (
            ["pbe"],
            ["--E0s", "isolated"],
            "--E0s isolated: the training data hold no IsolatedAtom frame",
        ),
    ):
        assert said in tune(dict.fromkeys(heads, 0.0), *flags, code=2)


def test_energies_of_isolated_atoms_head_by_head(tune: Callable[..., str]) -> None:
    shown = tune({"pbe": 1.0, "new": 2.0}, "--E0s", "isolated", "--add_head", "new", atoms="HO")
    for change in (
        "E0 of O (pbe): -430.000000 → -9.000000",
        "E0 of H (new): -13.600000 → -8.000000",
    ):
        assert change in shown
    assert "IsolatedAtom frames are the E0s of head new" in shown
    assert (
        "warning: --add_head new copies head pbe, the first of pbe, r2scan; "
        "--copy_head names another"
    ) in shown
    shown = tune({"pbe": 1.0, "r2scan": 2.0}, "--E0s", "isolated", atoms="H")
    assert "warning: head pbe: no IsolatedAtom frame of O: they keep the source's E0s" in shown
    assert "E0 of O" not in shown


def test_energies_of_a_file_and_by_head(tune: Callable[..., str], tmp_path: Path) -> None:
    """Beside IsolatedAtom frames of the data, which are then said not to be the model's."""
    atoms = [
        Atoms("H", info={"REF_energy": -13.0}),
        Atoms("O", info={"REF_energy": -450.0, "head": "r2scan"}),
    ]
    write(tmp_path / "atoms.xyz", atoms, format="extxyz")
    shown = tune({"pbe": 0.0}, "--E0s", str(tmp_path / "atoms.xyz"))
    assert [line.partition("E0 of ")[2] for line in shown.splitlines() if "E0 of" in line] == [
        "H (pbe): -13.600000 → -13.000000 eV",
        "H (r2scan): -14.000000 → -13.000000 eV",
        "O (r2scan): -431.000000 → -450.000000 eV",
    ]
    shown = tune({"pbe": 1.0}, "--E0s", '{"r2scan": {"H": -1.0}}', atoms="HO")
    assert "E0 of H (r2scan): -14.000000 → -1.000000" in shown
    assert "E0 of H (pbe)" not in shown
    assert (
        "IsolatedAtom frames are not what the E0s of head pbe are: H -9 against -13.6, O "
        "-9 against -430 eV"
    ) in shown
    assert "finetune.py --E0s isolated takes those of the frames, --E0s shift fits" in shown
    shown = tune({"pbe": 1.0}, "--E0s", '{"r2scan": {"H": -190.0}}')
    assert "no atom has so low an E0 as head r2scan has: H -190 eV" in shown
    assert "takes those of the frames, --E0s with a file of isolated atoms or JSON those" in shown


def replayed(folder: Path, **entries: object) -> Path:
    """Structures of the source, as other programs and evaluate.py leave them."""
    frames = waters(6, seed=9)
    for atoms in frames:
        atoms.info |= entries
    write(folder / "old.xyz", frames, format="extxyz")
    return folder / "old.xyz"


def test_what_is_replayed_has_the_head_of_the_replay(
    tune: Callable[..., str], tmp_path: Path
) -> None:
    """Whatever head its records name: that of the new data would be trained on both."""
    old = str(replayed(tmp_path, head="r2scan"))
    shown = tune({"r2scan": 30.0}, "--E0s", "shift", "--replay", old)
    [line] = [line for line in shown.splitlines() if " E0 of O " in line]
    assert "(r2scan):" in line
    assert f"{old}" in shown
    words = ["--replay", old, "--head", "r2scan", "--replay_head", "r2scan", "--E0s", "shift"]
    assert "--replay_head" in tune({"r2scan": 30.0}, *words, code=2)
    isolated = replayed(tmp_path, head="pbe")
    atoms = [Atoms(z, info={"REF_energy": -9.0, "config_type": "IsolatedAtom"}) for z in "HO"]
    for atom in atoms:
        atom.info["head"] = "pbe"
    write(isolated, atoms, format="extxyz", append=True)
    text = tune({"pbe": 0.0}, "--E0s", "isolated", "--replay", str(isolated), code=2)
    assert "IsolatedAtom frames of head replay alone, of which no new structure is" in text


def test_isolated_atoms_that_name_no_head_are_of_the_head_that_the_structures_are_of(
    tune: Callable[..., str], tmp_path: Path
) -> None:
    """Where those are of several, nobody can tell; a head of which there is no structure keeps
    its E0s.
    """
    atoms = [Atoms(z, info={"REF_energy": -9.0, "config_type": "IsolatedAtom"}) for z in "HO"]
    write(tmp_path / "alone.xyz", atoms, format="extxyz")
    alone = ["--E0s", "isolated", "--train_file", str(tmp_path / "alone.xyz")]
    shown = tune({"r2scan": 1.0}, *alone)
    changed = [line.partition("E0 of ")[2] for line in shown.splitlines() if "E0 of" in line]
    assert [line[:10] for line in changed] == ["H (r2scan)", "O (r2scan)"]
    text = tune({"pbe": 1.0, "r2scan": 1.0}, *alone, code=2)
    assert "of H, O name no head, and the structures are of pbe, r2scan" in text
    for atom in atoms:
        atom.info["head"] = "pbe"
    write(tmp_path / "alone.xyz", atoms, format="extxyz")
    assert "of head pbe alone, of which no new structure is" in tune(
        {"r2scan": 1.0}, *alone, code=2
    )


def test_isolated_atoms_are_of_the_head_of_their_file(
    two_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where structures of other files are of another head."""
    atoms = [Atoms(z, info={"REF_energy": -9.0, "config_type": "IsolatedAtom"}) for z in "HO"]
    for head, beside in (("new", atoms), ("pbe", [])):
        frames = waters(6)
        for frame in frames:
            frame.info["head"] = head
        write(tmp_path / f"{head}.xyz", [*frames, *beside], format="extxyz")
    words = ["--input_model", str(two_heads), "--output_checkpoint", str(tmp_path / "run")]
    words += ["--add_head", "new", "--E0s", "isolated", "--dry_run", "--valid_fraction", "0.3"]
    files = [str(tmp_path / f"{head}.xyz") for head in ("new", "pbe")]
    assert finetune.main([*words, "--xyz_train", *files]) == 0
    text = "".join(capsys.readouterr())
    changed = [line.partition("E0 of ")[2] for line in text.splitlines() if "E0 of" in line]
    assert [line[:7] for line in changed] == ["H (new)", "O (new)"]
    assert "IsolatedAtom frames are the E0s of head new" in text


@pytest.mark.parametrize("place", ["beside", "alone"])
def test_isolated_atoms_of_an_added_head_beside_a_single_one(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They name no head, as structures of the source's only head may: those beside structures of
    the new head are of that, and of those in a file of their own nobody can tell.
    """
    fields = {**TINY, "hidden_irreps": "4x0e", "atomic_energies": [-13.6, -430.0]}
    (tmp_path / "one.json").write_text(json.dumps(fields))
    module = model_loader.build(model_json.read(tmp_path / "one.json"), torch.float64, 3)
    checkpoint.write_bare_module(tmp_path / "one.model", module)
    new, old = waters(6), waters(6, seed=9)
    for frame in new:
        frame.info["head"] = "new"
    atoms = [Atoms(z, info={"REF_energy": -9.0, "config_type": "IsolatedAtom"}) for z in "HO"]
    write(tmp_path / "new.xyz", [*new, *(atoms if place == "beside" else [])], format="extxyz")
    write(tmp_path / "old.xyz", old, format="extxyz")
    write(tmp_path / "atoms.xyz", atoms, format="extxyz")
    words = ["--input_model", str(tmp_path / "one.model"), "--output_checkpoint"]
    words += [str(tmp_path / "run"), "--add_head", "new", "--E0s", "isolated", "--dry_run"]
    words += ["--valid_fraction", "0.3"]

    def tuned(*names: str) -> tuple[int, str]:
        files = [str(tmp_path / name) for name in names]
        code = finetune.main([*words, "--xyz_train", *files])
        return code, "".join(capsys.readouterr())

    if place == "alone":
        code, text = tuned("new.xyz", "old.xyz", "atoms.xyz")
        assert code == 2
        assert "of H, O name no head, and the structures are of Default, new" in text
    of_new = {"alone": [("new.xyz", "atoms.xyz")], "beside": [("new.xyz", "old.xyz"), ("new.xyz",)]}
    for files in of_new[place]:
        code, text = tuned(*files)
        assert code == 0, text
        changed = [line.partition("E0 of ")[2] for line in text.splitlines() if "E0 of" in line]
        assert [line[:7] for line in changed] == ["H (new)", "O (new)"]
        assert "which is given for the file" not in text


def test_energies_for_all_heads_leave_out_the_one_that_is_added(tune: Callable[..., str]) -> None:
    words = ["--E0s", '{"H": -1.0, "O": -2.0}', "--add_head", "new"]
    assert "--add_head adds new: give them by head" in tune({"new": 1.0}, *words, code=2)


def test_replayed_labels_are_those_of_the_head_that_is_copied(
    two_heads: Path, tmp_path: Path
) -> None:
    """With the weights and held atoms of the records."""
    frames = waters(6, seed=9)
    for atoms in frames:
        atoms.info |= {"config_weight": 5.0, "config_forces_weight": 0.5, "head": "pbe"}
        atoms.arrays["fixed"] = np.arange(len(atoms)) == 0
    write(tmp_path / "old.xyz", frames, format="extxyz")
    new = waters(6)
    for atoms in new:
        atoms.info["head"] = "pbe"
    write(tmp_path / "new.xyz", new, format="extxyz")
    words = ["--input_model", two_heads, "--xyz_train", tmp_path / "new.xyz", "--epochs", 1]
    words += ["--replay", tmp_path / "old.xyz", "--replay_labels", "source"]
    words += ["--copy_head", "r2scan", "--no_export_mace_model", "--valid_fraction", 0.3]
    assert finetune.main(list(map(str, [*words, "--output_checkpoint", tmp_path / "run"]))) == 0
    kept = read(tmp_path / "run" / "run_replay.xyz", index=":")
    calculator = Calculator(two_heads, head="r2scan", dtype="float64")
    for atoms, was in zip(kept, frames, strict=True):
        bare = Atoms(was.numbers, was.positions)
        bare.calc = calculator
        assert atoms.info["REF_energy"] == pytest.approx(bare.get_potential_energy(), abs=1e-6)
        assert (atoms.info["config_weight"], atoms.info["config_forces_weight"]) == (5.0, 0.5)
        assert atoms.arrays["fixed"].tolist() == was.arrays["fixed"].tolist()


def test_heads_are_not_put_into_another_order(two_heads: Path) -> None:
    source = model_loader.load(two_heads)
    with pytest.raises(InputError, match="2 heads cannot be put into another order"):
        with_copied_heads(source.module, model_loader.copied(source.module), (1, 0))


def test_energies_for_an_added_head_are_given_by_head(tune: Callable[..., str]) -> None:
    words = ("--add_head", "new", "--head", "new", "--copy_head", "pbe", "--E0s")
    text = tune({"new": 0.0}, *words, '{"H": -13.0, "O": -430.0}', code=2)
    assert "--add_head adds new: give them by head" in text
    shown = tune({"new": 0.0}, *words, '{"new": {"H": -13.0, "O": -430.5}}')
    assert "E0 of H (new): -13.6" in shown


def test_a_head_that_is_added_and_has_no_structures_is_refused(tune: Callable[..., str]) -> None:
    text = tune({"pbe": 1.0}, "--add_head", "new", "--copy_head", "pbe", code=2)
    assert "no structure to train on is of the new head new: give their file with" in text
