"""The front page of all reports, made from the ledger of their runs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from crmlab.reports import ledger, page
from crmlab.reports.ledger import Manifest
from crmlab.settings import make_folder

# Earlier pages that the front page links to.
EARLIER_PAGES = 12


def _published(home: Path, key: str) -> list[Manifest]:
    """Return the published runs of one page, the one that managers should see last."""
    good = [m for m in ledger.entries(home) if m["key"] == key and m["state"] == "published"]
    return sorted(good, key=newness)


def newness(manifest: Manifest) -> tuple[str, str, str]:
    """Order the runs of a page: the one that managers should see comes last."""
    return manifest["as_of"], manifest["moment"], manifest["started"]


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
        page.write(path, _html(home), 0o644)
    return path


def _html(home: Path) -> str:
    runs: dict[str, list[dict[str, Any]]] = {}
    for manifest in ledger.entries(home):
        # A run that was refused, say for a parameter out of range, is the asker's business only.
        if manifest["state"] not in ("refused", "running"):
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
    good = [
        run
        for run in runs
        if run["state"] == "published" and (site / run.get("page", "?")).is_file()
    ]
    good.sort(key=newness)
    shown = good[-1] if good else {}
    failed = last["state"] != "published"
    return {
        "shop_name": last["shop_name"],
        "by_hand": last.get("by_hand", False),
        "notices": shown.get("notices", []),
        "title": shown.get("title", last["report"]),
        "page": f"{shown['key']}/index.html" if shown else "",
        "as_of": shown.get("as_of", ""),
        "ran": _when(shown) if shown else "",
        "parameters": ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in shown.get("set", {}).items()
            if value != ""
        ),
        "summary": shown.get("summary", ""),
        "tiles": shown.get("kpis", []),
        "failure": last.get("failure", "") if failed else "",
        "failed": _when(last) if failed else "",
        "earlier": [(run["page"], _when(run)) for run in good[-2 : -2 - EARLIER_PAGES : -1]],
    }


def _when(run: dict[str, Any]) -> str:
    return f"{dt.datetime.fromisoformat(run['started']):%Y-%m-%d %H:%M} UTC"
