"""Questions to a controller that does not answer at once."""

import pytest

from cluster.errors import Unavailable
from cluster.fleet import ask
from cluster.fleet.ask import patient_status


class Busy:
    """Answers the question after `silent` others."""

    def __init__(self, silent):
        self.silent = silent

    def status(self):
        self.silent -= 1
        if self.silent >= 0:
            raise Unavailable("no answer")
        return {"members": []}


def test_a_busy_controller_is_asked_again(monkeypatch):
    monkeypatch.setattr(ask, "POLL_S", 0.0)
    assert patient_status(Busy(3)) == {"members": []}


def test_one_that_never_answers_is_unavailable(monkeypatch):
    monkeypatch.setattr(ask, "POLL_S", 0.0)
    with pytest.raises(Unavailable, match="no answer"):
        patient_status(Busy(10**9), within_s=0.05)
