"""Session set-up and the leak checks that every test passes through."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support.leaks import SESSION_VARIABLE, Leftovers, files, tagged_processes

ROOT = Path(__file__).resolve().parent.parent

# Before anything of ours is imported: kernels reads the cache folder when it is imported.
# The cache outlives the session (its folder is named by a digest of the sources), so that kernels
# compile once; processes that tests start find it too.
os.environ.setdefault("MOEMESH_CACHE_DIR", str(ROOT / ".pytest_cache" / "moemesh"))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ[SESSION_VARIABLE] = SESSION = uuid.uuid4().hex

# A slow machine is no defect.
hypothesis.settings.register_profile("moemesh", deadline=None)
hypothesis.settings.load_profile("moemesh")

# Ray keeps logs of ended sessions on purpose.
EXPECTED_FILES = ("ray",)


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Send temporary files and the cluster's state to a folder of this session; a file left there fails it.

    The path is short because Unix socket paths end at 107 bytes.
    """
    tmp_path_factory.getbasetemp()  # pytest keeps its own folder where it always was
    root = Path(tempfile.mkdtemp(prefix="mm"))
    patch = pytest.MonkeyPatch()
    for variable, name in (("TMPDIR", "t"), ("MOEMESH_STATE_DIR", "s")):
        (root / name).mkdir()
        patch.setenv(variable, str(root / name))
    patch.setattr(tempfile, "tempdir", None)
    try:
        yield
        left = files(root / "t", EXPECTED_FILES)
        assert not left, f"temporary files left behind: {', '.join(left)}; help: use tmp_path"
    finally:
        patch.undo()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled(_private_folders: None) -> None:
    """As in every role before it serves: a kernel compiled at its first call holds the interpreter for longer
    than a router waits for a node."""
    from kernels import warm

    warm.compile_all(apart=True)


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_session(_private_folders: None) -> Iterator[None]:
    check = Leftovers(views=(lambda: tagged_processes(SESSION),))
    yield
    left = check.new_since(grace_s=15.0)
    assert not left, f"processes left behind by the session: {'; '.join(left)}"


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing() -> Iterator[None]:
    """Fixtures of a module may hold threads, ports and processes; when it ends they are gone."""
    check = Leftovers()
    yield
    left = check.new_since()
    assert not left, f"left behind by this module: {'; '.join(left)}; help: stop it in the fixture"


@pytest.fixture(autouse=True)
def _test_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test ends what it starts. Ray starts helpers when it likes: its modules answer as a whole."""
    if request.node.get_closest_marker("ray"):
        yield
        return
    check = Leftovers()
    yield
    left = check.new_since()
    assert not left, f"left behind by this test: {'; '.join(left)}; help: close it in the test"


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test alone, also for the processes that it starts."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("MOEMESH_STATE_DIR", str(folder))
    return folder
