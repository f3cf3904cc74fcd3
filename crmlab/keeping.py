"""Whom it pays to keep: what a contact with an offer earns, by customer and in all."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crmlab import results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.models import Array

Range = float | tuple[float, float]
POINTS = 50
Z = 1.959964


@dataclass(frozen=True, eq=False)
class Keeping:
    """What contacting customers at risk would earn: a planning figure, not a measured one.

    `curve` has one row per share of the customers, the most profitable first: share, customers,
    profit, low and high, the ends of what `save` and `take_up` leave open; money in shop currency.
    `share` earns most on one half of the customers and `profit` is what the other half says of it,
    for all, from `profit_low` to `profit_high` with what chance adds to those ends; shares from
    `least` to `most` cannot be told from it. `cells`: what (risk and value), customers, each.
    `contacts` is a local ibis table, private: customer_id, p_stop, value_if_kept, profit.
    """

    curve: pd.DataFrame
    share: float
    least: float
    most: float
    profit: float
    profit_low: float
    profit_high: float
    cells: pd.DataFrame
    customers: int
    contacts: ir.Table
    assumed: str
    numbers: results.Numbers

    @property
    def to_contact(self) -> int:
        """How many customers the best share is."""
        return round(self.share * self.customers)

    @property
    def verdict(self) -> str:
        """Whom to contact, in plain words."""
        n = self.numbers
        if self.share == 0:
            return f"No contact pays for itself, {self.assumed}. This is a planning figure."
        ends = f"{n.short_money(self.profit_low)} to {n.short_money(self.profit_high)}"
        sure = "" if self.profit_low > 0 else " It may lose money."
        return (
            f"Contacting the {n.number(self.to_contact)} customers of the highest expected profit "
            f"({n.percent(self.share, 0)}) would earn {n.short_money(self.profit)} ({ends}), "
            f"{self.assumed}.{sure} Any share from {n.percent(self.least, 0)} to "
            f"{n.percent(self.most, 0)} is as good. This is a planning figure: keep a hold-out, "
            "as those most at risk are not those whom a message moves most."
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per share of the customers."""
        return self.curve

    def _repr_html_(self) -> str:
        n, text = self.numbers, f"<p>{escape(self.verdict)}</p>"
        if self.cells.empty:
            return text
        return text + results.html_table(
            self.cells,
            title="Expected profit of a contact, by risk and value (above and below the mean risk "
            "and the median value)",
            formats={"customers": n.number, "each": n.money},
            headings={"what": "customers of", "customers": "number"},
        )


def worth_keeping(
    scores: ir.Table,
    values: ir.Table,
    *,
    contact_cost: float,
    offer_cost: float,
    save: Range,
    take_up: Range,
    numbers: results.Numbers | None = None,
    k: int = 10,
) -> Keeping:
    """Plan whom to contact with an offer, by what each contact is expected to earn.

    Parameters
    ----------
    scores : local ibis table as `churn.score` gives it: customer_id, p_stop
    values : local ibis table as `ClvModel.predict` gives it: customer_id, clv, p_purchase
    contact_cost : float, of a message, in shop currency, whoever gets it
    offer_cost : float, of the offer to who takes it
    save : float or (low, high), the share of those about to stop whom the offer keeps; from a
        randomised campaign, or a range of what seems possible: it cannot be learnt from customers
        who were chosen for contact
    take_up : float or (low, high), the share of those who would have bought anyway that take it
    k : int, the fewest customers a figure may stand for

    Raises
    ------
    UsageError if a share is not from 0 to 1, or a cost is below 0; DataError if fewer than 4 `k`
    customers have both a score and a value

    Notes
    -----
    A contact earns p_stop save (value_if_kept - offer) - (1 - p_stop) take_up offer - contact.
    value_if_kept = clv / p_purchase: the discounted margin of such a customer given that they buy
    at all, since p_stop clv would count stopping twice.
    """
    for what, table, needs in (
        ("scores", scores, ("customer_id", "p_stop")),
        ("values", values, ("customer_id", "clv", "p_purchase")),
    ):
        have = list(getattr(table, "columns", []))
        if not hasattr(table, "to_pyarrow") or not {*needs} <= {*have}:
            raise tables.UsageError(
                f"{what} must be an ibis table with {', '.join(needs)}; it is a "
                f"{type(table).__name__} with {', '.join(map(str, have)) or 'no columns'}. "
                "ibis.memtable makes one of a DataFrame."
            )
    saves, takes = (_range(name, given) for name, given in (("save", save), ("take_up", take_up)))
    for name, cost in (("contact_cost", contact_cost), ("offer_cost", offer_cost)):
        tables.check_range(name, cost, 0, 1e9)
    tables.check_range("k", k, 1, 1e9)
    numbers = numbers or results.Numbers()
    known = values.select("customer_id", value_if_kept=values.clv / values.p_purchase.nullif(0))
    rows = scores.select("customer_id", "p_stop").inner_join(known, "customer_id")
    rows = rows.select("customer_id", "p_stop", "value_if_kept")
    rows = rows.filter(rows.value_if_kept.notnull())
    customers = int(rows.count().to_pyarrow().as_py())
    if customers < 4 * k:
        raise tables.DataError(
            f"Fewer than {4 * k} customers have both a score and a value; a plan needs as many."
        )
    stays = rows.value_if_kept - offer_cost
    rows = rows.mutate(
        kept=rows.p_stop * stays,
        given=(1 - rows.p_stop) * offer_cost,
        # What chance makes of one contact, around its mean.
        square=rows.p_stop * saves[1] * stays**2 + (1 - rows.p_stop) * takes[1] * offer_cost**2,
    )
    rows = rows.mutate(profit=saves[1] * rows.kept - takes[1] * rows.given - contact_cost)
    points = min(POINTS, customers // (2 * k))
    steps = _steps(rows, points, contact_cost)

    def earned(part: pd.DataFrame, save: float, take: float) -> Array:
        each = save * part["kept"] - take * part["given"] - contact_cost * part["customers"]
        return np.asarray(each.to_numpy(float))

    one, other = (steps[steps["half"] == half].reset_index(drop=True) for half in (0, 1))
    tried = np.append(0.0, np.cumsum(earned(one, saves[1], takes[1])))
    best = int(np.argmax(tried))
    spread = np.append(0.0, np.cumsum(one["variance"].to_numpy(float)))
    alike = np.flatnonzero(tried[best] - tried <= Z * np.sqrt(np.abs(spread[best] - spread)))
    scale = customers / max(1, int(other["customers"].sum()))
    # As planned; as bad as the ranges allow, and as good.
    ends = list(zip((saves[1], saves[0], saves[2]), (takes[1], takes[2], takes[0]), strict=True))
    told = [scale * float(earned(other, *end)[:best].sum()) for end in ends]
    luck = Z * float(np.sqrt(steps[steps["step"] < best]["variance"].sum()))
    both = steps.groupby("step").sum()
    curve = pd.DataFrame(
        {"share": both["customers"].cumsum() / customers, "customers": both["customers"].cumsum()}
    )
    for name, end in zip(("profit", "low", "high"), ends, strict=True):
        curve[name] = np.cumsum(earned(both, *end))
    # A sum of which one customer brings half is not shown.
    largest = steps.groupby("step")["largest"].max().cummax()
    shown = (largest * 2 < np.abs(earned(both, *ends[0])).cumsum()).to_numpy()
    return Keeping(
        curve=curve[shown].reset_index(drop=True),
        share=best / points,
        least=float(alike.min() / points),
        most=float(alike.max() / points),
        profit=told[0],
        profit_low=told[1] - luck,
        profit_high=told[2] + luck,
        cells=_cells(rows, k),
        customers=customers,
        contacts=rows.select("customer_id", "p_stop", "value_if_kept", "profit"),
        assumed=_assumed(saves, takes, contact_cost, offer_cost, numbers),
        numbers=numbers,
    )


def _steps(rows: ir.Table, points: int, contact_cost: float) -> pd.DataFrame:
    """Add up what contacts bring in so many steps of profit, the best first, in two halves."""
    import ibis

    order = ibis.window(order_by=[rows.profit.desc(), rows.customer_id])
    # Every second one in the order, so that the halves are as alike as can be.
    rows = rows.mutate(step=ibis.ntile(points).over(order), half=ibis.row_number().over(order) % 2)
    found = rows.group_by("step", "half").aggregate(
        customers=rows.count(),
        kept=rows.kept.sum(),
        given=rows.given.sum(),
        variance=(rows.square - (rows.profit + contact_cost) ** 2).sum(),
        largest=rows.profit.abs().max(),
    )
    return found.order_by("step", "half").to_pandas()


def _range(name: str, given: Any) -> tuple[float, float, float]:
    """Return low, middle and high of a share that is given as a number or as its two ends."""
    ends = given if isinstance(given, tuple | list) else (given, given)
    if len(ends) != 2:
        raise tables.UsageError(
            f"{name} = {given} must be a share of 1, or the two ends of a range."
        )
    low, high = ends
    tables.check_range(name, low, 0, 1)
    tables.check_range(name, high, 0, 1)
    if low > high:
        raise tables.UsageError(f"{name} goes from {low} down to {high}; give the lower end first.")
    return float(low), (low + high) / 2, float(high)


def _cells(rows: ir.Table, k: int) -> pd.DataFrame:
    """Return the four cells of risk and value, divided at the mean risk and the median value."""
    middle = rows.aggregate(p=rows.p_stop.mean(), value=rows.value_if_kept.median())
    [at] = middle.to_pyarrow().to_pylist()
    risky, dear = rows.p_stop >= at["p"], rows.value_if_kept >= at["value"]
    what = risky.ifelse("high risk, ", "low risk, ") + dear.ifelse("high value", "low value")
    found = rows.group_by(what=what).aggregate(
        customers=rows.count(), profit=rows.profit.sum(), largest=rows.profit.abs().max()
    )
    cells = results.merge_small_cells(
        found.order_by("what").to_pandas(),
        label="what",
        customers="customers",
        k=k,
        largest={"profit": "largest"},
    )
    cells["each"] = cells.pop("profit") / cells["customers"]
    return cells


def _assumed(saves: Any, takes: Any, contact: float, offer: float, n: results.Numbers) -> str:
    """Say what the plan takes for granted."""

    def share(ends: tuple[float, float, float]) -> str:
        low, high = n.percent(ends[0], 0), n.percent(ends[2], 0)
        return low if ends[0] == ends[2] else f"{low} to {high}"

    return (
        f"if an offer of {n.money(offer)} in a message of {n.money(contact)} keeps {share(saves)} "
        f"of those who would stop, and {share(takes)} of the others take it too"
    )
