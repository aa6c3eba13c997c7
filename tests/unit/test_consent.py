"""Whether a call may run: by whom, in which role, how often, and what the owner says."""

from __future__ import annotations

import pytest

from croft.model.ids import CommunityId, TwinId
from croft.twins.consent import DAY_S, FRIENDS, MEMBERS, ROLE, Asker, Consent, Rule, Verdict

BOB, VILLAGE = TwinId("b" * 64), CommunityId("c" * 64)
NOW = 1_750_000_000.0
AUTO, ASK, DENY = Verdict.AUTO, Verdict.ASK, Verdict.DENY
ASKER = Asker(BOB, frozenset({VILLAGE}))
FRIEND = Asker(BOB, frozenset({VILLAGE}), is_friend=True)
ADMIN = Asker(BOB, frozenset({VILLAGE}), roles=frozenset({"admin"}))
OWN = Asker(BOB, frozenset({VILLAGE}), is_own=True)


def consent(*rules: Rule) -> Consent:
    return Consent({rule.number: rule for rule in rules})


def verdict(core: Consent, asker: Asker = ASKER, default: Verdict = AUTO) -> Verdict:
    return core.decide("ocr", default, asker, NOW).verdict


@pytest.mark.parametrize("default", list(Verdict))
def test_without_a_rule_it_is_as_it_was_offered(default: Verdict) -> None:
    assert verdict(consent(), default=default) is default


def test_the_owners_own_devices_are_always_let_in() -> None:
    assert verdict(consent(Rule(1, "", MEMBERS, DENY)), OWN, DENY) is AUTO


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (Rule(9, "ocr", MEMBERS, ASK), Rule(1, "", BOB, DENY)),
        (Rule(9, "ocr", BOB, ASK), Rule(1, "ocr", f"{ROLE}admin", DENY)),
        (Rule(9, "ocr", f"{ROLE}admin", ASK), Rule(1, "ocr", VILLAGE, DENY, is_community=True)),
        (Rule(9, "ocr", VILLAGE, ASK, is_community=True), Rule(1, "ocr", FRIENDS, DENY)),
        (Rule(9, "ocr", FRIENDS, ASK), Rule(1, "ocr", MEMBERS, DENY)),
    ],
)
def test_the_most_specific_rule_decides_however_late_it_came(narrow: Rule, wide: Rule) -> None:
    asker = Asker(BOB, frozenset({VILLAGE}), is_friend=True, roles=frozenset({"admin"}))

    decision = consent(wide, narrow).decide("ocr", AUTO, asker, NOW)

    assert (decision.verdict, decision.rule) == (ASK, narrow)
    assert decision.why.startswith("rule 9")


@pytest.mark.parametrize(
    "rule",
    [
        Rule(1, "index", BOB, DENY),
        Rule(1, "ocr", "d" * 64, DENY),
        Rule(1, "ocr", FRIENDS, DENY),
        Rule(1, "ocr", f"{ROLE}admin", DENY),
        Rule(1, "ocr", "mine", DENY),
    ],
)
def test_rules_about_others_decide_nothing(rule: Rule) -> None:
    assert verdict(consent(rule)) is AUTO


def test_so_many_calls_a_day_and_of_each_person() -> None:
    rule = Rule(1, "ocr", MEMBERS, AUTO, per_day=2)
    core = consent(rule)
    for _ in range(2):
        assert verdict(core) is AUTO
        core.counted(rule, BOB, NOW)

    refused = core.decide("ocr", AUTO, ASKER, NOW)
    assert refused.verdict is DENY and "2 calls a day are used up" in refused.why
    assert verdict(core, Asker(TwinId("e" * 64), frozenset({VILLAGE}))) is AUTO
    assert core.decide("ocr", AUTO, ASKER, NOW + DAY_S).verdict is AUTO


def test_words_of_a_rule_name_no_ids() -> None:
    assert Rule(3, "ocr", BOB, AUTO, 20).show() == "rule 3 (ocr, this person: auto, 20 a day)"
    assert Rule(4, "", VILLAGE, DENY, is_community=True).show() == "rule 4 (all, this community: deny)"


def test_who_is_meant() -> None:
    assert ASKER.is_among([MEMBERS]) and ASKER.is_among([BOB]) and ASKER.is_among([VILLAGE])
    assert not ASKER.is_among([FRIENDS]) and FRIEND.is_among([FRIENDS]) and not ASKER.is_among([])
    assert not Asker(BOB, frozenset()).is_among([MEMBERS]), "who was removed is no member any more"
    assert OWN.is_among([]) and ADMIN.is_among([f"{ROLE}admin"])
