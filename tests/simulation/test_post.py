"""Letters between whole simulated peers: each read once and in order, whoever was up when, and by nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from croft.errors import CroftError, Refused
from croft.model.ids import PeerId
from croft.sim.world import Machine, World
from croft.twins.letter_messages import CALL_GIVE, CALL_OFFER, Given, Offered, Taken
from croft.twins.letter_store import Message
from croft.twins.letters import LIFETIME_S, Author, Body, Box, digest_of, sign_letter
from croft.twins.pen import Pen, Written
from croft.twins.post import SEALED, TEXT
from croft.wire.codec import decode, encode
from support.worlds import Play, add_device

SAVED_S = 10.0
"""Within such a time, what was heard of others is on disk."""
SECRET = "the key lies under the third flower pot"


async def write(world: World, author: str, to: str, text: str) -> Message:
    box = Box(world.community, world[to].twin)
    return await world[author].parts.post.send(box, Body(TEXT, text))


async def say_in(world: World, author: str, room: str, text: str) -> Message:
    return await world[author].parts.post.send(Box(world.community, "", room), Body(TEXT, text))


async def texts(machine: Machine) -> list[str]:
    return [message.text for message in await machine.parts.post.messages()]


async def know_each_other(world: World) -> None:
    """Everybody who is up has the card of everybody."""

    def strangers() -> str:
        for one in world.up():
            keys = one.parts.cards.reading_keys(world.community)
            if missing := [other.name for other in world.up() if other.peer not in keys]:
                return f"{one.name} has no card of {missing}"
        return ""

    await world.until(strangers, within_s=30)


async def village(world: World, count: int) -> None:
    await world.unite(count)
    await know_each_other(world)


async def until_read(world: World, name: str, expected: Sequence[str], within_s: float = 60) -> None:
    read: list[str] = []

    def missing() -> str:
        return "" if read == list(expected) else f"{name} read {read}, not {list(expected)}"

    started = world.now
    while missing():
        assert world.now - started < within_s, missing()
        read[:] = await texts(world[name])
        await asyncio.sleep(0.2)


def test_a_letter_reaches_its_reader_within_a_moment_and_its_author_hears_of_it(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 3)
        await write(world, "peer1", "peer2", "hello")
        await until_read(world, "peer2", ["hello"], within_s=3)
        [sent] = await world["peer1"].parts.post.messages()
        await until_read(world, "peer1", ["hello"])
        [message] = await world["peer2"].parts.post.messages()
        assert (message.author, message.kind, message.is_read) == (world["peer1"].twin, TEXT, False)
        assert sent.id == message.id and sent.is_read
        [sent] = await world["peer1"].parts.post.messages()
        assert sent.delivered_at is not None
        assert await texts(world["peer3"]) == []

    play(story)


def test_who_is_never_up_together_reads_what_others_kept_and_could_not_read(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 3)
        await world.crash("peer2", is_loud=True)
        await write(world, "peer1", "peer2", SECRET)
        await write(world, "peer1", "peer2", "and there is a second thing")
        keeper = world["peer3"]
        await world.until(lambda: "" if keeper.parts.post.kept_for_others() == 2 else "not kept", within_s=30)
        await world.crash("peer1")
        await world.start("peer2")
        await until_read(world, "peer2", [SECRET, "and there is a second thing"])
        assert await texts(keeper) == []
        dump = "\n".join(await keeper.parts.ports.database.run(lambda db: list(db.iterdump())))
        kept = await keeper.parts.ports.database.run(lambda db: db.execute("SELECT record FROM letter").fetchall())
        assert len(kept) == 2
        for place in (dump, repr(kept)):
            assert SECRET not in place and SECRET.encode().hex() not in place.lower()

    play(story)


def test_letters_are_read_once_and_in_order_over_restarts_and_a_network_that_loses(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 4)
        await asyncio.sleep(SAVED_S)
        expected = []
        for number in range(24):
            if number % 6 == 3:
                await world.crash("peer2", is_loud=True)
            if number % 6 == 5:
                await world.start("peer2")
            if number % 8 == 7:
                await world.restart("peer1")
            await write(world, "peer1", "peer2", f"number {number}")
            expected.append(f"number {number}")
        await until_read(world, "peer2", expected, within_s=180)
        await world.restart("peer2")
        await world.until(world.missing_link, within_s=60)
        assert await texts(world["peer2"]) == expected

    play(story, loss=0.02)


def test_rooms_that_were_cut_into_three_have_the_same_letters_afterwards(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 6)
        await say_in(world, "peer1", "garden", "all together")
        for name in world.machines:
            await until_read(world, name, ["all together"])
        world.partition(["peer1", "peer2"], ["peer3", "peer4"], ["peer5", "peer6"])
        for name in ("peer1", "peer3", "peer5"):
            await say_in(world, name, "garden", f"first of {name}")
            await say_in(world, name, "garden", f"second of {name}")
        await until_read(world, "peer2", ["all together", "first of peer1", "second of peer1"])
        world.heal()
        said = {f"{which} of {name}" for which in ("first", "second") for name in ("peer1", "peer3", "peer5")}
        read: dict[str, list[str]] = {}
        for _ in range(600):
            read = {name: await texts(machine) for name, machine in world.machines.items()}
            if all(set(each) == said | {"all together"} for each in read.values()):
                break
            await asyncio.sleep(0.5)
        for name, each in read.items():
            assert sorted(each) == sorted([*said, "all together"]), f"{name} read {each}"
            for author in ("peer1", "peer3", "peer5"):
                assert each.index(f"first of {author}") < each.index(f"second of {author}")

    play(story)


def test_delegates_keep_letters_before_others_do(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 8)
        delegates = [world["peer5"].peer, world["peer7"].peer]
        await world["peer2"].parts.cards.say("I mend radios", delegates)
        author = world["peer1"].parts
        await world.until(
            lambda: "" if author.cards.said(world["peer2"].twin).profile == "I mend radios" else "not heard",
            within_s=30,
        )
        await world.crash("peer2", is_loud=True)
        assert author.cards.said(world["peer2"].twin).delegates == tuple(delegates)
        await write(world, "peer1", "peer2", "hello")
        box = Box(world.community, world["peer2"].twin)
        await world.until(lambda: "" if len(author.post.keepers(box)) == 3 else "not kept", within_s=30)
        assert set(delegates) < set(author.post.keepers(box))

    play(story)


def test_forged_replayed_and_foreign_letters_are_refused(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 3)
        box = Box(world.community, world["peer2"].twin)
        await write(world, "peer1", "peer2", "hello")
        await until_read(world, "peer2", ["hello"])
        evil, honest = world["peer3"], world["peer1"]

        async def give(record: bytes) -> Taken:
            answer = await evil.parts.overlay.call(
                world["peer2"].peer, CALL_GIVE, encode(Given([record])), deadline_s=5
            )
            return decode(answer, Taken, step="test")

        def forged(author: Author, sequence: int, previous: bytes) -> Written:
            keys = {bytes.fromhex(p): k for p, k in evil.parts.cards.reading_keys(world.community).items()}
            pen = Pen(author, lambda size: bytes(size))
            [written] = pen.write(
                box, Body(TEXT, "send money"), keys, sequence=sequence, previous=previous, now=evil.clock.now()
            )
            return written

        [(kept,)] = await honest.parts.ports.database.run(lambda db: db.execute("SELECT record FROM letter").fetchall())
        assert (await give(kept)).refusal == ""  # a replay: known already, and read once
        own = honest.parts.overlay.own
        in_the_name_of_another = Author(evil.device, own.certificate, bytes.fromhex(honest.twin))
        one = forged(in_the_name_of_another, 2, digest_of(kept))
        with pytest.raises(CroftError, match="device of its owner"):
            await give(one.record)
        flipped = bytearray(kept)
        flipped[-20] ^= 1
        with pytest.raises(CroftError):
            await give(bytes(flipped))
        stranger = world.add("stranger")
        unknown = Author(stranger.device, evil.parts.overlay.own.certificate, bytes.fromhex(evil.twin))
        with pytest.raises(CroftError):
            await give(forged(unknown, 1, b"").record)
        assert await texts(world["peer2"]) == ["hello"]
        # A letter of a member, true in every part, but brought to be kept by somebody whom it does not concern.
        elsewhere = Box(world.community, world["peer1"].twin)
        letter = forged(Author(evil.device, evil.parts.overlay.own.certificate, bytes.fromhex(evil.twin)), 1, b"")
        carried = sign_letter(
            Author(evil.device, evil.parts.overlay.own.certificate, bytes.fromhex(evil.twin)), letter.letter
        )
        assert carried and elsewhere
        offered = Offered(*elsewhere, [(str(evil.peer), 1, 1 << 39)])
        answer = await world["peer1"].parts.overlay.call(world["peer2"].peer, CALL_OFFER, encode(offered), deadline_s=5)
        assert len(answer) < 100

    play(story)


def test_letters_past_their_time_go_everywhere_and_make_room(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 3)
        await world.crash("peer2", is_loud=True)
        await write(world, "peer1", "peer2", "hello")
        keeper = world["peer3"].parts.post
        await world.until(lambda: "" if keeper.kept_for_others() == 1 else "not kept", within_s=30)
        for machine in world.up():
            machine.clock.skew_s += LIFETIME_S
        await world.until(lambda: "" if not keeper.kept_for_others() else "still kept", within_s=4_000)
        count = "SELECT count(*) FROM letter"
        assert await world["peer3"].parts.ports.database.run(lambda db: db.execute(count).fetchone()) == (0,)
        assert await texts(world["peer1"]) == ["hello"]

    play(story)


def test_blocked_people_are_not_read_whoever_brings_their_letters(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 3)
        await world["peer2"].parts.address_book.block(world["peer1"].twin)
        await write(world, "peer1", "peer2", "let me in")
        await world.until(lambda: "" if world["peer3"].parts.post.kept_for_others() == 1 else "not kept", within_s=60)
        await write(world, "peer3", "peer2", "good morning")
        await until_read(world, "peer2", ["good morning"])
        assert await texts(world["peer2"]) == ["good morning"]

    play(story)


def test_all_devices_of_a_person_have_what_it_wrote_and_was_written(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await add_device(world, "phone", by="peer1")
        await world.until(world.disunity, within_s=60)
        await know_each_other(world)
        await write(world, "peer1", "peer2", "from the desk")
        await write(world, "phone", "peer2", "from the phone")
        await until_read(world, "peer1", ["from the desk", "from the phone"])
        await world.crash("phone", is_loud=True)
        await write(world, "peer2", "peer1", "an answer")
        await until_read(world, "peer1", ["from the desk", "from the phone", "an answer"])
        await world.start("phone")
        started = world.now
        while set(read := await texts(world["phone"])) != {"from the desk", "from the phone", "an answer"}:
            assert world.now - started < 60, f"the phone read {read}"
            await asyncio.sleep(0.2)

    play(story)


def test_a_device_without_a_key_says_so_and_reads_on(play: Play) -> None:
    async def story(world: World) -> None:
        await village(world, 2)
        await write(world, "peer1", "peer2", "before the phone")
        await until_read(world, "peer2", ["before the phone"])
        await add_device(world, "phone", by="peer2")
        await world.until(world.disunity, within_s=60)
        await know_each_other(world)
        await write(world, "peer1", "peer2", "with the phone")
        await until_read(world, "phone", ["", "with the phone"])
        kinds = [message.kind for message in await world["phone"].parts.post.messages()]
        assert kinds == [SEALED, TEXT]

    play(story)


def test_nobody_who_never_said_how_is_written_to(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        post = world["peer1"].parts.post
        nobody = PeerId("0" * 64)
        with pytest.raises(Refused, match="how to write to it"):
            await post.send(Box(world.community, nobody), Body(TEXT, "hello"))

    play(story)
