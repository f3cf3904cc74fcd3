"""Run the benchmarks: `make bench`, `make bench-large`.

Absolute times are this machine's; the ratios are the claim. Each is of medians of at least three
rounds, ours and the peer's in turn. On a machine that others use too, the time of the processor
is steadier than the clock on the wall: where both are given, both are printed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 3
PAIRS = 9  # of ours and the query by hand, which differ by little
WIDTHS = (52, 12, 30, 8, 14)


def child(piece, **arguments):
    """Do one piece of `work` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.work", piece, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{piece} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def median(rounds, name):
    return statistics.median(one[name] for one in rounds)


def show(what, ours, peer="", ratio="", target="", good=None):
    cells = (what, ours, peer, ratio, target)
    line = "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    verdict = "" if good is None else "ok" if good else "short"
    sys.stdout.write(f"{line}{verdict}".rstrip() + "\n")
    sys.stdout.flush()


def against(what, ours, peer, peers_name, *, unit="s", most=None, least=None, faster=False):
    """Show ours over the peer's, `most` at most; or `faster`, the other way, `least` at least."""
    ratio = peer / ours if least or faster else ours / peer
    wanted = f"<= {most}" if most else f">= {least}" if least else ""
    good = ratio <= most if most else ratio >= least if least else None
    digits = 2 if unit == "s" else 0
    other = f"{peer:.{digits}f} {unit} {peers_name}"
    show(what, f"{ours:.{digits}f} {unit}", other, f"{ratio:.2f}", wanted, good)


def within(what, ours, unit, target=None, *, at_least=False, digits=2):
    sign = ">=" if at_least else "<="
    good = None if target is None else ours >= target if at_least else ours <= target
    wanted = "" if target is None else f"{sign} {target:,} {unit}"
    show(what, f"{ours:,.{digits}f} {unit}", target=wanted, good=good)


def customers_of(folder):
    child("generate", folder=folder, rows=10_000_000, customers=500_000, files=1)
    pairs = child("by_hand", folder=folder, rounds=PAIRS)
    for name, what in {"": "summary of 10 M lines", " cpu": "  the same, processor time"}.items():
        ours, hand = (statistics.median(pairs[one + name]) for one in ("ours", "hand"))
        against(what, ours, hand, "SQL by hand", most=1.15)
    checks, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        checks.append(child("check", folder=folder))
        ours.append(child("summary", folder=folder))
        theirs.append(child("lifetimes_summary", folder=folder))
    assert ours[0]["customers"] == theirs[0]["customers"]
    one, other = median(ours, "summary"), median(theirs, "summary")
    read = statistics.median(each["read"] + each["summary"] for each in theirs)
    against("  in a fresh process, and Parquet into pandas", one, read, "lifetimes", least=5)
    against("  and without the reading of lifetimes", one, other, "lifetimes", faster=True)
    memory = median(ours, "extra"), median(theirs, "extra")
    against("  extra memory", *memory, "lifetimes", unit="MB", most=0.5)
    within("check of 10 M lines, before it", median(checks, "check"), "s")
    within("  extra memory", median(checks, "extra"), "MB", digits=0)


def stages_of(folder):
    child("generate", folder=folder, rows=10_000_000, customers=1_000_000, files=1)
    turns = child("stages", folder=folder, rounds=PAIRS)
    for what in ("stages", "flows"):
        for name, shown in {
            "": f"{what} of 1 M customers",
            " cpu": "  the same, processor time",
        }.items():
            ours, plain = (statistics.median(turns[one + name]) for one in (what, "summary"))
            against(shown, ours, plain, "our summary", most=2)


def risk(folder):
    child("generate", folder=folder, rows=10_000_000, customers=1_000_000, files=1)
    turns = child("learnable", folder=folder, rounds=ROUNDS)
    for name, what in {"": "features of 10 M lines", " cpu": "  the same, processor time"}.items():
        ours, plain = (statistics.median(turns[one + name]) for one in ("features", "summary"))
        against(what, ours, plain, "our summary", most=4)
    found = child("risks_of", folder=folder)
    for name in ("closed form", "scorecard", "gradient boosting"):
        within(f"scoring {found['customers']:,} with reasons, {name}", found[name], "s", 10)
    within("  extra memory", found["extra"], "MB", digits=0)


def campaigns(folder):
    """Plan and measure campaigns of a million customers; learn from Hillstrom's."""
    found = child("measured_arms", rounds=PAIRS)
    what = "1 M customers, 5 outcomes, 3 arms, from DuckDB"
    within(what, statistics.median(found["ours"]), "s", 0.3)
    if found["theirs"]:
        ours, theirs = (statistics.median(found[one]) for one in ("ours", "theirs"))
        against("  the same", ours, theirs, "tea-tasting", least=3)
    else:
        show("  no tea-tasting here to compare with: pip install tea-tasting", "")
    found = child("planned", folder=folder, customers=1_000_000)
    within("plan of 1 M customers, 10 rules, with its power", found["plan"], "s", 8)
    within("  writing ledger and lists", found["write"], "s")
    within("  extra memory", found["extra"], "MB", digits=0)
    found = child("hillstrom")
    if found["seconds"]:
        within("T-learner of Hillstrom, 500 bootstrap Qinis", found["seconds"], "s", 5)


def campaign_coverage(folder, worlds=2_000, step=100):
    """Count in generated campaigns how often the 95 % interval holds the truth."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(
            pool.map(lambda first: child("campaign_worlds", folder=f"{folder}/{first}",
                                         worlds=step, first=first), range(0, worlds, step))
        )  # fmt: skip
    for name in ("purchases", "spend"):
        share = statistics.mean(one for part in parts for one in part[name])
        show(f"campaign's 95 % interval of {name}, {worlds:,} worlds", f"{share:.1%}",
             target="93.3 to 96.6 %", good=0.933 <= share <= 0.966)  # fmt: skip


def catchment(folder):
    """Count 10 M customers around 5 stores by ring and sector."""
    found = child("rings", customers=10_000_000, stores=5, rounds=ROUNDS)
    ours = statistics.median(found["ours"])
    for peer, least in (("numpy", 5), ("haversine", 20)):
        what = "ring x sector, 10 M customers x 5 stores"
        against(what, ours, statistics.median(found[peer]), peer, least=least)
    within("  unit vectors, once before", found["prepare"], "s")
    within("  customers in another cell than by haversine", found["moved"], "", 0, digits=0)
    found = child("drawn", folder=folder, rounds=ROUNDS)
    for name in ("with words", "without"):
        within(f"map of 3,025 squares {name}, in Chromium", statistics.median(found[name]), "s", 1)
        within("  its size", found[f"{name}, KB"], "KB", digits=0)


def demo_shop(folder, customers):
    made = [child("simulate", folder=folder, customers=customers) for _ in range(ROUNDS)]
    seconds, size = median(made, "write"), f"demo shop of {customers:,} customers"
    within(f"{size}, rows of all tables", made[0]["rows"] / seconds / 1e6, "M/s", 2, at_least=True)
    within("  of transactions alone", made[0]["lines"] / seconds / 1e6, "M/s")
    within("  peak memory", median(made, "peak"), "MB", 1500, digits=0)
    found = child("scans", folder=folder, table="transactions")
    within("  scans of transactions in its check", found["scans"], "", 12, digits=0)
    within("  the same from CSV", child("csv_scans", folder=folder)["scans"], "", 12, digits=0)


def wall(code, rounds=2 * ROUNDS, **environment):
    """Return the median seconds of fresh processes that run some code, after a first one."""
    took = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *code], env=os.environ | environment, check=True, cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def processes(folder):
    """Time the start of fresh processes, Python's own start and end included."""
    home = {"CRMLAB_HOME": str(folder)}
    child("cdnow", folder=str(folder))
    opened = "from crmlab import sources; shop = sources.open_shop('cdnow')"
    within("python -c pass", wall(["-c", "pass"]), "s")
    within("import crmlab", wall(["-c", "import crmlab"]), "s", 0.2)
    within("crmlab --help", wall(["-m", "crmlab", "--help"]), "s", 0.4)
    within("open_shop('cdnow'), imports with it", wall(["-c", opened], **home), "s", 1.5)
    table = f"{opened}; shop.table('transactions')"
    within("  and .table('transactions'), which checks", wall(["-c", table], **home), "s", 1.5)


BARE = """
import os, sys, papermill
from nbconvert import HTMLExporter
os.chdir(sys.argv[2])
papermill.execute_notebook(sys.argv[1], 'out.ipynb', parameters=dict(as_of='2024-01-09'),
                           progress_bar=False, kernel_name='python3')
html, _ = HTMLExporter().from_filename('out.ipynb')
open('out.html', 'w').write(html)
"""
OURS = ["-m", "crmlab", "report", "quick"]
EIGHT = """
from crmlab import reports, sources
home = sources.home()
runs = reports.pages(home, reports.load(home)['quick'])
states = [r.state for r in reports.run_all(runs, workers={workers}, progress=False)]
assert states == ['published'] * 8, states
"""


def runs(folder):
    """Time reports against bare papermill and nbconvert, in pairs, ledgers and front pages."""
    from tests import projects

    home = projects.make(Path(folder) / "home")
    notebook = str(home / "notebooks" / "quick.ipynb")
    (home / "data" / "small" / "shop.toml").write_text("")
    where = {"CRMLAB_HOME": str(home)}
    for what, code in (
        ("a report of a notebook that does nothing", ""),
        ("a report that computes for five seconds", "import time\ntime.sleep(5)"),
    ):
        projects.write_notebook(home, code)
        pairs = [
            [wall(code, rounds=1, **where) for code in (OURS, ["-c", BARE, notebook, str(home)])]
            for _ in range(ROUNDS)
        ]  # fmt: skip
        ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        against(what, ours, bare, "papermill, nbconvert", most=1.3)
    projects.write_notebook(home)
    toml = home / "reports" / "reports.toml"
    toml.write_text(toml.read_text() + f"sweep = {{ word = {list('abcdefgh')} }}\n")
    one, two = (wall(["-c", EIGHT.format(workers=workers)], rounds=1, **where)
                for workers in (1, 2))  # fmt: skip
    against("eight reports, two at a time", two, one, "one at a time", least=1.8)
    toml.write_text(toml.read_text() + 'schedule = "0 6 1 1 *"\n')
    wall(["-m", "crmlab", "run-due"], rounds=1, **where)
    within("run-due with nothing due", wall(["-m", "crmlab", "run-due"], **where), "s", 0.5)
    child("ledger", folder=str(home), rows=10_000, pages=1_000)
    took = child("front_page", folder=str(home))
    within("front page of 1,000 pages, 10,000 runs", took["seconds"], "s", 2)
    within("run-due over them", wall(["-m", "crmlab", "run-due"], **where), "s")


def value(folder):
    """Fit and value generated customers; the hold-out check of CDNOW."""
    million = child("fits", customers=1_000_000, model="bgnbd", rounds=ROUNDS)
    fitted = "BG/NBD fit of 1 M customers, with spend"
    against(fitted, million["fit"], million["peer fit"], "lifetimes, no spend", least=5)
    within("  the same", million["fit"], "s", 2.5)
    valued = "12-month value of 1 M customers"
    against(valued, million["predict"], million["peer predict"], "lifetimes", least=50)
    some = child("fits", customers=100_000, model="paretonbd", rounds=1)
    fitted = "Pareto/NBD fit of 100 k customers, with spend"
    against(fitted, some["fit"], some["peer fit"], "lifetimes, no spend", least=50)
    many = child("fits", customers=1_000_000, model="paretonbd", rounds=ROUNDS, peer=False)
    within("  of 1 M customers", many["fit"], "s", 4)
    for customers in (10_000, 100_000, 1_000_000):
        took = [child("fits", customers=customers, model=model, rounds=ROUNDS,
                      peer=False)["fit"] for model in ("bgnbd", "paretonbd")]  # fmt: skip
        show(f"  growth: fit of {customers:,}, BG and Pareto", f"{took[0]:.2f}, {took[1]:.2f} s")
    child("intervals", folder=folder, customers=1_000_000)
    both = child("intervals", folder=folder, customers=1_000_000)
    within("both intervals of 1 M customers", both["intervals"], "s", 60, digits=1)
    within("  peak memory of the process", both["peak"], "MB", 2000, digits=0)
    within("hold-out check, CDNOW, one split", child("backtest", folder=folder)["backtest"], "s", 8)


def hits(folder):
    """Say how ranges of CDNOW's sales to come would have held: reported, not tuned."""
    for as_of, days, name, low, high, caveat, came in child("hits", folder=folder)["rows"]:
        held = "held" if low <= came <= high else "missed"
        what = f"CDNOW, {days} days after {as_of}, {name}"
        show(what, held, f"{low:,.0f} to {high:,.0f}", target=f"came {came:,.0f} {caveat}")


def coverage(folder, worlds=2_000, step=23):
    """Count in generated worlds, a third of them of each model, how often intervals are right."""
    held = {}
    for model in ("bgnbd", "mbgnbd", "paretonbd"):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(
                lambda first, model=model: child("coverage", model=model, worlds=step, first=first),
                range(0, worlds // 3, step),
            )
            for part in parts:
                for what, shares in part.items():
                    held.setdefault((model, what), []).extend(shares)
        for what, words, least in (
            ("mean", "95 % interval of the mean", 0.933),
            ("predictive", "80 % of single values", 0.8),
            ("all", "95 % of totals, by the model", 0.933),
            ("segments", "95 % of segments", 0.933),
        ):  # fmt: skip
            shares = held[model, what]
            share = statistics.mean(shares)
            most = 0.966 if what == "mean" else 1
            show(f"{model}, {len(shares)} worlds: {words}", f"{share:.1%}",
                 target=f">= {least:.1%}", good=least <= share <= most)  # fmt: skip


def large(folder, limit="4GB"):
    made = child("generate", folder=folder, rows=100_000_000, customers=5_000_000, files=100)
    within("100 M lines of 5 M customers, on disk", made["megabytes"], "MB", digits=0)
    for piece in ("check", "summary"):
        done = child(piece, folder=folder, memory_limit=limit)
        within(f"{piece}, DuckDB held to {limit}", done[piece], "s", digits=1)
        within("  peak memory of the process", done["peak"], "MB", digits=0)
        within("  spilled to disk, at most", done["spilled"], "MB", digits=0)
    done = child("scored", folder=folder, memory_limit=limit)
    within("from the log to the table of values, the same", done["scored"], "s", digits=1)
    within("  peak memory of the process", done["peak"], "MB", digits=0)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--large", action="store_true", help="100 M lines; 2 GB of disk, more where it spills"
    )
    parser.add_argument("--folder", help="where the scratch folder is made")
    parser.add_argument("--only", help="one piece, such as value or coverage")
    options = parser.parse_args()
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    show("what", "ours", "peer", "ratio", "target")
    scratch = Path(tempfile.mkdtemp(prefix="crmlab-bench-", dir=options.folder))
    pieces = [
        (customers_of, ()), (stages_of, ()), (risk, ()), (demo_shop, (200_000,)), (processes, ()),
        (runs, ()), (value, ()), (hits, ()), (coverage, ()), (campaigns, ()),
        (campaign_coverage, ()), (catchment, ()),
    ] if not options.large else [(large, ()), (demo_shop, (1_000_000,))]  # fmt: skip
    try:
        for piece, arguments in pieces:
            if options.only not in (None, piece.__name__):
                continue
            folder = scratch / piece.__name__
            folder.mkdir()
            piece(str(folder), *arguments)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
