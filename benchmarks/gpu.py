"""Everything a GPU is asked for, in one call: tests, compute-sanitizer, agreement with the CPU, and
every time beside its target and its baseline.

make gpu, which builds first, or python benchmarks/gpu.py [PART ...]

Parts, all of them unless some are named: tests, sanitize, step, gradient, moves, chain, chains,
attention. What is found is printed and written, line by line, to results/gpu_<GPU>.txt (with parts
named: gpu_<GPU>_<PARTS>.txt). A part that fails does not keep the others from running. Exit code 0,
1 where something failed, 2 without a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from record import commit, package

from thermosphere.ops.backends import cuda_obstacle

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# Test files that put something on a GPU where there is one.
TESTS = [
    "test_attention_norm_triton.py",
    "test_captured.py",
    "test_device.py",
    "test_encoder_gradient_triton.py",
    "test_feedforward_norm_triton.py",
    "test_langevin_step_cuda.py",
    "test_langevin_step_device_code.py",
    "test_langevin_step_triton.py",
    "test_masked_cross_entropy_triton.py",
    "test_minibatch_triton.py",
    "test_operators.py",
    "test_triton_gradient.py",
]
CHECK = ["--check"]  # what compute-sanitizer runs: this script, small
SANITIZER_SECONDS = 240
MODES = ["default", "max-autotune-no-cudagraphs"]  # of torch.compile, for the stock move
Lines = Iterator[str]


def main(arguments: list[str]) -> int:
    if not torch.cuda.is_available():
        print(
            f"gpu: expected a GPU that PyTorch can use, got none (PyTorch {torch.__version__}); "
            "nothing was run",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    if arguments == CHECK:
        return small_checks(device)
    parts = parts_of(device)
    unknown = [name for name in arguments if name not in parts]
    if unknown:
        print(f"gpu: expected parts of {', '.join(parts)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    chosen = arguments or list(parts)
    name = torch.cuda.get_device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    path = ROOT / "benchmarks" / "results" / f"gpu_{'_'.join([slug, *arguments])}.txt"
    record = Record(path)
    record(f"# python benchmarks/gpu.py {' '.join(arguments)}".rstrip() + f"; commit {commit()}")
    record(f"# {name}; {package('torch')}, {package('triton')}; CUDA {torch.version.cuda}")
    obstacle = cuda_obstacle()
    record(f"# step: {'CUDA kernels' if obstacle is None else f'Triton kernels, {obstacle}'}")
    through = [record.part(part, parts[part]) for part in chosen]
    return 0 if all(through) else 1


class Record:
    """Lines to the terminal and to a file, each as it comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")

    def part(self, name: str, run: Callable[[], Lines]) -> bool:
        """Whether a part went through; its traceback goes to the terminal alone."""
        try:
            for line in run():
                self(line)
        except Exception as error:
            traceback.print_exc()
            what = (str(error).strip().splitlines() or [""])[0]
            self(f"FAILED {name}: {type(error).__name__}: {what}")
            return False
        return True


def parts_of(device: torch.device) -> dict[str, Callable[[], Lines]]:
    """What there is to run, by name, in order."""
    return {
        "tests": tests,
        "sanitize": sanitize,
        "step": lambda: step(device),
        "gradient": lambda: gradient(device),
        "moves": lambda: moves(device),
        "chain": lambda: chain(device),
        "chains": lambda: chains(device),
        "attention": lambda: attention(device),
    }


def step_backends() -> list[str]:
    return ["cuda", "triton"] if cuda_obstacle() is None else ["triton"]


def tests() -> Lines:
    files = [str(ROOT / "tests" / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines() or ["no output"]
    if run.returncode != 0:
        print(run.stdout[-20_000:], file=sys.stderr)
        raise RuntimeError(f"pytest: {lines[-1].strip('= ')}")
    yield f"tests on the GPU: {lines[-1].strip('= ')}"


def sanitize() -> Lines:
    sanitizer = shutil.which("compute-sanitizer")
    for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        found = Path(folder or "/nowhere") / "bin" / "compute-sanitizer"
        sanitizer = sanitizer or (str(found) if found.is_file() else None)
    if sanitizer is None:
        yield "compute-sanitizer: not found, not run"
        return
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += [str(Path(__file__)), *CHECK]
        run = subprocess.run(command, capture_output=True, text=True, timeout=SANITIZER_SECONDS)
        summary = [line for line in run.stdout.splitlines() if "SUMMARY" in line]
        if run.returncode != 0:
            print(run.stdout[-10_000:], run.stderr[-5_000:], file=sys.stderr)
            raise RuntimeError(f"compute-sanitizer {tool}: exit code {run.returncode}: {summary}")
        yield f"compute-sanitizer {tool}: {' '.join(summary).strip('= ')}"


def small_checks(device: torch.device) -> int:
    """Every kernel once or a few times, for a tool that slows them a hundredfold."""
    import gpu_move
    import gpu_step
    from step_problem import SHAPES

    for backend in step_backends():
        print(gpu_step.check_noise(device, backend, 10_001))
        print(gpu_step.check_step(device, backend, SHAPES[-3:]))
    for name in ("tf1-small", "tf4-small", "ff"):
        problem = gpu_move.Problem(name, 1, device, noise_draws=2, noise_draws_max=2)
        state = problem.state()
        print(name, problem.sampler.run(state, 2).tolist())
    return 0


def step(device: torch.device) -> Lines:
    import gpu_step
    from step_problem import SHAPES

    for backend in step_backends():
        yield f"{backend}: {gpu_step.check_noise(device, backend)}"
        yield f"{backend}: {gpu_step.check_step(device, backend, SHAPES)}"
        yield f"{backend}: {gpu_step.check_graph(device, backend)}"
    yield from gpu_step.timings(device, step_backends())


def gradient(device: torch.device) -> Lines:
    import gpu_move

    from thermosphere.models.named import NAMES

    yield from gpu_move.check_gradient(device, list(NAMES))


def moves(device: torch.device) -> Lines:
    import gpu_move

    from thermosphere.models.named import NAMES

    for name in NAMES:
        yield gpu_move.check_moves(device, None, name, 40)
    yield gpu_move.check_failure(device, None)
    yield from gpu_move.check_mean(device, None)
    yield from gpu_move.hottest(device, "tf1", 1)
    yield from gpu_move.hottest(device, "tf4", gpu_move.MANY)


def chain(device: torch.device) -> Lines:
    import gpu_move

    from thermosphere.models.named import NAMES

    yield from gpu_move.one_chain(device, list(NAMES))


def chains(device: torch.device) -> Lines:
    import gpu_move

    yield from gpu_move.many_chains(device, "tf4", MODES)


def attention(device: torch.device) -> Lines:
    import gpu_attention

    yield from gpu_attention.timings(device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
