"""Whatever peers do, and in whatever order: a stripe counts only with enough shares, and is read while k are left."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from croft.model.ids import PeerId
from croft.storage import download, upload
from croft.storage.placement import Layout, Place

LAYOUTS = st.sampled_from([Layout(1, 1), Layout(1, 3), Layout(2, 4), Layout(3, 6), Layout(4, 8)])


@settings(deadline=None)
@given(LAYOUTS, st.integers(0, 6), st.floats(0, 1), st.randoms(use_true_random=False))
def test_a_stripe_counts_once_enough_owners_have_a_share_and_never_before(
    layout: Layout, spare: int, failing: float, chance: Random
) -> None:
    places = [Place(PeerId(f"p{i}"), f"p{i}", f"d{i % (layout.n + 2)}", 1.0) for i in range(layout.n + spare)]
    core = upload.Upload(layout, places)
    waiting = list(core.start())
    stored: dict[int, Place] = {}
    committed_with = None
    ends: list[upload.Effect] = []
    while waiting:
        effect = waiting.pop(chance.randrange(len(waiting)))
        match effect:
            case upload.Send(index, place):
                if chance.random() < failing:
                    waiting += core.handle(upload.NotStored(index, "no"))
                else:
                    stored[index] = place
                    waiting += core.handle(upload.Stored(index))
            case upload.Committed():
                committed_with = len(stored)
            case _:
                ends.append(effect)

    assert len(ends) == 1, "it ends, once"
    assert len({place.domain for place in stored.values()}) == len(stored), "each owner once"
    needed = layout.k + upload.margin(layout)
    if isinstance(ends[0], upload.Finished):
        assert committed_with is not None and committed_with >= needed
        assert set(ends[0].missing) == set(range(layout.n)) - set(stored)
        assert all(core.holders[index] == place.peer for index, place in stored.items())
    else:
        assert len(stored) < needed and committed_with is None


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 5), st.data())
def test_a_stripe_is_read_exactly_while_k_good_shares_are_anywhere(k: int, extra: int, data: st.DataObject) -> None:
    n = k + extra
    peers = [PeerId(f"p{i}") for i in range(n + 2)]
    good = {i: set(data.draw(st.lists(st.sampled_from(peers), max_size=3))) for i in range(n)}
    hints = [data.draw(st.lists(st.sampled_from(peers), max_size=2, unique=True)) for _ in range(n)]
    cost = {peer: data.draw(st.floats(0, 2)) for peer in peers}
    core = download.Download(k, hints, cost)
    waiting = list(core.start())
    asked: list[tuple[int, PeerId]] = []
    ends: list[download.Effect] = []
    while waiting:
        if data.draw(st.booleans()):
            waiting += core.handle(download.Slow())
        effect = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        match effect:
            case download.Fetch(index, peer):
                asked.append((index, peer))
                arrived = peer in good[index]
                event = download.Arrived(index) if arrived else download.NotArrived(index, peer, f"{peer}: bad")
                waiting += core.handle(event)
            case download.Locate():
                waiting += core.handle(download.Located({i: sorted(where) for i, where in good.items()}))
            case _:
                ends.append(effect)

    assert len(ends) == 1, "it ends, once"
    assert len(set(asked)) == len(asked), "nobody is asked for the same twice"
    available = sum(bool(where) for where in good.values())
    if available >= k:
        assert isinstance(ends[0], download.Complete) and len(ends[0].have) == k
    else:
        assert isinstance(ends[0], download.Lost) and ends[0].have == available
