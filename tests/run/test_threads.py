"""Threads of the compiled kernels are made once and live as long as the process;
numpy and scipy have none.

A parallel region within another one, even one of a single thread, makes threads of its own and ends
them: milliseconds each time, many times the work of a small molecule's kernel. No other test would
see it, since they run one thread.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HANGING, OF_TESTS, ROOT

COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
static int made;
int threads_made(void) { return __atomic_load_n(&made, __ATOMIC_SEQ_CST); }
int pthread_create(pthread_t* t, const pthread_attr_t* a, void* (*f)(void*), void* of) {
  static int (*next)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  if (!next) next = dlsym(RTLD_NEXT, "pthread_create");
  __atomic_add_fetch(&made, 1, __ATOMIC_SEQ_CST);
  return next(t, a, f, of);
}
"""

STEPS = """
import ctypes
import sys

import torch

from dataclasses import replace
from losses import Loss
from model_utils import model_loader
from model_utils.models.fast.backends import backend_of
from model_utils.run.step import loss_and_gradients
from test_fast_step import Both, fields_of

torch.set_num_threads(2)
assert backend_of(torch.zeros(1)) is not None
both = Both.of({**fields_of({}), "hidden_irreps": "64x0e+64x1o"}, torch.float32)
weights, network = model_loader.trainable(both.module), both.fast
threads_made = ctypes.CDLL(sys.argv[1]).threads_made
for again in range(3):
    for copies in (1, 2, 4, 16):
        before = threads_made()
        batch = both.batch(both.structures * copies, torch.float32)
        loss_and_gradients(network, weights, [batch], Loss.of())
        if again:
            print(f"{copies * len(both.structures)} structures: {threads_made() - before}")
"""


@pytest.mark.skipif(
    not shutil.which("g++"), reason="no C++ compiler: the fast step runs in plain torch"
)
def test_a_step_makes_no_threads_after_the_first(tmp_path: Path) -> None:
    source, counter = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run(["g++", "-xc", "-shared", "-fPIC", "-o", counter, source], check=True)
    env = {**os.environ, "LD_PRELOAD": str(counter), "PYTHONPATH": OF_TESTS}
    run = [sys.executable, "-c", STEPS, counter]
    ended = subprocess.run(
        run, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANGING
    )
    assert ended.returncode == 0, ended.stderr
    steps = ended.stdout.splitlines()
    assert len(steps) == 8
    assert all(step.endswith(": 0") for step in steps), steps


COMMAND = """
import os
import sys

from model_utils.settings import cli
from model_utils.settings.options import RelaxOptions

cli.run(RelaxOptions, print, ["--help"])
import numpy
import scipy.linalg

square = numpy.random.default_rng(0).normal(size=(400, 400))
numpy.linalg.inv(square)
scipy.linalg.expm(square / 400)
where = "of torch" if "torch" in sys.modules else "alone"
print("threads", len(os.listdir("/proc/self/task")), where)
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them"
)
def test_a_command_has_no_threads_of_numpy_and_scipy(tmp_path: Path) -> None:
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    }
    run = [sys.executable, "-c", COMMAND]
    env["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        run, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANGING
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "threads 1 alone"
