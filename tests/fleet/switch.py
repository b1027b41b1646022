"""The network between the hosts of a bed: a process that carries IP packets from one TUN device to another.

In user space, because few kernels have all of tc's disciplines (netem is often left out), and because one
place then knows what every link does. Packets are real: TCP sees a lost one, and sends it again. The kernel
hands over up to 64 KiB of a stream at once, cut into packets of the MTU nowhere; that keeps the switch cheap.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from multiprocessing.connection import Connection as Pipe
from random import Random

from cluster.fleet.children import Child, family
from fleet.links import Line, Link

DEVICE = "eth0"

# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
CLONE_NEWNET = 0x40000000

# linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET = struct.Struct("=BBHHHH")
DESTINATION = slice(VNET.size + 16, VNET.size + 20)
PROTOCOL = 9
SMALLEST = VNET.size + 20
LARGEST = VNET.size + 65536
AT_ONCE = 64
"""Packets read from a device before the others have their turn."""


@dataclass(frozen=True)
class Port:
    """Where a host is: its address, and a process in its network namespace."""

    address: str
    pid: int


class Network:
    """The switch as seen from the process that started it."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def set(self, source: str, target: str, link: Link) -> None:
        """Have the link from one address to another be so, from the next packet on."""
        self._child.tell(json.dumps([source, target, asdict(link)]))
        self._child.pipe.recv()


@contextmanager
def network(ports: Sequence[Port], seed: int = 0) -> Iterator[Network]:
    """A device eth0 in every host, without an address yet, and the switch between. Raises StartFailed."""
    with family(_switch, [(list(ports), seed)]) as (child,):
        yield Network(child)


def _switch(pipe: Pipe, ports: Sequence[Port], seed: int) -> None:
    devices = {IPv4Address(port.address).packed: _tun(port.pid) for port in ports}
    switch = Switch(devices, Random(seed), time.monotonic)
    pipe.send("switches")
    while True:
        switch.step(pipe.fileno())
        if pipe.poll():
            try:
                source, target, link = json.loads(pipe.recv())
            except EOFError:
                return
            switch.set(IPv4Address(source).packed, IPv4Address(target).packed, Link(**link))
            pipe.send("set")


def _tun(pid: int) -> int:
    """A TUN device in the network namespace of a process, as a file that does not block."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    )
    fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return device


class Switch:
    """devices: file of each address, as its four bytes."""

    def __init__(self, devices: dict[bytes, int], random: Random, clock: Callable[[], float]) -> None:
        self._devices, self._clock = devices, clock
        self._lines = {(source, target): Line(Link(), random) for source in devices for target in devices}
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()

    def set(self, source: bytes, target: bytes, link: Link) -> None:
        self._lines[source, target].link = link

    def step(self, other: int) -> None:
        """Wait for a packet, for one's arrival, or for the file `other`; carry what there is."""
        wait = None
        if self._under_way:
            wait = max(self._under_way[0][0] - self._clock(), 0.0)
        readable, _, _ = select.select([*self._devices.values(), other], [], [], wait)
        for source, device in self._devices.items():
            if device in readable:
                self._take(source, device)
        self._deliver()

    def _take(self, source: bytes, device: int) -> None:
        for _ in range(AT_ONCE):
            try:
                data = os.read(device, LARGEST)
            except BlockingIOError:
                return
            target = data[DESTINATION]
            line = self._lines.get((source, target))
            if len(data) < SMALLEST or line is None or tcp_port(data) in line.link.closed:
                continue
            arrival = line.arrival(self._clock(), len(data), packets_in(data))
            if arrival is not None:
                entry = (arrival, next(self._numbers), self._devices[target], data)
                heapq.heappush(self._under_way, entry)

    def _deliver(self) -> None:
        now = self._clock()
        while self._under_way and self._under_way[0][0] <= now:
            *_, device, data = heapq.heappop(self._under_way)
            try:
                os.write(device, data)
            except OSError:  # its queue is full, or the host is gone: the packet is lost
                continue


def tcp_port(data: bytes) -> int | None:
    """Where a packet goes; None of what is no TCP."""
    packet = memoryview(data)[VNET.size :]
    header = 4 * (packet[0] & 0x0F)
    if packet[PROTOCOL] != socket.IPPROTO_TCP or len(packet) < header + 4:
        return None
    return int.from_bytes(packet[header + 2 : header + 4], "big")


def packets_in(data: bytes) -> int:
    """That the kernel gave as one, by the header before them."""
    _, kind, header, size, *_ = VNET.unpack_from(data)
    return 1 if not kind else -(-(len(data) - VNET.size - header) // size)
