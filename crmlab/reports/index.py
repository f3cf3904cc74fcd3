"""The front page of all reports, made from the manifests of their runs."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from crmlab.reports import page

# Earlier pages that the front page links to.
EARLIER_PAGES = 12


def manifests(home: Path) -> list[dict[str, Any]]:
    """Return the manifests of all runs, oldest first."""
    found = []
    for path in (home / "reports" / "private").glob("*/*/*/manifest.json"):
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda manifest: (manifest["started"], manifest["slot"]))


def previous(home: Path, key: str, as_of: str) -> dict[str, Any] | None:
    """Return the newest published run of the same page as of an earlier date."""
    return max(
        (
            manifest
            for manifest in manifests(home)
            if manifest["key"] == key
            and manifest["state"] == "published"
            and manifest["as_of"] < as_of
        ),
        key=lambda manifest: (manifest["as_of"], manifest["started"]),
        default=None,
    )


def write(home: Path) -> Path:
    """Write reports/site/index.html anew and return its path."""
    from filelock import FileLock

    path = home / "reports" / "site" / "index.html"
    with FileLock(home / "reports" / "private" / "index.lock"):
        page.write(path, _html(home), 0o644)
    return path


def _html(home: Path) -> str:
    runs: dict[str, list[dict[str, Any]]] = {}
    for manifest in manifests(home):
        # A run that was refused, say for a parameter out of range, is the asker's business only.
        if manifest["state"] != "refused":
            runs.setdefault(manifest["key"], []).append(manifest)
    entries = [_entry(runs_of_page, home) for runs_of_page in runs.values()]
    entries = [entry for entry in entries if entry["page"] or not entry["by_hand"]]
    return page.render(
        "site.html.j2",
        pages=sorted(entries, key=lambda entry: (entry["shop_name"], entry["title"])),
        built=f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
    )


def _entry(runs: list[dict[str, Any]], home: Path) -> dict[str, Any]:
    """Return what the front page says of one page: its newest good run, a newer failed one."""
    site = home / "reports" / "site"
    last = runs[-1]
    good = [run for run in runs if run["state"] == "published" and (site / run["page"]).is_file()]
    newest = good[-1] if good else {}
    failed = last["state"] != "published"
    return {
        "shop_name": last["shop_name"],
        "by_hand": last["by_hand"],
        "notices": newest.get("notices", []),
        "title": newest.get("title", last["report"]),
        "page": f"{newest['key']}/index.html" if newest else "",
        "as_of": newest.get("as_of", ""),
        "ran": _when(newest) if newest else "",
        "parameters": ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in newest.get("set", {}).items()
            if value != ""
        ),
        "summary": newest.get("summary", ""),
        "tiles": newest.get("kpis", []),
        "failure": last["failure"] if failed else "",
        "failed": _when(last) if failed else "",
        "earlier": [(run["page"], _when(run)) for run in good[-2 : -2 - EARLIER_PAGES : -1]],
    }


def _when(run: dict[str, Any]) -> str:
    return f"{dt.datetime.fromisoformat(run['started']):%Y-%m-%d %H:%M} UTC"
