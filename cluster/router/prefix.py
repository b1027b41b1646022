"""What a KV page holds, as a key: equal keys, equal bits.

Keys and values of a token depend on the tokens up to it and on nothing else of the request, so a page that is
full can serve every sequence that begins with the same tokens. The key of a page is a digest over the key of
the page before it and its own tokens (NUMERICS: library, numerics version, tier, KV type, tenant, token ids).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from cluster.types import NUMERICS_VERSION

KEY_BYTES = 16


def root_key(library: str, tier: str, kv_type: str, tenant: str) -> bytes:
    """The key before the first page. library: digest of its manifest. Two tenants share nothing."""
    fields = (library, str(NUMERICS_VERSION), tier, kv_type, tenant)
    return _digest(b"".join(len(field.encode()).to_bytes(4, "little") + field.encode() for field in fields))


def extend_keys(keys: list[bytes], root: bytes, tokens: Sequence[int], page_tokens: int) -> None:
    """Append the keys of the full pages of `tokens` that `keys` has not yet."""
    for begin in range(len(keys) * page_tokens, len(tokens) - page_tokens + 1, page_tokens):
        page = np.array(tokens[begin : begin + page_tokens], "<i4").tobytes()
        keys.append(_digest((keys[-1] if keys else root) + page))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=KEY_BYTES).digest()
