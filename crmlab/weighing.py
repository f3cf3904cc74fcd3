"""Customers who were chosen made comparable with others by weights, and what then differs."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from crmlab import effects, tables

if TYPE_CHECKING:
    from crmlab.models import Array

    Flags = np.ndarray[Any, np.dtype[np.bool_]]
    Places = np.ndarray[Any, np.dtype[np.int64]]
    Folds = list[tuple[Places, Places]]

MOST_WORDS = 20
# Austin (2009) calls a standardised difference above .1 one; it matters where the covariate
# has something to do with the outcome.
UNBALANCED, RELATED = 0.1, 0.1
# The fewer the customers, the more it matters how they fell into folds: the mean of several cuts.
FEW, CUTS = 20_000, 5
# The comparable are found when looking again drops no more than this share of those contacted.
DROPPED = 0.01
# One customer with a figure beyond all others, judged by what was learnt without them, gets a
# chance near 1 and would outweigh everybody.
ENDS = (0.005, 0.995)


class Term(NamedTuple):
    """One column of the regressions; `label` where the balance shows it."""

    covariate: str
    label: str
    figures: Array


class Lots(NamedTuple):
    """How the customers are cut into folds."""

    folds: int
    seed: int

    def of(self, contacted: Flags) -> Folds:
        """Return the rows to learn from and the rows to judge, once per fold and cut."""
        from sklearn.model_selection import RepeatedStratifiedKFold

        cut = RepeatedStratifiedKFold(
            n_splits=self.folds,
            n_repeats=CUTS if len(contacted) <= FEW else 1,
            random_state=self.seed,
        )
        return list(cut.split(contacted, contacted))


class Comparison(NamedTuple):
    """All customers, and which of them have counterparts in the other group."""

    contacted: Flags
    terms: list[Term]
    inside: Flags
    lots: Lots
    top: float

    @staticmethod
    def of(
        contacted: Flags, terms: list[Term], folds: int, seed: int,
        overlap: tuple[float, float], least: int,
    ) -> Comparison:  # fmt: skip
        """Find who is comparable, looking again until a group has fewer than `least` of them."""
        lots, inside = Lots(folds, seed), np.ones(len(contacted), bool)
        matrix, low = matrix_of(terms), overlap[0]
        while min(inside[contacted].sum(), inside[~contacted].sum()) >= least:
            group = contacted[inside]
            chance = chances(matrix[inside], group, lots.of(group))
            kept = (chance >= low) & (chance <= overlap[1])
            inside[inside] = kept
            # Where a rule decided, those near its border look alike only until they are looked at
            # alone. Those with low chances hardly weigh: dropping them once is enough.
            if low == 0 and (group & ~kept).sum() <= DROPPED * group.sum():
                break
            low = 0
        return Comparison(contacted, terms, inside, lots, overlap[1])

    def weigh(self, covariates: Sequence[str]) -> Weighed:
        """Learn the chances again, by these covariates, among the comparable."""
        kept = [term for term in self.terms if term.covariate in covariates]
        contacted, matrix = self.contacted[self.inside], matrix_of(kept)[self.inside]
        folds = self.lots.of(contacted)
        # One customer left alone must not stand for dozens of those contacted.
        chance = np.minimum(chances(matrix, contacted, folds), self.top)
        return Weighed(contacted, matrix, folds, chance, chance / (1 - chance))


class Weighed(NamedTuple):
    """The comparable customers with their chances of being contacted."""

    contacted: Flags
    matrix: Array
    folds: Folds
    chance: Array
    odds: Array

    def middle(self, values: Array) -> tuple[float, float]:
        """Return the mean of those contacted, and that of the others made like them."""
        others = ~self.contacted
        return float(values[self.contacted].mean()), float(
            np.average(values[others], weights=self.odds[others])
        )

    def influence(self, values: Array) -> Array:
        """Return each customer's part in the error of the difference of the two means."""
        one, other = self.middle(values)
        others, share = ~self.contacted, self.contacted.mean()
        # The odds of those not contacted add up to about the number contacted, not exactly.
        scale = (self.odds * others).mean()
        return np.asarray(
            self.contacted * (values - one) / share - others * self.odds * (values - other) / scale
        )

    def correction(self, values: Array) -> Array:
        """Return what learning the chances adds: logistic regression, with its penalty."""
        _, other = self.middle(values)
        others, n = ~self.contacted, len(values)
        spread = self.matrix.std(axis=0)
        basis = (self.matrix - self.matrix.mean(axis=0)) / np.where(spread > 0, spread, 1)
        basis = np.column_stack([np.ones(n), basis])
        bend = basis.T @ (basis * (self.chance * (1 - self.chance))[:, None]) / n
        bend[np.diag_indices(len(bend))] += np.r_[1e-9, np.full(len(bend) - 1, 1 / n)]
        pull = basis.T @ (others * self.odds * (values - other)) / (others * self.odds).sum()
        return np.asarray(-(basis @ np.linalg.solve(bend, pull)) * (self.contacted - self.chance))

    def weighted(self, values: Array, confidence: float) -> effects.Effect:
        """Return the difference by inverse probability weighting."""
        one, other = self.middle(values)
        return _effect(one - other, self.influence(values) + self.correction(values), confidence)

    def doubly_robust(self, values: Array, confidence: float) -> effects.Effect:
        """Return the difference of what the outcome model leaves unexplained."""
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        expected = np.zeros(len(values))
        for learn, judge in self.folds:
            learn = learn[~self.contacted[learn]]
            model = make_pipeline(StandardScaler(), Ridge(alpha=1.0))
            model.fit(self.matrix[learn], values[learn])
            expected[judge] += model.predict(self.matrix[judge])
        left = values - expected / _cuts(self.folds, len(values))
        one, other = self.middle(left)
        # Errors of chances and outcomes multiply here, so that no correction is due.
        return _effect(one - other, self.influence(left), confidence)


def _effect(difference: float, influence: Array, confidence: float) -> effects.Effect:
    error = float(np.sqrt((influence**2).sum())) / len(influence)
    normal = NormalDist()
    reach = normal.inv_cdf(0.5 + confidence / 2) * error
    p_value = 2 * normal.cdf(-abs(difference) / error) if error > 0 else math.nan
    return effects.Effect(difference, difference - reach, difference + reach, p_value)


def balance_of(world: Comparison, weighed: Weighed, outcome: Array) -> pd.DataFrame:
    """Return how alike the groups are, covariate by covariate, before and after weighting."""
    group, others = world.contacted, ~weighed.contacted
    odds, outcome = weighed.odds[others], outcome[world.inside][others]
    chance = 1 / (~others).sum() + (odds**2).sum() / odds.sum() ** 2
    limit = max(UNBALANCED, NormalDist().inv_cdf(0.975) * math.sqrt(chance))
    rows = []
    for term in world.terms:
        if not term.label:
            continue
        # Where all those contacted are the same, the others give the scale.
        scale = float(term.figures[group].std()) or float(term.figures.std())
        before = float(term.figures[group].mean() - term.figures[~group].mean()) / scale
        one, other = weighed.middle(term.figures[world.inside])
        after = (one - other) / scale
        related = abs(_correlation(term.figures[world.inside][others], outcome, odds)) >= RELATED
        rows.append((term.label, before, after, related and abs(after) > limit))
    return pd.DataFrame(rows, columns=["covariate", "before", "after", "bad"])


def _correlation(one: Array, other: Array, weights: Array) -> float:
    """Return the weighted correlation; 0 where one of the two does not vary."""
    table = np.cov(one, other, aweights=weights)
    spread = math.sqrt(table[0, 0] * table[1, 1])
    return float(table[0, 1]) / spread if spread > 0 else 0.0


def chances(matrix: Array, contacted: Flags, folds: Folds) -> Array:
    """Return each customer's chance of being contacted, learnt from the other folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chance = np.zeros(len(contacted))
    for learn, judge in folds:
        chance_of = LogisticRegression(C=1.0, solver="newton-cholesky")
        model = make_pipeline(StandardScaler(), chance_of)
        model.fit(matrix[learn], contacted[learn])
        chance[judge] += model.predict_proba(matrix[judge])[:, 1]
    return chance / _cuts(folds, len(contacted))


def _cuts(folds: Folds, customers: int) -> float:
    """Return how often each customer is judged."""
    return sum(len(judge) for _, judge in folds) / customers


def matrix_of(terms: Sequence[Term]) -> Array:
    """Return the terms side by side, one row per customer."""
    return np.column_stack([term.figures for term in terms])


def terms_of(frame: pd.DataFrame, covariates: Sequence[str], k: int) -> tuple[list[Term], str]:
    """Return what the regressions know of the customers, and a sentence on what was left out.

    What is not known counts as the median and has a flag; a word or flag that fewer than `k`
    customers have, or lack, is none. Numbers are cut at their `ENDS`. Money is skewed and often
    zero, so that numbers also enter as logarithm, its square, and whether they are zero.
    """
    terms: list[Term] = []
    left_out = []
    for name in covariates:
        found = _terms_of_one(name, frame[name], k)
        terms += found
        if not found:
            left_out.append(name)
    why = f"one value only, or none that {k} customers share"
    if not terms:
        raise tables.DataError(
            f"Nothing tells the customers apart. The covariates ({', '.join(left_out) or 'none'}) "
            f"have {why}; add columns known before the campaign, such as what was spent before it."
        )
    return terms, f"Left out, with {why}: {', '.join(left_out)}." if left_out else ""


def _terms_of_one(name: str, column: pd.Series, k: int) -> list[Term]:
    """Return the terms of one covariate; none if it tells no customers apart."""

    def flags(labels: dict[str, Flags]) -> list[Term]:
        return [
            Term(name, label, flag.astype(float))
            for label, flag in labels.items()
            if k <= flag.sum() <= len(flag) - k
        ]

    if len(column) - column.value_counts(dropna=False).iloc[0] < k:
        return []
    if pd.api.types.infer_dtype(column, skipna=True) == "boolean":
        column = column.astype("boolean")
    unknown = column.isna().to_numpy()
    missing = flags({f"{name}: unknown": unknown})
    if pd.api.types.is_bool_dtype(column.dtype):
        return flags({name: column.to_numpy(bool, na_value=False)}) + missing
    if not is_number(column):
        first = column.dropna().iloc[0]
        if isinstance(first, dt.date):
            raise tables.DataError(
                f"The covariate {name} is a date; give the days from it to the campaign instead."
            )
        words = column.astype("string")
        common = words.value_counts().head(MOST_WORDS).index
        have = {f"{name}: {one}": (words == one).to_numpy(bool, na_value=False) for one in common}
        return flags(have) + missing
    values = numbers_of(column)
    values = np.where(unknown, np.nanmedian(values), values)
    distinct = np.unique(values)
    if len(distinct) < 3:
        return flags({name: values == distinct[-1]}) + missing
    low, high = np.quantile(values, ENDS)
    if low < high:
        values = np.clip(values, low, high)
    log = np.sign(values) * np.log1p(np.abs(values))
    shapes = [Term(name, "", log), Term(name, "", (log - log.mean()) ** 2)]
    return [Term(name, name, values), *shapes, *flags({"": values == 0}), *missing]


def is_number(column: pd.Series) -> bool:
    """Say whether a column holds numbers: decimals of a database come as objects."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return True
    known = column.dropna()
    return len(known) > 0 and isinstance(known.iloc[0], decimal.Decimal)


def numbers_of(column: pd.Series) -> Array:
    """Return a column of numbers as floats, nan where it is not known."""
    if not is_number(column):
        raise tables.DataError(
            f"The column {column.name} must hold numbers; it is of type {column.dtype}."
        )
    decimals = column.dtype == object
    values = column.astype(float) if decimals else column
    found = np.asarray(values.to_numpy(float, na_value=np.nan))
    if np.isinf(found).any():
        raise tables.DataError(
            f"The column {column.name} has {np.isinf(found).sum()} infinite values; "
            "make them missing, or leave their customers out."
        )
    return found
