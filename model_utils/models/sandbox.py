"""Objects as a sandboxed unpickler leaves them: classes of any name that keep what a pickle
hands them and do nothing.

``files.checkpoint`` has torch's restricted unpickler make a ``SandboxedObject`` of every object in
a weights file, so that a module of mace is read without importing mace's classes and without
running a line that the file names. What is looked up in such objects is what ``torch.nn.Module``
pickles: ``_parameters``, ``_buffers`` and ``_modules``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

DEEPEST = 32  # modules in modules; mace has seven


class SandboxedObject:
    """An object of any class: its constructor's arguments and its state, and no code.

    The arguments stand in ``__dict__["constructor_arguments"]``, the state's entries beside them.
    """

    def __new__(cls, *arguments: object, **_: object) -> "SandboxedObject":
        """Keep the arguments."""
        self = object.__new__(cls)
        self.__dict__["constructor_arguments"] = arguments
        return self

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def sandboxed_class(name: str) -> type:
    """A class of its own for each global of a pickle, by its full name."""
    module, _, own = name.rpartition(".")
    return type(own, (SandboxedObject,), {"__module__": module})


def class_name(value: object) -> str:
    """Full name of the class (or function) that a sandboxed object or class stands for."""
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__name__}"


def attribute(value: object, name: str, default: Any = None) -> Any:
    """An attribute of a sandboxed object; the default where it has none or the
    value is no such object.
    """
    return value.__dict__.get(name, default) if isinstance(value, SandboxedObject) else default


def as_mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping, an empty one else: files may hold anything at any place."""
    return value if isinstance(value, Mapping) else {}


def child(parent: SandboxedObject, name: str) -> SandboxedObject:
    """A module's own module of this name.

    Raises:
        KeyError: there is none.
        TypeError: what has the name is no module.
    """
    module = as_mapping(attribute(parent, "_modules"))[name]
    if not isinstance(module, SandboxedObject):
        raise TypeError(f"{name} is no module")
    return module


def children(parent: SandboxedObject, name: str) -> list[SandboxedObject]:
    """The modules in a list of modules (``ModuleList``) of this name; raises as ``child`` does."""
    return list(as_mapping(attribute(child(parent, name), "_modules")).values())


def tensor_of(module: SandboxedObject, name: str) -> Tensor:
    """A module's own buffer or parameter.

    Raises:
        KeyError: there is none of this name.
    """
    for kind in ("_buffers", "_parameters"):
        tensor = as_mapping(attribute(module, kind)).get(name)
        if isinstance(tensor, Tensor):
            return tensor
    raise KeyError(name)


def tensors_of(root: SandboxedObject) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a module by the names that ``state_dict`` gives them.

    They are plain numbers: what is stored otherwise was refused when the file was read.
    """
    tensors: dict[str, Tensor] = {}
    _add_tensors(tensors, root, "", 0)
    return tensors


def _add_tensors(tensors: dict[str, Tensor], module: object, prefix: str, depth: int) -> None:
    """Add the tensors of a module and of the modules in it, whose names begin with ``prefix``."""
    if not isinstance(module, SandboxedObject) or depth > DEEPEST:
        return
    hidden = attribute(module, "_non_persistent_buffers_set", set())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in as_mapping(attribute(module, kind)).items():
            if isinstance(tensor, Tensor) and name not in hidden:
                tensors[prefix + name] = tensor.detach()
    for name, inner in as_mapping(attribute(module, "_modules")).items():
        _add_tensors(tensors, inner, f"{prefix}{name}.", depth + 1)
