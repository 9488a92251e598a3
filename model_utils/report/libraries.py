"""Libraries that draw, which are an extra: imported where they are used, told in one line where they are missing."""

import importlib
from types import ModuleType

from model_utils.errors import InputError


def needed(*names: str, what: str) -> list[ModuleType]:
    """Modules that something needs, imported.

    Args:
        names: as they are imported.
        what: needs them, as ``--report``.

    Raises:
        InputError: one is not installed.
    """
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            package = error.name or name
            raise InputError(
                f"{what} needs {package}, which is not installed: pip install {package}, or pip install -e '.[report]' "
                "in the checkout"
            ) from None
    return modules
