"""Ray itself accepts the file that is rendered for `ray up`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cluster.fleet.file import load
from cluster.fleet.render.files import files

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "fleet" / "example.yaml"

VALIDATE = """
import json, sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(sys.stdin))
validate_config(config)
print(json.dumps(config))
"""


def test_rays_own_validation_accepts_it() -> None:
    text = files(load(EXAMPLE), str(EXAMPLE), "/secrets", "image")["ray-cluster.yaml"]
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE], input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout.splitlines()[-1])
    assert config["available_node_types"]["local.cluster.node"]["min_workers"] == 5
    assert config["provider"]["head_ip"] == "192.168.1.10"
    assert ["leave" in each for each in config["worker_start_ray_commands"]] == [True, False]
