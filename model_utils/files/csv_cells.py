"""Text of data in tables that spreadsheets open."""

import re

from dataloader.streams import printable

FORMULA_BEGINS = ("=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def csv_text(text: str) -> str:
    """Text of data as a cell that no spreadsheet takes for a formula: an apostrophe goes
    before what begins like one.

    Numbers stay; line ends and other characters that steer become ``?``. See
    OWASP, "CSV Injection".
    """
    shown = printable(text)
    if shown.lstrip().startswith(FORMULA_BEGINS) and not NUMBER.fullmatch(shown):
        return f"'{shown}"
    return shown
