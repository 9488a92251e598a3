"""Libraries of an extra: imported where they are used, told in one line where they are missing."""

import importlib
from types import ModuleType

from model_utils.errors import InputError

PACKAGES = {"ase_ga": "ase-ga"}  # of modules that are called otherwise


def needed(*names: str, what: str, extra: str = "report") -> list[ModuleType]:
    """Modules that something needs, imported.

    Args:
        names: as they are imported.
        what: needs them, as ``--report``.
        extra: of pyproject.toml that brings them.

    Raises:
        InputError: one is not installed.
    """
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            missing = error.name or name
            package = PACKAGES.get(missing, missing)
            raise InputError(
                f"{what} needs {package}, which is not installed: pip install {package}, or pip "
                f"install -e '.[{extra}]' in the checkout"
            ) from None
    return modules
