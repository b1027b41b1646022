"""Placement and replica choice against their targets, their lower bounds and the usual baselines.

PARTS lists what is measured; each part yields results. Loads are drawn from seeds, so that balancedness is
the same on every machine; only times differ.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from cluster.balance import baselines
from cluster.balance.bounds import dispatch_time, fluid_bound, layer_bounds, replica_bound
from cluster.balance.choice import (
    Batch,
    ChoicePolicy,
    Copies,
    distinct_experts,
    even_split,
    fewest_distinct,
    flow,
    least_loaded,
    makespan,
    power_of_two,
)
from cluster.balance.fleet import Booleans, Devices, Floats, Integers, devices_with, equal_devices
from cluster.balance.heuristic import place
from cluster.balance.problem import Placement, Problem
from cluster.cli.bench_laboratory import drift_results, simulator_results
from cluster.cli.bench_live import live_results
from cluster.cli.bench_validate import validation_results
from cluster.cli.report import Result, Target, result
from kernels.flow import flow_rows


@dataclass(frozen=True)
class BalancePreset:
    """draws: independent repetitions of a drawn workload; batches: of each; loads: random loads to place;
    timed: repetitions of a timing. live: clusters to start; tokens: of every request to them.
    fits: of the simulator to live clusters; steps: of a run of theirs. drift: steps of a trace whose domain
    switches."""

    draws: int
    batches: int
    loads: int
    timed: int
    live: int = 2
    tokens: int = 70
    fits: int = 1
    steps: int = 30
    drift: int = 6400


BALANCE_PRESETS = {
    "minimal": BalancePreset(draws=3, batches=20, loads=10, timed=50),
    "full": BalancePreset(draws=20, batches=50, loads=100, timed=500, live=5, tokens=100, fits=3, steps=60),
}

MOST_DRIFTS = 5
"""Seeds of the drift: each is a simulation of seconds."""

Part = Callable[[BalancePreset], Iterator[Result]]
Answer = TypeVar("Answer")


def measure_balance(preset: BalancePreset, say: Callable[[str], None]) -> list[Result]:
    results: list[Result] = []
    for name, part in PARTS.items():
        say(name)
        results += part(preset)
    return results


README_LOAD = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    np.float64,
)
"""The example of EPLB's README: 16 replicas on 8 devices; hierarchically in 4 groups on 2 nodes."""


def known_load(preset: BalancePreset) -> Iterator[Result]:
    """Balancedness where the load is known and slots are scarce: the flow of the load itself."""
    global_, groups = baselines.eplb_global(README_LOAD, 16, 8), (16, 4, 2, 8)
    hierarchical = baselines.eplb_hierarchical(README_LOAD, *groups)
    for layer, (load, optimum) in enumerate(zip(README_LOAD, (0.999, 0.990), strict=True)):
        problem = _one_layer(load, equal_devices(8, 2))
        bounds = layer_bounds(problem, place(problem))[0]
        name = f"balance.readme.layer{layer}"
        target = Target(must=0.985, aim=optimum, reference=f"optimum {optimum}")
        yield result(f"{name}.balancedness", [bounds.balancedness], "ratio", target)
        yield result(f"{name}.bound_of_replicas", [bounds.attainable], "ratio")
        for label, placed in (("eplb_global", global_[layer]), ("eplb_hierarchical", hierarchical[layer])):
            loads = baselines.even_loads(load, placed)
            yield result(f"{name}.{label}", [baselines.balancedness(loads)], "ratio")
            fluid, copies = fluid_bound(load, np.ones(8)), Copies.of(placed > 0)
            yield result(f"{name}.{label}_flow", [fluid / dispatch_time(load, copies, np.ones(8))], "ratio")


TOP_K, EXPERTS = 8, 64
CHOICES: dict[str, ChoicePolicy] = {
    "even_split": even_split,
    "least_loaded": least_loaded,
    "power_of_two": power_of_two,
}
"""Beside the flow, on the same placement."""


def small_batches(preset: BalancePreset) -> Iterator[Result]:
    """64 experts, top-8, 8 equal devices, 16 spare replicas, Zipf 0.6."""
    chances, devices = zipf(EXPERTS, 0.6), equal_devices(8, 10)
    eplb = baselines.eplb_global(chances[None], 80, 8)[0] > 0
    for tokens, must, known in ((32, 0.95, "0.80–0.83"), (256, 0.995, "0.92")):
        name, target = f"balance.zipf.tokens{tokens}", Target(must=must, reference=f"EPLB {known}")
        yield from _batch_results(name, target, chances, devices, eplb, tokens, preset)


def unequal_devices(preset: BalancePreset) -> Iterator[Result]:
    """Speeds 4:4:2:2:2:1:1:1 with slots in proportion; EPLB has ten slots on each."""
    speed, slots = [4.0, 4, 2, 2, 2, 1, 1, 1], [19, 19, 9, 9, 9, 5, 5, 5]
    chances = zipf(EXPERTS, 0.6)
    eplb = baselines.eplb_global(chances[None], 80, 8)[0] > 0
    target = Target(must=0.96, reference="EPLB 0.45")
    devices = devices_with(speed, slots)
    yield from _batch_results("balance.unequal.tokens256", target, chances, devices, eplb, 256, preset)


def _batch_results(
    name: str,
    target: Target,
    chances: Floats,
    devices: Devices,
    eplb: Booleans,
    tokens: int,
    preset: BalancePreset,
) -> Iterator[Result]:
    hosts = place(_one_layer(chances * tokens * TOP_K, devices)).hosts[0]
    compared: dict[str, tuple[Booleans, ChoicePolicy]] = {
        f"{name}.balancedness": (hosts, flow),
        f"{name}.eplb": (eplb, even_split),
        f"{name}.eplb_flow": (eplb, flow),
        **{f"{name}.{label}": (hosts, choose) for label, choose in CHOICES.items()},
    }
    draws = [drawn_rows(chances, tokens, preset.batches, seed) for seed in range(preset.draws)]
    for id, (holders, choose) in compared.items():
        means = [
            float(np.mean([_balance(rows, holders, choose, devices) for rows in draw])) for draw in draws
        ]
        yield result(id, means, "ratio", target if choose is flow and holders is hosts else Target())
    bounds = [float(np.mean([_whole_rows(rows, devices) for rows in draw])) for draw in draws]
    yield result(f"{name}.bound_of_whole_rows", bounds, "ratio")


def _balance(rows: Integers, hosts: Booleans, choose: ChoicePolicy, devices: Devices) -> float:
    batch = Batch(rows, hosts, devices.speed, np.zeros(len(devices)))
    return float(rows.sum() / devices.speed.sum() / makespan(batch, choose(batch)))


def _whole_rows(rows: Integers, devices: Devices) -> float:
    """Balancedness if every device held every expert."""
    return _balance(rows, np.ones((rows.size, len(devices)), np.bool_), flow, devices)


LAYERS, LARGE, SLOTS, FLEET = 58, 256, 320, 64
"""DeepSeek-V3's shape."""


def full_placement(preset: BalancePreset) -> Iterator[Result]:
    """One whole placement of DeepSeek-V3's shape beside EPLB's, both timed in turn on the same loads."""
    devices, sizes = equal_devices(FLEET, LAYERS * SLOTS // FLEET), np.ones((LAYERS, LARGE), np.int64)
    ours, theirs, ratios, balance, known = [], [], [], [], []
    place(Problem(_random_load(preset.loads), sizes, devices))  # compiles or loads the kernels
    for seed in range(preset.loads):
        load = _random_load(seed)
        problem = Problem(load, sizes, devices)
        seconds, placement = _timed(partial(place, problem))
        eplb_seconds, copies = _timed(partial(baselines.eplb_global, load, SLOTS, FLEET))
        ours.append(seconds * 1e3)
        theirs.append(eplb_seconds * 1e3)
        ratios.append(seconds / eplb_seconds)
        balance.append(_mean_balance(problem, placement))
        evens = map(baselines.even_loads, load, copies)
        known.append(float(np.mean([baselines.balancedness(loads) for loads in evens])))
    wins = sum(mine >= theirs_ for mine, theirs_ in zip(balance, known, strict=True)) / preset.loads
    name, target = "balance.deepseek_v3", Target(must=0.1, at_most=True, reference="EPLB in Python")
    yield result(f"{name}.time_ratio", ratios, "ratio", target)
    yield result(f"{name}.place_ms", ours, "ms")
    yield result(f"{name}.eplb_ms", theirs, "ms")
    yield result(f"{name}.loads_no_worse_than_eplb", [wins], "ratio", Target(must=1.0))
    yield result(f"{name}.balancedness", balance, "ratio")
    yield result(f"{name}.eplb", known, "ratio")


def _random_load(seed: int) -> Floats:
    """[58, 256]: a third of the loads each of gamma, log-normal and shuffled Zipf shape."""
    rng, shape = np.random.default_rng(seed), (LAYERS, LARGE)
    if seed % 3 == 0:
        return rng.gamma(2.0, 100.0, shape)
    if seed % 3 == 1:
        return rng.lognormal(5.0, 1.0, shape)
    return rng.permuted(np.tile(5e4 * zipf(LARGE, 0.6), (LAYERS, 1)), axis=1) * rng.uniform(0.5, 1.5, shape)


def _mean_balance(problem: Problem, placement: Placement) -> float:
    return float(np.mean([bounds.balancedness for bounds in layer_bounds(problem, placement).values()]))


def choice_speed(preset: BalancePreset) -> Iterator[Result]:
    """256 experts × 64 devices × 512 rows, 64 spare replicas, speeds up to 1:4 and a backlog."""
    rng = np.random.default_rng(0)
    speed, chances = rng.uniform(1, 4, FLEET), rng.permutation(zipf(LARGE, 0.6))
    hosts = place(_one_layer(chances * 512, devices_with(speed, [5] * FLEET))).hosts[0]
    copies, backlog = Copies.of(hosts), rng.uniform(0, 2, FLEET)
    out, times, over = np.empty(copies.device.size, np.int64), [], []
    for number in range(preset.timed + 1):
        rows = rng.multinomial(512, chances)
        call = partial(flow_rows, rows, copies.starts, copies.device, speed, backlog, out)
        seconds, _ = _timed(call)
        if number:  # the first loads the kernel
            times.append(seconds * 1e6)
        over.append(_rows_over_optimum(rows, copies))
    name = "balance.choice.experts256.devices64.rows512"
    yield result(f"{name}.us", times, "µs", Target(must=200, at_most=True))
    optimum = Target(must=0, at_most=True, reference="LP optimum rounded up to whole rows")
    yield result(f"{name}.rows_over_optimum", [max(over)], "rows", optimum)
    load, copies_ = chances * 512, int(hosts.sum())
    yield result(f"{name}.placement", [dispatch_time(load, copies, speed)], "s")
    yield result(f"{name}.bound_of_replicas", [replica_bound(load, speed, copies_)], "s")
    yield result(f"{name}.bound_fluid", [fluid_bound(load, speed)], "s")


def _rows_over_optimum(rows: Integers, copies: Copies) -> float:
    """Makespan in rows on equal devices above the LP optimum rounded up."""
    out, equal = np.empty(copies.device.size, np.int64), np.ones(copies.devices)
    found = flow_rows(rows, copies.starts, copies.device, equal, np.zeros(copies.devices), out)
    best = dispatch_time(rows.astype(np.float64), copies, equal)
    return float(found - math.ceil(best * (1 - 1e-9)))


def decode(preset: BalancePreset) -> Iterator[Result]:
    """Distinct experts on the device that has most: against brute force, then a decode batch of 16."""
    rng = np.random.default_rng(0)
    exact = [_is_fewest(rng) for _ in range(10 * preset.draws)]
    yield result("balance.distinct.exact", [float(np.mean(exact))], "ratio", Target(must=1.0))
    chances, devices = zipf(EXPERTS, 0.6), equal_devices(8, 10)
    hosts = place(_one_layer(chances * 16 * TOP_K, devices)).hosts[0]
    most: dict[str, list[float]] = {}
    for rows in drawn_rows(chances, 16, preset.batches, 0):
        batch = Batch(rows, hosts, devices.speed, np.zeros(8))
        most.setdefault("bound", []).append(math.ceil(np.count_nonzero(rows) / 8))
        for label, choose in {"fewest": fewest_distinct, "flow": flow, **CHOICES}.items():
            most.setdefault(label, []).append(int(distinct_experts(choose(batch)).max()))
    for label, counts in most.items():
        yield result(f"balance.distinct.decode16.{label}", counts, "experts")
    fewer = 1 - float(np.sum(most["fewest"]) / np.sum(most["even_split"]))
    latency = Target(reference="METRO: 0.11–0.22 lower decode latency than an even split")
    yield result("balance.distinct.decode16.fewer_than_even_split", [fewer], "ratio", latency)


def _is_fewest(rng: np.random.Generator) -> bool:
    hosts = rng.random((6, 4)) < 0.5
    hosts[np.arange(6), rng.integers(0, 4, 6)] = True
    batch = Batch(rng.integers(0, 3, 6), hosts, np.ones(4), np.zeros(4))
    active = [np.flatnonzero(hosts[expert]) for expert in np.flatnonzero(batch.rows)]
    counts = (np.bincount(np.array(one, np.int64), minlength=1).max() for one in itertools.product(*active))
    return bool(distinct_experts(fewest_distinct(batch)).max() == min(counts))


def zipf(experts: int, exponent: float) -> Floats:
    """[experts] chances in proportion to 1 / rank**exponent."""
    weight = 1 / np.arange(1, experts + 1) ** exponent
    chances: Floats = weight / weight.sum()
    return chances


def drawn_rows(chances: Floats, tokens: int, batches: int, seed: int) -> Integers:
    """[batches, experts] rows where every token draws TOP_K different experts (Gumbel top-k)."""
    keys = np.log(chances) + np.random.default_rng(seed).gumbel(size=(batches, tokens, chances.size))
    ids = np.argpartition(-keys, TOP_K, axis=2)[:, :, :TOP_K].reshape(batches, -1)
    return np.stack([np.bincount(batch, minlength=chances.size) for batch in ids])


def _one_layer(load: Floats, devices: Devices) -> Problem:
    """Experts of one byte: memory counts slots."""
    return Problem(load[None], np.ones((1, load.size), np.int64), devices)


def _timed(call: Callable[[], Answer]) -> tuple[float, Answer]:
    begin = time.perf_counter()
    answer = call()
    return time.perf_counter() - begin, answer


PARTS: dict[str, Part] = {
    "placing a known load": known_load,
    "small batches": small_batches,
    "unequal devices": unequal_devices,
    "placing DeepSeek-V3": full_placement,
    "choosing replicas": choice_speed,
    "distinct experts": decode,
    "a domain switches": lambda preset: drift_results(min(preset.draws, MOST_DRIFTS), preset.drift),
    "the simulator": lambda preset: simulator_results(preset.draws),
    "a live cluster of paced nodes": lambda preset: live_results(preset.live, preset.tokens),
    "the simulator beside live clusters": lambda preset: validation_results(preset.steps, preset.fits),
}
