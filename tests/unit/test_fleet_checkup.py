"""What `doctor --fleet` makes of its hosts' reports."""

import pytest
import yaml

from cluster.fleet.checkup import Checkup, judge
from cluster.fleet.file import load
from cluster.fleet.links.survey import Seat, Skew, Survey, measure_skew
from cluster.fleet.room import OVERHEAD_BYTES

GIB = 1 << 30
VERSIONS = {"moemesh": "1.0", "python": "3.11.2", "ray": "2.60", "numba": "0.60", "llvmlite": "0.43"}


def report(wrong=(), cpu="Cortex-A76", free=4 * GIB, limit=None, cpus=None, up=False, said=(), **versions):
    return {
        "machine": {"cpu": cpu, "cores": 4},
        "instruction_set": {"chosen": "neon"},
        "versions": VERSIONS | {"numerics": "1"} | versions,
        "bits": {"checked": 20, "wrong": list(wrong)},
        "memory": {"total_bytes": 8 * GIB, "free_bytes": free, "limit_bytes": limit},
        "cpu_time": {"cores": 4, "limit": cpus},
        "clock": {"synchronised": True},
        "ports": {"up": up, "taken": []},
        "findings": list(said),
    }


@pytest.fixture
def fleet(tmp_path):
    file = tmp_path / "fleet.yaml"
    hosts = [
        {"name": name, "address": f"10.0.0.{number}", "role": role, "memory_bytes": "1GiB", "cores": 2}
        for number, (name, role) in enumerate((("hub", "hub"), ("one", "edge")), 1)
    ]
    file.write_text(yaml.safe_dump({"name": "yard", "hosts": hosts}))
    return load(file)


def advice(fleet, failed=None, skew=None, **reports):
    reports = {"hub": report(), "one": report()} | reports
    reports = {name: one for name, one in reports.items() if name not in (failed or {})}
    seats = {}
    if skew is not None:
        seats["one"] = Seat(fleet.hosts[1], False, {}, 0, skew)
    return judge(fleet, Checkup(reports, failed or {}, Survey(seats, ())))


def bad(fleet, **more):
    return [(one.host, one.name, one.fix) for one in advice(fleet, **more) if one.good is False]


def test_equal_hosts_are_fine(fleet):
    assert bad(fleet) == []
    assert bad(fleet, one=report(python="3.11.9")) == []


def test_another_version_is_named_with_that_of_the_head(fleet):
    assert bad(fleet, one=report(numba="0.61")) == [
        ("one", "versions", "install numba 0.60 there, as on hub")
    ]
    assert bad(fleet, one=report(ray="2.61"))[0][2] == "install ray 2.60 there, as on hub"
    assert bad(fleet, one=report(python="3.12.2"))[0][2] == "install python 3.11.2 there, as on hub"
    assert "numerics 1 there" in bad(fleet, one=report(numerics="2"))[0][2]


def test_a_clock_that_is_off_has_a_fix_unless_it_is_the_measurement(fleet):
    ((host, name, fix),) = bad(fleet, skew=Skew(-5.0, 0.1))
    assert (host, name) == ("one", "clock")
    assert "timedatectl" in fix
    assert bad(fleet, skew=Skew(1.2, 0.5)) == []


def test_a_clock_that_nothing_keeps_right_is_advice(fleet):
    one = report() | {"clock": {"synchronised": False}}
    (clock,) = [each for each in advice(fleet, one=one, skew=Skew(0.1, 0.001)) if each.name == "clock"]
    assert clock.good is None
    assert clock.text == "+0.100 s from this machine's, ± 1 ms, not synchronised"
    assert "set-ntp" in clock.fix


def test_wrong_bits_are_a_finding(fleet):
    ((host, name, _),) = bad(fleet, hub=report(wrong=["gemm"]))
    assert (host, name) == ("hub", "bits")


def test_memory_must_do_for_what_the_file_says_unless_the_fleet_has_it_already(fleet):
    least = GIB + OVERHEAD_BYTES
    assert bad(fleet, one=report(free=least)) == []
    ((host, name, fix),) = bad(fleet, one=report(free=least - 1))
    assert (host, name) == ("one", "memory")
    assert fix.startswith("1.25 GiB are needed: lower memory_bytes (1 GiB)")
    assert bad(fleet, one=report(free=0, up=True)) == []


def test_cores_that_a_control_group_does_not_give_are_a_finding(fleet):
    assert bad(fleet, one=report(cpus=2.0)) == []
    assert bad(fleet, one=report(cpus=1.5))[0][2].startswith("`cores: 1`")


def test_what_a_host_says_of_its_disk_is_passed_on(fleet):
    slow = {"name": "disk", "text": "slow", "good": False, "fix": "buy another"}
    ports = {"name": "ports", "text": "8471 taken", "good": None, "fix": "another"}
    assert bad(fleet, one=report(said=[slow, ports])) == [("one", "disk", "buy another")]


def test_a_host_that_cannot_be_asked_is_a_finding_beside_the_others(fleet):
    found = advice(fleet, failed={"hub": "host hub is not reached by ssh; switch it on"})
    (asked,) = [one for one in found if one.good is False]
    assert (asked.host, asked.fix) == ("hub", "switch it on")
    assert {one.host for one in found} == {"hub", "one"}


def test_other_processors_are_no_error(fleet):
    assert not [one for one in advice(fleet) if one.name == "cpu types"]
    (line,) = [one for one in advice(fleet, one=report(cpu="N100")) if one.name == "cpu types"]
    assert line.good is None
    assert line.text == "hub: Cortex-A76 (neon); one: N100 (neon). They compute the same bits"


def test_skew_is_free_of_the_round_trip_and_the_fastest_answer_counts():
    here = iter([0.0, 2.0, 10.0, 10.2, 20.0, 21.0, 30.0, 31.0, 40.0, 41.0])
    there = iter([1.5, 15.1, 25.9, 35.9, 45.9])
    skew = measure_skew(lambda: next(there), lambda: next(here))
    assert skew == pytest.approx((5.0, 0.1))
