"""What learning curves are made of, against hand numbers."""

import numpy as np
import pytest

from mpi_rl.records.curves import interval_of_mean, running_average


def test_running_average_has_the_reproductions_decay():
    assert running_average(np.array([10.0, 20.0, 0.0])).tolist() == pytest.approx([10, 10.5, 9.975])


def test_interval_covers_the_mean_and_shrinks_with_agreement():
    curves = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    low, high = interval_of_mean(curves)
    assert low[0] < 2 < high[0] and low[0] >= 0 and high[0] <= 4
    assert low[1] == high[1] == 5
