"""How good a probability was: its error, its order, and whether it means what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from crmlab.models import Array

Z = 1.959964  # of a 95 % interval
BINS = 10
DRAWS = 200  # of outcomes, for what a perfect probability would show


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; nan where it cannot be said."""

    value: float
    low: float
    high: float

    @staticmethod
    def around(value: float, influence: Array, who: Array) -> Interval:
        """Return the interval of an estimate to which each row adds its influence.

        Rows of one customer may go together: their influences are added before they are squared.
        """
        error = float(np.sqrt(np.sum(_by_customer(influence, who) ** 2)))
        return Interval(value, value - Z * error, value + Z * error)


NOTHING = Interval(float("nan"), float("nan"), float("nan"))


def _by_customer(values: Array, who: Array) -> Array:
    return np.asarray(np.bincount(np.unique(who, return_inverse=True)[1], values), float)


def brier(chance: Array, came: Array) -> float:
    """Return the mean squared error of a probability: Brier (1950), Monthly Weather Review 78."""
    return float(np.mean((chance - came) ** 2))


def skill(chance: Array, rival: Array | float, came: Array, who: Array) -> Interval:
    """Return which share of a rival's Brier score a probability saves, clustered by customer.

    1 is perfect, 0 no better than the rival. The interval is by the delta method.
    """
    own, other = (chance - came) ** 2, (rival - came) ** 2
    if other.sum() == 0:
        return NOTHING
    ratio = own.sum() / other.sum()
    return Interval.around(1 - ratio, (ratio * other - own) / other.sum(), who)


def worse_by(chance: Array, best: Array, came: Array, who: Array) -> tuple[float, float]:
    """Return how much larger a Brier score is than another on the same rows, and its error."""
    more = (chance - came) ** 2 - (best - came) ** 2
    error = np.sqrt(np.sum(_by_customer(more - more.mean(), who) ** 2)) / len(more)
    return float(more.mean()), float(error)


def auc(chance: Array, came: Array, who: Array, blocks: Array | None = None) -> Interval:
    """Return the share of pairs of one to whom it came and one to whom not in the right order.

    Ties count half; pairs are formed within a block, and blocks count by their rows. The interval
    is DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, clustered by customer.
    """
    blocks = np.zeros(len(chance), int) if blocks is None else blocks
    value, influence = 0.0, np.zeros(len(chance))
    for one in np.unique(blocks):
        yes, no = ((blocks == one) & (came == outcome) for outcome in (1, 0))
        if not yes.any() or not no.any():
            return NOTHING
        share = (blocks == one).mean()
        below, above = _share_below(chance[no], chance[yes]), _share_below(chance[yes], chance[no])
        value += share * below.mean()
        influence[yes] = share * (below - below.mean()) / yes.sum()
        influence[no] = share * (above.mean() - above) / no.sum()
    return Interval.around(float(value), influence, who)


def _share_below(some: Array, of: Array) -> Array:
    """Return which share of `some` lies below each value, those equal to it counting half."""
    ordered = np.sort(some)
    both = (np.searchsorted(ordered, of, side=side) for side in ("left", "right"))
    return np.asarray(sum(both) / (2 * len(some)))


def log_odds(chance: Array) -> Array:
    """Return log(p / (1 - p)), for a p of 0 or 1 as for one in a million."""
    p = np.clip(chance, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)))


def calibration_line(
    chance: Array, came: Array, who: Array, blocks: Array | None = None
) -> tuple[Interval, Interval]:
    """Return slope and intercept of the outcome's log-odds on the probability's.

    A probability that means what it says has slope 1 and intercept 0: Cox (1958), Biometrika 45.
    Each block has an intercept of its own, of which the mean is returned: a block in which all
    bought more moves its level, not the slope. The intervals are clustered by customer; both nan
    where all or none came, or all chances are alike.
    """
    blocks = np.zeros(len(chance), int) if blocks is None else blocks
    share = np.bincount(blocks) / max(1, len(blocks))
    x = np.column_stack([log_odds(chance), blocks[:, None] == np.arange(len(share))]).astype(float)
    if not len(chance) or came.min() == came.max() or np.ptp(x[:, 0]) < 1e-9:
        return NOTHING, NOTHING
    beta, step, reached = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.inf
    for _ in range(100):
        line = np.clip(x @ beta, -30, 30)
        fitted = 1 / (1 + np.exp(-line))
        deviance = float(np.sum(np.logaddexp(0, line) - came * line))
        if deviance > reached + 1e-7:  # a step too far, by more than rounding: half of it
            step = step / 2
            beta = beta - step
            continue
        information = (x * (fitted * (1 - fitted))[:, None]).T @ x
        step = np.linalg.lstsq(information, x.T @ (came - fitted), rcond=None)[0]
        if np.abs(step).max() < 1e-8:
            break
        beta, reached = beta + step, deviance
    else:
        return NOTHING, NOTHING
    influence = (x * (came - fitted)[:, None]) @ np.linalg.pinv(information)
    return (
        Interval.around(float(beta[0]), influence[:, 0], who),
        Interval.around(float(beta[1:] @ share), influence[:, 1:] @ share, who),
    )


def expected_error(chance: Array, came: Array) -> float:
    """Return the expected calibration error: the mean gap in ten bins of equally many rows."""
    edges = np.quantile(chance, np.arange(1, BINS) / BINS)
    place = np.searchsorted(edges, chance, side="right")
    return float(np.abs(np.bincount(place, chance - came, BINS)).sum() / len(chance))


def perfect_error(chance: Array, seed: int) -> float:
    """Return the calibration error to expect of these probabilities if all were true.

    So many rows scatter around the truth: no score can be told from a perfect one below this.
    """
    rng = np.random.default_rng(seed)
    draws = max(5, min(DRAWS, 4_000_000 // max(1, len(chance))))
    errors = [expected_error(chance, rng.binomial(1, chance).astype(float)) for _ in range(draws)]
    return float(np.mean(errors))


def judge(
    chance: Array,
    came: Array,
    who: Array,
    *,
    base: Array | float,
    recency: Array | None,
    blocks: Array | None = None,
) -> dict[str, float]:
    """Return the row of a table: how good a probability was.

    brier; skill against the base rate with skill_low and skill_high; over_recency with low and
    high, against the rule that looks at recency only; auc with low and high; stops_expected.
    """
    against = {"skill": skill(chance, base, came, who)}
    against["over_recency"] = NOTHING if recency is None else skill(chance, recency, came, who)
    against["auc"] = auc(chance, came, who, blocks)
    row = {"brier": brier(chance, came)}
    for name, found in against.items():
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def by_tenth(chance: Array, came: Array, *, k: int) -> pd.DataFrame:
    """Return part, customers, said and came by tenth of the customers, the highest risk first.

    A tenth with fewer than `k` customers to whom it came, or to whom not, joins the one before it
    (the first, the one after): then the part is "7–10". None where that is so of all together.
    """
    order = np.argsort(-chance, kind="stable")
    place = np.arange(len(chance)) * BINS // max(1, len(chance))
    counts = [np.bincount(place, one, BINS) for one in (came[order], chance[order])]
    sizes = np.bincount(place, minlength=BINS)
    parts: list[list[float]] = []  # first and last tenth, customers, to how many it came, said
    for n, (size, some, said) in enumerate(zip(sizes, *counts, strict=True), start=1):
        if parts and (_few(size, some, k) or _few(parts[-1][2], parts[-1][3], k)):
            last = parts[-1]
            parts[-1] = [last[0], n, last[2] + size, last[3] + some, last[4] + said]
        else:
            parts.append([n, n, size, some, said])
    if len(parts) == 1 and _few(parts[0][2], parts[0][3], k):
        parts = []
    rows = [
        (f"{a}" if a == b else f"{a}–{b}", int(size), said / size, some / size)
        for a, b, size, some, said in parts
    ]
    return pd.DataFrame(rows, columns=["part", "customers", "said", "came"])


def _few(rows: float, some: float, k: int) -> bool:
    return min(some, rows - some) < k
