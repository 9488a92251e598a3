"""What the commands do that do not train: describe, check, pack, inspect and convert, judge."""
