"""The front page of all reports, made from the ledger of their runs."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crmlab.reports import config, cron, ledger, page
from crmlab.reports.ledger import Manifest
from crmlab.settings import make_folder

# Earlier pages that the front page links to, and pages of a sweep from which on they are one table.
EARLIER_PAGES = 12
MANY_PAGES = 4
# How much later than its time a page may come before it is called late.
GRACE = dt.timedelta(hours=1)


def newness(manifest: Manifest) -> tuple[bool, str, str]:
    """Order the published runs of a page: the one that managers should see comes last.

    That is the newest slot's; not what somebody asked for as of an earlier day, nor what a clock
    that was ahead has left.
    """
    now = dt.datetime.now(dt.UTC).isoformat()
    past = manifest["moment"] <= now
    return past and manifest.get("lasting", True), manifest["moment"], manifest["started"]


def is_a_try(manifest: Manifest) -> bool:
    """Whether somebody tried something out in vain, which is no matter of the managers'."""
    refused = manifest["state"] == "refused" and not manifest.get("scheduled")
    return refused or bool(manifest.get("by_hand") and manifest["state"] != "published")


def _published(home: Path, key: str) -> list[Manifest]:
    """Return the published runs of one page, the one that managers should see last."""
    return sorted((r for r in ledger.entries(home, key) if ledger.is_there(home, r)), key=newness)


def is_newest(home: Path, manifest: Manifest) -> bool:
    """Tell whether a page is to be shown in place of the one that is there."""
    [*_, shown] = [None, *_published(home, manifest["key"])]
    if not shown or not newness(shown)[0]:
        return True
    asked_for_earlier = manifest["by_hand"] and manifest["as_of"] < shown["as_of"]
    return manifest["moment"] >= shown["moment"] and not asked_for_earlier


def previous(home: Path, key: str, as_of: str) -> Manifest | None:
    """Return the newest published run of the same page as of an earlier date."""
    earlier = [run for run in _published(home, key) if run["as_of"] < as_of]
    return max(earlier, key=lambda run: (run["as_of"], run["moment"]), default=None)


def write(home: Path) -> Path:
    """Write reports/site/index.html anew and return its path."""
    from filelock import FileLock

    path = home / "reports" / "site" / "index.html"
    make_folder(path.parent, 0o755)
    make_folder(home / "reports" / "private", 0o700)
    with FileLock(home / "reports" / "private" / "index.lock", timeout=60):
        page.write(path, page.without_secrets(_html(home, dt.datetime.now(dt.UTC))), 0o644)
    return path


def _html(home: Path, now: dt.datetime) -> str:
    reports, problems = config.read(home)
    schedules = {(one.shop, one.id): one.schedule for one in reports.values()}
    runs: dict[str, list[Manifest]] = {}
    newest: dict[tuple[str, str], str] = {}
    for row in ledger.entries(home):
        if row["state"] == "waiting" or is_a_try(row):
            continue
        runs.setdefault(row["key"], []).append(row)
        if not row.get("by_hand"):
            report = row["shop"], row["report"]
            newest[report] = max(newest.get(report, ""), row["moment"])
    entries = []
    for of_page in runs.values():
        report = of_page[-1]["shop"], of_page[-1]["report"]
        by_plan = [row for row in of_page if not row.get("by_hand")]
        # A page that its report makes no more, as it stands now, is neither late nor missed.
        current = bool(by_plan) and by_plan[-1]["moment"] == newest[report]
        schedule = schedules.get(report, "") if current else ""
        due = cron.next_slot(schedule, _slot(by_plan[-1])).astimezone(dt.UTC) if schedule else None
        entry = _entry(of_page, home, now, due)
        still_asked = current and (report in schedules or problems)
        if entry["page"] or (still_asked and entry["state"] in ("failed", "running")):
            entries.append(entry)
    entries.sort(key=lambda entry: (entry["shop_name"], entry["title"], entry["parameters"]))
    troubled = [entry for entry in entries if entry["state"] in ("failed", "late")]
    for entry in troubled[:1]:
        entry["anchor"] = "trouble"
    shops: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in entries:
        of_shop = shops.setdefault(entry["shop_name"], {})
        of_shop.setdefault(f"{entry['shop']}/{entry['report']}", []).append(entry)
    return page.render(
        "site.html.j2",
        shops=shops,
        many=MANY_PAGES,
        count=sum(bool(entry["page"]) for entry in entries),
        troubled=len(troubled),
        problems=len(problems),
        built=_moment(now.isoformat(timespec="minutes"), {}),
    )


def _slot(row: Manifest) -> dt.datetime:
    """Return the slot of a run on its shop's clock."""
    return dt.datetime.fromisoformat(row["slot"]).astimezone(_zone(row))


def _zone(row: Manifest) -> dt.tzinfo:
    try:
        return zoneinfo.ZoneInfo(row.get("zone", "UTC"))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return dt.UTC


def _moment(text: str, row: Manifest) -> dict[str, str]:
    """Return a moment as the page's script reads it, and as the shop's wall clock says it."""
    at = dt.datetime.fromisoformat(text) if text else None
    said = f"{at.astimezone(_zone(row)):%Y-%m-%d %H:%M %Z}" if at else ""
    return {"iso": text, "said": said}


def _entry(
    runs: Sequence[Manifest], home: Path, now: dt.datetime, due: dt.datetime | None
) -> dict[str, Any]:
    """Return what the front page says of one page: its newest good run, a newer one that failed."""
    under_way = [run for run in runs if run["state"] in ledger.UNDER_WAY]
    good = sorted((run for run in runs if ledger.is_there(home, run)), key=newness)
    # A page as of an earlier day says nothing of the newest.
    ended = [
        run
        for run in runs
        if run["state"] not in ledger.UNDER_WAY and run.get("lasting", True) is not False
    ]
    last = max(ended or runs, key=lambda run: (run["moment"], run["started"]))
    shown = good[-1] if good else {}
    failed = bool(ended) and last["state"] != "published"
    late = due is not None and due + GRACE < now
    notices = shown.get("notices", [])
    state = "failed" if failed else "late" if late else "old" if notices else "fresh"
    lasting = home / "reports" / "site" / str(last["key"]) / "index.html"
    return {
        "shop": last["shop"],
        "report": last["report"],
        "shop_name": last["shop_name"],
        "anchor": "",
        "state": state if ended else "running",
        "running": under_way[-1]["started"] if under_way else "",
        "due": _moment(due.isoformat() if due else "", last),
        "notices": notices,
        "title": shown.get("title", last["report"]),
        "page": (f"{shown['key']}/index.html" if lasting.is_file() else shown["page"])
        if shown
        else "",
        "as_of": shown.get("as_of_said", shown.get("as_of", "")),
        "ran": _moment(shown.get("started", ""), shown),
        "parameters": ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in last.get("set", {}).items()
            if value != ""
        ),
        "summary": shown.get("summary", ""),
        "tiles": [_tile(kpi, good) for kpi in shown.get("kpis", [])],
        "failure": last.get("failure", "") if failed else "",
        "failed": _moment(last["started"], last),
        "earlier": [
            {"page": run["page"], "as_of": run.get("as_of_said", run["as_of"]), "kpis": run["kpis"]}
            for run in sorted(good[:-1], key=lambda run: run["as_of"])[: -1 - EARLIER_PAGES : -1]
        ],
    }


def _tile(kpi: dict[str, Any], good: Sequence[Manifest]) -> dict[str, Any]:
    """Add to a KPI the line of its values on the pages up to the one that is shown."""
    by_day = {
        run["as_of"]: found["value"]
        for run in sorted(good[-1 - EARLIER_PAGES :], key=lambda run: run["as_of"])
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
