"""What a run sets for the whole process is given back; modes of its caller do not reach it."""

import logging
import logging.handlers
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
import torch
from torch.utils import deterministic

from model_utils import process_state, runtime
from model_utils.process_state import left_as_it_was
from model_utils.runtime import log


@pytest.fixture(autouse=True)
def _of_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in process_state.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.ERROR)
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_default_dtype(before)
    torch.set_float32_matmul_precision("highest")
    log.setLevel(logging.INFO)  # forgets what it knew of its level


def of_the_process() -> dict[str, Any]:
    names = process_state.VARIABLES
    return {
        "precision": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "products on CUDA": torch.backends.cuda.matmul.fp32_precision,
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "filling": deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "variables": {name: os.environ[name] for name in names if name in os.environ},
        "generator": torch.get_rng_state().tolist(),
        "generator of Python": random.getstate(),
        "handlers": list(log.handlers),
        "level": log.level,
        "heard above": log.propagate,
        "raises": logging.raiseExceptions,
    }


def set_everything() -> None:
    runtime.start(
        device="cpu",
        dtype=torch.float64,
        threads=torch.get_num_threads() + 1,
        seed=random.randrange(2**30),
        deterministic=True,
    )
    runtime.start_log()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_that_a_run_sets_is_given_back(*, fails: bool) -> None:
    torch.set_float32_matmul_precision("high")
    before = of_the_process()
    within = {}
    with suppress(KeyError), left_as_it_was():
        set_everything()
        within = of_the_process()
        if fails:
            raise KeyError
    assert {name for name in before if within[name] == before[name]} == set()
    assert of_the_process() == before


def test_a_word_on_products_that_torch_refuses_to_give() -> None:
    """Where a program set one library's precision of products, there is none for all."""
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with left_as_it_was():
        torch.set_float32_matmul_precision("highest")
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "tf32"


def test_a_programs_own_handlers_go_on_hearing() -> None:
    own = logging.handlers.MemoryHandler(100, flushLevel=logging.CRITICAL + 1)
    log.addHandler(own)
    with left_as_it_was(), runtime.log_of_a_run(with_file=True):
        runtime.speak_of_own()
        log.info("of the run")
    log.error("of the program")
    assert [record.getMessage() for record in own.buffer] == ["of the run", "of the program"]
    assert log.handlers == [own]


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_are_left(mode: str) -> None:
    with MODES[mode]():
        with left_as_it_was():
            weights = torch.ones(2, 2, requires_grad=True)
            product = weights @ weights
            product.sum().backward()
        outside = torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)
    assert (product.dtype, product.device.type) == (torch.float32, "cpu")
    assert weights.grad is not None
    is_left = outside.dtype == torch.bfloat16 or outside.is_meta or not outside.requires_grad
    assert is_left, "the mode goes on afterwards"
