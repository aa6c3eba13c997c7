"""Invitations: lines and spoken codes, from both sides."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest

from croft.errors import Busy, NotFound, PeerMisbehaved, Refused, Usage
from croft.identity.grants import admit, found
from croft.overlay.invitation import (
    ASK_AGAIN_S_MAX,
    GUESSES_MAX,
    KEPT_S_MAX,
    OPEN_MAX,
    SESSION_S_MAX,
    SESSIONS_MAX,
    Admit,
    Created,
    Effect,
    Forget,
    Invitations,
    PeerLeft,
    Received,
    Reply,
    Save,
    State,
    TimePassed,
)
from croft.overlay.invitation_code import Line, SpokenCode, new_secret, parse_code
from croft.overlay.join_messages import (
    TO_INVITER_BYTES_MAX,
    Admitted,
    FromInviter,
    JoinRefused,
    PakeAnswer,
    PakeConfirm,
    PakeStart,
    Redeem,
    ToInviter,
)
from croft.overlay.joining import LineJoiner, SpokenJoiner, refusal
from croft.wire.codec import decode_union, encode
from support.joining import (
    ALICE,
    ALICES_CHAIN,
    BOB,
    CAROL,
    COMMUNITY,
    MALLORY,
    NOW,
    OTHER_COMMUNITY,
    Somebody,
    admitted,
    inviter,
    seed,
)

HOUR = 3600.0


def invite(core: Invitations, *, now: float = NOW, is_spoken: bool = True, name: object = "first") -> Created:
    return core.create(
        COMMUNITY,
        addresses=["192.0.2.1:4433"],
        now=now,
        lifetime_s=HOUR,
        is_spoken=is_spoken,
        seed=seed(("invitation", name)),
    )


def line_of(created: Created) -> Line:
    line = parse_code(created.line)
    assert isinstance(line, Line)
    return line


def code_of(created: Created) -> SpokenCode:
    code = parse_code(created.code)
    assert isinstance(code, SpokenCode)
    return code


def other_code(code: SpokenCode) -> SpokenCode:
    return replace(code, secret="abandon-ability" if code.secret != "abandon-ability" else "zoo-zone")


def send(core: Invitations, sender: Somebody, message: ToInviter, now: float = NOW) -> list[Effect]:
    return list(core.handle(Received(sender.peer, message, now, seed(("session", sender.name, now)))))


def redeem(core: Invitations, created: Created, sender: Somebody = BOB, now: float = NOW) -> list[Effect]:
    return send(core, sender, LineJoiner(line_of(created), sender.twin, sender.certificate).start(), now)


def spoken_joiner(code: SpokenCode, sender: Somebody = BOB, inviter_: Somebody = ALICE) -> SpokenJoiner:
    return SpokenJoiner(
        code, sender.peer, inviter_.peer, sender.twin, sender.certificate, seed(("joiner", sender.name))
    )


def answer_in(effects: list[Effect]) -> PakeAnswer:
    (answer,) = [e.message for e in effects if isinstance(e, Reply) and isinstance(e.message, PakeAnswer)]
    return answer


def prove(core: Invitations, code: SpokenCode, sender: Somebody = BOB, now: float = NOW) -> list[Effect]:
    joiner = spoken_joiner(code, sender)
    begun = send(core, sender, joiner.start(), now)
    if not any(isinstance(e, Reply) and isinstance(e.message, PakeAnswer) for e in begun):
        return begun
    return [*begun, *send(core, sender, joiner.answered(answer_in(begun)), now)]


def refusal_in(effects: list[Effect]) -> JoinRefused:
    (refused,) = [e.message for e in effects if isinstance(e, Reply) and isinstance(e.message, JoinRefused)]
    assert not any(isinstance(e, Admit) for e in effects)
    assert refused.message
    assert refused.remedy
    return refused


def admit_in(effects: list[Effect]) -> Admit:
    (effect,) = [e for e in effects if isinstance(e, Admit)]
    return effect


# --- the line --------------------------------------------------------------------------------------------------------


def test_a_line_admits_its_bearer_after_its_use_is_saved() -> None:
    core = inviter()
    created = invite(core)

    effects = redeem(core, created)

    saved, admission = effects
    assert isinstance(saved, Save)
    assert saved.invitation.state is State.USED
    assert saved.invitation.used_by == BOB.peer
    assert admission == Admit(BOB.peer, BOB.twin, "bob", COMMUNITY, created.invitation.id)


def test_the_joiner_by_line_learns_what_it_joined() -> None:
    core = inviter()
    created = invite(core)
    joiner = LineJoiner(line_of(created), BOB.twin, BOB.certificate)

    welcome = joiner.admitted(admitted(admit_in(send(core, BOB, joiner.start()))), NOW)

    assert (welcome.community, welcome.name, welcome.inviter.twin) == (COMMUNITY, "home", ALICE.twin)
    assert len(welcome.grant_chain) == 2
    assert welcome.members == (b"descriptor",)


def test_a_line_is_used_once() -> None:
    core = inviter()
    created = invite(core)
    redeem(core, created)

    refused = refusal_in(redeem(core, created, CAROL))

    assert refused.code == "invitation_used"


def test_whoever_was_admitted_may_ask_again_for_a_while_if_the_answer_was_lost() -> None:
    core = inviter()
    created = invite(core)
    redeem(core, created)

    assert redeem(core, created, now=NOW + ASK_AGAIN_S_MAX - 1) == [
        Admit(BOB.peer, BOB.twin, "bob", COMMUNITY, created.invitation.id, is_again=True)
    ]
    assert refusal_in(redeem(core, created, now=NOW + ASK_AGAIN_S_MAX)).code == "invitation_used"


def test_an_expired_line_is_refused_to_the_second() -> None:
    core = inviter()
    created = invite(core)

    assert refusal_in(redeem(core, created, now=NOW + HOUR)).code == "invitation_expired"
    assert admit_in(redeem(core, created, now=NOW + HOUR - 0.001)).peer == BOB.peer


def test_a_withdrawn_line_is_refused() -> None:
    core = inviter()
    created = invite(core)

    assert core.withdraw(created.invitation.id, NOW).state is State.WITHDRAWN
    assert refusal_in(redeem(core, created)).code == "invitation_withdrawn"


def test_what_was_used_or_is_unknown_cannot_be_withdrawn() -> None:
    core = inviter()
    created = invite(core)
    redeem(core, created)

    with pytest.raises(Refused, match="used already"):
        core.withdraw(created.invitation.id, NOW)
    with pytest.raises(NotFound):
        core.withdraw("0" * 16, NOW)


def test_a_line_signed_by_somebody_else_is_wrong() -> None:
    forged = Invitations(MALLORY.twin_key, ALICE.peer)
    created = invite(forged)
    core = inviter()
    invite(core)

    assert refusal_in(redeem(core, created)).code == "invitation_wrong"


def test_a_line_that_the_inviter_has_forgotten_is_wrong_and_later_expired() -> None:
    created = invite(inviter())

    assert refusal_in(redeem(inviter(), created)).code == "invitation_wrong"
    assert refusal_in(redeem(inviter(), created, now=NOW + 2 * HOUR)).code == "invitation_expired"


def test_a_line_survives_a_restart_of_the_inviter() -> None:
    core = inviter()
    created = invite(core)

    restarted = Invitations(ALICE.twin_key, ALICE.peer, core.all())

    assert admit_in(redeem(restarted, created)).peer == BOB.peer


@pytest.mark.parametrize("certificate", [b"", b"\x00" * 100, MALLORY.certificate])
def test_a_device_without_a_certificate_of_its_own_is_refused_and_uses_nothing(certificate: bytes) -> None:
    core = inviter()
    created = invite(core)

    assert refusal_in(send(core, BOB, Redeem(line_of(created).token, certificate))).code == "join_broken"
    assert core.all()[0].state is State.OPEN


def test_every_changed_letter_of_a_line_is_told_apart_from_a_refusal() -> None:
    text = invite(inviter()).line
    chance = random.Random(1)
    for at in range(len("croft:"), len(text)):
        changed = text[:at] + chance.choice([c for c in "abcXYZ019-_" if c != text[at]]) + text[at + 1 :]
        with contextlib.suppress(Usage):
            # The last letter holds unused bits: a change there may mean the same line.
            assert parse_code(changed) == parse_code(text)
            assert at == len(text) - 1
    for cut in (7, 50, len(text) - 5, len(text) - 1):
        with pytest.raises(Usage) as caught:
            parse_code(text[:cut])
        assert caught.value.code == "invitation_mangled"
        assert caught.value.remedy


def test_a_line_may_be_wrapped_and_quoted() -> None:
    text = invite(inviter()).line
    wrapped = f"  '{text[:60]}\n  {text[60:]}' \n"

    assert parse_code(wrapped) == parse_code(text)


def test_a_line_is_short_enough_to_paste() -> None:
    assert len(invite(inviter()).line) < 600


@pytest.mark.parametrize(
    "text", ["", "  ", "hello", "7-ocean", "ocean-marble", "7-ocean-marble-x", "croft:", "x" * 9000]
)
def test_what_is_no_code_is_a_usage_error_with_a_remedy(text: str) -> None:
    with pytest.raises(Usage) as caught:
        parse_code(text)
    assert caught.value.remedy


# --- the joiner's checks ---------------------------------------------------------------------------------------------


def test_an_answer_from_the_wrong_twin_is_not_believed() -> None:
    core = inviter()
    joiner = LineJoiner(line_of(invite(core)), BOB.twin, BOB.certificate)
    true = admitted(admit_in(send(core, BOB, joiner.start())))
    mallorys_chain = admit(MALLORY.twin_key, found(ALICE.twin_key, MALLORY.twin), COMMUNITY, BOB.twin)
    false = [
        Admitted(true.community, true.name, true.grant_chain, MALLORY.certificate, []),
        Admitted(true.community, true.name, mallorys_chain, ALICE.certificate, []),
        Admitted(true.community, true.name, ALICES_CHAIN, ALICE.certificate, []),
        Admitted(true.community, true.name, [], ALICE.certificate, []),
        Admitted(OTHER_COMMUNITY, true.name, true.grant_chain, ALICE.certificate, []),
        Admitted("x", true.name, true.grant_chain, ALICE.certificate, []),
        Admitted(true.community, true.name, true.grant_chain, b"", []),
        Admitted(true.community, true.name, true.grant_chain, ALICE.certificate, [b""] * 1001),
    ]

    assert joiner.admitted(true, NOW).community == COMMUNITY
    for message in false:
        with pytest.raises(PeerMisbehaved):
            joiner.admitted(message, NOW)


def test_a_grant_for_somebody_else_is_not_believed() -> None:
    core = inviter()
    created = invite(core)
    for_carol = admitted(admit_in(redeem(core, created, CAROL)))

    with pytest.raises(PeerMisbehaved, match="somebody else"):
        LineJoiner(line_of(created), BOB.twin, BOB.certificate).admitted(for_carol, NOW)


def test_a_second_device_of_the_inviter_s_twin_may_join_by_its_own_chain() -> None:
    core = inviter()
    joiner = LineJoiner(line_of(invite(core)), ALICE.twin, b"")

    welcome = joiner.admitted(Admitted(COMMUNITY, "home", ALICES_CHAIN, ALICE.certificate, []), NOW)

    assert welcome.grant_chain == tuple(ALICES_CHAIN)


def test_a_refusal_becomes_an_error_that_keeps_its_kind_and_is_fit_for_a_terminal() -> None:
    error = refusal(JoinRefused("invitation_used", "used \x1b[31malready\n", "Ask \x07again."), ALICE.peer)

    assert isinstance(error, Refused)
    assert error.code == "invitation_used"
    assert error.exit_code == 5
    assert ALICE.peer[:10] in error.message
    assert all(letter.isprintable() for letter in error.message + error.remedy)
    assert refusal(JoinRefused("rm -rf", "x"), ALICE.peer).code == "refused"
    assert isinstance(refusal(JoinRefused("busy", "x"), ALICE.peer), Busy)


# --- the spoken code -------------------------------------------------------------------------------------------------


def test_a_spoken_code_admits_whoever_knows_it_and_both_sides_know() -> None:
    core = inviter()
    code = code_of(invite(core))
    joiner = spoken_joiner(code)

    begun = send(core, BOB, joiner.start())
    done = send(core, BOB, joiner.answered(answer_in(begun)))

    assert [type(effect) for effect in begun] == [Save, Reply]
    assert [type(effect) for effect in done] == [Save, Admit]
    assert joiner.admitted(admitted(admit_in(done)), NOW).inviter.twin == ALICE.twin


def test_a_guess_is_saved_before_it_is_answered() -> None:
    core = inviter()
    code = other_code(code_of(invite(core)))

    for left in (2, 1, 0):
        effects = prove(core, code)
        assert isinstance(effects[0], Save)
        assert effects[0].invitation.guesses_left == left
        assert isinstance(effects[1], Reply)
        assert isinstance(effects[1].message, PakeAnswer)
        assert refusal_in(effects).code == "invitation_wrong"


def test_three_wrong_guesses_lock_code_and_line() -> None:
    core = inviter()
    created = invite(core)
    for sender in (BOB, CAROL, MALLORY):
        prove(core, other_code(code_of(created)), sender)

    assert core.all()[0].state is State.LOCKED
    assert core.all()[0].secret is None
    assert refusal_in(prove(core, code_of(created))).code == "invitation_locked"
    assert refusal_in(redeem(core, created)).code == "invitation_locked"


def test_two_wrong_guesses_lock_nothing() -> None:
    core = inviter()
    created = invite(core)
    for _ in range(GUESSES_MAX - 1):
        prove(core, other_code(code_of(created)))

    assert admit_in(prove(core, code_of(created))).peer == BOB.peer


def test_guesses_are_counted_over_restarts() -> None:
    core = inviter()
    created = invite(core)
    for _ in range(GUESSES_MAX):
        core = Invitations(ALICE.twin_key, ALICE.peer, core.all())
        send(core, BOB, spoken_joiner(code_of(created)).start())
    core = Invitations(ALICE.twin_key, ALICE.peer, core.all())

    assert refusal_in(send(core, BOB, spoken_joiner(code_of(created)).start())).code == "invitation_locked"
    assert [e.invitation.state for e in core.handle(TimePassed(NOW)) if isinstance(e, Save)] == [State.LOCKED]


def test_a_spoken_code_survives_a_restart_of_the_inviter() -> None:
    core = inviter()
    created = invite(core)

    assert admit_in(prove(Invitations(ALICE.twin_key, ALICE.peer, core.all()), code_of(created))).peer == BOB.peer


def test_many_guesses_at_once_are_no_more_than_three() -> None:
    core = inviter()
    code = code_of(invite(core))
    guessers = [Somebody(f"guesser {number}") for number in range(10)]

    begun = {who: send(core, who, spoken_joiner(other_code(code), who).start()) for who in guessers}

    answered = [
        e for effects in begun.values() for e in effects if isinstance(e, Reply) and isinstance(e.message, PakeAnswer)
    ]
    assert len(answered) == GUESSES_MAX


def test_the_last_guess_may_be_the_right_one() -> None:
    core = inviter()
    created = invite(core)
    for _ in range(GUESSES_MAX - 1):
        prove(core, other_code(code_of(created)), MALLORY)
    joiner = spoken_joiner(code_of(created))
    begun = send(core, BOB, joiner.start())

    assert refusal_in(prove(core, other_code(code_of(created)), MALLORY)).code == "invitation_locked"
    assert admit_in(send(core, BOB, joiner.answered(answer_in(begun)))).peer == BOB.peer


def test_whoever_stands_between_with_keys_of_its_own_gets_nothing() -> None:
    core = inviter()
    code = code_of(invite(core))
    joiner = spoken_joiner(code, BOB, inviter_=MALLORY)

    begun = send(core, MALLORY, joiner.start())
    relayed = joiner.answered(answer_in(begun))
    own = PakeConfirm(relayed.confirmation, MALLORY.certificate)

    assert refusal_in(send(core, MALLORY, own)).code == "invitation_wrong"


def test_an_impostor_that_does_not_know_the_code_convinces_no_joiner() -> None:
    code = SpokenCode(7, "ocean-marble")
    joiner = spoken_joiner(code, BOB, inviter_=MALLORY)
    impostor = Invitations(MALLORY.twin_key, MALLORY.peer)
    created = impostor.create(COMMUNITY, addresses=[], now=NOW, lifetime_s=HOUR, is_spoken=True, seed=seed("impostor"))
    begun = send(impostor, BOB, replace_nameplate(joiner.start(), code_of(created).nameplate))
    confirm = joiner.answered(answer_in(begun))

    assert refusal_in(send(impostor, BOB, confirm)).code == "invitation_wrong"
    for confirmation in (b"", confirm.confirmation, b"\x00" * 32):
        with pytest.raises(PeerMisbehaved, match="does not know the code"):
            joiner.admitted(Admitted(COMMUNITY, "x", ALICES_CHAIN, MALLORY.certificate, [], confirmation), NOW)


def replace_nameplate(message: PakeStart, nameplate: int) -> PakeStart:
    return PakeStart(nameplate, message.message)


def test_a_confirmation_covers_the_certificate_and_the_community() -> None:
    core = inviter()
    code = code_of(invite(core))
    joiner = spoken_joiner(code)
    begun = send(core, BOB, joiner.start())
    answer = answer_in(begun)

    other = joiner.answered(PakeAnswer(answer.message, OTHER_COMMUNITY))

    assert refusal_in(send(core, BOB, other)).code == "invitation_wrong"


def test_an_answer_before_the_proof_is_not_believed() -> None:
    joiner = spoken_joiner(SpokenCode(7, "ocean-marble"))

    with pytest.raises(PeerMisbehaved, match="before the code was proven"):
        joiner.admitted(Admitted(COMMUNITY, "x", ALICES_CHAIN, ALICE.certificate, [], b"\x00" * 32), NOW)


@pytest.mark.parametrize(
    "message", [b"", b"A" * 33, b"B" + b"\x00" * 32, b"A" + b"\xff" * 32, b"A" + b"\x00" * 32, b"x" * 99]
)
def test_a_message_that_is_no_spake2_costs_a_guess_and_gives_nothing(message: bytes) -> None:
    core = inviter()
    created = invite(core)
    code = code_of(created)

    begun = send(core, BOB, PakeStart(code.nameplate, message))

    assert core.all()[0].guesses_left == GUESSES_MAX - 1
    if refused := [e for e in begun if isinstance(e, Reply) and isinstance(e.message, JoinRefused)]:
        assert refused[0].message.code == "join_broken"  # type: ignore[union-attr] # narrowed by the line above
    assert refusal_in(send(core, BOB, PakeConfirm(b"\x00" * 32, BOB.certificate))).code in (
        "join_broken",
        "invitation_wrong",
    )


def test_a_confirmation_out_of_the_blue_is_refused_and_counts_nothing() -> None:
    core = inviter()
    invite(core)

    assert refusal_in(send(core, BOB, PakeConfirm(b"", BOB.certificate))).code == "join_broken"
    assert core.all()[0].guesses_left == GUESSES_MAX


def test_a_proof_that_takes_too_long_or_loses_its_peer_is_over() -> None:
    core = inviter()
    code = code_of(invite(core))
    joiner = spoken_joiner(code)
    confirm = joiner.answered(answer_in(send(core, BOB, joiner.start())))
    assert refusal_in(send(core, BOB, confirm, NOW + SESSION_S_MAX)).code == "join_broken"

    joiner = spoken_joiner(code)
    confirm = joiner.answered(answer_in(send(core, BOB, joiner.start())))
    core.handle(PeerLeft(BOB.peer))
    assert refusal_in(send(core, BOB, confirm)).code == "join_broken"


@pytest.mark.parametrize("code", ["invitation_withdrawn", "invitation_used"])
def test_what_ends_the_invitation_ends_the_proof_under_way(code: str) -> None:
    core = inviter()
    created = invite(core)
    joiner = spoken_joiner(code_of(created))
    begun = send(core, BOB, joiner.start())

    if code == "invitation_withdrawn":
        core.withdraw(created.invitation.id, NOW)
    else:
        redeem(core, created, CAROL)

    assert refusal_in(send(core, BOB, joiner.answered(answer_in(begun)))).code == code


def test_a_number_that_nobody_gave_out_is_wrong_and_one_that_is_over_says_why() -> None:
    core = inviter()
    created = invite(core)
    code = code_of(created)
    unknown = replace(code, nameplate=code.nameplate % 99 + 1)

    assert refusal_in(prove(core, unknown)).code == "invitation_wrong"
    assert refusal_in(prove(core, code, now=NOW + HOUR)).code == "invitation_expired"
    core.withdraw(created.invitation.id, NOW)
    assert refusal_in(prove(core, code)).code == "invitation_withdrawn"


def test_the_words_are_checked_before_a_guess_is_spent() -> None:
    with pytest.raises(Usage) as caught:
        parse_code("7-ocaen-marble")
    assert "`ocean`" in caught.value.remedy
    for text in ("7-ocean-marble", " 7 Ocean Marble ", "7_OCEAN_marble", "7 - ocean - marble", "7, ocean, marble"):
        assert parse_code(text) == SpokenCode(7, "ocean-marble")


def test_open_codes_have_numbers_of_their_own() -> None:
    core = inviter()
    codes = [code_of(invite(core, name=number)) for number in range(OPEN_MAX)]

    assert len({code.nameplate for code in codes}) == OPEN_MAX
    with pytest.raises(Busy):
        invite(core, name="one more")
    assert len(core.spoken(NOW)) == OPEN_MAX
    assert core.spoken(NOW + HOUR) == []


def test_words_are_spread_over_the_whole_list() -> None:
    words = {word for number in range(3000) for word in new_secret(seed(number)).split("-")}
    assert len(words) > 1800


def test_what_is_long_over_is_forgotten_and_secrets_sooner() -> None:
    core = inviter()
    created = invite(core)

    assert [e.invitation.secret for e in core.handle(TimePassed(NOW + HOUR)) if isinstance(e, Save)] == [None]
    assert core.handle(TimePassed(NOW + HOUR)) == []
    assert core.handle(TimePassed(NOW + HOUR + KEPT_S_MAX)) == [Forget(created.invitation.id)]
    assert core.all() == []


def test_sessions_are_bounded() -> None:
    core = inviter()
    codes = [code_of(invite(core, name=number)) for number in range(8)]
    codes_of_many = [code for code in codes for _ in range(GUESSES_MAX)]
    outcomes = []
    for number, code in enumerate(codes_of_many):
        who = Somebody(f"joiner {number}")
        outcomes.append(send(core, who, spoken_joiner(code, who).start())[-1])

    answers = [e for e in outcomes if isinstance(e, Reply) and isinstance(e.message, PakeAnswer)]
    busy = [
        e for e in outcomes if isinstance(e, Reply) and isinstance(e.message, JoinRefused) and e.message.code == "busy"
    ]
    assert len(answers) == SESSIONS_MAX
    assert len(busy) == len(codes_of_many) - SESSIONS_MAX


@pytest.mark.parametrize("lifetime_s", [0.0, -1.0, 9.9, 31 * 86_400.0, float("nan"), float("inf")])
def test_a_lifetime_without_sense_is_a_usage_error(lifetime_s: float) -> None:
    with pytest.raises(Usage):
        inviter().create(COMMUNITY, addresses=[], now=NOW, lifetime_s=lifetime_s, is_spoken=False, seed=seed("x"))


def test_the_code_is_in_no_message() -> None:
    core = inviter()
    created = invite(core)
    code = code_of(created)
    joiner = spoken_joiner(code)
    start = joiner.start()
    answer = answer_in(send(core, BOB, start))
    confirm = joiner.answered(answer)

    for message in (start, answer, confirm):
        sent = encode(message)
        assert all(word.encode() not in sent for word in code.secret.split("-"))


def test_messages_come_through_the_wire_and_fit_its_limit() -> None:
    core = inviter()
    created = invite(core)
    joiner = spoken_joiner(code_of(created))
    start = joiner.start()
    messages: list[ToInviter] = [start, LineJoiner(line_of(created), BOB.twin, BOB.certificate).start()]
    answer = answer_in(send(core, BOB, start))
    messages.append(joiner.answered(answer))

    for message in messages:
        assert decode_union(encode(message), ToInviter, step="test") == message
        assert len(encode(message)) <= TO_INVITER_BYTES_MAX
    replies: list[FromInviter] = [
        answer,
        JoinRefused("busy", "x", "y"),
        admitted(admit_in(send(core, BOB, messages[-1]))),
    ]
    for reply in replies:
        assert decode_union(encode(reply), FromInviter, step="test") == reply
