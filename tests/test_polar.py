"""The best quintics are the best, and four of them flatten as well as five of Muon's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib.method.predictors.polar import best_quintic, best_quintics, flattened
from hybridlib.method.predictors.spectral import flatten_spectrum

POWERS = np.array([1, 3, 5])


def through(quintics: tuple, s: np.ndarray) -> np.ndarray:
    for a, b, c in quintics:
        s = a * s + b * s**3 + c * s**5
    return s


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 0.6), st.integers(0, 2), st.floats(-1e-2, 1e-2))
def test_no_quintic_near_the_best_is_better(low: float, which: int, change: float) -> None:
    s = np.linspace(low, 1.0, 5000)[:, None] ** POWERS
    quintic, error = best_quintic(low, 1.0)
    assert np.abs(s @ quintic - 1).max() == pytest.approx(error, rel=1e-4, abs=1e-9)
    other = np.array(quintic)
    other[which] += change
    assert np.abs(s @ other - 1).max() >= error * (1 - 1e-4)


def test_more_iterations_come_nearer_and_what_is_flat_stays_flat() -> None:
    s = np.linspace(0.01, 1.0, 5000)
    errors = [np.abs(through(best_quintics(n, 0.01), s) - 1).max() for n in range(1, 10)]
    assert all(later <= earlier for earlier, later in zip(errors, errors[1:]) if earlier > 1e-9)
    assert errors[2] < 0.28 and errors[-1] < 1e-9


@pytest.mark.parametrize("least", [0.0, 1.0, -1.0])
def test_a_least_value_that_is_no_share_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match="least"):
        best_quintics(3, least)


def spread(rows: int, columns: int, decay: float) -> torch.Tensor:
    """A matrix whose singular values fall like a power of their rank, as those of a look-ahead do."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, rows, generator=generator)).Q for n in (rows, columns))
    return (u * torch.arange(1, rows + 1) ** -decay @ v.T)[None]


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("turned", [False, True])
def test_four_are_as_near_the_polar_factor_as_five_of_muons(decay: float, turned: bool) -> None:
    matrix = spread(128, 300, decay)
    matrix = matrix.mT if turned else matrix
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    four, five = flattened(matrix, best_quintics(4, 0.003), torch.float32), flatten_spectrum(matrix, 5)
    near = [float(torch.cosine_similarity(flat.flatten(), (left @ right).flatten(), dim=0)) for flat in (four, five)]
    assert near[0] > near[1] > 0.98


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_bfloat16_keeps_the_direction(decay: float) -> None:
    matrix = spread(256, 700, decay)
    exact, rounded = (flattened(matrix, best_quintics(3, 0.01), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.995


def test_a_batch_is_flattened_matrix_by_matrix() -> None:
    several = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(2))
    quintics = best_quintics(3, 0.01)
    alone = torch.cat([flattened(one[None], quintics, torch.float32) for one in several])
    torch.testing.assert_close(flattened(several, quintics, torch.float32), alone)
