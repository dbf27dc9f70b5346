"""Writes what a run of the benchmarks printed to results/, with machine, commit and flags.

python benchmarks/record.py LOG

Lines of results are those that begin with the name of a benchmark.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from thermosphere import _core

FLAGS = "-O3, -march by instruction set (CMakeLists.txt)"


def processor() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def processor_name() -> tuple[str, str]:
    cpu = processor()
    model = cpu.get("model name", platform.machine())
    return model, f"family {cpu.get('cpu family', '?')} model {cpu.get('model', '?')}"


def machine() -> list[str]:
    """What results were made on and with, as comment lines."""
    model, identity = processor_name()
    return [
        f"# {model} ({identity}), {os.cpu_count()} cores, {_core.isa_chosen()}",
        f"# {_core.build_info()['compiler']}, {FLAGS}",
        f"# Python {platform.python_version()}, {package('torch')}, {package('jax')}",
    ]


def main(log: Path) -> Path:
    folder = Path(__file__).parent
    names = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    names.append("encoder_forward")
    begins = re.compile(rf"({'|'.join(names)})[ ,]")
    lines = [line for line in log.read_text().splitlines() if begins.match(line)]
    if not lines:
        raise SystemExit(f"record: {log} holds no results")
    model, identity = processor_name()
    header = [f"# make bench; commit {commit()}", *machine()]
    slug = re.sub(r"[^a-z0-9]+", "_", f"{model} {identity}".lower()).strip("_")
    path = folder / "results" / f"{slug}_{os.cpu_count()}cores.txt"
    path.write_text("\n".join(header + lines) + "\n")
    return path


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
