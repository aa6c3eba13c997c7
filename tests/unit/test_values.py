"""The safe codec: what it carries, what it refuses and how it says so."""

from __future__ import annotations

import array
import collections
import json
import os
import pathlib
import subprocess
import sys
import threading
import types
import typing
from dataclasses import dataclass, make_dataclass

import msgspec
import numpy as np
import pytest

from croft.errors import CodecError, TooLarge
from croft.wire.values import decode_value, encode_in_parts, encode_value
from croft.wire.values_codes import DEPTH_MAX, Code
from support.carried import CARRIED, Outer, Point, Row, same

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "values.json"


def extension(code: int, content: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content)))


@pytest.mark.parametrize("name", CARRIED)
def test_what_comes_out_is_what_went_in_with_its_type(name: str) -> None:
    assert same(decode_value(encode_value(CARRIED[name])), CARRIED[name])


@pytest.mark.parametrize("name", CARRIED)
def test_the_bytes_of_every_type_are_frozen(name: str) -> None:
    frozen = json.loads(VECTORS.read_text())

    assert encode_value(CARRIED[name]).hex() == frozen[name]
    assert same(decode_value(bytes.fromhex(frozen[name])), CARRIED[name])


def test_there_is_a_golden_vector_for_every_code() -> None:
    frozen = json.loads(VECTORS.read_text())
    codes = {value for name, value in vars(Code).items() if name.isupper()}
    seen = set()
    for text in frozen.values():
        msgspec.msgpack.Decoder(ext_hook=lambda code, _: seen.add(code)).decode(bytes.fromhex(text))

    assert set(frozen) == set(CARRIED)
    assert seen == codes - {Code.NUMPY_ATTACHED}


def test_a_path_to_files_stays_one() -> None:
    assert same(decode_value(encode_value(pathlib.Path("a") / "b")), pathlib.Path("a/b"))


def test_nan_is_carried() -> None:
    decoded = decode_value(encode_value([float("nan")]))
    assert isinstance(decoded, list)
    assert decoded[0] != decoded[0]


def test_a_rebuilt_array_is_its_owner_s_to_change() -> None:
    decoded = decode_value(encode_value(np.zeros(3)))
    assert isinstance(decoded, np.ndarray)
    decoded[0] = 5.0
    assert decoded.tolist() == [5.0, 0.0, 0.0]


ATTACHED = {
    "matrix": np.arange(6, dtype="<i4").reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype="<i4").reshape(2, 3)),
    "times": np.array(["2026-01-02", "NaT"], "<M8[s]"),
    "nothing": np.zeros((0, 5)),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_what_is_attached_comes_out_as_it_went_in_and_can_be_changed(name: str) -> None:
    value = {"rows": [ATTACHED[name], (ATTACHED[name], "text")]}

    parts = encode_in_parts(value, attached_bytes_min=0)

    assert sum(isinstance(part, memoryview) and np.shares_memory(part, ATTACHED[name]) for part in parts) in (0, 2)
    assert same(decode_value(b"".join(parts)), value)
    assert same(decode_value(bytearray(b"".join(parts))), value)


def test_a_large_array_is_neither_copied_where_it_leaves_nor_where_it_arrives() -> None:
    array = np.arange(1 << 17, dtype="<f8")
    parts = encode_in_parts([array, np.arange(3)])
    received = bytearray(b"".join(parts))

    [decoded, _] = decode_value(received)  # type: ignore[misc]  # a list of two

    assert any(isinstance(part, memoryview) and np.shares_memory(part, array) for part in parts)
    assert np.shares_memory(decoded, np.frombuffer(received, "u1"))
    assert decoded.flags.aligned and decoded.flags.writeable


def test_the_bytes_of_an_attachment_are_frozen() -> None:
    head = "c100000001000000000000000c0000000000000006" + "00" * 43
    encoding = "c7092194a37c75319106c200" + "00" * 52
    frozen = head + encoding + "000102030405" + "00" * 58

    assert b"".join(encode_in_parts(np.arange(6, dtype="u1"), attached_bytes_min=0)).hex() == frozen


@pytest.mark.parametrize("cut", [1, 12, 20, 60, 64, 70, 130])
def test_an_attachment_that_is_cut_off_is_refused(cut: int) -> None:
    whole = b"".join(encode_in_parts(np.arange(6, dtype="u1"), attached_bytes_min=0))

    with pytest.raises(CodecError):
        decode_value(whole[:cut])


@pytest.mark.parametrize("number", [1, -1, 1 << 40, "0", None])
def test_an_array_whose_attachment_is_not_there_is_refused(number: object) -> None:
    whole = bytearray(b"".join(encode_in_parts(np.arange(6, dtype="u1"), attached_bytes_min=0)))
    encoding = extension(Code.NUMPY_ATTACHED, ["|u1", [6], False, number])
    whole[5:13] = len(encoding).to_bytes(8, "big")
    whole[64 : 64 + len(encoding)] = encoding

    with pytest.raises(CodecError):
        decode_value(whole)


def test_two_arrays_cannot_claim_the_same_attachment() -> None:
    one = msgspec.msgpack.Ext(Code.NUMPY_ATTACHED, msgspec.msgpack.encode(["|u1", [6], False, 0]))
    encoding = msgspec.msgpack.encode([one, one])
    whole = bytearray(b"".join(encode_in_parts(np.arange(6, dtype="u1"), attached_bytes_min=0)))
    whole[5:13] = len(encoding).to_bytes(8, "big")
    whole[64 : 64 + len(encoding)] = encoding

    with pytest.raises(CodecError, match="without its bytes"):
        decode_value(whole)


def test_equal_structured_arrays_have_equal_bytes_whatever_lies_between_their_fields() -> None:
    dtype = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    one, other = (np.frombuffer(filling * 32, dtype).copy() for filling in (b"\x11", b"\x22"))
    other["a"], other["b"] = one["a"], one["b"]

    assert encode_value(one) == encode_value(other)
    assert encode_value(one[0]) == encode_value(other[0])


def test_a_view_is_carried_by_what_it_shows() -> None:
    view = np.arange(10)[::3]
    assert same(decode_value(encode_value(view)), view.copy())


def test_equal_sets_have_equal_bytes_under_any_hash_seed() -> None:
    program = "from croft.wire.values import encode_value; print(encode_value({'a','b','c','d',('e',1)}).hex(), end='')"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(outputs) == 1
    assert decode_value(bytes.fromhex(outputs.pop())) == {"a", "b", "c", "d", ("e", 1)}


# --- what is not carried ---------------------------------------------------------------------------------------------


class MyList(list[int]):
    pass


class Model:
    pass


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        ({"model": Row("a", [1.0, threading.Lock()])}, "result['model'].values[1]: ", "_thread.lock"),  # type: ignore[list-item] # a field of another type than declared
        ([1, (2, {3: Model})], "result[1][1][3]: ", "object of type type"),
        ([{Model(): 1}], "result[0].keys()[0]: ", "Model"),
        ({1: MyList()}, "result[1]: ", "MyList"),
        (lambda: 0, "result: ", "function"),
        (memoryview(b"x"), "result: ", "memoryview"),
        ([np.array([object()])], "result[0]: ", "Python objects"),
        (np.ma.array([1]), "result: ", "MaskedArray"),
        (collections.defaultdict(lambda: 1), "result: ", "factory"),
        (Point(Model(), 1), "result.x: ", "Model"),  # type: ignore[arg-type] # a field of another type than declared
        ({frozenset({Model()})}, "result{…}{…}: ", "Model"),
        (make_dataclass("Local", ["x"], bases=(dict,))(1), "result: ", "derives from a built-in type"),
    ],
)
def test_what_is_not_carried_is_named_with_its_place_and_a_remedy(value: object, where: str, what: str) -> None:
    with pytest.raises(CodecError) as caught:
        encode_value(value)

    assert caught.value.message.startswith(where)
    assert what in caught.value.message
    assert caught.value.remedy


def test_a_class_inside_a_function_is_refused_by_the_sender() -> None:
    @dataclass
    class Local:
        x: int

    with pytest.raises(CodecError, match="defined inside a function"):
        encode_value([Local(1)])


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    knot: dict[str, object] = {"a": (1, 2)}
    knot["b"] = [knot]

    for value in (loop, knot):
        with pytest.raises(CodecError, match=f"more than {DEPTH_MAX} deep, or contains itself"):
            encode_value(value)


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda inner: [inner], lambda outer: outer[0]),
        (lambda inner: (inner,), lambda outer: outer[0]),
        (lambda inner: {"a": inner}, lambda outer: outer["a"]),
        (lambda inner: collections.OrderedDict(a=inner), lambda outer: outer["a"]),
        (Outer.Inner, lambda outer: outer.number),
    ],
)
def test_the_deepest_value_allowed_comes_back_and_one_deeper_does_not_leave(
    wrap: typing.Callable[[object], object], unwrap: typing.Callable[[typing.Any], object]
) -> None:
    value: object = 5
    for _ in range(DEPTH_MAX):
        value = wrap(value)
    with pytest.raises(CodecError, match="deep"):
        encode_value(wrap(value))

    decoded = decode_value(encode_value(value))

    for _ in range(DEPTH_MAX):
        decoded = unwrap(decoded)
    assert decoded == 5


def test_a_value_shared_over_and_over_cannot_grow_past_the_limit() -> None:
    for wrap in (lambda inner: [inner, inner], lambda inner: (inner, inner)):
        value: object = []
        for _ in range(100):
            value = wrap(value)
        with pytest.raises(TooLarge):
            encode_value(value, size_bytes_max=10_000)


def test_the_limit_in_bytes_is_exact() -> None:
    size = len(encode_value("x" * 1000))

    assert decode_value(encode_value("x" * 1000, size_bytes_max=size)) == "x" * 1000
    with pytest.raises(TooLarge) as caught:
        encode_value("x" * 1000, size_bytes_max=size - 1)
    assert caught.value.remedy


# --- classes of the receiver -----------------------------------------------------------------------------------------


def decode_refused(data: bytes) -> CodecError:
    with pytest.raises(CodecError) as caught:
        decode_value(data)
    return caught.value


def test_nothing_is_imported_to_rebuild_a_class() -> None:
    assert "antigravity" not in sys.modules
    error = decode_refused(extension(Code.DATACLASS, ["antigravity", "Flight", {}]))

    assert "antigravity" not in sys.modules
    assert "Import `antigravity`" in error.remedy


@pytest.mark.parametrize(
    ("code", "content"),
    [
        (Code.DATACLASS, ["os", "system", {}]),
        (Code.DATACLASS, ["builtins", "object", {}]),
        (Code.DATACLASS, ["builtins", "dict", {}]),
        (Code.DATACLASS, [Row.__module__, "Row", {"name": "a"}]),
        (Code.DATACLASS, [Row.__module__, "Row", {"name": "a", "values": [], "more": 1}]),
        (Code.DATACLASS, [Row.__module__, "Row", {"name": "a", "__class__": 1}]),
        (Code.DATACLASS, [Row.__module__, "Colour", {}]),
        (Code.DATACLASS, [Row.__module__, "Outer.Missing", {"number": 1}]),
        (Code.DATACLASS, [Row.__module__, "Row.__init__", {}]),
        (Code.DATACLASS, [Row.__module__, "", {}]),
        (Code.DATACLASS, [5, "Row", {}]),
        (Code.ENUM, [Row.__module__, "Colour", "BLUE"]),
        (Code.ENUM, [Row.__module__, "Colour", "__init__"]),
        (Code.ENUM, [Row.__module__, "Row", "name"]),
        (Code.FLAG, [Row.__module__, "Permission", 64]),
        (Code.FLAG, [Row.__module__, "Colour", 1]),
        (Code.NAMED_TUPLE, [Row.__module__, "Point", {"x": 1}]),
        (Code.NAMED_TUPLE, ["builtins", "tuple", {}]),
    ],
)
def test_what_does_not_fit_a_class_here_is_refused(code: int, content: object) -> None:
    assert decode_refused(extension(code, content)).message


def explode(*_: object) -> typing.NoReturn:
    raise AssertionError("ran on what a peer sent")


class Explosive:
    __init__ = __new__ = __setattr__ = __getattribute__ = __post_init__ = __setstate__ = explode  # type: ignore[assignment] # whatever their signatures


class ExplosiveDataclass(Explosive):
    __dataclass_fields__: typing.ClassVar = dict(Row.__dataclass_fields__)


class ExplosivePoint(Point):
    __new__ = __init__ = __getattribute__ = explode  # type: ignore[assignment] # whatever their signatures


def test_no_code_of_the_class_runs_when_it_is_rebuilt() -> None:
    row = decode_value(extension(Code.DATACLASS, [__name__, "ExplosiveDataclass", {"name": "a", "values": [1]}]))
    point = decode_value(extension(Code.NAMED_TUPLE, [__name__, "ExplosivePoint", {"x": 1, "y": 2}]))

    assert type(row) is ExplosiveDataclass
    assert object.__getattribute__(row, "__dict__") == {"name": "a", "values": [1]}
    assert type(point) is ExplosivePoint
    assert tuple.__eq__(point, (1, 2))


def test_a_module_s_own_getattr_does_not_run() -> None:
    module = types.ModuleType("croft_test_lazy")
    asked: list[str] = []
    module.__getattr__ = asked.append  # type: ignore[method-assign] # PEP 562
    sys.modules["croft_test_lazy"] = module
    try:
        decode_refused(extension(Code.DATACLASS, ["croft_test_lazy", "Anything", {}]))
    finally:
        del sys.modules["croft_test_lazy"]
    assert asked == []


@dataclass
class Finalised:
    path: str

    def __del__(self) -> None:
        raise AssertionError("ran on what a peer sent")


@dataclass
class WithSetter:
    x: int

    @property
    def x(self) -> int:  # type: ignore[no-redef] # a property behind a field
        return 1

    @x.setter
    def x(self, value: int) -> None:
        raise AssertionError("ran on what a peer sent")


def test_classes_that_would_run_on_a_peer_s_fields_are_refused() -> None:
    assert "__del__" in decode_refused(extension(Code.DATACLASS, [__name__, "Finalised", {"path": "/"}])).message
    assert "property" in decode_refused(extension(Code.DATACLASS, [__name__, "WithSetter", {"x": 1}])).message


@pytest.mark.parametrize("hashing", [{"__hash__": lambda self: 1 / 0}, {"__hash__": None}])
def test_a_key_that_cannot_be_hashed_here_is_a_codec_error(
    hashing: dict[str, typing.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = msgspec.msgpack.Ext(
        Code.DATACLASS, msgspec.msgpack.encode([Outer.__module__, "Outer.Inner", {"number": 1}])
    )
    monkeypatch.setattr(Outer.Inner, "__hash__", hashing["__hash__"])

    decode_refused(extension(Code.DICT, [inner, 1]))
    decode_refused(extension(Code.SET, [inner]))


# --- hostile bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91" * 100_000,
        b"\x81\x80\x01",
        extension(99, []),
        extension(Code.TUPLE, 5),
        extension(Code.DICT, [1]),
        extension(Code.DICT, [[], 1]),
        extension(Code.DATE, [2024, 13, 1]),
        extension(Code.DATE, ["2024", 1, 1]),
        extension(Code.TIMEDELTA, [10**18, 0, 0]),
        extension(Code.TIMEZONE, [5, 0, 0]),
        extension(Code.ZONE, "../../etc/passwd"),
        extension(Code.ZONE, "No/Where"),
        extension(Code.ZONE, 5),
        extension(Code.FRACTION, [1, 0]),
        extension(Code.FRACTION, [1.5, 2]),
        extension(Code.PATH, ["PosixPath", "a\x00b", 1]),
        extension(Code.PATH, ["Path", "a"]),
        extension(Code.RANGE, [0, 1, 0]),
        extension(Code.DEFAULT_DICT, ["eval", []]),
        extension(Code.DEFAULT_DICT, ["list", 5]),
        extension(Code.DEQUE, [-1, []]),
        extension(Code.ARRAY, ["d", 8, "little", b"1234567"]),
        extension(Code.ARRAY, ["d", 4, "little", b"1234"]),
        extension(Code.ARRAY, ["zz", 4, "little", b"1234"]),
        extension(Code.NUMPY_ARRAY, ["|O", [1], False, b"12345678"]),
        extension(Code.NUMPY_ARRAY, ["<f8", [2], False, b"12345678"]),
        extension(Code.NUMPY_ARRAY, ["<f8", [-1], False, b"12345678"]),
        extension(Code.NUMPY_ARRAY, ["<f8", [1 << 62, 1 << 62], False, b""]),
        extension(Code.NUMPY_ARRAY, ["<f8", [1] * 40, False, b"12345678"]),
        extension(Code.NUMPY_ARRAY, ["<f8,O", [1], False, b"1234567812345678"]),
        extension(Code.NUMPY_ARRAY, [["sub", "<f8", [1 << 40]], [0], False, b""]),
        extension(Code.NUMPY_ARRAY, [["struct", 8, False, [["a", None, 8, "<f8"]]], [1], False, b"12345678"]),
        extension(Code.NUMPY_ARRAY, [["struct", 8, False, [["a", None, 0, "|O"]]], [1], False, b"12345678"]),
        extension(Code.NUMPY_SCALAR, ["<f8", b"1234"]),
        extension(Code.NUMPY_SCALAR, ["str", 5]),
    ],
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    assert decode_refused(data).message


def test_deep_extensions_are_refused_before_the_stack_ends() -> None:
    inner: object = None
    for _ in range(DEPTH_MAX + 1):
        inner = msgspec.msgpack.Ext(Code.TUPLE, msgspec.msgpack.encode([inner]))

    assert "deep" in decode_refused(msgspec.msgpack.encode(inner)).message


def test_lengths_are_checked_before_memory_is_taken() -> None:
    program = """
import resource
from croft.errors import CodecError
from croft.wire.values import decode_value
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for head in (0xC6, 0xDB, 0xDD, 0xDF, 0xC9):
    try:
        decode_value(bytes([head]) + b"\\xff\\xff\\xff\\xf0" + b"\\x01" * 100)
    except CodecError as error:
        assert "MemoryError" not in error.message, error.message
    else:
        raise SystemExit(f"{head:x} passed")
print("all refused")
"""
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True)
    assert done.stdout == "all refused\n", done.stderr


def test_memory_stays_in_proportion_to_the_bytes() -> None:
    import tracemalloc

    for unit in (b"\x90", b"\x80", b"\xd4\x07\x90", b"\xd4\x16\x90", b"\xd4\x17\x90"):
        data = b"\xdc" + (5000).to_bytes(2, "big") + unit * 5000
        tracemalloc.start()
        kept = decode_value(data)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(kept, list)
        assert len(kept) == 5000
        assert taken < 200 * len(data)


def test_numpy_is_not_needed_until_an_array_comes() -> None:
    program = """
import sys
sys.modules["numpy"] = None
from croft.errors import CodecError
from croft.wire.values import decode_value, encode_value
assert decode_value(encode_value([(1, {2})])) == [(1, {2})]
try:
    decode_value(bytes.fromhex(sys.argv[1]))
except CodecError as error:
    print(error)
"""
    array_bytes = encode_value(np.zeros(1)).hex()
    done = subprocess.run([sys.executable, "-c", program, array_bytes], capture_output=True, text=True, check=True)
    assert "numpy is not installed here" in done.stdout
    assert "hint: " in done.stdout


def test_array_module_items_of_the_other_byte_order_are_turned_round() -> None:
    swapped = array.array("i", [1, 2])
    swapped.byteswap()
    other = "big" if sys.byteorder == "little" else "little"

    data = extension(Code.ARRAY, ["i", 4, other, swapped.tobytes()])

    assert same(decode_value(data), array.array("i", [1, 2]))
