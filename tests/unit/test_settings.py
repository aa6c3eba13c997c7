"""Where settings come from, where a peer lives, and how quantities are written."""

from pathlib import Path

import pytest

from croft.cli.service import unit_text
from croft.control.config import load
from croft.control.home import SOCKET_PATH_BYTES_MAX, Home
from croft.control.quantities import (
    duration_s,
    rate_bytes_per_s,
    show_duration,
    show_rate,
    show_size,
    size_bytes,
)
from croft.errors import Usage


def home_with(folder: Path, text: str) -> Home:
    (folder / "config.toml").write_text(text, encoding="utf-8")
    return Home.find(folder)


def test_a_flag_comes_before_the_environment_that_before_the_file_that_before_the_default(tmp_path: Path) -> None:
    home = home_with(tmp_path, "[lend]\ncpus = 1\n")
    environment = {"CROFT_LEND_CPUS": "2"}

    assert load(home, {"lend.cpus": "3"}, environment)["lend.cpus"] == 3
    assert load(home, {}, environment)["lend.cpus"] == 2
    assert load(home, {}, {})["lend.cpus"] == 1
    assert load(Home.find(tmp_path / "other"), {}, {})["port"] == 0


def test_every_value_tells_where_it_comes_from(tmp_path: Path) -> None:
    home = home_with(tmp_path, "[lend]\ncpus = 1\n")

    values = load(home, {"name": "otter"}, {"CROFT_PORT": "7000"}).items()

    assert values["name"].origin == "flag"
    assert values["port"].origin == "environment CROFT_PORT"
    assert values["lend.cpus"].origin == str(tmp_path / "config.toml")
    assert values["bind"].origin == "default"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lend.cpu = 1", "lend.cpu"),
        ("[lend]\nmemory = 'much'", "lend.memory"),
        ("port = 70000", "port"),
        ("[sandbox]\nrequired_grade = 'E'", "sandbox.required_grade"),
        ("name = ", "TOML"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_a_remedy(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(Usage, match=named) as caught:
        load(home_with(tmp_path, text), {}, {})

    assert caught.value.remedy


def test_sockets_of_a_home_with_a_long_path_still_fit_the_kernel(tmp_path: Path) -> None:
    home = Home.find(tmp_path / ("deep" * 30))

    assert len(str(home.control_socket)) <= SOCKET_PATH_BYTES_MAX + len("/control.sock")


def test_two_homes_with_long_paths_have_sockets_of_their_own(tmp_path: Path) -> None:
    one, other = (Home.find(tmp_path / ("deep" * 30) / name) for name in ("one", "other"))

    assert one.control_socket != other.control_socket


def test_a_named_home_keeps_everything_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROFT_HOME", str(tmp_path))

    assert Home.find().config_file == tmp_path / "config.toml"


def test_without_a_name_the_home_follows_the_base_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROFT_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    home = Home.find()

    assert home.state == tmp_path / "data" / "croft"
    assert home.config_file == tmp_path / "config" / "croft" / "config.toml"


def test_the_systemd_unit_delegates_a_control_group_and_names_the_home(tmp_path: Path) -> None:
    text = unit_text(Home.find(tmp_path), "/usr/bin/python3")

    assert "Delegate=yes" in text
    assert f"Environment=CROFT_HOME={tmp_path}" in text
    assert "ExecStart=/usr/bin/python3 -m croft.node.daemon" in text


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("1.5 GiB", 3 << 29), ("8g", 8 << 30), ("7", 7)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("90", 90.0), ("5m", 300.0), ("2h", 7200.0), ("1d", 86400.0)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1 2", "one"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(Usage):
        size_bytes(text)
    with pytest.raises(Usage):
        duration_s(text)


def test_quantities_are_shown_short() -> None:
    assert [show_size(1536), show_size(10 << 30)] == ["1.5 kB", "10 GB"]
    assert [show_duration(0.012), show_duration(4.2), show_duration(200), show_duration(7200)] == [
        "12 ms",
        "4.2 s",
        "3 min",
        "2 h",
    ]


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("20Mbit", 2.5e6), ("500 kbit/s", 62_500.0), ("1.5Gbps", None), ("8bit", 1.0)]
)
def test_rates_are_bits_by_thousands(text: str, bytes_per_s: float | None) -> None:
    if bytes_per_s is None:
        with pytest.raises(Usage, match="not a rate"):
            rate_bytes_per_s(text)
    else:
        assert rate_bytes_per_s(text) == bytes_per_s


@pytest.mark.parametrize(("value", "shown"), [(2.5e6, "20 Mbit/s"), (100.0, "800 bit/s"), (187_500.0, "1.5 Mbit/s")])
def test_rates_are_shown_by_two_digits(value: float, shown: str) -> None:
    assert show_rate(value) == shown
