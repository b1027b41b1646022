"""What streams shall be: the tokens of one process (`moemesh generate --local`), for comparison."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.cli.bench_failover import reference
from cluster.experiments.live.failover import as_expected
from cluster.experiments.live.streams import Stream, sampled_requests
from cluster.library.bundled import open_model


class Undisturbed:
    """Computes every answer once."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int], list[list[int]]] = {}

    def tokens(self, streams: int, tokens: int) -> list[list[int]]:
        if (streams, tokens) not in self._tokens:
            library = open_model()
            self._tokens[streams, tokens] = reference(library, sampled_requests(library, streams, tokens))
        return self._tokens[streams, tokens]

    def check(self, found: Sequence[Stream], streams: int, tokens: int) -> None:
        """No stream failed, at least one came to its end, and each has the tokens that it should have."""
        expected = self.tokens(streams, tokens)
        assert not [one.error for one in found if one.error]
        assert any(one.ended for one in found), "no stream came to its end: nothing was compared"
        other = [one.request for one in found if not as_expected(one, expected[one.request])]
        assert not other, f"requests with other tokens than in one process: {other}"
