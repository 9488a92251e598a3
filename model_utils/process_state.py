"""What belongs to a process and is set by a run: given back when the run is over, so that a program
goes on, and the next run begins, as if it had not been.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import deterministic

from model_utils import runtime

VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", *runtime.ALLOCATOR)  # of the environment, for CUDA


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Give back what a run sets for the whole process: precision, threads, determinism,
    generators, device and log.

    Within it torch computes as in a new process: a run takes none of its caller's modes, as
    ``no_grad``, ``inference_mode``, ``autocast`` and a default device are.
    """
    with ExitStack() as kept:
        kept.enter_context(_out_of_modes())
        for read, write in SETTINGS:
            kept.enter_context(_setting_kept(read, write))
        kept.enter_context(torch.random.fork_rng(devices=_devices_in_use()))
        kept.enter_context(runtime.log_left_as_it_was())
        yield


@contextmanager
def _out_of_modes() -> Iterator[None]:
    """Leave the caller's modes of torch, in which a network could not be trained or would be
    computed in another precision.
    """
    with ExitStack() as left:
        left.enter_context(torch.inference_mode(False))  # ends no_grad too
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                left.enter_context(torch.autocast(kind, enabled=False))
        # only where there is one: each call of torch is then looked at in Python
        if torch.get_default_device().type != "cpu":
            left.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _setting_kept(read: Callable[[], Any], write: Callable[[Any], None]) -> Iterator[None]:
    before = read()
    try:
        yield
    finally:
        if read() != before:
            write(before)


def _determinism() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def _set_determinism(before: tuple[bool, bool, bool]) -> None:
    is_on, only_warns, fills = before
    torch.use_deterministic_algorithms(is_on, warn_only=only_warns)
    deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def _products() -> tuple[str | None, str, str]:
    """How products of float32 matrices are computed, by torch's one word and by those of its two
    libraries; where a program set these, torch refuses to give the one.
    """
    try:
        word = torch.get_float32_matmul_precision()
    except RuntimeError:
        word = None
    cuda = torch.backends.cuda.matmul.fp32_precision
    return word, cuda, torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]


def _set_products(before: tuple[str | None, str, str]) -> None:
    word, cuda, mkldnn = before
    if word is not None:
        torch.set_float32_matmul_precision(word)
    torch.backends.cuda.matmul.fp32_precision = cuda
    torch.backends.mkldnn.matmul.fp32_precision = mkldnn  # type: ignore[attr-defined]


def _variables() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _set_variables(before: dict[str, str]) -> None:
    for name in VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(before)


def _device() -> int | None:
    """The number of the GPU in use; None where none is: to ask would begin to use one."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _set_device(before: int | None) -> None:
    if before is not None:
        torch.cuda.set_device(before)


def _devices_in_use() -> range:
    """GPUs whose generators are kept: none where CUDA is not used yet."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


# how each is read, and written where it changed
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (random.getstate, random.setstate),
    (_determinism, _set_determinism),
    (_products, _set_products),
    (_variables, _set_variables),
    (_device, _set_device),
)
