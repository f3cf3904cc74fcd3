"""Every arm against the hold-out: differences, money, what else changed; from sums by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmlab import effects, outcomes
from crmlab.effects import Effect, Moments
from crmlab.ledgers import HOLDOUT

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

# With fewer buyers than this in an arm, Newcombe's interval stands in for Welch's.
SMALL = 50
# What they did before must take away so much of the variance, or it bought nothing.
WORTH_ADJUSTING = 0.05
RATIO = "spend per purchase"
# Outcome -> its column, and what is held against it.
PAIRS: dict[str, tuple[str, str | None]] = {
    **{name: (name, outcomes.BEFORE + name) for name in outcomes.OUTCOMES},
    RATIO: ("spend", "purchases"),
    "profit": ("profit", outcomes.BEFORE + "margin"),
    "cost": ("cost", "response"),
    "contact_cost": ("contact_cost", None),
}
ADJUSTED = ("adjusted", "adjusted_low", "adjusted_high", "variance_removed")
Groups = Mapping[tuple[Any, ...], Mapping[str, Moments]]


def arms_of(groups: Groups) -> list[str]:
    """Return the arms that are no hold-out, by name."""
    return sorted(group[-1] for group in groups if group[-1] != HOLDOUT)


def differences(
    groups: Groups, names: Sequence[str], *, sizes: Mapping[str, int], primary: str, alpha: float,
) -> pd.DataFrame:  # fmt: skip
    """Compare every arm with the hold-out.

    Parameters
    ----------
    groups : as `outcomes.moments` gives them by arm
    names : the outcomes, of `PAIRS`
    sizes : arm -> how many customers it has
    primary : the outcome on which the verdict rests: its intervals hold for all arms together
        (Bonferroni), and `p_holm` is its p-value so corrected (Holm 1979)

    Returns
    -------
    DataFrame, one row per outcome and arm: arm, outcome, primary, n, n_holdout, mean,
    mean_holdout, difference, low, high, p_value, p_holm, method; relative, relative_low,
    relative_high, as shares of those held out, held against before where that helps; adjusted,
    adjusted_low, adjusted_high, the difference held against what they did before (CUPED), and
    variance_removed by that
    """
    import pandas as pd

    arms, held = arms_of(groups), groups[(HOLDOUT,)]
    rows = []
    for name in names:
        level = alpha / len(arms) if name == primary else alpha
        found = [_compared(name, groups[(arm,)][name], held[name], level) for arm in arms]
        corrected = effects.holm([one["p_value"] for one in found])
        for arm, one, p_holm in zip(arms, found, corrected, strict=True):
            first = {"arm": arm, "outcome": name, "primary": name == primary, "n": sizes[arm],
                     "n_holdout": sizes[HOLDOUT]}  # fmt: skip
            rows.append(first | one | {"p_holm": p_holm if name == primary else math.nan})
    order = ["arm", "outcome", "primary", "n", "n_holdout", "mean", "mean_holdout", "difference",
             "low", "high", "p_value", "p_holm", "relative", "relative_low", "relative_high",
             "method", "adjusted", "adjusted_low", "adjusted_high", "variance_removed"]  # fmt: skip
    return pd.DataFrame(rows)[order]


def _compared(name: str, one: Moments, held: Moments, alpha: float) -> dict[str, Any]:
    """Compare one outcome of one arm with the hold-out's."""
    nothing: dict[str, Any] = dict.fromkeys(ADJUSTED, math.nan)
    if name == RATIO:
        effect, method = effects.ratio(one, held, alpha=alpha), "delta method"
        means = [group.mean / group.other_mean if group.other_mean else math.nan
                 for group in (one, held)]  # fmt: skip
        relative = (means[0] / means[1] - 1 if means[1] else math.nan, math.nan, math.nan)
        return _told(means, effect, relative) | {"method": method} | nothing
    effect, method = effects.welch(one, held, alpha=alpha), "Welch"
    means = [one.mean, held.mean]
    buyers = [round(group.mean * group.n) for group in (one, held)]
    # Where units were drawn, the size is theirs, and no count of buyers.
    if name == "response" and one.other_mean == one.other_mean and min(buyers) < SMALL:
        effect, method = _small(buyers, (one.n, held.n), alpha), "Newcombe, Fisher"
    if one.other_mean == one.other_mean and one.variance + held.variance > 0:
        after, before, removed = effects.adjusted(one, held)
        less = effects.welch(after, before, alpha=alpha)
        if removed > WORTH_ADJUSTING:
            one, held = after, before
        nothing = {"adjusted": less.difference, "adjusted_low": less.low,
                   "adjusted_high": less.high, "variance_removed": removed}  # fmt: skip
    relative = effects.relative(one, held, alpha=alpha)
    if relative[0] != relative[0] and held.mean:
        ends = effects.fieller(one.mean, one.variance / one.n, held.mean, held.variance / held.n,
                               alpha=alpha)  # fmt: skip
        if ends:
            relative = (one.mean / held.mean - 1, ends[0] - 1, ends[1] - 1)
    return _told(means, effect, relative) | {"method": method} | nothing


def _told(
    means: Sequence[float], effect: Effect, relative: tuple[float, float, float]
) -> dict[str, float]:
    return {
        "mean": means[0], "mean_holdout": means[1], "difference": effect.difference,
        "low": effect.low, "high": effect.high, "p_value": effect.p_value,
        "relative": relative[0], "relative_low": relative[1], "relative_high": relative[2],
    }  # fmt: skip


def _small(buyers: Sequence[int], sizes: tuple[int, int], alpha: float) -> Effect:
    """Compare two shares of few: Newcombe's interval, Fisher's exact p."""
    from scipy import stats

    (x1, x0), (n1, n0) = buyers, sizes
    difference, low, high = effects.newcombe(x1, n1, x0, n0, alpha=alpha)
    p_value = float(stats.fisher_exact([[x1, n1 - x1], [x0, n0 - x0]])[1])
    return Effect(difference, low, high, p_value)


def best(row: Any) -> tuple[float, float, float]:
    """Return the difference with its interval, held against before where that helps."""
    if row.variance_removed > WORTH_ADJUSTING:
        return row.adjusted, row.adjusted_low, row.adjusted_high
    return row.difference, row.low, row.high


def money(
    groups: Groups, *, sizes: Mapping[str, int], contacts: Mapping[str, int], fixed_cost: float,
    alpha: float,
) -> pd.DataFrame:  # fmt: skip
    """Say what each arm earned, in shop currency, for all whom it was given.

    Parameters
    ----------
    sizes, contacts : arm -> how many customers it has, and how many were sent something
    fixed_cost : of the whole campaign, borne by the arms by their size

    Returns
    -------
    DataFrame, one row per arm: arm, n, contacts, margin, what the campaign brought; cost; profit,
    low, high; verdict, earned, lost or not proven; roi, profit over cost; break_even, what a
    contact may cost at most; buyer, the cost of each buyer more, buyer_low, buyer_high: nan where
    there is no finite value, as there may be no buyer more
    """
    import pandas as pd

    arms, held = arms_of(groups), groups[(HOLDOUT,)]
    level, in_all = alpha / len(arms), sum(sizes[arm] for arm in arms)
    rows = []
    for arm in arms:
        one = groups[(arm,)]
        n, fixed = sizes[arm], fixed_cost * sizes[arm] / in_all
        spread = _better(one["profit"], held["profit"], level)
        profit, low, high = (n * end - fixed for end in spread)
        cost = n * one["cost"].mean + fixed
        sent = contacts[arm]
        verdict = "earned" if low > 0 else "lost" if high < 0 else "not proven"
        rows.append(
            {"arm": arm, "n": n, "contacts": sent, "margin": profit + cost, "cost": cost,
             "each": one["cost"].mean, "profit": profit, "low": low, "high": high,
             "verdict": verdict, "roi": profit / cost if cost else math.nan,
             "break_even": (profit + n * one["contact_cost"].mean) / sent if sent else math.nan,
             **_per_buyer(one, held, cost / n, level)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _better(one: Moments, held: Moments, alpha: float) -> tuple[float, float, float]:
    """Return a difference of means, held against before where that helps."""
    found = effects.welch(one, held, alpha=alpha)
    if one.other_mean == one.other_mean and one.variance + held.variance > 0:
        after, before, removed = effects.adjusted(one, held)
        if removed > WORTH_ADJUSTING:
            found = effects.welch(after, before, alpha=alpha)
    return found.difference, found.low, found.high


def _per_buyer(
    one: Mapping[str, Moments], held: Mapping[str, Moments], cost: float, alpha: float
) -> dict[str, float]:
    """Return what each buyer more has cost, by Fieller; nan where there may be none."""
    units = one["cost"].n
    more = one["response"].mean - held["response"].mean
    spread = one["response"].variance / units + held["response"].variance / held["response"].n
    together = one["cost"].covariance if one["cost"].covariance == one["cost"].covariance else 0.0
    ends = effects.fieller(cost, one["cost"].variance / units, more, spread, together / units,
                           alpha=alpha)  # fmt: skip
    if ends is None or more <= 0 or not cost:
        return dict.fromkeys(("buyer", "buyer_low", "buyer_high"), math.nan)
    return {"buyer": cost / more, "buyer_low": ends[0], "buyer_high": ends[1]}


def balance(groups: Groups, names: Sequence[str]) -> pd.DataFrame:
    """Return how alike the arms were before: the difference in standard deviations.

    DataFrame: arm, outcome, before, before_holdout, standardised. Above .1 something but the lot
    may have decided. Austin (2009), Statistics in Medicine 28.
    """
    import pandas as pd

    held, rows = groups[(HOLDOUT,)], []
    for arm in arms_of(groups):
        for name in names:
            one, other = groups[(arm,)][name], held[name]
            spread = math.sqrt((one.other_variance + other.other_variance) / 2)
            gap = one.other_mean - other.other_mean
            rows.append({"arm": arm, "outcome": name, "before": one.other_mean,
                         "before_holdout": other.other_mean,
                         "standardised": gap / spread if spread else math.nan})  # fmt: skip
    columns = ["arm", "outcome", "before", "before_holdout", "standardised"]
    return pd.DataFrame(rows, columns=columns).dropna().reset_index(drop=True)


def compared_by(
    rows: ir.Table, columns: Mapping[str, str], *, alpha: float, unit: str | None,
    by: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """Compare plain columns of every arm with the hold-out, in all or in parts.

    Parameters
    ----------
    columns : what it is called -> its column
    by : columns whose values part the customers, such as the stratum

    Returns
    -------
    DataFrame: the columns of `by`, what, arm, n, n_holdout, mean, mean_holdout, difference, low,
    high
    """
    import pandas as pd

    pairs: dict[str, tuple[str, str | None]] = {name: (one, None) for name, one in columns.items()}
    groups = outcomes.moments(rows, pairs, by=[*by, "arm"], unit=unit)
    found = []
    for part in sorted({group[:-1] for group in groups}):
        held = groups.get((*part, HOLDOUT))
        arms = sorted(group[-1] for group in groups if group[:-1] == part)
        for name in columns:
            for arm in (one for one in arms if one != HOLDOUT and held):
                one, other = groups[(*part, arm)][name], held[name]  # type: ignore[index]
                if min(one.n, other.n) < 2:
                    continue
                effect = effects.welch(one, other, alpha=alpha)
                found.append(
                    {**dict(zip(by, part, strict=True)), "what": name, "arm": arm, "n": one.n,
                     "n_holdout": other.n, "mean": one.mean, "mean_holdout": other.mean,
                     "difference": effect.difference, "low": effect.low, "high": effect.high}
                )  # fmt: skip
    names = [*by, "what", "arm", "n", "n_holdout", "mean", "mean_holdout", "difference", "low",
             "high"]  # fmt: skip
    return pd.DataFrame(found, columns=names)
