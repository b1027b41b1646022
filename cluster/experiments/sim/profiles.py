"""Device classes for experiments. Derived from public specifications, not measured here: fit your own
(cluster/experiments/sim/fit.py) before believing an absolute figure.

ops: cores × clock × int8 operations a cycle, halved for what kernels reach. read: four fifths of the memory's
rated bandwidth. memory: what is left for experts beside system and Python. Links: the wired port, less 6 %
for frames; latency one way through one switch. message_s: the time that a small message costs a Python
process, scaled by the clock from the 30 µs measured on a server core (docs/decisions/0014).
"""

from __future__ import annotations

from cluster.errors import ConfigError
from cluster.experiments.sim.model import Device

GiB = 1 << 30
GIGABIT, TEN_GIGABIT = 117e6, 1.17e9

PROFILES = {
    # 4 × Cortex-A76 at 2.4 GHz, two 128-bit sdot pipes: 64 ops a cycle; LPDDR4X-4267, 32 bit: 17 GB/s; 8 GB;
    # microSD/NVMe
    "raspberry-pi-5": Device(0.5 * 4 * 2.4e9 * 64, 0.8 * 17.1e9, 6 * GiB, 90e-6, 100e-6, GIGABIT, 400e6),
    # 4 × Gracemont at 2.9 GHz sustained, AVX2-VNNI, one 256-bit pipe: 64 ops a cycle; DDR5-4800, one
    # channel: 38 GB/s; 16 GB
    "n100": Device(0.5 * 4 * 2.9e9 * 64, 0.8 * 38.4e9, 13 * GiB, 60e-6, 100e-6, GIGABIT, 1.5e9),
    # Orin Nano, CPU only: 6 × Cortex-A78AE at 1.5 GHz, two sdot pipes; LPDDR5, 128 bit: 68 GB/s; 8 GB
    "jetson-orin": Device(0.5 * 6 * 1.5e9 * 64, 0.8 * 68e9, 6 * GiB, 100e-6, 100e-6, GIGABIT, 1.5e9),
    # 16 cores at 2.6 GHz, AVX-512 VNNI, one pipe: 128 ops a cycle; DDR5-4800, eight channels: 307 GB/s; 128
    # GB; 10 GbE
    "server-16": Device(0.5 * 16 * 2.6e9 * 128, 0.8 * 307e9, 112 * GiB, 30e-6, 30e-6, TEN_GIGABIT, 3e9),
    # a DIMM-side accelerator: 2 TOPS beside 8 GiB at 100 GB/s, reached through its host's 10 GbE
    "near-memory": Device(0.5 * 2e12, 0.8 * 100e9, 8 * GiB, 30e-6, 50e-6, TEN_GIGABIT, 3e9),
}


def profile(name: str) -> Device:
    """Raises ConfigError for a name that does not exist."""
    if name not in PROFILES:
        raise ConfigError(f"there is no device profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]
