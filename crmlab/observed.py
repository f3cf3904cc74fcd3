"""What can be said of a campaign without a hold-out: weaker, and said to be so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from crmlab import effects, results, tables, weighing

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.models import Array

WEIGHTED = "inverse probability weighting"
DOUBLY_ROBUST = "doubly robust"
DIFFERENCES = "difference in differences"
NAIVE = "naive (wrong)"
WEAKER = "observational, weaker"
# Fewer comparable customers than this in a group, or a smaller share of those contacted, say
# nothing.
LEAST, LEAST_SHARE = 100, 0.2
ESTIMATES = (
    "method", "effect", "low", "high", "placebo", "placebo_low", "placebo_high", "passed",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Observed:
    """The effect on those contacted, found without a lot: observational, weaker.

    `estimates` has one row per method: method, effect, low, high (per customer contacted, in the
    outcome's unit), placebo, placebo_low, placebo_high (the same of what the campaign cannot have
    changed), passed (the placebo's interval holds 0; missing: not tested). The naive difference
    of all customers is there to be seen beside them, and never counts. `balance`: covariate,
    before, after, the standardised mean differences of contacted and not, before and after
    weighting. Both are empty where the groups cannot be compared. `share_dropped` of those
    contacted have no counterpart and are left out, `share_untreated_dropped` of the others;
    `treated` and `untreated` are the customers used. `notes`: what was left out, and why.
    """

    estimates: pd.DataFrame
    balance: pd.DataFrame
    share_dropped: float
    share_untreated_dropped: float
    treated: int
    untreated: int
    usable: bool
    verdict: str
    notes: tuple[str, ...]
    numbers: results.Numbers
    kind: Literal["money", "count"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method."""
        return self.estimates

    def _repr_html_(self) -> str:
        text = "".join(f"<p>{escape(line)}</p>" for line in (self.verdict, *self.notes))
        if self.estimates.empty:
            return text
        n, printed = self.numbers, _printer(self.numbers, self.kind)
        shown = self.estimates.copy()
        shown["passed"] = [_word(one) for one in shown["passed"]]
        amounts = ("effect", "low", "high", "placebo", "placebo_low", "placebo_high")
        text += results.html_table(
            shown,
            title=f"Effect per customer contacted ({WEAKER}): {n.number(self.treated)} contacted "
            f"and {n.number(self.untreated)} others",
            formats=dict.fromkeys(amounts, printed),
            headings={name: name.replace("_", " ") for name in amounts},
        )
        return text + results.html_table(
            self.balance,
            title="Standardised differences of contacted and not contacted, before and after "
            "weighting",
            formats=dict.fromkeys(("before", "after"), lambda value: n.number(value, 2)),
        )


def observed(
    rows: pd.DataFrame | ir.Table,
    *,
    treated: str = "treated",
    outcome: str = "outcome",
    before: str | None = "before",
    placebo: str | None = None,
    covariates: Sequence[str] = (),
    placebo_covariates: Sequence[str] = (),
    kind: Literal["money", "count"] = "money",
    seed: int = 1,
    folds: int = 5,
    confidence: float = 0.95,
    overlap: tuple[float, float] = (0.05, 0.95),
    numbers: results.Numbers | None = None,
    k: int = 10,
) -> Observed:
    """Estimate what a campaign did to those contacted, who were chosen and not drawn by lot.

    All of it holds only if whatever decided who was contacted, and moves the outcome too, is
    among the covariates (for the difference in differences: or stayed the same over time). No
    data can prove that; a placebo can disprove it.

    Parameters
    ----------
    rows : DataFrame or ibis table, one row per customer; sorted by customer_id if it is there,
        as the folds go by the order
    treated : column, True (or 1) = contacted
    outcome : column of money or a count, in the window after the campaign began
    before : column of the same in a window as long before it; without it, no difference in
        differences
    placebo : column of the same in a window that ends no later than that of `before`, or
        `before` itself. The estimators must find nothing there. For the difference in differences
        an earlier window is needed: it is tested on what came between that and `before`
    covariates : columns known before the campaign: numbers, booleans, words, also missing; by
        default all but customer_id, `treated` and `outcome`. `before` and `placebo` count too
    placebo_covariates : those known before the placebo's window; by default all `covariates` but
        `before` and `placebo`
    kind : how the outcome is printed
    folds : int, into how many parts the customers are cut; nobody's chance of being contacted and
        expected outcome are learnt from their own part
    overlap : chances of being contacted between which customers are compared; the others are
        dropped for all estimators, and the chances are learnt again among those left, until
        hardly any of those contacted is above the upper end
    k : int, the fewest customers a figure may stand for

    Returns
    -------
    Observed. It cannot say where fewer than 20 % of those contacted, or fewer than 100 customers
    of either group, are comparable; where a covariate that goes with the outcome (correlation
    from .1 among those not contacted) still differs by more than .1 standard deviations after
    weighting, and by more than chance (1.96 standard errors); where every estimator failed its
    placebo; or where those left disagree in sign

    Raises
    ------
    DataError if a column is missing or cannot be read, there is only one group, or all outcomes
    are equal; UsageError if an argument is wrong

    Notes
    -----
    e(x) is the chance of being contacted, w = e / (1 - e), T contacted, Y the outcome, m(x) the
    outcome expected without contact; means over w are divided by its sum.

    Inverse probability weighting: mean of Y over T, less the w-mean of Y over the others: Hirano,
    Imbens and Ridder (2003), Econometrica 71, 1161-1189, normalised as Hajek's. Doubly robust: the
    same of Y - m(x), cross-fitted: Robins, Rotnitzky and Zhao (1994), Journal of the American
    Statistical Association 89; Chernozhukov et al. (2018), Econometrics Journal 21, C1-C68,
    section 5. Difference in differences: the first of Y less what was before: Abadie (2005),
    Review of Economic Studies 72, 1-19, normalised as in Sant'Anna and Zhao (2020), Journal of
    Econometrics 219, 101-122. Dropping: Crump et al. (2009), Biometrika 96, 187-199. Each
    interval is normal, from the influence function; the first and third with the term for the
    estimated e, as in Sant'Anna and Zhao. Balance: Stuart (2010), Statistical Science 25, 1-21,
    in standard deviations of all those contacted. Placebo: Imbens and Rubin (2015), chapter 21.
    """
    for name, value, low, high in (
        ("folds", folds, 2, 20), ("confidence", confidence, 0.5, 0.999), ("k", k, 1, 1e9),
        ("overlap[0]", overlap[0], 0, 0.5), ("overlap[1]", overlap[1], 0.5, 0.99),
    ):  # fmt: skip
        tables.check_range(name, value, low, high)
    if kind not in ("money", "count"):
        raise tables.UsageError(f"kind is {kind!r}; it must be 'money' or 'count'.")
    asked = _Asked(treated, outcome, before, placebo, tuple(covariates), tuple(placebo_covariates))
    frame, asked = _read(rows, asked)
    contacted = _contacted(frame, treated)
    amounts = {name: _amounts(frame, name) for name in asked.quantities()}
    terms, left_out = weighing.terms_of(frame, asked.covariates, k)
    least = max(LEAST, k)
    world = weighing.Comparison.of(contacted, terms, folds, seed, overlap, least)
    used = int(contacted[world.inside].sum()), int((~contacted)[world.inside].sum())
    dropped = int(contacted.sum()) - used[0]
    share = dropped / int(contacted.sum())
    estimates = pd.DataFrame(columns=list(ESTIMATES))
    balance = pd.DataFrame(columns=["covariate", "before", "after", "bad"])
    if min(used) >= least and share <= 1 - LEAST_SHARE:
        weighed = world.weigh(asked.covariates)
        estimates = _estimates(world, weighed, amounts, asked, confidence)
        balance = weighing.balance_of(world, weighed, amounts[outcome])
    numbers = numbers or results.Numbers()
    without = f"fewer than {k}" if dropped < k else numbers.percent(share)
    usable, verdict = _verdict(
        estimates, balance, asked, least, without if dropped else "", numbers, kind
    )
    return Observed(
        estimates=estimates,
        balance=balance.drop(columns="bad"),
        share_dropped=share,
        share_untreated_dropped=1 - used[1] / int((~contacted).sum()),
        treated=used[0],
        untreated=used[1],
        usable=usable,
        verdict=verdict,
        notes=(left_out,) if left_out else (),
        numbers=numbers,
        kind=kind,
    )


class _Asked(NamedTuple):
    """The names of the columns."""

    treated: str
    outcome: str
    before: str | None
    placebo: str | None
    covariates: tuple[str, ...]
    earlier: tuple[str, ...]

    def quantities(self) -> list[str]:
        """Name the columns of money or counts."""
        return [name for name in (self.outcome, self.before, self.placebo) if name]


def _read(rows: Any, asked: _Asked) -> tuple[pd.DataFrame, _Asked]:
    """Return the columns that are needed, and which they are."""
    if not isinstance(rows, pd.DataFrame) and not hasattr(rows, "to_pyarrow"):
        raise tables.UsageError(
            f"rows must be a DataFrame or an ibis table; it is a {type(rows).__name__}."
        )
    have = [str(name) for name in rows.columns]
    if asked.before == "before" and "before" not in have:
        asked = asked._replace(before=None)
    for name in (asked.treated, *asked.quantities(), *asked.covariates, *asked.earlier):
        if name not in have:
            raise tables.DataError(
                f"There is no column {name!r}.{tables.did_you_mean(name, have)} "
                f"It has: {', '.join(have) or 'no columns'}."
            )
    told = {asked.treated, asked.outcome}
    if len(told) < 2 or told & {asked.before, asked.placebo, *asked.covariates, *asked.earlier}:
        raise tables.UsageError(
            f"{asked.treated} and {asked.outcome} are what the campaign decided or changed: they "
            "cannot be before, placebo or a covariate too."
        )
    names = asked.covariates or tuple(one for one in have if one not in told | {"customer_id"})
    earlier = asked.earlier or tuple(
        one for one in names if one not in (asked.placebo, asked.before)
    )
    if asked.placebo and (asked.placebo in earlier or not {*earlier} <= {*names} or not earlier):
        raise tables.UsageError(
            "A placebo needs covariates known before its window, some of `covariates` without the "
            f"placebo itself; they are: {', '.join(earlier) or 'none'}."
        )
    key = ["customer_id"] if "customer_id" in have else []
    needed = list(dict.fromkeys([*key, asked.treated, *asked.quantities(), *names]))
    frame = rows[needed] if isinstance(rows, pd.DataFrame) else rows.select(*needed).to_pandas()
    if key and frame["customer_id"].duplicated().any():
        raise tables.DataError(
            f"{frame['customer_id'].duplicated().sum()} rows repeat a customer_id; give one row "
            "per customer."
        )
    frame = frame.sort_values(key) if key else frame
    return frame.reset_index(drop=True), asked._replace(covariates=names, earlier=earlier)


def _contacted(frame: pd.DataFrame, name: str) -> weighing.Flags:
    """Return who was contacted, as booleans."""
    found = set(frame[name].unique())
    if frame[name].isna().any() or not found <= {True, False}:
        raise tables.DataError(
            f"The column {name} must be True or False (or 1 or 0) for every customer; it has "
            f"{', '.join(sorted(map(str, found))[:5])}."
        )
    if len(found) < 2:
        one, other = ("contacted", "left alone") if True in found else ("left alone", "contacted")
        raise tables.DataError(
            f"All {len(frame)} customers were {one}: without some who were {other} there is "
            "nothing to compare with."
        )
    return np.asarray(frame[name].to_numpy(bool))


def _amounts(frame: pd.DataFrame, name: str) -> Array:
    """Return a quantity of every customer."""
    found = weighing.numbers_of(frame[name])
    if np.isnan(found).any():
        raise tables.DataError(
            f"The column {name} is missing for {np.isnan(found).sum()} customers; put 0 where they "
            "bought nothing, or leave them out."
        )
    if np.ptp(found) == 0:
        raise tables.DataError(
            f"All customers have the same {name}, {found[0]:g}: nothing can be learnt from it."
        )
    return found


def _estimates(
    world: weighing.Comparison, weighed: weighing.Weighed, amounts: dict[str, Array],
    asked: _Asked, confidence: float,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per method, the naive difference last."""
    outcome, before, placebo = asked.outcome, asked.before, asked.placebo
    found = _methods(
        world, weighed, amounts[outcome],
        amounts[outcome] - amounts[before] if before else None, confidence,
    )  # fmt: skip
    tested: dict[str, effects.Effect] = {}
    if placebo:
        earlier = world.weigh(asked.earlier)
        trend = amounts[before] - amounts[placebo] if before and before != placebo else None
        tested = _methods(world, earlier, amounts[placebo], trend, confidence)
    rows = []
    for name, one in found.items():
        none = tested.get(name)
        ends = (none.difference, none.low, none.high) if none else (math.nan,) * 3
        passed = False if name == NAIVE else none.low <= 0 <= none.high if none else None
        rows.append((name, one.difference, one.low, one.high, *ends, passed))
    return pd.DataFrame(rows, columns=list(ESTIMATES)).astype({"passed": "boolean"})


def _methods(
    world: weighing.Comparison, weighed: weighing.Weighed, amount: Array, change: Array | None,
    confidence: float,
) -> dict[str, effects.Effect]:  # fmt: skip
    """Return the effect by each method; `change` is None where there is nothing before."""
    inside = amount[world.inside]
    found = {
        WEIGHTED: weighed.weighted(inside, confidence),
        DOUBLY_ROBUST: weighed.doubly_robust(inside, confidence),
    }
    if change is not None:
        found[DIFFERENCES] = weighed.weighted(change[world.inside], confidence)
    groups = [
        effects.Moments(len(of), float(of.mean()), float(of.var(ddof=1)))
        for of in (amount[world.contacted], amount[~world.contacted])
    ]
    found[NAIVE] = effects.welch(*groups, alpha=1 - confidence)
    return found


def _verdict(
    estimates: pd.DataFrame, balance: pd.DataFrame, asked: _Asked, least: int, without: str,
    n: results.Numbers, kind: str,
) -> tuple[bool, str]:  # fmt: skip
    """Say what can be said, or why nothing can."""
    if estimates.empty:
        return False, (
            "Cannot say: no overlap. Those contacted and those left alone are too different: fewer "
            f"than {least} customers of a group, or fewer than {n.percent(LEAST_SHARE, 0)} of "
            "those contacted, have counterparts in the other."
        )
    if balance["bad"].any():
        worst = balance[balance["bad"]].sort_values("after", key=abs)["covariate"].iloc[-1]
        return False, (
            "Cannot say: even after weighting, those contacted differ from the others in what "
            f"goes with {asked.outcome}, most in {worst}."
        )
    rows = estimates[estimates["method"] != NAIVE]
    left = rows[rows["passed"].fillna(True)]
    failed = rows.loc[~rows["passed"].fillna(True), "method"].tolist()
    if len(failed) and not rows["passed"].fillna(False).any():
        return False, (
            f"Cannot say: the methods find an effect on {asked.placebo} too, which the campaign "
            "cannot have changed. Those contacted differ in something that is not in the data."
        )
    if not (left["effect"] > 0).all() and not (left["effect"] < 0).all():
        return False, (
            f"Cannot say: the methods disagree on whether {asked.outcome} rose or fell "
            f"({_between(left['effect'].min(), left['effect'].max(), n, kind)})."
        )
    low, high = left["low"].min(), left["high"].max()
    ends = _between(low, high, n, kind)
    parts = [f"{ends[0].upper()}{ends[1:]} of {asked.outcome} per customer contacted ({WEAKER})"]
    parts[0] += ", so perhaps nothing." if low <= 0 <= high else "."
    if failed:
        parts.append(f"Not counted, as it failed its placebo: {', '.join(failed)}.")
    if without:
        parts.append(f"It leaves out {without} of those contacted, who have no counterparts.")
    if not asked.placebo:
        parts.append("No placebo was tried, so a hidden difference would not have shown.")
    parts.append("Only a hold-out drawn by lot can tell for sure.")
    return True, " ".join(parts)


def _between(low: float, high: float, n: results.Numbers, kind: str) -> str:
    printed = _printer(n, kind)
    return f"between {printed(low)} and {printed(high)}"


def _printer(n: results.Numbers, kind: str) -> Callable[[float], str]:
    return n.money if kind == "money" else lambda value: n.number(value, 2)


def _word(passed: Any) -> str:
    return "not tested" if pd.isna(passed) else "yes" if passed else "no"
