from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_NODE: _ClassVar[Role]
    ROLE_ROUTER: _ClassVar[Role]
    ROLE_GATEWAY: _ClassVar[Role]

class Health(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEALTH_UNSPECIFIED: _ClassVar[Health]
    HEALTH_ALIVE: _ClassVar[Health]
    HEALTH_SUSPECTED: _ClassVar[Health]
    HEALTH_DEAD: _ClassVar[Health]
ROLE_UNSPECIFIED: Role
ROLE_NODE: Role
ROLE_ROUTER: Role
ROLE_GATEWAY: Role
HEALTH_UNSPECIFIED: Health
HEALTH_ALIVE: Health
HEALTH_SUSPECTED: Health
HEALTH_DEAD: Health

class TableVersion(_message.Message):
    __slots__ = ("epoch", "version")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: int
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class GetPlacementRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Placement(_message.Message):
    __slots__ = ("table", "nodes", "layers")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    table: TableVersion
    nodes: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedCompositeFieldContainer[LayerPlacement]
    def __init__(self, table: _Optional[_Union[TableVersion, _Mapping]] = ..., nodes: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[_Union[LayerPlacement, _Mapping]]] = ...) -> None: ...

class LayerPlacement(_message.Message):
    __slots__ = ("layer", "experts")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    experts: _containers.RepeatedCompositeFieldContainer[Holders]
    def __init__(self, layer: _Optional[int] = ..., experts: _Optional[_Iterable[_Union[Holders, _Mapping]]] = ...) -> None: ...

class Holders(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, nodes: _Optional[_Iterable[int]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("id", "role", "health", "ready", "address", "incarnation", "error", "drained", "experts")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    role: Role
    health: Health
    ready: bool
    address: str
    incarnation: int
    error: str
    drained: bool
    experts: int
    def __init__(self, id: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., health: _Optional[_Union[Health, str]] = ..., ready: _Optional[bool] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., error: _Optional[str] = ..., drained: _Optional[bool] = ..., experts: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterStats(_message.Message):
    __slots__ = ("state", "nodes", "routers", "gateways", "layers")
    STATE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    state: ClusterState
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStats]
    routers: _containers.RepeatedCompositeFieldContainer[RouterStats]
    gateways: _containers.RepeatedCompositeFieldContainer[GatewayStats]
    layers: _containers.RepeatedCompositeFieldContainer[LayerLoad]
    def __init__(self, state: _Optional[_Union[ClusterState, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[NodeStats, _Mapping]]] = ..., routers: _Optional[_Iterable[_Union[RouterStats, _Mapping]]] = ..., gateways: _Optional[_Iterable[_Union[GatewayStats, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerLoad, _Mapping]]] = ...) -> None: ...

class NodeStats(_message.Message):
    __slots__ = ("id", "held", "resident_bytes", "memory_bytes", "waiting_rows", "rows", "share", "speed")
    ID_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    id: str
    held: int
    resident_bytes: int
    memory_bytes: int
    waiting_rows: int
    rows: int
    share: float
    speed: float
    def __init__(self, id: _Optional[str] = ..., held: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., waiting_rows: _Optional[int] = ..., rows: _Optional[int] = ..., share: _Optional[float] = ..., speed: _Optional[float] = ...) -> None: ...

class RouterStats(_message.Message):
    __slots__ = ("id", "running", "waiting", "steps", "preemptions", "kv_pages_used", "kv_pages_total", "prefix_tokens", "prefix_hits")
    ID_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    KV_PAGES_USED_FIELD_NUMBER: _ClassVar[int]
    KV_PAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    id: str
    running: int
    waiting: int
    steps: int
    preemptions: int
    kv_pages_used: int
    kv_pages_total: int
    prefix_tokens: int
    prefix_hits: int
    def __init__(self, id: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., steps: _Optional[int] = ..., preemptions: _Optional[int] = ..., kv_pages_used: _Optional[int] = ..., kv_pages_total: _Optional[int] = ..., prefix_tokens: _Optional[int] = ..., prefix_hits: _Optional[int] = ...) -> None: ...

class GatewayStats(_message.Message):
    __slots__ = ("id", "outstanding", "queued", "routers")
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    outstanding: int
    queued: int
    routers: int
    def __init__(self, id: _Optional[str] = ..., outstanding: _Optional[int] = ..., queued: _Optional[int] = ..., routers: _Optional[int] = ...) -> None: ...

class LayerLoad(_message.Message):
    __slots__ = ("layer", "rows_per_step", "imbalance")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    layer: int
    rows_per_step: _containers.RepeatedScalarFieldContainer[float]
    imbalance: float
    def __init__(self, layer: _Optional[int] = ..., rows_per_step: _Optional[_Iterable[float]] = ..., imbalance: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterState(_message.Message):
    __slots__ = ("table", "active", "settled", "pending", "members", "tiers")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    table: TableVersion
    active: bool
    settled: bool
    pending: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    tiers: TierPolicy
    def __init__(self, table: _Optional[_Union[TableVersion, _Mapping]] = ..., active: _Optional[bool] = ..., settled: _Optional[bool] = ..., pending: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., tiers: _Optional[_Union[TierPolicy, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class UndrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RebalanceRequest(_message.Message):
    __slots__ = ("dry_run", "force")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    force: bool
    def __init__(self, dry_run: _Optional[bool] = ..., force: _Optional[bool] = ...) -> None: ...

class MovePlan(_message.Message):
    __slots__ = ("started", "worth", "gain_s", "cost_s", "bytes", "seconds", "now", "then", "stages", "refused")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    WORTH_FIELD_NUMBER: _ClassVar[int]
    GAIN_S_FIELD_NUMBER: _ClassVar[int]
    COST_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    started: bool
    worth: bool
    gain_s: float
    cost_s: float
    bytes: int
    seconds: float
    now: Quality
    then: Quality
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    refused: _containers.RepeatedCompositeFieldContainer[Refusal]
    def __init__(self, started: _Optional[bool] = ..., worth: _Optional[bool] = ..., gain_s: _Optional[float] = ..., cost_s: _Optional[float] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., now: _Optional[_Union[Quality, _Mapping]] = ..., then: _Optional[_Union[Quality, _Mapping]] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ...) -> None: ...

class Quality(_message.Message):
    __slots__ = ("step_s", "bound_s", "balancedness", "attainable", "copies")
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    BOUND_S_FIELD_NUMBER: _ClassVar[int]
    BALANCEDNESS_FIELD_NUMBER: _ClassVar[int]
    ATTAINABLE_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    step_s: float
    bound_s: float
    balancedness: float
    attainable: float
    copies: int
    def __init__(self, step_s: _Optional[float] = ..., bound_s: _Optional[float] = ..., balancedness: _Optional[float] = ..., attainable: _Optional[float] = ..., copies: _Optional[int] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("loads", "drops", "seconds")
    LOADS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    loads: _containers.RepeatedCompositeFieldContainer[Move]
    drops: _containers.RepeatedCompositeFieldContainer[Move]
    seconds: float
    def __init__(self, loads: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., drops: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("layer", "expert", "node")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert: int
    node: str
    def __init__(self, layer: _Optional[int] = ..., expert: _Optional[int] = ..., node: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("layer", "expert", "reason")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert: int
    reason: str
    def __init__(self, layer: _Optional[int] = ..., expert: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class GetTierPolicyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetTierPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: TierPolicy
    def __init__(self, policy: _Optional[_Union[TierPolicy, _Mapping]] = ...) -> None: ...

class TierPolicy(_message.Message):
    __slots__ = ("offered",)
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    offered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, offered: _Optional[_Iterable[str]] = ...) -> None: ...
