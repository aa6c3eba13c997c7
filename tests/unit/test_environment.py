"""What an environment says, and which of its wheels fit a machine."""

from __future__ import annotations

import json
import pathlib

import msgspec
import pytest

from croft.compute.environment import (
    WHEEL_BYTES_MAX,
    WHEELS_MAX,
    Environment,
    Wheel,
    check_sound,
    digest_of,
    distribution_of,
    fitting,
    tags_of,
)
from croft.compute.environment_messages import Built, GetWheel, NotBuilt, WheelEnd, WheelMissing, WheelPart
from croft.compute.messages import OpenCommand, Opened, OpenTasks, Preparing
from croft.compute.worker_messages import RunCommand
from croft.errors import PeerMisbehaved, Refused, TooLarge
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "environments.json"
DIGEST = bytes(range(32))
TAGS = {"cp312-cp312-manylinux_2_17_x86_64": 0, "cp312-abi3-linux_x86_64": 1, "py3-none-any": 2}
PURE = Wheel("tiny-1.0-py3-none-any.whl", 100, DIGEST)
FAST = Wheel("tiny-1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", 100, DIGEST)
ARM = Wheel("num-2.0-cp312-cp312-manylinux_2_17_aarch64.whl", 100, DIGEST)
ENVIRONMENT = Environment("3.12", [PURE])

MESSAGES: dict[str, Message] = {
    "environment": ENVIRONMENT,
    "open tasks": OpenTasks("3.12", 0, "job", environment=ENVIRONMENT, sources=["aa"]),
    "open command": OpenCommand(1.0, environment=ENVIRONMENT),
    "open webassembly": OpenCommand(1.0, is_wasm=True),
    "run webassembly": RunCommand(["it.wasm"], {}, is_wasm=True, fuel=1000),
    "opened": Opened(2, [], environment=DIGEST, is_wasm=True),
    "preparing": Preparing(),
    "get wheel": GetWheel(DIGEST),
    "wheel part": WheelPart(b"data"),
    "wheel end": WheelEnd(),
    "wheel missing": WheelMissing(),
    "built": Built(3, 4096),
    "not built": NotBuilt("tiny-1.0-py3-none-any.whl", "why", True),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_the_bytes_that_it_always_was(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden


def test_a_peer_from_before_environments_is_understood() -> None:
    """Its opening ends before the fields of environments."""
    opening = decode(msgspec.msgpack.encode([30, "3.12", 0, "job"]), OpenTasks, step="test")
    opened = decode(msgspec.msgpack.encode([32, 2, [], 0]), Opened, step="test")

    assert (opening.environment, opening.sources, opened.environment) == (None, (), b"")


def test_the_best_wheel_of_each_distribution_is_taken() -> None:
    assert fitting(Environment("3.12", [PURE, FAST]), "3.12", TAGS, 1000) == [FAST]
    assert fitting(Environment("3.12", [PURE, FAST]), "3.12", {"py3-none-any": 0}, 1000) == [PURE]


def test_another_python_is_named() -> None:
    with pytest.raises(Refused, match=r"runs Python 3\.13, the environment is made for Python 3\.12"):
        fitting(ENVIRONMENT, "3.13", TAGS, 1000)


def test_a_distribution_without_a_wheel_for_this_machine_is_named_with_both_platforms() -> None:
    with pytest.raises(
        Refused, match=r"num .*manylinux_2_17_aarch64.*this peer takes cp312-cp312-manylinux_2_17_x86_64"
    ):
        fitting(Environment("3.12", [PURE, ARM]), "3.12", TAGS, 1000)


def test_what_does_not_fit_the_cache_is_refused_before_it_is_fetched() -> None:
    with pytest.raises(TooLarge, match=r"takes 100 bytes, this peer keeps at most 99"):
        fitting(ENVIRONMENT, "3.12", TAGS, 99)


@pytest.mark.parametrize(
    "wheels",
    [
        [],
        [PURE, PURE],
        [Wheel("../tiny-1.0-py3-none-any.whl", 1, DIGEST)],
        [Wheel("tiny 1.0-py3-none-any.whl", 1, DIGEST)],
        [Wheel("tiny.whl", 1, DIGEST)],
        [Wheel("tiny-1.0-py3-none-any.whl", 0, DIGEST)],
        [Wheel("tiny-1.0-py3-none-any.whl", WHEEL_BYTES_MAX + 1, DIGEST)],
        [Wheel("tiny-1.0-py3-none-any.whl", 1, b"short")],
        [Wheel("t" * 300 + "-1.0-py3-none-any.whl", 1, DIGEST)],
        [Wheel(f"tiny{n}-1.0-py3-none-any.whl", 1, DIGEST) for n in range(WHEELS_MAX + 1)],
    ],
)
def test_what_no_peer_of_ours_describes_breaks_the_protocol(wheels: list[Wheel]) -> None:
    with pytest.raises(PeerMisbehaved):
        check_sound(Environment("3.12", wheels))


def test_names_are_read_as_installers_read_them() -> None:
    assert distribution_of("Ruamel.Yaml_x-1.0-py3-none-any.whl") == "ruamel-yaml-x"
    assert list(tags_of("six-1.16-py2.py3-none-any.whl")) == ["py2-none-any", "py3-none-any"]
    assert list(tags_of("six-1.16-1-py3-none-any.whl")) == ["py3-none-any"]


def test_what_is_built_is_known_by_its_wheels_and_python_alone() -> None:
    assert digest_of([PURE], "3.12") == digest_of([PURE], "3.12")
    assert digest_of([PURE], "3.12") != digest_of([PURE], "3.13")
    assert digest_of([PURE], "3.12") != digest_of([PURE, FAST], "3.12")
