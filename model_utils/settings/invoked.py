"""The command of this process as it was typed, for the record of a run; without what
must not be read there.
"""

import re
from collections.abc import Sequence

SECRET = r"(?:pass(?:word|wd|phrase)|secret|token|credential|api_?key|access_?key|private_?key)"
SECRET_NAME = re.compile(rf"\w*{SECRET}\w*", re.IGNORECASE)
SECRET_VALUE = re.compile(
    rf"({SECRET}\w*\s*[=:]\s*|{SECRET}\w*\s+|bearer\s+)[^\s&,;'\"]+", re.IGNORECASE
)
IN_A_URL = re.compile(r"(\w+://)[^/@\s]+@")
HIDDEN = "…"
COMMANDS = ("sync",)  # settings that are commands: no file that others read has one

_words: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of this process's command."""
    _words[:] = arguments


def words() -> list[str]:
    """The arguments of this process's command, with ``…`` in place of secrets."""
    return without_secrets(_words)


def without_secrets(words: Sequence[str]) -> list[str]:
    """Arguments with ``…`` in place of commands, of values of flags that are called password, token
    and the like, and of users in addresses.
    """
    shown: list[str] = []
    hide_next = False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_flag = word.startswith("--")
        if hide_next and not is_flag:
            shown.append(HIDDEN)
            hide_next = False
        elif is_flag and (is_secret(flag[2:]) or flag[2:].replace("-", "_") in COMMANDS):
            shown.append(f"{flag}={HIDDEN}" if equals else flag)
            hide_next = not equals
        else:
            shown.append(without_secrets_in(word))
            hide_next = False
    return shown


def is_secret(name: str) -> bool:
    """Whether the value of a flag of this name must not be kept."""
    return SECRET_NAME.fullmatch(name) is not None


def without_secrets_in(text: str) -> str:
    """A text with ``…`` in place of what follows password, token and the like, and
    of users in addresses.
    """
    return IN_A_URL.sub(rf"\1{HIDDEN}@", SECRET_VALUE.sub(rf"\1{HIDDEN}", text))
