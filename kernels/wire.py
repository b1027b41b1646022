# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Headers of the data plane in compiled code: the msgpack that a DISPATCH and a RESULT are made of.

Only what those two need: one array of up to 15 entries, unsigned integers, byte strings. Whoever reads
something else here gets "no", never an error: the general decoder then says what is wrong with it.

A frame is a prefix of 16 bytes (lead u32, flags u16, stream u16, header bytes u32, payload bytes u32, all
little-endian), the header, the payload. The lead is the caller's: it names protocol and kind of frame.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline

PREFIX = 16
TAG = 7
"""Integers that both headers begin with; a RESULT repeats those of its DISPATCH."""

HEAD_BYTES = 8192
"""Room for prefix and header of a message that goes the short way."""

NUMBER_BYTES = 9
"""At most, of one packed integer."""

_ARRAY = 0x90
_U8, _U16, _U32, _U64 = 0xCC, 0xCD, 0xCE, 0xCF
_BIN8, _BIN16 = 0xC4, 0xC5


@inline
def put_little(out, at, size, value):
    for i in range(size):
        out[at + i] = np.uint8((value >> (8 * i)) & 255)
    return at + size


@inline
def put_big(out, at, size, value):
    for i in range(size):
        out[at + i] = np.uint8((value >> (8 * (size - 1 - i))) & 255)
    return at + size


@inline
def get_little(data, at, size):
    value = np.int64(0)
    for i in range(size):
        value |= np.int64(data[at + i]) << (8 * i)
    return value


@inline
def get_big(data, at, size):
    value = np.int64(0)
    for i in range(size):
        value = (value << 8) | np.int64(data[at + i])
    return value


@inline
def put_number(out, at, value):
    """Pack value >= 0 as msgpack does, in the fewest bytes; returns the end."""
    if value < 0x80:
        return put_big(out, at, 1, value)
    if value < 1 << 8:
        return put_big(out, put_big(out, at, 1, _U8), 1, value)
    if value < 1 << 16:
        return put_big(out, put_big(out, at, 1, _U16), 2, value)
    if value < 1 << 32:
        return put_big(out, put_big(out, at, 1, _U32), 4, value)
    return put_big(out, put_big(out, at, 1, _U64), 8, value)


@inline
def put_bytes(out, at, data, begin, end, width):
    """Pack data[begin:end] as a string of `width` little-endian bytes each, fewer than 65,536 together;
    returns the end."""
    size = (end - begin) * width
    if size < 1 << 8:
        at = put_big(out, put_big(out, at, 1, _BIN8), 1, size)
    else:
        at = put_big(out, put_big(out, at, 1, _BIN16), 2, size)
    for i in range(begin, end):
        at = put_little(out, at, width, np.int64(data[i]))
    return at


@inline
def put_array(out, at, entries):
    return put_big(out, at, 1, _ARRAY + entries)


@inline
def put_prefix(out, lead, end, payload):
    """The prefix of a frame whose header ends at `end`."""
    put_little(out, 0, 4, lead)
    put_little(out, 4, 4, 0)
    put_little(out, 8, 4, end - PREFIX)
    put_little(out, 12, 4, payload)


@inline
def get_number(data, at, end):
    """(value, where it ends); (0, -1) if an integer of 0 … 2^63 - 1 does not lie within data[at:end]."""
    if at < 0 or at >= end:
        return np.int64(0), np.int64(-1)
    first = data[at]
    if first < 0x80:
        return np.int64(first), np.int64(at + 1)
    if first < _U8 or first > _U64:
        return np.int64(0), np.int64(-1)
    size = np.int64(1) << (np.int64(first) - _U8)
    value = np.int64(0)
    if at + 1 + size <= end:
        value = get_big(data, at + 1, size)
    if at + 1 + size > end or value < 0:
        return np.int64(0), np.int64(-1)
    return value, at + 1 + size


@inline
def get_bytes(data, at, end):
    """(where a byte string begins, where it ends); (-1, -1) if there is none within data[at:end]."""
    if at < 0 or at + 3 > end or (data[at] != _BIN8 and data[at] != _BIN16):
        return np.int64(-1), np.int64(-1)
    length = np.int64(data[at]) - _BIN8 + 1
    begin = at + 1 + length
    stop = begin + get_big(data, at + 1, length)
    if stop > end:
        return np.int64(-1), np.int64(-1)
    return begin, stop


@inline
def whole_frame(data, count, lead):
    """End of the header if data[:count] is exactly one unfragmented frame of this lead, else -1."""
    if count < PREFIX or get_little(data, 0, 4) != lead or get_little(data, 4, 4) != 0:
        return np.int64(-1)
    end = PREFIX + get_little(data, 8, 4)
    if end + get_little(data, 12, 4) != count:
        return np.int64(-1)
    return end
