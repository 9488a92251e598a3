"""The page of evaluate.py --report: its numbers are those of --output_json, its text is
text, it needs no network.
"""

import html
import json
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read, write

from conftest import TINY, waters
from dataloader.quantities import ENERGY
from model_utils import evaluate, model_loader
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.report import figures, libraries, page, tables

MILLI = 1000
HOSTILE = [
    '<img src=x onerror="alert(1)">',
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}",
    'a"b & $c$',
]
needs_chemiscope = pytest.mark.skipif(
    find_spec("chemiscope") is None, reason="pip install -e '.[report]'"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of unlike weights, and labelled structures whose names are hostile."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    described = model_json.read(folder / "tiny.json")
    for name, seed in (("new.model", 1), ("old.model", 2)):
        checkpoint.write_bare_module(
            folder / name, model_loader.build(described, torch.float64, seed)
        )
    frames = waters(24)
    for number, atoms in enumerate(frames):
        atoms.info["config_type"] = HOSTILE[number % len(HOSTILE)]
    write(folder / "test.xyz", frames, format="extxyz")
    return folder


@pytest.fixture(scope="module")
def judged(place: Path) -> tuple[str, dict[str, Any]]:
    """Page and JSON of both models compared, without structures."""
    flags = ["--compare_with", str(place / "old.model"), "--worst", "0", "--draws", "200"]
    return written(place, "judged", *flags)


def written(place: Path, name: str, *flags: str) -> tuple[str, dict[str, Any]]:
    where = ["--report", str(place / f"{name}.html"), "--output_json", str(place / f"{name}.json")]
    what = ["--input_model", str(place / "new.model"), "--xyz_path", str(place / "test.xyz")]
    assert evaluate.main([*what, *where, *flags]) == 0
    return (place / f"{name}.html").read_text(), json.loads((place / f"{name}.json").read_text())


class Cells(HTMLParser):
    """Rows of all tables, and every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._in_a_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._in_a_cell = tag in ("td", "th")
        if self._in_a_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_a_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_a_cell:
            self.rows[-1][-1] += data


def shown(value: float) -> str:
    return f"{MILLI * value:.2f}"


def test_numbers_of_the_page_are_those_of_the_json(judged: tuple[str, dict[str, Any]]) -> None:
    text, content = judged
    rows = Cells(text).rows
    intervals = content["intervals"]["total"]
    for name in (
        "energy_rmse_per_atom",
        "energy_mae_per_atom",
        "energy_mae_cfg",
        "forces_rmse",
        "forces_mae",
    ):
        low, high = intervals[name]
        assert low < content[name] < high
        assert [name, shown(content[name]), f"{shown(low)} to {shown(high)}"] in [
            row[:3] for row in rows
        ]
    for kind in ("by_element", "by_config_type", "by_size", "by_force_magnitude"):
        assert len(content[kind]) > 1
        for group, errors in content[kind].items():
            row = next(
                row for row in rows if row[0] == group and row[1] == str(errors["n_configs"])
            )
            assert shown(errors["forces_rmse"]) in row
            if "energy_rmse_per_atom" in errors:
                assert shown(errors["energy_rmse_per_atom"]) in row


def test_a_comparison_has_baseline_finetuned_and_delta(
    judged: tuple[str, dict[str, Any]], place: Path
) -> None:
    text, content = judged
    flags = ["--xyz_path", str(place / "test.xyz"), "--overwrite"]
    alone = {}
    for name in ("new", "old"):
        path = place / f"alone_{name}.json"
        assert (
            evaluate.main(
                ["--input_model", str(place / f"{name}.model"), *flags, "--output_json", str(path)]
            )
            == 0
        )
        alone[name] = json.loads(path.read_text())
    rows = Cells(text).rows
    for name in ("energy_rmse_per_atom", "energy_mae_cfg", "forces_rmse", "forces_mae"):
        assert content["baseline"][name] == pytest.approx(alone["old"][name], rel=1e-12)
        assert content["finetuned"][name] == pytest.approx(alone["new"][name], rel=1e-12)
        assert content["delta"][name] == content["finetuned"][name] - content["baseline"][name]
        delta = f"{MILLI * content['delta'][name]:+.2f}"
        both = [shown(content[which][name]) for which in ("baseline", "finetuned")]
        assert [name, *both, delta] in [row[:4] for row in rows]
        low, high = content["delta_intervals"][name]
        assert low <= content["delta"][name] <= high
        assert 0 < content["p_values"][name] <= 1
    assert content["delta"]["stress_rmse"] is None


def test_a_model_against_itself_is_not_told_apart(place: Path) -> None:
    path = place / "same.json"
    flags = [
        "--compare_with",
        str(place / "new.model"),
        "--output_json",
        str(path),
        "--draws",
        "50",
    ]
    assert (
        evaluate.main(
            [
                "--input_model",
                str(place / "new.model"),
                "--xyz_path",
                str(place / "test.xyz"),
                *flags,
            ]
        )
        == 0
    )
    content = json.loads(path.read_text())
    assert content["delta"]["forces_rmse"] == 0
    assert content["p_values"]["forces_rmse"] == 1
    assert tables.comparison(content).rows[0][-1] == tables.UNDECIDED


def test_sums_by_structure_and_group_are_those_of_the_structures(place: Path) -> None:
    """By hand, from the predictions that evaluate.py writes."""
    flags = ["--output_xyz", str(place / "predicted.xyz"), "--worst", "0", "--draws", "50"]
    _, content = written(place, "by_hand", *flags)
    squared = {"0-0.1 eV/Å": []}  # type: dict[str, list[float]]
    small = []
    for atoms in read(place / "predicted.xyz", ":"):
        error = atoms.arrays["mace_forces"] - atoms.arrays["REF_forces"]
        lengths = np.linalg.norm(atoms.arrays["REF_forces"], axis=1)
        squared["0-0.1 eV/Å"] += (error[lengths < 0.1] ** 2).ravel().tolist()
        if len(atoms) == 3:
            small.append((atoms.info["mace_energy"] - atoms.info["REF_energy"]) / 3)
    assert squared["0-0.1 eV/Å"], "some forces are small"
    for group, values in squared.items():
        assert content["by_force_magnitude"][group]["forces_rmse"] == pytest.approx(
            np.sqrt(np.mean(values)), rel=1e-5
        )
    of_small = content["by_size"]["2-4 atoms"]
    assert of_small["n_configs"] == len(small) == 12
    assert of_small["energy_rmse_per_atom"] == pytest.approx(
        np.sqrt(np.mean(np.square(small))), rel=1e-5
    )


def test_text_of_data_is_text(judged: tuple[str, dict[str, Any]]) -> None:
    text, _ = judged
    page_ = Cells(text)
    assert {row[0] for row in page_.rows} >= set(HOSTILE)
    assert not [tag for tag, _ in page_.elements if tag == "script"]
    assert not [
        name for _, attributes in page_.elements for name in attributes if name.startswith("on")
    ]
    images = [attributes["src"] for tag, attributes in page_.elements if tag == "img"]
    assert all(str(source).startswith("data:image/png;base64,") for source in images)
    assert not [name for name in HOSTILE[:2] if name in text]


def test_the_page_loads_nothing(judged: tuple[str, dict[str, Any]]) -> None:
    text, _ = judged
    assert "default-src &#39;none&#39;; script-src &#39;none&#39;" in text
    for tag, attributes in Cells(text).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")  # type: ignore[union-attr]


@needs_chemiscope
def test_structures_are_shown_by_the_viewer_and_only_its_scripts_may_run(place: Path) -> None:
    text, content = written(place, "viewer", "--worst", "5", "--draws", "50")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    assert page.policy(scripts) in html.unescape(text)
    data = json.loads(re.search(r'id="structures">(.*?)</script>', text, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert len(data["structures"]) == 5
    errors = data["properties"]["forces error"]["values"]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] >= content["forces_rmse"]
    assert len(text) < 5_000_000


def test_a_library_that_is_missing_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(libraries.importlib, "import_module", absent)
    what = ["--input_model", str(place / "new.model"), "--xyz_path", str(place / "test.xyz")]
    assert evaluate.main([*what, "--report", str(place / "absent.html")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "--report needs matplotlib, which is not installed: pip install matplotlib" in said[0]
    assert not (place / "absent.html").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--compare_with", "absent.model"], "absent.model"),
        (["--compare_head", "Default"], "--compare_head is given without --compare_with"),
        (["--report", "test.xyz", "--worst", "0"], "is there already"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_cannot_be_done_is_said(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(place)
    assert evaluate.main(["--input_model", "new.model", "--xyz_path", "test.xyz", *flags]) == 2
    assert said in capsys.readouterr().err


def test_structures_without_labels_make_a_page(place: Path) -> None:
    frames = waters(3)
    for atoms in frames:
        atoms.info.clear()
        del atoms.arrays["REF_forces"]
    write(place / "bare.xyz", frames, format="extxyz")
    path = place / "bare.html"
    flags = ["--report", str(path), "--worst", "0", "--draws", "20"]
    assert (
        evaluate.main(
            [
                "--input_model",
                str(place / "new.model"),
                "--xyz_path",
                str(place / "bare.xyz"),
                *flags,
            ]
        )
        == 0
    )
    assert "3, 12" in path.read_text()


@pytest.mark.parametrize("around", [-626.085, 0.0, -31527.4, 1e-4])
def test_numbers_along_an_axis_do_not_meet(around: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Total energies per atom differ in the fifth digit, and each number is written whole."""
    drawn = []
    monkeypatch.setattr(figures, "as_png", lambda figure: drawn.append(figure) or b"")
    labels = around + np.linspace(-0.035, 0.035, 50)
    figures.parity(ENERGY, labels, labels + 1e-4)
    figure = drawn[0]
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert len(boxes) > 1
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
