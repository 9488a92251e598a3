"""Names of the generations of a checkpoint: the newest, the one before, and a damaged one that
was set aside.
"""

from pathlib import Path

ENDINGS = (".pt", ".pth")  # of weights files; a path with another is a directory


def previous_generation(path: Path) -> Path:
    """``X_checkpoint.pt`` → ``X_checkpoint.prev.pt``, ``last.pth`` → ``last.prev.pth``."""
    return path.with_suffix(f".prev{path.suffix}")


def damaged(checkpoint: Path) -> Path:
    """Where a damaged newest generation is set aside."""
    return checkpoint.with_suffix(f".damaged{checkpoint.suffix}")


def is_previous(name: str) -> bool:
    """Whether a file's name is that of a generation before."""
    return Path(name).suffix in ENDINGS and Path(name).stem.endswith(".prev")


def newest_generation(name: str) -> str:
    """``X_checkpoint.prev.pt`` → ``X_checkpoint.pt``; other names stay."""
    if not is_previous(name):
        return name
    path = Path(name)
    return f"{path.stem.removesuffix('.prev')}{path.suffix}"
