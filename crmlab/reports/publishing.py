"""From a finished run to what managers see: pages in their place, the front page, word of it."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from crmlab.reports import index, ledger, page
from crmlab.reports.child import PAGE
from crmlab.reports.config import Report
from crmlab.reports.ledger import Manifest
from crmlab.settings import make_folder

log = logging.getLogger(__name__)


def record(home: Path, manifest: Manifest) -> None:
    """Write how a run stands into its folder and into the ledger."""
    text = json.dumps(manifest, indent=1, default=str)
    make_folder(_folder(home, manifest), 0o700)
    page.write(_folder(home, manifest) / "manifest.json", text, 0o600)
    ledger.record(home, manifest)


def _folder(home: Path, manifest: Manifest) -> Path:
    return home / "reports" / "private" / str(manifest["folder"])


def publish(home: Path, manifest: Manifest, *, keep: int) -> None:
    """Put the page of a run in its place under its slot, and as the newest one unless it is not.

    The state `publishing` is written first: a run that dies between two files is finished by
    `recover`, which does the same again.
    """
    site, html = home / "reports" / "site", _folder(home, manifest) / PAGE
    target = site / str(manifest["key"])
    dated = target / f"{dt.datetime.fromisoformat(manifest['moment']):%Y%m%dT%H%M%SZ}.html"
    newest = index.is_newest(home, manifest)
    record(home, manifest | {"state": "publishing", "keep": keep})
    text = html.read_text(encoding="utf-8")
    make_folder(target, 0o755)
    for left in target.glob(".*.html.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    for path in (dated, target / "index.html") if newest else (dated,):
        page.write(path, text, 0o644)
    manifest |= {
        "state": "published",
        "page": dated.relative_to(site).as_posix(),
        "lasting": newest,
        "code": 0,
    }
    record(home, manifest)
    html.unlink(missing_ok=True)
    _retire(home, manifest, keep)


def _retire(home: Path, newest: Manifest, keep: int) -> None:
    """Delete all but so many pages of a report and parameters, and the folders of their runs.

    The page that was just made stays, of whatever date it is.
    """
    runs = ledger.entries(home, str(newest["key"]))
    good = sorted((run for run in runs if run["state"] == "published"), key=index.newness)
    bad = [run for run in runs if run["state"] in ("failed", "refused", "stopped")]
    kept = {run["folder"] for run in [*good[-keep:], *bad[-keep:], newest]}
    for run in good + bad:
        if run["folder"] in kept:
            continue
        if run["state"] == "published":
            (home / "reports" / "site" / run["page"]).unlink(missing_ok=True)
        for folder in (run["folder"], *run.get("earlier", [])):
            shutil.rmtree(home / "reports" / "private" / folder, ignore_errors=True)


def recover(home: Path, key: str = "") -> list[Manifest]:
    """Take up what killed processes left: finish publishing, record the failure, clear away.

    Of one page with a `key`, which the caller has locked; else of all that nobody has locked.
    Returns the runs that failed.
    """
    from filelock import FileLock, Timeout

    failed = []
    for run in ledger.entries(home, key):
        if not run.get("killed"):
            continue
        lock = FileLock(home / "reports" / "private" / f"{run['key']}.lock", timeout=0)
        try:
            if not key:
                lock.acquire()
            if _take_up(home, run):
                failed.append(run)
        except Timeout:
            continue
        except (OSError, ledger.LedgerError) as error:
            log.warning(f"The killed run of '{run['key']}' could not be cleared away: {error}")
        finally:
            lock.release()
    return failed


def _take_up(home: Path, run: Manifest) -> bool:
    """Finish or record a run whose process is gone; tell whether it failed."""
    folder = _folder(home, run)
    kill(folder)
    if re.fullmatch(r"crmlab-run-\w+", Path(run.get("scratch", "")).name):
        shutil.rmtree(Path(scratch_place(), Path(run["scratch"]).name), ignore_errors=True)
    for name in ("log.txt", "notebook.ipynb"):
        page.clean(folder / name)
    written: Manifest = {}
    with suppress(OSError, ValueError):
        written = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if written.get("state") == "publishing" and (folder / PAGE).is_file():
        publish(home, written, keep=written["keep"])
        return False
    if written.get("state") == "published":
        ledger.record(home, written)
        return False
    record(home, run | {"code": 1, "details": run["failure"]})
    return True


def scratch_place() -> str:
    """Return where runs keep what ends with them: a place near the root, for names of sockets."""
    place = tempfile.gettempdir()
    return place if len(place) < 60 else "/tmp"


def kill(folder: Path) -> None:
    """End whatever runs for a run: every process whose environment names its folder."""
    import psutil

    for _ in range(10):  # one may start another meanwhile
        found = [process for process in psutil.process_iter() if _belongs(process, folder)]
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        if not found:
            return
        psutil.wait_procs(found, timeout=2)
        time.sleep(0.02)


def _belongs(process: Any, folder: Path) -> bool:
    import psutil

    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(process.environ().get("CRMLAB_RUN_DIR") == str(folder))
    except (psutil.Error, OSError):  # it is gone, or somebody else's
        return False


def show(home: Path, report: Report, manifest: Manifest) -> None:
    """Write the front page anew, and send word where a page failed or is well again."""
    try:
        index.write(home)
    except (OSError, ledger.LedgerError, ledger.BusyError) as error:
        log.warning(f"The front page could not be written: {error}")
    addresses = [os.path.expandvars(address) for address in report.notify]
    again = manifest.get("scheduled") and (
        manifest["state"] == "stopped"
        or (manifest.get("code") == 1 and manifest.get("attempt", 1) <= report.retries)
    )
    if addresses and not again and not index.is_a_try(manifest) and (text := _news(home, manifest)):
        _send(addresses, text)


def _news(home: Path, manifest: Manifest) -> str:
    """Return what is new: a failure after a success, a success after a failure, else nothing."""
    earlier = [
        run["state"] == "published"
        for run in ledger.entries(home, manifest["key"])
        if run["moment"] < manifest["moment"]
        and not index.is_a_try(run)
        and run["state"] in ("published", "failed", "refused", "stopped")
    ]
    good, was_good = manifest["state"] == "published", earlier[-1] if earlier else True
    if good == was_good:
        return ""
    name = f"{manifest['report']} of {manifest['shop_name']}"
    if good:
        return f"{name} is well again: {manifest['title']}"
    return f"{name} failed for {manifest['slot']}. {manifest['failure']}"


def _send(addresses: Sequence[str], text: str) -> None:
    try:
        import apprise
    except ModuleNotFoundError:
        log.warning("Nobody was told: pip install 'crmlab[notify]' sends messages.")
        return
    for number, address in enumerate(addresses, start=1):
        sender = apprise.Apprise()
        if address.startswith("${"):
            log.warning(f"Nobody was told: {address[2:-1]} of notify is not in the environment.")
        elif not sender.add(address):
            log.warning(f"Nobody was told: notify address {number} is of no kind Apprise knows.")
        elif not sender.notify(title="crmlab", body=text):
            log.warning(f"notify address {number} did not take the message.")
