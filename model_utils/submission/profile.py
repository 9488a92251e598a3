"""Where work is sent: a YAML file without secrets, and secrets from the environment or a file
that is nobody else's.
"""

import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.settings import invoked, plain_yaml

VARIABLE = "MACE_SUBMIT_"  # begins the names of variables with credentials
KEYS = ("machine", "resources", "python", "launcher", "credentials")
OURS = ("local_root",)  # of the section machine: given by submit.py
# of the section machine, relative to the file where the context is one of this machine
PATHS = ("remote_root",)
LOCAL_CONTEXTS = ("LocalContext", "LazyLocalContext", "Local", "LazyLocal")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where work is sent.

    Attributes:
        path: of the file.
        machine: dpdispatcher's description of the machine, without secrets.
        resources: dpdispatcher's description of what a job asks for.
        python: interpreter there, with the packages of this project.
        launcher: words before it, as ``srun --ntasks=1``.
        credentials: a file with secrets; None without one.
    """

    path: Path
    machine: Mapping[str, Any]
    resources: Mapping[str, Any]
    python: str
    launcher: str
    credentials: Path | None

    def machine_with_credentials(self) -> dict[str, Any]:
        """The description of the machine with its secrets, for dpdispatcher alone.

        Raises:
            InputError: the file of credentials can be read by others, or is none.
        """
        known = self.machine.get("remote_profile") or {}
        secrets = {**known, **_of_file(self.credentials), **_of_environment()}
        return {**self.machine, **({"remote_profile": secrets} if secrets else {})}

    def deciding(self) -> dict[str, Any]:
        """What of it belongs to a job: all but the secrets."""
        return {
            "machine": dict(self.machine),
            "resources": dict(self.resources),
            "python": self.python,
            "launcher": self.launcher,
        }


def read(path: Path) -> Profile:
    """The profile of a file.

    Raises:
        InputError: it cannot be read, has an unknown key, or holds a secret.
    """
    content = plain_yaml.read(path, "a profile of a machine", "machine: {batch_type: Shell}")
    for name in content:
        if name not in KEYS:
            near = difflib.get_close_matches(str(name), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYS)}"
            raise InputError(f"unknown setting {name!r:.60} in {path}; {hint}")
    _refuse_secrets(content, path)
    machine = _section(content, "machine", path)
    for name in OURS:
        if name in machine:
            raise InputError(
                f"{name} in section machine of {path} is the job folder, given by "
                "submit.py; leave it out"
            )
    credentials = content.get("credentials")
    return Profile(
        path=path,
        machine=_with_paths(machine, path),
        resources=_section(content, "resources", path),
        python=_text(content, "python", "python3", path),
        launcher=_text(content, "launcher", "", path),
        credentials=None if credentials is None else path.parent / str(credentials),
    )


def _section(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = content.get(name)
    if not isinstance(section, Mapping) or not section:
        raise InputError(
            f"{path} has no section {name}, expected one as dpdispatcher takes it; "
            "configs/submit/ has some"
        )
    return dict(section)


def _text(content: Mapping[str, Any], name: str, default: str, path: Path) -> str:
    value = content.get(name, default)
    if not isinstance(value, str) or "\n" in value:
        raise InputError(f"{name} in {path} holds {value!r:.60}, expected one line of words")
    return value


def _with_paths(machine: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The description of a machine whose folders on this machine are relative to its file."""
    if machine.get("context_type") not in LOCAL_CONTEXTS:
        return dict(machine)
    places = {
        name: str((path.parent / str(machine[name])).absolute())
        for name in PATHS
        if name in machine
    }
    return {**machine, **places}


def _refuse_secrets(content: Mapping[str, Any], path: Path) -> None:
    """Raise InputError where a key of a profile says that its value is a secret."""
    for place, name in _names(content, ""):
        if name != "credentials" and invoked.is_secret(name):
            raise InputError(
                f"{place} in {path} is a secret, which a file of settings gives to everyone who "
                f"reads it; set the variable {VARIABLE}{name.upper()}, or name a file of mode "
                "0600 under credentials"
            )


def _names(content: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every key with its place."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            here = f"{place}.{name}" if place else str(name)
            yield here, str(name)
            yield from _names(value, here)
    elif isinstance(content, list):
        for value in content:
            yield from _names(value, place)


def _of_environment() -> dict[str, str]:
    """Credentials in variables, by their names without the beginning, in small letters."""
    return {
        name.removeprefix(VARIABLE).lower(): value
        for name, value in os.environ.items()
        if name.startswith(VARIABLE)
    }


def _of_file(path: Path | None) -> dict[str, Any]:
    """Credentials in a file that only this user can read.

    Raises:
        InputError: others can, it is another's, or it is no YAML of names and values.
    """
    if path is None:
        return {}
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot read the credentials {path}: {error.strerror}") from None
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise InputError(
            f"the credentials {path} have mode {mode:04o}, so others may read "
            f"them; chmod 600 {path}"
        )
    if status.st_uid != os.geteuid():
        raise InputError(
            f"the credentials {path} belong to another user; make a file of your own, of mode 0600"
        )
    return dict(plain_yaml.read(path, "a file of credentials", "password: …"))
