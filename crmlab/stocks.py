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


def month_before(as_of: str | dt.date) -> dt.date:
    """Return the same day of the month before; of a month's last day, the last day too.

    So the changes of whole months are those of the cohorts of these months.

    >>> str(month_before("2025-12-31")), str(month_before("2025-03-30"))
    ('2025-11-30', '2025-02-28')
    """
    day = tables.day(as_of)
    last = day.replace(day=1) - dt.timedelta(1)
    ends = (day + dt.timedelta(1)).month != day.month
    return last if ends else last.replace(day=min(day.day, last.day))


@dataclass(frozen=True)
class LeftOut:
    """A part that cannot be made, and why; it is false, so that a notebook can ask."""

    why: str

    @property
    def verdict(self) -> str:
        """Nothing: what is not known adds nothing to a summary."""
        return ""

    caution = headline = verdict

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
    customers: active before, the steps, active now; active is who is not lost. Where too few moved,
    there is no bridge, and `rows` have stage and now alone. `active` is their number now.
    """

    bridge: pd.DataFrame | None = None
    active: int = 0
    before: str = ""
    now: str = ""

    @property
    def kpis(self) -> list[results.Kpi]:
        """The tiles: what can be told of those active, new and declining, and of the lost."""
        stock = self.rows.set_index("stage")["now"]
        lost = stock["lost"] / (stock["lost"] + self.active)
        found = [
            results.Kpi("Active customers", self.active, "count", "up", "not lost"),
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
    steps = flows.bridge.rename(columns={"customers": "number"}).set_index("what")["number"]
    was, now = int(steps["before"]), int(steps["now"])
    if now < k:
        raise tables.DataError(f"Fewer than {k} customers of shop '{shop.id}' are active.")
    before, today = n.day(flows.start), n.day(flows.end)
    if too_few(flows.moves, k):
        # Any figure of the earlier day, beside the same of today, would tell how many moved.
        rows["before"] = 0.0
        lost = rows["stage"] == "lost"
        rows.loc[lost & (rows["now"] < k), "now"] = math.nan
        rows = _stages_together(rows, k)[["stage", "now"]]
        verdict = (
            f"{n.number(now)} customers were active on {today}. What changed since "
            f"{before} is not told: too few came, went or came back."
        )
        return Stock(
            f"Customers by stage, {today}", rows, verdict, n, active=now, before=before, now=today
        )
    told = ", ".join(f"{n.number(steps[what])} {what}" for what in steps.index[1:-1])
    grown = f" ({n.percent(now / was - 1, signed=True)})" if was else ""
    verdict = (
        f"{n.number(now)} customers were active on {today}, {n.number(abs(now - was))} "
        f"{'more' if now >= was else 'fewer'}{grown} than on {before}: {told}."
    )
    return Stock(
        title=f"Customers by stage, {before} and {today}",
        rows=_stages_together(rows, k),
        verdict=verdict,
        numbers=n,
        signed=("change",),
        bridge=flows.bridge,
        active=now,
        before=before,
        now=today,
    )


def too_few(moves: pd.DataFrame, k: int) -> bool:
    """Whether some, but fewer than `k`, came, came back, went or stayed away between two days.

    Parameters
    ----------
    moves : DataFrame: before, a stage or none or "not yet a customer"; now; customers
    """
    new = moves["before"].isna() | (moves["before"] == customers.NOT_YET)
    was, lost = moves["before"] == "lost", moves["now"] == "lost"
    groups = (new & ~lost, new & lost, was & ~lost, was & lost, ~new & ~was & lost)
    return any(results.few(moves.loc[group, "customers"].sum(), k) for group in groups)


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


def was_lost(shop: Shop, *, as_of: str | dt.date, days: int = YEAR) -> customers.LostCheck:
    """Look back at those called lost, as `customers.lost_check`, where they are enough to tell.

    Where the log is shorter, half of it is looked back. Raises `DataError` if they are too few.
    """
    k, first = shop.policy.privacy_k, shop.check("transactions").first
    room = (tables.day(as_of) - first).days // 2 if first else days
    check = customers.lost_check(shop, as_of=as_of, days=min(days, max(1, room)))
    stayed = check.lost - check.came_back
    if check.lost < k or any(results.few(count, k) for count in (check.came_back, stayed)):
        raise tables.DataError(f"Too few customers were lost on {check.as_of} to look back at.")
    return check
