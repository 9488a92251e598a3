"""The restricted reader: equal to a trusting read on real and made rows, and deaf
to everything hostile.

Run as a file (``python test_restricted_pickle.py TASK``) it is the child process of its own tests:
trusting reads, audit hooks and memory caps stay out of the test runner.
"""

import io
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from dataloader.errors import RowError
from dataloader.lmdb_shards import pickle_stand_ins
from dataloader.lmdb_shards.restricted_pickle import TorchGeometricData, loads

ROOT = Path(__file__).resolve().parents[2]
HANGING = 1200.0  # s, as in conftest.py, which imports more than a child of this file may


def run_child(task: str, *arguments: object) -> str:
    """Run one of the tasks below in a process of its own and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:  # where nothing lies that another run has left
        child = subprocess.run(
            [sys.executable, __file__, task, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            timeout=HANGING,
        )
    assert child.returncode == 0, f"{task}: exit {child.returncode}\n{child.stderr[-2000:]}"
    return child.stdout


def reason(row: bytes) -> str:
    """Why a row is refused; empty where it is not."""
    try:
        loads(row)
    except RowError as error:
        return str(error)
    return ""


# A small assembler, since what is hostile no pickler emits.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def a_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def row_of(value: bytes) -> bytes:
    return b"\x80\x04" + value + b"."


def stream(
    array: np.ndarray, *, storage: str = "ctorch\nFloatStorage\n", count: int | None = None
) -> bytes:
    """The legacy stream of a storage, as `torch.save` writes it."""
    numel = array.size if count is None else count
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    head = b"".join(
        pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, system)
    )
    small = b"K" + bytes([numel]) if numel < 256 else b"J" + struct.pack("<i", numel)
    persistent = (
        b"\x80\x02("
        + text("storage")
        + storage.encode()
        + text("77")
        + text("cpu")
        + small
        + b"NtQ."
    )
    return (
        head
        + persistent
        + pickle.dumps(["77"], protocol=2)
        + struct.pack("<q", numel)
        + array.tobytes()
    )


def tensor(
    payload: bytes,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    wrapped: Callable[[bytes], bytes] = raw,
) -> bytes:
    storage = call(a_global("torch.storage", "_load_from_bytes"), wrapped(payload))
    hooks = call(a_global("collections", "OrderedDict"))
    dimensions = [tuple_of(*map(integer, numbers)) for numbers in (size, stride)]
    return call(
        a_global("torch._utils", "_rebuild_tensor_v2"),
        storage,
        integer(offset),
        *dimensions,
        b"\x89",
        hooks,
    )


def geometric_row(**attributes: bytes) -> bytes:
    """A torch_geometric 1.x row."""
    return row_of(
        a_global("torch_geometric.data.data", "Data") + b")\x81" + dict_of(**attributes) + b"b"
    )


POSITIONS = np.arange(12, dtype="f4").reshape(4, 3)


def sample_row() -> bytes:
    """A row like OC20's that no third party made."""
    edges = np.arange(64, dtype="i8")
    return geometric_row(
        pos=tensor(stream(POSITIONS), (4, 3), (3, 1)),
        edge_index=tensor(stream(edges, storage="ctorch\nLongStorage\n"), (2, 32), (32, 1)),
        y=b"G" + struct.pack(">d", 1.5),
        natoms=b"K\x04",
        sid=text("random1"),
        x=b"N",
    )


def test_a_torch_geometric_row_becomes_its_attributes() -> None:
    row = loads(sample_row())
    assert type(row) is TorchGeometricData
    assert list(row) == ["pos", "edge_index", "y", "natoms", "sid"]
    assert row["y"] == 1.5
    assert row["sid"] == "random1"
    positions = row["pos"]
    assert isinstance(positions, np.ndarray)
    assert positions.dtype == np.float32
    np.testing.assert_array_equal(positions, POSITIONS)
    assert positions.flags.owndata
    assert positions.flags.writeable
    assert positions.flags.aligned
    assert loads(pickle.dumps(20)) == 20


# ---- equality with trusting reads


def trusted_task(folder: str, *lmdbs: str) -> None:
    """Read LMDBs with torch and stubs for torch_geometric, make rows with torch; write
    rows and what they hold.
    """
    torch, values = _torch_with_stubs(), {}
    for number, path in enumerate(lmdbs):
        with lmdb.open(path, subdir=False, readonly=True, lock=False).begin() as transaction:
            for key, value in transaction.cursor():
                if key.isdigit():
                    row = pickle.loads(value)
                    attributes = row if isinstance(row, dict) else vars(row)
                    for name, attribute in attributes.items():
                        if attribute is not None:
                            is_tensor = isinstance(attribute, torch.Tensor)
                            values[f"{number}/{key.decode()}/{name}"] = (
                                attribute.numpy() if is_tensor else attribute
                            )
    for number, (row, attributes) in enumerate(_rows_of_torch(torch)):
        Path(folder, f"{number}.row").write_bytes(row)
        for name, attribute in attributes.items():
            values[f"made/{number}/{name}"] = attribute.detach().resolve_neg().numpy()
    np.savez(Path(folder, "values.npz"), **values)


def _torch_with_stubs():
    import types

    import torch

    # what torch_geometric 2 does, so that a storage and its Data hold one another
    def parent_as_object(storage):
        return storage.__dict__ | {"_parent": storage._parent}

    members = {
        "torch_geometric": {},
        "torch_geometric.data": {},
        "torch_geometric.data.data": {"Data": {}, "DataTensorAttr": {}, "DataEdgeAttr": {}},
        "torch_geometric.data.storage": {"GlobalStorage": {"__getstate__": parent_as_object}},
    }
    for module_name, classes in members.items():
        module = sys.modules[module_name] = types.ModuleType(module_name)
        for name, body in classes.items():
            setattr(module, name, type(name, (), body | {"__module__": module_name}))
    return torch


def _rows_of_torch(torch):
    """(pickle, attributes) in the layouts of torch_geometric 1 and 2 and as a
    dict, in every protocol.
    """
    dtypes = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    base = torch.arange(-30, 30).reshape(5, 4, 3)
    attributes = {name: base.to(getattr(torch, name)) for name in dtypes}
    attributes |= {
        "transposed": base.double().transpose(0, 2),
        "sliced": base.float()[1:4, ::2, 1],
        "scalar": torch.tensor(2.5),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "expanded": torch.arange(3.0).expand(4, 3),
        "learned": torch.ones(2, requires_grad=True),
        "large": torch.arange(70_000, dtype=torch.int32),
    }
    data, storage = (
        sys.modules["torch_geometric.data.data"],
        sys.modules["torch_geometric.data.storage"],
    )
    one = data.Data()
    one.__dict__.update(attributes | {"x": None, "__num_nodes__": 5})
    two, store = data.Data(), storage.GlobalStorage()
    store.__dict__.update(_mapping=attributes | {"x": None}, _parent=two)
    two.__dict__.update(
        _edge_attr_cls=data.DataEdgeAttr, _tensor_attr_cls=data.DataTensorAttr, _store=store
    )
    for protocol in range(2, 6):
        for row in (one, two, attributes):
            yield pickle.dumps(row, protocol=protocol), attributes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    run_child("trusted", folder)
    return folder


def assert_same(row: object, expected: dict[str, np.ndarray]) -> None:
    assert isinstance(row, dict)
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        assert np.asarray(row[name]).dtype == value.dtype, name
        np.testing.assert_array_equal(row[name], value, err_msg=name)


def group(values: Path, prefix: str) -> dict[str, dict[str, np.ndarray]]:
    rows: dict[str, dict[str, np.ndarray]] = {}
    with np.load(values) as archive:
        for path in archive.files:
            source, key, name = path.split("/", 2)
            if source == prefix:
                rows.setdefault(key, {})[name] = archive[path]
    return rows


def test_real_rows_equal_a_trusting_read(shared_data: Path, tmp_path: Path) -> None:
    files = [shared_data / "oc20/s2ef_val_20_data.lmdb", shared_data / "lips/data.lmdb"]
    run_child("trusted", tmp_path, *files)
    for number, (path, n_rows) in enumerate(zip(files, (20, 200), strict=True)):
        expected = group(tmp_path / "values.npz", str(number))
        assert len(expected) == n_rows
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False).begin() as transaction:
            for key, values in expected.items():
                assert_same(loads(transaction.get(key.encode())), values)


def test_rows_of_both_torch_geometrics_and_dicts_equal_what_torch_pickled(made: Path) -> None:
    expected = group(made / "values.npz", "made")
    assert len(expected) == 12
    for number, values in expected.items():
        row = loads((made / f"{number}.row").read_bytes())
        assert_same(row, values)
        assert isinstance(row, TorchGeometricData) is (int(number) % 3 < 2)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "i2", "<i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f8", ">i4"]
)
def test_numpy_values(protocol: int, dtype: str) -> None:
    base = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    arrays = {
        "c": base,
        "fortran": np.asfortranarray(base[0]),
        "permuted": base.transpose(1, 0, 2),
        "strided": base[:, ::2, 1],
        "zero_d": np.array(base[0, 1, 2]),
        "empty": base[:0],
        "scalar": base[1, 2, 3],
        "shared": base,
    }
    data = pickle.dumps(arrays, protocol=protocol)
    for row in (loads(data), loads(pickletools.optimize(data))):
        assert isinstance(row, dict)
        scalar = row.pop("scalar")
        assert type(scalar) in (bool, int, float)
        assert scalar == arrays["scalar"]
        assert_same(
            row,
            {
                name: array.astype(array.dtype.newbyteorder("="))
                for name, array in arrays.items()
                if name in row
            },
        )


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numpy_of_both_spellings(core: str) -> None:
    dtype = call(a_global("numpy", "dtype"), text("f8"))
    data = raw(np.arange(3.0).tobytes())
    scalar = call(
        stack_global(f"numpy.{core}.multiarray", "scalar"), dtype, raw(struct.pack("<d", 2.5))
    )
    assert loads(row_of(scalar)) == 2.5
    rebuilt = call(
        a_global(f"numpy.{core}.multiarray", "_reconstruct"),
        a_global("numpy", "ndarray"),
        tuple_of(b"K\0"),
    )
    rebuilt += tuple_of(b"K\1", tuple_of(b"K\3"), dtype, b"\x89", data) + b"b"
    buffered = call(
        a_global(f"numpy.{core}.numeric", "_frombuffer"), data, dtype, tuple_of(b"K\3"), text("C")
    )
    for array in (rebuilt, buffered):
        np.testing.assert_array_equal(loads(row_of(array)), np.arange(3.0))


def test_plain_values_come_back_as_they_are() -> None:
    value = {
        "list": [1, -(2**40), 2**64 - 1, 0.5, None, True, "Å", b"raw"],
        "nested": {"tuple": (1, (2.0, ("three",))), "empty": [(), [], {}], 6: -1.5},
        "long": "é" * 300,
    }
    for protocol in range(2, 6):
        assert loads(pickle.dumps(value, protocol=protocol)) == value
    assert loads(pickle.dumps(bytearray(b"array"), protocol=5)) == b"array"
    shared = (True, False, True)
    assert loads(pickle.dumps([shared] * 10, protocol=4)) == [shared] * 10


# ---- refusals


FLOATS = stream(POSITIONS)
DTYPE = call(a_global("numpy", "dtype"), text("f8"))
REFUSED = {
    "a global": (row_of(a_global("os", "system")), "global os.system is not allowed"),
    "control characters": (
        row_of(stack_global("os\x1b[2J", "x")),
        "global os?[2J.x is not allowed",
    ),
    "an attribute": (
        row_of(stack_global("collections", "OrderedDict.fromkeys")),
        "OrderedDict.fromkeys is not allowed",
    ),
    "INST": (row_of(b"(ios\nsystem\n"), "pickle opcode INST of os.system is not allowed"),
    "EXT1": (row_of(b"\x82\x01"), "pickle opcode EXT1 is not allowed"),
    "no opcode": (row_of(b"\xff"), "pickle opcode 0xff is not allowed"),
    "in a storage": (
        geometric_row(pos=tensor(stream(POSITIONS, storage="cos\nsystem\n"), (4, 3), (3, 1))),
        "global os.system is not allowed",
    ),
    "storage type": (
        geometric_row(
            pos=tensor(stream(POSITIONS, storage="ctorch\nComplexFloatStorage\n"), (4, 3), (3, 1))
        ),
        "global torch.ComplexFloatStorage is not allowed",
    ),
    "a pickle in a storage": (
        geometric_row(pos=tensor(row_of(b"N"), (1,), (1,))),
        "not in the legacy layout",
    ),
    "short storage": (
        geometric_row(pos=tensor(FLOATS[:-1], (4, 3), (3, 1))),
        "torch storage is cut off",
    ),
    "long storage": (
        geometric_row(pos=tensor(FLOATS + b"\0", (4, 3), (3, 1))),
        "torch storage is cut off",
    ),
    "counts differ": (
        geometric_row(pos=tensor(FLOATS.replace(b"K\x0cN", b"K\x0bN"), (4, 3), (3, 1))),
        "torch storage contradicts itself",
    ),
    "keys differ": (
        geometric_row(pos=tensor(FLOATS.replace(b"77q\x01a.", b"78q\x01a."), (4, 3), (3, 1))),
        "torch storage contradicts itself",
    ),
    "beyond the storage": (
        geometric_row(pos=tensor(FLOATS, (4, 4), (3, 1))),
        "reaches beyond its storage (13 of 12",
    ),
    "offset beyond": (
        geometric_row(pos=tensor(FLOATS, (1,), (1,), 12)),
        "reaches beyond its storage (13 of 12",
    ),
    "negative stride": (geometric_row(pos=tensor(FLOATS, (4,), (-1,), 11)), "not an int ≥ 0"),
    "negative offset": (geometric_row(pos=tensor(FLOATS, (4,), (1,), -1)), "not an int ≥ 0"),
    "five axes": (geometric_row(pos=tensor(FLOATS, (1,) * 5, (1,) * 5)), "tuple of at most 4 ints"),
    "axes differ": (
        geometric_row(pos=tensor(FLOATS, (4, 3), (1,))),
        "stride for another number of axes",
    ),
    "object array": (pickle.dumps(np.array([{}], dtype=object)), "numpy dtype O8 is not allowed"),
    "complex": (pickle.dumps(np.zeros(2, dtype=complex)), "numpy dtype c16 is not allowed"),
    "structured": (pickle.dumps(np.zeros(2, dtype="i4,f8")), "numpy dtype V12 is not allowed"),
    "dtype with fields": (
        row_of(
            DTYPE
            + tuple_of(b"K\3", text("<"), b"N", tuple_of(text("a")), b"}", b"K\0", b"K\0", b"K\0")
            + b"b"
        ),
        "numpy dtype f8 with fields",
    ),
    "short numpy array": (
        row_of(
            call(
                a_global("numpy.core.numeric", "_frombuffer"),
                raw(b"12345678"),
                DTYPE,
                tuple_of(b"K\2"),
                text("C"),
            )
        ),
        "numpy array is cut off (8 bytes for shape (2,)",
    ),
    "array without state": (
        row_of(
            call(a_global("numpy.core.multiarray", "_reconstruct"), a_global("numpy", "ndarray"))
        ),
        "numpy array without data",
    ),
    "a bare class": (row_of(a_global("numpy", "ndarray")), "is no value"),
    "a tuple as key": (pickle.dumps({(1, 2): 3}), "dict has a key that is neither str nor int"),
    "a set": (pickle.dumps({1, 2}), "pickle opcode EMPTY_SET is not allowed"),
    "a list in itself": (row_of(b"]q\0h\0a"), "containers are nested too deep"),
    "persistent id": (row_of(text("x") + b"Q"), "pickle opcode BINPERSID is not allowed"),
    "protocol 0": (
        pickle.dumps({"a": 1}, protocol=0),
        "row is no pickle of protocol 2 to 5 (it begins with '(dp0')",
    ),
    "protocol 6": (b"\x80\x06N.", "unsupported pickle protocol: 6"),
    "compressed JSON": (
        zlib.compress(b"{}"),
        "row is no pickle of protocol 2 to 5 (it begins with 'x",
    ),
    "nothing": (b"", "row is no pickle of protocol 2 to 5 (it begins with '')"),
    "a length beyond the end": (
        row_of(b"\x8e" + struct.pack("<Q", 99)),
        "BINBYTES8 claims 99 bytes, 1 are left",
    ),
    "no end": (sample_row()[:-1], "pickle is cut off"),
    "more after the end": (sample_row() + b"x", "bytes after the end of the pickle (1)"),
    "memo out of order": (row_of(b"Nr\0\0\0\x40"), "memo entry out of order"),
    "empty stack": (row_of(b"R"), "damaged pickle (UnpicklingError: "),
    "not bytes": (bytearray(b"N."), "row is a bytearray, expected bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_fault(name: str) -> None:
    row, expected = REFUSED[name]
    with pytest.raises(RowError) as caught:
        loads(row)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_rows_longer_than_the_limit_are_refused_unread() -> None:
    row = sample_row()
    assert loads(row, max_bytes=len(row))
    with pytest.raises(RowError, match="row is too large"):
        loads(row, max_bytes=len(row) - 1)


def test_the_unpickler_sees_the_opcodes_that_were_checked() -> None:
    """An opcode across the end of a frame: the C unpickler drops the rest of the frame
    and continues elsewhere.
    """
    hidden = b"\0\0" + b"0\x8f."  # of a string's length, then POP, EMPTY_SET, STOP
    row = (
        b"\x80\x04\x95"
        + struct.pack("<Q", 3)
        + text(hidden.decode("latin-1").replace("\x8f", "?")).replace(b"?", b"\x8f")
        + b"."
    )
    assert pickle.Unpickler(io.BytesIO(row)).load() == set()
    assert "UnicodeDecodeError" in reason(row)


# ---- hostile rows

DANGEROUS = """
    os.system os.popen os.remove os.kill os.fork posix.system nt.system posix.remove
    subprocess.Popen subprocess.run subprocess.check_output builtins.eval builtins.exec
    builtins.compile builtins.open builtins.getattr builtins.setattr builtins.__import__
    builtins.type builtins.map builtins.apply builtins.bytearray __builtin__.eval __builtin__.file
    __builtin__.getattr __builtin__.object importlib.import_module importlib.reload runpy.run_path
    runpy.run_module pickle.loads pickle.Unpickler _pickle.loads marshal.loads dill.loads
    cloudpickle.loads joblib.load shelve.open code.interact code.InteractiveInterpreter pdb.run
    bdb.Bdb cProfile.run timeit.timeit trace.Trace pty.spawn ctypes.CDLL ctypes.util.find_library
    socket.socket socket.create_connection urllib.request.urlopen webbrowser.open ssl.SSLContext
    shutil.rmtree shutil.copyfile tempfile.mkstemp pathlib.Path io.open io.FileIO _io.open
    operator.attrgetter operator.methodcaller operator.itemgetter functools.partial functools.reduce
    itertools.starmap types.FunctionType types.CodeType types.MethodType copyreg._reconstructor
    copyreg.__newobj__ copy_reg._reconstructor weakref.ref logging.config.listen asyncio.run
    multiprocessing.Process threading.Thread signal.signal sys.exit sys.setprofile sys.modules
    gc.get_objects atexit.register faulthandler.dump_traceback_later resource.setrlimit
    sqlite3.connect zipfile.ZipFile tarfile.open venv.create pip.main ensurepip.bootstrap
    idlelib.run.main torch.load torch.save torch.serialization.load torch.hub.load torch.jit.load
    torch._utils._rebuild_tensor torch._utils._rebuild_parameter torch._utils._rebuild_from_type_v2
    torch.storage._load_from_bytes.__globals__ torch.fx.graph_module.reduce_graph_module
    torch.nn.Module torch._inductor.codecache.compile_file torch.Tensor torch.UntypedStorage
    torch.storage.TypedStorage torch_geometric.data.data.Batch torch_geometric.data.Data
    torch_geometric.data.data.Data.__init__ torch_geometric.data.storage.BaseStorage numpy.load
    numpy.fromfile numpy.memmap numpy.lib.npyio.load numpy.testing._private.utils.runstring
    numpy.f2py.compile numpy.core.multiarray numpy.core.multiarray.fromfile
    numpy.core.multiarray.fromstring numpy._core.multiarray._vec_string numpy.dtype.type
    numpy.ma.core._mareconstruct numpy.random._pickle.__randomstate_ctor collections.namedtuple
    collections.Counter collections.OrderedDict.update collections.defaultdict _codecs.decode
    _codecs.register codecs.open dataloader.lmdb_shards.restricted_pickle.loads
    dataloader.lmdb_shards.restricted_pickle._Unpickler dataloader.lmdb_shards.pickle_stand_ins.Data
    dataloader.lmdb_shards.pickle_stand_ins.GLOBALS.clear ase.db.connect ase.io.read
    pymatgen.core.Structure
""".split()  # noqa: SIM905 (a list of 130 strings would hide them)


def hostile_forms(module: str, name: str) -> dict[str, bytes]:
    """One global in every opcode form that could fetch, call or change it."""
    one, two = a_global(module, name), stack_global(module, name)
    argument = text("echo hostile > hostile.txt")
    old = f"{module}\n{name}\n".encode()
    calls = {
        "GLOBAL": one,
        "STACK_GLOBAL": two,
        "REDUCE": call(one, argument),
        "STACK_GLOBAL REDUCE": call(two, argument),
        "INST": b"(" + argument + b"i" + old,
        "OBJ": b"(" + one + argument + b"o",
        "NEWOBJ": two + tuple_of(argument) + b"\x81",
        "NEWOBJ_EX": two + tuple_of(argument) + b"}\x92",
        "BUILD": one + b")\x81" + dict_of(__setstate__=argument) + b"b",
        "BUILD slots": two + b"N" + dict_of(__reduce__=argument) + b"\x86b",
        "memo": one + b"q\0h\0" + tuple_of(argument) + b"R",
        "allowed first": call(a_global("collections", "OrderedDict"))
        + call(one, argument)
        + b"\x86",
    }
    rows = {form: row_of(code) for form, code in calls.items()}
    rows |= {f"{form} in a Data": geometric_row(pos=code) for form, code in calls.items()}
    rows |= {
        "pickle in a storage": geometric_row(pos=tensor(row_of(call(one, argument)), (1,), (1,))),
        "system record in a storage": geometric_row(
            pos=tensor(FLOATS.replace(b"\x88X", one + b"X"), (4, 3), (3, 1))
        ),
        "type in a storage": geometric_row(
            pos=tensor(stream(POSITIONS, storage=one.decode()), (4, 3), (3, 1))
        ),
        "key list in a storage": geometric_row(
            pos=tensor(FLOATS.replace(b"]q\0", b"]q\0" + call(one, argument)), (4, 3), (3, 1))
        ),
        "as a payload": geometric_row(
            pos=tensor(FLOATS, (4, 3), (3, 1), wrapped=lambda _: call(one, argument))
        ),
        "as a dtype": row_of(call(a_global("numpy", "dtype"), call(two, argument))),
        "as the type of an array": row_of(
            call(a_global("numpy.core.multiarray", "_reconstruct"), one, tuple_of(b"K\0"))
        ),
        "as a dict key": row_of(b"}" + call(one, argument) + b"Ns"),
        "protocol 0": b"c" + old + b"(S'x'\ntR.",
        "protocol 2": pickle.PROTO + b"\x02" + b"c" + old + b"U\x01x\x85R.",
    }
    return rows


def hostile_task() -> None:
    """Read the corpus under an audit hook; print what was seen."""
    rows = [
        (form, row)
        for path in DANGEROUS
        for form, row in hostile_forms(*path.rsplit(".", 1)).items()
    ]
    sample = sample_row()
    loads(sample)
    known = set(sys.modules)
    events: list[str] = []
    listening = [True]
    sys.addaudithook(lambda event, _: events.append(event) if listening[0] else None)
    outcomes: dict[str, int] = {}
    accepted = []
    for form, row in rows:
        try:
            loads(row)
            accepted.append(form)
        except Exception as error:
            outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
    loads(sample)
    seen = list(events)
    events.clear()
    pickle.loads(row_of(call(a_global("os", "listdir"), text("."))))
    fired = list(events)
    listening[0] = False
    print(
        json.dumps(
            {
                "rows": len(rows),
                "outcomes": outcomes,
                "accepted": accepted,
                "events": seen,
                "oracle": fired,
                "imported": sorted(set(sys.modules) - known),
                "torch": "torch" in sys.modules,
                "written": os.path.exists("hostile.txt"),
            }
        )
    )


def test_hostile_rows_run_nothing() -> None:
    report = json.loads(run_child("hostile"))
    assert report["rows"] == len(DANGEROUS) * 34 > 4000
    assert report["outcomes"] == {"RowError": report["rows"]}
    assert report["events"] == []
    assert report["accepted"] == report["imported"] == []
    assert not report["torch"]
    assert not report["written"]
    assert {"pickle.find_class", "os.listdir"} <= set(report["oracle"]), (
        "the hook must see what a trusting read does"
    )


@pytest.mark.parametrize(("module", "name"), pickle_stand_ins.GLOBALS)
def test_no_row_changes_a_stand_in(module: str, name: str) -> None:
    stand_in = pickle_stand_ins.GLOBALS[module, name]
    before = [dict(vars(base)) for base in stand_in.__mro__]
    code = a_global(module, name)
    states = [
        dict_of(state=b"N", __init__=b"N"),
        b"N" + dict_of(__init__=b"N", state=b"N") + b"\x86",
        b"N",
        tuple_of(b"K\1"),
    ]
    for target in (
        code,
        code + b")\x81",
        code + b")R",
        code + text("f8") + b"\x85R",
        code + raw(b"") + b"\x85R",
    ):
        for state in states:
            reason(row_of(target + state + b"b"))
            reason(row_of(target + text("__init__") + b"Ns"))
            reason(row_of(target + b"(" + text("__init__") + b"Nu"))
            reason(row_of(target + b"Na"))
            reason(row_of(target + b"(Ne"))
    assert [dict(vars(base)) for base in stand_in.__mro__] == before
    np.testing.assert_array_equal(loads(sample_row())["pos"], POSITIONS)


# ---- damage


def mutated(row: bytes, random_: random.Random) -> bytes:
    """The row with one to four places changed: a bit, a byte, a piece cut out,
    doubled, replaced or zeroed.
    """
    damaged = bytearray(row)
    for _ in range(random_.randint(1, 4)):
        start = (
            random_.randrange(len(damaged) + 1)
            if random_.random() < 0.5
            else random_.randrange(min(400, len(damaged)) + 1)
        )
        end = min(len(damaged), start + random_.randint(1, 9))
        piece = damaged[start:end]
        change = random_.randrange(6)
        if change == 0 and piece:
            piece[0] ^= 1 << random_.randrange(8)
        elif change == 1:
            piece[:1] = random_.randbytes(1)
        elif change == 2:
            piece.clear()
        elif change == 3:
            piece *= 2
        elif change == 4:
            piece[:] = b"\xff" * len(piece)
        else:
            piece[:1] = random_.choice(
                [
                    b"(",
                    b"R",
                    b"b",
                    b"u",
                    b"h\0",
                    b"\x94",
                    b"\x95",
                    b"\x85",
                    b"\x93",
                    b"t",
                    b"]",
                    b"}",
                ]
            )
        damaged[start:end] = piece
    return bytes(damaged)


def mutate_task(*files: str) -> None:
    """Read damaged rows; print how many were refused, and how long the slowest took."""
    _cap_memory(2**29)
    rows = [sample_row(), pickle.dumps({"pos": POSITIONS, "energy": np.float64(1)}, protocol=5)]
    rows += [Path(file).read_bytes() for file in files]
    random_ = random.Random(20)
    refused = accepted = 0
    slowest = 0.0
    for _ in range(6000 // len(rows)):
        for row in rows:
            started = time.process_time()
            try:
                loads(mutated(row, random_))
                accepted += 1
            except RowError:
                refused += 1
            slowest = max(slowest, time.process_time() - started)
    print(json.dumps({"refused": refused, "accepted": accepted, "slowest": slowest}))


def test_damaged_rows_raise_row_errors_only(made: Path) -> None:
    report = json.loads(
        run_child("mutate", made / "0.row", made / "4.row", made / "7.row", made / "9.row")
    )
    assert report["refused"] + report["accepted"] == 6000
    assert report["refused"] > 3000
    assert report["slowest"] < 0.5


# ---- bombs


def _cap_memory(more: int) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + more, in_use + more))


def _resident(name: str) -> float:
    """MiB of VmRSS (now) or VmHWM (peak)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def bombs() -> dict[str, Callable[[], bytes]]:
    """Rows that ask for far more memory or time than they are long."""
    million = 2**20
    get = [b"h" + bytes([i]) for i in range(64)]
    put = [b"q" + bytes([i]) for i in range(64)]
    # one of two of two of …
    tuples = b")" + put[0] + b"".join(get[i] * 2 + b"\x86" + put[i + 1] for i in range(60))
    # SETITEMS of nothing
    disguised = b")" + put[0] + b"".join(get[i] * 2 + b"\x86(u" + put[i + 1] for i in range(60))
    lists = (
        b"]" + put[0] + b"".join(b"]" + put[i] + b"(" + get[i - 1] * 2 + b"e" for i in range(1, 31))
    )
    colliding = b"".join(
        b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(1, 40_000)
    )
    one = stream(np.zeros(1, dtype="f4"))
    doubles = stream(np.zeros(2**20), storage="ctorch\nDoubleStorage\n")
    shared = {i: (lambda _, i=i: raw(doubles) + put[0] if i == 0 else get[0]) for i in range(500)}
    views = b"".join(tensor(b"", (2**20,), (1,), wrapped=shared[i]) for i in range(500))
    encode = call(a_global("_codecs", "encode"), get[0], text("latin1"))
    frombuffer = a_global("numpy.core.numeric", "_frombuffer")
    copy = call(frombuffer, get[0], DTYPE, tuple_of(integer(million // 2)), text("C"))
    buffer = b"\x96" + struct.pack("<Q", 4 * million) + bytes(4 * million) + put[0]
    entries = b"}" + put[0] + b"(" + b"".join(integer(i) + b"N" for i in range(50_000)) + b"u"
    plane = [tensor(doubles, shape, (1, 1)) for shape in ((2**19, 1), (1, 2**19))]
    return {
        "BINBYTES8 of 2^40": lambda: row_of(b"\x8e" + struct.pack("<Q", 2**40)),
        "BINBYTES8 of 2^34": lambda: row_of(b"\x8e" + struct.pack("<Q", 2**34)),
        "BYTEARRAY8 of 2^34": lambda: row_of(b"\x96" + struct.pack("<Q", 2**34)),
        "BINUNICODE8 of 2^63": lambda: row_of(b"\x8d" + struct.pack("<Q", 2**63)),
        "BINBYTES of 4 GiB": lambda: row_of(b"B\xff\xff\xff\xff"),
        "FRAME of 2^62": lambda: row_of(b"\x95" + struct.pack("<Q", 2**62) + b"N"),
        "memo index 2^31": lambda: row_of(b"Nr\0\0\0\x80"),
        "memo index 2^31 for something new": lambda: row_of(b"]r\0\0\0\x80"),
        "memo index 2^31 as text": lambda: row_of(b"]p2147483648\n"),
        "LONG4 of 60 MiB": lambda: row_of(
            b"\x8b" + struct.pack("<i", 60 * million) + b"\x7f" * 60 * million
        ),
        "LONG of a million digits": lambda: row_of(b"L" + b"9" * million + b"L\n"),
        "INT in hexadecimal": lambda: row_of(b"I0x" + b"9" * 10 * million + b"\n"),
        "row of 65 MiB": lambda: row_of(raw(bytes(65 * million))),
        "empty sets": lambda: row_of(b"(" + b"\x8f" * 32 * million + b"l"),
        "empty dicts": lambda: row_of(b"(" + b"}" * 60 * million + b"t"),
        "nested tuples": lambda: row_of(b"})" + b"\x85" * 2_000_000 + b"Ns"),
        "nested tuples of the longest row": lambda: row_of(b"})" + b"\x85" * 200_000 + b"Ns"),
        "shared tuples as a key": lambda: row_of(b"}(" + tuples + b"Nu"),
        "shared tuples that pass for a dict": lambda: row_of(b"}(" + disguised + b"Nu"),
        "shared tuples": lambda: row_of(b"(" + tuples + b"t"),
        "nested lists": lambda: row_of(b"]" * 100_000 + b"a" * 99_999),
        "shared lists": lambda: row_of(b"(" + lists + b"t"),
        "ints that collide": lambda: row_of(b"}(" + colliding + b"u"),
        "stride 0 of 2^33": lambda: geometric_row(pos=tensor(one, (2**33,), (0,))),
        "stride 0 of 2^71": lambda: geometric_row(pos=tensor(one, (2**60, 2**11), (0, 0))),
        "nothing times 2^60": lambda: geometric_row(pos=tensor(one, (0, 2**60), (1, 1))),
        "one array at many places": lambda: row_of(
            b"(" + tensor(doubles, (2**20,), (1,)) + put[0] + get[0] * 500 + b"t"
        ),
        "views of one storage": lambda: row_of(b"(" + views + b"t"),
        "text encoded often": lambda: row_of(
            b"(" + text("x" * 4 * million) + put[0] + encode * 500 + b"t"
        ),
        "buffers copied often": lambda: row_of(b"(" + buffer + copy * 500 + b"t"),
        "dicts copied often": lambda: row_of(
            b"(" + entries + call(a_global("collections", "OrderedDict"), get[0]) * 2000 + b"t"
        ),
        "fancy indexing": lambda: row_of(
            tensor(doubles, (2**20,), (1,)) + tuple_of(*plane) + b"Ns"
        ),
        "shape that overflows": lambda: row_of(
            call(frombuffer, raw(b""), DTYPE, tuple_of(*[integer(2**62)] * 4), text("C"))
        ),
        "marks": lambda: row_of(b"(" * 60 * million),
        "references": lambda: row_of(b"(]" + put[0] + get[0] * 30 * million + b"t"),
    }


def set_off(row: bytes) -> tuple[str, float, float]:
    """Read one bomb with 1 GiB to burn: the reason of its refusal, seconds
    of the processor, MiB.
    """
    _cap_memory(2**30)
    before, started = _resident("VmRSS"), time.process_time()
    why = reason(row)
    return why, time.process_time() - started, _resident("VmHWM") - before


def bombs_task() -> None:
    """Set every bomb off in a fork of its own, whose peak begins with what there is; print
    name, exit code, answer.
    """
    for name, bomb in bombs().items():
        row = bomb()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, json.dumps(set_off(row)).encode())
            os._exit(0)
        os.close(write)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(read) as answer:
            print(json.dumps([name, status, *json.loads(answer.read() or '["", 0, 0]')]))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_bombs_are_refused_quickly_and_cheaply() -> None:
    for line in run_child("bombs").splitlines():
        name, status, why, seconds, mebibytes = json.loads(line)
        assert status == 0, f"{name}: the process died with {status}"
        assert why, f"{name} was accepted"
        assert "memory" not in why, f"{name}: {why}"
        # without a limit most take hours; they take up to 0.3 s
        assert seconds < 10, f"{name}: {seconds:.1f} s"
        assert mebibytes < 200, f"{name}: {mebibytes:.0f} MiB"


if __name__ == "__main__":
    globals()[f"{sys.argv[1]}_task"](*sys.argv[2:])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_texts_of_numpy_are_texts(protocol: int) -> None:
    """What iterating over an array of names gives."""
    [name] = np.array(["mol_α"])
    record = {"id": name, "energy": np.float64(1.5), "other": np.array(["a", "bc"])}
    found = loads(pickle.dumps(record, protocol=protocol), only={"id", "energy"})
    assert found == {"id": "mol_α", "energy": 1.5}
    assert type(found["id"]) is str
    with pytest.raises(RowError, match="numpy dtype U2 is not allowed"):
        loads(pickle.dumps(record, protocol=protocol))
