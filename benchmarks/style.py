"""How the code reads, in numbers: ``python benchmarks/style.py`` prints them and ends with 1
where a bound is broken.

Every file of the product is formatted to 88 columns first (by ruff, without magic commas), so that
long lines do not make functions look short. Bounds: median function at most 10 lines, none above
80, complexity at most 12, packed assignments (``a, b = x, y``) at most 2 %, no docstring that only
points at a neighbour, no file above 450 lines. Decisions and comments per 100 lines are printed
beside those of five codebases of the field, measured the same way.
"""

import ast
import io
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("model_utils", "dataloader", "losses.py", "optimizer.py", "metadata.py", "read_model.py")
COLUMNS = 88
MEDIAN_LINES = 10
MOST_LINES = 80
MOST_COMPLEX = 12
MOST_PACKED = 0.02
MOST_FILE_LINES = 450
POINTS_AT_A_NEIGHBOUR = re.compile(
    r"(The same|Those|That of|These|This one|Such|See ``|See :|As "
    r"(in|above|before|there)|It\b|Its\b|Of an?\b|Of the\b)"
)
ANCHORS = {  # decisions per 100 lines of function, comments per 100 lines, packed assignments (%)
    "mlip": (12.7, 10.6, 0.4),
    "litgpt": (14.9, 6.4, 0.9),
    "metatrain": (12.7, 5.6, None),
    "graph-pes": (15.4, 5.0, 0.4),
    "nanochat": (15.0, 17.0, 2.7),
}
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.Assert,
    ast.comprehension,
    ast.match_case,
)


@dataclass
class Function:
    """One function, formatted."""

    name: str
    lines: int  # without its docstring
    decisions: int


@dataclass
class File:
    """What is counted in one file."""

    path: Path
    lines: int = 0  # as it is
    code_lines: int = 0  # formatted, neither blank nor docstring
    comments: int = 0
    assignments: int = 0
    packed: list[str] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    pointing: list[str] = field(default_factory=list)


def product_files() -> Iterator[Path]:
    """Python files that a user runs."""
    for name in PRODUCT:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def formatted(paths: Sequence[Path]) -> dict[Path, str]:
    """The texts of files as ruff lays them out in 88 columns."""
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--isolated"]
    command += ["--line-length", str(COLUMNS), "--config", "format.skip-magic-trailing-comma=true"]
    with tempfile.TemporaryDirectory() as folder:
        copies = {path: Path(folder) / path.relative_to(ROOT) for path in paths}
        for path, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        subprocess.run([*command, folder], check=True)
        return {path: copy.read_text(encoding="utf-8") for path, copy in copies.items()}


def decisions_of(node: ast.AST) -> int:
    """Places where the way parts: branches, loops, handlers, comprehensions, and/or; nested
    functions count apart.
    """
    count = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        count += isinstance(child, BRANCHES)
        count += len(child.values) - 1 if isinstance(child, ast.BoolOp) else 0
        count += len(child.ifs) if isinstance(child, ast.comprehension) else 0
        count += decisions_of(child)
    return count


def docstring_lines(node: ast.AST) -> int:
    """Lines that the docstring of a definition takes."""
    body = getattr(node, "body", [])
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        return int(body[0].end_lineno - body[0].lineno + 1)
    return 0


def measured(path: Path, shaped: str) -> File:
    """Counts of one file, of which ``shaped`` is the formatted text."""
    tree = ast.parse(shaped)
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    file = File(path.relative_to(ROOT), lines=n_lines)
    file.code_lines = sum(bool(line.strip()) for line in shaped.splitlines())
    file.comments = sum(
        token.type == tokenize.COMMENT
        for token in tokenize.generate_tokens(io.StringIO(shaped).readline)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            file.assignments += 1
            if isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple):
                file.packed.append(ast.unparse(node)[:70])
        if isinstance(node, ast.AnnAssign):
            file.assignments += 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            file.code_lines -= docstring_lines(node)
            first_line = (ast.get_docstring(node) or "").partition("\n")[0]
            if POINTS_AT_A_NEIGHBOUR.match(first_line):
                file.pointing.append(f"{node.name}: {first_line}")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            file.functions.append(Function(node.name, lines, 1 + decisions_of(node)))
    return file


def too_complex() -> list[str]:
    """Functions whose cyclomatic complexity (McCabe's, as ruff counts it) is above the bound."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "C901",
        "--output-format",
        "concise",
        "--no-fix",
    ]
    command += ["--config", f"lint.mccabe.max-complexity={MOST_COMPLEX}", *PRODUCT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "C901" in line]


def main() -> int:
    """Print the numbers; returns 1 where a bound is broken."""
    files = [measured(path, text) for path, text in formatted(list(product_files())).items()]
    functions = [(file, function) for file in files for function in file.functions]
    lines = [function.lines for _, function in functions]
    median = statistics.median(lines)
    packed = sum(len(file.packed) for file in files) / sum(file.assignments for file in files)
    decisions = 100 * sum(function.decisions - 1 for _, function in functions) / sum(lines)
    comments = 100 * sum(file.comments for file in files) / sum(file.code_lines for file in files)
    print(f"{len(files)} files, {len(functions)} functions, formatted to {COLUMNS} columns")
    print(
        f"function: median {median:g} lines (at most {MEDIAN_LINES}), longest {max(lines)} (at "
        f"most {MOST_LINES})"
    )
    print(f"packed assignments {100 * packed:.1f} % (at most {100 * MOST_PACKED:g})")
    print(
        f"decisions per 100 lines of function {decisions:.1f}, comments per 100 lines "
        f"{comments:.1f}; others:"
    )
    for name, (their_decisions, their_comments, _) in ANCHORS.items():
        print(f"  {name:10s} {their_decisions:5.1f} {their_comments:5.1f}")
    broken = [f"{file.path}: {file.lines} lines" for file in files if file.lines > MOST_FILE_LINES]
    broken += [
        f"{file.path}: {f.name} has {f.lines} lines"
        for file, f in functions
        if f.lines > MOST_LINES
    ]
    broken += too_complex()
    broken += [
        f"{file.path}: a docstring that points at a neighbour, {text}"
        for file in files
        for text in file.pointing
    ]
    if median > MEDIAN_LINES:
        broken.append(f"the median function has {median:g} lines")
    if packed > MOST_PACKED:
        broken += [f"{file.path}: packed, {text}" for file in files for text in file.packed]
    print("\n".join(broken) if broken else "no bound is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
