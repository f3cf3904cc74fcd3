"""The front page of all reports, made from the manifests of their runs."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

from crmlab.reports import page
from crmlab.settings import make_folder

# Earlier pages that the front page links to.
EARLIER_PAGES = 12
# What every manifest says from its run's beginning.
NEEDED = {"state", "report", "shop_name", "key", "slot", "as_of", "started"}


def manifests(home: Path) -> list[dict[str, Any]]:
    """Return the manifests of all runs, oldest first; one that cannot be read is passed over."""
    found = []
    for path in (home / "reports" / "private").glob("*/*/*/manifest.json"):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(manifest, dict) or not manifest.keys() >= NEEDED:
            continue
        if manifest["state"] == "running" and not _alive(manifest.get("pid", 0)):
            manifest |= {"state": "failed", "failure": "It was killed before it had finished."}
        found.append(manifest)
    return sorted(found, key=lambda manifest: (manifest["started"], manifest["slot"]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _published(home: Path, key: str) -> list[dict[str, Any]]:
    """Return the published runs of one page, the one that managers should see last."""
    good = [m for m in manifests(home) if m["key"] == key and m["state"] == "published"]
    return sorted(good, key=_newness)


def _newness(manifest: dict[str, Any]) -> tuple[str, str, str]:
    return manifest["as_of"], manifest["slot"], manifest["started"]


def is_newest(home: Path, manifest: dict[str, Any]) -> bool:
    """Tell whether no published page of the same key is of a later date."""
    others = _published(home, manifest["key"])
    return not others or _newness(others[-1])[:2] <= _newness(manifest)[:2]


def previous(home: Path, key: str, as_of: str) -> dict[str, Any] | None:
    """Return the newest published run of the same page as of an earlier date."""
    earlier = [run for run in _published(home, key) if run["as_of"] < as_of]
    return earlier[-1] if earlier else None


def write(home: Path) -> Path:
    """Write reports/site/index.html anew and return its path."""
    from filelock import FileLock

    path = home / "reports" / "site" / "index.html"
    make_folder(path.parent, 0o755)
    make_folder(home / "reports" / "private", 0o700)
    with FileLock(home / "reports" / "private" / "index.lock"):
        page.write(path, _html(home), 0o644)
    return path


def _html(home: Path) -> str:
    runs: dict[str, list[dict[str, Any]]] = {}
    for manifest in manifests(home):
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
    good.sort(key=_newness)
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
