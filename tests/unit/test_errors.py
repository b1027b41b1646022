"""Errors keep their class, and with it their gRPC code, on the way between our processes."""

from __future__ import annotations

import pytest

from cluster import errors
from cluster.errors import MoemeshError, NonFinite, error_from_wire


@pytest.mark.parametrize("cls", errors._all_errors(), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_wire(cls: type[MoemeshError]) -> None:
    rebuilt = error_from_wire(cls.__name__, "what was wrong; what to do")
    assert type(rebuilt) is cls
    assert str(rebuilt) == "what was wrong; what to do"
    assert rebuilt.code == cls.code


def test_an_unknown_error_is_an_internal_one() -> None:
    assert type(error_from_wire("SystemExit", "no")) is MoemeshError


def test_non_finite_names_its_layer() -> None:
    error = NonFinite.at(3)
    assert error.layer == 3
    assert "layer 3" in str(error)
