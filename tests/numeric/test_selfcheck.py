"""The bits manifest: it covers every kernel, holds on this machine, and notices a single bit."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import jit, quantise, selfcheck, warm
from kernels.selfcheck.draws import Draws

F = np.float32


def test_the_manifest_covers_every_kernel():
    assert sorted({name.split(".")[0] for name in selfcheck.stored()}) == sorted(jit.entry_points())


def test_this_machine_gives_the_stored_bits():
    assert selfcheck.wrong_bits() == []


@pytest.fixture
def off_by_one_bit(monkeypatch):
    """group_sums with the lowest bit of one sum flipped."""
    right = quantise.group_sums

    def wrong(q, sums, begin, end):
        right(q, sums, begin, end)
        sums[0, 0] ^= 1

    monkeypatch.setattr(quantise, "group_sums", wrong)


def test_one_bit_is_noticed_and_named(off_by_one_bit):
    assert selfcheck.wrong_bits() == ["group_sums"]


def test_warming_fails_on_wrong_bits(off_by_one_bit, capsys):
    with pytest.raises(SystemExit, match=r"^group_sums give other bits .* `moemesh doctor`$"):
        warm.main()
    assert f"{len(jit.entry_points())} kernels ({jit.ISA})" in capsys.readouterr().out


def test_what_is_written_is_what_is_computed(monkeypatch, tmp_path):
    before = selfcheck.MANIFEST.read_text()
    monkeypatch.setattr(selfcheck, "MANIFEST", tmp_path / "bits.json")
    selfcheck.write()
    assert (tmp_path / "bits.json").read_text() == before


def test_a_digest_sees_every_bit_but_the_kind_of_nan():
    zeros = np.zeros(4, F)
    assert selfcheck.digest([zeros]) != selfcheck.digest([-zeros])
    assert selfcheck.digest([zeros]) != selfcheck.digest([zeros.reshape(2, 2)])
    assert selfcheck.digest([zeros]) != selfcheck.digest([zeros.view(np.int32)])
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7FC01234], np.uint32).view(F)
    assert selfcheck.digest([nans]) == selfcheck.digest([np.full(3, np.nan, F)])
    assert selfcheck.digest([nans]) != selfcheck.digest([np.full(3, np.inf, F)])


def splitmix64(seed, count):
    """Steele, Lea and Flood 2014, in Python's own integers."""
    mask = 2**64 - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def test_draws_are_integer_arithmetic():
    draws, expected = Draws(7), list(splitmix64(7, 30))
    assert draws.words(10).tolist() == expected[:10]
    assert draws.integers(-5, 6, (2, 5)).ravel().tolist() == [word % 11 - 5 for word in expected[10:20]]
    assert draws.permutation(10).tolist() == sorted(range(10), key=expected[20:].__getitem__)


def test_drawn_floats_hold_the_special_values():
    x = Draws(1).floats(20, 50)
    assert ((x != 0) & (abs(x) < 2.0**-126)).any()
    assert ((x == 0) & np.signbit(x)).any()
    assert ((x == 0) & ~np.signbit(x)).any()
    assert abs(x).max() > 40
