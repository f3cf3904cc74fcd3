"""What is due: the newest slot of every report's schedule, each page of it once."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import shlex
import string
import sys
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crmlab import sources, tables
from crmlab.reports import config, cron, index, ledger, page, publishing, runner
from crmlab.reports.config import Report
from crmlab.reports.ledger import BusyError, Manifest
from crmlab.reports.runner import Run, RunResult
from crmlab.settings import make_folder

# A sweep makes no more pages than anyone would look at.
MOST_PAGES = 1_000
# How often a run is taken up again after it was killed or stopped from outside.
MOST_KILLED = 3
# What names a person.
PERSONAL = ("customer_id", "household_id", "transaction_id", "birth_date", "latitude", "longitude")

log = logging.getLogger(__name__)


def pages(home: Path, report: Report, **asked: Any) -> list[Run]:
    """Return the runs that a report asks for: one, or one for each value of its sweep.

    `asked` is what `runner.prepare` takes.
    """
    given = dict(asked.pop("parameters", None) or {})
    if not report.sweep:
        return [runner.prepare(home, report, parameters=given, **asked)]
    [(name, wanted)] = report.sweep.items()
    shop = sources.open_shop(asked.get("shop") or report.shop)
    if name in given:
        values = [given.pop(name)]
    else:
        values = wanted if isinstance(wanted, list) else column_values(shop, name, wanted)
    if not 0 < len(values) <= MOST_PAGES:
        raise tables.DataError(
            f"The sweep over {name} of report '{report.id}' has {len(values):,} values; it may "
            f"have 1 to {MOST_PAGES:,}."
        )
    asked["slot"] = asked.get("slot") or dt.datetime.now(dt.UTC)
    made = []
    for value in values:
        one = dataclasses.replace(report, parameters={**report.parameters, name: value})
        made.append(runner.prepare(home, one, parameters=given, **asked))
        made[-1].report = report
    return made


def column_values(shop: sources.Shop, name: str, wanted: str) -> list[str]:
    """Return the different values of a column, in order.

    Of `table.column`, or, where `wanted` is "all", of the first table that has a column of the
    parameter's name. Values that fewer than `privacy_k` customers share make no page.
    """
    table, dot, column = wanted.partition(".")
    if wanted != "all" and not (dot and table in tables.CONTRACT):
        raise tables.UsageError(f'A sweep over {wanted!r} must be "all", "table.column" or a list.')
    places = ["stores", "customers", "products", "transactions"] if wanted == "all" else [table]
    column = name if wanted == "all" else column
    if column in PERSONAL:
        raise tables.UsageError(f"A sweep over {column} would make a page of single customers.")
    for place in places:
        if shop.has(place) and column in shop.table(place).columns:
            rows = shop.table(place)
            rows = rows.mutate(value=rows[column]).filter(lambda row: row.value.notnull())
            if "customer_id" in rows.columns:
                people = rows.group_by("value").aggregate(people=rows.customer_id.nunique())
                rows = people.filter(people.people >= shop.policy.privacy_k)
            found = rows.select("value").distinct().order_by("value").limit(MOST_PAGES + 1)
            return [str(value) for value in found.to_pyarrow()["value"].to_pylist()]
    raise tables.DataError(f"Shop '{shop.id}' has no table with a column '{column}' to sweep over.")


def by_hand(home: Path, report: Report, **asked: Any) -> list[Run]:
    """Return the runs that somebody asks for now; a sweep that was killed goes on instead."""
    home = home.resolve()
    if report.sweep and not any(asked.values()):
        asked["slot"] = _unfinished(home, report)
    runs = pages(home, report, **asked)
    if len(runs) > 1:
        ledger.enter(home, [run.manifest for run in runs])
    return runs


def _unfinished(home: Path, report: Report) -> dt.datetime | None:
    """Return the slot of the report's last sweep where pages of it were not tried."""
    publishing.recover(home)
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).isoformat()
    rows = [
        row
        for row in ledger.entries(home)
        if (row["shop"], row["report"]) == (report.shop, report.id) and row["moment"] > yesterday
    ]
    left = [row for row in rows if row["state"] in ("waiting", "stopped") or row.get("killed")]
    if not left or left[-1]["moment"] != rows[-1]["moment"]:
        return None
    return dt.datetime.fromisoformat(left[-1]["slot"])


def due(home: Path, now: dt.datetime | None = None) -> list[Run]:
    """Return the runs that are due: of the newest slot of each report, those not made yet.

    Enters them into the ledger when a slot is first seen, so that a sweep is looked up once.
    """
    home = home.resolve()
    now = now or dt.datetime.now(dt.UTC)
    found: list[Run] = []
    rows: dict[tuple[str, str, str], list[Manifest]] = {}
    for row in ledger.entries(home):
        rows.setdefault((row["shop"], row["report"], row["moment"]), []).append(row)
    for report in config.load(home).values():
        if not report.schedule:
            continue
        slot = cron.newest_slot(report.schedule, now.astimezone(_zone(report)))
        moment = slot.astimezone(dt.UTC).isoformat()
        entered = rows.get((report.shop, report.id, moment)) or _enter(home, report, slot)
        for row in entered:
            if _is_due(row, report) and (run := _again(home, report, row)):
                found.append(run)
    return found


def _enter(home: Path, report: Report, slot: dt.datetime) -> list[Manifest]:
    """Enter the pages of a slot as waiting; what cannot be run at all, as one that failed."""
    try:
        waiting = [run.manifest for run in pages(home, report, slot=slot)]
    except (tables.DataError, tables.UsageError, OSError) as error:
        manifest = runner.manifest_of(report, report.shop, report.shop, slot, report.parameters)
        _refuse(home, report, manifest, error)
        return [manifest]
    ledger.enter(home, waiting)
    return waiting


def _refuse(home: Path, report: Report, manifest: Manifest, error: Exception) -> None:
    """Record a run that cannot even begin."""
    code = runner.USAGE if isinstance(error, tables.UsageError) else runner.DATA
    manifest |= runner.failure("start", "what it asks for is not possible", str(error), code=code)
    manifest["scheduled"] = True
    manifest["started"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    publishing.record(home, manifest)
    publishing.show(home, report, manifest)
    log.error(f"Report '{report.id}': {error}")


def _again(home: Path, report: Report, row: Manifest) -> Run | None:
    """Return the run of a row of the ledger, to be made now; None if that is not possible."""
    slot = dt.datetime.fromisoformat(row["slot"])
    own = {**row["set"], **({"as_of": row["as_of"]} if row["as_of"] else {})}
    try:
        one = dataclasses.replace(report, shop=row["shop"], parameters=own)
        run = runner.prepare(home, one, slot=slot)
    except (tables.DataError, tables.UsageError) as error:
        _refuse(home, report, row, error)
        return None
    run.report = dataclasses.replace(report, shop=row["shop"])
    run.manifest["scheduled"] = True
    return run


def _is_due(row: Manifest, report: Report) -> bool:
    """Whether a page of the newest slot is still to be made."""
    if row["state"] == "waiting":
        return True
    attempts = row.get("attempt", 1)
    if row["state"] == "stopped" or row.get("killed"):
        return bool(attempts < max(MOST_KILLED, 1 + report.retries))
    # The same data and parameters would be refused again.
    failed = row["state"] == "failed" and row.get("code") == runner.FAILED
    return bool(failed and attempts <= report.retries)


def run_due(
    home: Path, *, workers: int = runner.WORKERS, progress: bool = False
) -> Iterator[RunResult]:
    """Run all that is due, each page once; give each result as it comes.

    Raises `BusyError` if another process is at it.
    """
    from filelock import FileLock, Timeout

    home = home.resolve()
    folder = home / "reports" / "private"
    make_folder(folder, 0o700)
    try:
        with FileLock(folder / "run-due.lock", timeout=0):
            publishing.recover(home)
            # What falls due while the others run is run too.
            while runs := due(home):
                yield from runner.run_all(runs, workers=workers, progress=progress)
            index.write(home)
    except Timeout:
        raise BusyError("Another process runs what is due; it was left alone.") from None


def scheduler_file(kind: str, home: Path) -> str:
    """Return what to install so that the reports run: for cron, systemd or airflow."""
    home = home.resolve()
    command = str(Path(sys.executable).with_name("crmlab"))
    text = (page.TEMPLATES / "schedule" / f"{kind}.txt").read_text(encoding="utf-8")
    template = string.Template(text)
    if kind == "cron":
        parts = {"home": home, "command": command, "log": home / "reports/private/run-due.log"}
        # In a crontab % ends the command.
        quoted = {name: shlex.quote(str(part)).replace("%", r"\%") for name, part in parts.items()}
        return template.substitute(quoted)
    if kind == "systemd":
        return template.substitute(
            environment=_for_systemd(f"CRMLAB_HOME={home}"), command=_for_systemd(command)
        )
    lines = [
        f"    ({report.id!r}, {report.schedule!r}, {_zone(report).key!r}, {report.retries}, "
        f"{report.timeout_minutes + 5:g}),\n"
        for report in config.load(home).values()
        if report.schedule
    ]
    return template.substitute(command=repr(command), home=repr(str(home)), reports="".join(lines))


def _for_systemd(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _zone(report: Report) -> zoneinfo.ZoneInfo:
    """Return the zone of a report's schedule; of a shop that is not there, as its run says, UTC."""
    try:
        return runner.shop_clock(report.shop)[1]
    except tables.UsageError:
        return zoneinfo.ZoneInfo("UTC")
