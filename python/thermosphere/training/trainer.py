"""Several independent runs of one network trained at once: the rows of one (R, N) parameter."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from thermosphere.models.named import Model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.minibatch import Minibatch
from thermosphere.proteins.dataset import DataSet
from thermosphere.training.schedule import learning_rate


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the defaults are those of arXiv 2603.29529, appendix C."""

    batch: int = 64  # sequences a step
    warmup: int = 4000  # steps of rising learning rate
    learning_rate_factor: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("batch", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.learning_rate_factor < float("inf"):
            raise ValueError(
                f"training: learning_rate_factor must be positive and finite, "
                f"got {self.learning_rate_factor}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"training: dropout must be in [0, 1), got {self.dropout}")


class Trainer:
    """Adam, β = (0.9, 0.98), eps 1e-9, on `runs` rows; each row sees its own shuffle every epoch.

    All randomness (initial weights, shuffles, the seed of what each step drops) comes from one
    generator seeded with `seed`; with its state, the weights and Adam's moments saved, training
    continues with the same bits (on the same instruction set, for the same number of threads).
    """

    def __init__(
        self, model: Model, data: DataSet, runs: int, seed: int, options: TrainingOptions
    ) -> None:
        if runs < 1:
            raise ValueError(f"training: runs must be at least 1, got {runs}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"training: seed must be in [0, 2**63), got {seed}")
        self.options = options
        self.model = model
        self.potential = MaskedLanguagePotential(model, data.train)
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = torch.nn.Parameter(model.initial(runs, self.generator))  # (R, N)
        self.optimizer = torch.optim.Adam([self.weights], lr=1.0, betas=(0.9, 0.98), eps=1e-9)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.step = 0

    def _rate(self, finished: int) -> float:
        options = self.options
        return learning_rate(
            finished + 1, self.model.embedding, options.warmup, options.learning_rate_factor
        )

    @property
    def steps_per_epoch(self) -> int:
        """⌈S / batch⌉; the last batch of an epoch is the smaller one."""
        return -(-self.potential.examples // self.options.batch)

    def norm2(self) -> torch.Tensor:
        """|w|² of every run, (R,) float64."""
        return self.weights.detach().double().square().sum(dim=1)

    def shuffle(self) -> torch.Tensor:
        """A permutation of the training sequences for every run, (R, S) int64."""
        runs, examples = len(self.weights), self.potential.examples
        return torch.stack(
            [torch.randperm(examples, generator=self.generator) for _ in range(runs)]
        )

    def update(
        self,
        indices: torch.Tensor,  # (R, B) int64
        active: torch.Tensor,  # (R,) bool
    ) -> None:
        """One Adam step of the active runs; the others keep their weights."""
        rows = active.nonzero().squeeze(1)
        shares = torch.full(
            (len(rows), indices.shape[1]), 1.0 / indices.shape[1], dtype=torch.float32
        )
        _, slope = self.potential.gradient(
            self.weights.detach()[rows],
            Minibatch(indices[rows], shares),
            dropout=self.options.dropout,
            generator=self.generator,
        )
        gradient = torch.zeros_like(self.weights)
        gradient[rows] = slope
        self.weights.grad = gradient
        if len(rows) == len(active):
            self.optimizer.step()
        else:
            idle = ~active
            kept = self.weights.detach()[idle]
            self.optimizer.step()
            with torch.no_grad():
                self.weights[idle] = kept
        self.schedule.step()
        self.step += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue, by name."""
        moments = self.optimizer.state.get(self.weights, {})
        state = {
            "weights": self.weights.detach(),
            "generator": self.generator.get_state(),
            "step": torch.tensor(self.step),
        }
        if moments:
            state["adam_mean"] = moments["exp_avg"]
            state["adam_square"] = moments["exp_avg_sq"]
        return state

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Inverse of `tensors`."""
        with torch.no_grad():
            self.weights.copy_(tensors["weights"])
        self.generator.set_state(tensors["generator"])
        self.step = int(tensors["step"])
        if self.step > 0:
            state = self.optimizer.state_dict()
            state["state"] = {
                0: {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors["adam_mean"],
                    "exp_avg_sq": tensors["adam_square"],
                }
            }
            self.optimizer.load_state_dict(state)
        schedule = self.schedule.state_dict()
        schedule["last_epoch"] = self.step
        schedule["_step_count"] = self.step + 1
        self.schedule.load_state_dict(schedule)
        rate = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def fingerprint(model: Model, data: DataSet, **arguments: Any) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued: model, data, arguments; JSON values."""
    digest = hashlib.sha256()
    for part in (data.train, data.validation, data.test):
        digest.update(part.tokens.tobytes())
        digest.update(part.masked.tobytes())
    if arguments.get("dropout"):  # it was a torch.Generator that dropped, once
        arguments["dropped_by"] = "Philox"
    return {
        **{f"model.{name}": value for name, value in asdict(model).items()},
        "data": digest.hexdigest(),
        **arguments,
    }


def check_fingerprint(path: Any, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """ValueError naming what differs when a checkpoint belongs to another run."""
    names = [n for n in {**found, **expected} if found.get(n) != expected.get(n)]
    if names:
        differences = "; ".join(
            f"{name} expected {expected.get(name)!r}, got {found.get(name)!r}" for name in names
        )
        raise ValueError(f"{path}: checkpoint must be of the same run: {differences}")
