"""The extension's threads among others: calls from several Python threads, in a forked child,
beside torch."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from step_problem import Stepped, make_problem, take_step
from test_encoder_gradient import TF1, EncoderResult, make_batch, make_data, make_weights

from thermosphere import _core
from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.encoder_gradient import encoder_gradient
from thermosphere.proteins.dataset import mask_sequences

CALLERS, CALLS, THREADS = 3, 10, 2


def at_once(call) -> list:
    """call(caller) for every caller, CALLS times each, all in threads that start together."""
    results: list[list] = [[] for _ in range(CALLERS)]
    start = threading.Barrier(CALLERS)

    def work(caller: int) -> None:
        start.wait()
        for _ in range(CALLS):
            results[caller].append(call(caller))

    callers = [threading.Thread(target=work, args=(c,)) for c in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [len(r) for r in results] == [CALLS] * CALLERS  # none raised
    return results


def test_gradients_of_several_python_threads_are_those_of_one() -> None:
    data, batch = make_data(TF1), make_batch(1, 64)
    weights = [make_weights(TF1, 1, seed=caller) for caller in range(CALLERS)]

    def gradient(caller: int, threads: int = THREADS) -> EncoderResult:
        return encoder_gradient(TF1, data, weights[caller], batch, threads=threads)

    for caller, results in enumerate(at_once(gradient)):
        alone = gradient(caller, threads=1)
        for result in results:
            assert_same_bits(result.losses, alone.losses, f"losses, caller {caller}")
            assert_same_bits(result.gradient, alone.gradient, f"gradient, caller {caller}")


def test_a_potential_and_its_workspace_serve_several_python_threads() -> None:
    sequences = mask_sequences(np.zeros((40, 86), dtype=np.uint8), 0.15, seed=0)
    potential = MaskedLanguagePotential(named_model("tf1-small"), sequences, backend="fused")
    weights = potential.model.initial(CALLERS, torch.Generator().manual_seed(0))
    alone = [potential(weights[c : c + 1])[1] for c in range(CALLERS)]
    for caller, results in enumerate(at_once(lambda c: potential(weights[c : c + 1])[1])):
        for result in results:
            assert_same_bits(result, alone[caller], f"gradient, caller {caller}")
    assert_same_bits(copy.deepcopy(potential)(weights[:1])[1], alone[0], "gradient of a copy")


def test_steps_of_several_python_threads_are_those_of_one() -> None:
    problem = make_problem(2, 12_289)

    def step(caller: int, threads: int = THREADS) -> Stepped:
        return take_step(problem, step=caller, threads=threads)

    for caller, results in enumerate(at_once(step)):
        alone = step(caller, threads=1)
        for result in results:
            for name, got, expected in zip(alone._fields, result, alone, strict=True):
                assert_same_bits(got, expected, f"{name}, caller {caller}")


def test_the_instruction_set_may_be_chosen_during_a_call() -> None:
    """A call keeps the kernels that it began with; the step has the same bits with any."""
    before, names = _core.isa_chosen(), _core.isa_available()
    problem = make_problem(2, 12_289)
    alone = take_step(problem, threads=1)

    def step(caller: int) -> Stepped:
        _core.isa_choose(names[caller % len(names)])
        return take_step(problem, threads=THREADS)

    try:
        for results in at_once(step):
            for result in results:
                assert_same_bits(result.weights, alone.weights, "weights")
    finally:
        _core.isa_choose(before)


FORKED = """
import multiprocessing, sys
from test_encoder_gradient import TF1, _core, encoder_gradient, make_batch, make_data, make_weights

data, weights, batch = make_data(TF1), make_weights(TF1, 1), make_batch(1, 64)

def bits(threads):
    return encoder_gradient(TF1, data, weights, batch, threads=threads).gradient.numpy().tobytes()

def child(send):
    send.send((_core.parallel_backend(), bits(2)))

expected = bits(2)
fork = multiprocessing.get_context("fork")
receive, send = fork.Pipe(duplex=False)
process = fork.Process(target=child, args=(send,), daemon=True)
process.start()
send.close()
if not receive.poll(60):
    sys.exit("the child hangs")
backend, got = receive.recv()
process.join()
print(_core.parallel_backend(), backend, got == expected == bits(2), sep="\\n")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("backend", ["std", "openmp"])
def test_a_forked_child_computes_after_its_parent_used_threads(backend: str) -> None:
    environment = {**os.environ, "THERMOSPHERE_THREADING": backend}
    environment["PYTHONPATH"] = os.path.dirname(__file__)
    run = subprocess.run(
        [sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == 0, run.stderr
    name, name_in_child, same = run.stdout.splitlines()
    assert name.startswith("openmp (") == (backend == "openmp" and sys.platform == "linux")
    assert name_in_child == "std::thread"
    assert same == "True"


def test_torch_and_we_share_the_threads_of_one_process() -> None:
    """Turn by turn with a torch operation that uses its pool: the same bits as before."""
    data, weights, batch = make_data(TF1), make_weights(TF1, 1), make_batch(1, 64)
    before, large = torch.get_num_threads(), torch.ones(1_000_000)
    torch.set_num_threads(THREADS)
    try:
        alone = encoder_gradient(TF1, data, weights, batch, threads=1)
        for _ in range(CALLS):
            large.mul_(1.0)
            result = encoder_gradient(TF1, data, weights, batch, threads=THREADS)
            assert_same_bits(result.gradient, alone.gradient, "gradient")
    finally:
        torch.set_num_threads(before)


THROWING = """
#include <cstdio>
#include <stdexcept>

#include "parallel.h"

int main(int, char** argv) {
  std::printf("%s\\n", thermosphere::parallel_backend().c_str());
  int survived = 0;
  for (int threads = 1; threads <= 3; ++threads) try {
      thermosphere::parallel_for(50, threads, [&](int64_t task) {
        if (task % 7 == 3) throw std::runtime_error("planted");
      });
    } catch (const std::runtime_error&) {
      ++survived;
    }
  return survived == 3 ? 0 : 1;
}
"""


@pytest.mark.parametrize("runtime", ["openmp", "std::thread"])
def test_what_a_task_throws_reaches_the_caller(runtime: str, tmp_path: Path) -> None:
    """Not the end of the process, whichever threads the tasks run on."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "throwing.cpp", tmp_path / "throwing"
    source.write_text(THROWING)
    csrc = Path(__file__).parents[1] / "csrc"
    openmp = ["-Wl,--no-as-needed", "-fopenmp"] if runtime == "openmp" else []
    command = [compiler, "-std=c++20", f"-I{csrc}", str(source), str(csrc / "parallel.cpp")]
    plain = {
        k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "THERMOSPHERE_THREADING")
    }
    subprocess.run(
        [*command, "-pthread", "-ldl", *openmp, "-o", str(program)], check=True, env=plain
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, env=plain)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(runtime)
