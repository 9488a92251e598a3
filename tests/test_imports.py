"""The directions of imports: who may know whom, and where third parties stay."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *sorted((ROOT / "dataloader").rglob("*.py")),
    *sorted((ROOT / "model_utils").rglob("*.py")),
    *(ROOT / name for name in ("losses.py", "optimizer.py", "metadata.py", "read_model.py")),
]
# where entry scripts lie; the rooms below have none
COMMANDS = (ROOT, ROOT / "model_utils", ROOT / "dataloader")
HOME = {  # third party: the only modules that may import it
    "mace": ["model_utils.models.mace_import"],
    "e3nn": ["model_utils.models.mace_import"],
    "lmdb": ["dataloader.lmdb_file"],
    "vesin": ["dataloader.neighbors"],
    "cyclopts": ["model_utils.settings.parser", "model_utils.settings.option_types"],
    "pydantic": [
        "model_utils.models.schema",
        "model_utils.models.mace_description",
        "model_utils.models.dipole_description",
        "model_utils.models.libraries.library_description",
        "model_utils.models.libraries.graph_pes_descriptions",
        "model_utils.models.libraries.visnet_description",
    ],
    "graph_pes": ["model_utils.models.libraries.graph_pes_networks"],
    "torch_geometric": ["model_utils.models.libraries.visnet"],
    "triton": ["model_utils.models.fast.triton.assemble", "model_utils.models.fast.triton.library"],
    "pymatgen": ["model_utils.judging.pymatgen_library"],
    "smact": ["model_utils.judging.validity"],
    "pyxtal": ["model_utils.generation.symmetric"],
    "ase_ga": ["model_utils.generation.evolving"],
    "pickle": ["dataloader.lmdb_shards.restricted_pickle", "dataloader.lmdb_shards.pickle_scanner"],
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_run_as_a_file(path: Path) -> bool:
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    return "__name__ == '__main__'" in [
        ast.unparse(node.test) for node in statements if isinstance(node, ast.If)
    ]


ENTRY = {module_name(path) for path in FILES if path.parent in COMMANDS and is_run_as_a_file(path)}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are never relative"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_directions(path: Path) -> None:
    name, found = module_name(path), imports_of(path)
    assert not found & (ENTRY - {name}), "nobody imports an entry script"
    if (name.startswith("dataloader") and name not in ENTRY) or name in ("optimizer",):
        assert not any(f.split(".")[0] in ("model_utils", "losses") for f in found), (
            "data and optimizer know no models"
        )
    if name == "losses":
        assert not any(f.startswith("model_utils") for f in found)
    if name.startswith("model_utils.models."):
        above = ("run.", "settings.", "files.", "tasks.", "model_loader")
        assert not any(f.startswith(tuple(f"model_utils.{a}" for a in above)) for f in found)
    if name in [f"model_utils.run.{loop}" for loop in ("fit", "step", "evaluation", "train_state")]:
        assert not any(f in ("pathlib", "json", "yaml") for f in found), "the loop knows no files"
        assert not any(f.startswith(("model_utils.settings", "model_utils.files")) for f in found)
    for library, homes in HOME.items():
        if any(f == library or f.startswith(f"{library}.") for f in found):
            assert name in homes, f"{library} is imported only in {homes}"


def part_of(module: str, package: str) -> str:
    """The part of a package to which a module belongs: a folder is one part, and so is each
    module that lies beside the folders.
    """
    return ".".join(module.split(".")[: package.count(".") + 2])


def floors_of(package: str) -> tuple[list[str], dict[str, set[str]]]:
    """The parts of a package, each after those on which it stands, and on which each stands."""
    paths = [
        path
        for path in FILES
        if module_name(path).startswith(f"{package}.") and module_name(path) not in ENTRY
    ]
    parts = {part_of(module_name(path), package) for path in paths}
    stands_on: dict[str, set[str]] = {part: set() for part in parts}
    for path in paths:
        part = part_of(module_name(path), package)
        stands_on[part] |= {part_of(name, package) for name in imports_of(path)} & parts - {part}
    # CycleError names the parts of a circle
    return list(TopologicalSorter(stands_on).static_order()), stands_on


@pytest.mark.parametrize("package", ["dataloader", "model_utils", "model_utils.run"])
def test_parts_of_a_package_stand_on_each_other_in_no_circle(package: str) -> None:
    floors, _ = floors_of(package)
    assert len(floors) > 20


def test_floors_of_the_data_package() -> None:
    floors, stands_on = floors_of("dataloader")
    assert floors.index("dataloader.durable") < floors.index("dataloader.array_file")
    assert floors.index("dataloader.packed") < floors.index("dataloader.lmdb_shards")
    for reader in (
        "dataloader.labels",
        "dataloader.record",
        "dataloader.xyz",
        "dataloader.lmdb_shards",
    ):
        assert "dataloader.batch" not in stands_on[reader], "who reads a file knows no batches"


def test_one_module_writes_whole_files() -> None:
    """Everyone else's file would be lost by a power failure that the one writer survives."""
    # name what is checked first
    elsewhere = {"model_utils.models.fast.code_cache", "model_utils.tasks.conversion"}
    elsewhere |= {
        "model_utils.run.beginnings.replaying",
        "model_utils.run.beginnings.resuming",
    }  # set whole files aside
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "os.replace(" not in text or module_name(path) in {
            "dataloader.durable",
            *elsewhere,
        }, path
        assert "flock(" not in text or module_name(path) == "dataloader.file_lock", path


def test_the_entry_scripts_are_the_commands_of_the_pages() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    files = {name.replace(".", "/") + ".py" for name in ENTRY}
    assert files == set(re.findall(r"^python ([\w/]+\.py)", text, re.MULTILINE))


def test_only_checkpoint_saves_and_loads_torch_files() -> None:
    for path in FILES:
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save")
        ]
        # --trust_pickle, in a process of its own
        if module_name(path) == "model_utils.tasks.unpickling":
            assert len(calls) == 1
            continue
        assert not calls or module_name(path) == "model_utils.files.checkpoint", path
        for call in calls:
            if ast.unparse(call.func) == "torch.load":
                assert any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True"
                    for k in call.keywords
                )


def test_entry_scripts_define_no_classes_and_stay_short() -> None:
    for path in [path for path in FILES if module_name(path) in ENTRY]:
        text = path.read_text(encoding="utf-8")
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(text)))
        assert len(text.splitlines()) < 100, path


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from model_utils import train_mace; train_mace.main(['--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--xyz_train" in done.stdout


def test_importing_mace_leaves_safe_loading_on() -> None:
    code = (
        "import os; import model_utils.models.mace_import; assert "
        "'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TORCH_FORCE_")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
