"""The quickstart: train a small model, evaluate it on its test set, say what to try
next: ``make quickstart``.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "runs" / "quickstart"


def main() -> None:
    """Run the two commands a user would type, and show them."""
    began = time.monotonic()
    folder = RUN.relative_to(ROOT)
    model = f"{folder}/quickstart_model.pt"
    errors_file = f"{folder}/test_errors.json"
    command(
        "model_utils/train_mace.py --config configs/quickstart.yaml --output_checkpoint "
        f"{folder} --overwrite"
    )
    command(
        f"model_utils/evaluate.py --input_model {model} --xyz_path configs/quickstart/test.xyz "
        f"--output_json {errors_file} --overwrite --threads 1"
    )
    errors = json.loads((ROOT / errors_file).read_text())
    print(
        "\n"
        f"Done in {time.monotonic() - began:.0f} s. On the test set, hotter than the training set "
        f"by 100 K: {1000 * errors['forces_rmse']:.0f} meV/Å (the forces themselves: 1099 meV/Å), "
        f"{1000 * errors['energy_rmse_per_atom']:.1f} meV/atom.\n"
        f"Everything lies in {folder}/. Next:\n"
        "  python model_utils/train_mace.py --help\n"
        "  python metadata.py init --xyz_train YOUR.xyz --output_json model.json   # from your own "
        "data\n"
        "  python model_utils/train_mace.py --input_json model.json --xyz_train YOUR.xyz "
        "--output_checkpoint runs/mine\n"
        f"  python model_utils/evaluate.py --input_model {model} --xyz_path YOUR.xyz"
    )


def command(line: str) -> None:
    """Show a command line and run it."""
    print(f"$ python {line}", flush=True)
    done = subprocess.run([sys.executable, *line.split()], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
