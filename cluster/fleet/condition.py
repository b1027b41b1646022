"""The condition of this machine, beside its processor: memory, limits, clock, disk, ports."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from cluster.config import GatewayConfig
from cluster.fleet import clock, ports
from cluster.fleet.cgroups import autogrouped, cpu_limit, memory_limits
from cluster.fleet.disk import DiskSpeed, disk_speed
from cluster.fleet.findings import Finding
from cluster.fleet.folder import Folder
from cluster.fleet.gateways import PORTS_PER_GATEWAY
from cluster.fleet.memory import free_memory
from cluster.sizes import about

LEAST_FREE_BYTES = 512 << 20
"""Ray's processes and those of the smallest cluster take about as much."""

USUAL_PAGE = 4096
LEAST_WRITE, LEAST_READ = 5e6, 20e6
"""Bytes per second. SD cards of class 10 write 10e6 at least; an expert of 6 MiB that is read by 20e6 is back
after a loss within 0.3 s."""

LOOPBACK = "127.0.0.1"


def condition(folder: Folder) -> list[Finding]:
    """folder: of the state, whose disk is measured."""
    limit = min((found.bytes for found in memory_limits()), default=None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        memory(psutil.virtual_memory().total, free_memory(), limit),
        page_size(mmap.PAGESIZE),
        cpu_time(cores, cpu_limit()),
        scheduler(autogrouped()),
        clock_kept(clock.synchronised()),
        disk(folder.path),
        own_ports(folder),
    ]


def memory(total: int, free: int, limit: int | None) -> Finding:
    """Bytes. limit: the tightest of the control groups above us."""
    limited = f", limited to {about(limit)} by its control group" if limit is not None else ""
    good = free >= LEAST_FREE_BYTES
    return Finding(
        "memory",
        f"{about(total)}, {about(free)} free{limited}",
        {"total_bytes": total, "free_bytes": free, "limit_bytes": limit},
        good,
        "" if good else f"end what uses it, until {about(LEAST_FREE_BYTES)} are free",
    )


def page_size(size: int) -> Finding:
    fix = ""
    if size > USUAL_PAGE:
        fix = (
            "fine unless a package refuses it (`Unsupported system page size`); a Raspberry Pi 5 has pages "
            "of 4 KiB with `kernel=kernel8.img` in /boot/firmware/config.txt"
        )
    return Finding("page_size", about(size), size, fix=fix)


def cpu_time(cores: int, limit: float | None) -> Finding:
    """limit: CPUs' worth of time that the control groups allow."""
    values = {"cores": cores, "limit": limit}
    if limit is None or limit >= cores:
        return Finding("cpu_time", f"all of {cores} cores", values)
    fix = f"compute with {max(int(limit), 1)} threads, or raise the limit: more are stopped in mid-step"
    return Finding("cpu_time", f"{limit:g} of {cores} cores, limited by its control group", values, fix=fix)


def scheduler(autogroups: bool) -> Finding:
    """autogroups: as `cgroups.autogrouped` says."""
    if not autogroups:
        return Finding("scheduler", "processes share the cores", {"autogroups": False})
    text = "sessions share the cores (autogroups); a cluster on one machine gives each process its own"
    return Finding("scheduler", text, {"autogroups": True})


def clock_kept(synchronised: bool | None) -> Finding:
    text = {None: "this system does not say whether it is synchronised", True: "synchronised"}
    fix = "`sudo timedatectl set-ntp true`" if synchronised is False else ""
    return Finding(
        "clock", text.get(synchronised, "not synchronised"), {"synchronised": synchronised}, fix=fix
    )


def disk(folder: Path) -> Finding:
    try:
        return disk_finding(disk_speed(folder))
    except OSError as error:
        text = f"nothing can be written to {folder}: {error.strerror}"
        fix = f"`sudo install -d -o $USER {folder}`, or free space on its disk"
        return Finding("disk", text, {"folder": str(folder), "error": str(error.strerror)}, False, fix)


def disk_finding(speed: DiskSpeed) -> Finding:
    text = (
        f"{speed.folder} writes {speed.write / 1e6:.0f} and reads {speed.read / 1e6:.0f} MB/s, "
        f"{about(speed.free_bytes)} free"
    )
    values = {
        "folder": speed.folder,
        "write_bytes_per_s": round(speed.write),
        "read_bytes_per_s": round(speed.read),
        "free_bytes": speed.free_bytes,
    }
    good = speed.write >= LEAST_WRITE and speed.read >= LEAST_READ
    least = f"{LEAST_WRITE / 1e6:.0f} and {LEAST_READ / 1e6:.0f} MB/s"
    fix = "" if good else f"below {least} experts come late: use an SSD, or a newer card"
    return Finding("disk", text, values, good, fix)


def own_ports(folder: Folder) -> Finding:
    """Of a cluster on this machine, as `up` chooses them."""
    record = folder.read()
    up = record is not None and record.alive()
    config = GatewayConfig()
    wanted = range(config.port, config.port + PORTS_PER_GATEWAY)
    return ports_finding(up, wanted, [port for port in wanted if not up and ports.problem(LOOPBACK, port)])


def ports_finding(up: bool, wanted: Iterable[int], taken: list[int]) -> Finding:
    names = " and ".join(map(str, taken or wanted))
    text = "in use by the cluster that runs here" if up else f"{names} {'taken' if taken else 'free'}"
    fix = "stop what uses them, or choose others: `moemesh up --grpc HOST:PORT --http HOST:PORT`"
    return Finding("ports", text, {"up": up, "taken": taken}, fix=fix if taken else "")
