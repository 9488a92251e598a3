"""Two pickled modules compared attribute by attribute, both from the sandboxed unpickler.

It sees what tensors by name do not show.

mace keeps numbers that it computes with outside of tensors (avg_num_neighbors, the constants of
activations, irreps, names of heads), and e3nn adds compiled TorchScript. A module built from the
description is what a stored one must be.
"""

import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, equal

from model_utils.models.pickled import OBSOLETE
from model_utils.models.pickled_values import simplified
from model_utils.models.sandbox import DEEPEST, SandboxedObject, class_name

WITHOUT_MEANING = {
    "training",  # a mode that mace has no use for
    "_profiling_str",  # names for a profiler
    "_prof_str",
    "_tracer_cls",  # by whom generated code was traced
}
CODE = "__codegen__"
# say what the code does; the second is what was asked for, not what is
OF_CODE = {"instructions", "use_reduced_cg"}
# parts that older releases had besides
GONE = {name.rpartition(".")[0] for name in OBSOLETE if name.count(".") > 1}
# one function, before 0.3.16 and since
GATES = ("e3nn.nn._gate.Gate", "mace.modules.gate.GatedEquivariantBlock")
GENERATED = "torch.fx."  # functions whose text e3nn writes anew in every release
ROUNDING = 1e-9  # of the constants of activations, which e3nn measures anew on every machine
LARGEST_CODE = 2**24  # bytes of one compiled function


def differences(stored: object, built: object, *, strict: bool, name: str = "") -> Iterator[str]:
    """What a stored module has otherwise than the one built from its description and its tensors.

    Args:
        stored: read from a file.
        built: the module built here, read as if from a file.
        strict: both were written by the same releases of mace-torch, e3nn and torch, as copies of a
            built module, so that nothing may differ. Else code (compiled, or generated as text) is
            left out, plain data that one side lacks too, and a tensor may have another type and
            shape for the same numbers.
        name: of the attribute, for what is said.
    """
    yield from _Comparison(strict).of(stored, built, name, 0)


class _Comparison:
    """One pass over both trees; what was met already is not entered again."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.seen: set[tuple[int, int]] = set()

    def of(self, a: object, b: object, name: str, depth: int) -> Iterator[str]:
        """What one value has otherwise than the other."""
        if isinstance(a, SandboxedObject | Mapping | list | tuple) and self._was_met(a, b, depth):
            return
        if _is_irreps(a) and _is_irreps(b):
            yield from _irreps(a, b, name)
            return
        for kind, compare in self._ways:
            if isinstance(a, kind) and isinstance(b, kind):
                yield from compare(a, b, name, depth)
                return
        if type(a) is not type(b) or a != b:
            yield f"{name} is {_shown(a)}, expected {_shown(b)}"

    @property
    def _ways(self) -> tuple[tuple[Any, Callable[[Any, Any, str, int], Iterator[str]]], ...]:
        """How two values of one kind are compared; the first kind that fits both counts."""
        return (
            (SandboxedObject, self._objects),
            (Tensor, self._tensors),
            (Mapping, self._entries),
            (list | tuple, self._sequences),
            (type, _classes),
            (float, _floats),
        )

    def _was_met(self, a: object, b: object, depth: int) -> bool:
        """Whether two containers were compared before or lie deeper than any network has
        them; notes that they were.
        """
        if (id(a), id(b)) in self.seen or depth > 4 * DEEPEST:
            return True
        self.seen.add((id(a), id(b)))
        return False

    def _objects(
        self, a: SandboxedObject, b: SandboxedObject, name: str, depth: int
    ) -> Iterator[str]:
        if not self.strict and (class_name(a), class_name(b)) == GATES:
            yield from _gates(a, b, name)
        elif class_name(a) != class_name(b):
            yield f"{name or 'it'} is a {class_name(a)}, expected {class_name(b)}"
        elif self.strict or not class_name(a).startswith(GENERATED):
            yield from self._entries(_plain(a), _plain(b), name, depth)

    def _tensors(self, a: Tensor, b: Tensor, name: str, depth: int) -> Iterator[str]:
        yield from _tensors(a if self.strict else _like(a, b), b, name)

    def _sequences(
        self, a: Sequence[object], b: Sequence[object], name: str, depth: int
    ) -> Iterator[str]:
        if len(a) != len(b):
            yield f"{name} has {len(a)} entries, expected {len(b)}"
            return
        for position, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from self.of(x, y, f"{name}.{position}", depth + 1)

    def _entries(
        self, a: Mapping[Any, Any], b: Mapping[Any, Any], name: str, depth: int
    ) -> Iterator[str]:
        """Entries that differ; what only the file has is refused where it could be called."""
        for key in {**a, **b}:
            inner = f"{name}.{key}".removeprefix(".")
            if key in WITHOUT_MEANING or (not self.strict and (key in OF_CODE or inner in GONE)):
                continue
            if key == CODE:
                yield from self._code(a.get(key), b.get(key), name)
            elif key in a and key in b:
                yield from self.of(a[key], b[key], inner, depth + 1)
            elif self.strict or (key in a and not _is_data(a[key], 0)):
                yield f"{inner} is {'there, expected nothing' if key in a else 'missing'}"

    def _code(self, a: object, b: object, name: str) -> Iterator[str]:
        if not self.strict:
            return
        if not isinstance(a, Mapping) or not isinstance(b, Mapping) or set(a) != set(b):
            yield f"{name}: the compiled code is missing, or of other functions"
            return
        yield from (
            f"{name}: the compiled code of {key} is another"
            for key in b
            if _source(a[key]) != _source(b[key])
        )


def _irreps(a: object, b: object, name: str) -> Iterator[str]:
    if a != b and simplified(a) != simplified(b):
        yield f"{name} is {simplified(a)}, expected {simplified(b)}"


def _classes(a: type, b: type, name: str, depth: int) -> Iterator[str]:
    if class_name(a) != class_name(b):
        yield f"{name} is {class_name(a)}, expected {class_name(b)}"


def _floats(a: float, b: float, name: str, depth: int) -> Iterator[str]:
    if not math.isclose(a, b, rel_tol=ROUNDING):
        yield f"{name} is {a!r}, expected {b!r}"


def _is_irreps(value: object) -> bool:
    """Whether a value is irreps: e3nn's, or text, as mace keeps those of
    the last layer's scalars.
    """
    text = (
        isinstance(value, str) and re.fullmatch(r"\d+x\d+[eo](\+\d+x\d+[eo])*", value) is not None
    )
    return text or (isinstance(value, SandboxedObject) and class_name(value).endswith(".Irreps"))


def _gates(old: SandboxedObject, new: SandboxedObject, name: str) -> Iterator[str]:
    """e3nn's gate and the one that mace has in its place: irreps and activations."""
    a = _plain(old)
    b = _plain(new)
    for key in ("irreps_scalars", "irreps_gates", "irreps_gated", "_irreps_in"):
        if not (
            _is_irreps(a.get(key))
            and _is_irreps(b.get(key))
            and simplified(a[key]) == simplified(b[key])
        ):
            yield f"{name}.{key} is not as mace builds it"
    for key, function in (("act_scalars", b.get("_act_scalar")), ("act_gates", b.get("_act_gate"))):
        acts: dict[str, Any] = {}
        if isinstance(a.get(key), SandboxedObject):
            acts = _plain(_plain(a[key])["acts"])
        used = [_plain(act).get("f") for act in acts.values() if isinstance(act, SandboxedObject)]
        if any(not isinstance(f, type) or class_name(f) != _shown(function) for f in used):
            yield f"{name}.{key} is of another function than {_shown(function)}"


def _plain(value: SandboxedObject) -> dict[str, Any]:
    """Attributes; parameters, buffers and modules by their own names, as people know them."""
    state = dict(value.__dict__)
    arguments = state.pop("constructor_arguments", ())
    named: dict[str, Any] = {}
    for group in ("_parameters", "_buffers", "_modules"):
        inner = state.pop(group, None)
        if isinstance(inner, Mapping):
            named |= inner
        elif inner is not None:
            named[group] = inner
    if arguments:
        named[""] = arguments
    return {**state, **named}


def _like(a: Tensor, b: Tensor) -> Tensor:
    """A tensor in another's type and shape, where it has as many numbers."""
    return a.reshape(b.shape).to(b.dtype) if a.numel() == b.numel() else a


def _tensors(a: Tensor, b: Tensor, name: str) -> Iterator[str]:
    if a.dtype != b.dtype or a.shape != b.shape:
        yield f"{name} is {a.dtype} {tuple(a.shape)}, expected {b.dtype} {tuple(b.shape)}"
    elif not equal(a, b):
        yield f"{name} holds {_numbers(a)}, expected {_numbers(b)}"


def _numbers(tensor: Tensor) -> str:
    values = [f"{value:.6g}" for value in tensor.detach().reshape(-1)[:3].tolist()]
    return ", ".join(values) + (" …" if tensor.numel() > len(values) else "")


def _is_data(value: object, depth: int) -> bool:
    """Whether a value is numbers, text and collections of these: nothing that could be called."""
    if isinstance(value, Mapping):
        return depth < DEEPEST and all(_is_data(item, depth + 1) for item in value.values())
    if isinstance(value, list | tuple | set):
        return depth < DEEPEST and all(_is_data(item, depth + 1) for item in value)
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _source(code: object) -> object:
    """Text and constants of a compiled function, without the counters in its names and
    without where it was made.
    """
    if not isinstance(code, bytes):
        return code
    try:
        with zipfile.ZipFile(io.BytesIO(code)) as archive:
            kinds = ("/code/", "/constants", "/data/")
            records = [r for r in archive.infolist() if any(kind in r.filename for kind in kinds)]
            records = [r for r in records if not r.filename.endswith(".debug_pkl")]
            if sum(record.file_size for record in records) > LARGEST_CODE:
                return "too large"
            return sorted(
                re.sub(rb"\.?___torch_mangle_\d+", b"", archive.read(record)) for record in records
            )
    except Exception:  # zipfile raises half a dozen types on damaged archives
        return "no archive"


def _shown(value: object) -> str:
    return class_name(value) if isinstance(value, SandboxedObject | type) else f"{value!r:.60}"
