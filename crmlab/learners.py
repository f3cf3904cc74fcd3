"""Guesses of whom a message moves; every customer is scored by models that never saw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crmlab import tables
from crmlab.qini import is_share

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from crmlab.qini import Array

    Model = Callable[[Array], Array]

RESPONSE, T_LEARNER, DR_LEARNER = METHODS = ("response", "t_learner", "dr_learner")
ID = "customer_id"
LEAST = 100  # customers in an arm
MOST_WORDS, LEAST_OF_A_WORD = 12, 50
DIGITS = 12  # of a score: equal customers are equal, however the machine added up
NUMBERS = ("boolean", "integer", "floating", "mixed-integer-float", "decimal")
WORDS = ("string", "categorical")


@dataclass(frozen=True, eq=False)
class Trial:
    """The customers of a campaign drawn by lot: `frame` has their features and nothing else."""

    frame: pd.DataFrame
    ids: pd.Series[Any] | None
    treated: Array
    outcome: Array


@dataclass(frozen=True, eq=False)
class Encoding:
    """Features as numbers of mean 0 and deviation 1, as `encoding` learnt them."""

    kinds: dict[str, str]
    transform: Callable[[pd.DataFrame], Array]

    def of(self, rows: pd.DataFrame) -> Array:
        """Return one row of numbers per customer."""
        if missing := [name for name in self.kinds if name not in rows]:
            raise tables.DataError(
                f"The customers to score have no column {', '.join(missing)}; they have "
                f"{', '.join(map(str, rows.columns))}. Give the features the campaign was learnt "
                "from, under the same names."
            )
        plain, kinds = _plain(rows[list(self.kinds)])
        for name, kind in self.kinds.items():
            if kinds[name] not in ("empty", kind):
                raise tables.DataError(
                    f"The column {name} held {kind} when it was learnt from, and now holds "
                    f"{kinds[name]}. Give it as it was."
                )
            if kinds[name] == "empty":
                plain[name] = np.nan if kind == "numbers" else ""
        return self.transform(plain)


@dataclass(frozen=True, eq=False)
class Study:
    """A trial in folds, and the models fitted `without` some of them, each fitted once.

    `weights` count each customer so many times; `inputs` are the encoded features.
    """

    inputs: Array
    treated: Array
    outcome: Array
    fold: Array
    weights: Array
    fitted: dict[tuple[str, frozenset[int]], Any] = field(default_factory=dict)

    @staticmethod
    def of(
        inputs: Array, treated: Array, outcome: Array,
        *, folds: int, seed: Any, weights: Array | None = None,
    ) -> Study:  # fmt: skip
        """Deal the customers into folds by lot, alike in arm and in who has an outcome."""
        lot = np.random.default_rng(seed).random(len(outcome))
        fold = np.empty(len(outcome), dtype=int)
        fold[np.lexsort((lot, 2 * treated + (outcome > 0)))] = np.arange(len(outcome)) % folds
        weights = np.ones(len(outcome)) if weights is None else weights
        return Study(inputs, treated, outcome, fold, weights)

    @property
    def folds(self) -> range:
        """The numbers of the folds."""
        return range(int(self.fold.max()) + 1)

    def arms(self, without: frozenset[int]) -> tuple[Model, Model]:
        """Return what to expect of a customer who gets the message, and of one who does not."""
        if ("arms", without) not in self.fitted:
            seen = ~np.isin(self.fold, [*without]) & (self.weights > 0)
            binary = is_share(self.outcome)
            self.fitted["arms", without] = tuple(
                _model(self.inputs[part], self.outcome[part], self.weights[part], binary)
                for part in (seen & self.treated, seen & ~self.treated)
            )
        one, other = self.fitted["arms", without]
        return one, other

    def effects(self, rows: Array, without: frozenset[int]) -> Array:
        """Return an unbiased, noisy effect of each of these customers, whose fold is left out.

        The doubly robust score of Robins, Rotnitzky and Zhao (1994), Journal of the American
        Statistical Association 89, with the share of the arm as the known chance of the message.
        """
        one, other = self.arms(without)
        share = float(np.average(self.treated, weights=self.weights))
        treated, outcome, inputs = self.treated[rows], self.outcome[rows], self.inputs[rows]
        m1, m0 = one(inputs), other(inputs)
        missed = outcome - np.where(treated, m1, m0)
        return np.asarray(m1 - m0 + missed * np.where(treated, 1 / share, -1 / (1 - share)))

    def scorer(self, method: str, without: frozenset[int] = frozenset()) -> Model:
        """Return encoded features -> score, learnt from the folds that are not left out."""
        one, other = self.arms(without)
        if method == RESPONSE:
            return _rounded(one)
        if method == T_LEARNER:
            return _rounded(lambda inputs: one(inputs) - other(inputs))
        if (method, without) not in self.fitted:
            noisy, seen = np.empty(len(self.fold)), self.weights > 0
            for fold in self.folds:
                rows = np.flatnonzero(self.fold == fold)
                if fold in without:
                    seen = seen & (self.fold != fold)
                else:
                    # Of models that saw neither these customers nor those to be scored.
                    noisy[rows] = self.effects(rows, without | {fold})
            fitted = _model(self.inputs[seen], noisy[seen], self.weights[seen], False)
            self.fitted[method, without] = _rounded(fitted)
        found: Model = self.fitted[method, without]
        return found

    def out_of_fold(self, method: str, *, also: int | None = None) -> Array:
        """Return every customer's score by models that saw neither their fold nor `also`."""
        scores = np.empty(len(self.fold))
        for fold in self.folds:
            rows, left = self.fold == fold, {fold} if also is None else {fold, also}
            scores[rows] = self.scorer(method, frozenset(left))(self.inputs[rows])
        return scores

    def gains(self, *, also: int | None = None) -> Array:
        """Return every customer's unbiased effect by models that saw neither fold nor `also`."""
        found = np.empty(len(self.fold))
        for fold in self.folds:
            rows, left = self.fold == fold, {fold} if also is None else {fold, also}
            found[rows] = self.effects(np.flatnonzero(rows), frozenset(left))
        return found

    def ranks(self, scores: Array) -> Array:
        """Return scores as places in their fold, from 0 to 1: scores of two models differ."""
        return np.asarray(pd.Series(scores).groupby(self.fold).rank(pct=True))


def trial(features: pd.DataFrame | ir.Table, *, outcome: str, treated: str) -> Trial:
    """Check a campaign's table and take it apart; the order of its rows does not matter."""
    rows = as_frame(features)
    if missing := [name for name in (treated, outcome) if name not in rows]:
        raise tables.DataError(
            f"The campaign's table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, rows.columns))}. Say outcome=... and treated=... as yours are "
            "called."
        )
    if ID in rows:
        if rows[ID].isna().any() or rows[ID].duplicated().any():
            raise tables.DataError(
                f"{ID} must be there once per customer; {int(rows[ID].isna().sum())} are empty "
                f"and {int(rows[ID].duplicated().sum())} come again. Give one row per customer."
            )
        rows = rows.sort_values(ID).reset_index(drop=True)
    arm, came = _arm(rows[treated], treated), _outcome(rows[outcome], outcome)
    frame = rows.drop(columns=[name for name in (ID, treated, outcome) if name in rows])
    if frame.empty or frame.isna().to_numpy().all():
        raise tables.DataError(
            f"There is no feature to learn from: besides {treated} and {outcome} the table has "
            "no column that says anything. Add what was known of each customer before the lot."
        )
    return Trial(frame, rows.get(ID), arm, came)


def as_frame(features: Any) -> pd.DataFrame:
    """Return one row per customer as a DataFrame, in an order that does not change."""
    if isinstance(features, pd.DataFrame):
        return features.reset_index(drop=True)
    if not hasattr(features, "to_pandas"):
        raise tables.UsageError(
            f"The customers are a {type(features).__name__}; give a DataFrame or an ibis table."
        )
    rows: pd.DataFrame = features.order_by(features.columns).to_pandas()
    return rows


def encoding(frame: pd.DataFrame) -> Encoding:
    """Learn to write features as numbers: words one-hot with the rare together, gaps marked.

    It sees the features only, never an arm or an outcome.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    plain, kinds = _plain(frame)
    kinds = {name: kind for name, kind in kinds.items() if kind != "empty"}
    words = OneHotEncoder(
        min_frequency=LEAST_OF_A_WORD,
        max_categories=MOST_WORDS,
        handle_unknown="infrequent_if_exist",
        sparse_output=False,
    )
    parts = [
        ("numbers", SimpleImputer(strategy="median", add_indicator=True)),
        ("words", words),
    ]
    columns = ColumnTransformer(
        [(kind, step, [name for name in kinds if kinds[name] == kind]) for kind, step in parts]
    )
    fitted = make_pipeline(columns, StandardScaler()).fit(plain[list(kinds)])
    return Encoding(kinds, lambda rows: np.asarray(fitted.transform(rows), dtype=float))


def score_split(
    train: pd.DataFrame | ir.Table,
    test: pd.DataFrame | ir.Table,
    *,
    method: str = T_LEARNER,
    seed: int = 0,
    outcome: str = "outcome",
    treated: str = "treated",
    folds: int = 5,
) -> Array:
    """Return the scores of other customers by a method learnt from these.

    Parameters
    ----------
    train : DataFrame or ibis table as `learning.learn` takes it
    test : the customers to score, with the same features, in the order of the scores
    method : "response", "t_learner" or "dr_learner"; only the last draws folds, from `seed`
    """
    if method not in METHODS:
        raise tables.UsageError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
    known = trial(train, outcome=outcome, treated=treated)
    encoded = encoding(known.frame)
    study = Study.of(
        encoded.of(known.frame), known.treated, known.outcome, folds=folds, seed=[seed, 0]
    )
    return study.scorer(method)(encoded.of(as_frame(test)))


def _model(inputs: Array, outcome: Array, weights: Array, binary: bool) -> Model:
    """Fit the mean of an outcome: a chance for 0 and 1, else an amount."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if not len(outcome) or outcome.min() == outcome.max():
        same = float(outcome[0]) if len(outcome) else 0.0
        return lambda rows: np.full(len(rows), same)
    if binary:
        chance = LogisticRegression(C=1.0, solver="newton-cholesky")
        chance.fit(inputs, outcome, weights)
        return lambda rows: np.asarray(chance.predict_proba(rows)[:, 1])
    amount = Ridge(alpha=1.0).fit(inputs, outcome, weights)
    return lambda rows: np.asarray(amount.predict(rows))


def _rounded(model: Model) -> Model:
    return lambda inputs: np.round(model(inputs), DIGITS)


def _arm(column: pd.Series[Any], name: str) -> Array:
    found = column.astype(object).where(column.notna(), np.nan)
    if not found.isin([0, 1]).all():
        odd = sorted({repr(one) for one in found[~found.isin([0, 1])].unique()})[:5]
        raise tables.DataError(
            f"{name} must say of each customer whether the lot gave them the message, as "
            f"true/false or 1/0; it also holds {', '.join(odd)}."
        )
    arm = found.astype(float).to_numpy() == 1
    for kind, many in (("treated", int(arm.sum())), ("held out", int((~arm).sum()))):
        if not many:
            raise tables.DataError(
                f"No customer was {kind}, so nothing shows what the message did. Give a campaign "
                "in which a lot decided who got it and who did not."
            )
        if many < LEAST:
            raise tables.DataError(
                f"Only {many} customers were {kind}; to learn whom to contact takes at least "
                f"{LEAST} in each arm. Measure the campaign as a whole instead."
            )
    return np.asarray(arm)


def _outcome(column: pd.Series[Any], name: str) -> Array:
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind not in NUMBERS or column.isna().any():
        raise tables.DataError(
            f"{name} must be 0 or 1, or money, for each customer; it is {kind}, and "
            f"{int(column.isna().sum())} are empty. Who did nothing has 0."
        )
    came = column.astype(float).to_numpy()
    if not np.isfinite(came).all():
        raise tables.DataError(f"{name} holds infinite amounts; find out where they come from.")
    if came.min() == came.max():
        raise tables.DataError(
            f"{name} is {came[0]:g} for all customers: there is nothing to learn from it. Look "
            "at a longer window, or at another outcome."
        )
    return np.asarray(came)


def _plain(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the features as floats and texts, and which they are: numbers, words or empty."""
    found, kinds = {}, {}
    for name in frame.columns:
        column = frame[name].astype(object)
        kind, there = pd.api.types.infer_dtype(column, skipna=True), column.notna()
        if not there.any():
            found[name], kinds[name] = np.full(len(column), np.nan), "empty"
        elif kind in NUMBERS:
            amounts = column.where(there, np.nan).astype(float).to_numpy()
            found[name] = np.where(np.isfinite(amounts), amounts, np.nan)
            kinds[name] = "numbers" if np.isfinite(amounts).any() else "empty"
        elif kind in WORDS:
            found[name], kinds[name] = column.where(there, "").to_numpy(), "words"
        else:
            raise tables.DataError(
                f"The feature {name} holds {kind}; a feature is a number, a yes or no, or a word. "
                "Make a number of a date: days up to the lot."
            )
    return pd.DataFrame(found, index=frame.index), kinds
