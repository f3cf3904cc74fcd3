"""Why a customer's risk is above the average, in words, from the customer's own baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from crmlab import features
from crmlab.features import QUARTER, YEAR

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np
    import pandas as pd

    from crmlab.candidates import Scorer

# So many customers are scored at a time, and so many reasons are given.
BATCH, REASONS = 100_000, 3
# Where each reason takes a forecast of its own, only so many of the highest risk get them.
MOST_SLOW = 100_000
# What a group of features is about, in words for many customers.
KINDS = {
    "silence": "silent for longer than usual",
    "frequency": "few purchases so far",
    "trend": "how often of late",
    "tenure": "how long a customer",
    "spend": "how much a purchase",
    "spend_trend": "how much of late",
    "variety": "how many categories",
    "returns": "goods brought back",
    "discounts": "how much at a discount",
    "channel": "the channel",
    "store": "the store",
    "distance": "far from the store",
    "cases": "a complaint or another case",
    "points": "the points on the account",
    "contacts": "the messages sent",
}
# Log-odds below which a group of features is no reason: a chance of .5 would become .525.
LEAST = 0.1


def scored(scorer: Scorer, rows: ir.Table, landed: Callable[[ir.Table, str], ir.Table]) -> ir.Table:
    """Score the customers in batches, and put the weightiest reasons of each into words.

    Parameters
    ----------
    rows : local ibis table as `features.features` gives it
    landed : what makes a table local, as `Shop.landed`
    """
    import ibis
    import numpy as np
    import pyarrow as pa

    rows = rows.mutate(nth=ibis.row_number().over(order_by="customer_id"))
    rows = landed(rows, "features")
    in_all = int(rows.count().to_pyarrow().as_py())
    chances, codes = np.empty(in_all), np.full((in_all, REASONS), -1, np.int8)

    def batches() -> Iterator[tuple[slice, pd.DataFrame]]:
        for start in range(0, in_all, BATCH):
            some = rows.filter(rows.nth >= start, rows.nth < start + BATCH)
            frame = some.order_by("nth").to_pandas()
            yield slice(start, start + len(frame)), frame

    for part, frame in batches():
        chances[part] = scorer.chance(frame)
    # Whose risk is average or less needs no reason.
    risky = chances > chances.mean() if in_all else chances > 0
    if scorer.slow and risky.sum() > MOST_SLOW:
        risky = chances >= np.partition(chances, -MOST_SLOW)[-MOST_SLOW]
    if scorer.parts is not None:
        for part, frame in batches():
            codes[part][risky[part]] = _weightiest(scorer.parts(frame[risky[part]]))
    columns = {"nth": np.arange(in_all), "p_stop": chances}
    columns |= {f"code_{n}": codes[:, n].astype(int) for n in range(REASONS)}
    joined = rows.inner_join(ibis.memtable(pa.table(columns)), "nth")
    # What is not known of a customer leaves the kind of the reason.
    groups, told = list(features.GROUPS), {}
    said = {one: words.fill_null(KINDS[one]) for one, words in _words(joined).items()}
    kinds = [(joined.code_0 == groups.index(one), KINDS[one]) for one in said]
    told["main_reason"] = ibis.cases(*kinds, else_=ibis.null("string"))
    for n in range(REASONS):
        cases = [(joined[f"code_{n}"] == groups.index(one), words) for one, words in said.items()]
        told[f"reason_{n + 1}"] = ibis.cases(*cases, else_=ibis.null("string"))
    return landed(joined.select("customer_id", "p_stop", **told).order_by("customer_id"), "scores")


def _weightiest(added: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return the places in `GROUPS` of what adds most to each customer's log-odds, -1 for none."""
    import numpy as np

    codes = np.full((len(added), REASONS), -1, np.int8)
    order = np.argsort(-added.to_numpy(), axis=1, kind="stable")[:, :REASONS]
    weights = np.take_along_axis(added.to_numpy(), order, axis=1)
    named = np.array([list(features.GROUPS).index(name) for name in added.columns], np.int8)
    codes[:, : order.shape[1]] = np.where(weights >= LEAST, named[order], -1)
    return codes


def _words(rows: ir.Table) -> dict[str, ir.StringValue]:
    """Return the sentence of each group of features of which the shop has the columns."""
    import ibis

    def number(value: Any) -> ir.StringValue:
        return value.round().cast("int64").cast("string")

    def percent(value: Any) -> ir.StringValue:
        return number(100 * value) + "%"

    def times(value: Any) -> ir.StringValue:
        return ibis.ifelse(value == 1, "once", number(value) + " times")

    have = {*rows.columns}
    silent = number(rows.silent)
    said: dict[str, Any] = {
        "silence": ibis.ifelse(
            (rows.frequency > 0) & rows.usual_gap.notnull(),
            "usually every " + number(rows.usual_gap) + " days, silent for " + silent,
            "bought once, silent for " + silent + " days",
        ),
        "frequency": "bought " + times(rows.frequency + 1) + " so far",
        "trend": "bought " + times(rows.recent) + f" in the last {QUARTER} days, "
        + times(rows.earlier) + " in those before",
        "tenure": "first bought " + number(rows["T"]) + " days ago",
        "spend": "spends " + number(rows.mean_spend) + " a purchase",
        "spend_trend": ibis.ifelse(
            rows.spend_slope.isnull(),
            f"no purchase in the last {YEAR} days",
            "spend per purchase " + percent(rows.spend_slope.abs())
            + ibis.ifelse(rows.spend_slope < 0, " below", " above") + " their usual",
        ),
        "returns": percent(rows.returned_share) + " of the money was brought back",
    }  # fmt: skip
    if "discount_share" in have:
        said["discounts"] = percent(rows.discount_share) + " off on average"
    if "channel" in have:
        said["channel"] = "last bought by " + rows.channel
    if "store" in have:
        said["store"] = "last bought in store " + rows.store
    if "distance_km" in have:
        said["distance"] = number(rows.distance_km) + " km from the store"
    if "categories" in have:
        said["variety"] = "bought of " + number(rows.categories) + f" categories in {YEAR} days"
    if "points" in have:
        said["points"] = number(rows.points) + " points on the account"
    if "contacts" in have:
        said["contacts"] = number(rows.contacts) + f" messages in {QUARTER} days"
    if "cases" in have:
        said["cases"] = ibis.cases(
            (rows.case_open_days.notnull(),
             rows.case_kind.fill_null("case") + " open for " + number(rows.case_open_days)
             + " days"),
            (rows.case_kind.notnull(), rows.case_kind + " after the last purchase"),
            else_=number(rows.cases) + f" cases in {YEAR} days",
        )  # fmt: skip
    return said
