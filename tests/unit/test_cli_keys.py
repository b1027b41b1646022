"""`moemesh keys` and the options of `up` that go with it."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
import typer
from cryptography import x509
from typer.testing import CliRunner

from cluster.cli import keys as verbs
from cluster.cli.client import Access
from cluster.cli.up import _gateway
from cluster.config import TlsFiles
from cluster.errors import ConfigError, Unauthenticated
from cluster.gateway.security import keys
from cluster.gateway.security.certificates import read
from cluster.gateway.security.guard import ANY, Guard


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.callback()(lambda: None)
    verbs.register(made)
    return made


def run(app: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["keys", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_key_is_made_listed_used_and_revoked(app: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = run(app, "create", "ann", "--file", file, "--requests-per-minute", 60).strip()
    more = json.loads(
        run(app, "create", "ben", "--scope", "observe", "--scope", "admin", "--file", file, "--json")
    )
    guard = Guard(file)
    assert guard.authorise(f"Bearer {key}", ANY).requests_per_minute == 60
    listed = json.loads(run(app, "list", "--file", file, "--json"))["keys"]
    assert [(each["name"], each["scopes"]) for each in listed] == [
        ("ann", ["infer"]),
        ("ben", ["observe", "admin"]),
    ]
    shown = run(app, "list", "--file", file)
    assert "ben" in shown
    for text in (shown, json.dumps(listed), file.read_text()):
        assert key not in text
        assert more["key"] not in text
    run(app, "revoke", listed[0]["id"], "--file", file)
    with pytest.raises(Unauthenticated):
        guard.authorise(f"Bearer {key}", ANY)
    assert guard.authorise(f"Bearer {more['key']}", ANY).id == more["id"]
    with pytest.raises(ConfigError, match="no key 'x'"):
        run(app, "revoke", "x", "--file", file)


def test_the_default_file_is_the_users(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    run(app, "create", "ann")
    assert len(keys.read(tmp_path / "moemesh" / "keys.json")) == 1


def test_an_authority_and_certificates_of_it(app: typer.Typer, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    run(app, "ca", pki)
    run(app, "certificate", pki, "gateway", "--host", "gw.example", "--host", "10.0.0.5", "--days", 7)
    assert (pki / "ca.key").stat().st_mode & 0o077 == 0
    assert (pki / "gateway.key").stat().st_mode & 0o077 == 0
    read(TlsFiles(str(pki / "gateway.pem"), str(pki / "gateway.key"), str(pki / "ca.pem")))
    ssl.create_default_context(cafile=str(pki / "ca.pem"))
    leaf = x509.load_pem_x509_certificate((pki / "gateway.pem").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gw.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5"]
    signer = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
    leaf.verify_directly_issued_by(signer)
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 7


def test_what_is_there_is_not_overwritten(app: typer.Typer, tmp_path: Path) -> None:
    run(app, "ca", tmp_path)
    with pytest.raises(ConfigError, match="already"):
        run(app, "ca", tmp_path)
    for name in ("ca", "../x", "", ".hidden"):
        with pytest.raises(ConfigError, match="cannot be called"):
            run(app, "certificate", tmp_path, name)
    with pytest.raises(ConfigError, match="moemesh keys ca"):
        run(app, "certificate", tmp_path / "nowhere", "a")


def test_http_is_the_port_after_grpc_unless_said() -> None:
    def where(grpc: str, http: str) -> tuple[str, int | None]:
        config = _gateway(grpc, http, "", "", "")
        return config.http_host, config.http_port

    assert where("127.0.0.1:8471", "") == ("127.0.0.1", 8472)
    assert where("10.0.0.5:0", "") == ("10.0.0.5", 0)
    assert where("127.0.0.1:8471", "off")[1] is None
    assert where("127.0.0.1:8471", "[::1]:80") == ("::1", 80)


@pytest.mark.parametrize("files", [("c", "", ""), ("", "k", ""), ("", "", "a")])
def test_half_of_tls_is_bad_usage(files: tuple[str, str, str]) -> None:
    with pytest.raises(typer.BadParameter, match="--tls-cert"):
        _gateway("127.0.0.1:8471", "", *files)


@pytest.mark.parametrize(
    ("access", "words"),
    [
        (Access(certificate="c.pem"), "--ca"),
        (Access(ca="nowhere.pem"), r"nowhere\.pem cannot be read"),
        (Access(ca="system", certificate="c.pem"), "go together"),
    ],
)
def test_a_client_says_what_is_missing(access: Access, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        access.channel("127.0.0.1:1")
