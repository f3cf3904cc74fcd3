"""The stock of customers by stage as a page may tell it, and how a part of a page is one table."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import customers, results, tables

if TYPE_CHECKING:
    import pandas as pd

    from crmlab.sources import Shop

YEAR = 365


@dataclass(frozen=True)
class LeftOut:
    """A part that cannot be made, and why; it is false, so that a notebook can ask."""

    why: str

    @property
    def verdict(self) -> str:
        """Nothing: what is not known adds nothing to a summary."""
        return ""

    def __bool__(self) -> bool:
        """Tell that there is nothing."""
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

    `money`, `shares` and `signed` name the columns that print so; `note` says how they are defined.
    """

    title: str
    rows: pd.DataFrame
    verdict: str
    numbers: results.Numbers
    money: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    signed: tuple[str, ...] = ()
    note: str = ""

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.rows.copy()

    def _repr_html_(self) -> str:
        n = self.numbers
        kinds: dict[str, Callable[[Any], str]] = {
            name: n.number for name in self.rows.select_dtypes("number").columns
        }
        kinds |= {name: n.percent for name in self.shares}
        kinds |= {name: partial(n.money, digits=0) for name in self.money}
        kinds |= {name: lambda by: ("+" if by > 0 else "") + n.number(by) for name in self.signed}
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
            results.Kpi("Active customers", self.active[1], "count", "up", "not lost"),
            results.Kpi("New", stock.get("new", math.nan), "count", "up", "one purchase so far"),
            results.Kpi("Declining", stock.get("declining", math.nan), "count", "down",
                        "silent for longer than usual"),
            results.Kpi("Lost", lost, "share", "down", "of all who ever bought"),
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
    days = n.day(flows.start), n.day(flows.end)
    return Stock(title, rows, verdict, n, signed=("change",), bridge=bridge, active=(was, now),
                 before=days[0], now=days[1])  # fmt: skip


def _stages_together(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    """Put active stages of too few customers together: their sum can be found from the bridge."""
    import pandas as pd

    active = rows[(rows["stage"] != "lost") & (rows[["before", "now"]] > 0).any(axis=1)]
    few = ((active[["before", "now"]] > 0) & (active[["before", "now"]] < k)).any(axis=1)
    # The declining join last: other tables tell their number alone.
    order = active.assign(large=~few, last=active["stage"] == "declining")
    order = order.sort_values(["large", "last", "now", "before"], kind="stable").index
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
