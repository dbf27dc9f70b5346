"""Fail unless the newest wheel holds every file of python/thermosphere, the extension, no more."""

import sys
import zipfile
from pathlib import Path

root = Path(__file__).parents[1]
wheel = max((root / "build" / "wheel").glob("*.whl"), key=lambda path: path.stat().st_mtime)
source = root / "python"
expected = {
    path.relative_to(source).as_posix()
    for path in (source / "thermosphere").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
}
found = {
    name
    for name in zipfile.ZipFile(wheel).namelist()
    if name.startswith("thermosphere/") and "/_core." not in name.removesuffix("i")
} | {"thermosphere/_core.pyi"}
extension = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
if found != expected or len(extension) != 1:
    sys.exit(f"{wheel.name}: missing {sorted(expected - found)}, extra {sorted(found - expected)}")
