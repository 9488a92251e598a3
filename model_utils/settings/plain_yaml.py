"""YAML of settings, read safely: every key once, no aliases, no more text, nesting and
digits than settings have.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dataloader import input_files
from dataloader.errors import InputError
from dataloader.limits import INTEGER_BITS, SETTINGS_BYTES, SETTINGS_DEPTH


class _Plain(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps the last of two equal keys and unfolds
    aliases, without both.
    """

    depth = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with every key once."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is no plain word", key_node.start_mark
                )
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number that a setting can be; one written in hexadecimal may have any length."""
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > INTEGER_BITS:
            raise yaml.constructor.ConstructorError(
                None, None, "a whole number is too large", node.start_mark
            )
        return number

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; no alias, and not in too many others."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        if self.depth > SETTINGS_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested too deeply (over {SETTINGS_DEPTH} levels)", mark
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)


def read(path: Path, expected: str, example: str) -> Mapping[str, Any]:
    """The lines of a file of settings; of an empty one none.

    Args:
        path: the file.
        expected: what it should be, for messages.
        example: a line of it, for messages.

    Raises:
        InputError: it cannot be read, is not YAML, or holds something else than lines of settings.
    """
    try:
        settings = _Plain(input_files.read_text(path, SETTINGS_BYTES)).get_single_data()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected {expected}") from None
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        # PyYAML's constructors let int(), float() and date() speak for themselves
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split()):.200}") from None
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise InputError(
            f"{path} holds a {type(settings).__name__}, expected lines like `{example}`"
        )
    return settings
