"""Whose turn it is: the round between workspaces, and the share of batch runs."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.state.turns import (
    BATCH,
    BATCH_SHARE,
    BEGINNING,
    CHILD,
    INTERACTIVE,
    Position,
    Tenant,
    Turn,
    lanes,
    share,
)

IDS = [str(UUID(int=number)) for number in range(1, 9)]

tenants = st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(0, 6)), min_size=1, max_size=len(IDS)).map(
    lambda given_: [Tenant(IDS[n], weight, room) for n, (weight, room) in enumerate(given_)]
)


def in_turn(all_tenants: list[Tenant], position: Position) -> list[Tenant]:
    """In the order in which the look finds them."""
    after = [one for one in all_tenants if one.workspace_id > position.after]
    return after + [one for one in all_tenants if one.workspace_id <= position.after]


@given(tenants, st.integers(1, 100))
def test_all_claims_are_given_as_far_as_there_is_room(given_tenants: list[Tenant], limit: int) -> None:
    quotas, _ = share(given_tenants, limit, BEGINNING)
    rooms = [limit if tenant.room is None else tenant.room for tenant in given_tenants]
    assert sum(quotas) == min(limit, sum(rooms))
    assert all(quota <= room for quota, room in zip(quotas, rooms, strict=True))


@given(tenants, st.lists(st.integers(1, 7), min_size=1, max_size=30))
def test_claims_in_pieces_are_divided_like_one_claim(given_tenants: list[Tenant], pieces: list[int]) -> None:
    endless = [Tenant(one.workspace_id, one.weight) for one in given_tenants]
    got: Counter[str] = Counter()
    position = BEGINNING
    for piece in pieces:
        order = in_turn(endless, position)
        quotas, position = share(order, piece, position)
        got.update({one.workspace_id: quota for one, quota in zip(order, quotas, strict=True)})
    quotas, _ = share(endless, sum(pieces), BEGINNING)
    assert [got[one.workspace_id] for one in endless] == quotas


@given(tenants, st.integers(1, 200))
def test_no_two_with_endless_work_differ_by_more_than_a_turn(given_tenants: list[Tenant], limit: int) -> None:
    endless = [Tenant(one.workspace_id, one.weight) for one in given_tenants]
    quotas, _ = share(endless, limit, BEGINNING)
    turns = [quota / one.weight for quota, one in zip(quotas, endless, strict=True)]
    assert max(turns) - min(turns) <= 1


def test_round_goes_on_behind_workspaces_without_room() -> None:
    full = [Tenant(IDS[0], room=0), Tenant(IDS[1], room=0)]
    assert share(full, 5, BEGINNING) == ([0, 0], Position(IDS[1]))


def test_turn_that_is_begun_goes_on() -> None:
    heavy, light = Tenant(IDS[0], weight=3), Tenant(IDS[1])
    quotas, position = share([heavy, light], 2, BEGINNING)
    assert (quotas, position) == ([2, 0], Position(IDS[0], 2))
    assert in_turn([heavy, light], position)[0] == heavy
    assert share([heavy, light], 2, position) == ([1, 1], Position(IDS[1]))


def test_lanes_stand_in_their_order_where_no_batch_run_waits() -> None:
    tenant = Tenant(IDS[0], first_lane=CHILD, last_lane=INTERACTIVE)
    assert lanes(tenant, 20, 0.99) == [Turn(IDS[0], CHILD, BATCH, 20)]


def test_batch_runs_alone_get_everything() -> None:
    assert lanes(Tenant(IDS[0], first_lane=BATCH, last_lane=BATCH), 20, 0.99) == [Turn(IDS[0], CHILD, BATCH, 20)]


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_batch_runs_get_their_share_beside_others(quota: int, draw: float) -> None:
    turns = lanes(Tenant(IDS[0], first_lane=CHILD, last_lane=BATCH), quota, draw)
    assert sum(turn.quota for turn in turns) == quota
    batch = sum(turn.quota for turn in turns if turn.first_lane == BATCH)
    assert quota * BATCH_SHARE - 1 < batch < quota * BATCH_SHARE + 1


def test_single_claims_give_batch_runs_their_share_on_average() -> None:
    tenant = Tenant(IDS[0], first_lane=INTERACTIVE, last_lane=BATCH)
    draws = [number / 1_000 for number in range(1_000)]
    batch = sum(lanes(tenant, 1, draw)[0].first_lane == BATCH for draw in draws)
    assert batch == 1_000 * BATCH_SHARE
