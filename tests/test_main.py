"""The commands as a user and a scheduler call them: in a process of their own."""

import os
import re
import stat
import subprocess
import sys
import time

import pytest

ROW = "customer_id,purchased_at,amount\n"


@pytest.fixture
def crmlab(tmp_path, home):
    """Run a command in a project of its own; the demo shops are linked in."""
    (tmp_path / "data").mkdir()
    (tmp_path / "reports").mkdir()
    for name in ("cdnow", "cdnow-sample"):
        (tmp_path / "data" / name).symlink_to(home / "data" / name)
    (tmp_path / "notebooks").symlink_to(home / "notebooks")
    text = (home / "reports" / "reports.toml").read_text()
    (tmp_path / "reports" / "reports.toml").write_text(text)

    def run(*words):
        environment = {**os.environ, "CRMLAB_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-m", "crmlab", *words],
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
        )

    run.home = tmp_path
    return run


def add_shop(home, name, csv, toml=""):
    (home / "data" / name).mkdir()
    (home / "data" / name / "shop.toml").write_text(toml)
    if csv is not None:
        (home / "data" / name / "transactions.csv").write_text(csv)


def test_shops_are_listed_with_what_they_hold(crmlab):
    add_shop(crmlab.home, "broken", "a,b\n1,2\n")
    add_shop(crmlab.home, "empty", None)
    done = crmlab("shops")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "CDNOW: transactions 69,659 rows, 1997-01-01 to 1998-06-30" in lines["cdnow"]
    assert "has no column for" in lines["broken"]
    assert "no data" in lines["empty"]


def test_check_prints_the_counts_and_where_the_rows_set_aside_are(crmlab):
    done = crmlab("check", "cdnow")
    assert done.returncode == 0
    assert re.search(r" 69,659 +2,500,315.63  used\n", done.stdout)
    assert re.search(r" 255 +noted: line equal", done.stdout)
    assert re.search(r"customers from customers.parquet\n +23,570  rows read", done.stdout)
    add_shop(crmlab.home, "dirty", ROW + "a,2024-01-01,1\nb,2024-01-02,1\nc,never,1\n")
    done = crmlab("check", "dirty")
    assert done.returncode == 0
    assert re.search(r" 1 +1.00  set aside: purchased_at unreadable, such as 'never'", done.stdout)
    assert "reports/private/dirty/set_aside/transactions.parquet\n" in done.stdout
    assert "report clv " in done.stdout
    assert stat.S_IMODE((crmlab.home / "reports" / "private").stat().st_mode) == 0o700


def test_report_prints_its_page_and_the_index_lists_it(crmlab):
    done = crmlab("report", "cdnow-clv", "--slot", "2026-01-05T06:00", "--set", "horizon_days=90")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/index.html")
    assert "36/36 cells" in done.stderr
    assert "Warning" not in done.stderr
    assert "next 90 days" in (crmlab.home / "reports" / "site" / "index.html").read_text()


ERRORS = {
    "an unknown shop": (("check", "cdnov"), 2, "No shop 'cdnov'"),
    "a shop without data": (("check", "empty"), 3, "has no file"),
    "a missing column": (("check", "columns"), 3, "has no column for"),
    "unreadable dates": (("check", "dates"), 3, "date_format"),
    "text for amounts": (("check", "amounts"), 3, "amount unreadable"),
    "an empty table": (("check", "norows"), 3, "is empty"),
    "an unknown report": (("report", "cdnow-clw"), 2, "Did you mean 'cdnow-clv'?"),
    "a report of an unknown shop": (("report", "cdnow-clv", "--shop", "no"), 2, "No shop 'no'"),
    "an unknown parameter": (
        ("report", "cdnow-clv", "--set", "horizon=3"),
        2,
        "Did you mean 'horizon_days'?",
    ),
    "a mistyped parameter": (
        ("report", "cdnow-clv", "--set", "horizon_days=soon"),
        2,
        "must be a whole number",
    ),
    "a parameter without a value": (("report", "cdnow-clv", "--set", "margin"), 2, "NAME=VALUE"),
    "a date that is none": (("report", "cdnow-clv", "--as-of", "soon"), 2, "must be a date"),
    "a slot that is none": (("report", "cdnow-clv", "--slot", "soon"), 2, "--slot is 'soon'"),
    "a date before the first purchase": (
        ("report", "cdnow-clv", "--as-of", "1990-01-01"),
        3,
        "is before the first purchase",
    ),
    "a date long after the log": (
        ("report", "cdnow-clv", "--as-of", "2020-12-31"),
        3,
        "is after the last purchase",
    ),
    "the shop as a parameter": (
        ("report", "cdnow-clv", "--set", "shop_name=x"),
        2,
        "name it with --shop",
    ),
    "a margin out of range": (
        ("report", "cdnow-clv", "--set", "margin=30"),
        2,
        "must lie between 0.0001 and 1",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(crmlab, what):
    words, code, said = ERRORS[what]
    add_shop(crmlab.home, "empty", None)
    add_shop(crmlab.home, "columns", "a,b\n1,2\n")
    add_shop(crmlab.home, "dates", ROW + "a,1.2.2024,1\n")
    add_shop(crmlab.home, "amounts", ROW + "a,2024-01-01,one\n")
    add_shop(crmlab.home, "norows", ROW)
    done = crmlab(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_is_no_project_is_said(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "crmlab", "shops"],
        capture_output=True,
        text=True,
        env={**os.environ, "CRMLAB_HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "no reports/reports.toml is there" in done.stderr


def test_help_comes_without_loading_anything_heavy(crmlab):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "crmlab", "--help"],
        capture_output=True,
        text=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert not loaded & {"pandas", "numpy", "ibis", "duckdb", "matplotlib", "lifetimes"}
    for command in ("demo", "shops", "new-shop", "check", "report"):
        assert command in done.stdout


@pytest.mark.slow
def test_demo_in_a_fresh_clone_needs_nothing_but_git_make_and_python(tmp_path):
    from tests.conftest import ROOT, need

    need((ROOT / ".git").exists(), "the git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    plain = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("CRMLAB", "VIRTUAL", "MAKE", "MFLAGS"))
    }
    began = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=clone, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    front = done.stdout.strip().splitlines()[-1]
    assert front == str(clone / "reports" / "site" / "index.html")
    text = (clone / "reports/site/index.html").read_text()
    for question in (
        "Who are our customers",
        "What are our customers worth?",
        "Who is about to stop",
    ):
        assert question in text
    assert "cdnow-clv" in done.stderr
    kilobytes = subprocess.run(["du", "-sk", clone / ".venv"], capture_output=True, text=True)
    assert int(kilobytes.stdout.split()[0]) < 1_500_000
    sys.stdout.write(f"make demo took {time.monotonic() - began:.0f} s\n")
    clean = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True
    )
    assert clean.stdout == ""
