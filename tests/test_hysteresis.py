"""Heating against cooling."""

from __future__ import annotations

import numpy as np
import xarray as xr

from thermosphere.analysis.hysteresis import hysteresis


def table(temperature: list[float], loss: list[float], error: list[float]) -> xr.Dataset:
    return xr.Dataset(
        {
            "train_loss": ("temperature", np.array(loss)),
            "train_loss_error": ("temperature", np.array(error)),
            "equilibrated": ("temperature", np.ones(len(loss), np.bool_)),
        },
        coords={"temperature": np.array(temperature)},
    )


def test_only_shared_temperatures_are_compared_and_only_in_standard_errors() -> None:
    first = table([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0], [0.3, 0.03, 0.3, np.nan])
    second = table([2.0, 3.0, 4.0, 5.0], [1.5, 2.5, 3.0, 9.0], [0.04, 0.4, 0.1, 0.1])
    found = hysteresis(first, second)
    assert found["temperature"].values.tolist() == [2.0, 3.0, 4.0]
    assert np.allclose(found["difference"].values, [0.5, 0.5, 0.0])
    assert np.allclose(found["difference_error"].values[:2], [0.05, 0.5])
    assert np.allclose(found["z"].values, [10.0, 1.0, 0.0])
    assert found["agree"].values.tolist() == [False, True, True]


def test_an_unknown_error_agrees_with_nothing() -> None:
    first, second = table([1.0], [0.0], [np.nan]), table([1.0], [0.1], [0.1])
    assert not hysteresis(first, second)["agree"].values.any()


def test_chains_that_still_come_down_are_not_compared() -> None:
    first = table([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [0.1] * 3)
    second = table([1.0, 2.0, 3.0], [5.0, 1.0, 2.0], [0.1] * 3)
    second["equilibrated"][0] = False
    assert hysteresis(first, second)["temperature"].values.tolist() == [2.0, 3.0]
    second["stationary"] = ("temperature", np.array([True, False, False]))
    assert hysteresis(first, second)["agree"].values.tolist() == [False, True, True]
