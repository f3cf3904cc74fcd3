"""What Huff's model says of a store that closes or opens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import places, results, tables
from crmlab.choices import Choices, kilometres
from crmlab.coordinates import FAR_KM
from crmlab.exponents import shares

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from crmlab.huff import Huff

    Array = np.ndarray[Any, np.dtype[Any]]

FOR_INTERVALS = 25_000  # customers x stores of the lot on which the interval is found
DRAWS = 400  # worlds that the visits allow, for the interval
NEW = "new store"
COMPETITORS = (
    "Competitors are taken to draw people by the same law as our stores; our receipts cannot show "
    "whether they do."
)
ONLY_OURS = "This moves sales between our shops; it cannot say new demand."
FROM_OTHERS = (
    "What it would draw from competitors, or from people who buy nowhere today, it cannot say: "
    "they are in no receipt of ours."
)


@dataclass(frozen=True, eq=False)
class WhatIf(results.Answer):
    """What moves between the shop's own stores, by visits of customers whose home is known.

    `rows`, one per store: store, its name; visits before, as they were, and after; difference,
    with low and high, 95 % as `notes` say; share_of_moved, which part of what moves in all comes
    here or goes from here; and spend_before, spend_after, spend_difference,
    spend_low, spend_high in shop currency, missing where one customer brings half or more of a
    store's. `elsewhere` are the visits lost to competitors, with low and high; none where no
    competitor is known, or a store opens.
    """

    title: str
    rows: pd.DataFrame
    verdict: str
    notes: tuple[str, ...]
    elsewhere: tuple[float, float, float] | None
    numbers: results.Numbers

    @property
    def what(self) -> str:
        """What a chart of it counts."""
        return "visits"

    def _repr_html_(self) -> str:
        n = self.numbers

        def between(low: str, high: str, how: Callable[[float], str]) -> list[str]:
            pairs = zip(self.rows[low], self.rows[high], strict=True)
            return [f"{how(a)} to {how(b)}" if a == a else results.NOTHING for a, b in pairs]

        names = ["store", "before", "after", "difference", "of visits", "share_of_moved",
                 "spend_difference", "of spend"]  # fmt: skip
        shown = self.rows.assign(
            **{
                "of visits": between("low", "high", n.number),
                "of spend": between("spend_low", "spend_high", n.short_money),
            }
        )[names]
        if self.rows["spend_before"].isna().all():
            shown = shown.drop(columns=["spend_difference", "of spend"])
        table = results.html_table(
            shown,
            title=self.title,
            formats={
                "before": n.number, "after": n.number, "difference": n.number, "of visits": str,
                "share_of_moved": n.percent, "spend_difference": n.short_money, "of spend": str,
            },
            headings={
                "difference": "change",
                "of visits": "95%", "share_of_moved": "of what moves",
                "spend_difference": "change of spend", "of spend": "95% of it",
            },
        )  # fmt: skip
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<p>{escape(self.verdict)}</p>{table}{notes}"


def without(model: Huff, store_id: str, *, seed: int = 1) -> WhatIf:
    """Tell where the visits of a store go that closes, by each customer's other choices.

    By the model's independence of other stores, a visit to the closed store goes to another with
    the probability that this had among those that stay; all other visits stay where they are.

    Raises
    ------
    UsageError for a store that the model does not know; DataError where the model does not hold
    """
    import numpy as np

    _check(model, holds=model.beats)
    found, ids = model.choices, [*model.choices.stores["store_id"]]
    if store_id not in ids:
        raise tables.UsageError(
            f"A store {store_id!r} cannot close here: the model knows {', '.join(ids)}, own stores "
            f"at which {model.homes.k} customers or more with a place bought."
            + tables.did_you_mean(str(store_id), ids)
        )
    closed = ids.index(store_id)
    rivals, notes = _competitors(model)
    rest = _beside(found.drop(closed), rivals)
    stay = found.number - 1

    def moved(some: slice, exponents: Array) -> Array:
        totals = _to_others(found.some(some), rest.some(some), closed, exponents)
        # What goes to competitors stands together, in the last column.
        return np.column_stack([totals[:, :stay], totals[:, stay:].sum(axis=1)])

    point, low, high = _with_interval(model, moved, together=False, seed=seed)
    name = str(found.stores["name"].iloc[closed])
    change = [np.insert(one[:, :stay], closed, -_before(found)[:, closed], axis=1)
              for one in (point, low, high)]  # fmt: skip
    gone = _before(found)[0, closed]
    rows = _rows(model, found.stores["name"], *change, moved=gone)
    n = model.numbers
    elsewhere = None
    if len(rivals):
        elsewhere = (float(point[0, stay]), float(low[0, stay]), float(high[0, stay]))
    gains = rows.drop(index=closed).sort_values("difference", ascending=False, kind="stable")
    first = gains.iloc[0]
    verdict = (
        f"If “{name}” closed, the largest part of its {n.number(gone)} visits in "
        f"{model.homes.days} days would go to “{first['store']}”: "
        f"{n.percent(first['share_of_moved'], 0)} ({n.percent(first['low'] / gone, 0)} to "
        f"{n.percent(first['high'] / gone, 0)})."
    )
    if elsewhere:
        lost = [n.percent(one / gone, 0) for one in elsewhere]
        verdict = (
            f"If “{name}” closed, {lost[0]} ({lost[1]} to {lost[2]}) of its {n.number(gone)} "
            f"visits in {model.homes.days} days would go to competitors, and "
            f"{n.percent(first['share_of_moved'], 0)} to “{first['store']}”."
        )
    else:
        notes = [
            *notes,
            "No competitor is in this model: all visits are taken to stay with us, and what would "
            "be lost to others is not in these figures.",
        ]
    return WhatIf(
        f"If “{name}” closed", rows, verdict, _told(model, notes), elsewhere, model.numbers
    )


def with_store(
    model: Huff, latitude: float, longitude: float, area_m2: float | None = None, *, seed: int = 1
) -> WhatIf:
    """Tell which visits a new store would take from the shop's own stores.

    Whatever was chosen before, the new store takes a visit with the probability that it has among
    all stores that are known, competitors too (the model's independence of other stores).

    Parameters
    ----------
    latitude, longitude : float, degrees
    area_m2 : float, the new store's size; needed where the others' sizes are known

    Raises
    ------
    UsageError for a place or size out of range; DataError where the model does not hold, also for a
    store that it did not know, or was fitted on travel times
    """
    import numpy as np
    import pandas as pd

    tables.check_range("latitude", latitude, -90, 90)
    tables.check_range("longitude", longitude, -180, 180)
    found = model.choices
    if found.sized:
        if area_m2 is None:
            raise tables.UsageError("area_m2, the size of the new store in square metres, is none.")
        tables.check_range("area_m2", area_m2, 1, 1e7)
    if found.unit != "km":
        raise tables.DataError(
            "This model was fitted on travel times, and how long customers would travel to a new "
            "store is not known. Fit it on distances for that."
        )
    _check(model, holds=model.beats_for_new_stores)
    stores = model.homes.own[["latitude", "longitude"]].to_numpy()
    far = places.kilometres_between(np.array([[latitude, longitude]]), stores).min()
    if far > FAR_KM:
        raise tables.UsageError(
            f"The new store at latitude {latitude:g}, longitude {longitude:g} lies "
            f"{model.numbers.km(round(far))} km from the next of ours: are both swapped?"
        )
    rivals, notes = _competitors(model)
    new = pd.DataFrame(
        {"latitude": [latitude], "longitude": [longitude],
         "area_m2": [area_m2 if found.sized else 1.0]}
    )  # fmt: skip
    every = _beside(_beside(found, rivals), new)

    def moved(some: slice, exponents: Array) -> Array:
        totals = _to_new(found.some(some), every.some(some), exponents)
        # What the new store takes in all stands last, with an interval of its own.
        return np.column_stack([-totals, totals.sum(axis=1)])

    point, low, high = _with_interval(model, moved, together=True, seed=seed)
    taken = point[0, -1]
    names = pd.concat([found.stores["name"], pd.Series([NEW])], ignore_index=True)
    rows = _rows(model, names, point, low, high, moved=taken)
    n = model.numbers
    most = rows.iloc[:-1].sort_values("difference", kind="stable").iloc[0]
    verdict = (
        f"The new store would take {n.number(taken)} visits in {model.homes.days} days "
        f"({n.number(low[0, -1])} to {n.number(high[0, -1])}) from our own stores, "
        f"{n.percent(most['share_of_moved'], 0)} of them from “{most['store']}”, which would lose "
        f"{n.percent(-most['difference'] / most['before'], 0)} of its visits. "
        + (FROM_OTHERS if len(rivals) else ONLY_OURS)
    )
    return WhatIf("If a new store opened", rows, verdict, _told(model, notes), None, model.numbers)


def opened(model: Huff, said: str, *, seed: int = 1) -> WhatIf:
    """Read "latitude, longitude, square metres" of a new store, and tell as `with_store` does."""
    try:
        given = [float(part) for part in said.split(",")]
    except (AttributeError, ValueError):
        given = []
    if len(given) not in (2, 3):
        raise tables.UsageError(
            f"The new store is {said!r}; write its latitude, longitude and square metres, "
            "such as 48.62, 23.14, 800."
        )
    return with_store(model, *given, seed=seed)


def _told(model: Huff, notes: list[str]) -> tuple[str, ...]:
    """Say what the interval holds, and what else is to be known."""
    error, interval = model.new_store_error, "The 95 % intervals hold what is not known of the "
    if error == error:
        interval += (
            "exponents, and that each store may draw more or less than its size and place say: of "
            "stores that it did not know, the model foretold the visits with an error of "
            f"{model.numbers.percent(error)} on average."
        )
    else:
        interval += "exponents, and nothing else: of two stores none can be left out for a proof."
    return (interval, *notes, *model.notes)


def _check(model: Huff, *, holds: bool) -> None:
    if not model.beats:
        raise tables.DataError(model.verdict)
    if not holds:
        raise tables.DataError(
            "Huff's model foretells held-out customers, but a store that it did not know no better "
            "than a simpler rule does: no what-if of a new store is made of it."
        )


def _competitors(model: Huff) -> tuple[pd.DataFrame, list[str]]:
    """Return the competitors of whom enough is known, and what that means."""
    others = model.homes.stores[~model.homes.stores["own"]]
    if model.choices.unit != "km":
        return others.iloc[:0], []
    sized = model.choices.sized
    others = others[others["area_m2"] > 0] if sized else others.assign(area_m2=1.0)
    return others.reset_index(drop=True), [COMPETITORS] if len(others) else []


def _beside(found: Choices, others: pd.DataFrame) -> Choices:
    """Return the choices with the distance and size of more stores, which nobody has chosen."""
    import numpy as np

    places = others[["latitude", "longitude"]].itertuples(index=False)
    far = [kilometres(found.homes, *one).astype(np.float32)[:, None] for one in places]
    area = np.concatenate([found.area, others["area_m2"].to_numpy(dtype=float)])
    return replace(found, far=np.concatenate([found.far, *far], axis=1), area=area)


def _to_others(was: Choices, rest: Choices, closed: int, exponents: Array) -> Array:
    """Return visits and spend (rows) of a closed store by the store (column) they go to."""
    import numpy as np

    totals = np.zeros((2, rest.number))
    for part, rows in rest.parts():
        chance = shares(part, exponents)
        for nth, what in enumerate((was.visits, was.spend)):
            totals[nth] += what[rows, closed].astype(float) @ chance
    return totals


def _to_new(was: Choices, every: Choices, exponents: Array) -> Array:
    """Return visits and spend (rows) that go to the last store by the one (column) they leave."""
    import numpy as np

    totals = np.zeros((2, was.number))
    for part, rows in every.parts():
        chance = shares(part, exponents)[:, -1]
        for nth, what in enumerate((was.visits, was.spend)):
            totals[nth] += chance @ what[rows].astype(float)
    return totals


def _before(found: Choices) -> Array:
    """Return visits and spend (rows) of each store (columns), as they were."""
    import numpy as np

    return np.stack([what.sum(axis=0, dtype=float) for what in (found.visits, found.spend)])


def _with_interval(
    model: Huff, moved: Callable[[slice, Array], Array], *, together: bool, seed: int
) -> tuple[Array, Array, Array]:
    """Return what moves, and its 2.5 and 97.5 % quantiles.

    They hold what the visits leave open of the exponents, and that a store draws more or less than
    its size and place say, by as much as those did that were left out: a new store, so that all
    moves `together`, or each that gains from one that closes, while as much moves in all.
    They come from some of the customers where there are many: how much the answer changes with the
    exponents does not hang on all of them.
    """
    import numpy as np

    rng, error = np.random.default_rng(tables.check_seed(seed)), model.new_store_error
    found = model.choices
    few = slice(max(2_000, FOR_INTERVALS // found.number))
    point, of_few = moved(slice(None), model.exponents), moved(few, model.exponents)
    scale = np.divide(point, of_few, out=np.ones_like(point), where=of_few != 0)
    exponents = rng.multivariate_normal(model.exponents, model.covariance, DRAWS)
    draws = np.stack([scale * moved(few, one) for one in exponents])
    # Of a normal error the standard deviation is so many times the mean without its sign.
    spread = (math.pi / 2) ** 0.5 * error if error == error else 0.0
    # It is known from so few stores only: Student's t, in logarithms.
    drawn = rng.standard_t(found.number - 1, (DRAWS, 1, 1 if together else point.shape[1]))
    draws *= np.exp(spread * drawn)
    if not together:
        draws *= point.sum(axis=1)[:, None] / draws.sum(axis=2, keepdims=True)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return point, low, high


def _rows(
    model: Huff, names: pd.Series[str], change: Array, low: Array, high: Array, *, moved: float
) -> pd.DataFrame:
    """Lay out what moves; a new store comes after those that are there."""
    import numpy as np
    import pandas as pd

    found, k = model.choices, model.homes.k
    more = len(names) - found.number
    before = np.pad(_before(found), ((0, 0), (0, more)))
    rows: dict[str, Any] = {"store": list(names)}
    for nth, name in enumerate(("", "spend_")):
        rows |= {
            f"{name}before": before[nth], f"{name}after": before[nth] + change[nth],
            f"{name}difference": change[nth], f"{name}low": low[nth], f"{name}high": high[nth],
        }  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.insert(6, "share_of_moved", np.abs(change[0]) / moved if moved else math.nan)
    most = np.abs(found.spend).max(axis=0)
    if k > 1 and (most * 2 >= np.abs(before[1, : found.number])).any():
        # Of one store alone it could be found again from the rest.
        frame[[name for name in frame.columns if name.startswith("spend_")]] = math.nan
    return frame
