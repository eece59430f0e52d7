"""What of a run's budget is left, for whoever asks: by the same reading of the journal as the planner's."""

from __future__ import annotations

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from services.shared.channels import calling
from services.shared.run_budgets import ledger_of

_DEADLINE_SECONDS = 60.0


async def read_budget(journal: JournalServiceStub, workspace_id: str, run_id: str) -> list[run_pb2.BudgetLine]:
    """Returns a line for each limit that a run has; none when nothing is limited.

    Raises:
        NotFound: RUN_NOT_FOUND.
    """
    request = journal_pb2.ReadJournalRequest(workspace_id=workspace_id, run_id=run_id)
    ledger = None
    with calling("state"):
        async for page in journal.ReadJournal(request, timeout=_DEADLINE_SECONDS):
            for event in page.events:
                for change in event.changes:
                    kind = change.WhichOneof("kind") or ""
                    if ledger is not None:
                        ledger.take(kind, change)
                    elif kind == "run_created" and (ledger := ledger_of(change.run_created)) is None:
                        return []
    return ledger.lines() if ledger is not None else []
