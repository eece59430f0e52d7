"""`@tool`: a Python function as a tool of agents, with its schema, its effect class and the context of each call."""

from __future__ import annotations

import functools
import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, TypeVar, overload

from holdfast.schema import JsonSchema, Mismatch, decode_arguments, read_signature

if TYPE_CHECKING:
    import concurrent.futures

    from holdfast.api.common.v1.agent_pb2 import ToolSpec
    from holdfast.api.executor.v1.tool_worker_service_pb2 import ServedTool
    from holdfast.credential import Credential

P = ParamSpec("P")
R = TypeVar("R")

Effect = Literal["read_only", "idempotent", "at_most_once"]

EFFECTS: Final = ("read_only", "idempotent", "at_most_once")
NAME_PATTERN: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
MAX_HEARTBEAT_DETAILS_BYTES: Final = 4096


SIGN_IN_REASONS: Final = (
    "CONNECTION_NOT_FOUND",
    "CONNECTION_NEEDS_REAUTH",
    "SCOPE_INSUFFICIENT",
    "CREDENTIAL_REJECTED",
)
"""Why there is no credential when a person can do something about it."""

# Nothing was sent.
_AWAY: Final = (
    "TOOL_UNREACHABLE",
    "AUTH_UNAVAILABLE",
    "STATE_UNAVAILABLE",
    "STORAGE_UNAVAILABLE",
    "CREDENTIAL_UNAVAILABLE",
)
# It was sent, and nobody knows what came of it.
_UNKNOWN: Final = ("TOOL_CONNECTION_BROKEN", "CALL_TIMEOUT", "TOOL_ANSWERED_ERROR")


class ToolError(Exception):
    """Raised by a tool to report a failure to the model, with what may be done about it.

    Args:
        message: What went wrong, for the model and for people. Never a credential.
        retryable: Trying again may help.
        outcome_unknown: The effect may have happened all the same; the call becomes in doubt.
    """

    def __init__(self, message: str, *, retryable: bool = False, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable
        self.outcome_unknown = outcome_unknown


class SignInNeeded(ToolError):
    """Raised by `ToolContext.credential`, and by tools themselves: the call lacks a sign-in and has had no effect.

    The run waits until the account is connected, and the call is made again. A tool that has had an effect before must
    catch it and raise another `ToolError`.

    Args:
        message: What is missing, for people.
    """

    def __init__(self, message: str = "a sign-in is missing") -> None:
        super().__init__(message)


class ToolContext:
    """What a tool may know and say about the call it serves. A parameter annotated with this class receives it.

    It may be used from any thread.

    Attributes:
        idempotency_key: The same for every attempt of this call, different for every other call.
        run_id: The run.
        step: The step of the run.
        attempt: The attempt, from 1.
        agent: Name of the agent.
        user_id: On whose behalf; may be empty.
        last_heartbeat_details: What the attempt that was lost before this one said last; empty for the first.
        traceparent: W3C trace context for the tool's own spans; may be empty.
        egress_url: Where requests of this call are taken that carry the credential of the tool's connection:
            `{egress_url}/https/api.example.com/v1/…`. Secret; empty when the executor has no egress proxy.
    """

    def __init__(
        self,
        *,
        idempotency_key: str,
        run_id: str = "",
        step: int = 0,
        attempt: int = 1,
        agent: str = "",
        user_id: str = "",
        last_heartbeat_details: str = "",
        traceparent: str = "",
        egress_url: str = "",
        on_heartbeat: Callable[[str], None] | None = None,
        on_credential: Callable[[str], concurrent.futures.Future[Credential]] | None = None,
    ) -> None:
        self.idempotency_key = idempotency_key
        self.run_id = run_id
        self.step = step
        self.attempt = attempt
        self.agent = agent
        self.user_id = user_id
        self.last_heartbeat_details = last_heartbeat_details
        self.traceparent = traceparent
        self.egress_url = egress_url
        self._on_heartbeat = on_heartbeat
        self._on_credential = on_credential
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether the call should end as soon as possible: its run is being cancelled, or it was given to another."""
        return self._cancelled.is_set()

    def heartbeat(self, details: str = "") -> None:
        """Says how far the work is; the next attempt receives it if this one is lost.

        The worker itself gives signs of life; this is needed only for the details.

        Args:
            details: Any text of up to 4 KiB.

        Raises:
            ValueError: The details are longer.
        """
        if len(details.encode()) > MAX_HEARTBEAT_DETAILS_BYTES:
            raise ValueError(f"heartbeat details are at most {MAX_HEARTBEAT_DETAILS_BYTES} bytes")
        if self._on_heartbeat is not None:
            self._on_heartbeat(details)

    async def credential(self, *, rejected: Credential | None = None) -> Credential:
        """Returns the secret of the connection that the tool declares: of the run's user, or one that is shared.

        Ask before the tool does anything: when a sign-in is missing the call is made again later.

        Args:
            rejected: The third party refused this one (401): another one is wanted, if there is one.

        Raises:
            SignInNeeded: The account is not connected, or has to be connected again; let it pass.
            ToolError: The connection does not allow that its secret is handed out, or auth does not answer.
        """
        # Imported here: a program that only defines tools does without.
        import asyncio

        return await asyncio.wrap_future(self._ask_for_credential(rejected))

    def credential_sync(self, *, rejected: Credential | None = None) -> Credential:
        """As `credential`, for tools that are plain functions, and for threads.

        Args:
            rejected: The third party refused this one (401): another one is wanted, if there is one.

        Raises:
            SignInNeeded: The account is not connected, or has to be connected again; let it pass.
            ToolError: The connection does not allow that its secret is handed out, or auth does not answer.
            RuntimeError: Called in a coroutine, which it would block.
        """
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._ask_for_credential(rejected).result()
        raise RuntimeError("in a coroutine it is `await context.credential()`")

    def check_egress(self, headers: Mapping[str, str]) -> None:
        """Looks at the headers of an answer that came by `egress_url`: was it the other side that answered?

        Args:
            headers: Of the answer; as HTTP clients have them, or with names in lower case.

        Raises:
            SignInNeeded: The account is not connected, or has to be connected again, as what is stored is still refused
                by the other side; let it pass.
            ToolError: The request was not forwarded for another reason, or there was no answer.
        """
        reason = headers.get("holdfast-error", "")
        if reason in SIGN_IN_REASONS:
            raise SignInNeeded(f"a sign-in is missing: {reason}")
        if reason:
            raise ToolError(
                f"there is no answer: {reason}", retryable=reason in _AWAY, outcome_unknown=reason in _UNKNOWN
            )

    def _ask_for_credential(self, rejected: Credential | None) -> concurrent.futures.Future[Credential]:
        if self._on_credential is None:
            raise ToolError("credentials are handed out by workers only; tests of a tool give on_credential")
        return self._on_credential(rejected.fingerprint if rejected is not None else "")

    def cancel(self) -> None:
        """Marks the call as cancelled; called by the worker, and by tests of a tool."""
        self._cancelled.set()


class Tool(Generic[P, R]):
    """A function with what agents and workers need to know of it. Calling it calls the function.

    Attributes:
        name: As the model sees it.
        description: For the model.
        input_schema: JSON Schema of the arguments.
        effect: What a lost call may have done.
        timeout: How long one attempt may take, in seconds; None leaves it to the runtime (60 s).
        connection: Name of the connection, or integration, whose credential it asks for; empty for none.
        scopes: Permissions that it needs there.
        approval: Whether a person has to approve its calls, or the condition (CEL) under which one has to.
        approval_expires_after: How long a call waits for that, in seconds; None leaves it to the runtime (72 h).
        function: The function.
        is_async: Whether the function is a coroutine function.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        effect: Effect = "at_most_once",
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
        connection: str = "",
        scopes: Sequence[str] = (),
        approval: bool | str = False,
        approval_expires_after: float | None = None,
    ) -> None:
        self.__name__: str = ""
        if effect not in EFFECTS:
            raise ValueError(f"effect={effect!r}: expected one of {', '.join(EFFECTS)}")
        self.name = name if name is not None else getattr(function, "__name__", "")
        if not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} is no name of a tool: it is made of letters, digits, _ and -, begins with a letter "
                "or _, and has at most 64 characters; give another one with name="
            )
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: expected a number of seconds above 0")
        if scopes and not connection:
            raise ValueError("scopes are those of a connection; name it with connection=")
        if isinstance(scopes, str):
            raise ValueError(f"scopes={scopes!r}: expected a list")
        if approval_expires_after is not None and not approval_expires_after > 0:
            raise ValueError(f"approval_expires_after={approval_expires_after!r}: expected a number of seconds above 0")
        if approval_expires_after is not None and not approval:
            raise ValueError("approval_expires_after is that of an approval; ask for one with approval=")
        signature = read_signature(function, injected_type=ToolContext)
        self.function = function
        self.description = signature.description if description is None else description
        self.input_schema: JsonSchema = signature.input_schema
        self.effect: Effect = effect
        self.timeout = timeout
        self.connection = connection
        self.scopes = tuple(scopes)
        self.approval = approval
        self.approval_expires_after = approval_expires_after
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        self._signature = signature
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name} ({self.effect})>"

    def bind(self, arguments_json: str, context: ToolContext) -> Callable[[], R]:
        """Returns the call that these arguments ask for, ready to be made.

        Raises:
            ToolError: The arguments are no JSON object, or do not fit the annotations.
        """
        try:
            arguments = json.loads(arguments_json or "{}")
            if not isinstance(arguments, dict):
                raise Mismatch("the arguments are not a JSON object")
            values: dict[str, Any] = decode_arguments(self._signature.parameters, arguments)
        except ValueError as error:
            raise ToolError(f"{self.name}: {error}") from error
        values.update(dict.fromkeys(self._signature.injected, context))
        return functools.partial(self.function, **values)

    def spec(self) -> ToolSpec:
        """Returns the tool as part of an agent's definition."""
        from holdfast.api.common.v1 import agent_pb2
        from holdfast.times import to_duration

        spec = agent_pb2.ToolSpec(
            name=self.name,
            description=self.description,
            effect=effect_class(self.effect),
            worker=agent_pb2.WorkerTool(),
        )
        spec.input_schema.update(self.input_schema)
        if self.timeout is not None:
            spec.timeout.CopyFrom(to_duration(self.timeout))
        if self.connection:
            spec.auth.connection = self.connection
            spec.auth.scopes.extend(self.scopes)
        set_approval(spec, self.approval, self.approval_expires_after)
        return spec

    def served(self) -> ServedTool:
        """Returns the tool as a worker announces it."""
        from holdfast.api.executor.v1 import tool_worker_service_pb2

        served = tool_worker_service_pb2.ServedTool(
            name=self.name, description=self.description, effect=effect_class(self.effect)
        )
        served.input_schema.update(self.input_schema)
        return served


def set_approval(spec: ToolSpec, approval: bool | str, expires_after: float | None) -> None:
    """Puts an approval policy into a definition: none for False, each call for True, a condition (CEL) for a text."""
    from holdfast.times import to_duration

    if approval is False:
        return
    if approval is True:
        spec.approval.always = True
    else:
        spec.approval.condition = approval
    if expires_after is not None:
        spec.approval.expire_after.CopyFrom(to_duration(expires_after))


def effect_class(effect: Effect) -> Any:
    """Returns the effect class of the contracts for its short name."""
    from holdfast.api.common.v1 import agent_pb2

    return agent_pb2.EffectClass.Value(f"EFFECT_CLASS_{effect.upper()}")


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    effect: Effect = "at_most_once",
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    connection: str = "",
    scopes: Sequence[str] = (),
    approval: bool | str = False,
    approval_expires_after: float | None = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    effect: Effect = "at_most_once",
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    connection: str = "",
    scopes: Sequence[str] = (),
    approval: bool | str = False,
    approval_expires_after: float | None = None,
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Makes a tool of a sync or async function: its schema comes from the signature and the Google-style docstring.

    Example:
        @tool(effect="idempotent")
        def refund(context: ToolContext, invoice_id: str, amount: Annotated[int, "In cents."]) -> Receipt:
            \"\"\"Refunds an invoice.

            Args:
                invoice_id: The invoice.
            \"\"\"

    Args:
        function: The function, when the decorator is used without arguments.
        effect: What a call that was lost may have done. `read_only`: nothing, it is called again. `idempotent`:
            it is called again with the same `ToolContext.idempotency_key`. `at_most_once`: nobody knows; it is never
            called again by itself.
        name: As the model sees it; the function's name when not given.
        description: For the model; the docstring's text when not given.
        timeout: How long one attempt may take, in seconds.
        connection: Name of the connection, or of the integration, whose credential the tool asks for with
            `ToolContext.credential`: that of the run's user, or one that the workspace shares.
        scopes: Permissions that the tool needs there, in the provider's words.
        approval: True: a person has to approve each call. A text: those for which this condition on the arguments
            holds, in CEL, such as `args.amount > 100`.
        approval_expires_after: How long a call waits for its approval before it is refused, in seconds; 72 h when not
            given.
    """

    def decorate(function: Callable[P, R]) -> Tool[P, R]:
        return Tool(
            function,
            effect=effect,
            name=name,
            description=description,
            timeout=timeout,
            connection=connection,
            scopes=scopes,
            approval=approval,
            approval_expires_after=approval_expires_after,
        )

    return decorate if function is None else decorate(function)


def as_tool(candidate: Any) -> Tool[Any, Any]:
    """Returns a tool as it is, and makes one of a plain function with the cautious effect class `at_most_once`.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(candidate, Tool):
        return candidate
    if inspect.isroutine(candidate):
        return Tool(candidate)
    raise TypeError(f"{candidate!r} is neither a function nor made by @tool")


def by_name(tools: Any) -> Mapping[str, Tool[Any, Any]]:
    """Returns tools by their names.

    Raises:
        ValueError: Two have the same name.
    """
    named: dict[str, Tool[Any, Any]] = {}
    for candidate in tools:
        found = as_tool(candidate)
        if found.name in named:
            raise ValueError(f"two tools are named {found.name!r}; give one of them another name with name=")
        named[found.name] = found
    return named
