"""Sample the weights of small transformers at a fixed temperature, on a sphere of constant norm.

The names below are what other projects import; they are loaded when first used, so that the command
line's help does not wait for torch.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thermosphere.models.layout import Layout
    from thermosphere.models.module import as_module
    from thermosphere.models.module_potential import ModulePotential
    from thermosphere.models.named import named_model
    from thermosphere.models.potential import MaskedLanguagePotential, Potential
    from thermosphere.models.regularised import Regularised
    from thermosphere.ops.minibatch import Minibatch
    from thermosphere.proteins.couplings import read_couplings
    from thermosphere.proteins.enumeration import enumerate_model
    from thermosphere.proteins.potts import PottsModel
    from thermosphere.proteins.tempering import sample_sequences
    from thermosphere.sampling.hmc import HybridMonteCarlo
    from thermosphere.sampling.hmc_state import HybridMonteCarloState
    from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
    from thermosphere.sampling.options import LangevinOptions
    from thermosphere.sampling.sghmc import sghmc
    from thermosphere.sampling.state import LangevinState

__version__ = _version("thermosphere")

_HOMES = {
    "HybridMonteCarlo": "sampling.hmc",
    "HybridMonteCarloState": "sampling.hmc_state",
    "Langevin": "sampling.langevin",
    "LangevinOptions": "sampling.options",
    "LangevinState": "sampling.state",
    "Layout": "models.layout",
    "MaskedLanguagePotential": "models.potential",
    "Minibatch": "ops.minibatch",
    "ModulePotential": "models.module_potential",
    "Potential": "models.potential",
    "PottsModel": "proteins.potts",
    "Regularised": "models.regularised",
    "UnreachableSphereError": "sampling.langevin",
    "as_module": "models.module",
    "enumerate_model": "proteins.enumeration",
    "named_model": "models.named",
    "read_couplings": "proteins.couplings",
    "sample_sequences": "proteins.tempering",
    "sghmc": "sampling.sghmc",
}

__all__ = [
    "HybridMonteCarlo",
    "HybridMonteCarloState",
    "Langevin",
    "LangevinOptions",
    "LangevinState",
    "Layout",
    "MaskedLanguagePotential",
    "Minibatch",
    "ModulePotential",
    "Potential",
    "PottsModel",
    "Regularised",
    "UnreachableSphereError",
    "__version__",
    "as_module",
    "enumerate_model",
    "named_model",
    "read_couplings",
    "sample_sequences",
    "sghmc",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'thermosphere' has no attribute {name!r}")
    return getattr(_import_module(f"thermosphere.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
