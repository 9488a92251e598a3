"""Choices of an option that are the names of a table, looked up when options are read.

A table is a plain dict in the module that owns the idea. Such a module may need torch, whose import
takes seconds, while ``--help`` and mistakes in flags are answered in a fraction of one. So long as
nobody has imported the module, nobody can have added to its table: then the names are those that
its text declares, which is parsed and not executed. Afterwards they are those that the table has,
with what plug-ins added.
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class NamesOf:
    """Marks a text option whose values are the names of a table.

    Attributes:
        module: that owns the table.
        table: name of the dict in it.
        words: what people type for one of several names, and the answer.
    """

    module: str
    table: str
    words: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)

    def names(self) -> tuple[str, ...]:
        """The names that the table has now."""
        module = sys.modules.get(self.module)
        if module is not None and hasattr(module, self.table):
            return tuple(getattr(module, self.table))
        return _declared(self.module, self.table)

    def checked(self, name: str) -> str:
        """The name, which is one of the table's.

        Raises:
            ValueError: naming the nearest and all that there are.
        """
        names = self.names()
        if name not in names:
            raise ValueError(unknown(name, names, dict(self.words).get(name)))
        return name


@dataclass(frozen=True)
class OfFamilies(NamesOf):
    """Marks an option whose values are names that families of networks offer, each its own.

    Until somebody imports the table of families it has MACE alone, and the names are those of the
    table of MACE's that ``module`` and ``table`` name.

    Attributes:
        families: module with the table ``ARCHITECTURES``.
        offer: attribute of a family that holds its names.
    """

    families: str
    offer: str

    def names(self) -> tuple[str, ...]:
        """The names that any family offers now; whether the network at hand has one, is
        judged when it is built.
        """
        table = getattr(sys.modules.get(self.families), "ARCHITECTURES", None)
        if table is None:
            return super().names()
        return tuple(
            dict.fromkeys(name for family in table.values() for name in getattr(family, self.offer))
        )


FORMS_OF_STEP = OfFamilies(
    module="model_utils.models.mace_architecture",
    table="FORMS",
    families="model_utils.models.architecture",
    offer="forms",
)


def unknown(name: str, names: Sequence[str], meant: str | None = None) -> str:
    """What is said of a name that no table has; ``meant`` where it is known what people mean."""
    near = [meant] if meant else get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{name!r} is not known; {hint}there are {', '.join(names)}"


@cache
def _declared(module: str, table: str) -> tuple[str, ...]:
    """The names in the text of a module: keys of the dict that is assigned to the table's name."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    assert spec.origin is not None, f"{module} has no file"
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(
            isinstance(t, ast.Name) and t.id == table for t in targets
        ):
            return tuple(ast.literal_eval(key) for key in value.keys if key is not None)
    raise AssertionError(f"{module} declares no table {table}: a dict with its names written out")
