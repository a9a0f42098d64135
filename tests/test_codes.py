"""What the comparison of codes picks its settings by."""

from __future__ import annotations

import numpy as np

from scripts.bench.codes import recalls


def test_recall_grows_with_the_candidates_looked_at() -> None:
    candidates = np.array([[5, 9, 1, -1], [7, 2, 8, 3]])
    truth = np.array([[1, 5], [2, 7]])
    assert recalls(candidates, truth).tolist() == [0.5, 0.75, 1.0, 1.0]


def test_a_list_counts_once_for_each_neighbour_in_it() -> None:
    lists = np.array([[4, 0, 6]])
    of_neighbours = np.array([[0, 0, 4, 6]])
    assert recalls(lists, of_neighbours).tolist() == [0.25, 0.75, 1.0]
