"""What a survey's figures are taken to mean: firewalls, cut and slow links, and what helps."""

import pytest
import yaml

from cluster.fleet.file import load
from cluster.fleet.links.judge import judge
from cluster.fleet.links.listening import IDLE, OURS, RUNNING, TAKEN
from cluster.fleet.links.measuring import OPEN, REFUSED, SILENT
from cluster.fleet.links.portlist import ranges, wanted_ports
from cluster.fleet.links.survey import Direction, Seat, Skew, Survey

MORE = 40_000
SSH = 22


@pytest.fixture
def fleet(tmp_path):
    return make(tmp_path)


def make(tmp_path, gateway=None, **more):
    """more: keys of host b."""
    entries = [
        {"name": name, "address": f"10.0.0.{number}", "role": "edge", "memory_bytes": "1GiB", "cores": 1}
        for number, name in enumerate("abc", 1)
    ]
    entries[0]["role"] = "hub"
    entries[1] |= more
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({"name": "yard", "hosts": entries, "gateway": gateway or {}}))
    return load(file)


def survey(fleet, states=None, **directions):
    """Of links that are fine, but for directions, as ab={"ports": {8480: SILENT}}. states: of b's ports."""
    seats = {}
    for host in fleet.hosts:
        ports = dict.fromkeys(wanted_ports(fleet, host), OURS)
        seats[host.name] = Seat(host, False, ports, MORE, Skew(0.0, 0.0))
    seats["b"].ports.update(states or {})
    found = []
    for source in seats:
        for target in seats.keys() - {source}:
            given = dict(directions.get(source + target, {}))
            ports = dict.fromkeys((*seats[target].ports, MORE, SSH), OPEN) | given.pop("ports", {})
            figures = {"median_s": 3e-4, "p99_s": 6e-4, "round_trips": 200, "bytes_per_s": 117e6}
            found.append(Direction(source, target, ports, **(figures | given)))
    return Survey(seats, tuple(found))


def wrong(fleet, *states, **directions):
    advice = judge(fleet, survey(fleet, *states, **directions))
    return [one for one in advice if one.good is False]


def silent(fleet, name):
    host = next(host for host in fleet.hosts if host.name == name)
    return dict.fromkeys((*wanted_ports(fleet, host), MORE, SSH), SILENT)


NOTHING = {"median_s": None, "p99_s": None, "bytes_per_s": None}


def test_fine_links_are_one_line(fleet):
    (line,) = judge(fleet, survey(fleet))
    assert line.good
    assert line.text == "round trips of 0.30 ms to 0.30 ms, 936 Mbit/s to 936 Mbit/s"


def test_a_fleet_of_one_has_no_links(fleet):
    assert judge(fleet, Survey({}, ())) == []


def test_a_firewall_is_named_with_its_rule_and_for_all_it_keeps_out(fleet):
    closed = {"ports": {8480: SILENT, 8481: SILENT}}
    (line,) = wrong(fleet, ab=closed, cb=closed)
    assert line.host == "b"
    assert line.text == "from a, c: no answer at ports.node 8480, ports.blobs 8481"
    assert "on b: `sudo ufw allow proto tcp from 10.0.0.1 to any port 8480:8481`, and so for c" in line.fix


def test_a_port_that_is_refused_although_something_listens_is_a_firewall_too(fleet):
    (line,) = wrong(fleet, ab={"ports": {8480: REFUSED}})
    assert line.text == "from a: refused at ports.node 8480"


def test_a_cut_link_is_told_from_a_firewall(fleet):
    (line,) = wrong(fleet, ab={"ports": silent(fleet, "b")} | NOTHING)
    assert line.text == "nothing from a gets through: no answer at any port, SSH's included"
    assert "`ping 10.0.0.2` on a" in line.fix


def test_ssh_alone_through_is_a_firewall(fleet):
    (line,) = wrong(fleet, ab={"ports": silent(fleet, "b") | {SSH: OPEN}} | NOTHING)
    assert "ports.ray 6379 6380" in line.text
    assert "6379:6385,8480:8481,8580:8581,10002:10101" in line.fix


def test_what_a_running_fleet_does_not_use_is_not_judged(fleet):
    states = {8480: RUNNING, 8481: IDLE}
    (line,) = wrong(fleet, states, ab={"ports": {8480: SILENT, 8481: REFUSED}})
    assert line.text == "from a: no answer at ports.node 8480"


def test_a_taken_port_is_named_by_its_key(fleet):
    (line,) = wrong(fleet, {8480: TAKEN}, ab={"ports": {8480: SILENT}})
    assert (line.host, line.name) == ("b", "ports")
    assert line.text == "something else uses ports.node 8480"


def test_an_address_that_is_not_the_hosts_own_is_said(fleet):
    states = dict.fromkeys((8480, 8481), "Cannot assign requested address")
    (line,) = wrong(fleet, states)
    assert line.text == "nobody can listen on 10.0.0.2: Cannot assign requested address"


def test_a_far_pair_is_one_line_unless_it_is_two_sites(tmp_path):
    far, worse = {"median_s": 0.018, "p99_s": 0.03}, {"median_s": 0.02, "p99_s": 0.03}
    (line,) = wrong(make(tmp_path), ab=far, ba=worse)
    assert line.host == "a ↔ b"
    assert line.text == "a round trip takes 20.0 ms, above 5.00 ms"
    assert wrong(make(tmp_path, labels={"site": "attic"}), ab=far, ba=far) == []


def test_lost_packets_show_in_the_p99(fleet):
    (line,) = wrong(fleet, ab={"p99_s": 0.21})
    assert line.text == "one round trip in a hundred takes 210 ms: packets are lost"


def test_a_slow_link_is_measured_by_what_the_file_says_of_it(tmp_path):
    slow = {"bytes_per_s": 11e6 / 8}
    (line,) = wrong(make(tmp_path), ab=slow)
    assert (line.host, line.text) == ("a → b", "11.0 Mbit/s, below 50.0 Mbit/s")
    assert wrong(make(tmp_path, link_bytes_per_s=2_000_000), ab=slow) == []
    (line,) = wrong(make(tmp_path, link_bytes_per_s=117_000_000), ab={"bytes_per_s": 11e6})
    assert line.text == "88.0 Mbit/s, below 468 Mbit/s"


def test_what_could_not_be_measured_says_why(fleet):
    (line,) = wrong(fleet, ab={"failed": "host a: timed out"} | NOTHING)
    assert line.text == "not measured: host a: timed out"


def test_a_gateway_for_its_own_machine_is_nobody_elses_matter(tmp_path):
    fleet = make(tmp_path, {"host": "127.0.0.1", "http_host": "127.0.0.1"})
    assert not {8471, 8472} & wanted_ports(fleet, fleet.head).keys()


def test_the_ends_of_a_range_stand_for_all_of_it(fleet):
    asked = [port for port, key in wanted_ports(fleet, fleet.head).items() if key == "ports.workers"]
    assert asked == [10002, 10101]
    assert ranges(fleet, fleet.head, asked) == "10002:10101"
    assert ranges(fleet, fleet.head, [10002, 6380, 8470]) == "6380,8470,10002"
