"""One frozen dataclass a role. The command line reads its defaults from these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

MiB = 1 << 20


class KvType(StrEnum):
    """What a router stores K and V in; a float trunk keeps them in float32 whatever is asked for."""

    bf16 = "bf16"
    int8 = "int8"


@dataclass(frozen=True)
class EngineConfig:
    """The router's engine: batching, KV pages and queues.

    page_tokens: tokens a KV page, a multiple of 16.
    kv: type of the KV cache; int8 holds twice the tokens in a budget and changes the output's bits.
    kv_bytes: budget of the KV cache over all layers.
    chunk_tokens: most prompt tokens prefilled in one step, over all sequences.
    max_running: most sequences in a batch.
    max_waiting: most requests admitted but not yet running; beyond it submit raises Overloaded.
    micro_batches: 2 to compute one half of the batch while the other is at the experts, 1 not to; 0 does so
        where nodes are far away (cluster/router/halving.py).
    context: longest sequence in tokens; 0 takes the model's own limit.
    threads: compute threads of this process.
    prefix_cache: whether a prompt may begin with KV pages that an earlier one has filled, to the same bits.
    share_prefixes: also with those that another key's prompt has filled: by the time to its first token, a
        client can then tell whether somebody else has asked for the same beginning.
    choice: import path of the policy that shares rows among the copies of an expert
        (cluster/balance/choice.py).
    """

    page_tokens: int = 64
    kv: KvType = KvType.bf16
    kv_bytes: int = 64 * MiB
    chunk_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 256
    micro_batches: int = 0
    context: int = 0
    threads: int = 1
    prefix_cache: bool = True
    share_prefixes: bool = False
    choice: str = "cluster.balance.choice:flow"


@dataclass(frozen=True)
class NodeConfig:
    """An expert node. memory_bytes is a hard limit for resident expert weights, 0 means no limit.

    hub: address of a `moemesh library serve` that has all blobs, for those that no other node has; "": none.
    fetch_share: part of the time in which a node may receive blobs that nobody waits for yet.
    blob_port: where it gives blobs to others; 0: any.
    """

    memory_bytes: int = 0
    threads: int = 1
    host: str = "127.0.0.1"
    hub: str = ""
    fetch_share: float = 0.25
    blob_port: int = 0


class WireSecurity(StrEnum):
    """Which links between the cluster's own processes are sealed (cluster/dispatch/seal.py).

    auto: those whose two ends may be on different machines. always: all, also on loopback.
    """

    auto = "auto"
    always = "always"


@dataclass(frozen=True)
class TlsFiles:
    """PEM files, read again when they change. client_ca: clients must show a certificate of it; "": none."""

    certificate: str
    key: str
    client_ca: str = ""


@dataclass(frozen=True)
class GatewayConfig:
    """The gateway's ports and who may use them.

    host: of gRPC; loopback, unless there are TLS and keys, or `insecure` says out loud that the ports may be
        reached from outside without them.
    http_port: None offers no HTTP.
    max_streams: calls at once on one gRPC connection; a client's further ones wait there. max_calls: of all
        gRPC connections together; further ones are refused.
    window: sequences that a router is given at a time, at most as many as it runs (EngineConfig.max_running);
        fewer are answered faster while there are more requests than it gets through. The rest wait, at most
        `max_queued` of them, and none that would wait for longer than max_wait_s, or than `wait_share` times
        what requests of late took once they were let in.
    reader_s: how long a write to a client may wait before its stream is cut. request_s: how long an HTTP
        request may take to come, to the end of its body.
    max_resume_s: the longest resume window that a request may open. max_resumable: requests that may wait
        in theirs for their clients to come back; of more, the one that waits for longest is given up.
    drain_s: how long running requests may go on after the gateway was told to stop.
    replay_s: how long requests whose router was lost wait for one that goes on with them; 0 ends them then.
    keys: file of API keys, "" asks for none. guard_health: ask for them on health checks too.
    """

    host: str = "127.0.0.1"
    port: int = 8471
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    insecure: bool = False
    max_streams: int = 1024
    max_calls: int = 4096
    window: int = 32
    max_queued: int = 256
    max_wait_s: float = 1.0
    wait_share: float = 0.125
    max_message_bytes: int = 16 * MiB
    reader_s: float = 10.0
    request_s: float = 30.0
    max_resume_s: float = 60.0
    max_resumable: int = 256
    drain_s: float = 2.0
    replay_s: float = 30.0
    tls: TlsFiles | None = None
    keys: str = ""
    guard_health: bool = False


class LogFormat(StrEnum):
    """text: lines for people; json: one object a line, with the ids of requests as fields."""

    text = "text"
    json = "json"


class Rebalance(StrEnum):
    """Who moves experts: the controller by itself, or whoever calls `moemesh rebalance`."""

    auto = "auto"
    manual = "manual"


@dataclass(frozen=True)
class ControllerConfig:
    """rebalance: manual where all nodes share one machine, where moving work gains nothing.

    settle_tokens: tokens of new load that are awaited before experts are placed for it.
    min_gain: part of the experts' time in a step that moves must save. horizon: steps within which they must
        pay for themselves. cool_down_s: pause after a decision, and after its last move.
    move_share: part of each link that moves may use. move_bytes: most bytes of one rebalancing; 0: no limit.
    min_replicas: copies that every expert shall have, as far as nodes and their memory allow.
    replicate_after_s: how long a node may be away before what it held is copied to others; experts that
        nobody else holds are loaded at once.
    """

    rebalance: Rebalance = Rebalance.manual
    settle_tokens: int = 1024
    min_gain: float = 0.05
    horizon: float = 1000.0
    cool_down_s: float = 30.0
    move_share: float = 0.25
    move_bytes: int = 0
    min_replicas: int = 1
    replicate_after_s: float = 15.0


@dataclass(frozen=True)
class TracingConfig:
    """endpoint: where OpenTelemetry traces go by OTLP over gRPC, as "http://host:4317"; "" makes none.
    ratio: part of the requests to trace, 0 to 1, where their clients have not decided it (W3C `sampled`).
    """

    endpoint: str = ""
    ratio: float = 1.0


@dataclass(frozen=True)
class ClusterConfig:
    """What `moemesh up` starts.

    model: a library folder, "" for the bundled one; variant: of its experts, "" for the default.
    gateway: of the first; others listen on ports of their own (cluster/fleet/gateways.py).
    log_format: of the roles' log files. tracing: of requests, at gateways and routers. wire_security: of the
    links between its processes.
    """

    model: str = ""
    variant: str = ""
    nodes: int = 3
    routers: int = 1
    gateways: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    log_format: LogFormat = LogFormat.text
    tracing: TracingConfig = field(default_factory=TracingConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    wire_security: WireSecurity = WireSecurity.auto
