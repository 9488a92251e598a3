"""What tests of plug-ins share: the project's examples, a model.json for them,
tables left as they were.
"""

import sys
from collections.abc import Iterator

import pytest

from conftest import ROOT
from model_utils import plugins

IDEAS = ROOT / "configs" / "plugins" / "ideas.py"
PAIRS = ROOT / "configs" / "plugins" / "pairs.py"
PAIRS_JSON = {
    "model_class": "Pairs",
    "r_max": 3.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": {"H": -13.6, "O": -430.0},
    "avg_num_neighbors": 2.0,
}


@pytest.fixture
def restored_tables() -> Iterator[None]:
    """A plug-in stays for its process; the tests share one."""
    tables = [table for _, table in plugins._tables()]
    before = [dict(table) for table in tables]
    loaded = list(plugins._loaded)
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()  # type: ignore[attr-defined]
        table.update(entries)  # type: ignore[attr-defined]
    plugins._loaded[:] = loaded
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]
