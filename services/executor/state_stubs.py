"""The state service as the public servicers and the worker hub call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import grpc.aio

from holdfast.api.state.v1.agent_store_service_pb2_grpc import AgentStoreServiceStub
from holdfast.api.state.v1.call_queue_service_pb2_grpc import CallQueueServiceStub
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import HousekeepingServiceStub
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub


@dataclass(frozen=True, slots=True)
class StateStubs:
    """The unary and reading calls; the journal's stream is the state client's."""

    journal: JournalServiceStub
    runs: RunStoreServiceStub
    agents: AgentStoreServiceStub
    calls: CallQueueServiceStub
    housekeeping: HousekeepingServiceStub

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> Self:
        """Returns the stubs on a channel that adds deadlines and the service's identity."""
        return cls(
            JournalServiceStub(channel),
            RunStoreServiceStub(channel),
            AgentStoreServiceStub(channel),
            CallQueueServiceStub(channel),
            HousekeepingServiceStub(channel),
        )
