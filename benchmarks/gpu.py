"""What only a GPU can say, within ten minutes: ``python benchmarks/gpu.py`` on
a machine that has one.

    python benchmarks/gpu.py              # everything, then the tests on a GPU
    python benchmarks/gpu.py --rehearse   # on a CPU with a tiny network, to see that all parts run

Each part is guarded and timed: one that fails says so, and the next may still tell something. At
the end stands one table, for the README.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch
from gpu_steps import FORMS, GROUPS, SIZES
from on_device import BEGAN, MODELS, TINY, busy, launches_of, made, say, timed, waits_of

LIMIT = 570.0  # s for all parts
FOR_TESTS = 200.0  # s of them that the tests are left
CELL = "ms per step (atoms/s, GiB)"
AGREE = {"float64": 1e-10, "float32": 1e-3}  # of the norm of all gradients


class Parts:
    """What is measured, part after part.

    Args:
        rehearsal: on a CPU, with a tiny network.
        sizes: atoms of the steps that are timed.
    """

    def __init__(self, *, rehearsal: bool, sizes: list[int]) -> None:
        self.rehearsal = rehearsal
        self.sizes = sizes
        self.device = torch.device("cpu" if rehearsal else "cuda")
        self.models = TINY if rehearsal else MODELS
        self.rows: list[dict[str, Any]] = []
        self.bad: list[str] = []
        self.bandwidth = float("nan")  # bytes/s of a copy

    def environment(self) -> None:
        """Versions, the card, its rates of copying and multiplying."""
        say("torch", torch.__version__, "CUDA", torch.version.cuda, "device", self.device)
        n = 2**20 if self.rehearsal else 2**28
        x = torch.empty(n, device=self.device)
        y = torch.empty_like(x)
        self.bandwidth = 2 * x.nbytes / (timed(lambda: y.copy_(x), self.device) / 1e3)
        a = torch.randn(
            256 if self.rehearsal else 8192, 256 if self.rehearsal else 8192, device=self.device
        )
        rate = 2 * len(a) ** 3 / (timed(lambda: a @ a, self.device) / 1e3)
        precision = torch.get_float32_matmul_precision()
        say(
            f"copy {self.bandwidth / 1e12:.3f} TB/s; float32 product {rate / 1e12:.2f} "
            f"TFLOP/s ({precision})"
        )
        if self.rehearsal:
            return
        card = torch.cuda.get_device_properties(self.device)
        settings = torch.cuda.memory._snapshot()["allocator_settings"]
        say(
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}, "
            f"memory: {settings}"
        )

    def correctness(self) -> None:
        """Loss and gradients of the fast step against mace-torch's module, both
        precisions; bits of two runs.
        """
        from losses import Loss
        from model_utils import model_loader
        from model_utils.run.step import loss_and_gradients

        loss = Loss.of()
        for name, limit in AGREE.items():
            for model, hidden in self.models.items():
                described, module, batch = made(
                    hidden, 0 if self.rehearsal else 216, name, self.device
                )
                weights = model_loader.trainable(module)
                by_form = {}
                for form in ("reference", "fast"):
                    network = model_loader.build_network(module, form, described)
                    by_form[form] = loss_and_gradients(network, weights, [batch], loss)
                again = loss_and_gradients(network, weights, [batch], loss)
                ours, theirs = (flat(by_form[form].gradients) for form in ("fast", "reference"))
                error = float(
                    torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
                )
                same = torch.equal(ours, flat(again.gradients)) and torch.equal(
                    again.loss, by_form["fast"].loss
                )
                self.judge(
                    f"{model} {name}: gradients of fast and reference differ by {error:.1e}",
                    error < limit,
                )
                self.judge(
                    f"{model} {name}: {network.arithmetic}: two steps have the same bits", same
                )

    def convolution(self) -> None:
        """Times of the device, and bandwidth, of the convolution and its derivatives, by
        whatever computes it here.
        """
        from model_utils import model_loader

        for model, hidden in self.models.items():
            described, module, batch = made(
                hidden, 0 if self.rehearsal else 4104, "float32", self.device
            )
            network = model_loader.build_network(module, "fast", described)
            graph = network.graph(network.prepared(batch))
            convolution = network.plan.interactions[1].couplings
            channels = convolution.n_channels
            components = (max(p.l1 for p in convolution.paths) + 1) ** 2
            shapes = [
                (components, graph.n_atoms, channels),
                (graph.n_pairs, (convolution.max_ell + 1) ** 2),
                (graph.n_pairs, len(convolution.paths) * channels),
            ]
            h, y, w = (
                torch.randn(shape, device=self.device).requires_grad_(True) for shape in shapes
            )
            self.time_convolution(
                f"{model} {graph.n_atoms} atoms, {network.arithmetic}",
                convolution,
                graph,
                (h, y, w),
            )

    def time_convolution(
        self, what: str, convolution: Any, graph: Any, inputs: tuple[torch.Tensor, ...]
    ) -> None:
        """Bytes are those that its kernels must read and write: to sum over rows, arrays of pairs
        once for each of their edges; the derivatives once, and one more for the neighbours.
        """
        h, y, w = inputs
        with torch.no_grad():
            out = convolution(graph, h, y, w)
            ms = busy(lambda: convolution(graph, h, y, w), self.device)
        moved = h.nbytes + 2 * y.nbytes + 2 * w.nbytes + out.nbytes
        self.report_bandwidth(f"{what}: A", ms, moved)
        g = torch.randn_like(out)
        a = convolution(graph, h, y, w)
        ms = busy(lambda: torch.autograd.grad(a, inputs, g, retain_graph=True), self.device)
        of_neighbours = h.nbytes // graph.n_atoms * graph.n_pairs
        moved = 2 * (h.nbytes + y.nbytes + w.nbytes + of_neighbours) + out.nbytes
        self.report_bandwidth(f"{what}: VJP", ms, moved)

    def report_bandwidth(self, what: str, ms: float, moved: int) -> None:
        """Say what share of a copy's rate a kernel reaches."""
        rate = moved / (ms / 1e3)
        say(
            f"{what} {ms:.3f} ms, {rate / 1e12:.2f} TB/s, "
            f"{100 * rate / self.bandwidth:.0f} % of a copy"
        )

    def waits_and_launches(self) -> None:
        """Waits of the host within a step, and kernels that it starts."""
        from losses import Loss
        from model_utils import model_loader
        from model_utils.run.step import loss_and_gradients

        hidden = next(iter(self.models.values())) if self.rehearsal else MODELS["M"]
        described, module, batch = made(
            hidden, 0 if self.rehearsal else 216, "float32", self.device
        )
        weights = model_loader.trainable(module)
        for form in ("reference", "fast"):
            network = model_loader.build_network(module, form, described)

            def step(network: Any = network) -> None:
                loss_and_gradients(network, weights, [replace(batch)], Loss.of())

            step()
            self.judge(f"{form}: no wait of the host in a step", waits_of(step, self.device) == [])
            launches, top = launches_of(step, self.device)
            say(f"{form}: {launches} launches in a step; {'; '.join(top)}")

    def steps(self) -> None:
        """Times and memory of whole steps by form, model and size, each form in a process of its
        own.
        """
        gc.collect()
        torch.cuda.empty_cache()
        for forms, share in GROUPS:
            seconds = max(share * (LIMIT - FOR_TESTS - (time.monotonic() - BEGAN)), 30.0)
            self.steps_of(forms, seconds)

    def steps_of(self, forms: Sequence[str], seconds: float) -> None:
        """Rows of forms that have the device in turn."""
        with tempfile.NamedTemporaryFile() as turn, ThreadPoolExecutor(len(forms)) as pool:
            words = [sys.executable, str(ROOT / "benchmarks" / "gpu_steps.py")]
            words += ["--turn", turn.name, "--seconds", str(seconds)]
            words += ["--rehearse"] if self.rehearsal else []
            words += ["--sizes", *map(str, self.sizes)]
            ended = pool.map(lambda form: rows_of([*words, "--form", form], seconds + 10), forms)
            for form, (rows, last) in zip(forms, ended, strict=True):
                self.rows += rows
                cells = [f"{row['model']} {row['atoms']}: {cell(row)}" for row in rows]
                say(f"steps of {form}, {CELL}: {'; '.join(cells)}{last}")

    def files(self) -> None:
        """Train on the device, go on there, evaluate there and on the CPU what was written."""
        from ase.io import write

        sys.path.insert(0, str(ROOT / "tests"))
        from conftest import TINY as NETWORK
        from conftest import waters
        from model_utils import evaluate, resume, train_mace
        from model_utils.files import checkpoint

        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "m.json").write_text(json.dumps(NETWORK))
            write(place / "t.xyz", waters(12), format="extxyz")
            how = f"--batch_size 4 --ema --dtype float64 --device {self.device.type}"
            common = ["--input_json", place / "m.json", "--xyz_train", place / "t.xyz"]
            common += [*how.split(), "--valid_fraction", 0.2, "--epochs", 4]
            for name, more in (("whole", []), ("part", ["--max_steps", 5])):
                run(train_mace.main, [*common, *more, "--output_checkpoint", place / name])
            run(
                resume.main,
                ["--input_model", place / "part" / "part_checkpoint.pt", "--max_steps", 100],
            )
            whole, part = (
                checkpoint.read(place / n / f"{n}_checkpoint.pt").tensors for n in ("whole", "part")
            )
            same = all(torch.equal(whole[name], part[name]) for name in whole)
            self.judge(
                "a run that was broken off and went on has the same bits, without --deterministic",
                same,
            )
            errors = []
            for device in (self.device.type, "cpu"):
                report = place / f"errors{len(errors)}.json"
                words = ["--input_model", place / "whole" / "whole_model.pt", "--device", device]
                words += ["--xyz_path", place / "t.xyz", "--output_json", report]
                run(evaluate.main, words)
                errors.append(json.loads(report.read_text())["forces_rmse"])
            self.judge(
                "what the device wrote has its errors on a CPU too",
                abs(errors[0] / errors[1] - 1) < 1e-9,
            )

    def tests(self) -> None:
        """The tests that need a GPU."""
        left = max(LIMIT - (time.monotonic() - BEGAN), 60.0)
        words = [sys.executable, "-m", "pytest", "-q", "-x" if self.rehearsal else "-rf"]
        words += [str(ROOT / "tests" / name) for name in ("test_cuda.py", "test_ranks_cuda.py")]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=left, cwd=ROOT
        )
        print(done.stdout[-6000:])
        self.judge(
            "tests/test_cuda.py and tests/test_ranks_cuda.py",
            done.returncode in ((0, 5) if self.rehearsal else (0,)),
        )

    def judge(self, sentence: str, holds: bool) -> None:
        """Say whether something holds."""
        say(sentence, "— yes" if holds else "— NO")
        if not holds:
            self.bad.append(sentence)

    def table(self) -> None:
        """What goes into the README."""
        card = "CPU, a rehearsal" if self.rehearsal else torch.cuda.get_device_name(self.device)
        print(f"\n{CELL}, float32, MgO, {card}, torch {torch.__version__}\n")
        forms = [form for form in FORMS if any(row["form"] == form for row in self.rows)]
        print("| model, atoms, edges | " + " | ".join(forms) + " |\n|" + "---|" * (len(forms) + 1))
        for key in dict.fromkeys((row["model"], row["atoms"], row["edges"]) for row in self.rows):
            cells = []
            for form in forms:
                of_form = [
                    r
                    for r in self.rows
                    if r["form"] == form and (r["model"], r["atoms"], r["edges"]) == key
                ]
                cells.append(cell(of_form[0]) if of_form else "")
            print(f"| {key[0]}, {key[1]}, {key[2]} | " + " | ".join(cells) + " |")
        print(
            "\n" + ("everything holds" if not self.bad else "does not hold: " + "; ".join(self.bad))
        )


def cell(row: dict[str, Any]) -> str:
    """One cell of the table."""
    if row.get("ms") is None:
        return str(row["why"])
    return f"{row['ms']:.2f} ({1e3 * row['atoms'] / row['ms']:.0f}, {row['gib']:.2f})"


def rows_of(words: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What a child measured, and how it ended where that was not its end."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        try:
            code: int | str = subprocess.run(
                words, stdout=said, stderr=errors, check=False, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = "its time was over"
        said.seek(0)
        errors.seek(0)
        rows = [json.loads(line) for line in said if line.startswith("{") and line.endswith("}\n")]
        last = (errors.read().strip().splitlines() or [""])[-1]
    return rows, "" if code == 0 else f", ended early ({code}): {last[:200]}"


def run(command: Callable[[list[str]], int], words: list[Any]) -> None:
    """A command of the project, silently."""
    with open(os.devnull, "w", encoding="ascii") as nowhere, redirected(nowhere):
        code = command([str(word) for word in words])
    if code != 0:
        raise RuntimeError(f"{command.__module__} ended with {code}: {words}")


@contextmanager
def redirected(stream: Any) -> Iterator[None]:
    """Standard output somewhere else."""
    before = sys.stdout
    sys.stdout = stream
    try:
        yield
    finally:
        sys.stdout = before


def flat(gradients: list[torch.Tensor]) -> torch.Tensor:
    """All gradients as one vector."""
    return torch.cat([g.reshape(-1) for g in gradients])


def main() -> int:
    """Every part in turn; 1 where something does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with a tiny network")
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="atoms of the steps")
    args = parser.parse_args()
    if not (args.rehearse or torch.cuda.is_available()):
        print("there is no CUDA device here; --rehearse runs every part on a CPU")
        return 2
    from model_utils import runtime

    threads = 1 if args.rehearse else None
    runtime.start(
        device="cpu" if args.rehearse else "cuda", dtype=torch.float32, threads=threads, seed=3
    )
    parts = Parts(rehearsal=args.rehearse, sizes=args.sizes)
    names = [
        "environment",
        "correctness",
        "convolution",
        "waits_and_launches",
        "files",
        "steps",
        "tests",
    ]
    for name in names if args.parts is None else args.parts:
        if time.monotonic() - BEGAN > LIMIT:
            parts.judge(f"{name}: in the time there is", holds=False)
            continue
        try:
            getattr(parts, name)()
        except Exception:  # the next part may still tell something
            say(f"{name} failed:", traceback.format_exc(limit=4).strip())
            parts.bad.append(name)
    parts.table()
    say("done")
    return 1 if parts.bad else 0


if __name__ == "__main__":
    sys.exit(main())
