"""Small files that ask for endless time or memory, or that are no files; each is made by
a function of a folder.
"""

import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import torch

from dataloader.lmdb_file import write_lmdb
from dataloader.packed import packed_rows

Make = Callable[[Path], Path]
MERSENNE = 2**61 - 1  # Python hashes every multiple of it to 0


def of_text(name: str, text: str | bytes | Callable[[], bytes]) -> Make:
    """A file with this content."""

    def make(folder: Path) -> Path:
        path = folder / name
        content = text() if callable(text) else text
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def no_files(name: str) -> dict[str, Make]:
    """What is no file and has a file's name."""

    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    def device(folder: Path) -> Path:
        (folder / name).symlink_to("/dev/zero")
        return folder / name

    def listening(folder: Path) -> Path:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket has 108 letters at most
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
        os.chdir(here)
        return folder / name

    def directory(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return {"a pipe": fifo, "a device": device, "a socket": listening, "a directory": directory}


# ---- weights files


def archive(data: bytes, *, compress: bool = False, again: bytes | None = None) -> bytes:
    """What torch.save writes, around a pickle of any kind."""
    out = BytesIO()
    with zipfile.ZipFile(
        out, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED, compresslevel=1
    ) as file:
        for name, content in (("data.pkl", data), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
        if again is not None:
            file.writestr("archive/Data.pkl", again)
    return out.getvalue()


def saved(content: object) -> bytes:
    """By torch itself."""
    out = BytesIO()
    torch.save(content, out)
    return out.getvalue()


def doubled(value: object, times: int) -> object:
    """A list of one list twice, of one list twice, …."""
    for _ in range(times):
        value = [value, value]
    return value


def _long(number: int) -> bytes:
    digits = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(digits)]) + digits


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _call(name: str, arguments: bytes) -> bytes:
    module, _, own = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + own.encode() + b"\n" + arguments + b"R"


def _modules_in_modules(levels: int) -> bytes:
    """A network whose modules hold one module twice, that holds one twice, …."""
    kind = b"cmace.modules.models\nScaleShiftMACE\n)\x81"

    def twice(number: int) -> bytes:
        child = b"h" + bytes([number])
        return _text("_modules") + b"}(" + _text("a") + child + _text("b") + child + b"u"

    chain = kind + b"q\0"
    for number in range(levels):
        chain += kind + b"}" + twice(number) + b"sbq" + bytes([number + 1])
    return (
        b"\x80\x02" + kind + b"}(" + _text("chain") + b"](" + chain + b"e" + twice(levels) + b"ub."
    )


TUPLES = b")" + b"q\0h\0\x86" * 60  # pairs of one pair, 60 times
OURS = {"format_version": 1, "model_json_text": "{}", "digest": "0"}
PICKLES: dict[str, Callable[[], bytes]] = {
    "a list doubled 40 times": lambda: saved({**OURS, "config": doubled("x", 40)}),
    "a list of itself": lambda: archive(b"\x80\x02]q\0h\0a."),
    "a tensor a million times": lambda: saved({**OURS, "config": doubled(torch.zeros(2000), 18)}),
    "nested tuples as a key": lambda: archive(b"\x80\x02}" + TUPLES + b"K\x01s."),
    "nested tuples in a set": lambda: archive(
        b"\x80\x02" + _call("__builtin__.set", b"](" + TUPLES + b"e\x85") + b"."
    ),
    "keys of one hash": lambda: archive(
        b"\x80\x02}(" + b"".join(_long(i * MERSENNE << 8) + b"N" for i in range(1, 20000)) + b"u."
    ),
    "40 GB from a number": lambda: archive(
        b"\x80\x02" + _call("torch.FloatTensor", _long(10**10) + b"\x85") + b"."
    ),
    "10 GB of zeros": lambda: archive(
        b"\x80\x02" + _call("__builtin__.bytearray", _long(10**10) + b"\x85") + b"."
    ),
    "a text encoded again and again": lambda: archive(
        b"\x80\x02]("
        + _text("x" * 10**5)
        + b"q\0"
        + _text("latin1")
        + b"q\1"
        + _call("_codecs.encode", b"h\0h\1\x86") * 50_000
        + b"e."
    ),
    "nested lists": lambda: archive(b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b"."),
    "a long number": lambda: archive(b"\x80\x02" + b"\x8a\xff" + b"\x7f" * 255 + b"."),
    "a compressed pickle": lambda: archive(b"\x80\x02" + b"N0" * 2**24 + b"N.", compress=True),
    "two records of one name": lambda: archive(b"\x80\x02N.", again=b"\x80\x02}."),
    "modules in modules": lambda: archive(_modules_in_modules(40)),
    "no pickle": lambda: archive(b""),
    "a pickle of protocol 4": lambda: archive(pickle.dumps({**OURS}, protocol=4)),
}


# ---- texts


def yamls() -> dict[str, str]:
    """Settings, of any command."""
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
    return {
        "aliases": bomb,
        "a key twice": "r_max: 4.0\nlr: 1\nr_max: 5.0\n",
        "thousands of keys": "".join(f"k{i}: 1\n" for i in range(12_000)) + "k1: 2\n",
        "nested": "seed: " + "[" * 5000 + "]" * 5000,
        "a long number": f"seed: 0x{'f' * 100_000}\n",
        "long keys": "? " + "[" * 50 + "]" * 50 + "\n: 1\n",
        "a megabyte": "lr: 1  #" + "x" * 2**20,
        "a merge": "<<: {lr: 1}\nr_max: 4\n",
    }


def jsons() -> dict[str, str]:
    """Whatever is JSON."""
    return {
        "a key twice": '{"H": -1.0, "H": -2.0}',
        "the last of many keys twice": "{"
        + "".join(f'"k{i}": 1, ' for i in range(60_000))
        + '"k59999": 2}',
        "nested": '{"heads": ' + "[" * 900 + "]" * 900 + "}",
        "nested deeper": "[" * 10**5,
        "a million digits": '{"H": ' + "1" * 10**6 + "}",
        "400 digits": '{"H": ' + "1" * 400 + "}",
    }


ATOM = "H 0 0 0\n"


def xyzs() -> dict[str, str]:
    """Frames."""
    properties = "Properties=species:S:1:pos:R:3"
    many = ":".join(f"a{i}:R:1" for i in range(50_000))
    return {
        "a comment of 43 MB": f"1\n{properties} {'a=1 ' * (43 * 2**18)}\n{ATOM}",
        "a hundred thousand keys": (
            f"1\n{properties} {' '.join(f'key{i}=1' for i in range(100_000))}\n{ATOM}"
        ),
        "a gap in a comment": f"1\n{properties} energy=1{' ' * 10**6}=1\nH 0 0\n",
        "a billion atoms": f"1000000000\n{properties}\n{ATOM}",
        "10^30 atoms": f"{10**30}\n{properties}\n{ATOM}",
        "a number of a million digits": f"{'1' * 10**6}\n{properties}\n{ATOM}",
        "a million columns": f"1\n{properties}:a:R:1000000\n{ATOM}",
        "fifty thousand entries": f"1\n{properties}:{many}\n{ATOM}",
        "no atoms and a mask": f"0\n{properties}:move_mask:L:1 energy=1\n",
        "a row of 20 MB": f"1\n{properties}\n{'1 ' * 10**7}\n",
    }


# ---- LMDBs


def lmdb(rows: Iterable[bytes], name: str = "a.lmdb") -> Make:
    """An LMDB of these rows."""

    def make(folder: Path) -> Path:
        write_lmdb(
            folder / name,
            [(str(number).encode(), row) for number, row in enumerate(rows, start=10)],
        )
        return folder / name

    return make


def _row(**entries: object) -> bytes:
    return zlib.compress(json.dumps(entries).encode())


def lmdbs() -> dict[str, Make]:
    """LMDBs none of whose rows is sound."""
    shape = {"__ndarray__": [[10**9, 3], "float64", [0.0]]}
    flat = {"__ndarray__": [[0] * 100_000, "float64", []]}

    def more_records_than_bytes(folder: Path) -> Path:
        path = lmdb([b"x"])(folder)
        content = bytearray(path.read_bytes())
        for page in (0, 4096):  # entries of the main table, in both meta pages
            content[page + 16 + 24 + 48 + 32 : page + 16 + 24 + 48 + 40] = (2**50).to_bytes(
                8, "little"
            )
        path.write_bytes(content)
        return path

    def with_a_pipe(folder: Path) -> Path:
        (folder / "shards").mkdir()
        lmdb([b"x"])(folder / "shards")
        os.mkfifo(folder / "shards" / "b.lmdb")
        return folder / "shards"

    def with_a_manifest(text: str | None) -> Make:
        def make(folder: Path) -> Path:
            (folder / "packed").mkdir()
            if text is None:
                os.mkfifo(folder / "packed" / "manifest.json")
            else:
                (folder / "packed" / "manifest.json").write_text(text)
            return folder / "packed"

        return make

    return {
        "zlib bombs": lmdb([zlib.compress(bytes(2**27), 9)] * 3),
        "arrays of a billion": lmdb([_row(numbers=shape, positions=shape)]),
        "arrays of a hundred thousand axes": lmdb([_row(numbers=flat, positions=flat)]),
        "a charge of 4000 digits": lmdb(
            [_row(numbers=[1], positions=[[0, 0, 0]], charge=int("9" * 4000))]
        ),
        "pickles of nested tuples": lmdb([b"\x80\x02}" + TUPLES + b"K\x01s."]),
        "pickles of doubled lists": lmdb([pickle.dumps({"pos": doubled("x", 40)}, protocol=2)]),
        "packed rows that lie": lmdb([packed_rows.MAGIC + b"\xff" * 40]),
        "more records than bytes": more_records_than_bytes,
        "a pipe among the shards": with_a_pipe,
        "a manifest that is a pipe": with_a_manifest(None),
        **{f"a manifest with {name}": with_a_manifest(text) for name, text in jsons().items()},
    }
