"""Where this process may send requests, and the client that holds to it whatever an answer or a tool says."""

from __future__ import annotations

from services.shared.egress.addresses import (
    CheckedBackend,
    Resolver,
    TargetPolicy,
    TargetRefused,
    parse_allowed_targets,
    resolve,
)
from services.shared.egress.client import Answer, EgressClient, EgressFailed, Failure
from services.shared.egress.rules import EgressRule, host_matches
from services.shared.egress.urls import Destination, parse_destination

__all__ = [
    "Answer",
    "CheckedBackend",
    "Destination",
    "EgressClient",
    "EgressFailed",
    "EgressRule",
    "Failure",
    "Resolver",
    "TargetPolicy",
    "TargetRefused",
    "host_matches",
    "parse_allowed_targets",
    "parse_destination",
    "resolve",
]
