"""The chain proves what it promises: whatever is done to a trail, the check of it says so, and says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit_chain import NO_HASH, ChainCheck, Flaw, Verdict, canonical, content_of, hash_of, line_of, parse_line

TIME = datetime(2026, 11, 28, 9, 30, 0, 120, UTC)


def trail(count: int, workspace_id: str = "w", before_chain: int = 0) -> list[str]:
    """Lines of an export."""
    lines, head = [], NO_HASH
    for seq in range(1, count + 1):
        record = {
            "workspace_id": workspace_id,
            "seq": seq,
            "record_id": f"r{seq}",
            "time": TIME,
            "actor": "key:a",
            "action": "credential.resolve",
            "outcome": "OK",
            "connection": "gîthub",
            "step": seq,
            "details": '{"scopes":"repo"}',
        }
        if seq <= before_chain:
            lines.append(line_of(content_of(record, None), None))
            continue
        content = content_of(record, head)
        head = hash_of(content)
        lines.append(line_of(content, head))
    return lines


def checked(lines: list[str], *, anchor: bytes | None = None, last_seq: int | None = None) -> Verdict:
    check = ChainCheck(first_seq=1, anchor=anchor)
    for line in lines:
        check.take_line(line)
    return check.finish(last_seq=last_seq)


def head_of(lines: list[str]) -> bytes:
    stored = parse_line(lines[-1])[1]
    assert stored is not None
    return stored


def edited(line: str, **changes: Any) -> str:
    """The record with other content and the hash that it had."""
    return json.dumps({**json.loads(line), **changes})


def rewritten(lines: list[str], index: int, **changes: Any) -> list[str]:
    """The trail with one record changed and every hash from there on made anew: what somebody with the database can
    do."""
    result, head = lines[:index], head_of(lines[:index]) if index else NO_HASH
    for line in lines[index:]:
        content, _ = parse_line(line)
        if len(result) == index:
            content |= changes
        content["previous_hash"] = head.hex()
        head = hash_of(content)
        result.append(line_of(content, head))
    return result


def test_the_form_is_the_one_that_is_documented() -> None:
    content, stored = parse_line(trail(1)[0])
    assert canonical(content) == (
        b'{"action":"credential.resolve","actor":"key:a","connection":"g\\u00eethub","details":"{\\"scopes\\":\\"repo\\"}",'
        b'"outcome":"OK","previous_hash":"' + b"0" * 64 + b'","record_id":"r1","seq":1,"step":1,'
        b'"time":"2026-11-28T09:30:00.000120Z","v":1,"workspace_id":"w"}'
    )
    assert stored is not None
    assert stored.hex() == "ad7ff519a0def5babba6b2e29002a722572cb760abceb5f4bedff2638475a51c"


def test_a_trail_as_it_was_written_is_intact() -> None:
    lines = trail(20)
    verdict = checked(lines, anchor=head_of(lines[:7]), last_seq=20)
    assert verdict.problem is None
    assert (verdict.records, verdict.last_seq, verdict.anchor_seq, verdict.before_chain) == (20, 20, 7, 0)
    assert verdict.head_hash == head_of(lines)


def test_records_from_before_the_chain_are_counted_and_not_vouched_for() -> None:
    verdict = checked(trail(9, before_chain=4))
    assert verdict.problem is None
    assert (verdict.records, verdict.before_chain) == (9, 4)


TAMPERINGS: dict[str, tuple[Callable[[list[str]], list[str]], Flaw, int]] = {
    "edit": (lambda lines: [*lines[:4], edited(lines[4], actor="key:b"), *lines[5:]], Flaw.EDITED, 5),
    "edit of what was unset": (lambda lines: [*lines[:4], edited(lines[4], tool="x"), *lines[5:]], Flaw.EDITED, 5),
    "edit of details": (lambda lines: [*lines[:4], edited(lines[4], details="{}"), *lines[5:]], Flaw.EDITED, 5),
    "removal": (lambda lines: [*lines[:4], *lines[5:]], Flaw.MISSING, 5),
    "removal of the first": (lambda lines: lines[1:], Flaw.MISSING, 1),
    "exchange of two": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], Flaw.MISSING, 5),
    "the same twice": (lambda lines: [*lines[:5], lines[4], *lines[5:]], Flaw.OUT_OF_ORDER, 5),
    "insertion": (lambda lines: [*lines[:4], *rewritten(lines, 4, actor="key:b")[4:5], *lines[5:]], Flaw.UNLINKED, 6),
    "renumbering": (lambda lines: [*lines[:4], edited(lines[5], seq=5), *lines[6:]], Flaw.EDITED, 5),
    "the hash taken away": (lambda lines: [*lines[:4], edited(lines[4], hash=None), *lines[5:]], Flaw.NOT_CHAINED, 5),
    "the beginning unchained": (
        lambda lines: [line_of(content_of(json.loads(line), None), None) for line in lines[:4]] + lines[4:],
        Flaw.UNLINKED,
        5,
    ),
    "a foreign record": (lambda lines: [*lines[:4], trail(5, "other")[4], *lines[5:]], Flaw.FOREIGN, 5),
    "an unknown field": (lambda lines: [*lines[:4], edited(lines[4], note="x"), *lines[5:]], Flaw.MALFORMED, 5),
    "a field twice": (lambda lines: [*lines[:4], lines[4][:-1] + ',"actor":"key:b"}', *lines[5:]], Flaw.MALFORMED, 5),
    "no JSON": (lambda lines: [*lines[:4], "{", *lines[5:]], Flaw.MALFORMED, 5),
    "truncation": (lambda lines: lines[:-3], Flaw.TRUNCATED, 8),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_where_it_begins(name: str) -> None:
    tamper, flaw, seq = TAMPERINGS[name]
    verdict = checked(tamper(trail(10)), last_seq=10)
    assert verdict.problem is not None
    assert (verdict.problem.flaw, verdict.problem.seq) == (flaw, seq)


def test_an_anchor_finds_what_was_cut_off_or_rewritten_as_a_whole() -> None:
    lines = trail(10)
    for forged in (lines[:-3], rewritten(lines, 4, actor="key:b")):
        assert checked(forged).problem is None
        verdict = checked(forged, anchor=head_of(lines))
        assert verdict.problem is not None
        assert verdict.problem.flaw is Flaw.ANCHOR_MISSING


@given(st.data())
def test_no_change_of_a_trail_up_to_its_anchor_goes_unnoticed(data: st.DataObject) -> None:
    lines = trail(8)
    anchor = head_of(lines)
    contents = [parse_line(line) for line in lines]
    match data.draw(st.sampled_from(("drop", "move", "edit", "rewrite"))):
        case "drop":
            del contents[data.draw(st.integers(0, 7))]
        case "move":
            moved = contents.pop(data.draw(st.integers(0, 7)))
            contents.insert(data.draw(st.integers(0, 7)), moved)
        case kind:
            index = data.draw(st.integers(0, 7))
            field = data.draw(st.sampled_from(("actor", "action", "outcome", "connection", "run_id", "host")))
            change = {field: data.draw(st.text(max_size=8))}
            if kind == "edit":
                contents[index] = ({**contents[index][0], **change}, contents[index][1])
            else:
                contents = [parse_line(line) for line in rewritten(lines, index, **change)]
    changed = [line_of(content, stored) for content, stored in contents]
    assert (checked(changed, anchor=anchor).problem is None) == (changed == lines)
