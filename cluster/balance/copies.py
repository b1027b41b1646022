"""A least number of copies of every expert. Pure."""

from __future__ import annotations

import numpy as np

from cluster.balance.fleet import Booleans, Integers


def complete(hosts: Booleans, sizes: Integers, memory: Integers, able: Booleans, copies: int) -> Booleans:
    """`hosts` with copies added until every expert has `copies`, as far as memories allow, and at least one.

    hosts: [layers, experts, devices]; sizes: [layers, experts] bytes, 0 for what is no expert; memory:
    [devices] bytes; able: [devices], who may be given any. Each goes to the device with fewest of its layer,
    then the most room.
    """
    full: Booleans = hosts.copy()
    free = memory - np.einsum("led,le->d", full, sizes)
    for wanted in range(1, copies + 1):
        short = np.argwhere((full.sum(axis=2) < wanted) & (sizes > 0))
        for layer, expert in short.tolist():
            size = int(sizes[layer, expert])
            fits = able & ~full[layer, expert] & ((free >= size) | (wanted == 1))
            if fits.any():
                # Whoever has room before whoever has not; then the layer's balance, then the most room.
                order = np.lexsort((-free, full[layer].sum(axis=0), free < size))
                device = next(d for d in order.tolist() if fits[d])
                full[layer, expert, device] = True
                free[device] -= size
    return full
