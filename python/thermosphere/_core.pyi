# Types of the compiled module; csrc/bindings.cpp. Addresses are data_ptr() integers.
from collections.abc import Sequence

segment_elements: int
encoder_networks: dict[str, int]
encoder_size_limits: tuple[int, int, int, int, int]  # blocks, embedding, hidden, length, tokens

def build_info() -> dict[str, object]: ...
def isa_available() -> list[str]: ...
def isa_chosen() -> str: ...
def isa_choose(name: str) -> None: ...
def parallel_backend() -> str: ...
def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def normals(*, seed: int, stream: int, chain: int, step: int, count: int, out: int) -> None: ...
def draw_minibatch(
    *,
    seed: int,
    stream: int,
    step: int,
    chains: int,
    batch: int,
    examples: int,
    chain_ids: int,
    indices: int,
    weights: int,
) -> None: ...
def metric_sums(
    *,
    chains: int,
    parameters: int,
    weights: int,
    inverse_masses: int,
    partial_sums: int,
    metric: int,
    threads: int,
) -> None: ...
def langevin_step(
    *,
    chains: int,
    parameters: int,
    weights: int,
    momenta: int,
    gradient: int,
    inverse_masses: int,
    noise_scales: int,
    proposal: int,
    partial_sums: int,
    coefficients: int,
    metric: int,
    multiplier: int,
    reachable: int,
    chain_ids: int,
    seed: int,
    step: int,
    moves: int,
    failed_move: int,
    advance: bool,
    threads: int,
) -> None: ...
def langevin_momenta(
    *,
    chains: int,
    parameters: int,
    weights: int,
    momenta: int,
    gradient: int,
    inverse_masses: int,
    noise_scales: int,
    full_momenta: int,
    partial_sums: int,
    coefficients: int,
    metric: int,
    kinetic_energy: int,
    chain_ids: int,
    seed: int,
    step: int,
    moves: int,
    failed_move: int,
    advance: bool,
    threads: int,
) -> None: ...
def fma_operations(rounds: int) -> float: ...
def encoder_work_floats(
    *, network: int, sizes: Sequence[int], chains: int, gradient: bool
) -> int: ...
def encoder_gradient(
    *,
    network: int,
    sizes: Sequence[int],
    sequences: int,
    tokens: int,
    first: int,
    site: int,
    target: int,
    code_embedding: int,
    code_hidden: int,
    chains: int,
    parameters: int,
    batch: int,
    weights: int,
    indices: int,
    example_weights: int,
    gradient: int,
    losses: int,
    errors: int,
    work: int,
    dropout_threshold: int,
    dropout_seed: int,
    threads: int,
) -> None: ...
def langevin_burst_work_floats(*, network: int, sizes: Sequence[int], chains: int) -> int: ...
def langevin_burst(
    *,
    network: int,
    sizes: Sequence[int],
    sequences: int,
    tokens: int,
    first: int,
    site: int,
    target: int,
    code_embedding: int,
    code_hidden: int,
    chains: int,
    parameters: int,
    batch: int,
    weights: int,
    momenta: int,
    inverse_masses: int,
    step_scales: int,
    momenta_scales: int,
    step_coefficients: int,
    momenta_coefficients: int,
    metric: int,
    chain_ids: int,
    ridge: float,
    tether: float,
    reference: int,
    one_reference: bool,
    indices: int,
    example_weights: int,
    gradient: int,
    losses: int,
    errors: int,
    work: int,
    proposal: int,
    partial_sums: int,
    multiplier: int,
    reachable: int,
    kinetic_energy: int,
    loss_sums: int,
    completed: int,
    seed: int,
    step: int,
    moves: int,
    threads: int,
) -> None: ...

# The layers: sizes and addresses in the order of the struct in csrc/<layer>.h, 0 for null.
def attention_norm(
    *, sizes: Sequence[int], inputs: Sequence[int], out: int, state: Sequence[int], threads: int
) -> None: ...
def attention_norm_backward(
    *,
    sizes: Sequence[int],
    inputs: Sequence[int],
    state: Sequence[int],
    out_slope: int,
    slopes: Sequence[int],
    threads: int,
) -> None: ...
def feedforward_norm(
    *, sizes: Sequence[int], inputs: Sequence[int], out: int, state: Sequence[int], threads: int
) -> None: ...
def feedforward_norm_backward(
    *,
    sizes: Sequence[int],
    inputs: Sequence[int],
    state: Sequence[int],
    out_slope: int,
    slopes: Sequence[int],
    threads: int,
) -> None: ...
def masked_cross_entropy(
    *,
    sizes: Sequence[int],
    inputs: Sequence[int],
    losses: int,
    errors: int,
    logit_slope: int,
    threads: int,
) -> None: ...
def masked_cross_entropy_backward(
    *,
    sizes: Sequence[int],
    inputs: Sequence[int],
    logit_slope: int,
    loss_slopes: int,
    slopes: Sequence[int],
    threads: int,
) -> None: ...
def mean_attention(
    *,
    shape: Sequence[int],
    code_embedding: int,
    code_hidden: int,
    chains: int,
    parameters: int,
    sequences: int,
    weights: int,
    tokens: int,
    mean: int,
    threads: int,
) -> None: ...

# The same in device memory, on a stream. RuntimeError where CUDA was not built or has no device.
def normals_cuda(
    *, seed: int, stream: int, chain: int, step: int, count: int, out: int, cuda_stream: int
) -> None: ...
def metric_sums_cuda(
    *,
    chains: int,
    parameters: int,
    weights: int,
    inverse_masses: int,
    partial_sums: int,
    metric: int,
    blocks_done: int,
    stream: int,
) -> None: ...
def langevin_step_cuda(
    *,
    chains: int,
    parameters: int,
    weights: int,
    momenta: int,
    gradient: int,
    inverse_masses: int,
    noise_scales: int,
    proposal: int,
    partial_sums: int,
    coefficients: int,
    metric: int,
    multiplier: int,
    reachable: int,
    chain_ids: int,
    seed: int,
    step: int,
    moves: int,
    failed_move: int,
    advance: bool,
    blocks_done: int,
    stream: int,
) -> None: ...
def langevin_momenta_cuda(
    *,
    chains: int,
    parameters: int,
    weights: int,
    momenta: int,
    gradient: int,
    inverse_masses: int,
    noise_scales: int,
    full_momenta: int,
    partial_sums: int,
    coefficients: int,
    metric: int,
    kinetic_energy: int,
    chain_ids: int,
    seed: int,
    step: int,
    moves: int,
    failed_move: int,
    advance: bool,
    blocks_done: int,
    stream: int,
) -> None: ...
