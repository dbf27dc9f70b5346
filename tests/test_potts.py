"""The matrix J."""

import numpy as np
import pytest

from thermosphere.proteins.potts import interaction_matrix


def test_interactions_are_symmetric_standard_normals():
    matrices = np.stack([interaction_matrix(seed) for seed in range(200)])
    assert (matrices == matrices.transpose(0, 2, 1)).all()
    upper = matrices[:, *np.triu_indices(20)]
    count = upper.size
    assert abs(upper.mean()) < 4 / np.sqrt(count)
    assert abs(upper.var() - 1) < 4 * np.sqrt(2 / count)
    diagonal = np.diagonal(matrices, axis1=1, axis2=2)
    assert abs(diagonal.var() - 1) < 4 * np.sqrt(2 / diagonal.size)
    assert (interaction_matrix(3) == interaction_matrix(3)).all()
    assert (interaction_matrix(3) != interaction_matrix(4)).all()
    assert interaction_matrix(0, states=3).shape == (3, 3)


def test_interaction_matrix_refuses():
    with pytest.raises(ValueError, match="seed"):
        interaction_matrix(-1)
    with pytest.raises(ValueError, match="states"):
        interaction_matrix(0, 1)
