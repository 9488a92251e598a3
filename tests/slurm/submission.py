"""submit.py on a real SLURM: a pipeline that is preempted on the way, and its files brought back.

    python tests/slurm/submission.py

Starts a cluster of its own on this machine; some minutes, two cores. Needs the Debian packages
slurm-wlm and munge, and the extras pipeline and cluster.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, ClusterError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "configs" / "pipeline"
TINY = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.0,
    "atomic_numbers": [6],
    "atomic_energies": {"C": 0.0},
    "avg_num_neighbors": 8.0,
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": -6.0,
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "correlation": 2,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
}
SECTIONS = {
    "finetune": {
        **{
            f"xyz_{role}": [str(DATA / f"{name}.xyz")]
            for role, name in (("train", "train"), ("val", "valid"))
        },
        "xyz_test": [str(DATA / "test.xyz")],
        "epochs": 60,
        "batch_size": 8,
        "threads": 1,
        "device": "cpu",
    },
    "compare": {"draws": 50},
    "generate": {"composition": ["C"], "min_atoms": 2, "max_atoms": 4, "num_gen": 2, "seed": 3},
    "judge": {"references": [str(DATA / "references.xyz")], "max_steps": 20},
}
HANGING = 600  # s
OF_THE_CLOCK = ("started", "seconds", "starts")


def main() -> int:
    """Run everything; returns 1 where anything differs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that the cluster is stopped
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with tempfile.TemporaryDirectory(prefix="slurm-submission-") as name, Cluster() as cluster:
            return Check(cluster, Path(name)).verdict()
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2


class Check:
    """The submissions, in a folder of their own."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.profile = folder / "profile.yaml"
        self.config = folder / "pipeline.yaml"
        self.model = folder / "small_model.pt"
        self.remote = folder / "remote"
        resources = {
            **{
                "number_node": 1,
                "cpu_per_node": 2,
                "gpu_per_node": 0,
                "queue_name": "low",
                "group_size": 1,
            },
            "custom_flags": [
                "#SBATCH --requeue",
                "#SBATCH --open-mode=append",
                "#SBATCH --time=30",
                "#SBATCH --mem=0",
            ],
        }
        machine = {
            "batch_type": "Slurm",
            "context_type": "LocalContext",
            "remote_root": str(self.remote),
        }
        profile = {
            "machine": machine,
            "resources": resources,
            "python": sys.executable,
            "launcher": "srun --ntasks=1",
        }
        self.profile.write_text(yaml.safe_dump(profile))
        self.config.write_text(yaml.safe_dump(SECTIONS))
        self.remote.mkdir()

    def verdict(self) -> int:
        """Submit, preempt, bring back, compare with the same pipeline here."""
        self.make_model()
        here = self.folder / "here"
        began = time.monotonic()
        self.command("pipeline.py", "run", *self.of_pipeline(), "--run_dir", here)
        print(f"pipeline without SLURM: {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        self.submit()
        [job] = list((self.folder / "jobs").glob("job_*"))
        self.wait_for_epochs(5)
        self.submit()  # finds its job again
        self.cluster.submit(
            "--partition=high", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 3"
        )
        self.wait_until_ended()  # nobody looks: the job goes back into the queue by itself
        self.submit()
        if [path.name for path in (self.folder / "jobs").glob("job_*")] != [job.name]:
            print("FAILED: the repeated command made another job")
            return 1
        stages = json.loads((job / "pipeline_run" / "summary.json").read_text())["stages"]
        restarts = sum(stage["starts"] - 1 for stage in stages.values())
        print(
            f"submitted, preempted, brought back: {time.monotonic() - began:.0f} s, "
            f"restarts {restarts}"
        )
        found = list(differences(results(here), results(job / "pipeline_run")))
        if restarts == 0:
            found.append("the job was never preempted")
        if self.remote.exists() and any(self.remote.iterdir()):
            found.append("files are left on the machine")
        print(
            f"FAILED: {'; '.join(found[:5])}"
            if found
            else "ok: the summary is that of the pipeline without SLURM"
        )
        return 1 if found else 0

    def make_model(self) -> None:
        """A network that has seen carbon for a moment."""
        path = self.folder / "tiny.json"
        path.write_text(json.dumps(TINY))
        words = (
            "--input_json",
            path,
            "--xyz_train",
            DATA / "train.xyz",
            "--xyz_val",
            DATA / "valid.xyz",
        )
        more = (
            "--output_checkpoint",
            self.folder / "small_checkpoint.pt",
            "--epochs",
            3,
            "--threads",
            1,
        )
        self.command("train_mace.py", *words, *more, "--device", "cpu")

    def of_pipeline(self) -> list[object]:
        """Words that say which pipeline it is."""
        return ["--config", self.config, "--input_model", self.model]

    def submit(self, *more: str) -> None:
        """Type the command of the submission."""
        words = ("pipeline", "--profile", self.profile, "--jobs_dir", self.folder / "jobs", *more)
        self.command("submit.py", *words, *self.of_pipeline())

    def command(self, script: str, *words: object) -> None:
        """Run a command of ours, which must succeed."""
        command = [sys.executable, str(ROOT / "model_utils" / script), *map(str, words)]
        done = subprocess.run(
            command, env=self.cluster.environment, capture_output=True, text=True, timeout=HANGING
        )
        if done.returncode:
            logs = "\n".join(
                path.read_text()[-2000:]
                for path in self.remote.rglob("work.*")
                if path.suffix != ".sh"
            )
            raise ClusterError(
                f"{script} ended with {done.returncode}:\n"
                f"{done.stdout[-3000:]}\n"
                f"{done.stderr}\n"
                f"{logs}"
            )

    def wait_for_epochs(self, epochs: int) -> None:
        """Wait until the fine-tuning in the job is under way."""
        end = time.monotonic() + HANGING
        while not any(
            path.read_text().count('"kind": "train"') >= epochs
            for path in self.remote.rglob("metrics.jsonl")
        ):
            if time.monotonic() > end:
                raise ClusterError(
                    f"the job has not come to epoch {epochs}:\n{self.cluster.logs()}"
                )
            time.sleep(0.1)

    def wait_until_ended(self) -> None:
        """Wait until the job has left the exit code of its command."""
        end = time.monotonic() + HANGING
        while not any(self.remote.rglob("exit_code")):
            if time.monotonic() > end:
                raise ClusterError(
                    f"the job was not begun again, or does not end:\n{self.cluster.logs()}"
                )
            time.sleep(0.5)


def results(folder: Path) -> dict[str, Any]:
    """A summary without what depends on clock and place."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    for stage in content["stages"].values():
        # files hold the names of their places
        for name in (*OF_THE_CLOCK, "products", "inputs", "key"):
            stage.pop(name, None)
    content["model"].pop("sha256")
    evaluation = content["generation_eval"]
    for model in (evaluation, evaluation.get("compared", {})):
        if "model" in model:
            model["model"].pop("files")
            (model["references"] or {}).pop("files", None)
    return content


def differences(one: Any, other: Any, name: str = "") -> Any:
    """Names of values in which two summaries differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif one != other:
        yield f"{name}: {one!s:.60} and {other!s:.60}"


if __name__ == "__main__":
    sys.exit(main())
