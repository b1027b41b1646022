"""What `doctor --fleet` makes of its hosts' reports."""

import yaml

from cluster.fleet.checkup import Report, judge
from cluster.fleet.file import load

VERSIONS = {"moemesh": "1.0", "python": "3.11.2", "numba": "0.60", "llvmlite": "0.43"}


def report(clock_s=0.0, wrong=(), **versions):
    found = {
        "machine": {"cpu": "Cortex-A76", "cores": 4},
        "instruction_set": {"chosen": "neon"},
        "versions": VERSIONS | versions,
        "bits": {"checked": 20, "wrong": list(wrong)},
    }
    return Report(found, clock_s)


def bad(tmp_path, **reports):
    file = tmp_path / "fleet.yaml"
    hosts = [
        {"name": name, "address": f"10.0.0.{number}", "role": role, "memory_bytes": "1GiB", "cores": 1}
        for number, (name, role) in enumerate((("hub", "hub"), ("one", "edge")), 1)
    ]
    file.write_text(yaml.safe_dump({"name": "yard", "hosts": hosts}))
    found = judge(load(file), {"hub": report(), "one": report()} | reports)
    return [(one.host, one.name, one.fix) for one in found if one.good is False]


def test_equal_hosts_are_fine(tmp_path):
    assert bad(tmp_path) == []
    assert bad(tmp_path, one=report(python="3.11.9")) == []


def test_another_version_is_named_with_that_of_the_head(tmp_path):
    assert bad(tmp_path, one=report(numba="0.61")) == [
        ("one", "versions", "install numba 0.60 there, as on hub")
    ]
    assert bad(tmp_path, one=report(python="3.12.2"))[0][2] == "install python 3.11.2 there, as on hub"


def test_a_clock_that_is_off_has_a_fix(tmp_path):
    ((host, name, fix),) = bad(tmp_path, one=report(clock_s=-5.0))
    assert (host, name) == ("one", "clock")
    assert "timedatectl" in fix


def test_wrong_bits_are_a_finding(tmp_path):
    ((host, name, _),) = bad(tmp_path, hub=report(wrong=["gemm"]))
    assert (host, name) == ("hub", "bits")
