"""Generate Python code and type stubs from the .proto files: `make protos`.

Sources are compiled from the repository's root, so the generated modules import each other as
`protos.x_pb2` and need no patching. Needs grpcio-tools and mypy-protobuf (for the service stubs).
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

HERE = Path(__file__).parent


def sources() -> list[Path]:
    return sorted(HERE.glob("*.proto"))


def compile_protos(out: Path) -> None:
    """Write generated files under `out`/protos. Raises RuntimeError if protoc refuses a file."""
    from grpc_tools import protoc

    plugin = Path(sys.executable).with_name("protoc-gen-mypy_grpc")
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{HERE.parent}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy_grpc={plugin}",
        f"--mypy_grpc_out={out}",
        *(str(path) for path in sources()),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; help: its message is above")


def main() -> None:
    compile_protos(HERE.parent)


if __name__ == "__main__":
    main()
