"""The G-test: whether tokens were drawn from a distribution."""

from __future__ import annotations

import numpy as np

SIGNIFICANT = 1e-3


def g_test(counts, expected_probs):
    """p-value of a G-test; cells that expect fewer than 5 are merged, and an impossible cell must be empty."""
    from scipy.stats import power_divergence  # takes half a second, in the process that draws rather than in each

    counts, expected = np.asarray(counts, float), np.asarray(expected_probs, float)
    assert counts[expected == 0].sum() == 0, "a token of probability 0 was emitted"
    total = counts.sum()
    expected = expected / expected.sum() * total
    order = np.argsort(expected)
    cells, merged = [], [0.0, 0.0]
    for i in order:
        merged[0] += counts[i]
        merged[1] += expected[i]
        if merged[1] >= 5:
            cells.append(tuple(merged))
            merged = [0.0, 0.0]
    last = cells.pop()
    cells.append((last[0] + merged[0], last[1] + merged[1]))
    if len(cells) == 1:
        return 1.0
    observed, wanted = zip(*cells, strict=True)
    return power_divergence(observed, wanted, lambda_="log-likelihood").pvalue
