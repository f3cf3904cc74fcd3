"""Generated worlds of customers who follow a model exactly, and what they then do."""

import datetime as dt
import zlib
from dataclasses import dataclass, replace

import ibis
import numpy as np
import pandas as pd

TRUTH = {
    "bgnbd": {"r": 0.5, "alpha": 4.4, "a": 0.8, "b": 2.4},
    "mbgnbd": {"r": 0.6, "alpha": 5.0, "a": 0.9, "b": 2.0},
    "paretonbd": {"r": 0.6, "alpha": 8.0, "s": 0.7, "beta": 12.0},
}
SPEND = {"p": 6.0, "q": 4.0, "v": 15.0}


def seed_of(name, n=0):
    """A seed that comes from a test's name."""
    return zlib.crc32(f"{name} {n}".encode())


@dataclass
class World:
    """Customers seen for `T` weeks: `x`, `t_x`, what they spend, and what they do afterwards."""

    x: np.ndarray
    t_x: np.ndarray
    T: np.ndarray
    value: np.ndarray  # mean of the repeat purchases, nan where there is none
    later: np.ndarray  # purchases within the horizon after T
    brought: np.ndarray  # their value, discounted to T

    def in_days(self):
        """Return the same world with the last purchase told by its day, as logs have it."""
        return replace(self, t_x=np.minimum(np.ceil(7 * self.t_x), 7 * self.T) / 7)

    def summary(self):
        """Return the ibis summary, times in days, as `customers.summary` gives it."""
        days = np.round(self.T * 7).astype(int)
        last = dt.date(2025, 12, 31)
        return ibis.memtable(
            pd.DataFrame(
                {
                    "customer_id": [f"{i:07d}" for i in range(len(self.x))],
                    "frequency": self.x.astype("int64"),
                    "recency": np.round(self.t_x * 7, 9),
                    "T": days.astype("int64"),
                    "monetary_value": self.value,
                    "first_purchase": [last - dt.timedelta(days=int(d)) for d in days],
                }
            )
        )


def generate(model, n, seed, *, weeks=104, horizon=52.0, yearly=0.1, truth=None):
    """Let `n` customers buy at exponential gaps until they stop as the model says."""
    truth, rng = truth or TRUTH[model], np.random.default_rng(seed)
    rate = rng.gamma(truth["r"], 1 / truth["alpha"], n)
    T = rng.integers(7 * weeks // 4, 7 * weeks, n) / 7
    stop_at, p_stop = np.full(n, np.inf), np.zeros(n)
    if model == "paretonbd":
        stop_at = rng.exponential(1 / rng.gamma(truth["s"], 1 / truth["beta"], n))
    elif model != "nbd":
        p_stop = rng.beta(truth["a"], truth["b"], n)
    scale = 1 / rng.gamma(SPEND["q"], 1 / SPEND["v"], n)  # of one purchase, Gamma(p)
    x, t_x, spent, clock, later, brought = np.zeros((6, n))
    active = np.ones(n, bool)
    if model == "mbgnbd":
        active &= rng.uniform(size=n) >= p_stop
    while active.any():
        clock[active] += rng.exponential(1 / rate[active])
        active &= (clock <= T + horizon) & (clock <= stop_at)
        value = rng.gamma(SPEND["p"], scale)
        seen = active & (clock <= T)
        x[seen] += 1
        t_x[seen] = clock[seen]
        spent[seen] += value[seen]
        after = active & (clock > T)
        later[after] += 1
        brought[after] += value[after] * (1 + yearly) ** (-(clock - T)[after] * 7 / 365)
        active &= rng.uniform(size=n) >= p_stop
    mean = np.divide(spent, x, out=np.full(n, np.nan), where=x > 0)
    return World(x, t_x, T, mean, later, brought)


def coverage(model, worlds, n, name, first=0):
    """How often the intervals of fits to `worlds` of `n` customers hold what they should hold.

    Returns a frame, a row per world: the share of the customers whose mean interval holds their
    true expected value, and the shares whose predictive interval holds what they then brought, of
    all and by number of past purchases.
    """
    from crmlab import clv, models

    formulas, truth = models.MODELS[model], TRUTH[model]
    rows = []
    for number in range(first, first + worlds):
        world = generate(model, n, seed_of(name, number))
        fitted = clv.fit(world.summary(), model=model)
        values = fitted.predict(world.summary(), horizon_days=364, margin=1.0, seed=number)
        values = values.order_by("customer_id").to_pandas()
        same = replace(fitted.estimates, parameters=truth)
        true = replace(fitted, model=model, estimates=same)
        rate = np.log(1.1) * 7 / 365
        expected = true._discounted(truth, world.x, world.T, 52.0, rate)
        expected *= formulas.p_alive(truth, world.x, world.t_x, world.T)
        in_all = np.where(world.x > 0, world.x * world.value, 0)
        expected *= models.value_of_a_purchase(SPEND, world.x, in_all)
        mean = values["clv_mean_low"].le(expected) & values["clv_mean_high"].ge(expected)
        # The draws are kept with seven digits, and nothing is nothing.
        held = values["clv_low"].mul(1 - 1e-6).le(world.brought)
        held &= values["clv_high"].mul(1 + 1e-6).ge(world.brought)
        groups = {"0": world.x == 0, "1-3": (world.x > 0) & (world.x < 4), "4+": world.x >= 4}
        rows.append(
            {"mean": mean.mean(), "all": held.mean()}
            | {group: held[where].mean() for group, where in groups.items()}
        )
    return pd.DataFrame(rows)


def totals(model, worlds, n, name, first=0):
    """How often the model's own range of a total, and of two segments, holds what then came.

    Returns a frame, a row per world: whether that of all did, and the share of the segments.
    """
    from crmlab import clv
    from crmlab import totals as sums

    terms = {"horizon_days": 364, "margin": 1.0, "annual_discount_rate": 0.1}
    none = clv.Checks(
        pd.DataFrame({"total_error": [], "sales_error": [], "horizon_days": []}), 364, 728, None
    )
    rows = []
    for number in range(first, first + worlds):
        world = generate(model, n, seed_of(name, number))
        summary = world.summary()
        fitted = clv.fit(summary, model=model)
        values = fitted.predict(summary, **terms, seed=number)
        ids = summary.to_pandas()["customer_id"]
        came = {"all": world.brought.sum()}
        for label, where in (("old", world.T > 52), ("new", world.T <= 52)):
            came[label] = world.brought[where].sum()
        held = {}
        for what in (np.full(n, "all"), np.where(world.T > 52, "old", "new")):
            labels = ibis.memtable(pd.DataFrame({"customer_id": ids, "segment": what}))
            found = sums.ranges(fitted, summary, values, labels, terms, none, number)
            for row in found.itertuples():
                held[row.segment] = float(row.low <= came[row.segment] <= row.high)
        rows.append({"all": held["all"], "segments": (held["old"] + held["new"]) / 2})
    return pd.DataFrame(rows)
