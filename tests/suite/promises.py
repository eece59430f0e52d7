"""What Holdfast promises, by id. A test names what it holds with `@pytest.mark.promise("P2")`; see test_promises.py."""

from __future__ import annotations

from typing import Final

PROMISES: Final = {
    "P1": "A call that starts or changes something answers only after the change is committed.",
    "P2": "The executor calls state before and after every step; one whose result is stored is never executed again.",
    "P3": "A run is advanced only by the holder of its current lease epoch; a stale writer is refused by the write.",
    "P4": "No user code is replayed: recovery reads the journal and takes the next transition.",
    "P5": "A side effect that may or may not have happened is never silently repeated.",
    "P6": "A run that waits holds no worker, lease, connection, task or memory: it is rows.",
    "P7": "Every tool call that a model makes ends in exactly one result message.",
    "P8": "No credential is ever in the journal, a prompt, a trace, a log line, an error detail or a checkpoint.",
    "P9": "The trace is derived from the journal: one trace a run, without holes or doubles.",
    "P10": "What a call may use is reserved before it; one that would exceed the budget of its tree is not made.",
    "P11": "Nothing of one workspace can be read, guessed or influenced from another.",
    "P12": "A client that goes away changes nothing; it re-attaches and misses and repeats no event.",
}
