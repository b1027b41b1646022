"""A cluster of the real roles of which one node alone has the library's experts on disk."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from cluster.config import ControllerConfig, EngineConfig, NodeConfig
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.dispatch.aio import FrameStream
from cluster.errors import ProtocolError, Unavailable
from cluster.expert.fetch import fetch_blobs, fetch_manifest
from cluster.expert.mapping import PAGE
from cluster.fleet import control
from cluster.fleet.ask import Controller
from cluster.fleet.roles import node, process, router, supply
from cluster.fleet.roles.process import Place
from cluster.library.reader import Library
from cluster.library.verify import verify
from kernels.layout import pad
from support.blobs import KEY, blob_server, client, manifest_only
from support.checkpoints import case
from support.clusters import Moemesh, wait_until
from support.engines import engine_over, request, run_all, tiny_library
from support.streams import CLIENT, tokens_of

MODEL = "qwen3-tied-gqa"
PROMPTS = [case(MODEL).prompt(5 + 7 * i) for i in range(3)]
TOKENS = 8
CONFIG = EngineConfig(kv_bytes=4 << 20)
NODES = ("node-0", "node-1", "node-2")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


@pytest.fixture(scope="module")
def expected(library: Library) -> list[list[int]]:
    with engine_over(library, CONFIG) as engine:
        answers = run_all(
            engine, [request(str(i), prompt, tokens=TOKENS) for i, prompt in enumerate(PROMPTS)]
        )
        return [answers[str(i)].tokens for i in range(len(PROMPTS))]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SYNC_PERIOD_S", 0.05)
    monkeypatch.setattr(process, "log_to_file", lambda *_: None)


@contextmanager
def roles(
    library: Library, folders: dict[str, Path], logs: Path, hub: str = "", capacity: float = 0.5
) -> Iterator[dict[str, Any]]:
    """A controller, nodes with `folders` for their libraries, and a router, not necessarily ready.

    capacity: part of all experts that a node has memory for.
    """
    spec = library.spec
    size = pad(max(ref.bytes for ref in library.variant("").refs()), PAGE)
    shape = Shape(len(folders), spec.layers, spec.experts, spec.sparse_layers, size)
    memory = int(size * spec.experts * len(spec.sparse_layers) * capacity)
    with ExitStack() as stack:
        service = ControllerService(shape, epoch=1, config=ControllerConfig())
        address = service.start()
        stack.callback(service.shutdown)
        made: dict[str, Any] = {"controller": stack.enter_context(Controller(address))}
        for name, folder in folders.items():
            place = Place(name, address, str(folder), "int8", str(logs))
            made[name] = node.NodeRole(place, NodeConfig(memory_bytes=memory, hub=hub, fetch_share=0.5))
            stack.callback(made[name].shutdown)
        made["router-0"] = router.RouterRole(
            Place("router-0", address, str(library.path), "int8", str(logs)), CONFIG
        )
        stack.callback(made["router-0"].shutdown)
        yield made


async def ask(address: str) -> list[list[int]]:
    """The tokens of every prompt."""
    wanted = {i: request(f"r{i}", prompt, TOKENS) for i, prompt in enumerate(PROMPTS)}
    async with await FrameStream.open(address, identity=CLIENT) as stream:
        return list((await tokens_of(stream, wanted)).values())


def served(made: dict[str, Any]) -> list[list[int]]:
    return asyncio.run(ask(made["router-0"].address))


def holds(made: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Whether the table is one of these nodes alone, and everybody uses it."""
    status = made["controller"].status()
    table = made["router-0"]._exchange.table
    calm = not status["pending"] and status["settled"] and status["active"] == table.version
    return calm and set(table.nodes) <= set(names)


def blob_stats(made: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(made[name].stats()["blobs"])


def error_of(made: dict[str, Any], name: str) -> Any:
    return next(one["error"] for one in made["controller"].status()["members"] if one["id"] == name)


def test_nodes_get_what_the_table_gives_them(
    library: Library, expected: list[list[int]], tmp_path: Path
) -> None:
    """At the start, when experts move, and when the node that held them is lost."""
    folders = {name: tmp_path / name for name in NODES} | {"node-0": library.path}
    for name in NODES[1:]:
        manifest_only(library, folders[name])
    with roles(library, folders, tmp_path, capacity=0.75) as made:
        wait_until(lambda: made["router-0"].ready, "a ready router", 60.0)
        assert served(made) == expected
        blobs = {name: blob_stats(made, name) for name in NODES}
        assert blobs["node-0"]["complete"]
        assert blobs["node-0"]["served"]["pieces"] > 0
        began = {}
        for name in NODES[1:]:
            mine = len(made[name]._shard.experts)
            assert blobs[name]["fetched"]["blobs"] == mine > 0  # and not one more
            assert not blobs[name]["complete"]
            began[name] = mine

        wait_until(lambda: rebalanced(made), "a move", 30.0)
        answers = []
        while not answers or not holds(made, NODES):
            answers.append(served(made))
        assert all(answer == expected for answer in answers)
        for name in NODES:
            counts = made[name].stats()
            assert (counts["not_here"], counts["faults"], counts["undelivered"]) == (0, 0, 0)
        assert made["router-0"]._exchange.counters.resends == 0
        assert any(blob_stats(made, name)["fetched"]["blobs"] > began[name] for name in NODES[1:])

        made["node-1"].shutdown()
        wait_until(lambda: holds(made, ("node-0", "node-2")), "a table without the lost node", 60.0)
        assert served(made) == expected
    for name in NODES[1:]:
        verdict = verify(Library.open(folders[name]), partial=True)
        assert verdict.problems == verdict.strays == ()


def test_what_is_nowhere_is_said_and_got_when_it_is_there(
    library: Library, expected: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that begin with an empty folder, while the hub has no blob, and then all."""
    monkeypatch.setattr(supply, "PATIENCE_S", 0.3)
    monkeypatch.setattr(node, "RETRY_S", 0.1)
    empty = manifest_only(library, tmp_path / "hub")
    folders = {name: tmp_path / name for name in NODES[:2]}
    with (
        blob_server(empty, key=b"") as hub,
        roles(library, folders, tmp_path, hub.address) as made,
    ):
        wait_until(lambda: error_of_everyone(made), "an error of both nodes", 60.0)
        for name in folders:
            error, message = error_of(made, name)
            assert error == "IncompleteLibrary"
            assert "is not on this machine" in message
            assert not made[name].ready
        fill(library, empty)
        wait_until(lambda: made["router-0"].ready, "a ready router", 60.0)
        assert served(made) == expected
        wait_until(lambda: error_of(made, "node-0") is None, "the error's end", 30.0)


def error_of_everyone(made: dict[str, Any]) -> bool:
    status = made["controller"].status()["members"]
    nodes = [one for one in status if one["role"] == "node"]
    return len(nodes) == 2 and all(one["error"] for one in nodes)


def fill(library: Library, empty: Library) -> None:
    empty.blobs.path.mkdir(exist_ok=True)
    for ref in library.manifest.refs():
        empty.blobs.file(ref).write_bytes(library.blobs.file(ref).read_bytes())


def test_a_node_whose_disk_is_full_says_so_and_goes_on(
    library: Library, expected: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "TROUBLE_S", 2.0)
    folders = {name: tmp_path / name for name in NODES[:2]} | {"node-0": library.path}
    manifest_only(library, folders["node-1"])
    with roles(library, folders, tmp_path, capacity=1.0) as made:
        wait_until(lambda: made["router-0"].ready, "a ready router", 60.0)
        assert served(made) == expected
        with full(folders["node-1"]):
            wait_until(lambda: asked_until_error(made, "node-1"), "its error", 60.0)
            error, message = error_of(made, "node-1")
            assert error == "CannotStore"
            assert "make room" in message or "cannot write" in message
            wait_until(lambda: holds(made, NODES[:2]), "the end of the moves", 30.0)
            assert served(made) == expected
            assert made["node-1"].ready
        wait_until(lambda: error_of(made, "node-1") is None, "the end of its error", 30.0)
        version = made["router-0"]._exchange.table.version
        wait_until(lambda: rebalanced(made), "a move", 30.0)
        wait_until(lambda: made["router-0"]._exchange.table.version > version, "the next table", 60.0)
        assert served(made) == expected


def asked_until_error(made: dict[str, Any], name: str) -> bool:
    """One order may not be enough: a node that was silent for a moment gets nothing from a repair."""
    if error_of(made, name):
        return True
    rebalanced(made)
    return False


def rebalanced(made: dict[str, Any]) -> bool:
    try:
        return bool(made["controller"].rebalance(dry_run=False, force=True)["started"])
    except Unavailable:
        return False


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A folder that takes no new file, also from root: its name is a file's meanwhile."""
    blobs, aside = folder / "blobs", folder / "aside"
    blobs.rename(aside)
    blobs.write_text("")
    try:
        yield
    finally:
        blobs.unlink()
        aside.rename(blobs)


def test_wrong_bytes_on_a_disk_are_replaced_by_those_of_others(
    library: Library, expected: list[list[int]], tmp_path: Path
) -> None:
    """The right length, and none of the right bytes: every expert that it is given comes from its peer."""
    damaged = Library.open(copytree(library.path, tmp_path / "node-1"))
    for ref in damaged.variant("").refs():
        damaged.blobs.file(ref).write_bytes(bytes(ref.bytes))
    folders = {"node-0": library.path, "node-1": damaged.path}
    with roles(library, folders, tmp_path) as made:
        wait_until(lambda: made["router-0"].ready, "a ready router", 60.0)
        assert served(made) == expected
        assert blob_stats(made, "node-1")["replaced"] == len(made["node-1"]._shard.experts) > 0
        assert error_of(made, "node-1") is None


def test_a_library_from_a_process_of_its_own(library: Library, tmp_path: Path) -> None:
    key, out = tmp_path / "key", tmp_path / "new"
    key.write_bytes(KEY)
    moemesh = Moemesh(tmp_path / "state")
    serving = moemesh.start("library", "serve", str(library.path), "--key-file", str(key))
    try:
        assert serving.stdout is not None
        address = serving.stdout.readline().split(" is served at ")[1].split(";")[0]
        with client(None, key=b"") as stranger, pytest.raises(ProtocolError, match="key"):
            fetch_manifest(stranger, address, out)
        with client(None) as tool:
            fetched = fetch_manifest(tool, address, out)
            fetch_blobs(tool, [address], fetched, fetched.manifest.refs(), lambda *_: None)
    finally:
        serving.send_signal(signal.SIGINT)
        _, said = serving.communicate(timeout=30)
    assert fetched.digest == library.digest
    assert verify(Library.open(out)).problems == ()
    assert "Traceback" not in said
