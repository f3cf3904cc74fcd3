"""The customers: in which stage of life each is, and how their stock changes."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from crmlab import purchases, results, tables
from crmlab.purchases import LogStart, log_start, purchase_days, summary

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

__all__ = [
    "Flows",
    "LogStart",
    "LostCheck",
    "flows",
    "log_start",
    "lost_check",
    "purchase_days",
    "stages",
    "summary",
]

# The life stages, in the order of a customer's life.
STAGES = ("new", "developing", "mature", "declining", "lost", "reactivated")
NOT_YET = "not yet a customer"
# How many gaps of the shop's rhythm stand beside a customer's own.
SHOP_GAPS = 2
# The share of the lost who may buy again within a year before the word is wrong.
MOST_COME_BACK = 0.15
# A customer who came back counts as reactivated until so many purchases, or so many usual gaps.
PURCHASES_BACK, GAPS_BACK = 3, 2


def stages(shop: Shop, *, as_of: str | dt.date) -> ir.Table:
    """Say in which stage of life each customer is at the end of a day.

    Returns
    -------
    local ibis table, one row per customer with a purchase up to `as_of`:
    customer_id; stage, one of `STAGES`; usual_gap, days between two purchases as they are usual
    for the customer; silent, days since the last purchase; purchases, days with one; own_rhythm,
    whether the customer has gaps of their own, or is judged by the shop's rhythm alone.

    Raises
    ------
    DataError as `summary` does

    Notes
    -----
    The usual gap is (m g0 + the customer's own gaps together) / (m + their number), m = 2 and g0
    the median of the repeaters' mean gaps, so that a few who buy daily set no rhythm for all. With
    s = silent / usual_gap, the first that holds: lost, s above the policy's `lost_after_gaps`;
    reactivated, came back after so long a silence, until the third purchase or two usual gaps
    later; declining, s above `declining_after_gaps`; new, one purchase; developing; mature,
    `mature_purchases` or more. Who may be older than the log is not new.
    """
    day = tables.day(as_of)
    lives, _ = _lives(shop, [day])
    return lives.select(
        "customer_id",
        stage=lives.stage_0,
        usual_gap=lives.usual_gap_0,
        silent=lives.silent_0,
        purchases=lives.purchases_0,
        own_rhythm=lives.purchases_0 > 1,
    )


@dataclass(frozen=True, eq=False)
class Flows:
    """The stock of customers by life stage at the end of two days, and the moves between.

    `stock` has one row per stage: stage, before, now, change. `moves` has one row per pair: stage
    before (or "not yet a customer"), stage now, customers. `usual_gap` is the shop's at `end`, None
    if nobody had bought twice.
    """

    start: dt.date
    end: dt.date
    stock: pd.DataFrame
    moves: pd.DataFrame
    usual_gap: float | None
    numbers: results.Numbers

    def to_frame(self) -> pd.DataFrame:
        """Return the moves as a matrix: a row per stage before, a column per stage now."""
        wide = self.moves.pivot_table("customers", "before", "now", aggfunc="sum", fill_value=0)
        return wide.reindex(index=[NOT_YET, *STAGES], columns=list(STAGES), fill_value=0)

    @property
    def bridge(self) -> pd.DataFrame:
        """How the stock of customers who are not lost went from the one day to the other.

        Rows `what`, `customers`: before + new + came back - became lost = now. Each is a sum over
        stages, so that unlike the matrix it can go on a manager's page.
        """
        import pandas as pd

        moves = self.moves
        was_active = ~moves["before"].isin([NOT_YET, "lost"])
        is_active = moves["now"] != "lost"
        steps = {
            "before": was_active,
            "new": (moves["before"] == NOT_YET) & is_active,
            "came back": (moves["before"] == "lost") & is_active,
            "became lost": was_active & ~is_active,
            "now": is_active,
        }
        rows = [(what, int(moves.loc[chosen, "customers"].sum())) for what, chosen in steps.items()]
        return pd.DataFrame(rows, columns=["what", "customers"])

    def _repr_html_(self) -> str:
        title = f"Customers by stage before ({self.start}) and now ({self.end})"
        frame = self.to_frame().reset_index()
        return results.html_table(
            frame, title=title, formats=dict.fromkeys(STAGES, self.numbers.number)
        )


def flows(shop: Shop, *, start: str | dt.date, end: str | dt.date) -> Flows:
    """Count the customers in each stage at the end of two days, and who moved from where to where.

    Each day is judged by what was known at its end. Raises `DataError` as `summary` does, and if
    `start` is not before `end`.
    """
    import pandas as pd

    before, now = tables.day(start, name="start"), tables.day(end, name="end")
    if before >= now:
        raise tables.DataError(f"start {before} must lie before end {now}.")
    lives, gaps = _lives(shop, [before, now])
    counted = lives.group_by(before=lives.stage_0.fill_null(NOT_YET), now=lives.stage_1).aggregate(
        customers=lives.count()
    )
    moves = counted.to_pandas()
    order = pd.CategoricalDtype([NOT_YET, *STAGES], ordered=True)
    moves = moves.astype({"before": order, "now": order}).sort_values(["before", "now"])
    moves = moves.astype({"before": str, "now": str, "customers": int}).reset_index(drop=True)
    was, is_now = (moves.groupby(side)["customers"].sum() for side in ("before", "now"))
    stock = pd.DataFrame({"stage": list(STAGES)})
    stock["before"] = stock["stage"].map(was).fillna(0).astype(int)
    stock["now"] = stock["stage"].map(is_now).fillna(0).astype(int)
    stock["change"] = stock["now"] - stock["before"]
    return Flows(before, now, stock, moves, gaps[1], shop.numbers)


@dataclass(frozen=True)
class LostCheck:
    """How many of those called lost at the end of `as_of` bought within `days` after it.

    `enough` is the smallest number of usual gaps, not below the policy's `lost_after_gaps`, after
    which at most 15 % of at least `privacy_k` customers did; None if there is none.
    """

    as_of: dt.date
    days: int
    lost: int
    came_back: int
    after_gaps: int
    enough: int | None

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict)}</p>"

    @property
    def share(self) -> float:
        """Share of the lost who bought again."""
        return self.came_back / self.lost if self.lost else math.nan

    @property
    def caution(self) -> str:
        """A sentence for the page's summary, where too many of those called lost are not."""
        if not self.share > MOST_COME_BACK:
            return ""
        return (
            f"Read lost as silent for long: {self.share:.0%} of those called so on {self.as_of} "
            f"bought in the {self.days} days after."
        )

    @property
    def verdict(self) -> str:
        """Whether those called lost are lost."""
        if not self.lost:
            return f"Nobody was lost on {self.as_of}."
        found = f"Of those called lost on {self.as_of}, {self.share:.0%} bought in {self.days} days"
        if self.share <= MOST_COME_BACK:
            return f"{found}: the word fits."
        if self.enough is None:
            return f"{found}: lost means silent for long here, and no more."
        return f"{found}: with lost_after_gaps = {self.enough} in shop.toml fewer than 15% would."


def lost_check(shop: Shop, *, as_of: str | dt.date, days: int = 365) -> LostCheck:
    """Look back: who was called lost so many days before `as_of`, and bought by then after all.

    Raises `DataError` if the log does not reach back so far, `UsageError` for a number of days
    that is not from 1 to 10,000.
    """
    last = tables.day(as_of)
    if type(days) is not int or not 1 <= days <= 10_000:
        raise tables.UsageError(f"days is {days!r}; it must be a whole number from 1 to 10000.")
    then, gaps = last - dt.timedelta(days), shop.policy.lost_after_gaps
    lives, _ = _lives(shop, [then, last])
    seen = lives.filter(lives.purchases_0 > 0)
    # Lost after n gaps is who was silent for more than n: the whole numbers below the ratio.
    level = (seen.silent_0 / seen.usual_gap_0).ceil().cast("int64") - 1
    counted = seen.group_by(level=level).aggregate(
        lost=seen.count(), back=(seen.purchases_1 > seen.purchases_0).sum()
    )
    rows = counted.order_by(counted.level.desc()).to_pandas().set_index("level").cumsum()
    rows = rows[rows.index >= gaps]
    good = rows[(rows.lost >= shop.policy.privacy_k) & (rows.back <= MOST_COME_BACK * rows.lost)]
    lost, back = (int(rows[name].max()) if len(rows) else 0 for name in ("lost", "back"))
    return LostCheck(then, days, lost, back, gaps, int(min(good.index)) if len(good) else None)


def _lives(shop: Shop, dates: Sequence[dt.date]) -> tuple[ir.Table, list[float | None]]:
    """Return each customer's stage and what it is judged by, and the shop's gap, at each date.

    Local, one row per customer with a purchase up to the last date; stage_0, purchases_0, ... of
    the first date, and so on; the stage is null before the first purchase, and the gap None where
    nobody had bought twice.
    """
    for date in dates:
        purchases.check_date(shop, date)
    lives = shop.landed(_last_days(shop, dates), "lives")
    known: dict[str, Any] = {"begin": lives.begin.min()}
    for place in range(len(dates)):
        span = lives[f"ago_0_{place}"].delta(lives.begin, unit="day").cast("float64")
        # A single purchase has no gap: 0 / null.
        known |= {
            f"gap_{place}": (span / (lives[f"purchases_{place}"] - 1).nullif(0)).median(),
            f"pooled_{place}": lives[f"pooled_{place}"].max(),
        }
    [found] = lives.aggregate(**known).to_pyarrow().to_pylist()
    if found["begin"] is None:
        raise purchases.nobody(shop, max(dates))
    members = purchases.joined_since(shop, found["begin"])
    joined = False if members is None else lives.customer_id.isin(members.customer_id)
    lives = lives.mutate(joined=joined)
    gaps = [found[f"gap_{place}"] for place in range(len(dates))]
    for place, (date, gap) in enumerate(zip(dates, gaps, strict=True)):
        burn_in = purchases.burn_in_days_of(found[f"pooled_{place}"])
        # A shop where nobody came back has no rhythm; then nobody is late.
        rhythm = math.inf if gap is None else gap
        burnt_in = found["begin"] + dt.timedelta(burn_in)
        lives = _with_stage(shop, lives, place, date, rhythm, burnt_in)
    return lives, gaps


def _last_days(shop: Shop, dates: Sequence[dt.date]) -> ir.Table:
    """Return, as an expression on the shop's engine, one row per customer.

    begin, the first purchase; for the first date, and so on: purchases_0; ago_0_0, the last
    purchase, ago_1_0, the one before it, ...: so many that every return that still counts is among
    them; pooled_0, the median of all gaps of all customers.
    """
    import ibis

    days = purchase_days(shop, as_of=max(dates))
    own = {"group_by": "customer_id", "order_by": "purchased_on"}
    days = days.select(
        "customer_id",
        ago_0="purchased_on",
        **{f"ago_{n}": days.purchased_on.lag(n).over(**own) for n in range(1, PURCHASES_BACK)},
    )
    gap = days.ago_0.delta(days.ago_1, unit="day").cast("float64")
    found: dict[str, Any] = {"begin": days.ago_0.min()}
    pooled = {}
    for place, date in enumerate(dates):
        seen = days.ago_0 <= ibis.literal(date)
        found[f"purchases_{place}"] = days.count(where=seen)
        for n in range(PURCHASES_BACK):
            found[f"ago_{n}_{place}"] = days[f"ago_{n}"].max(where=seen)
        # Not median(where=...), which ibis writes for Spark so that it is no SQL.
        pooled[f"pooled_{place}"] = seen.ifelse(gap, ibis.null("float64")).median()
    return days.group_by("customer_id").aggregate(**found).cross_join(days.aggregate(**pooled))


def _with_stage(
    shop: Shop, lives: ir.Table, place: int, date: dt.date, rhythm: float, burnt_in: dt.date
) -> ir.Table:
    """Add the stage at a date; who was first seen before `burnt_in` may be older than the log."""
    import ibis

    def days(first: ir.DateValue, last: ir.DateValue) -> ir.FloatingValue:
        return last.delta(first, unit="day").cast("float64")

    at, lost_after = ibis.literal(date), shop.policy.lost_after_gaps
    bought = lives[f"purchases_{place}"]
    ago = [lives[f"ago_{n}_{place}"] for n in range(PURCHASES_BACK)]
    usual = (SHOP_GAPS * rhythm + days(lives.begin, ago[0])) / (SHOP_GAPS + bought - 1)
    silent = at.delta(ago[0], unit="day")
    backs = []
    for n, (day, before) in enumerate(pairwise(ago)):
        # Against the rhythm before the silence: there were bought - n - 2 gaps of the customer's.
        usual_then = SHOP_GAPS * rhythm + days(lives.begin, before)
        returned = days(before, day) * (SHOP_GAPS + bought - n - 2) > lost_after * usual_then
        backs.append(returned & (at.delta(day, unit="day") <= GAPS_BACK * usual))
    older = (lives.begin < ibis.literal(burnt_in)) & ~lives.joined
    stage = ibis.cases(
        (bought == 0, ibis.null("string")),
        (silent > lost_after * usual, "lost"),
        (ibis.or_(*backs), "reactivated"),
        (silent > shop.policy.declining_after_gaps * usual, "declining"),
        ((bought == 1) & ~older, "new"),
        (bought < shop.policy.mature_purchases, "developing"),
        else_="mature",
    )
    return lives.mutate(
        **{f"stage_{place}": stage, f"usual_gap_{place}": usual, f"silent_{place}": silent}
    )
