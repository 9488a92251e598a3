"""The page of a report: numbers, figures and structures in one file that
opens without a network.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_utils.report.figures import as_data
from model_utils.report.libraries import needed
from model_utils.report.tables import Table
from model_utils.report.viewer import Viewer

TEMPLATE = Path(__file__).with_name("page.html")
START = (  # after the page is drawn: WebGL without a GPU takes seconds to begin
    'addEventListener("load", () => setTimeout(() => Chemiscope.StructureVisualizer.load('
    '{structure: "structure", info: "info", meta: "meta"}, '
    'JSON.parse(document.getElementById("structures").textContent)), 50));'
)
VIEWER_NOTE = (
    "Drag to turn, scroll to come nearer, slide to the next structure. Arrows are errors of "
    "forces, predicted minus label; the longest of all is 2 Å. The menu colours atoms by them."
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture within the page.

    Attributes:
        text: what it shows, for who does not see it.
        png: its bytes.
    """

    text: str
    png: bytes

    @property
    def address(self) -> str:
        """The picture as an address that holds it."""
        return as_data(self.png)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pictures side by side and tables below them."""

    title: str = ""
    images: Sequence[Image] = field(default=())
    tables: Sequence[Table] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of the page."""

    title: str
    parts: Sequence[Part]
    notes: Sequence[str] = field(default=())


def rendered(
    *,
    title: str,
    facts: Table,
    sections: Sequence[Section],
    viewer: Viewer | None,
    worst: Table | None,
) -> str:
    """The page as HTML; every text is escaped, and nothing but the viewer's own
    scripts may run in it.

    Args:
        title: of the page.
        facts: what was judged on what.
        sections: in their order.
        viewer: of the worst structures; None leaves them out.
        worst: table of the worst structures.

    Raises:
        InputError: jinja2 is not installed.
    """
    (jinja2,) = needed("jinja2", what="--report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    scripts = [viewer.script, START] if viewer is not None else []
    values: Mapping[str, Any] = {
        "title": title,
        "facts": facts,
        "sections": sections,
        "viewer": viewer,
        "viewer_note": VIEWER_NOTE,
        "worst": worst,
        "start": START,
        "policy": policy(scripts),
    }
    return str(environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values))


def policy(scripts: Sequence[str]) -> str:
    """What a browser lets the page do: nothing of a network, and no script but these."""
    digests = [hashlib.sha256(script.encode("utf-8")).digest() for script in scripts]
    sources = [f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests]
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(sources) or "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "font-src": "data:",
        "worker-src": "blob:",
    }
    return "; ".join(f"{what} {sources}" for what, sources in allowed.items())
