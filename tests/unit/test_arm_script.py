"""`make test-arm` says why it did not run where it cannot, and is no failure there."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "arm" / "emulated.py"


def test_without_qemu_it_is_skipped_with_the_reason(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "arm")],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("test-arm skipped: qemu-aarch64-static is not installed")
    assert not (tmp_path / "arm").exists()
