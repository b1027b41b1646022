# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Elements of KV pages: float32, bf16 bits, or int8 with a scale for every token and head.

    keys     [pages, kv_heads, page_size / 16, Dp, 16]      values     [pages, kv_heads, page_size, Dp]
    scales of keys and values, int8 pages only              [pages, kv_heads, page_size] float32

One kernel source serves all three: the pages' type decides here, when the kernel is compiled; the scales of
pages that have none are None. Offsets count elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels.jit import array, by_type, inline
from kernels.quantise import ONE_PLANE, SMALLEST, levels, row_max
from kernels.simd import load_f32x16, select_lt, splat_f32, store_f32x16, store_i8x16
from kernels.simd.elements import store_elements
from kernels.simd.ops import address, narrow_bf16
from kernels.simd.vectors import I8, I32, I64, LANES, f32x16, i32x16, vector

I8_4, I8_4R = array(types.int8, 4), array(types.int8, 4, True)
I8_5, I8_5R = array(types.int8, 5), array(types.int8, 5, True)

TILE = 16
"""Tokens whose keys lie side by side, one in each lane."""

_ZERO = np.float32(0.0)


@inline
def key_tile(k_pages, place, token):
    """First element of the [Dp, 16] tile that holds `token`. place: (page table, its row, kv head)."""
    page_table, row, head = place
    _, kv_heads, tiles, padded, _ = k_pages.shape
    tile = token // TILE
    page = np.int64(page_table[row, tile // tiles])
    return ((page * kv_heads + head) * tiles + tile % tiles) * padded * TILE


@inline
def value_row(v_pages, place, token):
    """First element of the values of `token`."""
    page_table, row, head = place
    _, kv_heads, size, padded = v_pages.shape
    page = np.int64(page_table[row, token // size])
    return ((page * kv_heads + head) * size + token % size) * padded


@inline
def key_tiles(k_pages, place, block, start, stop):
    """`key_tile` of the four tiles of a block of 64 tokens, of which those in start <= j < stop have a page.

    For a tile that has none the nearest one that has stands in.
    """
    return (
        key_tile(k_pages, place, min(max(block, start), stop - 1)),
        key_tile(k_pages, place, min(max(block + 16, start), stop - 1)),
        key_tile(k_pages, place, min(max(block + 32, start), stop - 1)),
        key_tile(k_pages, place, min(max(block + 48, start), stop - 1)),
    )


@inline
def value_tiles(v_pages, place, block, start, stop):
    """First elements of the values of each sixteen tokens of a block, as `key_tiles`."""
    return (
        value_row(v_pages, place, min(max(block, start), stop - 1) // TILE * TILE),
        value_row(v_pages, place, min(max(block + 16, start), stop - 1) // TILE * TILE),
        value_row(v_pages, place, min(max(block + 32, start), stop - 1) // TILE * TILE),
        value_row(v_pages, place, min(max(block + 48, start), stop - 1) // TILE * TILE),
    )


@inline
def in_tile(tiles, width, token):
    """The element at which the values of `token` start, by `value_tiles` of its block."""
    number = token // TILE % 4
    first = tiles[0]
    if number == 1:
        first = tiles[1]
    elif number == 2:
        first = tiles[2]
    elif number == 3:
        first = tiles[3]
    return first + token % TILE * width


@inline
def key_scales(scales, k_pages, tile):
    """The scales of the sixteen keys of a tile that starts at element `tile`; None where keys have none."""
    if scales is None:
        return None
    return load_f32x16(scales, tile // k_pages.shape[3] * 4)


@inline
def weigh_by_scales(weights, byte, scales, v_pages, place, origin, start, stop):
    """weights[j - origin] *= the scale of token j's values for start <= j < stop; zeros stay zero.

    weights: float32, column 0 at `byte`. A weight of zero marks a token that is not seen: its slot's scale
    may be anything.
    """
    if scales is not None:
        zero = splat_f32(_ZERO)
        for token in range(start // TILE * TILE, stop, TILE):
            seen = max(token, start) // TILE * TILE
            at = byte + (seen - origin) * 4
            weight = load_f32x16(weights, at)
            scale = load_f32x16(scales, value_row(v_pages, place, seen) // v_pages.shape[3] * 4)
            store_f32x16(weights, at, select_lt(zero, weight, weight * scale, zero))


@intrinsic
def scatter(typing: Any, pages: Any, index: Any, value: Any) -> Any:
    """Lane i to element index + TILE * i: float32 lanes rounded to the type of the pages, int32 lanes to
    int8 pages. Sixteen elements of one token's key."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, bits = args[2], sig.args[0].dtype.bitwidth
        if sig.args[0].dtype == types.int8:
            value = builder.trunc(value, vector(I8))
        elif sig.args[0].dtype == types.uint16:
            value = narrow_bf16(builder, value)
        for lane in range(LANES):
            element = builder.add(args[1], I64(TILE * lane))
            offset = builder.mul(element, I64(bits // 8))
            place = address(context, builder, sig.args[0], args[0], offset, value.type.element)
            builder.store(builder.extract_element(value, I32(lane)), place)
        return context.get_dummy_value()

    wanted = i32x16 if pages.dtype == types.int8 else f32x16
    return types.void(pages, types.intp, wanted), generate


@inline
def head_scale(x, span, width):
    """(scale, factor) of the `width` values at element span * width: scale absmax / 127, factor 127 / absmax.

    Both 0 for a zero head; the scale of one that holds NaN or Inf is NaN, as in kernels/quantise.py.
    """
    top, poison = row_max(x, span, width)
    if top < SMALLEST:
        return poison, _ZERO
    return top / ONE_PLANE + poison, ONE_PLANE / top


@by_type
def put_head(pages, x, byte, at, step, width, factor):
    """`width` float32 at `byte` of x to the elements at, at + step …: rounded to the type of the pages, or,
    for int8 pages, multiplied by `factor` and rounded. step: 1 or TILE."""

    def quantised(pages, x, byte, at, step, width, factor):
        for i in range(0, width, 16):
            value = levels(x, byte + i * 4, factor, ONE_PLANE)
            if step == 1:
                store_i8x16(pages, at + i, value)
            else:
                scatter(pages, at + i * step, value)

    def rounded(pages, x, byte, at, step, width, factor):
        for i in range(0, width, 16):
            value = load_f32x16(x, byte + i * 4)
            if step == 1:
                store_elements(pages, at + i, value)
            else:
                scatter(pages, at + i * step, value)

    return quantised if pages.dtype == types.int8 else rounded


@inline
def put_scale(scales, page, head, inside, x, span, width):
    """Store the scale of a head in its place and return its factor; 1 where pages have no scales."""
    if scales is None:
        return np.float32(1)
    scale, factor = head_scale(x, span, width)
    scales[page, head, inside] = scale
    return factor


@inline
def store_key(k_pages, scales, page, head, inside, x, span):
    """Put the Dp values at element span * Dp of x, the key of token `inside` of a page, into its lane."""
    _, kv_heads, tiles, padded, _ = k_pages.shape
    tile = (page * kv_heads + head) * tiles + inside // TILE
    at = tile * padded * TILE + inside % TILE
    factor = put_scale(scales, page, head, inside, x, span, padded)
    put_head(k_pages, x, span * padded * 4, at, TILE, padded, factor)


@inline
def store_value(v_pages, scales, page, head, inside, x, span):
    """The same for the token's values."""
    _, kv_heads, size, padded = v_pages.shape
    at = ((page * kv_heads + head) * size + inside) * padded
    factor = put_scale(scales, page, head, inside, x, span, padded)
    put_head(v_pages, x, span * padded * 4, at, 1, padded, factor)
