"""Parts of a week, as people write them."""

from __future__ import annotations

import pytest

from croft.model.hours import DAYS, MINUTES_PER_DAY, parse_when, show_minute, show_when


def minute(text: str) -> int:
    day, time = text.split()
    hour, _, rest = time.partition(":")
    return DAYS.index(day) * MINUTES_PER_DAY + int(hour) * 60 + int(rest)


@pytest.mark.parametrize(
    ("when", "inside", "outside"),
    [
        ("08-18", ["mon 08:00", "sun 17:59"], ["mon 07:59", "sun 18:00"]),
        ("20-08", ["mon 20:00", "mon 03:00", "sun 23:59"], ["wed 08:00", "wed 19:59"]),
        ("sat,sun", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("mon-fri 22:30-06:00", ["fri 22:30", "sat 05:59", "tue 01:00"], ["sat 22:30", "mon 01:00", "fri 12:00"]),
        ("sun 20-08", ["sun 20:00", "mon 07:59"], ["sun 07:59", "mon 20:00"]),
        ("sat-mon", ["sat 12:00", "sun 12:00", "mon 12:00"], ["fri 12:00", "tue 12:00"]),
    ],
)
def test_a_part_of_a_week_holds_its_minutes_and_no_others(when: str, inside: list[str], outside: list[str]) -> None:
    part = parse_when(when)

    assert [text for text in inside if minute(text) not in part] == []
    assert [text for text in outside if minute(text) in part] == []
    assert parse_when(show_when(part)) == part


@pytest.mark.parametrize("text", ["", "8", "08-08", "25-26", "mun 08-18", "mon 08-18 x", "mon-", "08-18 mon", "-"])
def test_what_is_no_part_of_a_week_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"hours|days|week"):
        parse_when(text)


def test_a_part_of_a_week_and_a_minute_are_shown_as_people_write_them() -> None:
    assert show_when(parse_when("mon,tue,wed 9-17")) == "mon-wed 09:00-17:00"
    assert show_when(parse_when("sat,sun")) == "sat,sun"
    assert show_when(parse_when("mon-sun")) == "mon-sun"
    assert show_minute(minute("tue 14:05")) == "tue 14:05"
