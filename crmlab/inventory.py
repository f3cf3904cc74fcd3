"""Taking stock of the customers: who is active, who slips, who came back, and who went for good.

Nothing that these results show is made of fewer than `privacy_k` customers, nor can it be found
by taking one shown number from another.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from crmlab import customers, purchases, results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.sources import Shop

YEAR = 365
# By how many equal parts the active customers are told, most first, as far as each is large enough.
PARTS = {
    5: ("top fifth", "second fifth", "third fifth", "fourth fifth", "last fifth"),
    3: ("top third", "second third", "last third"),
    2: ("upper half", "lower half"),
    1: ("all",),
}


@dataclass(frozen=True)
class LeftOut:
    """A part that cannot be made, and why; it is false, so that a notebook can ask."""

    why: str

    @property
    def verdict(self) -> str:
        """Nothing: what is not known adds nothing to a summary."""
        return ""

    def __bool__(self) -> bool:
        return False

    def _repr_html_(self) -> str:
        return f"<p>Left out here: {escape(self.why)}</p>"


def attempt(make: Callable[[], Any]) -> Any:
    """Return what `make` makes, or `LeftOut` where the data do not allow it: the page goes on."""
    try:
        return make()
    except tables.DataError as error:
        return LeftOut(str(error))


@dataclass(frozen=True, eq=False)
class Table:
    """An answer that is one table: `rows`, and in words `verdict`.

    `money`, `shares` and `counts` name the columns that print so; `note` says how they are defined.
    """

    title: str
    rows: pd.DataFrame
    verdict: str
    numbers: results.Numbers
    money: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    note: str = ""

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.rows.copy()

    def _repr_html_(self) -> str:
        n = self.numbers
        kinds = {name: n.number for name in self.rows.select_dtypes("number").columns}
        kinds |= dict.fromkeys(self.shares, n.percent)
        kinds |= dict.fromkeys(self.money, lambda value: n.money(value, 0))
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        table = results.html_table(self.rows, title=self.title, formats=kinds)
        return f"<p>{escape(self.verdict)}</p>{table}{note}"


@dataclass(frozen=True, eq=False)
class Stock(Table):
    """The stock of customers by stage before and now, and the steps of the active ones between.

    `rows`: stage, before, now, change; stages of too few customers stand together. `bridge`: what,
    customers: active before, the steps, active now; active is who is not lost. `active` is their
    number before and now.
    """

    bridge: pd.DataFrame | None = None
    active: tuple[int, int] = (0, 0)
    before: str = ""
    now: str = ""

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles: what can be told of those active, new and declining, and of the lost."""
        stock = self.rows.set_index("stage")["now"]
        lost = stock["lost"] / (stock["lost"] + self.active[1])
        found = [
            results.Kpi("active customers", self.active[1], "count", "up", "not lost"),
            results.Kpi("new", stock.get("new", math.nan), "count", "up", "one purchase so far"),
            results.Kpi("declining", stock.get("declining", math.nan), "count", "down",
                        "silent for longer than usual"),
            results.Kpi("lost", lost, "share", "down", "of all who ever bought"),
        ]  # fmt: skip
        return [tile for tile in found if tile.value == tile.value]


def stock(shop: Shop, *, start: str | dt.date, end: str | dt.date) -> Stock:
    """Count the customers by stage at the end of two days, as far as a page may tell it.

    Raises
    ------
    DataError as `customers.flows` does, and where fewer than `privacy_k` customers are active
    """
    flows, k, n = customers.flows(shop, start=start, end=end), shop.policy.privacy_k, shop.numbers
    rows = flows.stock.astype({"before": float, "now": float, "change": float})
    steps = flows.bridge.set_index("what")["customers"]
    was, now = int(steps["before"]), int(steps["now"])
    if now < k or results.few(was, k):
        raise tables.DataError(f"Fewer than {k} customers of shop '{shop.id}' are active.")
    lost = rows["stage"] == "lost"
    # The lost stand in no sum of the page, so that a blank cannot be found again.
    hidden = [name for name in ("before", "now") if results.few(rows.loc[lost, name].sum(), k)]
    rows.loc[lost, [*hidden, *(["change"] if hidden else [])]] = math.nan
    rows = _stages_together(rows, k)
    bridge = _steps(steps, k, net=bool(hidden))
    told = ", ".join(
        f"{n.number(row.customers)} {row.what}" for row in bridge.iloc[1:-1].itertuples()
    )
    grown = f" ({n.percent(now / was - 1, signed=True)})" if was else ""
    change = f"{n.number(abs(now - was))} {'more' if now >= was else 'fewer'}{grown} than on"
    verdict = (
        f"{n.number(now)} customers were active on {n.day(flows.end)}, {change} "
        f"{n.day(flows.start)}" + (f": {told}." if len(bridge) > 3 else ".")
    )
    title = f"Customers by stage, {n.day(flows.start)} and {n.day(flows.end)}"
    signed = rows.assign(change=rows["change"])
    days = n.day(flows.start), n.day(flows.end)
    return Stock(title, signed, verdict, n, bridge=bridge, active=(was, now),
                 before=days[0], now=days[1])  # fmt: skip


def _stages_together(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    """Put active stages of too few customers together: their sum can be found from the bridge."""
    import pandas as pd

    active = rows[rows["stage"] != "lost"]
    few = ((active[["before", "now"]] > 0) & (active[["before", "now"]] < k)).any(axis=1)
    order = active.assign(large=~few).sort_values(["large", "now", "before"], kind="stable").index
    size = int(few.sum())
    while 0 < size < len(order) and any(
        results.few(active.loc[order[:size], name].sum(), k) for name in ("before", "now")
    ):
        size += 1
    if not size:
        return rows
    chosen = sorted(order[:size])
    row = rows.loc[chosen, ["before", "now", "change"]].sum()
    stage = " or ".join(rows.loc[chosen, "stage"])
    merged = pd.DataFrame([{"stage": stage, **row}], index=[chosen[0]])
    return pd.concat([rows.drop(index=chosen), merged]).sort_index().reset_index(drop=True)


def _steps(steps: pd.Series[int], k: int, *, net: bool) -> pd.DataFrame:
    """Return the bridge with steps of too few customers together, or all of them as the change."""
    import pandas as pd

    came = {"new": int(steps["new"]), "came back": int(steps["came back"])}
    if any(results.few(count, k) for count in came.values()):
        came = {"new or came back": sum(came.values())}
    went = {"became lost": int(steps["became lost"])}
    if net or any(results.few(count, k) for count in (*came.values(), *went.values())):
        came, went = {"change": int(steps["now"] - steps["before"])}, {}
    rows = {"before": int(steps["before"]), **came, **went, "now": int(steps["now"])}
    return pd.DataFrame(list(rows.items()), columns=["what", "customers"])


def was_lost(shop: Shop, *, as_of: str | dt.date, days: int = YEAR) -> customers.LostCheck:
    """Look back at those called lost, as `customers.lost_check`, where they are enough to tell.

    Raises `DataError` if the log does not reach back so far, or they are too few.
    """
    check, k = customers.lost_check(shop, as_of=as_of, days=days), shop.policy.privacy_k
    stayed = check.lost - check.came_back
    if check.lost < k or any(results.few(count, k) for count in (check.came_back, stayed)):
        raise tables.DataError(f"Too few customers were lost on {check.as_of} to look back at.")
    return check


@dataclass(frozen=True, eq=False)
class Base:
    """The customers at the end of `as_of`, and what became of them since the end of `since`.

    `rows`, a local ibis table with one row per customer: customer_id; stage and before, the stage
    at either day, null before the first purchase; silent, days; purchases, days with one;
    last_purchase; returned_on, the first purchase after `since`; total, net spend in the whole log,
    and value, in the 365 days up to the last purchase with what was taken back since, both in shop
    currency; store_id of the last purchase; last_was_return, whether the last line of all was one;
    known, whether the customer was active at either day; place and of, how many of those known
    have more value, and how many there are.
    """

    shop: Shop
    as_of: dt.date
    since: dt.date
    rows: ir.Table

    @property
    def k(self) -> int:
        """The fewest customers of whom may be told."""
        return self.shop.policy.privacy_k


def base(shop: Shop, *, as_of: str | dt.date, since: str | dt.date) -> Base:
    """Bring together what the questions below ask of each customer, one pass over the receipts.

    Value ends with the last purchase, not with `as_of`: else who slips away would seem to be worth
    less for it.

    Raises
    ------
    DataError as `customers.stages` does, and if `since` is not before `as_of`
    """
    import ibis

    now, then = tables.day(as_of), tables.day(since, name="since")
    if then >= now:
        raise tables.DataError(f"since {then} must lie before as_of {now}.")
    stages = customers.stages(shop, as_of=now)
    earlier = customers.stages(shop, as_of=then).select("customer_id", before="stage")
    rows = shop.landed(_profile(shop, now, then), "profile")
    rows = stages.left_join(rows, "customer_id").drop("customer_id_right")
    rows = rows.left_join(earlier, "customer_id").drop("customer_id_right")
    # Those lost for longer are no part of the base that can be kept.
    known = (rows.stage != "lost") | (rows.before != "lost").fill_null(True)
    rows = rows.mutate(known=known)
    rows = rows.mutate(
        place=ibis.rank().over(group_by="known", order_by=rows.value.desc()),
        of=rows.count().over(group_by="known"),
    )
    return Base(shop, now, then, shop.landed(rows, "base"))


def _profile(shop: Shop, day: dt.date, since: dt.date) -> ir.Table:
    """Return what the receipts say of each customer, as an expression on the shop's engine."""
    import ibis

    rows = purchases.lines(shop, as_of=day)
    keys = [n for n in ("customer_id", "purchased_on", "store_id") if n in rows.columns]
    sold = purchases.is_purchase(shop, rows.amount)
    visits = rows.group_by(keys).aggregate(
        amount=rows.amount.sum(),
        sold_at=rows.purchased_at.max(where=sold),
        back_at=rows.purchased_at.max(where=rows.amount < 0),
        at=rows.purchased_at.max(),
    )
    own = {"group_by": "customer_id"}
    net = visits.amount.sum().over(group_by=["customer_id", "purchased_on"])
    visits = visits.select(
        *keys, "amount", "sold_at", "back_at",
        bought=purchases.is_purchase(shop, net).ifelse(visits.purchased_on, ibis.null("date")),
        latest=visits["at"].max().over(**own),
    )  # fmt: skip
    visits = visits.select(*visits.columns, last=visits.bought.max().over(**own))
    visits = visits.filter(visits["last"].notnull())
    on_last = visits.purchased_on == visits["last"]
    sold_at = on_last.ifelse(visits.sold_at, ibis.null("timestamp")).max().over(**own)
    visits = visits.select(*visits.columns, last_sold=sold_at)
    recent = visits["last"].delta(visits.purchased_on, unit="day") < YEAR
    there = visits.sold_at == visits.last_sold
    stores = "store_id" in keys
    found = visits.group_by("customer_id").aggregate(
        last_purchase=visits["last"].max(),
        returned_on=visits.bought.min(where=visits.bought > ibis.literal(since)),
        total=visits.amount.sum().cast("float64"),
        value=visits.amount.sum(where=recent).cast("float64"),
        returns=visits.count(where=visits.back_at == visits.latest),
        # The smallest of several at the same moment: the order of lines means nothing.
        **({"store_id": visits.store_id.min(where=there)} if stores else {}),
    )
    return found.select(
        *(name for name in found.columns if name not in ("returns", "store_id")),
        last_was_return=found.returns > 0,
        store_id=found.store_id if stores else ibis.null("string"),
    )


def early_warning(base: Base) -> Table:
    """Tell how many valuable customers slip away now, by value.

    Returns
    -------
    Table, one row per fifth of the known base by value, or fewer groups where customers are few:
    group; customers; declining; share of them; at stake, the value of those declining, in shop
    currency, missing where one of them has half of it; became lost since `since`.

    Raises
    ------
    DataError if even all together are too few to tell
    """
    rows, k, n = base.rows.filter(base.rows.known), base.k, base.shop.numbers
    slips, gone = rows.stage == "declining", rows.stage == "lost"
    for parts, names in PARTS.items():
        counted = rows.group_by(part=parts * rows.place // rows.of).aggregate(
            customers=rows.count(),
            declining=rows.count(where=slips),
            lost=rows.count(where=gone),
            at_stake=rows.value.sum(where=slips).fill_null(0.0),
            largest=rows.value.max(where=slips).fill_null(0.0),
        )
        found = counted.order_by("part").to_pandas()
        found["rest"] = found["customers"] - found["declining"] - found["lost"]
        counts = found[["customers", "declining", "lost", "rest"]].to_numpy()
        if len(found) and not ((counts > 0) & (counts < k)).any():
            break
    else:
        raise tables.DataError(
            f"Too few customers of shop '{base.shop.id}' are declining, or became lost since "
            f"{base.since}, to tell of them by value: each group needs {k} or nobody."
        )
    found["group"] = [names[part] for part in found["part"]]
    found["share"] = found["declining"] / found["customers"]
    if ((2 * found["largest"] >= found["at_stake"]) & (found["declining"] > 0)).any():
        found["at_stake"] = math.nan
    top = found.iloc[0]
    of = f"the {n.number(top.customers)} customers who spend most ({top.group})"
    spent = f", who spent {n.money(top.at_stake, 0)} in their last year" if top.declining else ""
    verdict = f"Of {of}, {n.number(top.declining)} are slipping away now{spent}."
    shown = found[["group", "customers", "declining", "share", "at_stake", "lost"]]
    shown = shown.rename(columns={"at_stake": "at stake", "lost": "became lost"})
    return Table("Customers who slip away, by what they spend", shown, verdict, n,
                 ("at stake",), ("share",), EARLY_NOTE)  # fmt: skip


EARLY_NOTE = (
    "Value is what a customer spent in the 365 days up to the last purchase. At stake is that of "
    "the declining: a year's spend that is lost if all of them go."
)

# Where fifths by recency, and by frequency and money together, meet; the first that holds.
RFM = (
    ("champions", 4, 8, "bought lately, often and much"),
    ("promising", 4, 5, "bought lately, neither little nor most"),
    ("fresh", 4, 2, "bought lately, seldom and little"),
    ("loyal", 3, 8, "often and much, not quite lately"),
    ("need attention", 3, 2, "the middle: not lately, not most"),
    ("at risk", 1, 8, "often and much, but long ago"),
    ("hibernating", 1, 2, "long ago, and not much"),
)


def rfm(base: Base) -> Table:
    """Sort all customers by recency, frequency and monetary value.

    Returns
    -------
    Table, one row per segment: segment; meaning; customers; share of them; value, and its share

    Raises
    ------
    DataError if fewer than `privacy_k` customers are lost or active: the sum would give them away

    Notes
    -----
    Hughes (1994), Strategic Database Marketing. Each score is 1 plus the whole fifths of the
    customers who do strictly worse, so that equals score the same in whatever order they come:
    R by days since the last purchase, F by days with a purchase, M by net spend, both in the whole
    log. The segments are cut by R and by F + M.
    """
    import ibis

    rows, k, n = base.rows, base.k, base.shop.numbers
    _refuse_few_lost(base)
    scored = rows.select(
        "value",
        *(
            (5 * ibis.rank().over(order_by=by) // rows.count().over() + 1).name(name)
            for name, by in (
                ("r", rows.silent.desc()), ("f", rows.purchases.asc()), ("m", rows.total.asc()),
            )
        ),
    )  # fmt: skip
    r, both = scored.r, scored.f + scored.m
    named = ibis.cases(*(((r >= a) & (both >= b), name) for name, a, b, _ in RFM))
    counted = scored.group_by(segment=named).aggregate(
        customers=scored.count(), value=scored.value.sum(), largest=scored.value.max()
    )
    order = {name: place for place, (name, *_) in enumerate(RFM)}
    found = counted.to_pandas().sort_values("segment", key=lambda names: names.map(order))
    found = results.merge_small_cells(
        found, label="segment", customers="customers", k=k, largest={"value": "largest"}
    )
    if found.empty:
        raise tables.DataError(f"Fewer than {k} customers: too few for segments.")
    found["share"] = found["customers"] / found["customers"].sum()
    found["share of value"] = found["value"] / found["value"].sum(skipna=False)
    found["meaning"] = found["segment"].map({name: text for name, *_, text in RFM}).fillna("")
    best = found.sort_values(["share of value", "segment"], ascending=[False, True]).iloc[0]
    verdict = (
        f"{n.percent(best['share'], 0)} of the customers, the {best['segment']}, bring "
        f"{n.percent(best['share of value'], 0)} of the spend."
        if best["share of value"] == best["share of value"]
        else "One customer has so much of a segment's spend that it cannot be shown."
    )
    columns = ["segment", "meaning", "customers", "share", "value", "share of value"]
    return Table("Customers by recency, frequency and spend", found[columns], verdict, n,
                 ("value",), ("share", "share of value"))  # fmt: skip


def _refuse_few_lost(base: Base) -> None:
    """Raise where the sum of all customers would tell the few who are lost, or who are not."""
    rows = base.rows.aggregate(
        lost=base.rows.count(where=base.rows.stage == "lost"), customers=base.rows.count()
    )
    [found] = rows.to_pyarrow().to_pylist()
    if any(results.few(one, base.k) for one in (found["lost"], found["customers"] - found["lost"])):
        raise tables.DataError(
            f"Fewer than {base.k} customers of shop '{base.shop.id}' are lost, or are not: a table "
            "of all customers would give them away."
        )
