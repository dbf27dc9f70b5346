"""What the `physical_validation` package says of an ensemble (Merz, Shirts, PLoS ONE 13, e0202764
(2018)): kinetic energies at one temperature, potential energies at two.

The package is needed only here: ImportError, saying so, where it is missing.
"""

from __future__ import annotations

import logging
import math
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thermosphere.analysis import convergence

Array = npt.NDArray[np.float64]

JUDGED = 30  # independent draws below which no ensemble is judged


class KineticDistances(NamedTuple):
    """Of kinetic energies from the Maxwell-Boltzmann law, in standard errors."""

    mean: float
    width: float


def independent(values: Array) -> Array:
    """Of values (chains, draws), every so many draws that they count as independent, (K,)."""
    stride = math.ceil(values.size / convergence.effective_sample_size(values))
    return values[:, ::stride].ravel()


def apart(cold: Array, hot: Array) -> tuple[Array, Array]:
    """Independent draws of U (K,) and (L,), of the same chains (C, ·) at two temperatures.

    Chains of different starts stand in basins of their own, in each of which ln P(U|T2)/P(U|T1) has
    the same slope. What is returned is measured from the middle between a chain's two means, which
    leaves the slope as it is and gives all chains about the same intercept.
    """
    middle = 0.5 * (cold.mean(1, keepdims=True) + hot.mean(1, keepdims=True))
    return independent(cold - middle), independent(hot - middle)


def kinetic_distances(
    kinetic_temperature: Array, temperature: float, parameters: int
) -> KineticDistances:
    """Of independent draws (K,) of 2 K / (N - 1), on the sphere."""
    judge, data = _package()
    energies = 0.5 * (parameters - 1) * kinetic_temperature
    mean, width = judge.kinetic_energy.distribution(
        _simulation(data, parameters, temperature, kinetic_energy=energies),
        strict=False,
        verbosity=0,
        bootstrap_seed=1,
        data_is_uncorrelated=True,
    )
    return KineticDistances(float(mean), float(width))


def ensemble_distance(
    cold: Array, hot: Array, temperatures: tuple[float, float], parameters: int
) -> float:
    """How far the slope of ln[P(U|T2)/P(U|T1)] is from 1/T1 - 1/T2, in standard errors, from
    independent draws (K,) of U at both; NaN where their distributions do not overlap."""
    judge, data = _package()
    from physical_validation.util.error import InputError

    pair = [
        _simulation(data, parameters, temperature, potential_energy=draws)
        for temperature, draws in zip(temperatures, (cold, hot), strict=True)
    ]
    try:
        (distance,) = judge.ensemble.check(*pair, verbosity=0, data_is_uncorrelated=True)
    except InputError:
        return math.nan
    return abs(float(distance))


def _package() -> tuple[ModuleType, ModuleType]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            greeting = logging.root.manager.disable
            logging.disable()  # pymbar greets
            try:
                import physical_validation
                from physical_validation import data
            finally:
                logging.disable(greeting)
    except ImportError as error:
        raise ImportError(
            "the ensemble is judged by physical_validation: pip install 'thermosphere[test]'"
        ) from error
    return physical_validation, data


def _simulation(data: Any, parameters: int, temperature: float, **observables: Array) -> Any:
    """In units where k_B = 1; N weights are ⌈N/3⌉ atoms, the sphere is one constraint."""
    atoms = -(-parameters // 3)
    return data.SimulationData(
        units=data.UnitData(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        system=data.SystemData(
            natoms=atoms,
            nconstraints=1,
            ndof_reduction_tra=3 * atoms - parameters,
            ndof_reduction_rot=0,
        ),
        ensemble=data.EnsembleData("NVT", natoms=atoms, volume=1.0, temperature=temperature),
        observables=data.ObservableData(**observables),
    )
