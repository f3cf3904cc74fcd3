"""What is measured, each piece in a process of its own: `python -m tests.benchmarks.work NAME {}`.

A piece prints one line of JSON. Its extra memory, in MB, is the most that the process ever held
less what it held after the imports.
"""

import dataclasses
import inspect
import json
import os
import pickle
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

warnings.simplefilter("ignore")

AS_OF = "2025-12-31"
PLACE = 'timezone = "UTC"\n'

# 2023-01-01 to 2025-12-31: a receipt is two lines of one customer, place and time.
LOG = """copy (
    select 'C' || lpad((hash(7 * receipt) % {customers})::varchar, 7, '0') as customer_id,
        timestamp '2023-01-01' + to_seconds((hash(7 * receipt + 1) % (1096 * 86400))::bigint)
            as purchased_at,
        ((hash(7 * i + 2) % 10000)::bigint / 100 - 3)::decimal(18, 4) as amount,
        'R' || receipt as transaction_id,
        'P' || lpad((hash(7 * i + 3) % 5000)::varchar, 4, '0') as product_id,
        'S' || lpad((hash(7 * receipt + 4) % 20)::varchar, 2, '0') as store_id,
        (1 + hash(7 * i + 5) % 4)::double as quantity
    from (select i, i // 2 as receipt from range({first}, {last}) as lines(i))
) to '{path}' (format parquet)"""

BY_HAND = """copy (
    with days as (
        select customer_id, purchased_at::date as day, sum(amount) as amount
        from read_parquet('{path}')
        where customer_id is not null and purchased_at < date '{as_of}' + 1
        group by all having sum(amount) > 0
    )
    select customer_id, count(*) - 1 as frequency, max(day) - min(day) as recency,
        date '{as_of}' - min(day) as T,
        (sum(amount)::double - arg_min(amount, day)::double) / nullif(count(*) - 1, 0)
            as monetary_value,
        min(day) as first_purchase, max(day) as last_purchase
    from days group by customer_id
) to '{out}' (format parquet)"""


def memory(which):
    """Return VmRSS, or VmHWM, its most so far: unlike getrusage it leaves the parent's out."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+) kB", status)[1]) / 1024


@contextmanager
def clock(into, name):
    wall, processor = time.perf_counter(), time.process_time()
    yield
    into[name] = time.perf_counter() - wall
    into[f"{name} cpu"] = time.process_time() - processor


def generate(folder, rows, customers, files):
    """Write the log, in one file or a folder of them, and a shop.toml."""
    import duckdb

    with duckdb.connect() as connection:
        per_file = rows // files
        for number in range(files):
            name = "transactions.parquet" if files == 1 else f"transactions/{number:03}.parquet"
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            first = number * per_file
            connection.execute(
                LOG.format(path=path, customers=customers, first=first, last=first + per_file)
            )
    Path(folder, "shop.toml").write_text(PLACE, encoding="utf-8")
    held = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    return {"megabytes": held / 2**20}


def opened(folder, memory_limit=""):
    """Return a shop, and all that its first use imports."""
    import pandas as pd  # noqa: F401
    import pyarrow.parquet as pq  # noqa: F401

    from crmlab import customers, sources

    shop = sources.open_shop(str(Path(folder, "shop.toml")))
    if memory_limit:
        shop.engines.local.con.execute(f"set memory_limit = '{memory_limit}'")
    shop.engines.local.con.execute("select 1")
    return shop, customers, memory("VmRSS")


@contextmanager
def measured(shop, before, found, name):
    """Put into `found` the seconds, the memory, and how much DuckDB spilled at most, in MB."""
    spill, done, seen = Path(shop.engines.local.crmlab_folder, "spill"), threading.Event(), [0]

    def watch():
        while not done.wait(0.2):
            with suppress(OSError):  # a file may go while it is looked at
                seen.append(sum(path.stat().st_blocks * 512 for path in spill.rglob("*")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with clock(found, name):
            yield
    finally:
        done.set()
        watcher.join()
    peak = memory("VmHWM")
    found |= {"extra": peak - before, "peak": peak, "spilled": max(seen) / 2**20}


def check(folder, memory_limit=""):
    """Check a shop; the answer is kept, so that `summary` can begin where it ended."""
    shop, _, before = opened(folder, memory_limit)
    found = {}
    with measured(shop, before, found, "check"):
        answer = shop.check()
    Path(folder, "check.pickle").write_bytes(pickle.dumps([answer, shop._readings]))
    return found


def summary(folder, memory_limit=""):
    """Summarise a shop that was checked before, in a fresh process."""
    shop, customers, before = opened(folder, memory_limit)
    answer, readings = pickle.loads(Path(folder, "check.pickle").read_bytes())
    shop._checks["transactions", type(answer.last).max] = answer
    shop._readings.update(readings)
    found = {}
    with measured(shop, before, found, "summary"):
        rows = customers.summary(shop, as_of=AS_OF)
    return found | {"customers": rows.count().execute()}


def lifetimes_summary(folder):
    """Summarise the same log with lifetimes; Parquet into pandas is part of its work."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crmlab import fitting

    with fitting.lifetimes_imported():
        from lifetimes.utils import summary_data_from_transaction_data
    before, found = memory("VmRSS"), {}
    with clock(found, "read"):
        # Only the columns it needs, money as float64: decimals in pandas are Python's, far slower.
        log = pq.read_table(
            Path(folder, "transactions.parquet"),
            columns=["customer_id", "purchased_at", "amount"],
        )
        log = log.set_column(2, "amount", log["amount"].cast(pa.float64())).to_pandas()
    with clock(found, "summary"):
        rows = summary_data_from_transaction_data(
            log, "customer_id", "purchased_at", "amount", observation_period_end=AS_OF
        )
    assert isinstance(rows, pd.DataFrame)
    return found | {"extra": memory("VmHWM") - before, "customers": len(rows)}


def by_hand(folder, rounds):
    """Time `customers.summary` and the hand-written query in turn, both into Parquet."""
    import duckdb

    shop, customers, _ = opened(folder)
    shop.check()
    pairs = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "by-hand.parquet")
        query = BY_HAND.format(path=Path(folder, "transactions.parquet"), as_of=AS_OF, out=out)
        with duckdb.connect(config={"temp_directory": scratch}) as connection:
            connection.execute("set enable_progress_bar = false")
            for turn in range(rounds + 1):  # the first is to warm up
                pair = {}
                for name in ("ours", "hand")[:: 1 if turn % 2 else -1]:
                    with clock(pair, name):
                        if name == "ours":
                            rows = customers.summary(shop, as_of=AS_OF)
                        else:
                            connection.execute(query)
                pairs.append(pair)
        other = shop.engines.local.read_parquet(str(out))
        other = other.cast(dict(rows.schema()))[list(rows.columns)]
        different = ours_less = rows.difference(other).count().execute()
        different += other.difference(rows).count().execute()
        assert different == 0, f"{different} rows differ, {ours_less} of them ours"
    return {name: [pair[name] for pair in pairs[1:]] for name in pairs[0]}


def stages(folder, rounds):
    """Time the life stages, their flows and the summary in turn, in one process."""
    shop, customers, _ = opened(folder)
    shop.check()
    asked = {
        "summary": lambda: customers.summary(shop, as_of=AS_OF),
        # The stage itself is computed where it is looked at.
        "stages": lambda: customers.stages(shop, as_of=AS_OF).stage.value_counts().execute(),
        "flows": lambda: customers.flows(shop, start="2025-11-30", end=AS_OF),
    }
    return in_turn(asked, rounds)


def in_turn(asked, rounds):
    """Time several questions one after the other, so often; the first round is to warm up."""
    turns = []
    for _ in range(rounds + 1):
        turns.append({})
        for name, ask in asked.items():
            with clock(turns[-1], name):
                ask()
    return {name: [turn[name] for turn in turns[1:]] for name in turns[0]}


def learnable(folder, rounds):
    """Time the features of a risk and the summary in turn, in one process."""
    from crmlab import features

    shop, customers, _ = opened(folder)
    shop.check()
    asked = {
        "summary": lambda: customers.summary(shop, as_of=AS_OF),
        "features": lambda: shop.landed(features.features(shop, as_of=AS_OF), "features"),
    }
    return in_turn(asked, rounds)


def risks_of(folder):
    """Time scoring every customer with reasons, by each kind of method."""
    import datetime as dt

    from crmlab import candidates, features, reasons, risks, tables

    shop, customers, _ = opened(folder)
    shop.check()
    day, found = tables.day(AS_OF), {}
    block = risks.block(shop, day - dt.timedelta(182), 182, risks.numbered(shop, day))
    rows = shop.landed(features.features(shop, as_of=AS_OF), "features")
    found["customers"] = rows.count().to_pyarrow().as_py()
    forms = risks.closed_forms(shop, day, 182, block.rows.frame)
    learnt = {
        name: candidates.learn(name, block.rows) for name in ("scorecard", "gradient boosting")
    }
    before = memory("VmHWM")
    for name, scorer in {"closed form": next(iter(forms.values())), **learnt}.items():
        with clock(found, name):
            reasons.scored(scorer, rows, shop.landed)
    return found | {"extra": memory("VmHWM") - before}


def measured_arms(rounds):
    """Compare three arms in five outcomes, from a table of DuckDB, in turn with tea-tasting."""
    import ibis

    from crmlab import lifts, outcomes

    con = ibis.duckdb.connect()
    con.con.execute("""create table arms as select
        ['holdout', 'a', 'b'][1 + (hash(i) % 3)::int] as arm,
        (hash(2 * i) % 10 = 0)::double as response, (hash(3 * i) % 4)::double as purchases,
        (hash(5 * i) % 9000)::double / 100 as spend, (hash(7 * i) % 3000)::double / 100 as margin,
        (hash(11 * i) % 100)::double as visits, (hash(13 * i) % 2)::double as before
        from range(1000000) as t(i)""")
    rows, names = con.table("arms"), ["response", "purchases", "spend", "margin", "visits"]
    pairs = {name: (name, "before") for name in names}
    sizes = {"holdout": 333_333, "a": 333_333, "b": 333_333}

    def ours():
        groups = outcomes.moments(rows, pairs)
        return lifts.differences(groups, names, sizes=sizes, primary="spend", alpha=0.05)

    asked = {"ours": ours}
    with suppress(ImportError):
        import tea_tasting as tt

        peer = tt.Experiment({name: tt.Mean(name, "before") for name in names}, variant="arm")
        asked["theirs"] = lambda: peer.analyze(rows, control="holdout", all_variants=True)
    return {"theirs": []} | in_turn(asked, rounds)


def planned(folder, customers):
    """Plan a campaign of all customers of a shop: ten rules, consent, hold-out by stratum."""
    import duckdb

    from crmlab import audiences, campaigns, sources

    home = Path(folder, "home")
    (home / "data" / "big").mkdir(parents=True)
    (home / "reports").mkdir()
    (home / "reports" / "reports.toml").write_text("")
    os.environ["CRMLAB_HOME"] = str(home)
    data = home / "data" / "big"
    (data / "shop.toml").write_text(PLACE)
    duckdb.sql(LOG.format(customers=customers, first=0, last=4 * customers,
                          path=data / "transactions.parquet"))  # fmt: skip
    duckdb.sql(f"""copy (select 'C' || lpad(i::varchar, 7, '0') as customer_id,
        date '1950-01-01' + (hash(i) % 20000)::int as birth_date,
        ['f', 'm'][1 + (hash(3 * i) % 2)::int] as sex, 'R' || hash(5 * i) % 9 as region,
        ['email', 'post'][1 + (hash(7 * i) % 2)::int] as preferred_channel
        from range({customers}) as t(i)) to '{data}/customers.parquet'""")
    duckdb.sql(f"""copy (select 'C' || lpad(i::varchar, 7, '0') as customer_id, channel,
        'given' as status from range({customers}) as t(i), (values ('email'), ('post')) v(channel)
        where hash(i) % 20 > 0) to '{data}/consents.parquet'""")
    shop = sources.open_shop("big")
    rules = [
        {"column": "age", "from": 18, "to": 90}, {"column": "sex", "is": ["f", "m"]},
        {"column": "region", "is_not": "R8"}, {"column": "spend_year", "from": -1000},
        {"column": "purchases", "from": 1}, {"column": "silent", "to": 2000},
        {"column": "frequency", "to": 500}, {"column": "birth_date", "known": True},
        {"column": "days_since_first", "from": 1}, {"column": "purchases", "days": 2000},
    ]  # fmt: skip
    audience = audiences.audience(shop, as_of=AS_OF, rules=rules)
    for name in ("consents", "transactions"):
        shop.table(name)
    found, before = {}, memory("VmRSS")
    arms = [{"name": "a", "channels": ["email", "post"], "contact_cost": 0.1}]
    with clock(found, "plan"):
        plan = campaigns.plan(audience, shop, as_of=AS_OF, rules=rules, arms=arms, margin=0.3)
    with clock(found, "write"):
        plan.write()
    assert plan.contacted > customers / 2
    return found | {"extra": memory("VmHWM") - before}


def hillstrom():
    """Fit a T-learner on half of Hillstrom's campaign; its Qini with 500 bootstraps."""
    from tests import test_learning
    from tests.conftest import REFERENCE_DATA

    if not (REFERENCE_DATA / "hillstrom.csv.gz").exists():
        return {"seconds": None}
    train, test = test_learning.hillstrom("Womens E-Mail")
    treated, outcome = test_learning.arms(test)
    found = {}
    with clock(found, "seconds"):
        score = test_learning.learning.score_split(train, test)
        test_learning.draws({"t": score}, treated, outcome, times=500, seed=1)
    return found


def campaign_worlds(folder, worlds, first):
    """Whether the intervals of generated campaigns hold the truth, world by world."""
    from tests.test_uplift import held_the_truth

    Path(folder).mkdir(parents=True)
    both = [held_the_truth(Path(folder), 10_000 + first + n) for n in range(worlds)]
    return {name: [bool(one[n]) for one in both] for n, name in enumerate(("purchases", "spend"))}


def scans(folder, table):
    """Count how often the check reads a table: the scans of its file in all queries, as they ran.

    Each query is taken from DuckDB's own log and run once more under EXPLAIN ANALYZE, whose scans
    name their file. The reading of a text file itself, before it is a table, is not counted here.
    """
    from crmlab import tables

    shop, _, _ = opened(folder)
    connection = shop.engines.local.con
    connection.execute("call enable_logging('QueryLog')")
    shop.check(table)
    connection.execute("call disable_logging()")
    queries = connection.execute(
        "select message from duckdb_logs where type = 'QueryLog' order by timestamp"
    ).fetchall()
    source = shop._source(tables.CONTRACT[table])
    landed = shop.engines.local.crmlab_folder
    file = str(next(landed.glob(f"{table}-*.parquet")) if source.text else source.paths[0])
    counts = []
    for (query,) in queries:
        if re.match(r"(with|select|copy)\b", query.lstrip(), re.IGNORECASE):
            [(_, plan)] = connection.execute(f"explain (analyze, format json) {query}").fetchall()
            counts.append(sum(_reads(node, file) for node in json.loads(plan)["operator"]))
    assert sum(counts), "no scan of the table was seen: the plans have another form than expected"
    return {"scans": sum(counts), "queries": len(counts)}


def csv_scans(folder):
    """Count the same where the transactions are a text file, whose dialect is found out too."""
    import duckdb

    folder = Path(folder)
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (from '{folder}/transactions.parquet' limit 200000) "
            f"to '{folder}/transactions.csv'"
        )
    (folder / "transactions.parquet").unlink()
    return scans(folder, "transactions")


def cdnow(folder):
    """Make a project of one shop, the CDNOW log."""
    from crmlab import demo

    demo.cdnow(Path(folder, "data"))
    Path(folder, "reports").mkdir()
    Path(folder, "reports", "reports.toml").touch()
    shutil.copy(Path("data", "cdnow", "shop.toml"), Path(folder, "data", "cdnow"))
    return {}


def _reads(node, file):
    here = file in str(node["extra_info"].get("Filename(s)", ""))
    return here + sum(_reads(child, file) for child in node.get("children", []))


def simulate(folder, customers):
    """Generate the demo shop."""
    import pyarrow.parquet as pq

    from crmlab import simulation

    Path(folder).mkdir(parents=True, exist_ok=True)
    import numpy  # noqa: F401, ICN001

    before, found = memory("VmRSS"), {}
    with clock(found, "write"):
        simulation.write(Path(folder), customers=customers, seed=1)
    extra, peak = memory("VmHWM") - before, memory("VmHWM")
    rows = {path.stem: pq.read_metadata(path).num_rows for path in Path(folder).glob("*.parquet")}
    Path(folder, "shop.toml").write_text(PLACE, encoding="utf-8")
    return (
        found
        | {"lines": rows["transactions"], "rows": sum(rows.values())}
        | {
            "extra": extra,
            "peak": peak,
        }
    )


def fits(customers, model, rounds, peer=True):
    """Fit, and value for a year, generated customers: ours and lifetimes' in turn."""
    import ibis
    import numpy as np
    import pandas as pd

    from crmlab import clv, fitting
    from tests import worlds

    world = worlds.generate(model, customers, worlds.seed_of("fits")).in_days()
    rows = ibis.duckdb.connect().create_table("summary", world.summary().to_pyarrow())
    frame = rows.to_pandas()
    x, t_x, age = frame["frequency"], frame["recency"] / 7, frame["T"] / 7
    money = pd.Series(np.nan_to_num(frame["monetary_value"]))
    clv.fit(rows.limit(2_000), model=model)  # the imports
    with fitting.lifetimes_imported() as lifetimes:
        kind = {"bgnbd": "BetaGeoFitter", "paretonbd": "ParetoNBDFitter"}[model]
        theirs, spend = getattr(lifetimes, kind)(), lifetimes.GammaGammaFitter()
    found = []
    for _ in range(rounds):
        found.append({})
        with clock(found[-1], "fit"):
            fitted = clv.fit(rows, model=model)
        with clock(found[-1], "predict"):
            fitted.predict(rows, margin=1.0, intervals=False).to_pyarrow()
        if not peer:
            continue
        with clock(found[-1], "peer fit"):
            theirs.fit(x, t_x, age)
        spend.params_ = pd.Series(fitted.spend.estimates.parameters)
        with clock(found[-1], "peer predict"):
            if model == "bgnbd":
                spend.customer_lifetime_value(
                    theirs, x, t_x, age, money, time=12, discount_rate=0.008, freq="W"
                )
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def intervals(folder, customers):
    """Value generated customers with both intervals."""
    import ibis

    from crmlab import clv
    from tests import worlds

    path = Path(folder, "intervals.parquet")
    if not path.exists():  # in a process of its own, so that its memory is not counted
        world = worlds.generate("bgnbd", customers, worlds.seed_of("intervals")).in_days()
        world.summary().to_parquet(path)
        return {}
    rows, found = ibis.duckdb.connect().read_parquet(path), {}
    model = clv.fit(rows)
    with clock(found, "intervals"):
        model.predict(rows, margin=1.0).to_parquet(Path(folder, "values.parquet"))
    return found | {"peak": memory("VmHWM")}


def backtest(folder):
    """Make the hold-out check of the CDNOW master log: all models, one split."""
    cdnow(folder)
    from crmlab import clv, sources

    shop, found = sources.open_shop("cdnow"), {}
    shop.check()
    with clock(found, "backtest"):
        clv.backtest(shop, split="1997-09-30", horizon_days=273)
    return found


def hits(folder):
    """Hold ranges of the sales to come, as the page would have said them, against what came."""
    import datetime as dt

    cdnow(folder)
    from crmlab import clv, customers, sources

    shop, rows = sources.open_shop("cdnow"), []
    for as_of, days in (("1997-09-30", 273), ("1997-12-31", 181), ("1998-03-31", 91)):
        summary = customers.summary(shop, as_of=as_of)
        terms = {"horizon_days": days, "margin": 1.0, "annual_discount_rate": 0.0}
        model = clv.fit(summary, model="mbgnbd")  # what the days before these favour
        values = model.predict(summary, **terms)
        checks = clv.checks(shop, as_of=as_of, horizon_days=days, models=["mbgnbd"])
        none = clv.Checks(checks.rows.iloc[:0], days, checks.log_days, shop.numbers)
        later = customers.purchase_days(
            shop, as_of=dt.date.fromisoformat(as_of) + dt.timedelta(days)
        )
        later = later.filter(later.purchased_on > as_of)
        came = float(later.semi_join(summary, "customer_id").amount.sum().to_pyarrow().as_py())
        for name, given in (("model only", none), ("as on the page", checks)):
            between = clv.total_range(model, summary, values, **terms, checks=given)
            rows.append([as_of, days, name, between.low, between.high, between.caveat, came])
    return {"rows": rows}


def scored(folder, memory_limit=""):
    """Bring a log to the table of every customer's value: check, summary, fit, forecast."""
    shop, customers, before = opened(folder, memory_limit)
    from crmlab import clv

    found = {}
    with measured(shop, before, found, "scored"):
        rows = customers.summary(shop, as_of=AS_OF)
        values = clv.fit(rows).predict(rows, margin=0.3, intervals=False)
        values.to_parquet(Path(folder, "values.parquet"))
    return found


def rings(customers, stores, rounds):
    """Count customers by ring and sector: ours, with numpy, and with haversine in SQL, in turn."""
    import ibis
    import numpy as np

    from crmlab import catchment, places

    radii, con = (5, 10, 20), ibis.duckdb.connect()
    con.raw_sql("select setseed(0.5)")
    con.raw_sql(f"""create table people as select 48.62 + (random() - .5) * .4 as latitude,
        23.14 + (random() - .5) * .6 as longitude, random() < .6 as member, random() * 100 as spend,
        floor(random() * 100) as points from range({customers})""")
    con.raw_sql(f"""create table stores as select 'S' || i as store_id,
        48.62 + (random() - .5) * .1 as latitude, 23.14 + (random() - .5) * .1 as longitude
        from range({stores}) t(i)""")
    began = time.perf_counter()
    con.create_table("prepared", places.on_sphere(con.table("people")))
    found = {"prepare": time.perf_counter() - began, "ours": [], "numpy": [], "haversine": []}
    at = con.table("stores").to_pandas()
    frame = con.table("people").to_pandas()
    prepared = con.table("prepared")
    compass = places.compass(con.table("stores"), "store_id")

    def ours():
        return catchment.count_cells(prepared, compass, rings_km=radii, sectors=8).to_pandas()

    def with_numpy():
        north, east = np.radians(frame["latitude"].to_numpy()), np.radians(frame["longitude"])
        east, rows = east.to_numpy(), []
        for store in at.itertuples():
            up, along = np.radians(store.latitude), np.radians(store.longitude)
            half = np.sin((north - up) / 2) ** 2
            half += np.cos(north) * np.cos(up) * np.sin((east - along) / 2) ** 2
            far = 2 * places.EARTH_KM * np.arcsin(np.sqrt(half))
            turn = np.degrees(np.arctan2(
                np.sin(east - along) * np.cos(north), np.cos(up) * np.sin(north)
                - np.sin(up) * np.cos(north) * np.cos(east - along)))  # fmt: skip
            sector = np.floor(turn % 360 / 45 + 0.5).astype(int) % 8
            cell = np.searchsorted(radii, far) * 8 + sector
            sums = [np.bincount(cell, minlength=32, weights=frame[name])
                    for name in ("member", "spend", "points")]  # fmt: skip
            rows.append([np.bincount(cell, minlength=32), *sums])
        return rows

    def haversine():
        far = f"""2 * {places.EARTH_KM} * asin(sqrt(sin(radians(p.latitude - s.latitude) / 2) ** 2
            + cos(radians(p.latitude)) * cos(radians(s.latitude))
            * sin(radians(p.longitude - s.longitude) / 2) ** 2))"""
        turn = """degrees(atan2(sin(radians(p.longitude - s.longitude)) * cos(radians(p.latitude)),
            cos(radians(s.latitude)) * sin(radians(p.latitude)) - sin(radians(s.latitude))
            * cos(radians(p.latitude)) * cos(radians(p.longitude - s.longitude))))"""
        return con.con.execute(f"""with cells as (select store_id, member, spend, points,
            {far} as km, {turn} as turn from people p cross join stores s)
            select store_id, (km > 5)::int + (km > 10)::int + (km > 20)::int as ring,
            floor((turn + 382.5) / 45)::int % 8 as sector, count(*) as customers,
            sum(member::int), sum(spend), sum(points) from cells group by all""").df()

    for _ in range(rounds):
        for name, count in (("ours", ours), ("numpy", with_numpy), ("haversine", haversine)):
            began = time.perf_counter()
            rows = count()
            found[name].append(time.perf_counter() - began)
            if name == "ours":
                mine = rows.set_index(["store_id", "ring", "sector"])["customers"].sort_index()
            elif name == "haversine":
                other = rows.set_index(["store_id", "ring", "sector"])["customers"].sort_index()
    found["moved"] = float((mine - other.astype(int)).abs().sum())
    return found


def drawn(folder, rounds):
    """Open a map of 3,025 squares in Chromium, with words for each and without."""
    import shutil

    from playwright.sync_api import sync_playwright

    from crmlab import maps, places, results

    found, numbers = {}, results.Numbers("en_GB", "EUR")
    for name in ("with words", "without"):
        shapes = [
            maps.Shape(
                places.square_shape(n // 55, n % 55, side_km=0.5, middle=0.0),
                f"{n} customers" if name == "with words" else "", n // 55,
            )
            for n in range(55 * 55)
        ]  # fmt: skip
        layer = maps.Layer("n", shapes, "Customers")
        chart = maps.draw("Where?", "Everywhere.", layers=[layer], numbers=numbers)
        path = Path(folder, f"{name}.html")
        path.write_text(chart.standalone(), encoding="utf-8")
        found[f"{name}, KB"] = path.stat().st_size / 1000
        with sync_playwright() as player:
            browser = player.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            tab = browser.new_page()
            found[name] = []
            for _ in range(rounds):
                tab.goto(path.as_uri())
                frame = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
                tab.evaluate(frame)
                found[name].append(tab.evaluate("performance.now() / 1000"))
            browser.close()
    return found


def ledger(folder, rows, pages):
    """Fill a ledger with published runs of many pages, as a year of schedules leaves it."""
    import datetime as dt

    from crmlab import reports
    from crmlab.reports import ledger, runner

    home = Path(folder)
    report = dataclasses.replace(reports.load(home)["quick"], sweep={}, schedule="")
    site, entered = home / "reports" / "site", []
    kpis = [
        {"label": f"figure {number}", "value": number * 1.5, "kind": "count", "better": "",
         "note": "", "text": f"{number * 1.5:,}"}
        for number in range(5)
    ]  # fmt: skip
    for number in range(rows):
        day = dt.datetime(2025, 1, 1, 6, tzinfo=dt.UTC) + dt.timedelta(days=number // pages * 7)
        manifest = runner.manifest_of(report, "small", "Small", day, {"word": f"p{number % pages}"})
        page = f"{manifest['key']}/{day:%Y%m%dT%H%M%SZ}.html"
        manifest |= {
            "state": "published", "page": page, "title": "What?", "summary": "Some words. " * 20,
            "kpis": kpis, "left_out": [], "notices": [], "started": day.isoformat(),
            "as_of": day.date().isoformat(), "attempt": 1,
        }  # fmt: skip
        (site / page).parent.mkdir(parents=True, exist_ok=True)
        (site / page).touch()
        entered.append(manifest)
    ledger.enter(home, entered)
    return {}


def front_page(folder):
    """Write the front page anew."""
    from crmlab.reports import index

    index.write(Path(folder))
    began = time.perf_counter()
    index.write(Path(folder))
    return {"seconds": time.perf_counter() - began}


def coverage(model, worlds, first):
    """Count how often intervals hold the truth in generated worlds of 1,500 customers."""
    from tests import worlds as generated

    means = generated.coverage(model, worlds, 1500, "mean intervals", first)
    sums = generated.totals(model, worlds, 1500, "totals", first)
    return {"mean": list(means["mean"]), "predictive": list(means["all"])} | {
        name: list(sums[name]) for name in sums
    }


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    piece = {name: one for name, one in globals().items() if inspect.isfunction(one)}[sys.argv[1]]
    answer = piece(**json.loads(sys.argv[2]))
    sys.stdout.write("\n" + json.dumps(answer, default=float) + "\n")
