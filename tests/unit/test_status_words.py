"""What `moemesh status` says of a member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.cli.status import _changing, _state, _versions
from cluster.fleet.folder import Folder
from cluster.fleet.generations import Generation, Generations, write

ERROR = ["CannotStore", "no room"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ready"),
        ({"ready": False}, "starting"),
        ({"ready": False, "error": ERROR}, "failed: no room"),
        ({"error": ERROR}, "ready, but cannot load more: no room"),
        ({"error": ERROR, "health": "dead"}, "dead"),
        ({"error": ERROR, "drained": True}, "draining"),
    ],
)
def test_a_member_that_serves_has_not_failed(changes: dict[str, Any], words: str) -> None:
    member = {"ready": True, "error": None, "health": "alive", "stats": {"held": 3}}
    assert _state(member | changes) == words


def test_several_versions_are_said() -> None:
    found = {"software": "2.0", "members": [{"software": "2.0"}]}
    assert _versions(found) == ""
    found["members"] += [{"software": "1.0"}, {}]
    assert _versions(found) == "several versions of moemesh run: one that does not tell, 1.0, 2.0"


def test_a_model_that_is_being_changed_is_told(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert _changing(folder) == ""
    old, new = (Generation(number, "", "int8", name, name * 64) for number, name in enumerate("ab"))
    write(folder, Generations(old, new))
    said = _changing(folder)
    assert said.startswith("the model is being changed: a (int8, aaaaaaaaaaaa) is active, b (int8")
    write(folder, Generations(new))
    assert _changing(folder) == ""
