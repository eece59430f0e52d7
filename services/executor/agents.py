"""What an agent's definition has to be before it becomes a revision, and the hash that names the revision.

Everything wrong is said at once, each with the path of its field as it stands in the YAML.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.struct_pb2 import Struct, Value

from holdfast.api.common.v1 import agent_pb2
from holdfast.errors import FieldViolation, InvalidArgument, Reason
from services.executor.approval_conditions import condition_problem
from services.executor.budget_rules import budget_problems
from services.executor.tools.builtin import ASK_USER, BUILTINS, SLEEP_UNTIL
from services.executor.tools.http import METHODS
from services.executor.tools.schema import canonical_json, schema_problems, struct_to_dict
from services.executor.tools.url_template import UrlTemplate

MAX_SPEC_BYTES: Final = 512 * 1024
MAX_TOOLS: Final = 128
MAX_SHOWN_BYTES: Final = 1024 * 1024
"""Largest cap of a tool's output: what a model is shown travels and is stored as one message."""
MAX_STEPS_LIMIT: Final = 100_000
MAX_CONCURRENT_RUNS_LIMIT: Final = 100_000
MAX_DEPTH_LIMIT: Final = 20
MAX_CHILDREN_LIMIT: Final = 1_000
LONGEST_DURATION_SECONDS: Final = 365 * 24 * 3600
PROVIDERS: Final = ("anthropic", "openai", "scripted")

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
LABEL_PATTERN: Final = NAME_PATTERN
LATEST: Final = "latest"
"""The label that only applying a definition moves."""

MAX_SCOPES: Final = 100

_TOOL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]{0,4096}")
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 §3.3
_REVISION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SCRIPT_RESULT: Final = re.compile(r"\{\{\s*result\.([^}]*?)\s*\}\}")
# What the runtime sets itself, and what would put a credential into a readable definition.
_RUNTIME_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CREDENTIAL_HEADERS: Final = frozenset(
    {"authorization", "cookie", "proxy-authorization", "x-api-key", "api-key", "x-auth-token"}
)


def validate_agent(spec: agent_pb2.AgentSpec, *, providers: Collection[str] = PROVIDERS) -> None:
    """Checks a definition.

    Args:
        spec: The definition.
        providers: The model providers that exist.

    Raises:
        InvalidArgument: With every wrong field. The reason is TOOL_UNKNOWN or MODEL_UNKNOWN where that is all that is
            wrong, MESSAGE_TOO_LARGE for more than 512 KiB.
    """
    size = spec.ByteSize()
    if size > MAX_SPEC_BYTES:
        raise InvalidArgument(
            f"the definition has {size} bytes; the limit is {MAX_SPEC_BYTES}",
            reason=Reason.MESSAGE_TOO_LARGE,
            metadata={"limit_bytes": str(MAX_SPEC_BYTES), "message_bytes": str(size)},
        )
    found = _Validation(spec, providers).violations()
    if not found:
        return
    reasons = {reason for reason, _ in found}
    violations = [violation for _, violation in found]
    listed = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:10])
    more = f"; and {len(violations) - 10} more" if len(violations) > 10 else ""
    raise InvalidArgument(
        f"the agent's definition is not valid: {listed}{more}",
        reason=reasons.pop() if len(reasons) == 1 else Reason.INVALID_FIELD,
        field_violations=violations,
    )


def revision_id(spec: agent_pb2.AgentSpec) -> str:
    """Returns the id of a valid definition's revision: lower-case hex SHA-256 of its canonical JSON.

    JSON and not the serialized message: equal content is the same revision under every version of protobuf.
    """
    return hashlib.sha256(canonical_form(spec).encode()).hexdigest()


def canonical_form(spec: agent_pb2.AgentSpec) -> str:
    """Returns the definition as JSON in the one form that is hashed: proto field names, sorted, defaults left out."""
    return canonical_json(json_format.MessageToDict(spec, preserving_proto_field_name=True))


class _Validation:
    """One walk through a definition."""

    def __init__(self, spec: agent_pb2.AgentSpec, providers: Collection[str]) -> None:
        self._spec = spec
        self._providers = providers
        self._found: list[tuple[Reason, FieldViolation]] = []
        self._tools = {tool.name for tool in spec.tools}

    def violations(self) -> list[tuple[Reason, FieldViolation]]:
        """Returns everything that is wrong, in the order of the definition."""
        spec = self._spec
        if NAME_PATTERN.fullmatch(spec.name) is None:
            self._add("name", _needed(spec.name, "a name of the form [a-z][a-z0-9-]{0,62}"))
        if len(spec.description) > 1_000:
            self._add("description", "expected at most 1,000 characters")
        if spec.HasField("model"):
            self._check_model(spec.model)
        else:
            self._add("model", "is required")
        if len(spec.tools) > MAX_TOOLS:
            self._add("tools", f"expected at most {MAX_TOOLS} tools")
        seen: dict[str, int] = {}
        for index, tool in enumerate(spec.tools[:MAX_TOOLS]):
            path = f"tools[{index}]"
            if _TOOL_NAME.fullmatch(tool.name) is None:
                self._add(f"{path}.name", _needed(tool.name, "a name of the form [a-zA-Z_][a-zA-Z0-9_-]{0,63}"))
            elif tool.name in seen:
                self._add(f"{path}.name", f"tools[{seen[tool.name]}] has the name {tool.name!r} already")
            seen.setdefault(tool.name, index)
            self._check_tool(path, tool)
        if not 0 <= spec.limits.max_steps <= MAX_STEPS_LIMIT:
            self._add("limits.max_steps", f"expected 0 (which means 100) to {MAX_STEPS_LIMIT}")
        if not 0 <= spec.limits.max_concurrent_runs <= MAX_CONCURRENT_RUNS_LIMIT:
            self._add("limits.max_concurrent_runs", f"expected 0 (no limit) to {MAX_CONCURRENT_RUNS_LIMIT}")
        self._check_enum("limits.on_budget_exceeded", spec.limits.on_budget_exceeded, agent_pb2.BudgetPolicy)
        if spec.limits.HasField("cheaper_model"):
            self._check_model(spec.limits.cheaper_model, "limits.cheaper_model")
        for path, problem in budget_problems(spec):
            self._add(path, problem)
        if not 0 <= spec.limits.max_depth <= MAX_DEPTH_LIMIT:
            self._add("limits.max_depth", f"expected 0 (which means 5) to {MAX_DEPTH_LIMIT}")
        if not 0 <= spec.limits.max_children <= MAX_CHILDREN_LIMIT:
            self._add("limits.max_children", f"expected 0 (which means 50) to {MAX_CHILDREN_LIMIT}")
        return self._found

    # --- the model ----------------------------------------------------------------------------------------------

    def _check_model(self, model: agent_pb2.ModelSpec, path: str = "model") -> None:
        if model.provider not in self._providers:
            self._add(
                f"{path}.provider",
                _needed(model.provider, f"one of {', '.join(sorted(self._providers))}"),
                reason=Reason.MODEL_UNKNOWN if model.provider else Reason.INVALID_FIELD,
            )
        if len(model.name) > 256:
            self._add(f"{path}.name", "expected at most 256 characters")
        if model.connection and NAME_PATTERN.fullmatch(model.connection) is None:
            self._add(f"{path}.connection", "expected a name of the form [a-z][a-z0-9-]{0,62}")
        if model.provider == "scripted":
            if not model.script.turns:
                self._add(f"{path}.script.turns", "expected at least one turn")
        else:
            if not model.name.strip():
                self._add(f"{path}.name", "is required")
            if model.HasField("script"):
                self._add(f"{path}.script", "only the provider `scripted` plays a script")
        for index, turn in enumerate(model.script.turns):
            self._check_turn(f"{path}.script.turns[{index}]", turn)
        self._check_parameters(f"{path}.parameters", model.parameters)
        self._check_duration(f"{path}.timeout", model, "timeout")
        self._check_retry(f"{path}.retry", model.retry)

    def _check_turn(self, path: str, turn: agent_pb2.ScriptTurn) -> None:
        for name in _SCRIPT_RESULT.findall(turn.text):
            if name not in self._tools:
                self._add_unknown_tool(f"{path}.text", name)
        for index, call in enumerate(turn.tool_calls):
            if call.tool not in self._tools:
                self._add_unknown_tool(f"{path}.tool_calls[{index}].tool", call.tool)
            self._check_struct(f"{path}.tool_calls[{index}].arguments", call.arguments)
        self._check_duration(f"{path}.delay", turn, "delay", at_least_zero=True)

    def _check_parameters(self, path: str, parameters: agent_pb2.ModelParameters) -> None:
        if parameters.HasField("temperature") and not 0 <= parameters.temperature <= 2:
            self._add(f"{path}.temperature", "expected 0 to 2")
        if parameters.HasField("top_p") and not 0 < parameters.top_p <= 1:
            self._add(f"{path}.top_p", "expected more than 0, at most 1")
        if parameters.HasField("max_output_tokens") and parameters.max_output_tokens < 1:
            self._add(f"{path}.max_output_tokens", "expected 1 or more")
        if len(parameters.stop_sequences) > 16:
            self._add(f"{path}.stop_sequences", "expected at most 16")
        for index, sequence in enumerate(parameters.stop_sequences):
            if not sequence:
                self._add(f"{path}.stop_sequences[{index}]", "may not be empty")
        if len(parameters.reasoning_effort) > 64:
            self._add(f"{path}.reasoning_effort", "expected at most 64 characters")

    def _check_retry(self, path: str, retry: agent_pb2.RetryPolicy) -> None:
        if not 0 <= retry.max_attempts <= 1_000:
            self._add(f"{path}.max_attempts", "expected 0 (which means 4) to 1,000")
        if retry.multiplier != 0 and not 1 <= retry.multiplier <= 100:
            self._add(f"{path}.multiplier", "expected 0 (which means 2), or 1 to 100")
        self._check_duration(f"{path}.initial_interval", retry, "initial_interval", at_least_zero=True)
        self._check_duration(f"{path}.max_interval", retry, "max_interval", at_least_zero=True)
        if retry.HasField("initial_interval") and retry.HasField("max_interval"):
            if _seconds(retry.max_interval) < _seconds(retry.initial_interval):
                self._add(f"{path}.max_interval", "expected at least initial_interval")

    # --- a tool -------------------------------------------------------------------------------------------------

    def _check_tool(self, path: str, tool: agent_pb2.ToolSpec) -> None:
        self._check_schema(f"{path}.input_schema", tool, "input_schema", of_arguments=True)
        self._check_schema(f"{path}.output_schema", tool, "output_schema", of_arguments=False)
        self._check_enum(f"{path}.effect", tool.effect, agent_pb2.EffectClass)
        self._check_enum(f"{path}.in_doubt", tool.in_doubt, agent_pb2.InDoubtPolicy)
        for name in ("timeout", "start_timeout", "heartbeat_timeout"):
            self._check_duration(f"{path}.{name}", tool, name)
        self._check_retry(f"{path}.retry", tool.retry)
        if not 0 <= tool.max_output_bytes <= MAX_SHOWN_BYTES:
            self._add(f"{path}.max_output_bytes", f"expected 0 (which means 32,768) to {MAX_SHOWN_BYTES}")
        if tool.HasField("auth"):
            self._check_auth(f"{path}.auth", tool)
        if tool.HasField("approval"):
            self._check_approval(f"{path}.approval", tool)
        match tool.WhichOneof("kind"):
            case "http":
                self._check_http(f"{path}.http", tool)
            case "builtin":
                self._check_builtin(path, tool)
            case "agent":
                self._check_agent(path, tool)
            case None:
                self._add(path, "expected one of worker, http, builtin, agent")

    def _check_auth(self, path: str, tool: agent_pb2.ToolSpec) -> None:
        if tool.WhichOneof("kind") == "builtin":
            self._add(path, "expected none: what is part of the runtime calls nobody else")
        if tool.WhichOneof("kind") == "agent":
            self._add(path, "expected none: what the other agent's tools use, they say themselves")
        if not NAME_PATTERN.fullmatch(tool.auth.connection):
            self._add(f"{path}.connection", _needed(tool.auth.connection, "a name of the form [a-z][a-z0-9-]{0,62}"))
        if len(tool.auth.scopes) > MAX_SCOPES:
            self._add(f"{path}.scopes", f"expected at most {MAX_SCOPES}")
        for index, scope in enumerate(tool.auth.scopes):
            if not _SCOPE.fullmatch(scope):
                self._add(f"{path}.scopes[{index}]", "expected a permission of the provider, without spaces (RFC 6749)")

    def _check_approval(self, path: str, tool: agent_pb2.ToolSpec) -> None:
        if tool.WhichOneof("kind") == "builtin" and tool.builtin.name in (ASK_USER, SLEEP_UNTIL):
            self._add(path, f"expected none: {tool.builtin.name} does nothing that a person could approve")
        match tool.approval.WhichOneof("when"):
            case "condition":
                problem = condition_problem(tool.approval.condition)
                if problem:
                    self._add(f"{path}.condition", problem)
            case None:
                self._add(path, "expected always or condition")
        self._check_duration(f"{path}.expire_after", tool.approval, "expire_after")

    def _check_http(self, path: str, tool: agent_pb2.ToolSpec) -> None:
        http = tool.http
        if http.method and http.method not in METHODS:
            self._add(f"{path}.method", f"expected one of {', '.join(METHODS)}, in capitals")
        in_address: frozenset[str] = frozenset()
        if not http.url:
            self._add(f"{path}.url", "is required")
        else:
            try:
                in_address = UrlTemplate.parse(http.url).names
            except ValueError as error:
                self._add(f"{path}.url", str(error))
        properties = _declared_properties(tool)
        for name in sorted(in_address):
            if properties is not None and name not in properties:
                self._add(f"{path}.url", f"{{{name}}} is no property of input_schema")
        for index, name in enumerate(http.query):
            if name in in_address:
                self._add(f"{path}.query[{index}]", f"{name!r} is in the address already")
            elif name in http.query[:index]:
                self._add(f"{path}.query[{index}]", f"{name!r} stands here twice")
            elif not name or (properties is not None and name not in properties):
                self._add(f"{path}.query[{index}]", f"{name!r} is no property of input_schema")
        for name in sorted(http.headers):
            self._check_header(f"{path}.headers[{name[:64]}]", name, http.headers[name])

    def _check_header(self, path: str, name: str, value: str) -> None:
        if _HEADER_NAME.fullmatch(name) is None:
            self._add(path, "is not the name of a header")
        elif name.lower() in _RUNTIME_HEADERS:
            self._add(path, "is set by the runtime")
        elif name.lower() in _CREDENTIAL_HEADERS:
            self._add(path, "would be a credential in a definition that everybody in the workspace can read")
        if _HEADER_VALUE.fullmatch(value) is None:
            self._add(path, "expected a value of at most 4,096 printable ASCII characters")

    def _check_builtin(self, path: str, tool: agent_pb2.ToolSpec) -> None:
        name = tool.builtin.name
        builtin = BUILTINS.get(name)
        if builtin is None:
            self._add(
                f"{path}.builtin.name",
                _needed(name, f"one of {', '.join(sorted(BUILTINS))}"),
                reason=Reason.TOOL_UNKNOWN if name else Reason.INVALID_FIELD,
            )
        elif builtin.input_schema is not None and tool.HasField("input_schema"):
            self._add(f"{path}.input_schema", f"the arguments of {name} are the runtime's own; leave it out")

    def _check_agent(self, path: str, tool: agent_pb2.ToolSpec) -> None:
        if NAME_PATTERN.fullmatch(tool.agent.agent) is None:
            self._add(f"{path}.agent.agent", _needed(tool.agent.agent, "a name of the form [a-z][a-z0-9-]{0,62}"))
        if tool.agent.revision and _REVISION.fullmatch(tool.agent.revision) is None:
            self._add(f"{path}.agent.revision", "expected a label, or the id of a revision")
        # A child's end is always known, and nobody has to take it first.
        for name in ("start_timeout", "heartbeat_timeout"):
            if tool.HasField(name):
                self._add(f"{path}.{name}", "has no meaning for an agent; leave it out")
        for name in ("effect", "in_doubt"):
            if getattr(tool, name):
                self._add(f"{path}.{name}", "has no meaning for an agent; leave it out")

    # --- parts --------------------------------------------------------------------------------------------------

    def _check_schema(self, path: str, tool: agent_pb2.ToolSpec, name: str, *, of_arguments: bool) -> None:
        schema: Struct = getattr(tool, name)
        before = len(self._found)
        self._check_struct(path, schema)
        if len(self._found) == before:
            for problem in schema_problems(struct_to_dict(schema), of_arguments=of_arguments):
                self._add(f"{path}{problem.path}", problem.description)

    def _check_struct(self, path: str, struct: Struct) -> None:
        for name in sorted(struct.fields):
            self._check_value(f"{path}.{name}", struct.fields[name])

    def _check_value(self, path: str, value: Value) -> None:
        match value.WhichOneof("kind"):
            case "number_value":
                if not math.isfinite(value.number_value):
                    self._add(path, "expected a finite number")
            case "struct_value":
                self._check_struct(path, value.struct_value)
            case "list_value":
                for index, item in enumerate(value.list_value.values):
                    self._check_value(f"{path}[{index}]", item)
            case None:
                self._add(path, "a value without a kind")

    def _check_enum(self, path: str, value: int, enum: EnumTypeWrapper) -> None:
        if value not in enum.values():
            self._add(path, f"expected one of {', '.join(enum.keys()[1:])}")

    def _check_duration(self, path: str, holder: object, name: str, *, at_least_zero: bool = False) -> None:
        has: Callable[[str], bool] = holder.HasField  # type: ignore[attr-defined]
        if not has(name):
            return
        duration: Duration = getattr(holder, name)
        seconds = _seconds(duration)
        if not 0 <= duration.nanos < 1_000_000_000 or not 0 <= seconds <= LONGEST_DURATION_SECONDS:
            self._add(path, "expected a duration such as 30s, of at most 365 days")
        elif seconds == 0 and not at_least_zero:
            self._add(path, "expected more than 0 s; leave it out for the default")

    def _add_unknown_tool(self, path: str, name: str) -> None:
        listed = _listed(self._tools)
        self._add(path, f"the agent has no tool {name[:64]!r}; it has {listed}", reason=Reason.TOOL_UNKNOWN)

    def _add(self, path: str, description: str, *, reason: Reason = Reason.INVALID_FIELD) -> None:
        self._found.append((reason, FieldViolation(path, description)))


def _needed(value: str, expected: str) -> str:
    return f"expected {expected}, got {value[:64]!r}" if value else f"is required: {expected}"


def _listed(names: Iterable[str]) -> str:
    known: Sequence[str] = sorted(name for name in names if name)
    return ", ".join(known[:20]) or "none"


def _seconds(duration: Duration) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9


def _declared_properties(tool: agent_pb2.ToolSpec) -> set[str] | None:
    """Returns the names of the arguments, or None where the schema does not list them."""
    properties = tool.input_schema.fields.get("properties")
    if properties is None or properties.WhichOneof("kind") != "struct_value":
        return None
    return set(properties.struct_value.fields)
