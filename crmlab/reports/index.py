"""The front page of all reports, made from the ledger of their runs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from crmlab.reports import config, ledger, page
from crmlab.reports.ledger import Manifest
from crmlab.settings import make_folder
from crmlab.tables import UsageError

# Earlier pages that the front page links to, and pages of a sweep from which on they are one table.
EARLIER_PAGES = 12
MANY_PAGES = 4
# How much later than its time a page may come before it is called late.
GRACE = dt.timedelta(hours=1)


def newness(manifest: Manifest) -> tuple[str, str, str]:
    """Order the runs of a page: the one that managers should see comes last."""
    return manifest["as_of"], manifest["moment"], manifest["started"]


def _published(home: Path, key: str) -> list[Manifest]:
    """Return the published runs of one page, the one that managers should see last."""
    good = [run for run in ledger.entries(home, key) if run["state"] == "published"]
    return sorted(good, key=newness)


def is_newest(home: Path, manifest: Manifest) -> bool:
    """Tell whether no published page of the same key is of a later date."""
    others = _published(home, manifest["key"])
    return not others or newness(others[-1])[:2] <= newness(manifest)[:2]


def previous(home: Path, key: str, as_of: str) -> Manifest | None:
    """Return the newest published run of the same page as of an earlier date."""
    earlier = [run for run in _published(home, key) if run["as_of"] < as_of]
    return earlier[-1] if earlier else None


def write(home: Path) -> Path:
    """Write reports/site/index.html anew and return its path."""
    from filelock import FileLock

    path = home / "reports" / "site" / "index.html"
    make_folder(path.parent, 0o755)
    make_folder(home / "reports" / "private", 0o700)
    with FileLock(home / "reports" / "private" / "index.lock", timeout=60):
        page.write(path, _html(home, dt.datetime.now(dt.UTC)), 0o644)
    return path


def _html(home: Path, now: dt.datetime) -> str:
    scheduled: set[tuple[str, str]] = set()
    with suppress(UsageError):
        reports = config.load(home).values()
        scheduled = {(report.shop, report.id) for report in reports if report.schedule}
    runs: dict[str, list[Manifest]] = {}
    for row in ledger.entries(home):
        # A try by hand that was refused, say for a parameter, is the asker's business only.
        if row["state"] != "waiting" and (row["state"] != "refused" or row.get("scheduled")):
            runs.setdefault(row["key"], []).append(row)
    entries = [_entry(runs_of_page, home, now) for runs_of_page in runs.values()]
    for entry in entries:
        # What is scheduled no more is never late.
        if (entry["shop"], entry["report"]) not in scheduled:
            entry["due"] = ""
            entry["state"] = entry["state"].replace("late", "old" if entry["notices"] else "fresh")
    entries = [entry for entry in entries if entry["page"] or not entry["by_hand"]]
    entries.sort(key=lambda entry: (entry["shop_name"], entry["title"], entry["parameters"]))
    shops: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in entries:
        of_shop = shops.setdefault(entry["shop_name"], {})
        of_shop.setdefault(f"{entry['shop']}/{entry['report']}", []).append(entry)
    return page.render(
        "site.html.j2",
        shops=shops,
        many=MANY_PAGES,
        count=sum(bool(entry["page"]) for entry in entries),
        troubled=sum(entry["state"] in ("failed", "late") for entry in entries),
        built=now.isoformat(timespec="minutes"),
    )


def _entry(runs: Sequence[Manifest], home: Path, now: dt.datetime) -> dict[str, Any]:
    """Return what the front page says of one page: its newest good run, a newer one that failed."""
    site = home / "reports" / "site"
    ended = [run for run in runs if run["state"] not in ledger.UNDER_WAY]
    under_way = [run for run in runs if run["state"] in ledger.UNDER_WAY]
    good = [
        run
        for run in ended
        if run["state"] == "published" and (site / run.get("page", "?")).is_file()
    ]
    good.sort(key=newness)
    last = max(ended, key=lambda run: run["started"]) if ended else runs[-1]
    shown = good[-1] if good else {}
    failed = bool(ended) and last["state"] != "published"
    due = max((run.get("next", "") for run in runs), default="")
    late = bool(due) and dt.datetime.fromisoformat(due) + GRACE < now
    notices = shown.get("notices", [])
    state = "failed" if failed else "late" if late else "old" if notices else "fresh"
    return {
        "shop": last["shop"],
        "report": last["report"],
        "shop_name": last["shop_name"],
        "by_hand": all(run.get("by_hand", False) for run in runs),
        "state": state if ended else "running",
        "running": under_way[-1]["started"] if under_way else "",
        "due": due,
        "notices": notices,
        "title": shown.get("title", last["report"]),
        "page": f"{shown['key']}/index.html" if shown else "",
        "as_of": shown.get("as_of_said", shown.get("as_of", "")),
        "ran": shown.get("started", ""),
        "parameters": ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in last.get("set", {}).items()
            if value != ""
        ),
        "summary": shown.get("summary", ""),
        "tiles": [_tile(kpi, good) for kpi in shown.get("kpis", [])],
        "failure": last.get("failure", "") if failed else "",
        "failed": last["started"],
        "earlier": [
            {"page": run["page"], "as_of": run.get("as_of_said", run["as_of"]), "kpis": run["kpis"]}
            for run in good[-2 : -2 - EARLIER_PAGES : -1]
        ],
    }


def _tile(kpi: dict[str, Any], good: Sequence[Manifest]) -> dict[str, Any]:
    """Add to a KPI the line of its values on the pages up to the one that is shown."""
    by_day = {
        run["as_of"]: found["value"]
        for run in good[-1 - EARLIER_PAGES :]
        for found in run["kpis"]
        if found["label"] == kpi["label"] and found["value"] is not None
    }
    values = list(by_day.values())
    if len(values) < 3:
        return {**kpi, "line": ""}
    low, span = min(values), max(values) - min(values) or 1.0
    points = [
        f"{98 * number / (len(values) - 1) + 1:.1f},{19 - 18 * (value - low) / span:.1f}"
        for number, value in enumerate(values)
    ]
    return {**kpi, "line": " ".join(points), "days": len(values)}
