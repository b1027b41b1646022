"""What a survey's figures mean, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cluster.fleet.file import FleetFile, Host
from cluster.fleet.findings import Advice
from cluster.fleet.links.reached import own_ports, reached
from cluster.fleet.links.survey import Direction, Survey

LATENCY_S = 5e-3
"""Of a round trip between machines of one site. A token crosses the network there and back in every sparse
layer: in 16 layers this is 80 ms a token, about as fast as people read."""

LOSS_S = 0.2
"""TCP waits no less than this until it sends a lost packet again: a p99 above it is no queue."""

LEAST_BYTES_PER_S = 50e6 / 8
"""Where the fleet file does not say `link_bytes_per_s`. One token of OLMoE (16 layers, 8 rows of 2048 bf16
back, one of int8 out) puts 0.54 MB on the links: 11 tokens a second."""

PART = 0.5
"""Of the `link_bytes_per_s` that the fleet file says; `moemesh plan` counts on all of it."""


def judge(fleet: FleetFile, survey: Survey) -> list[Advice]:
    """Ports first, then links; one line that says how good they are where none is wrong."""
    found = [one for seat in survey.seats.values() for one in own_ports(fleet, seat)]
    for seat in survey.seats.values():
        found += reached(fleet, seat, survey)
    measured = [one for one in survey.directions if one.median_s is not None]
    hosts = {name: seat.host for name, seat in survey.seats.items()}
    wrong = [*_latencies(hosts, measured), *_bandwidths(hosts, measured)]
    found += [_not_measured(one) for one in survey.directions if one.failed]
    if measured and not wrong:
        found.append(_fine(measured))
    return [*found, *wrong]


def _not_measured(one: Direction) -> Advice:
    return Advice(_arrow(one), "link", f"not measured: {one.failed}", False, "call doctor again")


def _latencies(hosts: Mapping[str, Host], measured: Iterable[Direction]) -> Iterator[Advice]:
    """A round trip goes both ways: the worse of the two directions speaks for a pair, which is named as the
    fleet file has it, whichever that is."""
    pairs: dict[tuple[str, str], Direction] = {}
    for one in measured:
        back = one.target, one.source
        pair = back if back in pairs else (one.source, one.target)
        pairs[pair] = max(pairs.get(pair, one), one, key=lambda each: each.median_s or 0.0)
    for (host, other), one in pairs.items():
        assert one.median_s is not None
        assert one.p99_s is not None
        name = f"{host} ↔ {other}"
        if one.median_s > LATENCY_S and _same_site(hosts[one.source], hosts[one.target]):
            text = f"a round trip takes {ms(one.median_s)}, above {ms(LATENCY_S)}"
            fix = "use a cable in place of wifi, and one switch; or label them with the `site`s they stand at"
            yield Advice(name, "latency", text, False, fix)
        if one.p99_s > one.median_s + LOSS_S:
            text = f"one round trip in a hundred takes {ms(one.p99_s)}: packets are lost"
            fix = "check cables and the switch's ports (`ip -s link` counts errors), or the wifi's signal"
            yield Advice(name, "latency", text, False, fix)


def _bandwidths(hosts: Mapping[str, Host], measured: Iterable[Direction]) -> Iterator[Advice]:
    for one in measured:
        assert one.bytes_per_s is not None
        least = least_bytes_per_s(hosts[one.source], hosts[one.target])
        if one.bytes_per_s < least:
            text = f"{bits(one.bytes_per_s)}, below {bits(least)}"
            fix = "check cable, switch and wifi: `ethtool DEVICE` says at what speed a port runs"
            yield Advice(_arrow(one), "bandwidth", text, False, fix)


def least_bytes_per_s(one: Host, other: Host) -> float:
    """What a link between them must carry: `PART` of what the fleet file says of the slower one."""
    said = [host.link_bytes_per_s for host in (one, other) if host.link_bytes_per_s]
    return PART * min(said) if said else LEAST_BYTES_PER_S


def _fine(measured: Sequence[Direction]) -> Advice:
    latencies = [one.median_s for one in measured if one.median_s is not None]
    speeds = [one.bytes_per_s for one in measured if one.bytes_per_s is not None]
    text = (
        f"round trips of {ms(min(latencies))} to {ms(max(latencies))}, "
        f"{bits(min(speeds))} to {bits(max(speeds))}"
    )
    return Advice("links", f"{len(measured)} directions", text, True)


def _same_site(one: Host, other: Host) -> bool:
    return one.labels.get("site", "") == other.labels.get("site", "")


def ms(seconds: float) -> str:
    return f"{figure(1e3 * seconds)} ms"


def bits(bytes_per_s: float) -> str:
    return f"{figure(8e-6 * bytes_per_s)} Mbit/s"


def figure(value: float) -> str:
    """Two decimals below 10, one below 100, else none."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _arrow(one: Direction) -> str:
    return f"{one.source} → {one.target}"
