"""CUDA's rules without CUDA: the CPU's arithmetic on tensors that say they lie on ``cuda:0``.

Tensors keep their storage; a table says which storages "lie on the device". A dispatch mode sees
every call of torch's library: what mixes devices raises as it would there, what makes the host wait
and what copies between host and device is noted with the function of the project that asked for it.
It cannot show streams, atomics, memory, speed.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)
WAITS = {
    "_local_scalar_dense": "item", "nonzero": "nonzero", "_unique2": "unique", "unique_consecutive":
    "unique", "unique_dim": "unique", "masked_select": "masked_select", "equal": "equal",
    "bincount": "bincount", "is_nonzero": "is_nonzero", "histc": "histc",
}  # fmt: skip
VIEWS = {
    "detach", "alias", "view", "_unsafe_view", "expand", "permute", "transpose", "t", "select",
    "slice", "split", "split_with_sizes", "unsqueeze", "squeeze", "as_strided", "unbind",
    "diagonal", "unfold", "_reshape_alias", "lift_fresh", "empty", "empty_like", "new_empty",
    "empty_strided", "new_empty_strided", "set_", "narrow",
}  # fmt: skip
FACTORIES = {
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "eye",
    "scalar_tensor",
    "empty_strided",
    "linspace",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
ALL_ON_ONE = {
    "cat",
    "stack",
    "index_select",
    "gather",
    "scatter_add",
    "mm",
    "bmm",
    "addmm",
    "index_add",
    "searchsorted",
}

_device_of = Tensor.device.__get__  # type: ignore[attr-defined]
_there: dict[int, StorageWeakRef] = {}
_pinned: dict[int, StorageWeakRef] = {}


@dataclass
class Notes:
    """What was seen."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)  # "item in model_utils/run/fit.py:f"
    waits_in_steps: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)  # "to the device, pinned, in …"
    copies_of_batches: list[list[str]] = field(default_factory=list)  # of each batch that was moved
    moving: list[str] | None = None  # of the batch that is being moved
    in_step: int = 0

    def wait(self, kind: str) -> None:
        """The host waits here."""
        text = f"{kind} in {caller()}"
        self.waits[text] += 1
        if self.in_step:
            self.waits_in_steps[text] += 1

    def copy(self, kind: str, *, waits: bool) -> None:
        """Something goes to or from the device; a pageable or blocking one makes the host wait."""
        text = f"{kind} in {caller()}"
        self.copies[text] += 1
        if self.moving is not None:
            self.moving.append(text)
        if self.in_step:
            self.waits_in_steps[text] += 1
        if waits:
            self.waits[text] += 1


notes = Notes()


def caller() -> str:
    """The innermost function of the project, or else of a library it uses, that is running."""
    frame = sys._getframe(1)
    library = "?"
    while frame is not None:
        name = frame.f_code.co_filename
        # an environment may lie in the checkout
        is_ours = name.startswith(str(ROOT)) and "site-packages" not in name
        if is_ours and not name.startswith(str(ROOT / "tests" / "pretended_cuda")):
            return f"{Path(name).relative_to(ROOT)}:{frame.f_code.co_name}"
        if library == "?" and any(
            part in name for part in ("/mace/", "/e3nn/", "torch/optim", "torch/nn/utils")
        ):
            library = f"{name.rpartition('site-packages/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return library


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor pretends to lie on the device."""
    return tensor.untyped_storage()._cdata in _there


def put_there(tensor: Tensor) -> Tensor:
    """Let a tensor's storage lie on the device."""
    storage = tensor.untyped_storage()
    if storage._cdata not in _there:
        if len(_there) > put_there.limit:  # type: ignore[attr-defined]
            for key in [key for key, kept in _there.items() if kept.expired()]:
                del _there[key]
            put_there.limit = 2 * len(_there) + 5000  # type: ignore[attr-defined]
        _there[storage._cdata] = StorageWeakRef(storage)
    return tensor


put_there.limit = 5000  # type: ignore[attr-defined]


class _Mode(TorchDispatchMode):
    """Follows every call; tensors made of tensors on the device lie there."""

    was_there = False  # whether the latest tensors lay on the device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [is_there(tensor) for tensor in tensors]
        wanted = kwargs.get("device")
        to_cuda = wanted is not None and torch.device(wanted).type == "cuda"
        if to_cuda:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if name == "copy_":
            return self._copied_into(func, args, kwargs)
        if name == "_to_copy":
            return self._copied(func, args, kwargs, to_cuda, wanted)
        target = to_cuda or (
            any(there) and (wanted is None or name.startswith("new_") or name.endswith("_like"))
        )
        in_derivative = torch._C._current_graph_task_id() != -1
        if tensors:
            self.was_there = any(there)
        elif in_derivative and self.was_there and name in FACTORIES:
            target = True  # formulas of derivatives ask for the device of what is truly on the CPU
        if any(there):
            if not all(there):
                _refuse_mixed(name, args, tensors, there)
            _note_wait(name, args, kwargs)
        out = func(*args, **kwargs)
        if target:
            tree_map(lambda leaf: put_there(leaf) if isinstance(leaf, Tensor) else leaf, out)
        if (target or any(there)) and name not in VIEWS and name not in WAITS:
            notes.launches[name] += 1
        return out

    def _copied_into(self, func: Any, args: Any, kwargs: Any) -> Any:
        to, of = args[0], args[1]
        if is_there(to) and not is_there(of):
            notes.copy("to the device by copy_", waits=True)
        elif is_there(of) and not is_there(to):
            notes.copy("to the host by copy_", waits=True)
        elif is_there(to):
            notes.launches["copy_"] += 1
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: Any, kwargs: Any, to_cuda: bool, wanted: Any) -> Any:
        of = args[0]
        out = func(*args, **kwargs)
        in_derivative = torch._C._current_graph_task_id() != -1
        if to_cuda or ((wanted is None or in_derivative) and is_there(of)):
            put_there(out)
            if not is_there(of):
                _note_copy_there(of, bool(kwargs.get("non_blocking")))
            else:
                notes.launches["_to_copy"] += 1
        elif is_there(of):
            notes.copy("to the host", waits=True)
        return out


def _note_copy_there(tensor: Tensor, non_blocking: bool) -> None:
    pinned = tensor.untyped_storage()._cdata in _pinned
    kind = ("pinned" if pinned else "pageable") + ("" if non_blocking else ", blocking")
    notes.copy(f"to the device, {kind},", waits=not (pinned and non_blocking))


def _note_wait(name: str, args: Any, kwargs: Any) -> None:
    if name in WAITS:
        notes.wait(WAITS[name])
    elif name in INDEXING and any(
        i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
    ):
        if name == "index" or args[2].numel() > 1:
            notes.wait("an index of booleans")
    elif name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) < 3:
        notes.wait("repeat_interleave")


def _refuse_mixed(name: str, args: Any, tensors: list[Tensor], there: list[bool]) -> None:
    """Raise what CUDA raises; a number (a tensor without axes) may come from the
    host in most functions.
    """
    on_host = [tensor for tensor, is_on in zip(tensors, there, strict=True) if not is_on]
    numbers = all(tensor.dim() == 0 for tensor in on_host)
    if name in INDEXING and is_there(args[0]):
        if any(i is not None and not is_there(i) for i in args[1]):
            notes.copy("to the device as an index", waits=True)
        if not name.startswith("index_put") or is_there(args[2]) or args[2].dim() == 0:
            return
    elif numbers and name not in ALL_ON_ONE and name not in INDEXING:
        return
    shapes = [
        (tuple(t.shape), str(t.dtype), is_on) for t, is_on in zip(tensors, there, strict=True)
    ]
    raise RuntimeError(
        f"Expected all tensors to be on the same device: {name} {shapes} in {caller()}"
    )


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        with _disable_current_modes():
            return put_there(x.clone().to(dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.to("cpu"), None


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        with _disable_current_modes():
            return x.clone().to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.to("cuda"), None


def _pretending_to(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Tensor.to among host and device."""

    @wraps(original)
    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rest = list(args)
        device = kwargs.pop("device", None)
        if device is None and rest and isinstance(rest[0], str | torch.device):
            device = rest.pop(0)
        elif device is None and rest and isinstance(rest[0], Tensor):
            like = rest.pop(0)
            device = _device(like)
            kwargs.setdefault("dtype", like.dtype)
        if device is None:
            return original(self, *args, **kwargs)
        device = torch.device(device)
        dtype = kwargs.get("dtype") or next(
            (a for a in rest if isinstance(a, torch.dtype)), self.dtype
        )
        if device.type == _device(self).type:
            same = dtype == self.dtype and not kwargs.get("copy")
            return self if same else original(self, dtype)
        if device.type == "cpu":
            notes.copy("to the host", waits=True)
            return _ToHost.apply(self, dtype)
        _note_copy_there(self, bool(kwargs.get("non_blocking")) or True in rest)
        return _ToDevice.apply(self, dtype)

    return to


def _device(tensor: Tensor) -> torch.device:
    if type(tensor).__name__ == "FakeTensor":
        return _device_of(tensor)
    return CUDA if is_there(tensor) else _device_of(tensor)


def _pin_memory(self: Tensor, *_: Any, **__: Any) -> Tensor:
    if is_there(self):
        raise RuntimeError(
            "cannot pin 'torch.cuda.ByteTensor' only dense CPU tensors can be pinned"
        )
    pinned = self.clone()
    storage = pinned.untyped_storage()
    _pinned[storage._cdata] = StorageWeakRef(storage)
    return pinned


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """torch's own makes zeros on the device that is truly there."""
    assert num_classes >= 0
    return (x.unsqueeze(-1) == torch.arange(num_classes, device=x.device)).to(torch.int64)


def _moved_where_asked(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.pop("device", None)
        out = original(*args, **kwargs)
        return out if device is None else out.to(device)

    return made


CUDA_SAYS: dict[str, Any] = {
    "is_available": True, "device_count": 1, "_lazy_init": None, "is_initialized": True,
    "current_device": 0, "set_device": None, "synchronize": None, "empty_cache": None,
    "get_device_name": "Pretended", "set_rng_state": None, "manual_seed_all": None,
    "memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": 10**6,
    "reset_peak_memory_stats": None, "mem_get_info": (2**33, 2**33),
}  # fmt: skip
ACCELERATOR_SAYS: dict[str, Any] = {
    "is_available": True,
    "current_device_index": 0,
    "set_device_index": None,
}


@contextlib.contextmanager
def pretended() -> Iterator[Notes]:
    """Within it there is one CUDA device."""
    before: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, value: Any) -> None:
        before.append((owner, name, vars(owner).get(name, getattr(owner, name))))
        setattr(owner, name, value)

    def numpy(self: Tensor, *args: Any, _original: Any = Tensor.numpy, **kwargs: Any) -> Any:
        if is_there(self):
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy, in {caller()}")
        return _original(self, *args, **kwargs)

    def tolist(self: Tensor, _original: Any = Tensor.tolist) -> Any:
        if not is_there(self):
            return _original(self)
        notes.wait("tolist")
        with _disable_current_modes():
            return _original(self.detach().clone())

    for name, value in CUDA_SAYS.items():
        patch(torch.cuda, name, lambda *_, _value=value, **__: _value)
    patch(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8))
    for name, value in ACCELERATOR_SAYS.items():
        if hasattr(torch.accelerator, name):
            patch(torch.accelerator, name, lambda *_, _value=value, **__: _value)
    patch(Tensor, "to", _pretending_to(Tensor.to))
    patch(Tensor, "cpu", lambda self, *_, **__: self.to("cpu"))
    patch(Tensor, "cuda", lambda self, *_, **__: self.to("cuda"))
    patch(Tensor, "numpy", numpy)
    patch(Tensor, "tolist", tolist)
    patch(Tensor, "pin_memory", _pin_memory)
    patch(Tensor, "is_cuda", property(lambda self: _device(self).type == "cuda"))
    patch(Tensor, "device", property(_device))
    patch(torch.nn.functional, "one_hot", _one_hot)
    for name in ("tensor", "as_tensor"):
        patch(torch, name, _moved_where_asked(getattr(torch, name)))
    notes.__init__()  # type: ignore[misc]
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode():
            yield notes
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def as_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function during which the host may not wait."""

    @wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        notes.in_step += 1
        try:
            return function(*args, **kwargs)
        finally:
            notes.in_step -= 1

    return step


def as_move(function: Callable[..., Any]) -> Callable[..., Any]:
    """``Batch.to``, whose copies are counted."""

    @wraps(function)
    def move(self: Any, device: torch.device) -> Any:
        if device.type == "cpu":
            return function(self, device)
        notes.moving = []
        try:
            return function(self, device)
        finally:
            notes.copies_of_batches.append(notes.moving)
            notes.moving = None

    return move
