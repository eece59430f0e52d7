import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BudgetPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_POLICY_UNSPECIFIED: _ClassVar[BudgetPolicy]
    BUDGET_POLICY_STOP: _ClassVar[BudgetPolicy]
    BUDGET_POLICY_ASK: _ClassVar[BudgetPolicy]
    BUDGET_POLICY_FINALISE: _ClassVar[BudgetPolicy]
    BUDGET_POLICY_DEGRADE: _ClassVar[BudgetPolicy]

class EffectClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EFFECT_CLASS_UNSPECIFIED: _ClassVar[EffectClass]
    EFFECT_CLASS_READ_ONLY: _ClassVar[EffectClass]
    EFFECT_CLASS_IDEMPOTENT: _ClassVar[EffectClass]
    EFFECT_CLASS_AT_MOST_ONCE: _ClassVar[EffectClass]

class InDoubtPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IN_DOUBT_POLICY_UNSPECIFIED: _ClassVar[InDoubtPolicy]
    IN_DOUBT_POLICY_ASK: _ClassVar[InDoubtPolicy]
    IN_DOUBT_POLICY_TELL_MODEL: _ClassVar[InDoubtPolicy]
    IN_DOUBT_POLICY_FAIL_RUN: _ClassVar[InDoubtPolicy]
BUDGET_POLICY_UNSPECIFIED: BudgetPolicy
BUDGET_POLICY_STOP: BudgetPolicy
BUDGET_POLICY_ASK: BudgetPolicy
BUDGET_POLICY_FINALISE: BudgetPolicy
BUDGET_POLICY_DEGRADE: BudgetPolicy
EFFECT_CLASS_UNSPECIFIED: EffectClass
EFFECT_CLASS_READ_ONLY: EffectClass
EFFECT_CLASS_IDEMPOTENT: EffectClass
EFFECT_CLASS_AT_MOST_ONCE: EffectClass
IN_DOUBT_POLICY_UNSPECIFIED: InDoubtPolicy
IN_DOUBT_POLICY_ASK: InDoubtPolicy
IN_DOUBT_POLICY_TELL_MODEL: InDoubtPolicy
IN_DOUBT_POLICY_FAIL_RUN: InDoubtPolicy

class AgentSpec(_message.Message):
    __slots__ = ("name", "description", "model", "instructions", "tools", "limits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    model: ModelSpec
    instructions: str
    tools: _containers.RepeatedCompositeFieldContainer[ToolSpec]
    limits: RunLimits
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ..., instructions: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[ToolSpec, _Mapping]]] = ..., limits: _Optional[_Union[RunLimits, _Mapping]] = ...) -> None: ...

class RunLimits(_message.Message):
    __slots__ = ("max_steps", "max_concurrent_runs", "max_depth", "max_children", "budget", "on_budget_exceeded", "cheaper_model")
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_RUNS_FIELD_NUMBER: _ClassVar[int]
    MAX_DEPTH_FIELD_NUMBER: _ClassVar[int]
    MAX_CHILDREN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    ON_BUDGET_EXCEEDED_FIELD_NUMBER: _ClassVar[int]
    CHEAPER_MODEL_FIELD_NUMBER: _ClassVar[int]
    max_steps: int
    max_concurrent_runs: int
    max_depth: int
    max_children: int
    budget: Budget
    on_budget_exceeded: BudgetPolicy
    cheaper_model: ModelSpec
    def __init__(self, max_steps: _Optional[int] = ..., max_concurrent_runs: _Optional[int] = ..., max_depth: _Optional[int] = ..., max_children: _Optional[int] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., on_budget_exceeded: _Optional[_Union[BudgetPolicy, str]] = ..., cheaper_model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("max_cost_usd_nanos", "max_input_tokens", "max_output_tokens", "max_total_tokens", "max_model_calls", "max_tool_calls")
    MAX_COST_USD_NANOS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    max_cost_usd_nanos: int
    max_input_tokens: int
    max_output_tokens: int
    max_total_tokens: int
    max_model_calls: int
    max_tool_calls: int
    def __init__(self, max_cost_usd_nanos: _Optional[int] = ..., max_input_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., max_total_tokens: _Optional[int] = ..., max_model_calls: _Optional[int] = ..., max_tool_calls: _Optional[int] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("provider", "name", "connection", "parameters", "timeout", "retry", "script", "price")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    SCRIPT_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    provider: str
    name: str
    connection: str
    parameters: ModelParameters
    timeout: _duration_pb2.Duration
    retry: RetryPolicy
    script: Script
    price: ModelPrice
    def __init__(self, provider: _Optional[str] = ..., name: _Optional[str] = ..., connection: _Optional[str] = ..., parameters: _Optional[_Union[ModelParameters, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., script: _Optional[_Union[Script, _Mapping]] = ..., price: _Optional[_Union[ModelPrice, _Mapping]] = ...) -> None: ...

class ModelPrice(_message.Message):
    __slots__ = ("input_usd_nanos_per_million_tokens", "output_usd_nanos_per_million_tokens")
    INPUT_USD_NANOS_PER_MILLION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_USD_NANOS_PER_MILLION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_usd_nanos_per_million_tokens: int
    output_usd_nanos_per_million_tokens: int
    def __init__(self, input_usd_nanos_per_million_tokens: _Optional[int] = ..., output_usd_nanos_per_million_tokens: _Optional[int] = ...) -> None: ...

class ModelParameters(_message.Message):
    __slots__ = ("temperature", "top_p", "max_output_tokens", "stop_sequences", "seed", "reasoning_effort")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REASONING_EFFORT_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    max_output_tokens: int
    stop_sequences: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    reasoning_effort: str
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., max_output_tokens: _Optional[int] = ..., stop_sequences: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., reasoning_effort: _Optional[str] = ...) -> None: ...

class Script(_message.Message):
    __slots__ = ("turns", "loop")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    turns: _containers.RepeatedCompositeFieldContainer[ScriptTurn]
    loop: bool
    def __init__(self, turns: _Optional[_Iterable[_Union[ScriptTurn, _Mapping]]] = ..., loop: bool = ...) -> None: ...

class ScriptTurn(_message.Message):
    __slots__ = ("text", "tool_calls", "delay")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    text: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ScriptCall]
    delay: _duration_pb2.Duration
    def __init__(self, text: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ScriptCall, _Mapping]]] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ScriptCall(_message.Message):
    __slots__ = ("tool", "arguments")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    tool: str
    arguments: _struct_pb2.Struct
    def __init__(self, tool: _Optional[str] = ..., arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("max_attempts", "initial_interval", "multiplier", "max_interval")
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    MAX_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    max_attempts: int
    initial_interval: _duration_pb2.Duration
    multiplier: float
    max_interval: _duration_pb2.Duration
    def __init__(self, max_attempts: _Optional[int] = ..., initial_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., multiplier: _Optional[float] = ..., max_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ToolSpec(_message.Message):
    __slots__ = ("name", "description", "input_schema", "output_schema", "effect", "in_doubt", "timeout", "start_timeout", "heartbeat_timeout", "retry", "max_output_bytes", "auth", "approval", "worker", "http", "builtin", "agent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    IN_DOUBT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    START_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    input_schema: _struct_pb2.Struct
    output_schema: _struct_pb2.Struct
    effect: EffectClass
    in_doubt: InDoubtPolicy
    timeout: _duration_pb2.Duration
    start_timeout: _duration_pb2.Duration
    heartbeat_timeout: _duration_pb2.Duration
    retry: RetryPolicy
    max_output_bytes: int
    auth: ToolAuth
    approval: ApprovalPolicy
    worker: WorkerTool
    http: HttpTool
    builtin: BuiltinTool
    agent: AgentTool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., input_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., output_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., effect: _Optional[_Union[EffectClass, str]] = ..., in_doubt: _Optional[_Union[InDoubtPolicy, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., start_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., heartbeat_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., max_output_bytes: _Optional[int] = ..., auth: _Optional[_Union[ToolAuth, _Mapping]] = ..., approval: _Optional[_Union[ApprovalPolicy, _Mapping]] = ..., worker: _Optional[_Union[WorkerTool, _Mapping]] = ..., http: _Optional[_Union[HttpTool, _Mapping]] = ..., builtin: _Optional[_Union[BuiltinTool, _Mapping]] = ..., agent: _Optional[_Union[AgentTool, _Mapping]] = ...) -> None: ...

class ApprovalPolicy(_message.Message):
    __slots__ = ("always", "condition", "expire_after")
    ALWAYS_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_AFTER_FIELD_NUMBER: _ClassVar[int]
    always: bool
    condition: str
    expire_after: _duration_pb2.Duration
    def __init__(self, always: bool = ..., condition: _Optional[str] = ..., expire_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ToolAuth(_message.Message):
    __slots__ = ("connection", "scopes")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    connection: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, connection: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerTool(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HttpTool(_message.Message):
    __slots__ = ("method", "url", "headers", "query")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    method: str
    url: str
    headers: _containers.ScalarMap[str, str]
    query: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, method: _Optional[str] = ..., url: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., query: _Optional[_Iterable[str]] = ...) -> None: ...

class BuiltinTool(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class AgentTool(_message.Message):
    __slots__ = ("agent", "revision")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    agent: str
    revision: str
    def __init__(self, agent: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class AgentRevision(_message.Message):
    __slots__ = ("revision", "agent", "spec", "create_time")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    revision: str
    agent: str
    spec: AgentSpec
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, revision: _Optional[str] = ..., agent: _Optional[str] = ..., spec: _Optional[_Union[AgentSpec, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Agent(_message.Message):
    __slots__ = ("name", "description", "labels", "create_time", "update_time")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    labels: _containers.ScalarMap[str, str]
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
