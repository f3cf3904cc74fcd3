"""Fit BG/NBD and Gamma-Gamma to a summary, and forecast each customer."""

from __future__ import annotations

import datetime as dt
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from crmlab import results, tables

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

    from crmlab.models import Array

MODELS = {"bgnbd": "BG/NBD"}
# Fewer repeat customers than this leave four parameters to chance.
MIN_REPEAT_CUSTOMERS = 30


@dataclass(frozen=True)
class Spend:
    """Gamma-Gamma: how the mean value of a purchase differs between customers.

    `p`, `q` and `v` as in Fader and Hardie (2013), note 025, in shop currency;
    `customers` counts the repeat customers it was fitted on.
    """

    p: float
    q: float
    v: float
    customers: int

    @property
    def population_mean(self) -> float:
        """Mean value of a purchase of a customer of whom nothing is known; infinite if q <= 1."""
        return self.p * self.v / (self.q - 1) if self.q > 1 else float("inf")


@dataclass(frozen=True, eq=False)
class ClvModel:
    """A fitted model of purchases, and of spend.

    Parameters and log-likelihood are in units of `days_per_unit` days; horizons are always days.
    `notes` say what the log cannot show.
    """

    model: str
    parameters: dict[str, float]
    log_likelihood: float
    covariance: pd.DataFrame
    spend: Spend
    days_per_unit: float
    as_of: dt.date
    customers: int
    notes: tuple[str, ...] = ()

    def predict(
        self,
        summary: ir.Table,
        *,
        horizon_days: int = 365,
        annual_discount_rate: float = 0.1,
        margin: float,
    ) -> ir.Table:
        """Forecast every customer of a summary.

        Parameters
        ----------
        summary : ibis table as `customers.summary` gives it
        horizon_days : int, how far to look ahead
        annual_discount_rate : float, a share of 1; discounting is continuous
        margin : float, the share of sales that is profit

        Returns
        -------
        ibis table, one row per customer: customer_id; p_alive, the chance of not having dropped
        out (1 for every one-time buyer under BG/NBD, so no one should be ranked by it);
        p_purchase, the chance of at least one purchase in the horizon; expected_purchases;
        expected_value, sales in shop currency; clv, profit discounted to today.

        Raises
        ------
        UsageError if horizon, rate or margin is out of range

        Notes
        -----
        Fader, Hardie and Lee (2005), Marketing Science 24, equation 10; value of a purchase:
        Fader and Hardie (2013), note 025, equation 5.
        """
        _check_range("horizon_days", horizon_days, 1, 20 * 366)
        _check_range("annual_discount_rate", annual_discount_rate, 0, 10)
        _check_range("margin", margin, 0, 1)
        import ibis
        import numpy as np

        from crmlab import models

        keys = ["frequency", "recency", "T"]
        unique = summary.select(*keys).distinct().to_pandas()
        x, t_x, T = (unique[key].to_numpy(float) for key in keys)
        t_x, T, t = t_x / self.days_per_unit, T / self.days_per_unit, self.units(horizon_days)
        alive = models.p_alive(self.parameters, x, t_x, T)
        purchases = models.conditional_purchases(self.parameters, x, t_x, T, t)
        # Integrating by parts: the discounted purchases from E[Y(t)] alone, by Gauss-Legendre.
        rate = np.log1p(annual_discount_rate) * self.days_per_unit / 365
        nodes, weights = np.polynomial.legendre.leggauss(12)
        discounted = np.exp(-rate * t) * purchases
        for at, weight in zip((nodes + 1) * t / 2, weights * t / 2, strict=True):
            value = models.conditional_purchases(self.parameters, x, t_x, T, at)
            discounted += rate * weight * np.exp(-rate * at) * value
        forecast = ibis.memtable(
            unique.assign(
                p_alive=alive,
                p_purchase=models.p_purchase(self.parameters, x, t_x, T, t),
                expected_purchases=purchases,
                discounted_purchases=discounted,
            )
        )
        rows = summary.inner_join(forecast, keys)
        value = self._value_of_a_purchase(rows)
        return rows.select(
            "customer_id",
            "p_alive",
            "p_purchase",
            "expected_purchases",
            expected_value=rows.expected_purchases * value,
            clv=rows.discounted_purchases * value * margin,
        )

    def units(self, days: Any) -> Any:
        """Return a number of days, or an array of them, in the parameters' unit."""
        return days / self.days_per_unit

    def _value_of_a_purchase(self, rows: ir.Table) -> ir.Value:
        """Return E[M | frequency, monetary value]; who never came back counts as average."""
        spend, x = self.spend, rows.frequency.cast("float64")
        known = spend.p * (spend.v + x * rows.monetary_value.fill_null(0.0))
        usable = (rows.frequency > 0) & (rows.monetary_value > 0)
        return usable.ifelse(known / (spend.p * x + spend.q - 1), spend.population_mean)

    def to_frame(self) -> pd.DataFrame:
        """Return the parameters: one row each, with estimate and standard error."""
        import numpy as np
        import pandas as pd

        variances = np.diag(self.covariance.to_numpy())
        # A negative one comes of a likelihood that is flat to the last digits.
        spread = np.sqrt(np.where(variances > 0, variances, np.nan))
        errors = dict(zip(self.parameters, spread, strict=True))
        rows = [(MODELS[self.model], k, v, errors[k]) for k, v in self.parameters.items()]
        spend = {"p": self.spend.p, "q": self.spend.q, "v": self.spend.v}
        rows += [("Gamma-Gamma", name, value, float("nan")) for name, value in spend.items()]
        return pd.DataFrame(rows, columns=["model", "parameter", "estimate", "standard_error"])

    def _repr_html_(self) -> str:
        numbers = results.Numbers()
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return notes + results.html_table(
            self.to_frame(),
            title=f"{MODELS[self.model]} on {numbers.number(self.customers)} customers as of "
            f"{self.as_of}, log-likelihood {numbers.number(self.log_likelihood, 3)}, "
            f"unit {self.days_per_unit:g} days",
            formats=dict.fromkeys(
                ("estimate", "standard_error"), lambda value: numbers.number(value, 4)
            ),
            headings={"standard_error": "standard error"},
        )


def fit(summary: ir.Table, *, model: str = "bgnbd", days_per_unit: float = 7) -> ClvModel:
    """Fit a model of purchases, and Gamma-Gamma for their value, by maximum likelihood.

    Parameters
    ----------
    summary : ibis table as `customers.summary` gives it
    model : "bgnbd" (Fader, Hardie and Lee 2005, Marketing Science 24)
    days_per_unit : float, days in the parameters' unit of time; 7 as in the literature

    Raises
    ------
    UsageError for a model that does not exist; DataError if fewer than 30 customers came back, or
    the mean value of a purchase is infinite
    """
    import numpy as np

    from crmlab import models

    _check_range("days_per_unit", days_per_unit, 0.001, 10_000)
    if model not in MODELS:
        raise tables.UsageError(f"There is no model {model!r}; choose one of {list(MODELS)}.")
    keys = ["frequency", "recency", "T"]
    rows = summary.group_by(keys).aggregate(customers=summary.count()).order_by(keys).to_pandas()
    weights = rows["customers"].to_numpy(float)
    repeaters = int(weights[rows["frequency"].to_numpy() > 0].sum())
    if repeaters < MIN_REPEAT_CUSTOMERS:
        raise tables.DataError(
            f"Only {repeaters} of {int(weights.sum())} customers came back for a second purchase; "
            f"a lifetime value needs at least {MIN_REPEAT_CUSTOMERS}. Take a longer log or a later "
            "as_of."
        )
    x, t_x, T = (rows[key].to_numpy(float) for key in keys)
    t_x, T = t_x / days_per_unit, T / days_per_unit
    parameters = _lifetimes_fit("BetaGeoFitter", ("r", "alpha", "a", "b"), x, t_x, T, weights)
    notes = []
    if not parameters:
        scale = float(np.median(T[T > 0])) if (T > 0).any() else 1.0
        start = {"r": 0.5, "alpha": scale / 4, "a": 1.0, "b": 3.0}
        parameters = _bounded_fit(
            lambda values: models.log_likelihood(values, x, t_x, T), start, weights
        )
        notes.append(
            f"{MODELS[model]}: no maximum at finite parameters, so they were held within 1,000 "
            "times a usual value. How customers differ, in how often they buy or in when they "
            "stop, does not show in this log. Forecasts are usable if the hold-out check says so; "
            "standard errors there are none."
        )
    spend, spend_notes = _fit_spend(summary)
    newest = summary.order_by(summary["T"], summary.customer_id).limit(1).to_pandas().iloc[0]
    return ClvModel(
        model=model,
        parameters=parameters,
        log_likelihood=float(weights @ models.log_likelihood(parameters, x, t_x, T)),
        covariance=_covariance(parameters, x, t_x, T, weights) * (np.nan if notes else 1),
        spend=spend,
        notes=(*notes, *spend_notes),
        days_per_unit=days_per_unit,
        as_of=tables.day(newest["first_purchase"]) + dt.timedelta(days=int(newest["T"])),
        customers=int(weights.sum()),
    )


def _fit_spend(summary: ir.Table) -> tuple[Spend, list[str]]:
    from crmlab import models

    repeat = summary.filter(summary.frequency > 0, summary.monetary_value > 0)
    keys = ["frequency", "monetary_value"]
    rows = repeat.group_by(keys).aggregate(customers=repeat.count()).order_by(keys).to_pandas()
    counts = rows["customers"].to_numpy(float)
    if counts.sum() < MIN_REPEAT_CUSTOMERS:
        raise tables.DataError(
            f"Only {int(counts.sum())} customers came back and spent more than nothing; the value "
            f"of a purchase needs at least {MIN_REPEAT_CUSTOMERS} of them."
        )
    x, value = (rows[key].to_numpy(float) for key in keys)
    parameters = _lifetimes_fit("GammaGammaFitter", ("p", "q", "v"), x, value, counts)
    notes = []
    if not parameters:
        start = {"p": 5.0, "q": 4.0, "v": float(counts @ value / counts.sum())}
        parameters = _bounded_fit(
            lambda values: models.spend_log_likelihood(values, x, value), start, counts
        )
        notes.append(
            "Gamma-Gamma: customers do not visibly differ in what they spend, so each is taken to "
            "spend nearly what all do on average."
        )
    p, q, v = parameters["p"], parameters["q"], parameters["v"]
    if q <= 1:
        raise tables.DataError(
            f"Gamma-Gamma finds q = {q:.2f}: at q <= 1 the mean value of a purchase is infinite. "
            "Look for a few enormous amounts, or amounts in two currencies."
        )
    return Spend(p, q, v, int(counts.sum())), notes


def _lifetimes_fit(fitter: str, names: tuple[str, ...], *columns: Array) -> dict[str, float]:
    """Fit by lifetimes; the last column are weights. Empty if it finds no maximum."""
    with lifetimes_imported() as lifetimes:
        *data, weights = columns
        try:
            fitted = getattr(lifetimes, fitter)().fit(*data, weights=weights)
        except lifetimes.utils.ConvergenceError:
            return {}
    return {name: float(fitted.params_[name]) for name in names}


@contextmanager
def lifetimes_imported() -> Iterator[Any]:
    """Give the package lifetimes, quiet, and undo what importing it changes."""
    import pandas as pd

    # A fitter that fails prints the optimiser's state.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = pd.get_option("mode.chained_assignment")
        import lifetimes

        pd.set_option("mode.chained_assignment", before)
        yield lifetimes


def _bounded_fit(
    likelihood: Callable[[dict[str, float]], Array], start: dict[str, float], weights: Array
) -> dict[str, float]:
    """Maximise where lifetimes finds no maximum: each parameter within 1,000 times its start."""
    import numpy as np
    from scipy.optimize import minimize

    def loss(logarithms: Array) -> float:
        values = dict(zip(start, np.exp(logarithms), strict=True))
        return -float(weights @ likelihood(values)) / float(weights.sum())

    at = np.log(list(start.values()))
    bounds = [(value - np.log(1000), value + np.log(1000)) for value in at]
    best = minimize(loss, at, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-13})
    return {name: float(value) for name, value in zip(start, np.exp(best.x), strict=True)}


def _covariance(
    parameters: dict[str, float], x: Array, t_x: Array, T: Array, weights: Array
) -> pd.DataFrame:
    """Return the inverse of the observed information: central differences in the logarithms."""
    import numpy as np
    import pandas as pd

    from crmlab import models

    names = list(parameters)
    at = np.log([parameters[name] for name in names])
    steps = 1e-3 * np.eye(len(names))

    def total(logarithms: Array) -> float:
        values = dict(zip(names, np.exp(logarithms), strict=True))
        return float(weights @ models.log_likelihood(values, x, t_x, T))

    hessian = np.array(
        [
            [
                (total(at + i + j) - total(at + i - j) - total(at - i + j) + total(at - i - j))
                / 4e-6
                for j in steps
            ]
            for i in steps
        ]
    )
    # At the maximum the gradient is zero, so the change of variables is the plain Jacobian.
    scale = np.exp(at)
    try:
        covariance = np.linalg.inv(-hessian) * np.outer(scale, scale)
    except np.linalg.LinAlgError:
        covariance = np.full_like(hessian, np.nan)  # flat in some direction: nothing to say
    return pd.DataFrame(covariance, index=names, columns=names)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if value is None or isinstance(value, (str, bool)) or not low <= value <= high:
        raise tables.UsageError(f"{name} is {value!r}; it must lie between {low} and {high}.")


@dataclass(frozen=True, eq=False)
class PurchaseCounts:
    """How many customers made so many repeat purchases: seen, and expected by the model.

    `counts`: label, customers, expected; labels run 0, 1, ... and end in "n or more".
    """

    counts: pd.DataFrame
    as_of: dt.date

    def to_frame(self) -> pd.DataFrame:
        """Return one row per number of repeat purchases."""
        return self.counts

    def _repr_html_(self) -> str:
        numbers = results.Numbers()
        return results.html_table(
            self.counts,
            title="Repeat purchases per customer",
            formats=dict.fromkeys(("customers", "expected"), numbers.number),
            headings={"label": "repeat purchases"},
        )


def purchase_counts(model: ClvModel, summary: ir.Table, *, most: int = 7, k: int) -> PurchaseCounts:
    """Compare the number of customers by repeat purchases with what the model expects.

    Parameters
    ----------
    summary : ibis table as `customers.summary` gives it, the one the model was fitted on
    most : int, the last bar is "so many or more"; it starts earlier where customers are few
    k : int, the fewest customers a bar may stand for
    """
    import numpy as np
    import pandas as pd

    from crmlab import models

    capped = summary.mutate(bar=summary.frequency.clip(upper=most))
    seen = capped.group_by("bar").aggregate(customers=capped.count()).to_pandas()
    counts = np.zeros(most + 1)
    counts[seen["bar"].to_numpy(int)] = seen["customers"]
    ages = summary.group_by("T").aggregate(customers=summary.count()).order_by("T").to_pandas()
    probabilities = models.p_count(
        model.parameters, most - 1, model.units(ages["T"].to_numpy(float))
    )
    expected = probabilities @ ages["customers"].to_numpy(float)
    expected = np.append(expected, counts.sum() - expected.sum())
    # Bars of too few customers join the last one.
    while most > 0 and (counts[: most + 1] < k).any():
        most -= 1
        counts[most], expected[most] = counts[most:].sum(), expected[most:].sum()
        counts, expected = counts[: most + 1], expected[: most + 1]
    labels = [str(n) for n in range(most)] + [f"{most} or more"]
    frame = pd.DataFrame({"label": labels, "customers": counts.astype(int), "expected": expected})
    return PurchaseCounts(frame, model.as_of)
