"""Huff's model: a store draws people by its size and against its distance, and whether that holds.

Huff (1963), Land Economics 39, 81-90: P(store) = size^a * distance^b / the same sum over all
stores. Its exponents are those of a conditional logit on the logarithms (McFadden 1974).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import choices, results, tables
from crmlab.choices import Choices
from crmlab.exponents import REPEATED, Exponents, climb, find, probabilities, shares

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np
    import pandas as pd

    from crmlab.homes import Homes

    Array = np.ndarray[Any, np.dtype[Any]]

__all__ = ["Huff", "fit", "of_choices", "probabilities"]

HUFF, AREA, NEAREST, EQUAL = "Huff", "area only", "nearest store", "equal"
HELD_OUT = 0.3  # share of customers on whom the exponents are proved


@dataclass(frozen=True, eq=False)
class Huff(results.Answer):
    """Huff's model of the shop's own stores, and how it did on customers it had not seen.

    `rows` has the exponents of size and distance: exponent; value; standard_error, the larger of
    from_customers, which takes each customer's visits as one lot, and from_stores, a jackknife that
    leaves out each store once; larger, which of both that is, or "fixed"; low and high, 95 % by the
    one that reaches farther (`exponents.Exponents`).
    `proof` has one row per method: log_score, the mean of the chosen store's log probability over
    the held-out customers' visits; right, the share of these visits at the store that the method
    holds likeliest; misplaced, the share of visits that it expects at another store than they went
    to; gain, Huff's log_score less the method's, with low and high, 95 %; new_store_error, the mean
    error of a store's visits, as a share of them, when its own were not known to the fit.
    """

    rows: pd.DataFrame
    proof: pd.DataFrame
    covariance: Array
    choices: Choices
    homes: Homes = field(repr=False)
    notes: tuple[str, ...]

    @property
    def exponents(self) -> Array:
        """The exponents of size and of distance."""
        values: Array = self.rows["value"].to_numpy(dtype=float)
        return values

    @property
    def new_store_error(self) -> float:
        """The mean error for a store that the fit did not know, a share of 1; nan of two stores."""
        return float(self.proof["new_store_error"].iloc[0])

    @property
    def numbers(self) -> results.Numbers:
        """How figures print."""
        return self.homes.numbers

    @property
    def beats(self) -> bool:
        """Whether it foretells held-out customers better than every simpler rule, beyond chance."""
        others = self.proof[self.proof["method"] != HUFF]
        return bool((others["low"] > 0).all()) and self.rows.loc[1, "high"] < 0

    @property
    def beats_for_new_stores(self) -> bool:
        """Whether it also foretells a store left out better than these; true of two stores."""
        errors = self.proof.set_index("method")["new_store_error"]
        return self.beats and not (errors.drop(HUFF) <= errors[HUFF]).any()

    @property
    def verdict(self) -> str:
        """Whether size and distance say where customers buy."""
        n, proof = self.numbers, self.proof.set_index("method")
        size, distance = (n.number(value, 2) for value in self.exponents)
        if not self.beats:
            if self.rows.loc[1, "high"] >= 0:
                return (
                    "Huff's model does not hold here: customers do not surely prefer the nearer "
                    f"store (exponent of distance {distance}). No what-if is made of it."
                )
            beaten = proof.drop(index=HUFF).query("low <= 0").index
            return (
                "Huff's model does not hold here: for customers it had not seen it foretold no "
                f"better than “{'” and “'.join(beaten)}”. No what-if is made of it."
            )
        right, notes = proof["right"], ""
        if right[HUFF] <= right[NEAREST]:
            notes = " It knows better how sure each visit is, not which store is likeliest."
        sized = f"Size (to the power of {size}) and distance ({distance}) say"
        if not self.choices.sized:
            sized = f"Distance (to the power of {distance}) says"
        size_alone = f", {n.percent(right[AREA], 0)} by size alone" if self.choices.sized else ""
        return (
            f"{sized} where customers buy: "
            f"{n.percent(right[HUFF], 0)} of the visits of customers that the model had not seen "
            f"went to the store it holds likeliest ({n.percent(right[NEAREST], 0)} to the nearest"
            f"{size_alone}).{notes}"
        )

    def _repr_html_(self) -> str:
        n = self.numbers

        def two(value: float) -> str:
            return n.number(value, 2)

        def three(value: float) -> str:
            return n.number(value, 3)

        shown = self.rows.assign(
            between=[f"{two(a)} to {two(b)}" if a == a else results.NOTHING
                     for a, b in zip(self.rows["low"], self.rows["high"], strict=True)]
        )  # fmt: skip
        exponents = results.html_table(
            shown[["exponent", "value", "between", "standard_error", "larger"]],
            title="Exponents of Huff's model",
            formats={"value": two, "between": str, "standard_error": three},
            headings={"between": "95%", "standard_error": "standard error",
                      "larger": "standard error from"},
        )  # fmt: skip
        gains = [
            f"{three(row.gain)} ({three(row.low)} to {three(row.high)})"
            if row.method != HUFF else results.NOTHING
            for row in self.proof.itertuples()
        ]  # fmt: skip
        proof = results.html_table(
            self.proof.assign(gains=gains)[
                ["method", "log_score", "gains", "right", "misplaced", "new_store_error"]
            ],
            title="On customers that the model had not seen",
            formats={"log_score": three, "gains": str, "right": n.percent,
                     "misplaced": n.percent, "new_store_error": n.percent},
            headings={"log_score": "log score", "gains": "Huff's gain (95%)",
                      "right": "visits foretold", "misplaced": "misplaced",
                      "new_store_error": "error for a store left out"},
        )  # fmt: skip
        how = (
            "The 95 % interval is the wider of two: by customers, and by leaving out each store "
            "once (with Student's t). The log score is better the nearer it is to 0; misplaced are "
            "visits expected at another store than they went to."
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in (how, *self.notes))
        return f"<p>{escape(self.verdict)}</p>{exponents}{proof}{notes}"


def fit(
    homes: Homes, *, travel_times: pd.DataFrame | ir.Table | None = None, seed: int = 1
) -> Huff:
    """Fit the exponents on the visits of customers to the shop's own stores, and prove them.

    With fewer than eight stores the exponent of size is fixed at 1, unless there are three and its
    95 % interval reaches at most .5 to each side, so that "in proportion to size" and "size does
    not matter" can be told apart.

    Parameters
    ----------
    homes : of `homes.of_customers`; the visits of its `days`
    travel_times : table with customer_id, store_id, minutes, in place of the distance
    seed : draws who is held out

    Raises
    ------
    DataError as `choices.of_customers` and `exponents.climb` do
    """
    found = choices.of_customers(homes, travel_times=travel_times, seed=seed)
    return of_choices(found, homes)


def of_choices(found: Choices, homes: Homes) -> Huff:
    """Do as `fit` does, of choices that are already read."""
    import numpy as np
    import pandas as pd

    few = found.some(slice(max(2_000, REPEATED // found.number)))
    exponents, notes = find(found, few), [*found.notes]
    fixed = ~np.isin(np.arange(2), exponents.free)
    if fixed[0] and found.sized:
        notes.append(f"The exponent of size is fixed at 1: {found.number} stores do not show it.")
    customers, stores = exponents.from_customers, exponents.from_stores
    if np.isnan(stores).any():
        notes.append(
            "How much the exponents hang on single stores cannot be said: without one of the "
            f"{found.number}, the others do not show them."
        )
    rows = pd.DataFrame(
        {
            "exponent": ["size", "distance" if found.unit == "km" else "minutes"],
            "value": exponents.best,
            "standard_error": np.fmax(customers, stores),
            "from_customers": customers,
            "from_stores": stores,
            "larger": np.where(stores > customers, "stores left out", "customers"),
        }
    )
    rows.loc[fixed, ["standard_error", "from_customers", "from_stores"]] = math.nan
    rows.loc[fixed, "larger"] = "fixed"
    reach = np.where(fixed, math.nan, exponents.reach)
    rows["low"], rows["high"] = rows["value"] - reach, rows["value"] + reach
    proof = _proof(found, exponents)
    proof["new_store_error"] = _new_store_errors(few, exponents.without, exponents.free)
    return Huff(rows, proof, exponents.covariance, found, homes, tuple(notes))


def _methods(
    found: Choices, exponents: Array, free: tuple[int, ...]
) -> dict[str, Callable[[Choices], Array]]:
    """Return how each method gives the probabilities, each having learnt from `found`."""
    import numpy as np

    size = np.array([1.0, 0.0])
    if 0 in free:
        with suppress(tables.DataError):
            size, _ = climb(found, (0,), size)
    nearest = found.visits[np.arange(found.customers), found.far.argmin(axis=1)].sum(dtype=float)
    there = min(max(nearest / found.visits.sum(dtype=float), 1e-3), 1 - 1e-3)

    def to_nearest(some: Choices) -> Array:
        chance = np.full(some.far.shape, (1 - there) / (some.number - 1))
        chance[np.arange(some.customers), some.far.argmin(axis=1)] = there
        return chance

    return {
        HUFF: lambda some: shares(some, exponents),
        AREA: lambda some: shares(some, size),
        NEAREST: to_nearest,
        EQUAL: lambda some: np.full(some.far.shape, 1 / some.number),
    }


def _proof(found: Choices, known: Exponents) -> pd.DataFrame:
    """Learn from some customers and foretell the visits of the others."""
    import numpy as np
    import pandas as pd

    held = max(1, round(HELD_OUT * found.customers))
    train, rest = found.some(slice(held, None)), found.some(slice(held))
    # Where the climb begins changes nothing but its length: there is one summit.
    exponents, _ = climb(train, known.free, known.best)
    methods = _methods(train, exponents, known.free)
    logs: dict[str, list[Array]] = {name: [] for name in methods}
    right, expected = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, 0.0)
    for part, _ in rest.parts():
        visits = part.visits.astype(float)
        number = visits.sum(axis=1)
        for name, method in methods.items():
            chance = method(part)
            logs[name].append((visits * np.log(np.maximum(chance, 1e-300))).sum(axis=1))
            # Where several are the likeliest, one of them is taken by lot.
            best = chance >= chance.max(axis=1, keepdims=True) * (1 - 1e-9)
            right[name] += float(((visits * best).sum(axis=1) / best.sum(axis=1)).sum())
            expected[name] = expected[name] + number @ chance
    actual = rest.visits.sum(axis=0, dtype=float)
    each, total = rest.visits.sum(axis=1, dtype=float), actual.sum()
    score = {name: np.concatenate(parts) for name, parts in logs.items()}
    rows = []
    for name in methods:
        less = score[HUFF] - score[name]
        gain = less.sum() / total
        error = math.sqrt(float(((less - gain * each) ** 2).sum())) / total
        rows.append(
            {
                "method": name, "log_score": score[name].sum() / total,
                "right": right[name] / total,
                "misplaced": float(np.abs(expected[name] - actual).sum()) / 2 / total,
                "gain": gain, "low": gain - 1.96 * error, "high": gain + 1.96 * error,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _new_store_errors(few: Choices, without: Array, free: tuple[int, ...]) -> list[float]:
    """Return the mean error of each method for a store whose visits it did not know."""
    import numpy as np

    if np.isnan(without).any():
        return [math.nan] * 4
    actual, each = few.visits.sum(axis=0, dtype=float), few.visits.sum(axis=1, dtype=float)
    wrong = np.zeros((few.number, 4))
    for store in range(few.number):
        methods = _methods(few.drop(store), without[store], free)
        for nth, method in enumerate(methods.values()):
            wrong[store, nth] = abs(each @ method(few)[:, store] - actual[store])
    return [float(one) for one in wrong.sum(axis=0) / actual.sum()]
