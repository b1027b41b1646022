# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The short way of a dispatch: rows to the nodes and results back in one compiled call each.

A layer of a small model computes for less time than the interpreter needs to move its rows: four processes
that take turns on two cores find nothing of it in the caches. These kernels do what nearly every round trip
needs, on sockets of the caller's. Whatever else happens (a peer that is gone, a full socket, a frame in two
parts or of another kind) is reported, not treated: the general code takes over at that point of the stream.

Descriptors are non-blocking and may be watched elsewhere at the same time.
"""

from __future__ import annotations

import numpy as np
from numba import types

from kernels.jit import (
    F32_1,
    I8_2,
    I32_1,
    I32_1R,
    I32_2,
    I64_1,
    I64_1R,
    I64_2,
    INT,
    U8_1,
    U8_1R,
    U8_2R,
    inline,
    kernel,
)
from kernels.simd import load_f32, load_i32x16, store_i32x16
from kernels.wire import (
    NUMBER_BYTES,
    PREFIX,
    TAG,
    get_bytes,
    get_number,
    put_array,
    put_bytes,
    put_number,
    put_prefix,
    whole_frame,
)

ALL_IN, QUIET = -1, -2
"""What `gather_results` returns beside the place of a node whose bytes are for somebody else."""

_POLLIN = 1
_POINTER = types.intp

_read = types.ExternalFunction("read", types.intp(types.intc, _POINTER, types.uintp))
_writev = types.ExternalFunction("writev", types.intp(types.intc, _POINTER, types.intc))
_poll = types.ExternalFunction("poll", types.intc(_POINTER, types.uintp, types.intc))


@inline
def _send(fd, head, head_bytes, body, begin, end):
    """Bytes that the socket took of head and body[begin:end], or -1."""
    parts = np.empty(4, np.int64)
    parts[0] = head.ctypes.data
    parts[1] = head_bytes
    parts[2] = body.ctypes.data + begin
    parts[3] = end - begin
    return _writev(np.int32(fd), parts.ctypes.data, np.int32(2))


@inline
def _copy(out, to, data, at, size):
    """out[to : to + size] = data[at : at + size], both bytes, without overlap."""
    whole = size // 64 * 64
    for i in range(0, whole, 64):
        store_i32x16(out, to + i, load_i32x16(data, at + i))
    for i in range(whole, size):
        out[to + i] = data[at + i]


@kernel(
    INT(
        *(I32_1R, INT, I64_1R, I64_1R, I64_1R, I64_1R, U8_1R, I32_1R, INT, U8_1R, INT),
        *(U8_1, U8_1, I64_1, I64_1),
    )
)
def post_requests(
    fds,
    lead,
    tag,
    peers,
    row_start,
    pair_start,
    counts,
    experts,
    expert_bytes,
    payload,
    row_bytes,
    head,
    waiting,
    sent,
    tally,
):
    """Send every node of a plan its DISPATCH; returns the nodes whose message did not go out as a whole.

    fds: [N] int32, -1 for a node that is not there; tag: [7] int64, of which entry 1 is peers[n] for node n.
    row_start, pair_start: [N + 1], as permute.plan_dispatch leaves them; counts: uint8 of each row; experts:
    int32 of each pair, sent in `expert_bytes`; payload: bytes, `row_bytes` a row. head: uint8 scratch of
    wire.HEAD_BYTES.
    waiting: [N] uint8 = whether the plan has rows for the node. sent: [N] int64 = of a message that did not
    go out as a whole the bytes that did, -1 where nothing is left to do. tally: int64, += (header bytes,
    payload bytes, messages) of what went out as a whole.
    """
    missed = 0
    for node in range(fds.size):
        rows = row_start[node + 1] - row_start[node]
        waiting[node] = rows > 0
        sent[node] = -1
        if rows == 0:
            continue
        pairs = pair_start[node + 1] - pair_start[node]
        if fds[node] < 0 or (TAG + 5) * NUMBER_BYTES + rows + pairs * expert_bytes > head.size:
            sent[node] = 0
            missed += 1
            continue
        at = put_array(head, PREFIX, TAG + 3)
        for i in range(TAG):
            at = put_number(head, at, peers[node] if i == 1 else tag[i])
        at = put_number(head, at, rows)
        at = put_bytes(head, at, counts, row_start[node], row_start[node + 1], 1)
        at = put_bytes(head, at, experts, pair_start[node], pair_start[node + 1], expert_bytes)
        size = rows * row_bytes
        put_prefix(head, lead, at, size)
        begin = row_start[node] * row_bytes
        took = _send(fds[node], head, at, payload, begin, begin + size)
        if took == at + size:
            tally[0] += at
            tally[1] += size
            tally[2] += 1
        else:
            sent[node] = max(took, 0)
            missed += 1
    return missed


@inline
def _is_reply(data, end, tag, peer, pairs, load):
    """Whether the header data[PREFIX:end] is the RESULT that tag and peer ask for; fills load if it is."""
    if end < 0 or data[PREFIX] != 0x90 + TAG + 3:
        return False
    at = np.int64(PREFIX + 1)
    for i in range(TAG):
        value, at = get_number(data, at, end)
        if at < 0 or (i != TAG - 1 and value != (peer if i == 1 else tag[i])):
            return False  # the last of the tag is the node's own table version
    found, at = get_number(data, at, end)
    queue, at = get_number(data, at, end)
    service_us, at = get_number(data, at, end)
    if at != end or found != pairs:
        return False
    load[0] = queue
    load[1] = service_us
    return True


@kernel(
    INT(
        *(I32_1R, INT, I64_1R, I64_1R, I64_1R, INT, U8_1, INT),
        *(U8_1, U8_1, I32_2, I64_2, I64_1),
    )
)
def gather_results(
    fds,
    lead,
    tag,
    peers,
    pair_start,
    result_bytes,
    results,
    timeout_ms,
    waiting,
    staging,
    polled,
    loads,
    tally,
):
    """Take in the RESULTs of a call until all are there: ALL_IN.

    fds, tag, peers, pair_start: of the call, as for post_requests; waiting: [N] uint8, cleared as they come.
    results: bytes, `result_bytes` a pair, filled. loads: [N, 2] int64 = (queue, service µs) as the node
    told. staging: uint8, room for one frame. polled: int32 scratch [N, 2]. tally: int64, += (header bytes,
    payload bytes, messages) at 3, 4, 5.

    Returns QUIET if nothing came for `timeout_ms` or a signal did. Otherwise the place of a node whose socket
    brought something else: the tally[6] bytes of it in staging are out of the socket and nobody's; none at
    the end of its stream.
    """
    while True:
        count = 0
        for node in range(fds.size):
            if waiting[node]:
                polled[count, 0] = fds[node]
                polled[count, 1] = _POLLIN
                count += 1
        if count == 0:
            return ALL_IN
        if _poll(polled.ctypes.data, np.uint64(count), np.int32(timeout_ms)) <= 0:
            return QUIET
        place = 0
        for node in range(fds.size):
            if not waiting[node]:
                continue
            ready = polled[place, 1] >> 16
            place += 1
            if ready == 0:
                continue
            got = _read(np.int32(fds[node]), staging.ctypes.data, np.uint64(staging.size))
            end = whole_frame(staging, got, lead)
            pairs = pair_start[node + 1] - pair_start[node]
            size = pairs * result_bytes
            if (
                end < 0
                or got - end != size
                or not _is_reply(staging, end, tag, peers[node], pairs, loads[node])
            ):
                tally[6] = max(got, 0)
                return node
            _copy(results, pair_start[node] * result_bytes, staging, end, size)
            waiting[node] = 0
            tally[3] += end
            tally[4] += size
            tally[5] += 1


@inline
def _ours_alone(watched):
    """Wait for the sockets of `watched`; whether the first is ready and no other."""
    for i in range(watched.shape[0]):
        watched[i, 1] = _POLLIN
    ready = _poll(watched.ctypes.data, np.uint64(watched.shape[0]), np.int32(-1))
    return ready == 1 and watched[0, 1] >> 16 != 0


@kernel(INT(INT, I32_2, U8_1, INT, INT, U8_2R, INT, I64_1, U8_1, I32_1, I8_2, F32_1))
def take_request(fd, watched, data, lead, peer, held, expert_bytes, numbers, counts, experts, rows, scales):
    """Read what is there, and if it is exactly one DISPATCH of int8 rows that fits, its rows R; else 0.

    watched: [W, 2] int32, descriptors to wait for with room for what poll says of them: fd and whatever else
    its thread attends to. Nothing is read if something else comes. Empty: do not wait.
    data: uint8 scratch. peer: our incarnation; held: [layers, E] uint8, the experts we serve. Filled: numbers
    [10] int64 = the tag, rows R, pairs P, and the bytes read, which are in data and out of the socket (none
    at its end, or if it had none); counts[:R], experts[:P], rows[:R] of [*, Hp], scales[:R]. A message with
    more rows or pairs than those arrays have room for does not fit, nor one that asks for experts which are
    not held, or whose numbers do not add up: nothing is said about why.
    """
    numbers[TAG + 2] = 0
    if watched.shape[0] and not _ours_alone(watched):
        return 0
    count = _read(np.int32(fd), data.ctypes.data, np.uint64(data.size))
    numbers[TAG + 2] = max(count, 0)
    end = whole_frame(data, count, lead)
    if end < 0 or data[PREFIX] != 0x90 + TAG + 3:
        return 0
    at = np.int64(PREFIX + 1)
    for i in range(TAG + 1):
        numbers[i], at = get_number(data, at, end)
        if at < 0:
            return 0
    first_count, at = get_bytes(data, at, end)
    first_expert, stop = get_bytes(data, at, end)
    many, layer, width = numbers[TAG], numbers[3], rows.shape[1]
    if numbers[1] != peer or stop != end or layer >= held.shape[0]:
        return 0
    pairs = (stop - first_expert) // expert_bytes
    if many == 0 or at - first_count != many or pairs * expert_bytes != stop - first_expert:
        return 0
    if many > rows.shape[0] or pairs > experts.size or count - end != many * (width + 4):
        return 0
    total = np.int64(0)
    for row in range(many):
        counts[row] = data[first_count + row]
        total += counts[row]
        if counts[row] == 0:
            return 0
    if total != pairs:
        return 0
    for pair in range(pairs):
        expert = np.int64(data[first_expert + pair * expert_bytes])
        if expert_bytes == 2:
            expert += np.int64(data[first_expert + pair * 2 + 1]) << 8
        if expert >= held.shape[1] or held[layer, expert] == 0:
            return 0
        experts[pair] = np.int32(expert)
    _copy_rows(data, end, many, width, rows, scales)
    numbers[TAG + 1] = pairs
    return many


@inline
def _copy_rows(data, at, many, width, rows, scales):
    for row in range(many):
        for i in range(0, width, 64):
            store_i32x16(rows, row * width + i, load_i32x16(data, at + row * width + i))
    for row in range(many):
        scales[row] = load_f32(data, at + many * width + row * 4)


@kernel(INT(INT, INT, I64_1R, INT, INT, INT, U8_1R, U8_1))
def post_result(fd, lead, numbers, table, queue, service_us, data, head):
    """Answer the request of `numbers` with `data`; returns the bytes that its socket did not take.

    numbers: as take_request left them; table: our own table's version; queue, service_us: our load.
    head: uint8 scratch of wire.HEAD_BYTES.
    """
    at = put_array(head, PREFIX, TAG + 3)
    for i in range(TAG - 1):
        at = put_number(head, at, numbers[i])
    at = put_number(head, at, table)
    at = put_number(head, at, numbers[TAG + 1])
    at = put_number(head, at, queue)
    at = put_number(head, at, service_us)
    put_prefix(head, lead, at, data.size)
    return at + data.size - max(_send(fd, head, at, data, 0, data.size), 0)
