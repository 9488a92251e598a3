"""metadata.py: the same numbers as mace-torch's own functions, and a complete
model.json in one command.
"""

import gc
import importlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write

import metadata
from conftest import ROOT, TINY, waters
from dataloader.atomic_energies import OC22
from dataloader.labels import TO_TRAIN
from dataloader.sources import SourceSpec, unread
from model_utils import train_mace
from model_utils.models import description
from model_utils.models.mace_description import MaceDescription
from model_utils.tasks.mace_yaml import MACE_SETTINGS, OF_DATA


def init(tmp_path: Path, *flags: str, code: int = 0) -> dict[str, object]:
    out = tmp_path / "model.json"
    assert metadata.main(["init", "--output_json", str(out), *flags]) == code
    return json.loads(out.read_text()) if code == 0 else {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "w.xyz", waters(9), format="extxyz")
    return tmp_path / "w.xyz"


@pytest.mark.parametrize(
    ("name", "r_max", "energy_key", "forces_key"),
    [
        ("configs/quickstart/valid.xyz", 2.0, "REF_energy", "REF_forces"),
        ("solvent_xtb/solvent_xtb_train_200.xyz", 4.0, "energy_xtb", "forces_xtb"),
        ("mptrj/mptrj-random-1k.xyz", 4.0, "energy", "forces"),
    ],
)
def test_statistics_are_maces_own(
    name: str,
    r_max: float,
    energy_key: str,
    forces_key: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    from model_utils.models.mace_import import _unsafe_loading_during_import, mace

    with _unsafe_loading_during_import():
        from mace import data, tools
        from mace.data.utils import compute_average_E0s
        from mace.tools import torch_geometric

    path = (
        ROOT / name if name.startswith("configs") else request.getfixturevalue("shared_data") / name
    )
    flags = ["--xyz_train", str(path), "--r_max", str(r_max), "--E0s", "average", "--overwrite"]
    flags += ["--energy_key", energy_key, "--forces_key", forces_key]
    found = init(tmp_path, *flags, "--scaling", "std")
    frames = [a for a in read(path, ":") if a.info.get("config_type") != "IsolatedAtom"]
    labels = [{**a.info, **a.arrays, **(a.calc.results if a.calc else {})} for a in frames]
    table = tools.AtomicNumberTable(sorted({int(z) for a in frames for z in a.numbers}))
    configurations = [
        data.Configuration(
            atomic_numbers=a.numbers,
            positions=a.positions,
            properties={"energy": label[energy_key], "forces": label[forces_key]},
            property_weights={"energy": 1.0, "forces": 1.0},
            cell=np.array(a.cell),
            pbc=tuple(map(bool, a.pbc)),
            head="Default",
        )
        for a, label in zip(frames, labels, strict=True)
    ]
    torch.set_default_dtype(torch.float64)
    assert found["atomic_numbers"] == list(table.zs)
    energies = np.array([list(compute_average_E0s(configurations, table).values())])
    assert np.array(found["atomic_energies"]) == pytest.approx(energies, rel=1e-8)
    graphs = [
        data.AtomicData.from_config(c, z_table=table, cutoff=r_max, heads=["Default"])
        for c in configurations
    ]
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=7)
    assert found["avg_num_neighbors"] == pytest.approx(
        mace.modules.compute_avg_num_neighbors(loader), rel=1e-8
    )
    mean, std = mace.modules.compute_mean_std_atomic_inter_energy(loader, energies)
    assert found["atomic_inter_shift"] == pytest.approx(
        np.atleast_1d(mean).tolist(), rel=1e-8, abs=1e-10
    )
    # eV: E − ΣE0 cancels most digits of both
    assert found["atomic_inter_scale"] == pytest.approx(
        np.atleast_1d(std).tolist(), rel=1e-8, abs=1e-8
    )
    _, scale = mace.modules.compute_mean_rms_energy_forces(loader, energies)
    rms = init(tmp_path, *flags)
    assert rms["atomic_inter_scale"] == pytest.approx(np.atleast_1d(scale).tolist(), rel=1e-8)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Of reading 40 and 1200 frames; at 10⁶ see benchmarks/statistics_memory.py."""
    peaks = []
    # the first time also fills what is kept for later, such as caches of parsers
    for n in (40, 40, 1200):
        write(tmp_path / f"{n}.xyz", waters(8) * (n // 8), format="extxyz")
        peaks.append(peak_of_reading(tmp_path / f"{n}.xyz", n))
    assert peaks[2] - peaks[1] < 30 * (1200 - 40), "bytes; a frame that is kept costs a thousand"


def peak_of_reading(path: Path, n: int) -> int:
    """Bytes in use at most between two frames and while one is read, cyclic
    garbage collected after each.

    When the collector comes by itself depends on all that the process has allocated before: up to
    hundreds of frames, which hold cycles, would be counted or not.
    """
    frames = unread(
        [SourceSpec(path=path, format="xyz")], needs=TO_TRAIN, elements=None, max_dropped=0.0
    )
    gc.collect()
    gc.freeze()  # what was there before is not looked through after every frame
    gc.disable()
    tracemalloc.start()
    try:
        read = peak = 0
        for structure in frames:
            assert structure().n_atoms in (3, 6)
            read += 1
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            gc.collect()
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
        gc.enable()
        gc.unfreeze()
    assert read == n
    return peak


def test_one_command_gives_a_complete_description(file: Path, tmp_path: Path) -> None:
    found = init(tmp_path, "--xyz_train", str(file), "--preset", "small")
    assert set(found) == set(MaceDescription.model_fields)
    assert (found["atomic_numbers"], found["hidden_irreps"]) == ([1, 8], "128x0e")


def test_an_isolated_atom_whose_energy_has_a_name_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.xyz"
    path.write_text("1\nconfig_type=IsolatedAtom dft_energy=-13.6\nH 0.0 0.0 0.0\n")
    init(tmp_path, "--train_file", str(path), code=2)
    assert "own.xyz#0: IsolatedAtom frame of H has no energy under" in (
        said := capsys.readouterr().err
    )
    assert "with --energy_key" in said


@pytest.mark.parametrize("config_type", ["IsolatedAtom", "isolated_atom"])
def test_isolated_atoms_are_used_and_what_they_lack_is_fitted(
    config_type: str, tmp_path: Path
) -> None:
    hydrogen = Atoms("H", info={"REF_energy": -13.0, "config_type": config_type})
    hydrogen.arrays["REF_forces"] = np.zeros((1, 3))
    frames = waters(4)
    for atoms in frames:  # an exact composition law: H -13, O -400
        atoms.info["REF_energy"] = -13.0 * sum(atoms.numbers == 1) - 400.0 * sum(atoms.numbers == 8)
    write(tmp_path / "h.xyz", [hydrogen, *frames], format="extxyz")
    found = init(tmp_path, "--xyz_train", str(tmp_path / "h.xyz"))
    assert found["atomic_energies"][0] == pytest.approx([-13.0, -400.0])  # type: ignore[index]
    assert found["atomic_inter_shift"] == pytest.approx([0.0], abs=1e-9)


def test_compositions_that_do_not_determine_every_e0(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = init(tmp_path, "--xyz_train", str(file))
    assert "compositions determine only 1 of 2 elements" in capsys.readouterr().out
    assert found["atomic_energies"][0][0] == pytest.approx(2 * found["atomic_energies"][0][1])  # type: ignore[index]
    init(tmp_path, "--xyz_train", str(file), "--E0s", "lstsq", "--overwrite", code=2)
    assert "compositions determine only 1 of 2 E0s; use --E0s average" in capsys.readouterr().err


def test_given_e0s(file: Path, tmp_path: Path) -> None:
    found = init(tmp_path, "--xyz_train", str(file), "--E0s", '{"H": -13.6, "8": -430}')
    assert found["atomic_energies"] == [[-13.6, -430.0]]


def test_a_mace_yaml_describes_the_network(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mace.yml").write_text(
        "model: MACE\nnum_channels: 16\nmax_L: 1\nr_max: 4.0\ncorrelation: 2\nlr: 0.1\n"
    )
    found = init(tmp_path, "--xyz_train", str(file), "--mace_config", str(tmp_path / "mace.yml"))
    assert found["hidden_irreps"] == "16x0e+16x1o"
    assert found["interaction_cls_first"] == "RealAgnosticInteractionBlock"
    assert found["atomic_inter_shift"] == [0.0]
    assert found["correlation"] == [2, 2]


SHAPES = {  # of mace 0.3.16: what its check_args and model scripts make of them
    "hidden_irreps: 8x0e\nnum_channels: 16": "8x0e",
    "hidden_irreps: 8x0e + 8x1o\nmax_L: 0": "8x0e+8x1o",
    "hidden_irreps: 8x0e\nnum_channels: 16\nmax_L: 1": "16x0e+16x1o",
    "num_channels: 16": "16x0e+16x1o",
    "max_L: 2": "128x0e+128x1o+128x2e",
    "hidden_irreps: 8x0e": "8x0e",
}


@pytest.mark.parametrize("text", SHAPES)
def test_which_of_a_mace_yamls_shapes_counts(text: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "mace.yml").write_text(f"{text}\nr_max: 4.0\n")
    found = init(tmp_path, "--xyz_train", str(file), "--mace_config", str(tmp_path / "mace.yml"))
    assert found["hidden_irreps"] == SHAPES[text]


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        ("RealAgnosticDensityResidualInteractionBlock", "RealAgnosticInteractionBlock"),
        ("RealAgnosticResidualInteractionBlock", "RealAgnosticInteractionBlock"),
        ("RealAgnosticDensityInteractionBlock", "RealAgnosticDensityInteractionBlock"),
    ],
)
def test_the_first_block_of_maces_plain_model(
    first: str, kept: str, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mace.yml").write_text(f"model: MACE\nmax_L: 0\ninteraction_first: {first}\n")
    found = init(tmp_path, "--xyz_train", str(file), "--mace_config", str(tmp_path / "mace.yml"))
    assert found["interaction_cls_first"] == kept


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("compute_avg_num_neighbors: false\navg_num_neighbors: 7.5", 7.5),
        ("compute_avg_num_neighbors: false", 1.0),
        ("avg_num_neighbors: 7.5", 50 / 13),  # measured
    ],
)
def test_a_number_of_neighbours_that_is_not_to_be_measured(
    text: str, number: float, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mace.yml").write_text(f"{text}\nr_max: 4.0\nmax_L: 0\n")
    found = init(tmp_path, "--xyz_train", str(file), "--mace_config", str(tmp_path / "mace.yml"))
    assert found["avg_num_neighbors"] == pytest.approx(number)


def of_yaml(folder: Path, text: str, *words: str, code: int = 0) -> dict[str, object]:
    """The model.json that init makes of waters and a YAML of mace_run_train."""
    (folder / "mace.yml").write_text(f"{text}\nr_max: 4.0\nmax_L: 0\n")
    given = ["--mace_config", str(folder / "mace.yml"), "--overwrite", *words]
    if "--xyz_train" not in words:
        given += ["--xyz_train", str(folder / "w.xyz")]
    return init(folder, *given, code=code)


def test_what_a_mace_yaml_says_of_the_data(file: Path, tmp_path: Path) -> None:
    plain = of_yaml(tmp_path, "model: ScaleShiftMACE")
    found = of_yaml(
        tmp_path,
        'model: ScaleShiftMACE\nE0s: "{1: -13.0, 8: -429.0}"\nmean: -1.0\nstd: 2.0\n'
        'atomic_numbers: "[1, 7, 8]"\n',
        code=2,
    )
    assert found == {}, "no E0 of nitrogen, which mace_run_train refuses too"
    stated = 'E0s: "{1: -13.0, 7: -50.0, 8: -429.0}"\natomic_numbers: "[1, 7, 8]"\n'
    found = of_yaml(tmp_path, f"model: ScaleShiftMACE\nmean: -1.0\nstd: 2.0\n{stated}")
    assert found["atomic_numbers"] == [1, 7, 8]
    assert found["atomic_energies"] == [[-13.0, -50.0, -429.0]]
    assert (found["atomic_inter_scale"], found["atomic_inter_shift"]) == ([2.0], [-1.0])
    found = of_yaml(tmp_path, "model: ScaleShiftMACE\nmean: -1.0")  # mace measures both
    assert found["atomic_inter_shift"] == plain["atomic_inter_shift"]
    found = of_yaml(tmp_path, "model: MACE\nmean: -1.0\nstd: 2.0")
    assert (found["atomic_inter_scale"], found["atomic_inter_shift"]) == ([2.0], [0.0])
    found = of_yaml(tmp_path, "model: ScaleShiftMACE\nscaling: no_scaling")
    assert (found["atomic_inter_scale"], found["atomic_inter_shift"]) == ([1.0], [0.0])
    words = ("--E0s", '{"H": -1, "O": -2}')
    assert of_yaml(tmp_path, "E0s: average", *words)["atomic_energies"] == [[-1.0, -2.0]]


def test_isolated_atoms_go_before_the_e0s_of_a_mace_yaml(file: Path, tmp_path: Path) -> None:
    atoms = [
        Atoms(z, info={"REF_energy": e, "config_type": "IsolatedAtom"})
        for z, e in (("H", -13.5), ("O", -431.0))
    ]
    write(tmp_path / "with.xyz", [*atoms, *waters(9)], format="extxyz")
    words = ("--xyz_train", str(tmp_path / "with.xyz"))
    found = of_yaml(tmp_path, 'E0s: "{1: -13.0, 8: -429.0}"', *words)
    assert found["atomic_energies"] == [[-13.5, -431.0]]


def test_the_statistics_of_mace_prepare_data_are_taken(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = {
        "atomic_energies": "{1: -13.25, 8: -430.5}",
        "avg_num_neighbors": 3.5,
        "mean": -3.0,
        "std": 5.0,
        "atomic_numbers": "[1, 8]",
        "r_max": 4.0,
    }
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(statistics))
    found = of_yaml(tmp_path, f"model: ScaleShiftMACE\nstatistics_file: {path}")
    assert found["atomic_energies"] == [[-13.25, -430.5]]
    assert found["avg_num_neighbors"] == 3.5
    assert found["atomic_inter_scale"] != [5.0], "mace_run_train measures it anew"
    assert init(tmp_path, "--xyz_train", str(file), "--E0s", str(path), "--overwrite")[
        "atomic_energies"
    ] == [[-13.25, -430.5]]
    capsys.readouterr()
    of_yaml(tmp_path, "statistics_file: nowhere.json", code=2)
    assert "statistics_file nowhere.json" in capsys.readouterr().err


def test_heads_of_a_mace_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = waters(8)
    for number, atoms in enumerate(frames):
        atoms.info["head"] = ("b", "a")[number % 2]
    write(tmp_path / "w.xyz", frames, format="extxyz")
    heads = {
        "a": {"train_file": "x", "E0s": "{1: -13.0, 8: -429.0}"},
        "b": {"train_file": "y", "E0s": "{1: -14.0, 8: -428.0}"},
    }
    found = of_yaml(tmp_path, f"heads: {json.dumps(heads)}")
    assert found["heads"] == ["a", "b"]
    assert found["atomic_energies"] == [[-13.0, -429.0], [-14.0, -428.0]]
    heads["b"]["E0s"] = "average"
    capsys.readouterr()
    of_yaml(tmp_path, f"heads: {json.dumps(heads)}", code=2)
    assert "the heads have E0s of several kinds" in capsys.readouterr().err
    of_yaml(tmp_path, "heads: {a: {}, c: {}}", code=2)
    assert "the mace YAML has the heads a, c, the data b, a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("E0s: foundation", "belong to a fine-tuning"),
        ("scaling: rms", "expected rms_forces_scaling, std_scaling, no_scaling"),
        ("std: wide", "std is 'wide', expected a number"),
        ("atomic_numbers: 8", "atomic_numbers is 8, expected a list of numbers"),
        ("heads: one", "heads is 'one', expected a mapping"),
    ],
)
def test_a_mace_yaml_that_says_something_else_of_the_data(
    text: str,
    sentence: str,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_yaml(tmp_path, text, code=2)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["AtomicDipolesMACE", "EnergyDipolesMACE"])
def test_a_mace_yaml_of_dipoles(name: str, tmp_path: Path) -> None:
    frames = waters(9)
    for atoms in frames:
        atoms.info["REF_dipole"] = np.array([0.1, 0.2, 0.3])
    write(tmp_path / "w.xyz", frames, format="extxyz")
    irreps = "16x0e+16x1o" if name == "EnergyDipolesMACE" else "16x1o"
    shape = f"hidden_irreps: 8x0e+8x1o\nMLP_irreps: {irreps}\nr_max: 4.0\n"
    (tmp_path / "mace.yml").write_text(f"model: {name}\n{shape}")
    words = ("--xyz_train", str(tmp_path / "w.xyz"), "--mace_config", str(tmp_path / "mace.yml"))
    found = init(tmp_path, *words)
    assert found["model_class"] == name
    assert found["interaction_cls_first"] == "RealAgnosticInteractionBlock"


@pytest.mark.parametrize(
    "text", ['{"H": -13.6, "H": -14.0}', "{1: -13.6, 1: -14}", "{1: -13.6, 'H': -14, 8: -1}"]
)
def test_an_e0_that_is_given_twice_is_refused(
    text: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(tmp_path, "--xyz_train", str(file), "--E0s", text, code=2)
    assert "--E0s" in capsys.readouterr().err


def test_e0s_as_mace_run_train_takes_them(file: Path, tmp_path: Path) -> None:
    found = init(tmp_path, "--xyz_train", str(file), "--E0s", "{1: -13.6, 8: -430}")
    assert found["atomic_energies"] == [[-13.6, -430.0]]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *[
            ("correlations", "correlation"),
            ("rmax", "r_max"),
            ("R_max", "r_max"),
            ("hidden_irrep", "hidden_irreps"),
        ],
        *[
            ("num_channel", "num_channels"),
            ("maxL", "max_L"),
            ("max_l", "max_L"),
            ("radial_mlp", "radial_MLP"),
        ],
        *[
            ("num_radial_bases", "num_radial_basis"),
            ("num_bessel", "num_radial_basis"),
            ("modle", "model"),
        ],
        *[
            ("interaction_cls", "interaction"),
            ("num-interactions", "num_interactions"),
            ("gates", "gate"),
        ],
    ],
)
def test_a_misspelt_key_of_a_mace_yaml_is_an_error(
    key: str, meant: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "mace.yml", tmp_path / "out.json"
    path.write_text(f"model: MACE\nnum_channels: 16\n{key}: 1\nlr: 0.1\n")
    words = [
        "init",
        "--xyz_train",
        str(file),
        "--mace_config",
        str(path),
        "--output_json",
        str(out),
    ]
    assert metadata.main(words) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {path}: mace_run_train has no '{key}'; did you mean {meant}? if "
        "not, remove the line\n"
    )
    assert not out.exists()


def test_every_setting_of_mace_is_known_and_what_is_like_nothing_is_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_utils.models import mace_import  # noqa: F401  # imports mace without leaving safe loading off

    parser = importlib.import_module("mace.tools.arg_parser").build_default_arg_parser()
    names = {action.dest for action in parser._actions} - {
        "help",
        *MACE_SETTINGS,
        *OF_DATA,
        "model",
        "num_channels",
        "max_L",
    }
    (tmp_path / "mace.yml").write_text(
        "".join(f"{name}: 1\n" for name in sorted(names)) + "zzz: 1\n"
    )
    init(
        tmp_path,
        "--xyz_train",
        str(file),
        "--mace_config",
        str(tmp_path / "mace.yml"),
        "--r_max",
        "3.0",
    )
    shown = capsys.readouterr().out
    assert "left aside, not of the network: " in shown
    assert "zzz" in shown


def test_fit_keeps_the_network_and_replaces_the_numbers(file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(
        '{"model_class": "ScaleShiftMACE", "r_max": 3.5, "hidden_irreps": "8x0e"}'
    )
    out = tmp_path / "out.json"
    flags = [
        "--input_json",
        str(tmp_path / "in.json"),
        "--xyz_train",
        str(file),
        "--output_json",
        str(out),
    ]
    assert metadata.main(["fit", *flags]) == 0
    found = description.read(out)
    assert (found.hidden_irreps, found.r_max, found.atomic_numbers) == ("8x0e", 3.5, [1, 8])
    assert metadata.main(["fit", *flags]) == 2, "an output that is there is not replaced"


def test_statistics_can_leave_out_the_validation_part(file: Path, tmp_path: Path) -> None:
    whole = init(tmp_path, "--xyz_train", str(file))
    part = init(tmp_path, "--xyz_train", str(file), "--valid_fraction", "0.3", "--overwrite")
    assert whole["atomic_inter_scale"] != part["atomic_inter_scale"]


def test_what_is_measured_is_what_training_keeps_of_sources_with_a_ratio(tmp_path: Path) -> None:
    """Of a source with a ratio fewer structures are set aside: by the run's own list of them."""
    pools = {"a": waters(20), "b": waters(30, seed=5)}
    for name, frames in pools.items():
        write(tmp_path / f"{name}.xyz", frames, format="extxyz")
    given = tmp_path / "data.yaml"
    given.write_text(
        "sources:\n  - a.xyz\n  - {path: b.xyz, ratio: 0.25}\nvalid_fraction: 0.2\nseed: 3\n"
    )
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    run = ["--input_json", tmp_path / "tiny.json", "--output_checkpoint", tmp_path / "run"]
    words = ["--config", given, *run, "--max_steps", 1]
    assert train_mace.main([str(word) for word in words]) == 0
    names = (tmp_path / "run/valid_structures.txt").read_text().split()
    assert {name.split("#")[0] for name in names} == {"a.xyz", "b.xyz"}
    for name, frames in pools.items():
        kept = [f for i, f in enumerate(frames) if f"{name}.xyz#{i}" not in names]
        write(tmp_path / f"kept_{name}.xyz", kept, format="extxyz")
    expected = init(
        tmp_path, "--xyz_train", str(tmp_path / "kept_a.xyz"), str(tmp_path / "kept_b.xyz")
    )
    assert init(tmp_path, "--config", str(given), "--overwrite") == expected


def test_labels_of_weight_zero_say_nothing_of_a_model(tmp_path: Path) -> None:
    """They are zeros where a label is not known, in files made for mace-torch."""
    frames = waters(12)
    write(tmp_path / "known.xyz", frames, format="extxyz")
    unknown = waters(6, seed=8)
    for atoms in unknown:
        atoms.info |= {"REF_energy": 0.0, "config_energy_weight": 0.0, "config_forces_weight": 0.0}
        atoms.arrays["REF_forces"][:] = 0.0
    write(tmp_path / "both.xyz", [*frames, *unknown], format="extxyz")
    fields = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")
    known = init(tmp_path, "--xyz_train", str(tmp_path / "known.xyz"))
    both = init(tmp_path, "--xyz_train", str(tmp_path / "both.xyz"), "--overwrite")
    assert [both[name] for name in fields] == [known[name] for name in fields]


def test_the_heads_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row of E0s, scale and shift for each, in the order of the data; an element
    that a head lacks is said.
    """
    frames = waters(12)
    for i, atoms in enumerate(frames):
        atoms.info["head"] = "r2scan" if i < 6 else "pbe"
        atoms.info["REF_energy"] -= 100.0 * len(atoms) * (i >= 6)
    for atoms in frames[6:]:
        atoms.numbers[:] = 1
    atom = Atoms("O", info={"REF_energy": -430.0, "config_type": "IsolatedAtom", "head": "r2scan"})
    write(tmp_path / "h.xyz", [atom, *frames], format="extxyz")
    found = init(tmp_path, "--xyz_train", str(tmp_path / "h.xyz"))
    shown = capsys.readouterr().out
    assert found["heads"] == ["r2scan", "pbe"]
    assert "heads: r2scan (6 structures), pbe (6 structures)" in shown
    assert found["atomic_energies"][0][1] == -430.0  # type: ignore[index]
    assert found["atomic_energies"][1][1] == 0.0  # type: ignore[index]
    assert "head pbe: no structure has O: their E0s are 0" in shown
    scales, shifts = found["atomic_inter_scale"], found["atomic_inter_shift"]
    assert len(scales) == len(shifts) == 2  # type: ignore[arg-type]
    del frames[0].info["head"]
    write(tmp_path / "h.xyz", frames, format="extxyz")
    found = init(tmp_path, "--xyz_train", str(tmp_path / "h.xyz"), "--overwrite")
    assert found["heads"] == ["Default", "r2scan", "pbe"]
    assert "1 structures name no head" in capsys.readouterr().out


def test_a_network_of_several_heads_is_not_fitted_to_structures_that_name_none(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Isolated atoms that name none are of the only head of the structures."""
    network = tmp_path / "two.json"
    network.write_text(json.dumps({**TINY, "heads": ["a", "b"], "atomic_energies": [[0, 0]] * 2}))
    atoms = [
        Atoms(z, info={"REF_energy": e, "config_type": "IsolatedAtom"})
        for z, e in (("H", -13.0), ("O", -420.0))
    ]
    frames = waters(6)
    for frame in frames[1:]:
        frame.info["head"] = "b"
    made = tmp_path / "fitted.json"
    words = ["fit", "--input_json", str(network), "--xyz_train", str(tmp_path / "h.xyz")]
    words += ["--output_json", str(made)]
    write(tmp_path / "h.xyz", [*atoms, *frames], format="extxyz")
    assert metadata.main(words) == 2
    assert "1 structures name no head but the model has ['a', 'b']" in capsys.readouterr().err
    assert not made.exists()
    of_a = [atom.copy() for atom in atoms]
    for atom in of_a:
        atom.info |= {"head": "a", "REF_energy": -7.0}
    write(tmp_path / "h.xyz", [*of_a, *atoms, *frames[1:]], format="extxyz")
    code = metadata.main(words)
    assert code == 0, capsys.readouterr().err
    assert json.loads(made.read_text())["atomic_energies"] == [[-7.0, -7.0], [-13.0, -420.0]]


def test_isolated_atoms_without_a_head_are_those_of_the_only_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = [
        Atoms(z, info={"REF_energy": e, "config_type": "IsolatedAtom"})
        for z, e in (("H", -13.0), ("O", -420.0))
    ]
    frames = waters(6)
    for frame in frames:
        frame.info["head"] = "xtb"
    write(tmp_path / "h.xyz", [*atoms, *frames], format="extxyz")
    found = init(tmp_path, "--xyz_train", str(tmp_path / "h.xyz"))
    assert (found["heads"], found["atomic_energies"]) == (["xtb"], [[-13.0, -420.0]])
    for frame in frames[:3]:
        frame.info["head"] = "other"
    write(tmp_path / "h.xyz", [*atoms, *frames], format="extxyz")
    init(tmp_path, "--xyz_train", str(tmp_path / "h.xyz"), "--overwrite")
    assert "IsolatedAtom frames of H, O name no head and are left aside" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--config",)])
def test_a_file_of_isolated_atoms(
    flags: tuple[str, ...], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its frames are called; from a YAML beside it too."""
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "atoms.xyz"
    write(
        path,
        [Atoms("H", info={"REF_energy": -13.25}), Atoms("O", info={"REF_energy": -431.5})],
        format="extxyz",
    )
    (tmp_path / "sub" / "e.yaml").write_text("E0s: atoms.xyz\n")
    given = ["--config", str(tmp_path / "sub/e.yaml")] if flags else ["--E0s", str(path)]
    found = init(tmp_path, "--xyz_train", str(file), *given)
    assert found["atomic_energies"] == [[-13.25, -431.5]]
    write(path, [Atoms("H", info={"REF_energy": -13.25}), *waters(1)], format="extxyz")
    init(tmp_path, "--xyz_train", str(file), "--overwrite", *given, code=2)
    assert "atoms.xyz frame 1 has 3 atoms; expected isolated atoms only" in capsys.readouterr().err
    write(path, [Atoms("H", info={"REF_energy": -13.25})], format="extxyz")
    init(tmp_path, "--xyz_train", str(file), "--overwrite", *given, code=2)
    assert "atoms.xyz gives none for O" in capsys.readouterr().err
    write(path, [Atoms("H", info={"energy_dft": -13.25})], format="extxyz")
    init(tmp_path, "--xyz_train", str(file), "--overwrite", *given, code=2)
    assert "frame 0: energy missing (looked for the usual names)" in capsys.readouterr().err


def test_energies_by_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = waters(8)
    for i, atoms in enumerate(frames):
        atoms.info["head"] = "ab"[i % 2]
    write(tmp_path / "h.xyz", frames, format="extxyz")
    flags = ["--xyz_train", str(tmp_path / "h.xyz"), "--overwrite", "--E0s"]
    found = init(tmp_path, *flags, '{"a": {"H": -13, "O": -430}, "b": {"H": -12, "O": -431}}')
    assert found["atomic_energies"] == [[-13.0, -430.0], [-12.0, -431.0]]
    init(tmp_path, *flags, '{"a": {"H": -13, "O": -430}, "b": {"H": -12}}', code=2)
    assert "head b, gives none for O" in capsys.readouterr().err
    init(tmp_path, *flags, '{"a": {"H": -13, "O": -430}, "c": {"H": -12}}', code=2)
    assert "names head 'c', but the heads are a, b" in capsys.readouterr().err
    init(tmp_path, *flags, '{"a": {"H": -13, "O": -430}, "H": -12}', code=2)
    assert "some energies are by head and some are not" in capsys.readouterr().err


def crystal(forces: float | None, energies: float) -> list[Atoms]:
    """Single atoms in cells of several sizes: forces and energies of the given
    spread, alternating in sign.
    """
    frames = []
    for i in range(6):
        atoms = Atoms("Cu", cell=[2.5 + 0.1 * i] * 3, pbc=True)
        atoms.info["REF_energy"] = energies * (-1) ** i
        if forces is not None:
            atoms.arrays["REF_forces"] = np.full((1, 3), forces * (-1) ** i)
        frames.append(atoms)
    return frames


@pytest.mark.parametrize(
    ("forces", "energies", "scaling", "scale", "said"),
    [
        (
            1e-8,
            0.07,
            "rms_forces",
            0.07 * 1.2**0.5,
            "the spread of the energies, 0.07668 eV/atom, is taken",
        ),
        (0.0, 0.07, "rms_forces", 0.07 * 1.2**0.5, "the rms of the forces, 0 eV/Å, is noise"),
        (1e-8, 1e-9, "rms_forces", 1.0, "is noise and gives no scale: 1 is taken"),
        (0.5, 1e-9, "std", 0.5, "the rms of the forces, 0.5 eV/Å, is taken"),
        (1e-8, 1e-9, "std", 1.0, "is noise and gives no scale: 1 is taken"),
        (0.5, 0.07, "rms_forces", 0.5, ""),
        (None, 0.07, "rms_forces", 0.07 * 1.2**0.5, "no forces to take the scale from (--forces"),
        (0.004, 0.07, "rms_forces", 0.004, ""),
        (1e-8, 0.07, "std", 0.07 * 1.2**0.5, ""),
    ],
)
def test_noise_gives_no_scale(
    forces: float | None,
    energies: float,
    scaling: str,
    scale: float,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "c.xyz", crystal(forces, energies), format="extxyz")
    found = init(
        tmp_path, "--xyz_train", str(tmp_path / "c.xyz"), "--scaling", scaling, "--r_max", "4"
    )
    assert found["atomic_inter_scale"] == pytest.approx([scale], rel=1e-6)
    shown = capsys.readouterr().out
    assert said in shown
    assert ("warning" in shown) == bool(said)


def test_the_elements_of_oc22(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, or where neither data nor --elements name any; data alone give their own."""
    assert len(set(OC22)) == 57
    found = init(tmp_path, "--xyz_train", str(file), "--elements", "oc22")
    assert len(found["atomic_numbers"]) == 57  # type: ignore[arg-type]
    assert "their E0s are 0 and say nothing" in capsys.readouterr().out
    network = init(tmp_path, "--preset", "tiny", "--overwrite")
    shown = capsys.readouterr().out
    assert "neither data nor --elements name elements: the table is that of OC22" in shown
    assert network["atomic_numbers"] == found["atomic_numbers"]
    assert (network["hidden_irreps"], network["r_max"]) == ("16x0e", 4.0)
    incomplete = str(tmp_path / "model.json")
    flags = [
        "--input_json",
        incomplete,
        "--xyz_train",
        str(file),
        "--output_json",
        str(tmp_path / "whole.json"),
    ]
    assert metadata.main(["fit", *flags]) == 0
    assert description.read(tmp_path / "whole.json").atomic_numbers == found["atomic_numbers"]
    assert init(tmp_path, "--elements", "H", "O", "--overwrite")["atomic_numbers"] == [1, 8]
    assert init(tmp_path, "--xyz_train", str(file), "--overwrite")["atomic_numbers"] == [1, 8]


def test_what_compositions_do_not_determine_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = waters(6)
    for atoms in frames:
        atoms.info["REF_energy"] -= 9000.0 * (len(atoms) // 3)
    write(tmp_path / "w.xyz", frames, format="extxyz")
    init(tmp_path, "--xyz_train", str(tmp_path / "w.xyz"))
    shown = capsys.readouterr().out
    assert (
        "warning: head Default: the compositions determine only 1 of 2 E0s, and "
        "the shortest that fit"
    ) in shown
    assert "(H -37" in shown
    assert (
        "energies of other compositions, of fragments and of reactions mean nothing with them"
        in shown
    )
    assert "warning: head Default: no atom has so low an E0: H -37" in shown
    init(
        tmp_path,
        "--xyz_train",
        str(tmp_path / "w.xyz"),
        "--E0s",
        '{"H": -13, "O": -9430}',
        "--overwrite",
    )
    assert "the compositions determine" not in capsys.readouterr().out
