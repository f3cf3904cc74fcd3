"""The ledger: which page was asked for which time, how often it was tried and how that ended.

One row of reports/runs.sqlite per page and slot. What a row says stands in the manifest of the
run's folder too, so that a ledger that is torn or lost is made anew from those.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from crmlab.settings import make_folder

TABLE = """create table if not exists runs (
    key text not null,
    slot text not null,
    manifest text not null,
    primary key (key, slot)
) without rowid"""
PUT = "insert or replace into runs values (:key, :moment, :manifest)"
# What every manifest says from its run's beginning.
NEEDED = {"state", "report", "shop", "shop_name", "key", "slot", "moment", "as_of", "started"}
UNDER_WAY = ("running", "publishing")
# How long to wait for another process that holds the ledger, in seconds.
PATIENCE = 10

# Folders of the runs of this process that are over, though the disk may have been too full to say.
_over: set[str] = set()

Manifest = dict[str, Any]
Result = TypeVar("Result")


class LedgerError(RuntimeError):
    """The ledger cannot be read or written now; the message says why."""


class BusyError(RuntimeError):
    """The same report is being run by another process, or the ledger is held by one."""


def path(home: Path) -> Path:
    """Return where the ledger lies."""
    return home / "reports" / "runs.sqlite"


def _transact(home: Path, work: Callable[[sqlite3.Connection], Result]) -> Result:
    """Do one transaction on the ledger; one that is damaged is set aside and made anew first."""
    file = path(home)
    make_folder(file.parent, 0o755)
    try:
        try:
            return _attempt(home, work)
        except (sqlite3.DatabaseError, ValueError) as error:
            if isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError):
                raise
            aside = file.with_name(f"{file.name}.damaged-{file.stat().st_mtime_ns}")
            file.replace(aside)
            logging.getLogger(__name__).warning(
                f"{file} was damaged ({error}). It is kept as {aside.name}, and a new one is made "
                "from the records of the runs."
            )
            return _attempt(home, work)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise BusyError(f"{file} is held by another process for over {PATIENCE} s.") from None
        raise LedgerError(f"{file} cannot be used: {error}.") from error


def _attempt(home: Path, work: Callable[[sqlite3.Connection], Result]) -> Result:
    file = path(home)
    connection = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None)
    try:
        connection.execute("begin immediate")
        if not connection.execute("select 1 from sqlite_master where name = 'runs'").fetchone():
            file.chmod(0o600)
            connection.execute(TABLE)
            connection.executemany(PUT, [_row(manifest) for manifest in manifests(home)])
        result = work(connection)
        connection.execute("commit")
        return result
    finally:
        connection.close()


def manifests(home: Path) -> list[Manifest]:
    """Return the manifests in the runs' folders, oldest first; unreadable ones are passed over."""
    found = []
    for file in (home / "reports" / "private").glob("*/*/*/manifest.json"):
        with suppress(OSError, ValueError):
            manifest = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(manifest, dict) and manifest.keys() >= NEEDED:
                # What else was to be made for its slot is looked up anew.
                manifest.pop("mark", None)
                found.append(manifest)
    # Of one slot the run that was published counts, whatever was tried after it.
    return sorted(found, key=lambda one: (one["state"] == "published", one["started"]))


def _row(manifest: Manifest) -> dict[str, str]:
    text = json.dumps(manifest, default=str)
    return {"key": manifest["key"], "moment": manifest["moment"], "manifest": text}


def entries(home: Path, key: str = "") -> list[Manifest]:
    """Return all rows, or those of one page, the oldest slot first.

    A row that says running though its process is gone is shown as failed: killed.
    """
    if not path(home).parent.is_dir():
        return []
    query = f"select manifest from runs {'where key = ?' * bool(key)} order by slot, key"
    given = (key,) if key else ()
    rows = _transact(home, lambda db: [json.loads(text) for (text,) in db.execute(query, given)])
    return [
        row | {"state": "failed", "killed": True, "failure": "It was killed before its end."}
        if row["state"] in UNDER_WAY and not is_alive(row)
        else row
        for row in rows
    ]


def claim(home: Path, manifest: Manifest) -> Manifest | None:
    """Enter a run as under way, and return None; or return the row that stands in its way.

    That is one already published for the same slot, unless its page was taken back, or one whose
    process is alive. Sets the number of the attempt.
    """

    def work(db: sqlite3.Connection) -> Manifest | None:
        query = "select manifest from runs where key = :key and slot = :moment"
        found = db.execute(query, _row(manifest)).fetchone()
        before: Manifest = json.loads(found[0]) if found else {}
        if before and (is_there(home, before) or is_alive(before)):
            return before
        manifest["attempt"] = before.get("attempt", 0) + 1
        if before.get("attempt"):
            manifest["earlier"] = [*before.get("earlier", []), before["folder"]]
        db.execute(PUT, _row(manifest))
        return None

    return _transact(home, work)


def enter(
    home: Path, waiting: Sequence[Manifest], instead: Sequence[Manifest] = ()
) -> list[Manifest]:
    """Enter runs that wait, all or none, in place of the rows `instead`; return all their rows.

    Another row that is there already stays as it is, but for the mark that it was looked up.
    """
    rows = [_row(manifest) for manifest in waiting]

    def work(db: sqlite3.Connection) -> list[Manifest]:
        db.executemany(
            "delete from runs where key = :key and slot = :moment", [_row(row) for row in instead]
        )
        db.executemany(PUT.replace("replace", "ignore"), rows)
        query = "select manifest from runs where key = :key and slot = :moment"
        entered = [json.loads(db.execute(query, row).fetchone()[0]) for row in rows]
        for manifest, row in zip(waiting, entered, strict=True):
            if "mark" in manifest and "mark" not in row:
                row["mark"] = manifest["mark"]
                db.execute(PUT, _row(row))
        return entered

    return _transact(home, work)


def record(home: Path, manifest: Manifest) -> None:
    """Write how a run stands."""
    _transact(home, lambda db: db.execute(PUT, _row(manifest)))


def history(home: Path, reports: Sequence[str] | None = None) -> dict[str, list[Manifest]]:
    """Return the rows of some reports, or of all, by page; the oldest slot first."""
    rows: dict[str, list[Manifest]] = {}
    for row in entries(home):
        if reports is None or row["report"] in reports:
            rows.setdefault(row["key"], []).append(row)
    return rows


def over(manifest: Manifest) -> None:
    """Note that this process runs this no more."""
    _over.add(manifest["folder"])


def process() -> dict[str, Any]:
    """Return what names this process, also when its number is given to another one later."""
    return {"pid": os.getpid(), "born": _born(os.getpid())}


def _born(pid: int) -> float | None:
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time()), 1)
    except psutil.Error:
        return None


def is_there(home: Path, row: Mapping[str, Any]) -> bool:
    """Whether the run was published, and nobody has taken its page back."""
    site = home / "reports" / "site"
    return bool(row["state"] == "published" and (site / row.get("page", "?")).is_file())


def is_alive(row: Mapping[str, Any]) -> bool:
    """Whether the process that runs this is still there."""
    if row["state"] not in UNDER_WAY or row["folder"] in _over:
        return False
    return row.get("born") is not None and _born(row["pid"]) == row["born"]
