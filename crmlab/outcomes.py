"""What each customer did in the days after a campaign drew its arms, and in those before."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmlab import purchases, tables
from crmlab.effects import Moments

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

# What is measured of each customer; `response` is whether they bought at all.
OUTCOMES = ("response", "purchases", "spend", "margin")
BEFORE = "before_"
# For how many times the window the sums go on: sales may only have been pulled forward.
LONGER = (2, 4)


def of_customers(
    shop: Shop, assigned: ir.Table, *, as_of: str | dt.date, days: int, before_days: int = 0,
    margin: float | None = None,
) -> ir.Table:  # fmt: skip
    """Add to each customer what they did in a window of days, the same for every arm.

    Parameters
    ----------
    assigned : local ibis table, one row per customer: customer_id; window_from, the window's first
        day; whatever else stays
    days : int, days of the window; those after `as_of` are not there yet
    before_days : int, days of the window before
    margin : float, margin as a share of the amount; None = amount less the shop's own `cost`

    Returns
    -------
    local ibis table, the rows of `assigned` with: response, 1 for who bought on any day of the
    window; purchases, days with one; spend, net amount, less what came back; margin of it;
    returned, what came back, all in shop currency; the same with "before_" for the days before;
    margin_2 and margin_4, spend_2 and spend_4, in so many windows

    Raises
    ------
    UsageError if margin is not from 0 to 1; DataError if it is None and the shop has no `cost`
    """
    import ibis

    last = tables.day(as_of)
    bounds = assigned.aggregate(first=assigned.window_from.min(), last=assigned.window_from.max())
    [span] = bounds.to_pyarrow().to_pylist()
    if span["first"] is None:
        raise tables.DataError("There are no customers to measure.")
    first = span["first"] - dt.timedelta(before_days)
    rows = purchases.lines(shop, as_of=last)
    rows = rows.filter(rows.purchased_on >= ibis.literal(first))
    gained = _margin(shop, rows, margin)
    found = rows.group_by("customer_id", "purchased_on").aggregate(
        amount=rows.amount.sum(),
        gained=gained.sum(),
        returned=-rows.amount.sum(where=rows.amount < 0),
    )
    found = shop.landed(found, "outcome_days")
    found = found.mutate(bought=purchases.is_purchase(shop, found.amount))
    found = found.inner_join(assigned.select("customer_id", "window_from"), "customer_id")
    since = found.purchased_on.delta(found.window_from, unit="day")
    found = found.mutate(since=since)
    sums: dict[str, Any] = {}
    for prefix, inside in (
        ("", (found.since >= 0) & (found.since < days)),
        (BEFORE, (found.since < 0) & (found.since >= -before_days)),
    ):
        sums |= {
            f"{prefix}purchases": found.count(where=inside & found.bought).cast("float64"),
            f"{prefix}spend": found.amount.sum(where=inside).cast("float64"),
            f"{prefix}margin": found.gained.sum(where=inside).cast("float64"),
            f"{prefix}returned": found.returned.sum(where=inside).cast("float64"),
        }
    for times in LONGER:
        inside = (found.since >= 0) & (found.since < times * days)
        sums[f"margin_{times}"] = found.gained.sum(where=inside).cast("float64")
        sums[f"spend_{times}"] = found.amount.sum(where=inside).cast("float64")
    each = found.group_by(who="customer_id").aggregate(**sums)
    names = list(each.columns)[1:]
    all_rows = assigned.left_join(each, assigned.customer_id == each.who).drop("who")
    all_rows = all_rows.mutate(**{name: all_rows[name].fill_null(0.0) for name in names})
    all_rows = all_rows.mutate(
        **{f"{prefix}response": (all_rows[f"{prefix}purchases"] > 0).ifelse(1.0, 0.0)
           for prefix in ("", BEFORE)}
    )  # fmt: skip
    done = shop.landed(all_rows, "outcomes")
    before, after = (int(t.count().to_pyarrow().as_py()) for t in (assigned, done))
    if before != after:
        raise tables.DataError(
            f"{before} customers were assigned, but {after} rows have an outcome: a customer is "
            "there more than once."
        )
    return done


def _margin(shop: Shop, rows: ir.Table, margin: float | None) -> ir.NumericValue:
    """Return what a line earns."""
    if margin is not None:
        tables.check_range("margin", margin, 0, 1)
        return rows.amount.cast("float64") * margin
    if "cost" not in rows.columns:
        raise tables.DataError(
            f"Shop '{shop.id}' has no cost of what was sold: say margin, a share of 1, or name "
            'your column in shop.toml: [tables.transactions.columns] cost = "...".'
        )
    # A line whose cost is not known earns nothing that is known.
    return rows.amount - rows.cost


def moments(
    rows: ir.Table, pairs: Mapping[str, tuple[str, str | None]], *, by: Sequence[str] = ("arm",),
    unit: str | None = None,
) -> dict[tuple[Any, ...], dict[str, Moments]]:  # fmt: skip
    """Return the moments of each outcome in each group, from one GROUP BY in the table's engine.

    Parameters
    ----------
    rows : ibis table, one row per customer
    pairs : what it is called -> its column, and the column of what is held against it: the same
        before, or the denominator of a ratio; None for none
    by : the columns that name the group
    unit : the column of who was drawn together, such as a household: n is then the number of
        those, the mean still that of a customer, and what stands beside is left out

    Returns
    -------
    group -> what it is called -> Moments
    """
    frame = _sums(rows, pairs, by, unit)
    found: dict[tuple[Any, ...], dict[str, Moments]] = {}
    for row in frame.to_dict("records"):
        of_group = found.setdefault(tuple(row[f"group_{n}"] for n in range(len(by))), {})
        for n, (name, (_, second)) in enumerate(pairs.items()):
            parts = ("y", "yy", "x", "xx", "xy")[: 5 if second and not unit else 2]
            one = Moments.of_sums(int(row["n"]), *(float(row[f"{part}_{n}"]) for part in parts))
            of_group[name] = _per_customer(row, n) if unit else one
    return found


def _sums(
    rows: ir.Table, pairs: Mapping[str, tuple[str, str | None]], by: Sequence[str],
    unit: str | None,
) -> pd.DataFrame:  # fmt: skip
    """Add up what moments need, of customers or of units."""
    if unit:
        together = {name: rows[name].sum() for name in sorted({y for y, _ in pairs.values()})}
        rows = rows.group_by(*by, unit).aggregate(size=rows.count().cast("float64"), **together)
    sums: dict[str, Any] = {"n": rows.count()}
    for n, (first, second) in enumerate(pairs.values()):
        y = rows[first].cast("float64")
        sums |= {f"y_{n}": y.sum(), f"yy_{n}": (y * y).sum()}
        if second and not unit:
            x = rows[second].cast("float64")
            sums |= {f"x_{n}": x.sum(), f"xx_{n}": (x * x).sum(), f"xy_{n}": (x * y).sum()}
        if unit:
            sums[f"ys_{n}"] = (y * rows["size"]).sum()
    if unit:
        sums |= {"s": rows["size"].sum(), "ss": (rows["size"] * rows["size"]).sum()}
    named = {f"group_{n}": rows[name] for n, name in enumerate(by)}
    found = rows.group_by(**named).aggregate(**sums)
    return found.order_by(*named).to_pandas()


def _per_customer(row: Mapping[str, Any], n: int) -> Moments:
    """Return the mean per customer where units were drawn, by the delta method of a ratio.

    Deng, Knoblich and Lu (2018), KDD. The size is that of units, which are what was drawn.
    """
    sized = Moments.of_sums(
        int(row["n"]), *(float(row[name]) for name in (f"y_{n}", f"yy_{n}", "s", "ss", f"ys_{n}"))
    )
    rate = sized.mean / sized.other_mean
    spread = sized.variance - 2 * rate * sized.covariance + rate**2 * sized.other_variance
    return Moments(sized.n, rate, max(0.0, spread) / sized.other_mean**2)
