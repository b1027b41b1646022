"""Small placement policies for tests, named in specs by import path."""

from __future__ import annotations

import numpy as np

from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError


def dealt(problem: Problem, copies: int = 1) -> Placement:
    """Experts over devices in turn, further copies on the next ones; none on a device without memory."""
    hosts = np.zeros((*problem.load.shape, len(problem.devices)), bool)
    there = np.flatnonzero(problem.devices.memory > 0)
    for layer, expert in np.ndindex(*problem.load.shape):
        for copy in range(min(copies, len(there))):
            hosts[layer, expert, there[(layer + expert + copy) % len(there)]] = True
    return Placement(hosts)


def twice(problem: Problem) -> Placement:
    return dealt(problem, 2)


def by_load(problem: Problem) -> Placement:
    """The heaviest expert of every layer has two copies."""
    hosts = dealt(problem).hosts.copy()
    for layer, expert in enumerate(problem.load.argmax(axis=1)):
        hosts[layer, expert, np.flatnonzero(problem.devices.memory > 0)[:2]] = True
    return Placement(hosts)


def refusing(problem: Problem) -> Placement:
    raise ConfigError("this policy never places anything")


NOT_A_FUNCTION = 3
