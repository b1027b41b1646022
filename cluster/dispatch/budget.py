"""What asking twice may cost: a bucket that fills with what is asked once. Pure."""

from __future__ import annotations

SHARE = 0.05
"""Of all (row, expert) pairs sent, so many may be sent a second time on suspicion."""

BURST_PAIRS = 1024.0


class HedgeBudget:
    """share: pairs gained for each pair sent; burst: the most that can be saved up, and what it starts with.

    Over any stretch of time at most burst + share · sent pairs are spent. What is gained is reckoned when
    something is to be spent, so that sending costs nothing more.
    """

    def __init__(self, share: float = SHARE, burst: float = BURST_PAIRS) -> None:
        self._share, self._burst = share, burst
        self._saved = burst
        self._sent = 0

    def spend(self, pairs: int, sent: int) -> bool:
        """Whether so many pairs may be sent again; they are paid for then. sent: all pairs so far."""
        self._saved = min(self._saved + self._share * (sent - self._sent), self._burst)
        self._sent = sent
        if pairs > self._saved:
            return False
        self._saved -= pairs
        return True
