"""Training on a real SLURM: jobs that are interrupted and requeued give, bit by bit, the
result of an unbroken run.

    python tests/slurm/check.py

Starts a cluster of its own on this machine and submits configs/slurm/train.sbatch, with one task
and with two; about half an hour, two cores. Needs the Debian packages slurm-wlm and munge.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cluster import Cluster, ClusterError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

DATA = ROOT / "configs" / "quickstart"
TINY = {
    **json.loads((DATA / "model.json").read_text()),
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"}
TWO = ["--ntasks-per-node=2"]
DEALT = ["--step_parts", "2"]  # what two tasks compute, one process computes too, in two parts
# in place of the GPU node that the file asks for
RESOURCES = ["--gres=none", "--mem=0", "--cpus-per-task=1"]
# differ between two runs and are no result: places, and the length of metrics.jsonl, where
# durations are written out
OF_THE_PLACE = {"train_state.config.output_checkpoint", "train_state.metrics_offset"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    restarts: str
    continued: str  # steps at which restarts went on
    seconds: float
    verdict: str
    good: bool


def main() -> int:
    """Run everything; returns 1 where anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="as many as take 70 s unless given; SLURM's shortest limit is 60 s",
    )
    epochs = parser.parse_args().epochs
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that the cluster is stopped
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with tempfile.TemporaryDirectory(prefix="slurm-check-runs-") as name:
            folder = Path(name)
            (folder / "tiny.json").write_text(json.dumps(TINY))
            with Cluster() as cluster:
                rows = list(Check(cluster, folder, epochs).rows())
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if all(row.good for row in rows) else 1


class Check:
    """The runs, all with the same settings, each in a folder of its own."""

    def __init__(self, cluster: Cluster, folder: Path, epochs: int | None) -> None:
        self.cluster, self.folder = cluster, folder
        self.unbroken = folder / "unbroken" / "run"
        self.dealt = folder / "dealt" / "run"
        self.epochs = epochs or self.epochs_in(70)

    def epochs_in(self, seconds: float) -> int:
        """How many epochs take so long on this machine now."""
        self.epochs, folder = 15, self.folder / "timing" / "run"
        self.train(folder)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = [
            r["perf"]["seconds"]
            for r in records
            if r["kind"] in ("train", "valid") and r["epoch"] > 5
        ]
        return round(seconds * 10 / sum(last))

    def rows(self) -> Iterator[Row]:
        """Run one after the other, and print each line as soon as it is known."""
        print(f"{self.epochs} epochs in every run")
        print(f"{'run':24s}  restarts  continued at step  seconds  result", flush=True)
        low, abrupt = "--partition=low", "--partition=abrupt"
        limit = ["--time=1", "--signal=USR1@10"]  # SLURM sends it 10 to 40 s before the end
        own_clock = ["--time=1", "--signal=CONT@1"]  # no signal that asks to stop
        for row in (
            self.without_slurm,
            self.one_bit_changed,
            lambda: self.interrupted("preempted", [low, "--time=30"], self.preempt),
            lambda: self.interrupted("preempted, no grace", [abrupt, "--time=30"], self.preempt),
            lambda: self.interrupted("time limit, signal", [low, *limit], lambda _: None),
            lambda: self.interrupted("time limit, own clock", [low, *own_clock], lambda _: None),
            self.cancelled,
            self.bad_input,
            self.dealt_without_slurm,
            lambda: self.interrupted(
                "two tasks, preempted", [low, *TWO, "--time=30"], self.preempt, DEALT
            ),
            lambda: self.interrupted(
                "two tasks, ten times", [low, *TWO, "--time=60"], self.preempt_often, DEALT
            ),
            self.one_of_two_killed,
            lambda: self.bad_input("two tasks, bad input", *TWO),
        ):
            found = row()
            print(
                f"{found.name:24s}  {found.restarts:>8s}  {found.continued:>17s}  "
                f"{found.seconds:7.0f}  {'ok' if found.good else 'FAILED'}: {found.verdict}",
                flush=True,
            )
            yield found

    def without_slurm(self) -> Row:
        """The run that the others are compared with."""
        began = time.monotonic()
        self.train(self.unbroken)
        seconds = time.monotonic() - began
        return Row(
            name="unbroken",
            restarts="-",
            continued="-",
            seconds=seconds,
            verdict="finished",
            good=True,
        )

    def dealt_without_slurm(self) -> Row:
        """The run in one process that those of two tasks are compared with."""
        began = time.monotonic()
        self.train(self.dealt, *DEALT)
        seconds = time.monotonic() - began
        return Row(
            name="unbroken, dealt",
            restarts="-",
            continued="-",
            seconds=seconds,
            verdict="finished",
            good=True,
        )

    def train(self, folder: Path, *more: str) -> None:
        """Run the command as it is, without SLURM."""
        script = str(ROOT / "model_utils" / "train_mace.py")
        done = subprocess.run(
            [sys.executable, script, *self.options(folder), *more, "--resume", "auto"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(
                f"training without SLURM ended with {done.returncode}:\n"
                f"{done.stdout}\n"
                f"{done.stderr}"
            )

    def one_bit_changed(self) -> Row:
        """The comparison itself: a copy of the unbroken run with one bit of one weight
        changed is told from it.
        """
        from model_utils.files import checkpoint

        began, copy = time.monotonic(), self.folder / "changed" / "run"
        shutil.copytree(self.unbroken, copy)
        path = copy / f"{copy.name}_checkpoint.pt"
        content = dict(checkpoint.read(path).content)
        name = next(iter(content["model_state_dict"]))
        content["model_state_dict"][name].view(torch.uint8).reshape(-1)[0] ^= 1
        checkpoint.write_checkpoint(path, content)
        found = differences(self.unbroken, copy)
        return Row(
            name="one bit changed",
            restarts="-",
            continued="-",
            seconds=time.monotonic() - began,
            verdict=f"found {'; '.join(found) or 'nothing'}",
            good=found == [f"checkpoint: model_state_dict.{name}"],
        )

    def interrupted(
        self,
        name: str,
        flags: list[str],
        interrupt: Callable[[Path], None],
        more: Sequence[str] = (),
    ) -> Row:
        """A job that must be restarted at least once, go on where it was, and end
        like the unbroken run.
        """
        folder = self.folder / re.sub(r"\W+", "_", name) / "run"
        began = time.monotonic()
        job = self.submit(folder, flags, *more)
        interrupt(folder)
        fields = self.wait_for_end(job)
        seconds = time.monotonic() - began
        restarts, steps = int(fields["Restarts"]), continued_at(folder)
        if fields["JobState"] != "COMPLETED":
            verdict = f"the job ended as {fields['JobState']}, exit code {fields['ExitCode']}"
        elif restarts == 0:
            verdict = "the job was never interrupted; give more --epochs"
        elif not steps:
            verdict = "the job began anew instead of going on"
        else:
            verdict = "; ".join(differences(self.dealt if more else self.unbroken, folder)[:5])
        if fields["JobState"] != "COMPLETED":
            print(self.log(folder), file=sys.stderr)
        return Row(
            name=name,
            restarts=str(restarts),
            continued=", ".join(steps) or "-",
            seconds=seconds,
            verdict=verdict or "bitwise equal",
            good=not verdict,
        )

    def cancelled(self) -> Row:
        """A job that is cancelled saves too, and stays cancelled."""
        folder, began = self.folder / "cancelled" / "run", time.monotonic()
        job = self.submit(folder, ["--partition=low", "--time=30"])
        wait_for_epochs(folder, 5)
        self.cluster.output("scancel", job)
        self.wait_for_end(job)
        time.sleep(5)  # long enough for a shell that wanted to requeue it
        return self.ended_once("cancelled", self.cluster.job(job), ("CANCELLED", "0:15"), began)

    def bad_input(self, name: str = "bad input", *flags: str) -> Row:
        """A job whose input is bad ends with 2 and is not requeued."""
        folder = self.folder / re.sub(r"\W+", "_", name) / "run"
        began = time.monotonic()
        job = self.submit(folder, ["--partition=low", "--time=30", *flags], "--lr", "-1")
        return self.ended_once(name, self.wait_for_end(job), ("FAILED", "2:0"), began)

    def one_of_two_killed(self) -> Row:
        """A job of which one task dies ends with 137, has saved, and is not requeued."""
        folder = self.folder / "one_of_two_killed" / "run"
        began = time.monotonic()
        job = self.submit(folder, ["--partition=low", "--time=30", *TWO], *DEALT)
        wait_for_epochs(folder, self.epochs // 4)
        os.kill(task_of(1), signal.SIGKILL)
        return self.ended_once(
            "two tasks, one killed", self.wait_for_end(job), ("FAILED", "137:0"), began
        )

    def ended_once(
        self, name: str, fields: Mapping[str, str], expected: tuple[str, str], began: float
    ) -> Row:
        """A line on a job that must not be restarted."""
        found = (fields["JobState"], fields["ExitCode"])
        return Row(
            name=name,
            restarts=fields["Restarts"],
            continued="-",
            seconds=time.monotonic() - began,
            verdict=f"{found[0]}, exit code {found[1]}",
            good=found == expected and fields["Restarts"] == "0",
        )

    def preempt(self, folder: Path) -> None:
        """Submit a job that is more important, once training is under way."""
        wait_for_epochs(folder, self.epochs // 4)
        self.cluster.submit(
            "--partition=high", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 3"
        )

    def preempt_often(self, folder: Path) -> None:
        """Ten times: let the job go on for some epochs, then submit one that is more important."""
        for number in range(10):
            wait_for_epochs(folder, (number + 1) * self.epochs // 12)
            self.cluster.submit(
                "--partition=high",
                "--exclusive",
                "--time=1",
                "--output=/dev/null",
                "--wrap=sleep 1",
            )
            wait_for_lives(folder, number + 2)

    def submit(self, folder: Path, flags: list[str], *more: str) -> str:
        """Submit the file that users copy; returns the number of the job."""
        folder.parent.mkdir()
        return self.cluster.submit(
            *RESOURCES,
            f"--chdir={ROOT}",
            f"--output={folder.with_name('slurm.log')}",
            *flags,
            str(ROOT / "configs" / "slurm" / "train.sbatch"),
            *self.options(folder),
            *more,
            environment={"PYTHON": sys.executable},
        )

    def options(self, folder: Path) -> list[str]:
        """The options of train_mace.py."""
        return [
            *("--input_json", str(self.folder / "tiny.json"), "--output_checkpoint", str(folder)),
            *("--xyz_train", str(DATA / "train.xyz"), "--xyz_val", str(DATA / "valid.xyz")),
            *("--xyz_test", str(DATA / "test.xyz"), "--epochs", str(self.epochs)),
            *("--batch_size", "8", "--ema", "--threads", "1", "--device", "cpu"),
        ]

    def wait_for_end(self, job: str, seconds: float = 900) -> dict[str, str]:
        """Wait until the job is over, restarts included; returns what SLURM says of it."""
        end = time.monotonic() + seconds
        while (fields := self.cluster.job(job)).get("JobState") not in ENDED:
            if time.monotonic() > end:
                raise ClusterError(
                    f"job {job} is still {fields.get('JobState')} after {seconds:.0f} s"
                )
            time.sleep(0.5)
        return fields

    def log(self, folder: Path) -> str:
        """The end of a job's log."""
        path = folder.with_name("slurm.log")
        return (
            "\n".join(path.read_text(errors="replace").splitlines()[-20:])
            if path.exists()
            else "no log"
        )


def wait_for_epochs(folder: Path, epochs: int, seconds: float = 120) -> None:
    """Wait until metrics.jsonl has a line for each of so many epochs."""
    path, end = folder / "metrics.jsonl", time.monotonic() + seconds
    while not path.exists() or path.read_text().count('"kind": "train"') < epochs:
        if time.monotonic() > end:
            raise ClusterError(f"{path} has not come to epoch {epochs} in {seconds:.0f} s")
        time.sleep(0.1)


def wait_for_lives(folder: Path, lives: int, seconds: float = 400) -> None:
    """Wait until a run was begun or continued so many times."""
    end = time.monotonic() + seconds
    while len(continued_at(folder)) < lives - 1:
        if time.monotonic() > end:
            raise ClusterError(
                f"{folder} was not continued {lives - 1} times within {seconds:.0f} s"
            )
        time.sleep(0.2)


def task_of(rank: int) -> int:
    """The process of a rank of the only job that runs."""
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = place.read_bytes().split(b"\0")
            command = place.with_name("cmdline").read_bytes()
        except OSError:  # it just ended
            continue
        is_task = b"SLURM_STEP_NUM_TASKS=2" in variables and b"SLURM_PROCID=%d" % rank in variables
        if is_task and b"train_mace.py" in command and b"python" in command.split(b"\0")[0]:
            return int(place.parent.name)
    raise ClusterError(f"no process of rank {rank} is there")


def continued_at(folder: Path) -> list[str]:
    """The steps at which restarts went on, as train.log tells them."""
    path = folder / "train.log"
    return re.findall(r"continue .*\bstep (\d+)", path.read_text()) if path.exists() else []


def differences(one: Path, other: Path) -> list[str]:
    """What is not bitwise equal in the results of two runs; empty where everything is."""
    from model_utils.files import checkpoint

    found = []
    for kind in ("checkpoint", "model"):
        left, right = (
            dict(leaves(checkpoint.read(folder / f"{folder.name}_{kind}.pt").content))
            for folder in (one, other)
        )
        for name in sorted((left.keys() | right.keys()) - OF_THE_PLACE):
            if (
                name not in left
                or name not in right
                or checkpoint.digest(left[name]) != checkpoint.digest(right[name])
            ):
                found.append(f"{kind}: {name}")
    before, after = (metrics_lines(folder / "metrics.jsonl") for folder in (one, other))
    if len(before) != len(after):
        found.append(f"metrics.jsonl: {len(before)} and {len(after)} lines")
    pairs = enumerate(zip(before, after, strict=False), 1)
    found += [f"metrics.jsonl: line {number}" for number, (mine, theirs) in pairs if mine != theirs]
    return found


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Tensors, numbers, text and lists of nested content, with their dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def metrics_lines(path: Path) -> list[str]:
    """The records without what depends on the clock."""
    records: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record.pop("perf", None)
    return [json.dumps(record) for record in records]


if __name__ == "__main__":
    sys.exit(main())
