"""What a fitted model says of each customer: the forecast, and two intervals that are not one."""

from __future__ import annotations

import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crmlab import results, tables
from crmlab.estimates import Estimates, Spend

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import numpy as np
    import pandas as pd

    from crmlab.models import Array, Parameters, PurchaseModel

PARAMETER_DRAWS, DRAWS_EACH = 20, 10  # how often the parameters, and then a customer, are drawn
CHUNK = 20_000  # customers drawn at once
KEYS = ("frequency", "recency", "T")
TITLES = {"bgnbd": "BG/NBD", "mbgnbd": "MBG/NBD", "paretonbd": "Pareto/NBD", "nbd": "NBD"}


@dataclass(frozen=True)
class ClvModel:
    """A fitted model of purchases, and of spend.

    Parameters and log-likelihood are in units of `days_per_unit` days; horizons are always days.
    `fingerprint` changes with the summary that the model was fitted on; `notes` say what the log
    cannot show.
    """

    model: str
    estimates: Estimates
    log_likelihood: float
    spend: Spend
    days_per_unit: float
    as_of: dt.date
    customers: int
    fingerprint: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        """What the literature calls the model."""
        return TITLES[self.model]

    @property
    def parameters(self) -> Parameters:
        """The parameters by name, in the literature's order."""
        return self.estimates.parameters

    @property
    def covariance(self) -> pd.DataFrame:
        """The parameters' covariance: the inverse of the observed information, nan without one."""
        import pandas as pd

        names, nothing = list(self.parameters), float("nan")
        known = self.estimates.covariance if self.estimates.maximum else nothing
        return pd.DataFrame(known, index=names, columns=names)

    @property
    def formulas(self) -> PurchaseModel:
        """The formulas of the purchase model."""
        from crmlab import models

        return models.MODELS[self.model]

    def drawn(self, rng: np.random.Generator) -> ClvModel:
        """Return the model with parameters that the log allows as well, drawn."""
        own, spend = self.estimates.drawn(rng), self.spend.estimates.drawn(rng)
        spend["q"] = max(spend["q"], 1.05)  # below 1 the mean of a purchase is infinite
        estimates = replace(self.spend.estimates, parameters=spend)
        return replace(
            self,
            estimates=replace(self.estimates, parameters=own),
            spend=replace(self.spend, estimates=estimates),
        )

    def units(self, days: Any) -> Any:
        """Return a number of days, or an array of them, in the parameters' unit."""
        return days / self.days_per_unit

    def predict(
        self,
        summary: ir.Table,
        *,
        horizon_days: float = 365,
        annual_discount_rate: float = 0.1,
        margin: float,
        intervals: bool = True,
        seed: int = 1,
    ) -> ir.Table:
        """Forecast every customer of a summary.

        Parameters
        ----------
        summary : ibis table as `customers.summary` gives it
        horizon_days : float, how far to look ahead
        annual_discount_rate : float, a share of 1; discounting is continuous
        margin : float, the share of sales that is profit
        intervals : bool, whether to add the last five columns, which take most of the time
        seed : int, of the draws behind `clv_low` and `clv_high`

        Returns
        -------
        ibis table, one row per customer: customer_id; p_alive, the chance of not having stopped
        (1 for every one-time buyer under BG/NBD, so no one should be ranked by it); p_purchase,
        the chance of at least one purchase in the horizon; expected_purchases; expected_value,
        sales in shop currency; clv, profit discounted to today. clv_low and clv_high hold the
        middle 80 % of what such a customer will bring, chance included; clv_sd is its standard
        deviation; clv_mean_low and clv_mean_high are the 95 % interval of clv itself, the mean of
        such customers, if the model is right.

        Raises
        ------
        UsageError if horizon, rate or margin is out of range

        Notes
        -----
        The discounted purchases are integrated by parts, from E[Y(t)] alone. The mean's interval
        is by the delta method on the logarithm, over the parameters of purchases and of spend.
        """
        for name, value, low, high in (
            ("horizon_days", horizon_days, 0.1, 40 * 366),  # in days of an average month too
            ("annual_discount_rate", annual_discount_rate, 0, 10),
            ("margin", margin, 0.0001, 1),
        ):
            tables.check_range(name, value, low, high)
        import ibis
        import numpy as np

        t = self.units(horizon_days)
        rate = np.log1p(annual_discount_rate) * self.days_per_unit / 365
        at_T, at_recency = self._pairs(summary, t, rate, slopes=intervals)
        # Left joins, as DuckDB may begin inner ones with all pairs of the two small tables.
        rows = summary
        for pairs in (at_T, at_recency):
            columns = [*rows.columns, *pairs.columns[2:]]
            rows = rows.left_join(ibis.memtable(pairs), list(pairs.columns[:2])).select(columns)
        still = 1 / (1 + (rows.stopped - rows.still).exp())
        rows = rows.mutate(still_share=still, p_alive=still * rows.alive_of_still)
        count, in_all = self._past_spend(rows)
        p, q, v = self.spend.estimates.parameters.values()
        value = (v + in_all) * p / (count * p + (q - 1))
        clv = rows.p_alive * rows.discounted * value * margin
        forecast = rows.select(
            "customer_id",
            "p_alive",
            p_purchase=rows.p_alive * rows.bought,
            expected_purchases=rows.p_alive * rows.purchases,
            expected_value=rows.p_alive * rows.purchases * value,
            clv=clv,
            **(self._mean_interval(clv, rows, count, in_all) if intervals else {}),
            **({name: rows[name] for name in KEYS} | {"in_all": in_all} if intervals else {}),
        )
        if not intervals:
            return forecast
        keys = [*KEYS, "in_all"]
        unique = forecast.select(keys).distinct().order_by(keys).to_pandas()
        drawn = ibis.memtable(self._drawn(unique, t, rate, margin, seed))
        mean = ["clv_mean_low", "clv_mean_high"]
        names = [name for name in forecast.columns if name not in (*keys, *mean)]
        joined = forecast.inner_join(drawn, keys)
        return joined.select(*names, "clv_low", "clv_high", "clv_sd", *mean)

    def clv_of(
        self, rows: pd.DataFrame, *, horizon_days: float, annual_discount_rate: float, margin: float
    ) -> Array:
        """Return the summed clv of the customers in each row of `alike`."""
        import numpy as np
        import pandas as pd

        from crmlab import models

        names = [*KEYS, "known", "in_all", "customers"]
        x, t_x, T, known, in_all, n = (rows[name].to_numpy(float) for name in names)
        place, pairs = pd.factorize(x * 2.0**24 + T)  # days of 40 thousand years
        t_x, T, t = self.units(t_x), self.units(T), self.units(horizon_days)
        at_x, at_T = pairs // 2**24, self.units(pairs % 2**24)
        rate = np.log1p(annual_discount_rate) * self.days_per_unit / 365
        later = self._discounted(self.parameters, at_x, at_T, t, rate)[place]
        spend = self.spend.estimates.parameters
        spent = n * models.value_of_a_purchase(spend, x * known, in_all / n)
        alive = self.formulas.p_alive(self.parameters, x, t_x, T)
        return np.asarray(margin * alive * later * spent)

    def alike(self, summary: ir.Table, by: str | None = None) -> pd.DataFrame:
        """Return how many customers share a history, and what they spent on repeat purchases.

        And a column of the summary, where one is named in `by`.
        """
        count, in_all = self._past_spend(summary)
        rows = summary.mutate(known=(count > 0).cast("int64"), in_all=in_all)
        keys = [*KEYS, "known", *([by] if by else [])]
        each = rows.group_by(keys).aggregate(in_all=rows.in_all.sum(), customers=rows.count())
        return each.order_by(keys).to_pandas()

    def _pairs(
        self, summary: ir.Table, t: float, rate: float, *, slopes: bool
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return what depends on frequency and T, and on frequency and recency, once per pair.

        With `slopes` also the change of each with the logarithm of each parameter.
        """
        import numpy as np

        at_T, at_recency = (
            summary.select(*pair).distinct().order_by(pair).to_pandas()
            for pair in (["frequency", "T"], ["frequency", "recency"])
        )
        x, T = at_T["frequency"].to_numpy(float), self.units(at_T["T"].to_numpy(float))
        last = at_recency["frequency"].to_numpy(float), self.units(at_recency["recency"])
        formulas, p = self.formulas, self.parameters

        def parts(p: Parameters) -> tuple[Array, Array, Array]:
            later = formulas.alive_of_still(p, x, T) * self._discounted(p, x, T, t, rate)
            stopped = formulas.stopped(p, last[0], last[1].to_numpy(float))
            return np.log(later), formulas.still(p, x, T), stopped

        at_T["still"] = formulas.still(p, x, T)
        at_T["alive_of_still"] = formulas.alive_of_still(p, x, T)
        at_T["bought"] = 1 - formulas.p_silent(p, x, T, t)
        at_T["purchases"] = formulas.purchases_alive(p, x, T, t)
        at_T["discounted"] = self._discounted(p, x, T, t, rate)
        at_recency["stopped"] = formulas.stopped(p, last[0], last[1].to_numpy(float))
        for name, value in p.items() if slopes else ():
            up, down = (parts(p | {name: value * np.exp(h)}) for h in (1e-4, -1e-4))
            with np.errstate(invalid="ignore"):  # nobody stops before a first repeat purchase
                change = [np.nan_to_num((u - d) / 2e-4) for u, d in zip(up, down, strict=True)]
            at_T[f"later {name}"], at_T[f"still {name}"] = change[:2]
            at_recency[f"stopped {name}"] = change[2]
        return at_T, at_recency

    def _discounted(self, p: Parameters, x: Array, T: Array, t: float, rate: float) -> Array:
        """Return the purchases of who has not stopped, discounted, by Gauss and Legendre.

        The nodes crowd together near the start, where new customers of a busy shop slow down.
        """
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(12)
        share = (nodes + 1) / 2
        found = np.exp(-rate * t) * self.formulas.purchases_alive(p, x, T, t)
        for at, weight in zip(t * share**3, weights / 2 * t * 3 * share**2, strict=True):
            until = self.formulas.purchases_alive(p, x, T, at)
            found = found + rate * weight * np.exp(-rate * at) * until
        return np.asarray(found)

    def _past_spend(self, rows: ir.Table) -> tuple[ir.Value, ir.Value]:
        """Return repeat purchases of known value, and their sum; zero for one-time buyers."""
        usable = (rows.frequency > 0) & (rows.monetary_value > 0).fill_null(False)
        count = usable.ifelse(rows.frequency.cast("float64"), 0.0)
        return count, usable.ifelse(count * rows.monetary_value, 0.0)

    def _mean_interval(
        self, clv: ir.Value, rows: ir.Table, count: ir.Value, in_all: ir.Value
    ) -> dict[str, ir.Value]:
        """Return the 95 % interval of clv by the delta method on its logarithm."""
        import ibis

        p, q, v = self.spend.estimates.parameters.values()
        shape = count * p + (q - 1)
        # Slopes of log E[M] in the logarithms of p, q and v; then of the discounted purchases.
        value = (1 - count * p / shape, -q / shape, v / (v + in_all))
        later = [
            rows[f"later {name}"]
            + (1 - rows.still_share) * (rows[f"still {name}"] - rows[f"stopped {name}"])
            for name in self.parameters
        ]
        variance = ibis.literal(0.0)
        for slopes, estimates in ((value, self.spend.estimates), (later, self.estimates)):
            for one, row in zip(slopes, estimates.relative().tolist(), strict=True):
                for other, covariance in zip(slopes, row, strict=True):
                    variance += one * other * covariance
        factor = (variance.clip(lower=0).sqrt() * 1.959964).exp()
        return {"clv_mean_low": clv / factor, "clv_mean_high": clv * factor}

    def _drawn(
        self, rows: pd.DataFrame, t: float, rate: float, margin: float, seed: int
    ) -> pd.DataFrame:
        """Draw what each of the customers will bring; return the middle 80 % and the deviation."""
        import numpy as np

        x, t_x, T, in_all = (rows[name].to_numpy(float) for name in [*KEYS, "in_all"])
        t_x, T = self.units(t_x), self.units(T)
        seeds = np.random.SeedSequence(seed).spawn(1 + len(x) // CHUNK)
        rng = np.random.default_rng(seed)
        pairs = [
            (self.estimates.drawn(rng), self.spend.estimates.drawn(rng))
            for _ in range(PARAMETER_DRAWS)
        ]

        def draw(chunk: int) -> Array:
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            some = (x[part], t_x[part], T[part], in_all[part])
            random = np.random.default_rng(seeds[chunk])
            return self._brought(*some, t, rate, pairs, random)

        with ThreadPoolExecutor() as pool:
            found = np.hstack(list(pool.map(draw, range(len(seeds)))))
        low, high, deviation = found * margin
        return rows.assign(clv_low=low, clv_high=high, clv_sd=deviation)

    def _brought(
        self,
        x: Array,
        t_x: Array,
        T: Array,
        in_all: Array,
        t: float,
        rate: float,
        parameters: list[tuple[Parameters, Parameters]],
        rng: np.random.Generator,
    ) -> Array:
        """Return the 10th and 90th percentile and the deviation of the discounted sales, drawn."""
        import numpy as np

        from crmlab import models

        brought = np.zeros((len(x), PARAMETER_DRAWS * DRAWS_EACH), np.float32)
        p = self.parameters
        shrink = self._discounted(p, x, T, t, rate) / self.formulas.purchases_alive(p, x, T, t)
        for n, (p, spend) in enumerate(parameters):
            alive = self.formulas.p_alive(p, x, t_x, T)
            active = rng.random((len(x), DRAWS_EACH)) < alive[:, None]
            who, column = np.nonzero(active)
            bought = self.formulas.draw(p, x[who], T[who], t, rng)
            who, column, bought = who[bought > 0], column[bought > 0], bought[bought > 0]
            # Who came back, but for nothing, tells no more of the value than who never did.
            known = np.where(in_all > 0, x, 0)[who]
            spent = models.draw_spend(spend, known, in_all[who], bought, rng)
            brought[who, n * DRAWS_EACH + column] = spent * shrink[who]
        deviation = brought.std(axis=1)
        low, high = round(0.1 * brought.shape[1]), round(0.9 * brought.shape[1])
        brought.partition((low - 1, high), axis=1)
        return np.array([brought[:, low - 1], brought[:, high], deviation], float)

    def to_frame(self) -> pd.DataFrame:
        """Return the parameters: one row each, with estimate and standard error."""
        import pandas as pd

        rows = [
            (title, name, value, estimates.standard_errors()[name])
            for title, estimates in (
                (self.title, self.estimates),
                ("Gamma-Gamma", self.spend.estimates),
            )
            for name, value in estimates.parameters.items()
        ]
        return pd.DataFrame(rows, columns=["model", "parameter", "estimate", "standard_error"])

    def _repr_html_(self) -> str:
        numbers = results.Numbers()
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return notes + results.html_table(
            self.to_frame(),
            title=f"{self.title} on {self.customers:,} customers as of {self.as_of}, "
            f"log-likelihood {self.log_likelihood:.3f}, unit {self.days_per_unit:g} days",
            formats=dict.fromkeys(
                ("estimate", "standard_error"), lambda value: numbers.number(value, 4)
            ),
            headings={"standard_error": "standard error"},
        )

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        text = json.dumps(asdict(self), default=str, indent=1)
        scratch = path.with_name(f".{path.name}.part")
        scratch.write_text(text + "\n", encoding="utf-8")
        scratch.replace(path)

    @staticmethod
    def load(path: Path) -> ClvModel:
        """Read a model that `save` wrote; `DataError` where the file is none."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            spend = given.pop("spend")
            given["as_of"] = dt.date.fromisoformat(given["as_of"])
            given["notes"] = tuple(given["notes"])
            estimates = [
                Estimates(one["parameters"], tuple(map(tuple, one["covariance"])), one["maximum"])
                for one in (given.pop("estimates"), spend["estimates"])
            ]
            model = ClvModel(
                estimates=estimates[0], spend=Spend(estimates[1], spend["customers"]), **given
            )
            model.formulas.names  # noqa: B018 a model of a later version is unknown here
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise tables.DataError(f"{path} holds no model that crmlab wrote: {error!r}") from error
        return model
