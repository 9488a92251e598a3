"""What a fine-tuning forgets and replay keeps: MACE-MP-0 small on 50 solvent clusters, with
50 MPtrj frames or none.

    python benchmarks/replay.py [--epochs 20] [--labels file source] [--keep FOLDER]

Errors on 200 fixed frames of the clusters' test file and on 200 MPtrj frames that were not
replayed; energies of the latter on the source's E0s, whatever the head. Needs the measured data
(MACE_TRAIN_SHARED_DATA, default ../shared/data). About ten minutes on one core.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataloader.dataset import Dataset
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.sources import SourceSpec, open_sources
from losses import Loss
from model_utils import model_loader
from model_utils.metrics import Metrics
from model_utils.run.loading import evaluator
from model_utils.settings.options import BatchOptions

DATA = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
SOURCE = DATA / "mace_mp/mace_mp_small.model"
CLUSTERS = DATA / "solvent_xtb/solvent_xtb_train_50.xyz"
KEYS = LabelKeys(energy="energy_xtb", forces="forces_xtb")
DATA_FLAGS = [
    "--xyz_train",
    str(CLUSTERS),
    "--energy_key",
    "energy_xtb",
    "--forces_key",
    "forces_xtb",
]
RUN_FLAGS = [
    "--dtype",
    "float32",
    "--batch_size",
    "5",
    "--ema",
    "--energy_weight",
    "100",
    "--no_export_mace_model",
]
FROM_SOURCE = ["--input_model", str(SOURCE), "--E0s", "shift"]


def main() -> None:
    """Fine-tune with and without replay, train the same network from
    scratch, and print the table.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", default="5e-4")
    parser.add_argument(
        "--labels", nargs="*", default=["file", "source"], choices=["file", "source"]
    )
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        replay = folder / "replayed.xyz"
        others = folder / "others.xyz"
        test = folder / "test.xyz"
        frames = frames_of(DATA / "mptrj/mptrj-random-1k.xyz")
        replay.write_text("".join(frames[:50]))
        others.write_text("".join(frames[50:250]))
        test.write_text("".join(frames_of(DATA / "solvent_xtb/solvent_xtb_test.xyz")[::5]))
        length = ["--epochs", str(asked.epochs), "--lr", asked.lr]
        begin = ["--max_steps", "1", "--lr", "1e-30", "--weight_decay", "0"]
        runs = {
            "source, E0s shifted": (["model_utils/finetune.py", *FROM_SOURCE, *begin], "Default"),
            "fine-tuned": (["model_utils/finetune.py", *FROM_SOURCE, *length], "Default"),
        }
        for labels in asked.labels:
            with_replay = ["--replay", str(replay), "--replay_labels", labels]
            runs[f"and replay, labels of the {labels}"] = (
                ["model_utils/finetune.py", *FROM_SOURCE, *length, *with_replay],
                "replay",
            )
        scratch = [
            "model_utils/train_mace.py",
            "--input_json",
            str(fresh(folder)),
            "--epochs",
            str(asked.epochs),
        ]
        runs["from scratch"] = (scratch, "")
        print(
            f"{'':34s}{'clusters':>20s}{'MPtrj':>20s}{'':>10s}\n{'':34s}"
            + 2 * "    meV/atom    meV/Å"
            + "     CPU s"
        )
        for name, (words, head) in runs.items():
            place = folder / name.replace(" ", "_").replace(",", "")
            began = os.times()
            command(*words, *DATA_FLAGS, *RUN_FLAGS, "--output_checkpoint", str(place))
            ended = os.times()
            model = place / f"{place.name}_model.pt"
            measured = [errors(model, test, KEYS, "Default")]
            measured += [errors(model, others, LabelKeys(), head)] if head else []
            cells = "".join(
                f"{1000 * of['energy_rmse_per_atom']:12.1f}{1000 * of['forces_rmse']:9.1f}"
                for of in measured
            )
            seconds = ended.children_user - began.children_user
            print(f"{name:34s}{cells:42s}{seconds:8.0f}", flush=True)


def errors(path: Path, xyz: Path, keys: LabelKeys, head: str) -> Metrics:
    """Errors of the best weights on a file; MPtrj's energies (which have the usual
    names) on the source's E0s.
    """
    loaded = model_loader.load(path)
    facts = loaded.description.facts()
    if keys.energy is None:
        stored = model_loader.load(SOURCE).description.atomic_energies[0]
        facts = dataclasses.replace(facts, atomic_energies=(tuple(stored),) * len(facts.heads))
    torch.set_default_dtype(loaded.file.dtype)
    spec = SourceSpec(path=xyz, format="xyz", keys=keys, head=head)
    data = Dataset(open_sources([spec], needs=TO_TRAIN, max_dropped=0.0), facts, loaded.file.dtype)
    network = model_loader.build_network(loaded.module, "fast", loaded.description)
    evaluate = evaluator(data, BatchOptions(batch_size=5), torch.device("cpu"))
    return evaluate(network, model_loader.trainable(loaded.module), Loss.of())[0]


def fresh(folder: Path) -> Path:
    """The source's network for the clusters' elements, with their statistics in
    place of the source's.
    """
    exported, plain, fitted = (folder / f"{name}.json" for name in ("source", "plain", "fresh"))
    command(
        "read_model.py",
        "export",
        "--input_model",
        str(SOURCE),
        "--output_json",
        str(exported),
        "--overwrite",
    )
    fields = json.loads(exported.read_text())
    for name in (
        "atomic_numbers",
        "atomic_energies",
        "avg_num_neighbors",
        "atomic_inter_scale",
        "atomic_inter_shift",
    ):
        del fields[name]
    plain.write_text(json.dumps(fields))
    command(
        "metadata.py",
        "fit",
        "--input_json",
        str(plain),
        *DATA_FLAGS,
        "--output_json",
        str(fitted),
        "--overwrite",
    )
    return fitted


def frames_of(path: Path) -> list[str]:
    """The frames of an extended-XYZ file as text."""
    lines = path.read_text().splitlines(keepends=True)
    frames = []
    first = 0
    while first < len(lines):
        last = first + int(lines[first]) + 2
        frames.append("".join(lines[first:last]))
        first = last
    return frames


def command(*words: str) -> None:
    """Run one of our commands; its output is shown only where it fails."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
