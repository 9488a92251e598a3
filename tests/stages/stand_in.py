"""In place of the commands of stages: reads the settings, writes what the stage makes,
notes that it was started.

The name of the script says which command it stands for. What it is told by files beside it, it does
first: fail, wait, or stop when it is asked to.
"""

import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import yaml

HERE = Path(sys.argv[0]).parent
NAME = Path(sys.argv[0]).stem


def main() -> int:
    settings = yaml.safe_load(Path(sys.argv[2]).read_text())
    with (HERE / "starts.txt").open("a") as file:
        file.write(f"{NAME}\n")
    if (HERE / f"{NAME}.stops").exists():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (HERE / f"{NAME}.running").touch()
    while (HERE / f"{NAME}.waits").exists():
        time.sleep(0.01)
    (HERE / f"{NAME}.running").unlink()
    if (HERE / f"{NAME}.fails").exists():
        code, _, line = (HERE / f"{NAME}.fails").read_text().partition(" ")
        print(f"error: {line}", file=sys.stderr)
        return int(code)
    COMMANDS[NAME](settings)
    print(f"12:00:00 {NAME} is done")
    return 0


def finetune(settings: dict) -> None:
    checkpoint = Path(settings["output_checkpoint"])
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    content = f"{Path(settings['input_model']).read_text()} after {settings.get('epochs')} epochs"
    checkpoint.write_text(content)
    checkpoint.with_name("finetuned_model.pt").write_text(content)


def evaluate(settings: dict) -> None:
    path = Path(settings["output_json"])
    path.parent.mkdir(parents=True, exist_ok=True)
    [model] = settings["input_model"]
    loss = len(Path(model).read_text())
    baseline = len(Path(settings["compare_with"]).read_text())
    names = ("energy_rmse_per_atom",)
    content = {
        "baseline": dict.fromkeys(names, baseline),
        "finetuned": dict.fromkeys(names, loss),
        "delta": dict.fromkeys(names, loss - baseline),
        "delta_intervals": {name: [0.0, 1.0] for name in names},
        "p_values": dict.fromkeys(names, 0.5),
    }
    path.write_text(json.dumps(content))


def generate(settings: dict) -> None:
    folder = Path(settings["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    frames = [
        f"crystal {number} of seed {settings.get('seed')}" for number in range(settings["num_gen"])
    ]
    (folder / "generated_crystals.extxyz").write_text("\n".join(frames))
    (folder / "generated_crystals_cif.zip").write_text("cif")
    (folder / "generation.json").write_text("{}")


def judge(settings: dict) -> None:
    folder = Path(settings["results_dir"])
    model = Path(settings["input_model"][0]).read_text()
    frames = (folder / "generated_crystals.extxyz").read_text().splitlines()
    (folder / "judging").mkdir(exist_ok=True)
    key = hashlib.sha256(model.encode()).hexdigest()[:8]
    (folder / "judging" / f"{key}.jsonl").write_text("\n".join(frames))
    (folder / "relaxed.extxyz").write_text("\n".join(frames))
    (folder / "metrics.json").write_text("{}")
    (folder / "structures.csv").write_text(
        "id,formula\n" + "".join(f"{frame},C\n" for frame in frames)
    )
    metrics = {"frac_stable_structures": {"value": 0.5}}
    content = {
        "count": len(frames),
        "metrics": metrics,
        "relaxed": True,
        "model": {"is": model},
        "references": None,
    }
    (folder / "metrics_summary.json").write_text(json.dumps(content))


COMMANDS = {"finetune": finetune, "evaluate": evaluate, "generate": generate, "judge": judge}

if __name__ == "__main__":
    sys.exit(main())
