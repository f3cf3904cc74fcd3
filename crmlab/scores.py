"""How good a forecast was: per customer, in all, by rank, and against another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from crmlab.models import Array

RESAMPLES = 200  # of the customers, for an interval


def rmse(forecast: Array, actual: Array, weights: Array) -> float:
    """Return the root mean square error per customer."""
    return float(np.sqrt(weights @ (forecast - actual) ** 2 / weights.sum()))


def score(forecast: Array, actual: Array, weights: Array) -> dict[str, float]:
    """Compare a forecast per customer with what happened.

    Parameters
    ----------
    forecast, actual : numbers of purchases; `weights`: how many customers have this row's numbers

    Returns
    -------
    purchases, the forecast total; mae and rmse per customer; total_error, a share of the actual
    total; capture_top10, the share of the actual purchases that the tenth of the customers with
    the highest forecast made; auc of the forecast for buying at all. Customers with equal
    forecasts share their places, so the order of the rows changes nothing.
    """
    total, customers_in_all = weights @ actual, weights.sum()
    levels, level = np.unique(-forecast, return_inverse=True)
    size = np.bincount(level, weights, len(levels))
    made = np.bincount(level, weights * actual, len(levels))
    place, share = (np.concatenate([[0], np.cumsum(v) / v.sum()]) for v in (size, made))
    buyers = np.bincount(level, weights * (actual > 0), len(levels))
    others = size - buyers
    # Mann-Whitney: pairs of a buyer and another in the right order, ties count half.
    behind = others.sum() - np.cumsum(others)
    pairs = buyers.sum() * others.sum()
    return {
        "purchases": float(weights @ forecast),
        "mae": float(weights @ np.abs(forecast - actual) / customers_in_all),
        "rmse": float(np.sqrt(weights @ (forecast - actual) ** 2 / customers_in_all)),
        "total_error": float(weights @ forecast / total - 1) if total else float("nan"),
        "capture_top10": float(np.interp(0.1, place, share)) if total else float("nan"),
        "auc": float(buyers @ (behind + others / 2) / pairs) if pairs else float("nan"),
    }


def calibration(forecast: Array, actual: Array, weights: Array, *, k: int) -> pd.DataFrame:
    """Return expected and actual purchases per customer by tenth of the customers, lowest first.

    Fewer parts where one would have fewer than `k` customers, or one customer would bring half of
    its purchases; none where that is so of all together.
    """
    order = np.argsort(forecast, kind="stable")
    weights, expected, actual = weights[order], forecast[order], actual[order]
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    for parts in range(10, 0, -1):
        rows = pd.DataFrame(
            {
                "part": np.minimum((middle * parts).astype(int), parts - 1),
                "customers": weights,
                "expected": weights * expected,
                "actual": weights * actual,
                "largest": actual,
            }
        )
        found = rows.groupby("part").sum().assign(largest=rows.groupby("part")["largest"].max())
        alone = (found["customers"] < k) | (found["largest"] * 2 > found["actual"])
        if len(found) == parts and not alone.any():
            each = found[["expected", "actual"]].div(found["customers"], axis=0)
            return found[["customers"]].astype(int).join(each).reset_index(drop=True)
    return pd.DataFrame({"customers": [], "expected": [], "actual": []})


def cost(
    chosen: Array, best: Array, actual: Array, weights: Array, seed: int
) -> tuple[float, float, float]:
    """Return how much larger the choice's error is than the best one's, with a 95 % interval.

    By resampling customers: each counts Poisson(1) times, so a row that stands for several does
    as many together.
    """
    rng = np.random.default_rng(seed)
    times = rng.poisson(weights, (RESAMPLES, len(weights)))
    size = times.sum(axis=1)
    drawn = [np.sqrt(times @ (forecast - actual) ** 2 / size) for forecast in (chosen, best)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return rmse(chosen, actual, weights) - rmse(best, actual, weights), float(low), float(high)
