"""--trust_pickle: a foreign weights file unpickled, its code executed, in a process of its own.

What that process makes of it is then read by the sandboxed unpickler.

The process ends before anything is built here, so what the file's code does to torch or mace stays
in it. It is no sandbox: that code has the user's rights.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.runtime import log

UNPICKLING = Path(__file__).resolve().parents[1] / "tasks" / "unpickling.py"


def load(path: Path) -> object:
    """What a foreign file holds, as ``checkpoint.load_sandboxed`` gives it; executed only where
    that refuses the file.

    Raises:
        InputError: there is no such file, or it holds no model that can be described.
        VerificationError: it is damaged, does not open, or computes otherwise than
            what was read from it.
    """
    try:
        content = checkpoint.load_sandboxed(path)
    except checkpoint.DamagedFile:
        # torch looks at no checksum: executed, it would be taken for sound
        raise
    except VerificationError as refused:
        log.warning(
            "warning: --trust_pickle: %s (sha256 %s) is not readable as data (%s); the code in it "
            "runs now, with your rights",
            path,
            hashlib.sha256(path.read_bytes()).hexdigest(),
            refused,
        )
        return _executed(path)
    log.info("--trust_pickle was not needed: %s is read without executing anything", path)
    return content


def _executed(path: Path) -> object:
    """What the file holds, rewritten as plain data by a process that executes the code in it."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.pt"
        words = [sys.executable, str(UNPICKLING), str(path), str(plain)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not plain.exists():
            silent = f"its process ended with code {done.returncode} and said nothing"
            said = (done.stderr.strip().splitlines() or [silent])[-1]
            kind = InputError if done.returncode == InputError.exit_code else VerificationError
            raise kind(f"{path}, executed: {said:.300}")
        try:
            return checkpoint.load_sandboxed(plain)
        except VerificationError as error:
            raise VerificationError(
                f"{path}, executed: {error}".replace(str(plain), "what came of it")
            ) from None
