"""What is due: the newest slot of every report's schedule, each page of it once."""

from __future__ import annotations

import dataclasses
import datetime as dt
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
    made: dict[str, Run] = {}
    for value in values:
        own = {**report.parameters, name: value}
        try:
            one = dataclasses.replace(report, parameters=own)
            run = runner.prepare(home, one, parameters=given, **asked)
        except tables.UsageError as error:
            # A value that is no parameter is a page that fails, and stops no other one.
            own[name] = "".join(c if c.isprintable() else "?" for c in str(value))[:100]
            zone = runner.shop_clock(shop.id)[1]
            at = runner.read_slot(asked["slot"], zone)
            manifest = runner.manifest_of(report, shop.id, shop.settings.name, at, own)
            run = _refused(home, report, manifest, error)
        run.report = report
        made.setdefault(run.manifest["key"], run)
    if all(run.manifest["state"] == "failed" for run in made.values()):
        raise tables.UsageError(run.manifest["details"])
    return list(made.values())


def column_values(shop: sources.Shop, name: str, wanted: str) -> list[str]:
    """Return the different values of a column, in order.

    Of `table.column`, or, where `wanted` is "all", of the first table that has a column of the
    parameter's name. Values that fewer than `privacy_k` customers share make no page.
    """
    table, dot, column = wanted.partition(".")
    if wanted != "all" and not (dot and table in tables.CONTRACT):
        raise tables.UsageError(
            f'A sweep over {wanted!r} must be "all", "table.column" or a list; the tables are '
            f"{', '.join(tables.CONTRACT)}."
        )
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
            values = found.to_pyarrow()["value"].to_pylist()
            return [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    there = [name for name in places if shop.has(name)]
    raise tables.DataError(
        f"Shop '{shop.id}' has no column '{column}' to sweep over; "
        + "; ".join(f"{name} has {', '.join(shop.table(name).columns)}" for name in there)
        + "."
    )


def by_hand(home: Path, report: Report, **asked: Any) -> list[Run]:
    """Return the runs that somebody asks for now; a sweep that was killed goes on instead."""
    home = home.resolve()
    if report.sweep and not any(asked.values()):
        asked["slot"] = _unfinished(home, report)
    runs = pages(home, report, **asked)
    if len(runs) > 1:
        ledger.enter(home, _waiting(runs))
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

    Enters them into the ledger when a slot is first seen, so that a sweep is looked up once; and
    anew what was not published once its entry, notebook or shop.toml has been changed. A run that
    cannot even begin is returned too, as one that failed.
    """
    home = home.resolve()
    now = now or dt.datetime.now(dt.UTC)
    found: list[Run] = []
    rows: dict[tuple[str, str, str], list[Manifest]] = {}
    for row in ledger.entries(home):
        rows.setdefault((row["shop"], row["report"], row["moment"]), []).append(row)
    for report in config.read(home)[0].values():
        if not report.schedule:
            continue
        slot = cron.newest_slot(report.schedule, now.astimezone(_zone(report)))
        moment = slot.astimezone(dt.UTC).isoformat()
        known = rows.get((report.shop, report.id, moment), [])
        left = [row for row in known if row["state"] != "published" and not ledger.is_alive(row)]
        # What was only run by hand says nothing of the other pages of the slot.
        entered = [row for row in known if "mark" in row]
        mark = config.mark(home, report) if left or not entered else ""
        if not entered or any(row.get("mark", mark) != mark for row in left):
            try:
                runs = pages(home, report, slot=slot)
            except (tables.DataError, tables.UsageError, OSError) as error:
                values = report.parameters
                manifest = runner.manifest_of(report, report.shop, report.shop, slot, values)
                found.append(_refused(home, report, manifest | {"mark": mark}, error))
                continue
            for run in runs:
                run.manifest |= {"mark": mark, "scheduled": True}
            found += [run for run in runs if run.manifest["state"] == "failed"]
            entered = ledger.enter(home, _waiting(runs), instead=left)
        found += [_again(home, report, row) for row in entered if _is_due(row, report)]
    return found


def _waiting(runs: list[Run]) -> list[Manifest]:
    return [run.manifest for run in runs if run.manifest["state"] == "waiting"]


def _refused(home: Path, report: Report, manifest: Manifest, error: Exception) -> Run:
    """Return a run that cannot even begin."""
    code = runner.USAGE if isinstance(error, tables.UsageError) else runner.DATA
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    failed = runner.failure("start", "what it asks for is not possible", str(error), code=code)
    tries = {"scheduled": "mark" in manifest, "attempt": manifest.get("attempt", 0) + 1}
    return Run(home, report, {}, manifest | failed | tries | {"started": now})


def _again(home: Path, report: Report, row: Manifest) -> Run:
    """Return the run of a row of the ledger, to be made now; if that is not possible, as failed."""
    slot = dt.datetime.fromisoformat(row["slot"])
    own = {**row["set"], **({"as_of": row["as_of"]} if row["as_of"] else {})}
    try:
        one = dataclasses.replace(report, shop=row["shop"], parameters=own)
        run = runner.prepare(home, one, slot=slot)
    except (tables.DataError, tables.UsageError) as error:
        return _refused(home, report, row, error)
    run.report = dataclasses.replace(report, shop=row["shop"])
    run.manifest |= {"scheduled": True, "mark": row.get("mark", "")}
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

    Raises `BusyError` if another process is at it, and, when all others are done, `UsageError` for
    entries of reports.toml that are wrong.
    """
    from filelock import FileLock, Timeout

    home = home.resolve()
    folder = home / "reports" / "private"
    make_folder(folder, 0o700)
    try:
        with FileLock(folder / "run-due.lock", timeout=0):
            known = config.read(home)[0]
            for row in publishing.recover(home):
                report = known.get(row["report"])
                if report and not _is_due(row, report):
                    publishing.show(home, report, row)
            # What falls due while the others run is run too; a page that another process makes
            # is left to it.
            ended: set[str] = set()
            while runs := [run for run in due(home) if run.manifest["key"] not in ended]:
                for result in runner.run_all(runs, workers=workers, progress=progress):
                    if result.code != runner.FAILED:
                        ended.add(result.key)
                    yield result
            index.write(home)
            config.load(home)
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
