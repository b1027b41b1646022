"""Where there can be no hosts the reason is said, with what would help."""

from fleet import needs


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs.missing.__wrapped__().startswith("no unshare here (Debian: apt-get install")


def test_namespaces_that_are_not_permitted_are_named(monkeypatch, tmp_path):
    for tool in needs.TOOLS:
        (tmp_path / tool).write_text("#!/bin/sh\necho 'Operation not permitted' >&2; exit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(needs.os, "access", lambda *_: True)
    assert "Operation not permitted; help: run as root" in needs.missing.__wrapped__()
