"""Run the benchmarks: `make bench`. Absolute times are this machine's; the ratios are the claim."""

import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from crmlab import clv, customers, demo, fitting, sources

COPIES = 40  # of the CDNOW master log: 2.8 million lines, 943 thousand customers
ROUNDS = 3

BY_HAND = """
with days as (
    select customer_id, purchased_at::date d, sum(amount::decimal(18, 4)) amount
    from read_parquet('{path}') where customer_id is not null and purchased_at < '1998-07-01'
    group by all having sum(amount::decimal(18, 4)) >= 0)
select customer_id, count(*) - 1 frequency, max(d) - min(d) recency, date '1998-06-30' - min(d) t,
    (sum(amount)::double - arg_min(amount, d)::double) / nullif(count(*) - 1, 0) monetary_value,
    min(d) first_purchase, max(d) last_purchase
from days group by customer_id
"""


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(name, ours, other, peer):
    """Time both in turn, and print the medians and the ratio."""
    pairs = [(seconds(ours), seconds(other)) for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    line = f"{name:<44} {mine:8.2f} s   {peer:<34} {theirs:8.2f} s   {theirs / mine:6.2f} x\n"
    sys.stdout.write(line)


def main():
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CRMLAB_HOME"] = folder
        data = Path(folder, "data")
        demo.prepare(data)
        path = data / "cdnow" / "transactions.parquet"
        one = pd.read_parquet(path)
        copies = [one.assign(customer_id=one["customer_id"] + f"-{n}") for n in range(COPIES)]
        log = pd.concat(copies, ignore_index=True)
        log.to_parquet(path)
        policy = '[policy]\nzero_value_purchases = "count"\n'
        (data / "cdnow" / "shop.toml").write_text(policy, encoding="utf-8")
        shop = sources.open_shop("cdnow")
        shop.check()
        summary = customers.summary(shop, as_of="1998-06-30")
        with fitting.lifetimes_imported():
            from lifetimes import BetaGeoFitter, GammaGammaFitter
            from lifetimes.utils import summary_data_from_transaction_data

        compare(
            f"customers.summary of {len(log):,} lines",
            lambda: summary.to_pyarrow(),
            lambda: duckdb.connect().execute(BY_HAND.format(path=path)).to_arrow_table(),
            "the same in DuckDB SQL by hand",
        )
        compare(
            "",
            lambda: summary.to_pyarrow(),
            lambda: summary_data_from_transaction_data(
                log, "customer_id", "purchased_at", "amount", observation_period_end="1998-06-30"
            ),
            "lifetimes, log already in memory",
        )
        rows = summary.to_pandas()
        x, t_x, T = rows["frequency"], rows["recency"] / 7, rows["T"] / 7
        peer = BetaGeoFitter()
        compare(
            f"clv.fit of {len(rows):,} customers, with spend",
            lambda: clv.fit(summary),
            lambda: peer.fit(x, t_x, T),
            "lifetimes, BG/NBD only",
        )
        model = clv.fit(summary)
        spend = GammaGammaFitter()
        spend.params_ = pd.Series({"p": model.spend.p, "q": model.spend.q, "v": model.spend.v})
        money = np.nan_to_num(rows["monetary_value"])
        compare(
            f"12-month value of {len(rows):,} customers",
            lambda: model.predict(summary, margin=1.0).to_pyarrow(),
            lambda: spend.customer_lifetime_value(
                peer, x, t_x, T, pd.Series(money), time=12, discount_rate=0.008, freq="W"
            ),
            "lifetimes, summary in memory",
        )


if __name__ == "__main__":
    main()
