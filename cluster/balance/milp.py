"""The exact placement, for planning: a mixed-integer program solved by HiGHS, with the gap that is left.

Per layer l: minimise Σ_l T_l subject to
    Σ_d y_led = w_le                        every row is served
    y_led ≤ w_le · x_led                    by a device that holds the expert
    Σ_e y_led ≤ s_d · T_l                   within the layer's time
    Σ_d x_led ≥ 1, Σ_le b_le · x_led ≤ m_d  one copy at least, memories hold all layers
with x binary and T_l the time as a multiple of the layer's ideal, Σ w / Σ s. Goals that the objective weighs
beside the makespan: bytes moved are linear in x; distinct experts are blended into w, as in the heuristic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.balance.fleet import Booleans, Floats
from cluster.balance.heuristic import place
from cluster.balance.objective import Objective, blended_load, cost
from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError, MissingExtra


@dataclass(frozen=True)
class Plan:
    """A placement and how far from the best it can be.

    cost: of the placement (objective.cost); bound: no placement costs less. seconds: of solving.
    """

    placement: Placement
    cost: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """(cost - bound) / cost, 0 at the optimum."""
        return max(0.0, (self.cost - self.bound) / self.cost)

    @property
    def optimal(self) -> bool:
        return self.gap <= _CLOSED

    def report(self) -> str:
        """One line for people."""
        proof = "optimal" if self.optimal else f"at most {100 * self.gap:.2f} % above the best"
        return f"cost {self.cost:.4f}, bound {self.bound:.4f}: {proof}, {self.seconds:.1f} s"


_CLOSED = 1e-4


def plan(problem: Problem, objective: Objective | None = None, *, limit_s: float = 60.0) -> Plan:
    """The best placement found within `limit_s` seconds, starting from the heuristic's.

    Links between sites do not enter: their cost is quadratic. Raises MissingExtra without highspy,
    ConfigError where links count, and OutOfMemoryBudget as the heuristic does.
    """
    goals = objective or Objective()
    if goals.links and (problem.coactivation is not None or problem.affinity is not None):
        raise ConfigError("the exact placement knows no links between sites; set the weight of links to 0")
    highspy = _highspy()
    model = _Model.build(highspy, problem, goals)
    start = place(problem, goals)
    model.start_from(start)
    model.solver.setOptionValue("time_limit", float(limit_s))
    model.solver.setOptionValue("mip_rel_gap", _CLOSED / 10)
    model.solver.run()
    placement = model.placement() or start
    bound = max(model.solver.getInfo().mip_dual_bound, 0.0)
    return Plan(placement, cost(problem, placement, goals), float(bound), float(model.solver.getRunTime()))


def _highspy() -> Any:
    try:
        import highspy
    except ImportError as error:
        raise MissingExtra(
            "exact placements need the extra `plan` (highspy): pip install 'moemesh[plan]'"
        ) from error
    return highspy


@dataclass(frozen=True, eq=False, repr=False)
class _Model:
    """Columns: T by layer, then x, then y of [layers, experts, devices], layers with experts only."""

    highspy: Any
    solver: Any
    problem: Problem
    layers: list[int]

    @classmethod
    def build(cls, highspy: Any, problem: Problem, goals: Objective) -> _Model:
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        model = cls(highspy, solver, problem, [int(layer) for layer in np.flatnonzero(problem.sparse)])
        model._add_columns(goals)
        load = blended_load(problem, goals)
        for number, layer in enumerate(model.layers):
            model._add_layer(number, load[layer])
        model._add_memories()
        return model

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.layers), self.problem.load.shape[1], len(self.problem.devices)

    def _x(self, layer: int, expert: int, device: int) -> int:
        _, experts, devices = self._shape
        return len(self.layers) + (layer * experts + expert) * devices + device

    def _y(self, layer: int, expert: int, device: int) -> int:
        return self._x(layer, expert, device) + int(np.prod(self._shape))

    def _add_columns(self, goals: Objective) -> None:
        layers, size = len(self.layers), int(np.prod(self._shape))
        costs = np.zeros(layers + 2 * size)
        costs[:layers] = goals.balance / layers
        current = self.problem.current
        if current is not None:
            share = goals.moves * self.problem.expert_bytes / self.problem.expert_bytes.sum()
            moves = np.where(current.hosts, 0.0, share[:, :, None])[self.layers]
            costs[layers : layers + size] = moves.ravel()
        upper = np.full(costs.size, self.solver.getInfinity())
        upper[layers : layers + size] = 1
        self.solver.addVars(costs.size, np.zeros(costs.size), upper)
        columns = np.arange(costs.size, dtype=np.int32)
        self.solver.changeColsCost(costs.size, columns, costs)
        binary = columns[layers : layers + size]
        kinds = np.full(size, self.highspy.HighsVarType.kInteger)
        self.solver.changeColsIntegrality(size, binary, kinds)

    def _add_layer(self, number: int, load: Floats) -> None:
        """load: [experts], here in shares of what all devices do in the layer's ideal time."""
        _, experts, devices = self._shape
        speed = self.problem.devices.speed / self.problem.devices.speed.sum()
        share = load / load.sum() if load.any() else load
        for e in range(experts):
            self._row(1, _FREE, [(self._x(number, e, d), 1.0) for d in range(devices)])
            self._row(share[e], share[e], [(self._y(number, e, d), 1.0) for d in range(devices)])
            for d in range(devices):
                self._row(-_FREE, 0, [(self._y(number, e, d), 1.0), (self._x(number, e, d), -share[e])])
        for d in range(devices):
            used = [(self._y(number, e, d), 1.0) for e in range(experts)]
            self._row(-_FREE, 0, [*used, (number, -speed[d])])

    def _add_memories(self) -> None:
        layers, experts, devices = self._shape
        sizes = self.problem.expert_bytes[self.layers]
        unit = float(sizes.max())  # numbers near 1: solvers compare with absolute tolerances
        for d in range(devices):
            held = [(self._x(n, e, d), sizes[n, e] / unit) for n in range(layers) for e in range(experts)]
            self._row(-_FREE, float(self.problem.devices.memory[d]) / unit, held)

    def _row(self, lower: float, upper: float, terms: list[tuple[int, float]]) -> None:
        columns, values = zip(*terms, strict=True)
        self.solver.addRow(
            lower, upper, len(terms), np.array(columns, np.int32), np.array(values, np.float64)
        )

    def start_from(self, placement: Placement) -> None:
        """Give the solver a placement; it works out times and rows by itself."""
        hosts = placement.hosts[self.layers].ravel().astype(np.float64)
        columns = len(self.layers) + np.arange(hosts.size, dtype=np.int32)
        self.solver.setSolution(hosts.size, columns, hosts)

    def placement(self) -> Placement | None:
        """The best found, None if time was too short even to complete the start."""
        if (
            self.solver.getInfo().primal_solution_status
            != self.highspy.SolutionStatus.kSolutionStatusFeasible
        ):
            return None
        layers = len(self.layers)
        values = np.array(self.solver.getSolution().col_value)
        hosts: Booleans = np.zeros((*self.problem.load.shape, len(self.problem.devices)), np.bool_)
        hosts[self.layers] = (values[layers : layers + int(np.prod(self._shape))] > 0.5).reshape(self._shape)
        placement = Placement(hosts)
        self.problem.check(placement)
        return placement


_FREE = 1e30
"""What HiGHS takes for no limit."""
