"""Who is about to stop buying, why, and how sure that is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from crmlab import candidates, features, purchases, reasons, results, risks, tables
from crmlab.candidates import BASE, CLOSED_FORMS, Scorer
from crmlab.keeping import Keeping, worth_keeping
from crmlab.risks import Backtest, Block

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

__all__ = ["Backtest", "Horizon", "Keeping", "Risk", "fit", "horizon", "score", "worth_keeping"]

# The fewest and the most days that may be asked for.
ALLOWED = (7, 1_100)
# What may be proposed, in whole weeks; from a month to a year.
HORIZONS = (28, 56, 91, 182, 273, 364)
# So many returns of ten come within the horizon: a longer silence is no longer usual.
USUAL_SHARE = 0.8
# A cut-off needs so many days of history before it, and never fewer than the horizon.
LEAST_HISTORY = 56
# A share of stops further than this from the others' median is no drift, but an event.
SHOCK = 0.1
# Of the chances that customers are counted by.
ENDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Horizon:
    """How many days of silence to ask about, and why: `share` of `gaps` are no longer.

    `longest` is the longest that leaves room in the history for training, calibration and test.
    """

    days: int
    share: float
    gaps: int
    longest: int
    numbers: results.Numbers

    @property
    def verdict(self) -> str:
        """The reason in a sentence."""
        n, days = self.numbers, self.numbers.number(self.days)
        if not self.gaps:
            return f"Nobody came back yet, so nothing speaks for or against {days} days."
        told = f"{n.percent(self.share, 0)} of all returns came within {days} days of the purchase"
        if self.share >= USUAL_SHARE:
            return f"{told} before: a longer silence is unusual here."
        if self.days < self.longest:
            return f"{told} before: such a silence is nothing unusual here. Take more days."
        return (
            f"{told} before; more days would say more, but the history has room for "
            f"{n.number(self.longest)} at most where a score is to be learnt, calibrated and "
            "tested."
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>"


def horizon(shop: Shop, *, as_of: str | dt.date, days: int = 0) -> Horizon:
    """Propose for how many days to foretell silence, or judge a number of `days`.

    The fewest of 28, 56, 91, 182, 273 and 364 days within which four returns of five came, if the
    history is four times as long and more; else the most that it has room for. Gaps that are not
    over are not counted, so in a young shop the truth is longer.
    """
    day = tables.day(as_of)
    if days:
        tables.check_range("horizon_days", days, *ALLOWED)
    purchases.check_date(shop, day)
    bought = purchases.purchase_days(shop, as_of=day)
    before = bought.purchased_on.lag().over(group_by="customer_id", order_by="purchased_on")
    gaps = bought.select("purchased_on", gap=bought.purchased_on.delta(before, unit="day"))
    asked = [*HORIZONS, *([days] if days else [])]
    found = gaps.aggregate(
        begin=gaps.purchased_on.min(),
        gaps=gaps.gap.count(),
        **{f"within_{one}": gaps.count(where=gaps.gap <= one) for one in asked},
    )
    [row] = found.to_pyarrow().to_pylist()
    history = (day - row["begin"]).days if row["begin"] else 0
    shares = {one: row[f"within_{one}"] / (row["gaps"] or 1) for one in asked}
    room = [one for one in HORIZONS if one * (risks.TRAINING + 1) <= history] or [HORIZONS[0]]
    usual = [one for one in room if shares[one] >= USUAL_SHARE]
    chosen = days or (usual or room[-1:])[0]
    return Horizon(chosen, shares[chosen], int(row["gaps"]), room[-1], shop.numbers)


@dataclass(frozen=True, eq=False)
class Risk:
    """A fitted chance of silence for `horizon_days`, with the test of its like at earlier dates.

    `scorer` is the chosen method, learnt anew up to `as_of`. `cautions` are sentences for the page.
    """

    scorer: Scorer
    backtest: Backtest
    as_of: dt.date
    horizon_days: int
    shop: str
    cautions: tuple[str, ...]

    @property
    def choice(self) -> str:
        """The method that was chosen before the test."""
        return self.backtest.choice

    @property
    def verdict(self) -> str:
        """Whether to use it, in plain words."""
        return self.backtest.verdict

    def _repr_html_(self) -> str:
        cautions = "".join(f"<p>{escape(one)}</p>" for one in self.cautions)
        return self.backtest._repr_html_() + cautions


def fit(shop: Shop, *, as_of: str | dt.date, horizon_days: int = 0, seed: int = 1) -> Risk:
    """Learn who will not buy for a number of days, and test that at earlier cut-offs.

    Parameters
    ----------
    as_of : the last day that is read
    horizon_days : int, days without a purchase that are foretold; 0 = as `horizon` proposes
    seed : int, of the folds and of the draws

    Returns
    -------
    Risk. The cut-offs lie `horizon_days` apart, back from `as_of`: at the newest the test, at the
    one before it calibration and the choice between methods, at up to three before that training,
    so that no label reaches into a later block; and all that once or twice more, each time one
    cut-off earlier. Customers whom `customers.stages` calls lost are neither learnt from nor
    scored. With fewer than three cut-offs only closed forms are used, and marked uncalibrated.

    Raises
    ------
    UsageError if `horizon_days` is not from 7 to 1,100; DataError if the log is too short for one
    cut-off, or nearly all or nearly none of the customers were silent after it
    """
    import numpy as np

    day = tables.day(as_of)
    days = horizon_days or horizon(shop, as_of=day).days
    tables.check_range("horizon_days", days, *ALLOWED)
    purchases.check_date(shop, day)
    # Days after the log's end would count as silence.
    day = min(day, shop.check("transactions").last or day)
    numbered = risks.numbered(shop, day)
    cuts, window = _cuts(shop, day, days)
    blocks = [risks.block(shop, cut, days, numbered) for cut in cuts]
    k = shop.policy.privacy_k
    _check_outcomes(blocks[0], days, k)
    blocks = [one for one in blocks if _has_both(one, k)]
    # A block between two others that cannot be used would leave a hole: the earlier are unused.
    kept = next((n for n, (one, cut) in enumerate(zip(blocks, cuts, strict=False))
                 if one.cut != cut), len(blocks))  # fmt: skip
    blocks = blocks[:kept]
    used = blocks[: risks.ORIGINS + 1]
    forms = [risks.closed_forms(shop, one.cut, days, one.rows.frame) for one in used]
    tests = [
        risks.origin(blocks[n : n + 2 + risks.TRAINING], forms[n : n + 2], seed)
        for n in range(min(risks.ORIGINS, len(blocks) - 2))
    ]
    if not tests:
        earlier = _earlier(shop, cuts[0], window, numbered)
        tests = [risks.uncalibrated(blocks[0], forms[0], earlier)]
    backtest = risks.summed_up(tests, days=days, k=k, seed=seed, numbers=shop.numbers)
    scorer = _final(shop, day, days, blocks, forms[0], backtest, seed)
    if backtest.usable and np.ptp(scorer.chance(blocks[0].rows.frame)) == 0:
        raise tables.DataError(
            f"The {backtest.choice} learnt up to {day} tells no customers apart, though in the "
            "test it did. Choose another as_of or horizon_days."
        )
    cautions = tuple(filter(None, [_shock(blocks), _sampled(blocks)]))
    return Risk(scorer, backtest, day, days, shop.id, cautions)


def _cuts(shop: Shop, day: dt.date, days: int) -> tuple[list[dt.date], int]:
    """Return the cut-offs, the newest first, and a length for a shorter look before the first."""
    bought = purchases.purchase_days(shop, as_of=day)
    begin = bought.purchased_on.min().to_pyarrow().as_py() or day
    history = (day - begin).days
    most = risks.TRAINING + 1 + risks.ORIGINS - 1
    least = max(LEAST_HISTORY, min(days, history // 3))
    cuts = [day - dt.timedelta(days * n) for n in range(1, most + 1)]
    cuts = [cut for cut in cuts if (cut - begin).days >= least]
    if not cuts:
        raise tables.DataError(
            f"The first customer of shop '{shop.id}' bought on {begin}, {history} days before "
            f"{day}: to foretell {days} days of silence the log must reach back {days + least}. "
            "Choose a shorter horizon_days."
        )
    return cuts, (cuts[0] - begin).days // 3


def _has_both(block: Block, k: int) -> bool:
    stops = block.rows.stopped
    return bool(k <= stops.sum() <= len(stops) - k)


def _check_outcomes(block: Block, days: int, k: int) -> None:
    """Raise `DataError` where the newest cut-off has nothing to tell apart."""
    if _has_both(block, k):
        return
    stops = int(block.rows.stopped.sum())
    if len(block.rows.stopped) < k:
        raise tables.DataError(
            f"Fewer than {k} customers were not lost on {block.cut}: too few to learn from."
        )
    some = "nobody" if not stops else f"fewer than {k}" if stops < k else "nearly all"
    raise tables.DataError(
        f"Of {len(block.rows.stopped):,} customers who were not lost on {block.cut}, {some} did "
        f"not buy in the {days} days after: there is nothing to tell apart. Choose a "
        f"{'longer' if stops >= k else 'shorter'} horizon_days."
    )


def _earlier(shop: Shop, cut: dt.date, window: int, numbered: ir.Table) -> dict[str, float]:
    """Return each closed form's Brier score in a shorter window that ends at the cut-off."""
    from crmlab import probabilities

    begin = cut - dt.timedelta(window)
    if window < LEAST_HISTORY:
        return {}
    block = risks.block(shop, begin, window, numbered)
    forms = risks.closed_forms(shop, begin, window, block.rows.frame)
    return {
        title: probabilities.brier(one.chance(block.rows.frame), block.rows.stopped)
        for title, one in forms.items()
    }


def _final(
    shop: Shop,
    day: dt.date,
    days: int,
    blocks: list[Block],
    forms: Mapping[str, Scorer],
    backtest: Backtest,
    seed: int,
) -> Scorer:
    """Fit the choice anew: everything one cut-off later than in the test, up to today."""
    choice = backtest.choice
    if choice == BASE:
        return candidates.base_rate(blocks[0].rate)
    if choice in CLOSED_FORMS:
        frame = blocks[0].rows.frame
        now = risks.closed_forms(shop, day, days, frame).get(choice, forms.get(choice))
        if now is None:
            raise tables.DataError(f"{choice} can no longer be fitted to the log up to {day}.")
        if not backtest.calibrated:
            return now
        done, _ = candidates.calibrate(forms.get(choice, now), blocks[0].rows, seed)
        return now.calibrated(done.calibration)
    training = candidates.Rows.together([one.rows for one in blocks[1 : 1 + risks.TRAINING]])
    return candidates.calibrate(candidates.learn(choice, training), blocks[0].rows, seed)[0]


def _shock(blocks: list[Block]) -> str:
    """Say where far more or fewer customers stopped than at the other cut-offs."""
    import statistics

    usual = statistics.median(one.rate for one in blocks)
    odd = [one for one in blocks if abs(one.rate - usual) > SHOCK]
    if len(blocks) < 3 or not odd:
        return ""
    told = "; ".join(f"{one.rate:.0%} after {one.cut}" for one in reversed(odd))
    return (
        f"Usually {usual:.0%} of the customers were silent, but {told}: a season, a promotion or "
        "a gap in the log moves what is learnt from those days."
    )


def _sampled(blocks: list[Block]) -> str:
    if max(len(one.everyone.who) for one in blocks) * 2 <= risks.MOST_CUSTOMERS:
        return ""
    return (
        f"Where there are more than {risks.MOST_CUSTOMERS:,} customers, an equal part of them is "
        "learnt from and tested on; all are scored."
    )


def score(risk: Risk, shop: Shop, *, as_of: str | dt.date) -> ir.Table:
    """Say of each customer who is not lost how likely they are to be silent, and why.

    Returns
    -------
    local ibis table, one row per customer: customer_id; p_stop, the chance of no purchase in the
    risk's `horizon_days` after `as_of`; reason_1, reason_2, reason_3, in words, the weightiest
    first and null where there is none; main_reason, the kind of the first. Reasons are given to
    those whose p_stop is above the average (of gradient boosting, to the 100,000 of the highest);
    they say what the score rests on, not what caused it.

    Raises
    ------
    DataError if the test found the score no better than the base rate: it would be a guess;
    UsageError if the risk is another shop's
    """
    if not risk.backtest.usable:
        raise tables.DataError(risk.backtest.verdict)
    if shop.id != risk.shop:
        raise tables.UsageError(
            f"The risk was learnt in shop '{risk.shop}' and tells nothing of shop '{shop.id}'. "
            "Fit one there."
        )
    rows = features.features(shop, as_of=as_of)
    late = rows.overdue > shop.policy.lost_after_gaps
    rows = rows.filter(~late.fill_null(False))
    return reasons.scored(risk.scorer, rows, shop.landed)


@dataclass(frozen=True, eq=False)
class AtRisk:
    """How many customers are at risk now, and what their scores rest on.

    `bands` has one row per band of p_stop: band, customers, expected to be silent. `reasons`: what,
    customers of whom it is the weightiest reason, share of those who have one. Small ones are
    "other".
    """

    customers: int
    expected: float
    likely: float
    bands: pd.DataFrame
    reasons: pd.DataFrame
    horizon_days: int
    k: int
    numbers: results.Numbers

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles of the page."""
        days = f"for {self.numbers.number(self.horizon_days)} days"
        return [
            results.Kpi("Customers not yet lost", self.customers, "count", "up"),
            results.Kpi("Expected to be silent", self.expected, "count", "down", days),
            results.Kpi("Share expected to be silent", self.expected / self.customers, "share",
                        "down", days),
            results.Kpi("At highest risk", self.likely, "count", "down",
                        f"chance of {self.numbers.percent(ENDS[-2], 0)} or more"),
        ]  # fmt: skip

    @property
    def verdict(self) -> str:
        """How many, in a sentence."""
        n = self.numbers
        return (
            f"Of {n.number(self.customers)} customers who are not lost, "
            f"{n.number(self.expected)} ({n.percent(self.expected / self.customers, 0)}) are "
            f"expected to buy nothing in the next {n.number(self.horizon_days)} days."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per band of risk."""
        return self.bands

    def _repr_html_(self) -> str:
        n = self.numbers
        bands = results.html_table(
            self.bands,
            title=f"Customers by their chance of silence for {n.number(self.horizon_days)} days",
            formats={"customers": n.number, "expected": n.number},
            headings={"band": "chance", "expected": "expected to be silent"},
        )
        return f"<p>{escape(self.verdict)}</p>{bands}"


def at_risk(scores: ir.Table, risk: Risk, *, numbers: results.Numbers, k: int) -> AtRisk:
    """Count the customers by risk, and by the weightiest reason of those above the average.

    Parameters
    ----------
    scores : as `score` gives them
    k : int, the fewest customers a figure may stand for
    """
    names = [
        f"{numbers.percent(low, 0)} to {numbers.percent(high, 0)}" for low, high in pairwise(ENDS)
    ]
    place = (scores.p_stop * 5).floor().cast("int64").clip(upper=4)
    found = scores.group_by(place=place).aggregate(
        customers=scores.count(),
        expected=scores.p_stop.sum(),
    )
    counted = found.order_by("place").to_pandas()
    if (customers := int(counted["customers"].sum())) < k:
        raise tables.DataError(f"Fewer than {k} customers are not lost; nothing can be shown.")
    counted.insert(0, "band", [names[n] for n in counted.pop("place")])
    expected = float(counted["expected"].sum())
    bands = results.merge_small_cells(counted, label="band", customers="customers", k=k)
    # What the tile tells, the table tells too.
    likely = bands.set_index("band")["customers"].get(names[-1], float("nan"))
    told = scores.filter(scores.main_reason.notnull())
    told = told.group_by(what="main_reason").aggregate(customers=told.count())
    why = told.order_by("what").to_pandas()
    why = results.merge_small_cells(why, label="what", customers="customers", k=k)
    why = why.sort_values(["customers", "what"], ascending=[False, True], ignore_index=True)
    return AtRisk(
        customers=customers,
        expected=expected,
        likely=likely,
        bands=bands,
        reasons=why.assign(share=why["customers"] / max(1, why["customers"].sum())),
        horizon_days=risk.horizon_days,
        k=k,
        numbers=numbers,
    )
