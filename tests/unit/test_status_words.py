"""What `moemesh status` says of a member."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.cli.status import _state, _versions

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
