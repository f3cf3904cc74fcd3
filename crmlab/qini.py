"""How well an order of customers sorts them by what a message does: Qini, groups, bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crmlab import effects, results, tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

GROUPS = 10
POINTS = 100  # of a curve on a page


@dataclass(frozen=True, eq=False)
class Qini:
    """How much better than chance an order of customers is; 0 for chance, below it for worse.

    `value` is in units of the outcome per treated customer: the area between the curve and its
    chord. `causalml` is the same as a share of the effect on all, the scale of that package;
    `scikit_uplift` as a share of what a perfect order reaches there (nan for money, which that
    package refuses). `curve` has one row per different score: share contacted, gain.
    """

    value: float
    causalml: float
    scikit_uplift: float
    curve: pd.DataFrame
    numbers: results.Numbers

    @property
    def verdict(self) -> str:
        """What the order is good for, in plain words; chance is not in it."""
        whole = float(self.curve["gain"].iloc[-1])
        if whole <= 0:
            return "Contacting all of these customers brought nothing that an order could divide."
        half = float(np.interp(0.5, self.curve["share"], self.curve["gain"]))
        return (
            f"The first half in this order brought {self.numbers.percent(half / whole, 0)} of the "
            "whole effect; an order by lot brings half. How far chance goes, `learn` says."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the curve, one row per different score."""
        return self.curve

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>"


@dataclass(frozen=True, eq=False)
class _Order:
    """Customers by falling score; `ends` are the last of each different score."""

    places: Array
    treated: Array
    outcome: Array
    ends: Array

    @staticmethod
    def of(score: Array, treated: Array, outcome: Array) -> _Order:
        places = np.argsort(-score, kind="stable")
        score = score[places]
        ends = np.flatnonzero(np.append(score[1:] != score[:-1], True))
        return _Order(places, treated[places].astype(float), outcome[places], ends)

    def curve(self, weights: Array | None = None) -> tuple[Array, Array]:
        """Return share contacted and gain per treated customer, from (0, 0) on.

        `weights` count each customer so many times.
        """
        weights = np.ones(len(self.places)) if weights is None else weights[self.places]
        arm = weights * self.treated
        rest = weights - arm

        def reached(each: Array) -> Array:
            return np.asarray(np.cumsum(each)[self.ends])

        n_t, n_c = reached(arm), reached(rest)
        y_t, y_c = reached(arm * self.outcome), reached(rest * self.outcome)
        scale = np.divide(n_t, n_c, out=np.zeros_like(n_t), where=n_c > 0)
        share, gain = (n_t + n_c) / (n_t[-1] + n_c[-1]), (y_t - y_c * scale) / n_t[-1]
        return np.append(0.0, share), np.append(0.0, gain)

    def area(self, weights: Array | None = None) -> float:
        """Return the area between the curve and its chord."""
        share, gain = self.curve(weights)
        return float(np.trapezoid(gain, share) - gain[-1] / 2)


def qini(
    score: Sequence[float] | Array,
    treated: Sequence[bool] | Array,
    outcome: Sequence[float] | Array,
    *,
    weights: Array | None = None,
    numbers: results.Numbers | None = None,
) -> Qini:
    """Measure how well a score sorts customers by what a message does to them.

    Parameters
    ----------
    score : one number per customer, the highest to be contacted first; equal ones stand together
    treated : True or 1 for those who got the message by lot, False or 0 for the hold-out
    outcome : 0 or 1, or money
    weights : how often each customer counts; once, unless given

    Raises
    ------
    UsageError if the three differ in length or a score is missing; DataError without both arms

    Notes
    -----
    The curve is (Y_t - Y_c n_t / n_c) / N_t over the share of customers contacted, at different
    scores only: Radcliffe (2007), Using Control Groups to Target on Predicted Lift, Direct
    Marketing Analytics Journal 1, 14-21. Where no one of the hold-out is reached yet the second
    term is 0. `causalml` divides by the size of the effect on all (its `qini_score` with
    `normalize`), `scikit_uplift` by the Qini of the order by outcome (2 treated - 1) (its
    `qini_auc_score` with `negative_effect`).

    >>> qini([4, 3, 2, 1], [1, 0, 1, 0], [1, 0, 0, 0]).value
    0.1875
    """
    given, arm, came = (np.asarray(each, dtype=float) for each in (score, treated, outcome))
    if not len(given) == len(arm) == len(came) or np.isnan(given).any():
        raise tables.UsageError(
            f"A Qini needs a score, an arm and an outcome of each customer; there are {len(given)} "
            f"scores, {int(np.isnan(given).sum())} of them empty, {len(arm)} arms and {len(came)} "
            "outcomes."
        )
    if set(np.unique(arm)) != {0.0, 1.0}:
        raise tables.DataError(
            "A Qini compares those who got the message (1) with a hold-out (0); the arms found "
            f"are {sorted(set(arm.tolist()))[:5]}. Give a campaign with a hold-out drawn by lot."
        )
    order = _Order.of(given, arm, came)
    share, gain = order.curve(weights)
    value, whole, perfect = order.area(weights), abs(float(gain[-1])), math.nan
    if is_share(came):
        perfect = _Order.of(came * (2 * arm - 1), arm, came).area(weights)
    return Qini(
        value=value,
        causalml=value / whole if whole else math.nan,
        scikit_uplift=value / perfect if perfect else math.nan,
        curve=pd.DataFrame({"share": share, "gain": gain}),
        numbers=numbers or results.Numbers(),
    )


def is_share(outcome: Array) -> bool:
    """Whether the outcome is 0 or 1, and its mean a share."""
    return bool(np.isin(outcome, (0, 1)).all())


def drawn(treated: Array, generator: np.random.Generator) -> Array:
    """Draw customers with replacement, each arm by itself; return how often each came."""
    counts = np.zeros(len(treated))
    for arm in (True, False):
        places = np.flatnonzero(treated == arm)
        again = generator.integers(0, len(places), len(places))
        counts[places] = np.bincount(again, minlength=len(places))
    return counts


def draws(
    scores: Mapping[str, Array], treated: Array, outcome: Array, *, times: int, seed: int
) -> dict[str, Array]:
    """Return the Qinis of every score on customers drawn again, the same for each score.

    The bootstrap of Efron and Tibshirani (1993), each arm by itself; the scores stay as they are.
    """
    generator = np.random.default_rng([seed, 1])
    orders = {name: _Order.of(score, treated, outcome) for name, score in scores.items()}
    found: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(times):
        counts = drawn(treated, generator)
        for name, order in orders.items():
            found[name].append(order.area(counts))
    return {name: np.asarray(areas) for name, areas in found.items()}


def measured(
    part: Array, treated: Array, outcome: Array, *, alpha: float, k: int
) -> tuple[float, float, float]:
    """Return the effect among some customers with its interval: nan for fewer than `k` an arm.

    Newcombe's for 0 and 1, Welch's for money: `effects`.
    """
    arms = [outcome[part & (treated == arm)] for arm in (True, False)]
    if min(map(len, arms)) < k:
        return math.nan, math.nan, math.nan
    if is_share(outcome):
        (x1, n1), (x0, n0) = ((int(arm.sum()), len(arm)) for arm in arms)
        return effects.newcombe(x1, n1, x0, n0, alpha=alpha)
    one, other = (
        effects.Moments.of_sums(len(arm), float(arm.sum()), float(arm @ arm)) for arm in arms
    )
    found = effects.welch(one, other, alpha=alpha)
    return found.difference, found.low, found.high


def deciles(
    score: Array, uplift: Array, treated: Array, outcome: Array, *, alpha: float, k: int
) -> pd.DataFrame:
    """Return tenths of the customers by falling score: what was foretold, and what came.

    One row per group: group (1 is the highest), customers, predicted, effect, low, high, in units
    of the outcome per customer. Fewer groups where tenths would have fewer than `k` of an arm.
    """
    rarer = min(int(treated.sum()), int((~treated).sum()))
    # Groups are of all customers, so that an arm's part of one varies by chance: twice k will do.
    count = max(1, min(GROUPS, rarer // (2 * k)))
    places = np.argsort(-score, kind="stable")
    group = np.empty(len(score), dtype=int)
    group[places] = np.arange(len(score)) * count // len(score) + 1
    rows = []
    for n in range(1, count + 1):
        part = group == n
        effect = measured(part, treated, outcome, alpha=alpha, k=k)
        rows.append((n, int(part.sum()), float(uplift[part].mean()), *effect))
    return pd.DataFrame(rows, columns=["group", "customers", "predicted", "effect", "low", "high"])


def at_shares(
    score: Array, treated: Array, outcome: Array,
    *, shares: Sequence[float], alpha: float, k: int,
) -> pd.DataFrame:  # fmt: skip
    """Return the effect among the highest scores: share, customers, effect, low, high."""
    rows = []
    for share in shares:
        part = score >= np.quantile(score, 1 - share)
        effect = measured(part, treated, outcome, alpha=alpha, k=k)
        rows.append((share, int(part.sum()), *effect))
    return pd.DataFrame(rows, columns=["share", "customers", "effect", "low", "high"])


def page_curve(found: Qini, treated: Array, *, k: int) -> pd.DataFrame:
    """Return the curve at steps of some 2 `k` customers of an arm or more: share, gain."""
    rarer = min(int(treated.sum()), int((~treated).sum()))
    share = np.linspace(0, 1, max(1, min(POINTS, rarer // (2 * k))) + 1)
    gain = np.interp(share, found.curve["share"], found.curve["gain"])
    return pd.DataFrame({"share": share, "gain": gain})
