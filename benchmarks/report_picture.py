"""The picture of the README: the report of the quickstart's model, seen in a
browser without a window.

    python benchmarks/report_picture.py [--chromium chromium]

Trains the quickstart where it was not trained yet (three minutes), makes its report, and writes
docs/images/report.png.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "runs" / "quickstart" / "quickstart_model.pt"
PICTURE = ROOT / "docs" / "images" / "report.png"
WINDOW = (1180, 1500)  # pixels
WIDTH = 900  # of the picture
COLOURS = 64  # enough for text and curves, at a third of the size


def main() -> None:
    """Make the report, look at it, keep the picture small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chromium", default="chromium", help="name of the browser")
    asked = parser.parse_args()
    if not MODEL.exists():
        run(sys.executable, "configs/quickstart/run.py")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        words = [
            "--input_model",
            str(MODEL.relative_to(ROOT)),
            "--data",
            "configs/quickstart/test.xyz",
            "--report",
            str(report),
        ]
        run(sys.executable, "model_utils/evaluate.py", *words, "--worst", "0", "--threads", "1")
        seen = Path(folder) / "seen.png"
        size = ",".join(map(str, WINDOW))
        flags = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--window-size={size}",
            f"--screenshot={seen}",
        ]
        run(asked.chromium, *flags, str(report))
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(smaller(seen))
    print(f"wrote {PICTURE}, {PICTURE.stat().st_size // 1000} kB")


def run(*words: str) -> None:
    """Run a command from the folder of the repository."""
    subprocess.run(words, cwd=ROOT, check=True)


def smaller(path: Path) -> bytes:
    """The picture as a PNG of fewer pixels and colours."""
    with Image.open(path) as image:
        height = round(image.height * WIDTH / image.width)
        small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
