"""How good a forecast was: per customer, in all, by rank, and against another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def by_group(
    place: Any, labels: list[str], forecast: Array, actual: Array, weights: Array, *, k: int
) -> pd.DataFrame:
    """Return expected and actual purchases per customer by group: label, customers and both.

    `place` is each row's group, in the order of `labels`. A group that may not be shown, with
    fewer than `k` customers or one who makes half of its purchases, joins the one before it (the
    first, the one after), and the labels become "first to last".
    """
    sums = [np.bincount(place, weights * one, len(labels)) for one in (1, forecast, actual)]
    largest = np.zeros(len(labels))
    np.maximum.at(largest, place, actual)
    groups: list[list[float]] = []
    spans: list[tuple[str, str]] = []
    for label, *row in zip(labels, *sums, largest, strict=True):
        alone = row[0] < k or row[3] * 2 > row[2]
        joins = groups and (alone or groups[-1][0] < k or groups[-1][3] * 2 > groups[-1][2])
        if joins:
            last = groups[-1]
            groups[-1] = [*(a + b for a, b in zip(last[:3], row[:3], strict=True)),
                          max(last[3], row[3])]  # fmt: skip
            spans[-1] = (spans[-1][0], label if row[0] else spans[-1][1])
        elif row[0]:
            groups, spans = [*groups, row], [*spans, (label, label)]
    if len(groups) == 1 and (groups[0][0] < k or groups[0][3] * 2 > groups[0][2]):
        groups, spans = [], []
    rows = [
        (first if first == last else f"{first} to {last}", round(n), expected / n, made / n)
        for (first, last), (n, expected, made, _) in zip(spans, groups, strict=True)
    ]
    return pd.DataFrame(rows, columns=["label", "customers", "expected", "actual"])


def cost(
    chosen: Array, best: Array, actual: Array, weights: Array, seed: int
) -> tuple[float, float, float]:
    """Return how much larger the choice's error is than the best one's, with a 95 % interval.

    By resampling customers: each counts Poisson(1) times, so a row that stands for several does
    as many together.
    """
    rng, extra = np.random.default_rng(seed), np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        times = rng.poisson(weights).astype(float)
        extra[n] = rmse(chosen, actual, times) - rmse(best, actual, times)
    low, high = np.quantile(extra, [0.025, 0.975])
    return rmse(chosen, actual, weights) - rmse(best, actual, weights), float(low), float(high)
