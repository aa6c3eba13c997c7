"""The owner's settings: flag > `CROFT_*` > config.toml > default. An unknown key is an error."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from croft.control.home import Home
from croft.control.quantities import part_of_week, resources, size_bytes
from croft.errors import Usage
from croft.ledger.own_offers import FRIENDS, MEMBERS, MINE
from croft.model.hours import When
from croft.model.isolation import Grade

CPUS_MAX = 4096
DELEGATES_MAX = 8
PORT_MAX = 65_535
PERCENT = 100
LABELS_MAX = 32
LABEL_LENGTH_MAX = 64


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its default as written, how it is read, and what it does."""

    default: str
    read: Callable[[str], Any]
    text: str


@dataclass(frozen=True, slots=True)
class Value:
    """A setting as it stands: as written, as read, and where it comes from."""

    written: str
    read: Any
    origin: str


def _cpus(text: str) -> int:
    total = os.cpu_count() or 1
    if text == "half":
        return max(1, total // 2)
    if text == "all":
        return total
    if not text.isdigit() or int(text) > CPUS_MAX:
        raise Usage(f"`{text}` is not a number of processors", remedy="Write a number, `half` or `all`.")
    return int(text)


def _delegates(text: str) -> int:
    if not text.isdigit() or int(text) > DELEGATES_MAX:
        raise Usage(f"`{text}` is not a number of delegates", remedy=f"Write a number up to {DELEGATES_MAX}.")
    return int(text)


def _memory(text: str) -> int:
    if text == "half":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return size_bytes(text)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > PORT_MAX:
        raise Usage(f"`{text}` is not a port", remedy=f"Write a number up to {PORT_MAX}; 0 picks a free one.")
    return int(text)


def _grade(text: str) -> Grade:
    if text.upper() not in Grade.__members__:
        raise Usage(f"`{text}` is not an isolation grade", remedy="Write A, B, C or D.")
    return Grade(text.upper())


def _on_or_off(text: str) -> str:
    if text not in ("on", "off"):
        raise Usage(f"`{text}` is neither on nor off")
    return text


def _when(text: str) -> When | None:
    return part_of_week(text) if text else None


def _recipients(text: str) -> str:
    if text not in (MEMBERS, FRIENDS, MINE):
        raise Usage(f"`{text}` is nobody", remedy=f"Write {MEMBERS}, {FRIENDS} or {MINE}.")
    return text


def _devices(text: str) -> tuple[dict[str, int], dict[str, str]]:
    lent, places = resources(text.replace(",", " ").split())
    if plain := [name for name in ("cpu", "mem", "disk") if name in lent]:
        raise Usage(f"`{plain[0]}` is no device", remedy="Processors, memory and disk have settings of their own.")
    return lent, places


def _share(text: str) -> float:
    digits = text.removesuffix("%")
    if not text.endswith("%") or not digits.isdigit() or not 0 < int(digits) <= PERCENT:
        raise Usage(f"`{text}` is no share", remedy="Write a number of percent, like `50%`.")
    return int(digits) / PERCENT


def _idle(text: str) -> float | None:
    return None if text == "off" else _share(text)


def _is_on(text: str) -> bool:
    return _on_or_off(text) == "on"


def _level(text: str) -> str:
    if text not in ("debug", "info", "warning", "error"):
        raise Usage(f"`{text}` is not a log level", remedy="Write debug, info, warning or error.")
    return text


def _labels(text: str) -> tuple[str, ...]:
    labels = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if len(labels) > LABELS_MAX or any(len(label) > LABEL_LENGTH_MAX or not label.isprintable() for label in labels):
        raise Usage(
            "too many or too long labels",
            remedy=f"Write up to {LABELS_MAX} words of up to {LABEL_LENGTH_MAX} letters, like `gpu, quiet`.",
        )
    return labels


KEYS: Mapping[str, Key] = {
    "name": Key("", str, "How others see this device; by default its host name."),
    "bind": Key("0.0.0.0", str, "The local address to listen on."),
    "port": Key("0", _port, "The UDP port; 0 picks a free one at the first start and keeps it."),
    "relay.port": Key(
        "0",
        _port,
        "The TCP port of the relay that this peer offers; 0 picks a free one at the first start and keeps it.",
    ),
    "lan": Key("on", _on_or_off, "Whether members on the same local network find each other by themselves: on or off."),
    "lend.cpus": Key("half", _cpus, "Processors lent to members: a number, `half` or `all`; 0 lends none."),
    "lend.memory": Key("half", _memory, "Memory that the work of others may use in all."),
    "lend.disk": Key("10G", size_bytes, "Disk that the work of others may use in all."),
    "lend.devices": Key(
        "", _devices, "Devices and licences lent, one holder at a time, like `camera=/dev/video0, gpu=1`."
    ),
    "lend.to": Key(
        "members", _recipients, "Whom all that is for: members of your communities, friends, or mine alone."
    ),
    "lend.when": Key("", _when, "Lent only in this part of the week, like `20-08` or `sat,sun`; else always."),
    "lend.share": Key(
        "100%", _share, "The work of others gets at most this share of all processors, where control groups hold it."
    ),
    "lend.idle": Key(
        "off",
        _idle,
        "Lent only while your own programs use less than this share of the processors, like `25%`; off: always.",
    ),
    "lend.battery": Key("off", _is_on, "Whether to lend while the machine runs on battery: on or off."),
    "labels": Key("", _labels, "Words for what is special here, like `gpu, quiet`; others find peers by them."),
    "jobs.delegates": Key(
        "0", _delegates, "How many peers hold a copy of a detached job, to carry it on while this one is away."
    ),
    "pipelines.disk": Key(
        "4G",
        size_bytes,
        "Disk for results that wait here for the next stage of a pipeline or the next task; one person gets half.",
    ),
    "storage.delegates": Key(
        "3",
        _delegates,
        "How many peers look after your stored files while your machines are away; those that you named come first.",
    ),
    "sandbox.required_grade": Key(
        "B", _grade, "Code of others runs here only at this isolation grade or a better one."
    ),
    "sandbox.own_devices_grade": Key("B", _grade, "The same for code from devices of this very twin."),
    "environments.cache": Key(
        "4G", size_bytes, "Disk kept for wheels that jobs bring, and as much again for environments built of them."
    ),
    "log.level": Key("info", _level, "How much is logged: debug, info, warning or error."),
}


class Config:
    """Every setting's value and origin."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key].read

    def items(self) -> Mapping[str, Value]:
        """All settings, in the order of KEYS."""
        return self._values


def load(home: Home, flags: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """The settings of a home. Raises Usage that names the key, its origin and the remedy."""
    environment = os.environ if environment is None else environment
    file = _read_file(home)
    _check_known(flags or {}, "the command line")
    values: dict[str, Value] = {}
    for name, key in KEYS.items():
        variable = "CROFT_" + name.upper().replace(".", "_")
        if flags and name in flags:
            written, origin = flags[name], "flag"
        elif variable in environment:
            written, origin = environment[variable], f"environment {variable}"
        elif name in file:
            written, origin = file[name], str(home.config_file)
        else:
            written, origin = key.default, "default"
        try:
            values[name] = Value(written, key.read(written), origin)
        except Usage as error:
            raise Usage(f"setting `{name}` from {origin}: {error.message}", remedy=error.remedy) from None
    return Config(values)


def _read_file(home: Home) -> dict[str, str]:
    try:
        text = home.config_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"cannot read {home.config_file}: {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"{home.config_file} is not valid TOML: {error}", remedy="Mend it: `croft config edit`.") from None
    flat = _flatten(table)
    _check_known(flat, str(home.config_file))
    return flat


def _check_known(written: Mapping[str, str], place: str) -> None:
    for name in written:
        if name not in KEYS:
            known = ", ".join(f"`{key}`" for key in KEYS)
            raise Usage(f"unknown setting `{name}` in {place}", remedy=f"The settings are {known}.")


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat
