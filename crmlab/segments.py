"""What the customers of each segment or cohort are worth, with ranges."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crmlab import results, tables
from crmlab.totals import Checks, ranges, terms_of

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.customers import LogStart
    from crmlab.forecasts import ClvModel
    from crmlab.sources import Shop

MOST_SEGMENTS = 12  # what is left joins "other": more can neither be read nor drawn
FIRST = "first purchase"


@dataclass(frozen=True, eq=False)
class Segments:
    """What the customers of each segment are worth, with ranges.

    `rows`: segment, customers, clv and its low and high, and the same per customer: each, each_low
    and each_high; own_low and own_high hold the model's own part, without what earlier totals were
    off by, which moves all segments together. The most valuable customers first, or cohorts in
    their order; "other" last. Money is in shop currency.
    """

    rows: pd.DataFrame
    by: str
    numbers: results.Numbers

    @property
    def verdict(self) -> str:
        """Whose customers are worth most, if anybody's clearly are."""
        n, rows = self.numbers, self.rows[self.rows["each"].notna()]
        rows = rows.sort_values("each", ascending=False, ignore_index=True)
        if len(rows) < 2:
            return f"There is nothing to compare by {self.by}."
        best = rows.iloc[0]
        if best["own_low"] > rows["own_high"].iloc[1:].max():
            return (
                f"By {self.by}, customers of “{best['segment']}” are worth most: "
                f"{n.money(best['each'])} each, against {n.money(rows['each'][1])} of the next."
            )
        return f"By {self.by}, nobody's customers are clearly worth most."

    def to_frame(self) -> pd.DataFrame:
        """Return one row per segment."""
        return self.rows

    def _repr_html_(self) -> str:
        n = self.numbers
        if self.rows.empty:
            return f"<p>Too few customers to compare them by {escape(self.by)}.</p>"
        shown = self.rows.assign(
            range=[f"{n.money(a, 0)} to {n.money(b, 0)}" if a == a else results.NOTHING
                   for a, b in zip(self.rows["low"], self.rows["high"], strict=True)],
        )  # fmt: skip
        return f"<p>{escape(self.verdict)}</p>" + results.html_table(
            shown[["segment", "customers", "each", "clv", "range"]],
            title=f"Lifetime value by {self.by}",
            formats={
                "customers": n.number,
                "each": n.money,
                "clv": lambda value: n.money(value, 0),
                "range": str,
            },
            headings={"segment": self.by, "each": "each", "clv": "lifetime value"},
        )


def by_segment(
    model: ClvModel,
    summary: ir.Table,
    values: ir.Table,
    segments: ir.Table,
    *,
    by: str,
    horizon_days: float,
    margin: float,
    annual_discount_rate: float,
    checks: Checks,
    numbers: results.Numbers,
    k: int,
    seed: int = 1,
) -> Segments:
    """Add up the forecast by segment, each with its range as `total_range` makes it.

    Parameters
    ----------
    segments : local ibis table: customer_id and segment, text; who has none is "unknown"
    by : what the segments are, in words
    k : int, the fewest customers a segment may have; smaller ones, and all after the twelve
        largest, are "other"
    """
    import numpy as np

    labels = summary.select("customer_id").left_join(segments, "customer_id")
    labels = labels.select("customer_id", segment=labels.segment.fill_null("unknown"))
    sizes = labels.group_by("segment").aggregate(customers=labels.count()).to_pandas()
    sizes = sizes.sort_values(["customers", "segment"], ascending=[False, True])
    largest = np.arange(len(sizes)) < MOST_SEGMENTS
    sizes["segment"] = sizes["segment"].where(largest, "other")
    sizes = sizes.groupby("segment", as_index=False)["customers"].sum()
    kept = results.merge_small_cells(sizes, label="segment", customers="customers", k=k)
    shown = labels.segment.isin(kept["segment"].tolist())
    labels = labels.mutate(segment=shown.ifelse(labels.segment, "other"))
    terms = terms_of(horizon_days, margin, annual_discount_rate)
    rows = ranges(model, summary, values, labels, terms, checks, seed)
    rows = results.merge_small_cells(
        rows, label="segment", customers="customers", k=k,
        largest={"clv": "largest"},
    )  # fmt: skip
    hidden = rows["clv"].isna()
    rows.loc[hidden, ["low", "high", "own_low", "own_high"]] = float("nan")
    for name, total in (("each", "clv"), ("each_low", "low"), ("each_high", "high")):
        rows[name] = rows[total] / rows["customers"]
    rows[["own_low", "own_high"]] = rows[["own_low", "own_high"]].div(rows["customers"], axis=0)
    rows = rows.sort_values("each", ascending=False) if by != FIRST else rows.sort_values("segment")
    rows = rows.sort_values("segment", key=lambda names: names == "other", kind="stable")
    return Segments(rows.reset_index(drop=True), by, numbers)


def segments_of(
    shop: Shop, summary: ir.Table, history: LogStart, column: str = ""
) -> tuple[ir.Table, str]:
    """Return each customer's segment, and what the segments are in words.

    Parameters
    ----------
    column : a text column of the table customers, such as region; empty = the month of the
        first purchase, or its quarter or year; those apart who may be older than the log
    """
    import ibis

    if not column:
        rest = summary.anti_join(history.older, "customer_id")
        year = rest.first_purchase.year().cast("string")
        quarter = year + " Q" + rest.first_purchase.quarter().cast("string")
        month = year + "-" + rest.first_purchase.month().cast("string").lpad(2, "0")
        label = next(
            (
                one
                for one in (month, quarter)
                if rest.select(one=one).one.nunique().to_pyarrow().as_py() < MOST_SEGMENTS
            ),
            year,
        )
        older = history.older.select(
            "customer_id", segment=ibis.literal(f"perhaps before {history.starts_on}")
        )
        return older.union(rest.select("customer_id", segment=label)), FIRST
    if not shop.has("customers"):
        raise tables.DataError(
            f"Segments by {column} need the table customers, which shop '{shop.id}' has not. Leave "
            "the segment empty to compare customers by their first purchase."
        )
    members = shop.table("customers")
    texts = [name for name, kind in members.schema().items()
             if kind.is_string() and name not in ("customer_id", "household_id")]  # fmt: skip
    if column not in texts:
        raise tables.UsageError(
            f"The customers of shop '{shop.id}' have no segment {column!r}; "
            f"they have {', '.join(texts) or 'no column of words'}."
            + tables.did_you_mean(column, texts)
        )
    return shop.landed(members.select("customer_id", segment=column), "segments"), column
