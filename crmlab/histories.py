"""What a purchase history means: by frequency and silence, and one customer's path."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crmlab import customers, results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.forecasts import ClvModel
    from crmlab.sources import Shop

# The sides of a matrix, as far as the shop's customers go; eight of each at most.
OFTEN = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500)
SILENT = (0, 30, 60, 90, 180, 270, 365, 545, 730, 1095)
STEPS = 8
POINTS = 200  # of a path, at most


@dataclass(frozen=True, eq=False)
class Matrix:
    """What the model expects of customers by number of purchases and days of silence.

    `cells`: frequency, repeat purchases; silent_days, since the last one; p_purchase, the chance
    of a purchase within `horizon_days`; expected_purchases in them. All were first seen `T` days
    ago. Nothing here was counted: a cell is a formula's answer, not a group of customers.
    """

    cells: pd.DataFrame
    T: int
    horizon_days: int
    numbers: results.Numbers

    def to_frame(self) -> pd.DataFrame:
        """Return one row per number of purchases and days of silence."""
        return self.cells


def matrix(
    model: ClvModel, summary: ir.Table, *, horizon_days: int, numbers: results.Numbers
) -> Matrix:
    """Work out what a history means, for customers as old as the oldest tenth.

    Parameters
    ----------
    summary : the one that the model was fitted on; its 90 % points give the sides
    """
    import numpy as np
    import pandas as pd

    repeat = (summary.frequency > 0).ifelse(summary.frequency, None)
    sides = summary.aggregate(
        T=summary["T"].quantile(0.9), usual=repeat.quantile(0.95), most=repeat.max()
    )
    T, usual, most = (int(one) for one in sides.to_pyarrow().to_pylist()[0].values())
    most = min(most, max(usual, STEPS))
    frequency = np.array([n for n in OFTEN if n <= most][-STEPS:], float)
    silent = np.array([days for days in SILENT if days < T][:STEPS], float)
    x, days = (side.ravel() for side in np.meshgrid(frequency, silent))
    possible = x <= T - days  # one purchase a day
    x, days = x[possible], days[possible]
    history = x, model.units(T - days), np.full(len(x), model.units(float(T)))
    t, formulas, p = model.units(horizon_days), model.formulas, model.parameters
    cells = pd.DataFrame(
        {
            "frequency": x.astype(int),
            "silent_days": days.astype(int),
            "p_purchase": formulas.p_purchase(p, *history, t),
            "expected_purchases": formulas.conditional_purchases(p, *history, t),
        }
    )
    return Matrix(cells, T, horizon_days, numbers)


@dataclass(frozen=True, eq=False)
class Path:
    """One customer's purchases, and the chance of another within `horizon_days`, day by day.

    `days`: day, p_purchase and p_alive at its end; `purchases`: the days of purchase. It names a
    customer's history, so it is for an analyst's notebook, never for a page.
    """

    days: pd.DataFrame
    purchases: list[dt.date]
    horizon_days: int
    numbers: results.Numbers

    def to_frame(self) -> pd.DataFrame:
        """Return one row per day."""
        return self.days


def path(
    shop: Shop,
    model: ClvModel,
    customer_id: str,
    *,
    as_of: str | dt.date,
    horizon_days: int = 365,
) -> Path:
    """Follow one customer: what the model would have said at the end of each day up to `as_of`.

    With the parameters of today, so that only the history moves it; every few days in a long one.

    Raises
    ------
    DataError if the customer has bought nothing by `as_of`; UsageError where a page is being made
    """
    import numpy as np
    import pandas as pd

    if results.on_page():
        raise tables.UsageError("The history of one customer is for a notebook, never for a page.")
    last_day = tables.day(as_of)
    days = customers.purchase_days(shop, as_of=last_day)
    own = days.filter(days.customer_id == str(customer_id)).order_by("purchased_on")
    bought = [tables.day(day) for day in own.purchased_on.to_pyarrow().to_pylist()]
    if not bought:
        raise tables.DataError(
            f"Shop '{shop.id}' has no purchase of a customer {customer_id!r} up to {last_day}."
        )
    since = np.array([(day - bought[0]).days for day in bought])
    in_all = (last_day - bought[0]).days
    ages = np.unique([*since, *np.arange(0, in_all, max(1, in_all // POINTS)), in_all])
    x = np.searchsorted(since, ages, side="right") - 1
    history = x.astype(float), model.units(since[x].astype(float)), model.units(ages.astype(float))
    chance = model.formulas.p_purchase(model.parameters, *history, model.units(horizon_days))
    frame = pd.DataFrame(
        {
            "day": [bought[0] + dt.timedelta(int(age)) for age in ages],
            "p_purchase": chance,
            "p_alive": model.formulas.p_alive(model.parameters, *history),
        }
    )
    return Path(frame, bought, horizon_days, shop.numbers)
