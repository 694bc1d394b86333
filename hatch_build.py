"""The build hook of the wheel: CPU kernels are compiled where there is a compiler, and left out where not.

They are no extension modules but plain shared libraries, so that one wheel serves every Python version.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuild(BuildHookInterface):
    """Compile into the tree for an editable install, else into a folder that goes into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        building = _building(Path(self.root))
        editable = version == "editable"
        self._made_in = None if editable else Path(tempfile.mkdtemp())
        try:
            levels = building.build(self._made_in or building.HOME)
        except (OSError, RuntimeError) as error:
            print(f"transom: without native CPU kernels, PyTorch computes instead: {error}", file=sys.stderr)
            return
        if self._made_in is None:
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        for level in levels:
            name = f"libtransom_{level}.so"
            build_data["force_include"][str(self._made_in / name)] = f"transom/native/_lib/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._made_in is not None:
            shutil.rmtree(self._made_in, ignore_errors=True)


def _building(root: Path) -> Any:
    """`transom/native/build.py` by itself: what the package imports may not be there yet."""
    spec = importlib.util.spec_from_file_location("native_build", root / "transom" / "native" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
