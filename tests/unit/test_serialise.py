"""What travels of functions and arguments, and what becomes of outcomes."""

import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from croft.client.serialise import argument_bytes, function_bytes, outcome_value
from croft.compute.worker_messages import ARGUMENT_BYTES_MAX, BUFFER_BYTES_MIN, RemoteException, Status
from croft.errors import CodecError, TaskDied, TaskFailed, TaskTimedOut, TooLarge, Unserialisable
from croft.wire.codec import encode
from croft.wire.values import encode_value


class OwnError(Exception):
    """An exception whose class both sides know."""

    def __init__(self, *arguments: object) -> None:
        raise AssertionError("rebuilding an exception runs no code of its class")


def test_a_function_of_a_local_module_travels_with_it(tmp_path: Path) -> None:
    (tmp_path / "own_helper.py").write_text("FACTOR = 3\ndef triple(x):\n    return FACTOR * x\n", encoding="utf-8")
    (tmp_path / "own_work.py").write_text(
        "import own_helper\ndef work(x):\n    return own_helper.triple(x) + 1\n", encoding="utf-8"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import own_work  # type: ignore[import-not-found]  # written just above

        _, pickled = function_bytes(own_work.work)
    finally:
        sys.path.remove(str(tmp_path))
    (tmp_path / "function.pickle").write_bytes(pickled)
    program = f"import pickle; print(pickle.load(open({str(tmp_path / 'function.pickle')!r}, 'rb'))(2))"

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")

    assert said.stdout.strip() == "7"


def test_an_installed_function_travels_by_name() -> None:
    _, pickled = function_bytes(Path.exists)

    assert len(pickled) < 200


def test_equal_functions_have_equal_digests() -> None:
    assert function_bytes(len)[0] == function_bytes(len)[0]


def test_a_function_that_holds_a_lock_is_refused_with_what_to_do() -> None:
    import threading

    lock = threading.Lock()

    with pytest.raises(Unserialisable, match="cannot be sent") as caught:
        function_bytes(lambda: lock)
    assert "make it inside" in caught.value.remedy


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(Unserialisable, match="not callable"):
        function_bytes(7)


def test_an_argument_of_a_class_of_the_main_program_travels_by_value() -> None:
    program = (
        "from croft.client.serialise import argument_bytes\n"
        "class Point:\n    def __init__(self): self.x = 5\n"
        "import sys; sys.stdout.buffer.write(argument_bytes((Point(),), {})[0])"
    )
    pickled = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout

    (point,), named = pickle.loads(pickled)

    assert (point.x, named) == (5, {})


def test_an_argument_over_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TooLarge, match="limit"):
        argument_bytes((bytes(ARGUMENT_BYTES_MAX + 1),), {})


def test_large_arrays_travel_beside_the_pickle_and_small_ones_inside() -> None:
    large, small = np.arange(BUFFER_BYTES_MIN, dtype="u1"), np.arange(10)

    pickled, buffers = argument_bytes(([large, small],), {"again": large})

    assert len(pickled) < 1_000
    assert [buffer.nbytes for buffer in buffers] == [large.nbytes]
    assert np.shares_memory(np.frombuffer(buffers[0], "u1"), large)
    (([one, other],), named) = pickle.loads(pickled, buffers=[bytearray(buffer) for buffer in buffers])
    assert (one == large).all() and (other == small).all() and named["again"] is one


def test_arrays_that_do_not_lie_in_one_piece_travel_inside() -> None:
    scattered = np.arange(4 * BUFFER_BYTES_MIN, dtype="u1")[::2]

    pickled, buffers = argument_bytes((scattered,), {})

    assert not buffers and (pickle.loads(pickled)[0][0] == scattered).all()


def test_a_value_comes_back() -> None:
    assert outcome_value(Status.OK, encode_value({"a": (1, 2)}), "otter") == {"a": (1, 2)}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.DIED, TaskDied),
        (Status.TIMED_OUT, TaskTimedOut),
        (Status.UNCARRIED, CodecError),
        (Status.TOO_LARGE, TooLarge),
    ],
)
def test_every_failure_names_its_peer(status: Status, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="otter"):
        outcome_value(status, b"why", "otter")


def raised(module: str, name: str, *arguments: object) -> bytes:
    return encode(RemoteException(module, name, "a message", "Traceback: here", encode_value(tuple(arguments)), "said"))


def test_a_built_in_exception_comes_back_as_itself_with_the_remote_traceback() -> None:
    with pytest.raises(KeyError) as caught:
        outcome_value(Status.RAISED, raised("builtins", "KeyError", "k"), "otter")

    assert caught.value.args == ("k",)
    assert "Traceback: here" in str(caught.value.__cause__)
    assert "otter" in str(caught.value.__cause__)
    assert "said" in str(caught.value.__cause__)


def test_an_exception_of_a_known_class_comes_back_without_running_its_code() -> None:
    with pytest.raises(OwnError) as caught:
        outcome_value(Status.RAISED, raised(__name__, "OwnError", 1, 2), "otter")

    assert caught.value.args == (1, 2)


def test_an_exception_of_an_unknown_class_is_a_task_failure_that_names_it() -> None:
    with pytest.raises(TaskFailed) as caught:
        outcome_value(Status.RAISED, raised("elsewhere", "Odd"), "otter")

    assert caught.value.type_name == "elsewhere.Odd"


@pytest.mark.parametrize("name", ["KeyboardInterrupt", "SystemExit", "print", "eval"])
def test_nothing_but_an_exception_is_ever_made_of_what_a_peer_names(name: str) -> None:
    with pytest.raises(TaskFailed):
        outcome_value(Status.RAISED, raised("builtins", name, "x"), "otter")


def test_bytes_that_are_no_exception_are_a_dead_task() -> None:
    with pytest.raises(TaskDied, match="cannot be read"):
        outcome_value(Status.RAISED, b"\xff", "otter")


def test_croft_itself_is_never_sent_along() -> None:
    from croft.client import local_modules

    module = sys.modules["croft.errors"]

    assert isinstance(module, types.ModuleType)
    assert not local_modules.is_local("croft.errors", module)
