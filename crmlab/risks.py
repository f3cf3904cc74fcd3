"""Silence foretold at earlier dates and held against what came: which method, and how good."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crmlab import candidates, customers, features, fitting, probabilities, results, tables
from crmlab.candidates import BASE, BOOSTED, METHODS, RECENCY, SCORECARD, Rows, Scorer
from crmlab.probabilities import Interval

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.models import Array
    from crmlab.sources import Shop

# So many cut-offs before the calibration are learnt from, and so many tests rolled back.
TRAINING, ORIGINS = 3, 3
# Of more customers than this, every second or third and so on is learnt from and tested on.
MOST_CUSTOMERS = 200_000


@dataclass(frozen=True, eq=False)
class Block:
    """The customers at a cut-off: `rows` of those who are not lost, `everyone` with the lost."""

    cut: dt.date
    rows: Rows
    everyone: Rows

    @property
    def rate(self) -> float:
        """Share of the customers who were silent in the days after."""
        return float(self.rows.stopped.mean()) if len(self.rows.stopped) else float("nan")


def block(shop: Shop, cut: dt.date, days: int, numbered: ir.Table) -> Block:
    """Look at the customers at a cut-off, and at whether they bought in the days after it.

    Parameters
    ----------
    numbered : local ibis table, customer_id and who, its number
    """
    import ibis

    rows = features.features(shop, as_of=cut)
    columns = [name for name in rows.columns if name != "customer_id"]
    came = features.bought_after(shop, after=cut, days=days)
    rows = rows.inner_join(numbered, "customer_id").left_join(
        came.mutate(came=ibis.literal(1)), "customer_id"
    )
    step = -(-int(rows.count().to_pyarrow().as_py()) // MOST_CUSTOMERS)
    rows = rows.filter(rows.who % step == 0) if step > 1 else rows
    frame = rows.select(*columns, "who", stopped=rows.came.isnull()).order_by("who").to_pandas()
    who, stopped = (frame.pop(name).to_numpy(float) for name in ("who", "stopped"))
    everyone = Rows(frame, who.astype(int), stopped)
    # Who has no rhythm to be late by is not lost.
    lost = frame["overdue"].to_numpy(float) > shop.policy.lost_after_gaps
    return Block(cut, everyone.part(~lost), everyone)


def numbered(shop: Shop, as_of: dt.date) -> ir.Table:
    """Give the customers numbers, so that one is known again at another cut-off."""
    import ibis

    bought = customers.purchase_days(shop, as_of=as_of).select("customer_id").distinct()
    found = shop.landed(bought, "numbered")
    return found.mutate(who=ibis.row_number().over(order_by="customer_id"))


def closed_forms(shop: Shop, cut: dt.date, days: int, frame: pd.DataFrame) -> dict[str, Scorer]:
    """Fit the purchase models at a cut-off; those that the log cannot carry are left out."""
    summary = customers.summary(shop, as_of=cut)
    try:
        models = fitting.fit_each(summary, candidates.MODELS, as_of=cut)
    except tables.DataError:
        return {}
    return {one.title: candidates.closed_form(one, one.title, days, frame) for one in models}


@dataclass(frozen=True, eq=False)
class Backtest:
    """How good the chance of silence was at earlier cut-offs.

    `rows` has one row per method: method, brier, skill against the base rate of the very days
    that were foretold, over_recency, auc, each with _low and _high (95 %, clustered by customer);
    of the customers who were not lost. `everyone` is the same for the whole base, which is easier.
    `tenths`: part, customers, said, came, the highest risk first. `drift` has one row per cut-off:
    cut, customers, said, came, method, skill, auc. `cost` is the choice's Brier score over that of
    the method that was best in hindsight.
    """

    rows: pd.DataFrame
    everyone: pd.DataFrame
    tenths: pd.DataFrame
    drift: pd.DataFrame
    choice: str
    calibration: str
    best: str
    cost: Interval
    slope: Interval
    intercept: Interval
    error: float
    perfect_error: float
    customers: int
    horizon_days: int
    k: int
    numbers: results.Numbers

    @property
    def calibrated(self) -> bool:
        """Whether the history had room for training, calibration and test."""
        return self.calibration != "uncalibrated"

    @property
    def chosen(self) -> pd.Series:
        """The row of the choice."""
        return self.rows[self.rows["method"] == self.choice].iloc[0]

    @property
    def usable(self) -> bool:
        """Whether the choice was better than to say the same of everyone."""
        return bool(self.chosen["skill_low"] > 0)

    @property
    def verdict(self) -> str:
        """Whether to use the score, in plain words."""
        n, row = self.numbers, self.chosen
        days = n.number(self.horizon_days)
        if not self.usable:
            best = f"not even {self.choice}, the best before,"
            tried = "nothing" if self.choice == BASE else best
            return (
                f"Who will be silent for {days} days cannot be foretold here: {tried} told more "
                "than the base rate. No score is given."
            )
        less, low, high = (n.percent(row[one], 0) for one in ("skill", "skill_low", "skill_high"))
        told = (
            f"The forecast ({self.choice}) errs {less} less ({low} to {high}) than saying the same "
            "of everyone"
        )
        over = row["over_recency"]
        if self.choice == RECENCY or over != over:
            more = ""
        elif row["over_recency_low"] > 0:
            more = f", and {n.percent(over, 0)} less than going by the days of silence alone"
        else:
            more = ", but no less than going by the days of silence alone: a rule of thumb would do"
        state = "" if self.calibrated else (
            " The history is too short to learn and to calibrate, so the score is uncalibrated: "
            "use it for the order of customers only."
        )  # fmt: skip
        return f"{told}{more}.{state}"

    @property
    def meaning(self) -> str:
        """Whether the probabilities mean what they say."""
        n, slope, level = self.numbers, self.slope, self.intercept
        if slope.value != slope.value:
            return "Whether the probabilities mean what they say cannot be seen here."
        ends = f"{n.number(slope.low, 2)} to {n.number(slope.high, 2)}"
        fits = "holds" if slope.low <= 1 <= slope.high else "does not hold"
        said, came = (
            float(
                (self.drift[name] * self.drift["customers"]).sum() / self.drift["customers"].sum()
            )
            for name in ("said", "came")
        )
        off = float((self.drift["said"] - self.drift["came"]).abs().max())
        return (
            f"Over all dates {n.percent(said)} were expected to be silent, and {n.percent(came)} "
            f"were; at a single date that was off by up to {n.percent(off)} of the customers. "
            f"The calibration slope is {n.number(slope.value, 2)} ({ends}), which {fits} 1; the "
            f"intercept is {n.number(level.value, 2)} ({n.number(level.low, 2)} to "
            f"{n.number(level.high, 2)}). "
            f"The mean gap between what was said and what came is {n.percent(self.error)}; true "
            f"probabilities of as many customers would show {n.percent(self.perfect_error)}."
        )

    @property
    def hindsight(self) -> str:
        """What choosing before the test cost against the method that turned out best."""
        n, cost = self.numbers, self.cost
        if cost.value <= 0:
            return "No method was better in hindsight than those that were chosen beforehand."
        proven = "more than" if cost.low > 0 else "no more than"
        return (
            f"In hindsight {self.best} was best: choosing beforehand cost "
            f"{n.number(cost.value, 4)} of Brier score ({n.number(cost.low, 4)} to "
            f"{n.number(cost.high, 4)}), {proven} chance explains."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method."""
        return self.rows

    def _repr_html_(self) -> str:
        n = self.numbers

        def share(value: float) -> str:
            return n.percent(value, 1, signed=True)

        def table(rows: pd.DataFrame, title: str) -> str:
            chosen = rows["method"] == self.choice
            shown = rows.assign(
                method=rows["method"].where(~chosen, rows["method"] + " (chosen)"),
                between=[f"{share(a)} to {share(b)}" if a == a else results.NOTHING
                         for a, b in zip(rows["skill_low"], rows["skill_high"], strict=True)],
            )[["method", "brier", "skill", "between", "over_recency", "auc"]]  # fmt: skip
            return results.html_table(
                shown,
                title=title,
                formats={"brier": lambda v: n.number(v, 4), "skill": share, "between": str,
                         "over_recency": share, "auc": lambda v: n.number(v, 3)},
                headings={"between": "95%", "over_recency": "over recency", "auc": "AUC"},
            )  # fmt: skip

        return (
            f"<p>{escape(self.verdict)} {escape(self.meaning)} {escape(self.hindsight)}</p>"
            + table(self.rows, "Customers who were not lost at the cut-off")
            + table(
                self.everyone, "All customers, the lost too; what learns has not learnt from them"
            )
        )


@dataclass(frozen=True, eq=False)
class Origin:
    """One test: each method's chances for the test block, and the choice made before it."""

    test: Block
    chances: dict[str, Array]
    everyone: dict[str, Array]
    choice: str
    calibration: str


def learnt(blocks: Sequence[Block]) -> dict[str, Scorer]:
    """Fit the methods that learn from labelled customers; none where labels are all alike."""
    rows = Rows.together([one.rows for one in blocks])
    try:
        return {name: candidates.learn(name, rows) for name in (RECENCY, SCORECARD, BOOSTED)}
    except tables.DataError:
        return {}


def origin(blocks: Sequence[Block], forms: Sequence[Mapping[str, Scorer]], seed: int) -> Origin:
    """Learn, calibrate and choose before the newest block, and foretell it.

    Parameters
    ----------
    blocks : the test block, the calibration block, then those to learn from
    forms : the closed forms fitted at the test's cut-off and at the calibration's
    """
    test, calibration, *training = blocks
    fitted = learnt(training)
    scorers = {BASE: candidates.base_rate(0.5), **fitted, **forms[1]}
    folds, kinds, final = {}, {}, {}
    for name in sorted(scorers, key=METHODS.index):
        done, folds[name] = candidates.calibrate(scorers[name], calibration.rows, seed)
        kinds[name] = done.calibration.kind
        final[name] = done
        if name in forms[1] and name in forms[0]:
            final[name] = forms[0][name].calibrated(done.calibration)
    choice = candidates.simplest(folds, calibration.rows)
    return Origin(
        test,
        {name: one.chance(test.rows.frame) for name, one in final.items()},
        {name: one.chance(test.everyone.frame) for name, one in final.items()},
        choice,
        kinds[choice],
    )


def uncalibrated(test: Block, forms: Mapping[str, Scorer], earlier: Mapping[str, float]) -> Origin:
    """Foretell a block by closed forms alone, as they are.

    Parameters
    ----------
    earlier : each form's Brier score in an earlier, shorter window, by which one is chosen
    """
    if not forms:
        raise tables.DataError(
            "The log is too short to learn who stops, and no purchase model can be fitted to it."
        )
    chances = {name: one.chance(test.rows.frame) for name, one in forms.items()}
    everyone = {name: one.chance(test.everyone.frame) for name, one in forms.items()}
    choice = min(forms, key=lambda name: earlier.get(name, 1.0))
    return Origin(test, chances, everyone, choice, "uncalibrated")


def summed_up(
    origins: Sequence[Origin], *, days: int, k: int, seed: int, numbers: results.Numbers
) -> Backtest:
    """Put the tests together, the newest first; those that lack one of its methods are left out."""
    origins = [one for one in origins if one.chances.keys() == origins[0].chances.keys()]
    names = [name for name in METHODS if name in origins[0].chances]
    rows, pooled = _judged(origins, names, "chances", "rows")
    everyone, _ = _judged(origins, names, "everyone", "everyone")
    tests = Rows.together([one.test.rows for one in origins])
    choice = origins[0].choice
    # Each test by the method chosen before it: so is the choosing itself put to the test.
    chosen = np.concatenate([one.chances[one.choice] for one in origins])
    best = min(names, key=lambda name: probabilities.brier(pooled[name], tests.stopped))
    more, error = probabilities.worse_by(chosen, pooled[best], tests.stopped, tests.who)
    z = probabilities.Z
    slope, intercept = probabilities.calibration_line(
        chosen, tests.stopped, tests.who, _blocks([one.test.rows for one in origins])
    )
    newest = origins[0].test.rows
    drift = [
        {"cut": one.test.cut, "customers": len(one.test.rows.who),
         "said": float(one.chances[one.choice].mean()), "came": one.test.rate,
         "method": one.choice,
         **{name: value for name, value in probabilities.judge(
             one.chances[one.choice], one.test.rows.stopped, one.test.rows.who,
             base=one.test.rate, recency=None).items() if name in ("skill", "auc")}}
        for one in reversed(origins)
    ]  # fmt: skip
    return Backtest(
        rows=rows,
        everyone=everyone,
        tenths=probabilities.by_tenth(origins[0].chances[choice], newest.stopped, k=k),
        drift=pd.DataFrame(drift),
        choice=choice,
        calibration=origins[0].calibration,
        best=best,
        cost=Interval(more, more - z * error, more + z * error),
        slope=slope,
        intercept=intercept,
        error=probabilities.expected_error(chosen, tests.stopped),
        perfect_error=probabilities.perfect_error(chosen, seed),
        customers=len(newest.who),
        horizon_days=days,
        k=k,
        numbers=numbers,
    )


def _judged(
    origins: Sequence[Origin], names: Sequence[str], made: str, of: str
) -> tuple[pd.DataFrame, dict[str, Array]]:
    """Judge every method on the tests together, against each test's own base rate."""
    tests = [getattr(one.test, of) for one in origins]
    together = Rows.together(tests)
    base = np.concatenate([np.full(len(one.who), one.stopped.mean()) for one in tests])
    pooled: dict[str, Any] = {
        name: np.concatenate([getattr(one, made)[name] for one in origins]) for name in names
    }
    rows = [
        {"method": name}
        | probabilities.judge(
            chance,
            together.stopped,
            together.who,
            base=base,
            recency=pooled.get(RECENCY),
            blocks=_blocks(tests),
        )
        for name, chance in pooled.items()
    ]
    return pd.DataFrame(rows), pooled


def _blocks(tests: Sequence[Rows]) -> Array:
    """Return the place of each row's block."""
    return np.asarray(np.repeat(np.arange(len(tests)), [len(one.who) for one in tests]))
