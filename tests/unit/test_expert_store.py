"""Residency: mapped and read weights are the same bytes, the budget is hard, the oldest expert leaves."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import CorruptBlob, LibraryError, OutOfMemoryBudget
from cluster.expert import store as residency
from cluster.expert.mapping import PAGE, map_files
from cluster.expert.store import ABSENT, ExpertStore, least_recent
from cluster.library.pack import pack
from cluster.library.reader import Library
from cluster.types import ExpertId
from support import libraries
from support.checkpoints import case

Make = Callable[..., ExpertStore]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("library")
    pack(case("qwen3-dense-between").write(folder), folder / "out", ["int8", "int4"])
    return Library.open(folder / "out")


@pytest.fixture
def make() -> Iterator[Make]:
    """ExpertStore, closed at the end."""
    stores: list[ExpertStore] = []

    def build(
        library: Library, budget: int = 0, experts: list[ExpertId] | None = None, variant: str = "int8"
    ):
        stores.append(ExpertStore(library, variant, shard(library) if experts is None else experts, budget))
        return stores[-1]

    yield build
    for store in stores:
        store.close()


def shard(library: Library) -> list[ExpertId]:
    spec = library.spec
    return [ExpertId(layer, index) for layer in spec.sparse_layers for index in range(spec.experts)]


def blob_bytes(library: Library) -> int:
    return library.expert_ref("int8", ExpertId(0, 0)).bytes


def content(store: ExpertStore, library: Library, expert: ExpertId, variant: str = "int8") -> bytes:
    offset = int(store.acquire(expert.layer, [expert.index])[0])
    return store.base[offset : offset + library.expert_ref(variant, expert).bytes].tobytes()


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_mapped_and_read_experts_are_the_blobs(packed: Library, make: Make, variant: str) -> None:
    mapped = make(packed, variant=variant)
    arena = make(packed, budget=2 * blob_bytes(packed), variant=variant)
    assert (mapped.mapped, arena.mapped) == (True, False)
    assert mapped.down_offset == arena.down_offset == packed.down_offset(variant)
    assert mapped.width == 64
    for expert in shard(packed):
        wanted = packed.read_blob(packed.expert_ref(variant, expert))
        assert content(mapped, packed, expert, variant) == wanted
        assert content(arena, packed, expert, variant) == wanted


def test_a_mapped_shard_is_one_read_only_aligned_array(packed: Library, make: Make) -> None:
    store = make(packed)
    offsets = store.acquire(2, np.arange(packed.spec.experts))
    assert offsets.dtype == np.int64
    assert (offsets % PAGE == 0).all()
    assert not store.base.flags.writeable
    assert store.capacity == len(shard(packed))
    assert store.resident_bytes == len(shard(packed)) * blob_bytes(packed)
    assert (store.hits, store.misses, store.evictions) == (packed.spec.experts, 0, 0)


def test_a_mapped_shard_of_one_node(packed: Library, make: Make) -> None:
    store = make(packed, experts=[ExpertId(2, 5), ExpertId(0, 1), ExpertId(0, 1)])
    assert store.has(ExpertId(0, 1))
    assert not store.has(ExpertId(0, 0))
    assert not store.has(ExpertId(9, 99))
    with pytest.raises(LookupError, match="expert 0 of layer 0"):
        store.acquire(0, [1, 0])
    with pytest.raises(LookupError):
        store.acquire(0, [packed.spec.experts])


def test_the_least_recently_used_expert_leaves(packed: Library, make: Make) -> None:
    store = make(packed, budget=3 * blob_bytes(packed))
    assert store.capacity == 3
    store.acquire(0, [0, 1, 2])
    store.acquire(0, [0])
    store.acquire(2, [4])  # 1 leaves
    assert (store.hits, store.misses, store.evictions) == (1, 4, 1)
    store.acquire(0, [0, 2])
    assert (store.hits, store.misses) == (3, 4)
    store.acquire(0, [1])  # (2, 4) leaves: it is older than 0 and 2 by now
    assert (store.misses, store.evictions) == (5, 2)
    store.acquire(0, [0, 2, 1])
    assert (store.hits, store.misses) == (6, 5)


def test_what_is_asked_for_together_stays_together(packed: Library, make: Make) -> None:
    store = make(packed, budget=3 * blob_bytes(packed))
    store.acquire(0, [0, 1, 2])
    offsets = store.acquire(0, [5, 0, 4])  # 0 is the oldest, but wanted: 1 and 2 leave
    assert len(set(offsets.tolist())) == 3
    for offset, index in zip(offsets, [5, 0, 4], strict=True):
        wanted = packed.read_blob(packed.expert_ref("int8", ExpertId(0, index)))
        assert store.base[offset : offset + len(wanted)].tobytes() == wanted
    assert (store.hits, store.misses, store.evictions) == (1, 5, 2)


def test_the_budget_is_never_exceeded(packed: Library, make: Make) -> None:
    budget = 4 * blob_bytes(packed) + 100
    store = make(packed, budget=budget)
    rng = np.random.default_rng(3)
    for _ in range(200):
        layer = int(rng.choice(packed.spec.sparse_layers))
        store.acquire(layer, rng.choice(packed.spec.experts, size=rng.integers(1, 5), replace=False))
        assert store.resident_bytes <= budget
    assert store.base.size <= budget
    assert store.misses - store.evictions == 4


def test_batches_cover_everything_in_order(packed: Library, make: Make) -> None:
    store = make(packed, budget=2 * blob_bytes(packed))
    indices = np.array([4, 0, 3, 1, 5], np.int32)
    seen = []
    for begin, end, offsets in store.batches(0, indices):
        seen.append((begin, end))
        for offset, index in zip(offsets, indices[begin:end], strict=True):
            wanted = packed.read_blob(packed.expert_ref("int8", ExpertId(0, int(index))))
            assert store.base[offset : offset + len(wanted)].tobytes() == wanted
    assert seen == [(0, 2), (2, 4), (4, 5)]
    assert [part[:2] for part in make(packed).batches(0, indices)] == [(0, 5)]
    assert list(store.batches(0, indices[:0])) == []
    with pytest.raises(ValueError, match="ask in batches"):
        store.acquire(0, indices)


def test_a_budget_below_one_expert_names_what_is_needed(packed: Library) -> None:
    needed = blob_bytes(packed)
    with pytest.raises(OutOfMemoryBudget, match=f"budget of {needed - 1} bytes .* at least {needed} bytes"):
        ExpertStore(packed, "int8", shard(packed), needed - 1)
    store = ExpertStore(packed, "int8", shard(packed), needed)
    assert store.capacity == 1
    store.close()


def test_mapping_needs_room_for_whole_pages(packed: Library, make: Make) -> None:
    experts = shard(packed)[:3]
    pages = 3 * -(-blob_bytes(packed) // PAGE) * PAGE
    assert make(packed, pages, experts).mapped
    assert not make(packed, pages - 1, experts).mapped


def test_an_empty_shard_holds_nothing(packed: Library, make: Make) -> None:
    for budget in (0, 1):
        store = make(packed, budget, [])
        assert (store.capacity, store.resident_bytes) == (0, 0)
        with pytest.raises(LookupError):
            store.acquire(0, [0])


@pytest.mark.parametrize("damage", [libraries.flip_bit, libraries.truncate])
def test_a_damaged_expert_is_refused_when_a_shard_is_mapped(packed: Library, tmp_path: Path, damage) -> None:
    library = libraries.copy(packed, tmp_path)
    damage(library, library.expert_ref("int8", ExpertId(2, 3)))
    with pytest.raises(CorruptBlob):
        ExpertStore(library, "int8", shard(library))


def test_a_damaged_expert_is_refused_at_every_read(packed: Library, tmp_path: Path, make: Make) -> None:
    library = libraries.copy(packed, tmp_path)
    store = make(library, budget=2 * blob_bytes(library))
    store.acquire(0, [1, 2])
    libraries.flip_bit(library, library.expert_ref("int8", ExpertId(0, 3)))
    for _ in range(2):
        with pytest.raises(CorruptBlob):
            store.acquire(0, [2, 3])
    wanted = library.read_blob(library.expert_ref("int8", ExpertId(0, 4)))
    for _ in range(3):  # the slot of the failed read is not lost
        assert content(store, library, ExpertId(0, 4)) == wanted
        store.acquire(0, [2, 4])
    libraries.truncate(library, library.expert_ref("int8", ExpertId(0, 5)))
    with pytest.raises(CorruptBlob):
        ExpertStore(library, "int8", shard(library), 2 * blob_bytes(library))


def test_a_partly_failed_load_leaves_its_experts_evictable(
    packed: Library, tmp_path: Path, make: Make
) -> None:
    library = libraries.copy(packed, tmp_path)
    libraries.flip_bit(library, library.expert_ref("int8", ExpertId(0, 3)))
    store = make(library, budget=2 * blob_bytes(library))
    with pytest.raises(CorruptBlob):
        store.acquire(0, [1, 3])  # 1 is loaded, 3 is not
    store.acquire(0, [4, 5])
    assert store.resident_bytes == 2 * blob_bytes(library)


def test_a_system_without_mapping_reads_the_whole_shard(
    packed: Library, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(files: object) -> None:
        raise OSError("no mmap here")

    monkeypatch.setattr(residency, "map_files", cannot)
    store = make(packed)
    assert (store.mapped, store.capacity) == (False, len(shard(packed)))
    expert = ExpertId(2, 5)
    assert content(store, packed, expert) == packed.read_blob(packed.expert_ref("int8", expert))


def test_an_unknown_expert_or_variant_is_refused(packed: Library) -> None:
    with pytest.raises(LibraryError, match="no expert"):
        ExpertStore(packed, "int8", [ExpertId(1, 0)])  # layer 1 is dense
    with pytest.raises(LibraryError, match="no variant"):
        ExpertStore(packed, "f32", [])


def mapped_files(library: Library) -> int:
    return Path("/proc/self/maps").read_text().count(str(library.blobs.path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_close_leaves_no_mapping(packed: Library, tmp_path: Path) -> None:
    library = libraries.copy(packed, tmp_path)
    store = ExpertStore(library, "int8", shard(library))
    assert mapped_files(library) == len(shard(library))
    view = store.base[:10]
    store.close()
    gc.collect()
    assert mapped_files(library) == len(shard(library))  # a view in use keeps its pages
    assert view.sum() >= 0
    del view
    gc.collect()
    assert mapped_files(library) == 0
    with pytest.raises(LookupError):
        store.acquire(0, [0])
    shutil.rmtree(library.path)


def test_files_are_mapped_behind_one_another(tmp_path: Path) -> None:
    sizes = [1, PAGE, PAGE + 1]
    files = []
    for i, size in enumerate(sizes):
        (tmp_path / str(i)).write_bytes(bytes([i + 1]) * size)
        files.append((tmp_path / str(i), size))
    array, starts = map_files(files)
    assert starts == [0, PAGE, 2 * PAGE]
    assert array.size == 4 * PAGE
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        assert (array[start : start + size] == i + 1).all()
        assert not array[start + size : [*starts, array.size][i + 1]].any()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(FileNotFoundError):
        map_files([(tmp_path / "gone", 10)])


def test_least_recent_is_a_pure_decision() -> None:
    last_used = np.array([[5, ABSENT, 3], [9, 1, ABSENT]])
    before = last_used.copy()
    e = ExpertId
    assert least_recent(last_used, set(), 2) == [e(1, 1), e(0, 2)]
    assert least_recent(last_used, {e(1, 1), e(0, 0)}, 2) == [e(0, 2), e(1, 0)]
    assert least_recent(last_used, set(), 0) == least_recent(last_used, set(), -3) == []
    assert len(least_recent(last_used, {e(0, 0)}, 99)) == 3
    np.testing.assert_array_equal(last_used, before)
