"""The ways to say who will be silent: from the base rate to boosted trees, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crmlab import features, probabilities, tables

if TYPE_CHECKING:
    from crmlab.clv import ClvModel
    from crmlab.models import Array

BASE, RECENCY, SCORECARD, BOOSTED = "base rate", "recency only", "scorecard", "gradient boosting"
# The purchase models that are fitted, and what the log may leave of them: NBD, where nobody stops.
MODELS = ("bgnbd", "mbgnbd", "paretonbd")
CLOSED_FORMS = ("NBD", "BG/NBD", "MBG/NBD", "Pareto/NBD")
# From the simplest to the richest: where two are as good, the one further to the left is taken.
METHODS = (BASE, RECENCY, *CLOSED_FORMS, SCORECARD, BOOSTED)
# Isotonic regression follows chance where the rarer outcome came to fewer customers.
ISOTONIC_LEAST = 1_000
FOLDS = 5
MOST_WORDS, LEAST_OF_A_WORD = 12, 50
SKEWED = (
    *("frequency", "silent", "overdue", "purchases_a_year", "recent", "earlier", "T"),
    *("mean_spend", "categories", "distance_km", "cases", "case_open_days", "contacts", "points"),
)


@dataclass(frozen=True, eq=False)
class Rows:
    """Customers at a cut-off: features, and whether each then `stopped`; `who` numbers them."""

    frame: pd.DataFrame
    who: Array
    stopped: Array

    def part(self, chosen: Array) -> Rows:
        """Return some of the rows."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Rows(self.frame.iloc[places], self.who[places], self.stopped[places])

    @staticmethod
    def together(parts: Sequence[Rows]) -> Rows:
        """Return the rows of several cut-offs as one."""
        frames = pd.concat([part.frame for part in parts], ignore_index=True)
        who, stopped = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("who", "stopped")
        )
        return Rows(frames, who, stopped)


@dataclass(frozen=True, eq=False)
class Scorer:
    """A fitted method: features in, the chance of silence out.

    `parts`, where there is one, splits the log-odds before calibration into what each group of
    features adds to those of an average customer: exactly for the scorecard and closed forms, else
    as the model's, which is `slow`.
    """

    method: str
    raw: Callable[[pd.DataFrame], Array]
    parts: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    calibration: Calibration = field(default_factory=lambda: Calibration())
    slow: bool = False

    def chance(self, frame: pd.DataFrame) -> Array:
        """Return the calibrated chance of silence for each row."""
        return self.calibration.of(self.raw(frame))

    def calibrated(self, calibration: Calibration) -> Scorer:
        """Return the same with another calibration."""
        return replace(self, calibration=calibration)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What makes a score mean what it says; `kind` is none, sigmoid or isotonic."""

    kind: str = "none"
    to: Callable[[Array], Array] | None = None

    def of(self, chance: Array) -> Array:
        """Return the calibrated chances."""
        return chance if self.to is None else self.to(chance)


def learn(method: str, rows: Rows) -> Scorer:
    """Fit recency, the scorecard or the boosted trees on labelled rows.

    Raises `DataError` where all of them stopped or none.
    """
    if not 0 < rows.stopped.mean() < 1:
        raise tables.DataError("All of the customers to learn from stopped, or none did.")
    return {RECENCY: _recency, SCORECARD: _scorecard, BOOSTED: _boosted}[method](rows)


def base_rate(rate: float) -> Scorer:
    """Return the method that says the same of everyone."""
    return Scorer(BASE, lambda frame: np.full(len(frame), rate))


def closed_form(model: ClvModel, title: str, horizon_days: float, rows: pd.DataFrame) -> Scorer:
    """Return 1 - p_purchase of a purchase model: the chance of no purchase in the horizon.

    Never 1 - p_alive, which for BG/NBD is 0 for everyone who has bought once. `rows` are the
    customers whose average the parts are held against.
    """
    t, p, names = model.units(horizon_days), model.parameters, ["frequency", "recency", "T"]

    def silent(history: Array) -> Array:
        # Once per different history; days of 179 years fit into 16 bits.
        key = history.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])
        place, keys = pd.factorize(key)
        x, t_x, until = (keys >> 32).astype(float), keys >> 16 & 0xFFFF, keys & 0xFFFF
        t_x, until = model.units(t_x), model.units(until)
        each: Array = 1 - model.formulas.p_purchase(p, x, t_x, until, t)
        return np.asarray(each[place])

    def punctual(frame: pd.DataFrame) -> Array:
        """Return the log-odds of each customer, were they silent no longer than usual."""
        x, t_x, until = frame[names].to_numpy(float).T
        usual = np.nan_to_num(frame["usual_gap"].to_numpy(float), nan=0.0).round()
        last = until - np.minimum(until - t_x, usual)
        # A single purchase cannot be moved: T counts from it.
        last = np.where(x > 0, last, t_x)
        return probabilities.log_odds(silent(np.column_stack([x, last, until])))

    average = float(np.mean(punctual(rows))) if len(rows) else 0.0

    def raw(frame: pd.DataFrame) -> Array:
        return silent(frame[names].to_numpy(float))

    def parts(frame: pd.DataFrame) -> pd.DataFrame:
        late = punctual(frame)
        added = {"silence": probabilities.log_odds(raw(frame)) - late, "frequency": late - average}
        return pd.DataFrame(added, index=frame.index)

    return Scorer(title, raw, parts)


def calibrate(scorer: Scorer, rows: Rows, seed: int) -> tuple[Scorer, Array]:
    """Choose how a score becomes a probability, on rows that it has not learnt from.

    By the Brier score of five folds of customers; the simpler way wins unless a richer one is
    better by more than its standard error. Also returns the chances of the folds' rows, each made
    without its own fold: what the choice between methods may look at.
    """
    raw = scorer.raw(rows.frame)
    fold = np.random.default_rng(seed).permutation(int(rows.who.max()) + 1)[rows.who] % FOLDS
    kinds = ["none", "sigmoid"]
    both = (len(np.unique(rows.who[rows.stopped == one])) for one in (0, 1))
    if min(both) >= ISOTONIC_LEAST:
        kinds.append("isotonic")
    if scorer.method == BASE:
        return base_rate(float(rows.stopped.mean())), np.full(len(raw), rows.stopped.mean())
    made: dict[str, Array] = {}
    for kind in kinds:
        made[kind] = np.empty(len(raw))
        for one in range(FOLDS):
            rest = fold != one
            fitted = _calibration(kind, raw[rest], rows.stopped[rest])
            made[kind][~rest] = fitted.of(raw[~rest])
    kind = simplest(made, rows)
    return scorer.calibrated(_calibration(kind, raw, rows.stopped)), made[kind]


def simplest(made: dict[str, Array], rows: Rows) -> str:
    """Return the first whose Brier score is not worse than the best one's beyond its error."""
    best = min(made, key=lambda name: probabilities.brier(made[name], rows.stopped))
    for name, chance in made.items():
        more, error = probabilities.worse_by(chance, made[best], rows.stopped, rows.who)
        if more <= error:
            return name
    return best


def _calibration(kind: str, raw: Array, stopped: Array) -> Calibration:
    """Fit a calibration: Platt (1999), or Zadrozny and Elkan (2002)."""
    if kind == "none" or not 0 < stopped.mean() < 1:
        return Calibration()
    if kind == "sigmoid":
        each = np.arange(len(raw), dtype=float)
        slope, intercept = probabilities.calibration_line(raw, stopped, each)
        if slope.value <= 0 or np.ptp(raw) == 0:  # a score without any order, or upside down
            rate = float(stopped.mean())
            return Calibration(kind, lambda chance: np.full(len(chance), rate))

        if np.isnan(slope.value):
            return Calibration()

        def to(chance: Array) -> Array:
            odds = slope.value * probabilities.log_odds(chance) + intercept.value
            return np.asarray(1 / (1 + np.exp(-odds)))

        return Calibration(kind, to)
    from sklearn.isotonic import IsotonicRegression

    # Nobody is certain to stop: the ends are no surer than half a customer among all.
    end = 0.5 / len(raw)
    fitted = IsotonicRegression(y_min=end, y_max=1 - end, out_of_bounds="clip").fit(raw, stopped)
    return Calibration(kind, lambda chance: np.asarray(fitted.predict(chance)))


def _recency(rows: Rows) -> Scorer:
    """Learn the chance of silence from the days since the last purchase alone."""
    from sklearn.linear_model import LogisticRegression

    def matrix(frame: pd.DataFrame) -> Array:
        days = np.log1p(frame["silent"].to_numpy(float))
        return np.column_stack([days, days**2])

    model = LogisticRegression(C=100.0, max_iter=1000).fit(matrix(rows.frame), rows.stopped)
    return Scorer(RECENCY, lambda frame: np.asarray(model.predict_proba(matrix(frame))[:, 1]))


@dataclass(frozen=True, eq=False)
class Design:
    """Features as columns of a regression: skewed ones as logarithms, all on one scale.

    Learnt on the training rows alone: what is constant or missing there is left out, and a word
    that was not seen there, or of few customers, counts as none.
    """

    columns: tuple[str, ...]
    groups: tuple[str, ...]
    ends: Array
    center: Array
    scale: Array
    words: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]

    @staticmethod
    def of(frame: pd.DataFrame) -> Design:
        """Learn the design from training rows."""
        group_of = {name: group for group, names in features.GROUPS.items() for name in names}
        names = [n for n in group_of if n in frame.columns and n not in features.WORDS]
        columns, missing, ends, center, scale = [], [], [], [], []
        for name in names:
            values = _plain(frame, name)
            known = values[np.isfinite(values)]
            if not len(known) or np.ptp(known) == 0:
                continue
            low, high = np.quantile(known, [0.005, 0.995])
            if low == high:
                low, high = known.min(), known.max()
            clipped = np.clip(known, low, high)
            columns.append(name)
            ends.append((low, high))
            center.append(clipped.mean())
            scale.append(clipped.std())
            if len(values) - len(known) >= LEAST_OF_A_WORD:
                missing.append(name)
        words = []
        for name in set(features.WORDS) & set(frame.columns):
            counts = frame[name].value_counts()
            some = counts[counts >= LEAST_OF_A_WORD].head(MOST_WORDS)
            # Where everybody has one of the words, the last is what the others are held against.
            kept = sorted(some.index)[: len(some) - (counts.sum() == len(frame))]
            words += [(name, str(word)) for word in kept]
        words = sorted(words)
        named = [*columns, *(name for name, _ in words), *missing]
        return Design(
            columns=tuple(columns),
            groups=tuple(group_of[name] for name in named),
            ends=np.array(ends, float).reshape(-1, 2),
            center=np.array(center, float),
            scale=np.array(scale, float),
            words=tuple(words),
            missing=tuple(missing),
        )

    def matrix(self, frame: pd.DataFrame) -> Array:
        """Return the rows as numbers around 0; what is not known counts as average."""
        found = np.zeros((len(frame), len(self.groups)))
        for n, name in enumerate(self.columns):
            values = _plain(frame, name) if name in frame else np.full(len(frame), np.nan)
            values = (np.clip(values, *self.ends[n]) - self.center[n]) / self.scale[n]
            found[:, n] = np.nan_to_num(values, nan=0.0)
        for n, (name, word) in enumerate(self.words, start=len(self.columns)):
            found[:, n] = (frame[name] == word).to_numpy(float) if name in frame else 0.0
        for n, name in enumerate(self.missing, start=len(self.columns) + len(self.words)):
            found[:, n] = ~np.isfinite(_plain(frame, name)) if name in frame else 1.0
        return found


def _plain(frame: pd.DataFrame, name: str) -> Array:
    """Return a feature as numbers, those of long tails as logarithms; no open case is 0 days."""
    values = frame[name].to_numpy(float)
    if name == "case_open_days":
        values = np.nan_to_num(values + 1, nan=0.0)
    return np.asarray(np.log1p(np.maximum(values, 0.0)) if name in SKEWED else values)


def _scorecard(rows: Rows) -> Scorer:
    """Learn log-odds that are a sum over the features."""
    from sklearn.linear_model import LogisticRegression

    design = Design.of(rows.frame)
    matrix = design.matrix(rows.frame)
    model = LogisticRegression(C=0.1, max_iter=2000).fit(matrix, rows.stopped)
    weights, average = model.coef_[0], matrix.mean(axis=0)

    def raw(frame: pd.DataFrame) -> Array:
        return np.asarray(model.predict_proba(design.matrix(frame))[:, 1])

    def parts(frame: pd.DataFrame) -> pd.DataFrame:
        added = (design.matrix(frame) - average) * weights
        return _grouped(added, design.groups, frame.index)

    return Scorer(SCORECARD, raw, parts)


def _grouped(added: Array, groups: Sequence[str], index: Any) -> pd.DataFrame:
    """Add the columns of each group."""
    kept = list(dict.fromkeys(groups))
    to = np.array([[group == one for one in kept] for group in groups], float)
    return pd.DataFrame(added @ to, columns=kept, index=index)


def _boosted(rows: Rows) -> Scorer:
    """Learn boosted trees; missing values and words go in as they are."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    names = [name for names in features.GROUPS.values() for name in names]
    # What nobody has cannot be split by.
    names = [name for name in names if name in rows.frame and rows.frame[name].notna().any()]
    levels = {
        name: rows.frame[name].value_counts().head(MOST_WORDS).index.tolist()
        for name in names
        if name in features.WORDS
    }

    def matrix(frame: pd.DataFrame) -> Array:
        found = np.full((len(frame), len(names)), np.nan)
        for n, name in enumerate(names):
            if name not in frame:
                continue
            if name in levels:
                codes = {word: code for code, word in enumerate(levels[name])}
                found[:, n] = frame[name].map(codes).to_numpy(float)
            else:
                found[:, n] = frame[name].to_numpy(float)
        return found

    learnt = matrix(rows.frame)
    model = HistGradientBoostingClassifier(
        learning_rate=0.07,
        max_iter=80,
        max_leaf_nodes=15,
        min_samples_leaf=40,
        l2_regularization=1.0,
        early_stopping=False,
        categorical_features=[name in levels for name in names],
        random_state=0,
    ).fit(learnt, rows.stopped)
    with np.errstate(all="ignore"):
        middle = [np.nan if names[n] in levels else float(pd.Series(learnt[:, n]).median())
                  for n in range(len(names))]  # fmt: skip

    def odds(values: Array) -> Array:
        return np.asarray(model.decision_function(values))

    def parts(frame: pd.DataFrame) -> pd.DataFrame:
        own = matrix(frame)
        whole, added = odds(own), {}
        for group, members in features.GROUPS.items():
            places = [names.index(name) for name in members if name in names]
            if places:
                other = own.copy()
                other[:, places] = [middle[place] for place in places]
                added[group] = whole - odds(other)
        return pd.DataFrame(added, index=frame.index)

    return Scorer(
        BOOSTED, lambda frame: np.asarray(1 / (1 + np.exp(-odds(matrix(frame))))), parts, slow=True
    )
