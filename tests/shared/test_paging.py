"""Page sizes and page tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidArgument, Reason
from services.shared.paging import decode_page_token, encode_page_token, page_key, page_size

KEY = page_key("a-service-token-of-enough-characters")
LIST = ("ListRuns", "w1", "state=RUNNING")


@pytest.mark.parametrize(("requested", "expected"), [(0, 50), (1, 1), (200, 200), (201, 200)])
def test_page_sizes_stay_within_the_limits(requested: int, expected: int) -> None:
    assert page_size(requested) == expected


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        page_size(-1)
    assert caught.value.field_violations[0].field == "page_size"


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text()))
def test_a_token_gives_back_its_position(position: dict[str, str | int | None]) -> None:
    assert decode_page_token(KEY, encode_page_token(KEY, position, bound_to=LIST), bound_to=LIST) == position


def test_no_token_is_the_first_page() -> None:
    assert decode_page_token(KEY, "", bound_to=LIST) is None


@pytest.mark.parametrize(
    "other",
    [("ListRuns", "w2", "state=RUNNING"), ("ListRuns", "w1", ""), ("ListAgents", "w1", "state=RUNNING"),
     ("ListRunsw1", "", "state=RUNNING")],
)  # fmt: skip
def test_a_token_of_another_list_is_refused(other: tuple[str, ...]) -> None:
    token = encode_page_token(KEY, {"id": 1}, bound_to=LIST)
    with pytest.raises(InvalidArgument) as caught:
        decode_page_token(KEY, token, bound_to=other)
    assert caught.value.reason == Reason.INVALID_PAGE_TOKEN


@given(st.text() | st.binary().map(lambda raw: raw.hex()))
def test_what_was_not_made_here_is_refused(token: str) -> None:
    if token:
        with pytest.raises(InvalidArgument, match="page token"):
            decode_page_token(KEY, token, bound_to=LIST)


def test_a_changed_token_and_a_foreign_key_are_refused() -> None:
    token = encode_page_token(KEY, {"id": 1}, bound_to=LIST)
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), token + "AAAA", token * 500):
        with pytest.raises(InvalidArgument):
            decode_page_token(KEY, wrong, bound_to=LIST)
    with pytest.raises(InvalidArgument):
        decode_page_token(page_key("x" * 32), token, bound_to=LIST)
