"""Versions of what computes, which decides last bits: recorded in a run's files,
compared when it goes on.
"""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from model_utils.models.architecture import architecture_of
from model_utils.models.schema import ModelDescription


def code_version(description: ModelDescription) -> dict[str, str]:
    """Versions that a resumed run compares with its own; git's commit where
    the code is a checkout.
    """
    return {"commit": _commit(), **_libraries(description)}


def written_here(code_version: Mapping[str, str], description: ModelDescription) -> bool:
    """Whether a file that records these versions was written by the libraries of this process."""
    libraries = _libraries(description)
    return {name: code_version.get(name) for name in libraries} == libraries


def _libraries(description: ModelDescription) -> dict[str, str]:
    return {
        "torch": str(torch.__version__),
        **architecture_of(description).versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _commit() -> str:
    """The commit of this checkout, marked where files differ from it;
    ``unknown`` where there is none.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return out.stdout.strip() or "unknown"
