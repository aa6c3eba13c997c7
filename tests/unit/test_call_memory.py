"""What callers have lying at a provider is bounded; answers are remembered for those who ask again."""

from __future__ import annotations

from croft.model.ids import TwinId
from croft.twins.call_memory import (
    ANSWER_BYTES_MAX,
    ANSWER_KEPT_S,
    ANSWERS_BYTES_MAX,
    ANSWERS_MAX,
    MESSAGE_BYTES,
    Intake,
    Key,
    RecentAnswers,
)
from croft.twins.call_messages import ARGUMENT_BYTES_MAX, ArgumentPart, InputItem

BOB = TwinId("bob")


def key(number: int = 1, name: str = "ocr") -> Key:
    return BOB, name, number.to_bytes(4, "big")


def test_items_that_were_taken_make_room_however_many_there_are() -> None:
    intake = Intake(10)
    for _ in range(10_000):
        intake.add(InputItem(1, bytes(100), False))
        intake.add(ArgumentPart(1, bytes(50), True))
        intake.taken(1)

    assert intake.size == 10 and not intake.is_too_much


def test_a_flood_of_empty_items_counts_too() -> None:
    intake = Intake(ARGUMENT_BYTES_MAX - 10 * MESSAGE_BYTES)
    for _ in range(10):
        intake.add(InputItem(1, b""))
    assert not intake.is_too_much
    intake.add(InputItem(1, b""))

    assert intake.is_too_much


def test_taking_more_than_there_is_takes_what_there_is() -> None:
    intake = Intake(5)
    intake.add(InputItem(1, b"x"))
    intake.taken(1 << 60)

    assert intake.size == 5


def test_an_answer_is_remembered_for_the_same_caller_and_key_alone() -> None:
    answers = RecentAnswers()
    answers.put(key(), [b"text"], 0.0)

    assert answers.get(key(), 1.0) == [b"text"]
    assert answers.get(key(2), 1.0) is None and answers.get(key(name="index"), 1.0) is None
    assert answers.get((TwinId("cyd"), *key()[1:]), 1.0) is None
    assert answers.get(key(), ANSWER_KEPT_S) is None


def test_the_first_answer_under_a_key_stays() -> None:
    answers = RecentAnswers()
    answers.put(key(), [b"first"], 0.0)
    answers.put(key(), [b"second"], 1.0)

    assert answers.get(key(), 2.0) == [b"first"]


def test_old_and_many_and_large_answers_are_forgotten() -> None:
    answers = RecentAnswers()
    for number in range(ANSWERS_MAX + 10):
        answers.put(key(number), [b"x"], 0.0)
    assert answers.get(key(9), 0.0) is None and answers.get(key(10), 0.0) == [b"x"]

    answers.put(key(1 << 20), [bytes(ANSWER_BYTES_MAX + 1)], 0.0)
    assert answers.get(key(1 << 20), 0.0) is None

    whole = bytes(ANSWER_BYTES_MAX)
    for number in range(1 << 21, (1 << 21) + ANSWERS_BYTES_MAX // ANSWER_BYTES_MAX + 1):
        answers.put(key(number), [whole], 0.0)
    assert answers.get(key(1 << 21), 0.0) is None

    answers.put(key(5), [b"new"], ANSWER_KEPT_S + 1)
    assert answers.get(key(5), ANSWER_KEPT_S + 1) == [b"new"]
