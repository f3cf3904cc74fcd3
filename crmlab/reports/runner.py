"""Runs of reports: each in a process of its own, judged by that process, published or recorded."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zoneinfo
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crmlab import settings, tables
from crmlab.reports import child, config, ledger, page, publishing, signals
from crmlab.reports.config import Report
from crmlab.reports.ledger import BusyError, LedgerError, Manifest
from crmlab.settings import make_folder

STEPS = {
    "start": "starting the run",
    "open": "opening the shop's data",
    "notebook": "running the notebook",
    "page": "making the page",
    "publish": "publishing the page",
}
SHOWN_PACKAGES = ("crmlab", "lifetimes", "ibis-framework", "duckdb", "papermill")
WORKERS = 2
CHILD = "import sys; from crmlab.reports import child; child.start(sys.argv[1])"
# What schedulers read; see the README.
DONE, FAILED, USAGE, DATA, BUSY = 0, 1, 2, 3, 75


@dataclass(frozen=True)
class RunResult:
    """How the run of one page ended.

    `state` is published, failed, refused, stopped or busy, and `code` the exit code for it.
    `page` is the lasting path, unless the run is of an earlier date than the page that is there;
    None without one. `said` is one sentence, for the terminal, of what went wrong.
    """

    report: str
    key: str
    slot: str
    state: str
    code: int
    page: Path | None
    folder: Path | None
    seconds: float
    said: str = ""


@dataclass(eq=False)
class Run:
    """A run under way: its manifest, its process, its private and its scratch folder."""

    home: Path
    report: Report
    values: dict[str, Any]
    manifest: Manifest
    begun: float = 0.0
    scratch: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def folder(self) -> Path:
        """The run's private folder."""
        return self.home / "reports" / "private" / str(self.manifest["folder"])


def prepare(
    home: Path,
    report: Report,
    *,
    shop: str | None = None,
    as_of: str | None = None,
    slot: str | dt.datetime | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Run:
    """Check what a run is asked for, before anything is written or started.

    Parameters
    ----------
    home : folder with notebooks/, data/ and reports/
    shop, as_of : in place of the report's own; `as_of` falls back to its parameter, else to the
        earlier of the slot's previous day and the log's last complete day
    slot : the time that the run is for, ISO; now by default
    parameters : in place of the report's own values

    Raises
    ------
    UsageError
    """
    home = home.resolve()
    name = shop or report.shop
    if name.endswith(".toml"):
        raise tables.UsageError("A report runs on a shop under data/: name it, not its shop.toml.")
    if "shop_name" in (parameters or {}):
        raise tables.UsageError("The shop is no parameter; name it with --shop.")
    notebook = home / "notebooks" / f"{report.notebook}.ipynb"
    values = config.validate(notebook, {**report.parameters, **(parameters or {})})
    if day := as_of or values.get("as_of"):
        values["as_of"] = tables.day(day).isoformat()
    shop_name, zone = shop_clock(name)
    at = read_slot(slot, zone)
    if values.get("as_of", "") > (today := f"{dt.datetime.now(zone):%Y-%m-%d}"):
        said = f"as_of is {values['as_of']}, which is still to come; it is {today}."
        raise tables.UsageError(said)
    for text in map(str, values.values()):
        if page.without_secrets(text) != text:
            raise tables.UsageError("A parameter holds the value of a secret of the environment.")
    manifest = manifest_of(report, name, shop_name, at, values)
    manifest["by_hand"] = bool(shop or as_of or parameters)
    return Run(home, report, values, manifest)


def manifest_of(
    report: Report, shop: str, shop_name: str, at: dt.datetime, values: Mapping[str, Any]
) -> Manifest:
    """Return what is known of a run before it begins."""
    moment = at.astimezone(dt.UTC)
    run_id = f"{moment:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return {
        "state": "waiting",
        "report": report.id,
        "notebook": report.notebook,
        "shop": shop,
        "shop_name": shop_name,
        "zone": str(at.tzinfo),
        "key": f"{shop}/{report.id}/{config.slug(values)}",
        "slot": at.isoformat(),
        "moment": moment.isoformat(),
        "as_of": values.get("as_of", ""),
        "set": {name: v for name, v in values.items() if name not in config.SET_BY_THE_RUN},
        "started": "",
        "by_hand": False,
        "folder": f"{shop}/{report.id}/{run_id}",
    }


def shop_clock(name: str) -> tuple[str, zoneinfo.ZoneInfo]:
    """Return a shop's name and time zone; of a broken shop.toml, which the run will name, UTC."""
    try:
        read = settings.read(name)
        return read.name, zoneinfo.ZoneInfo(read.timezone)
    except tables.DataError:
        return name, zoneinfo.ZoneInfo("UTC")


def read_slot(slot: str | dt.datetime | None, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """Read the time that a run is for, as the shop's wall clock with its zone."""
    now = dt.datetime.now(zone)
    try:
        at = (dt.datetime.fromisoformat(slot) if isinstance(slot, str) else slot) or now
        at = at.replace(tzinfo=zone) if at.tzinfo is None else at.astimezone(zone)
        at.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise tables.UsageError(f"--slot is {slot!r}; it must be like 2026-11-21T06:00.") from None
    # A page of days to come would stand in the place of those that come.
    if isinstance(slot, str) and at.timestamp() > now.timestamp() + 60:
        raise tables.UsageError(f"--slot is {slot}, which is still to come; it is {now:%Y-%m-%d}.")
    return at


def run(home: Path, report: Report, *, progress: bool = True, **asked: Any) -> RunResult:
    """Run a report for one page now; whatever fails, the page that was there stays.

    `asked` is what `prepare` takes. Raises `UsageError` before anything is written.
    """
    [result] = run_all([prepare(home, report, **asked)], progress=progress)
    return result


def run_all(
    runs: Iterable[Run], *, workers: int = WORKERS, progress: bool = True
) -> Iterator[RunResult]:
    """Run so many at a time, each in a process of its own; give each result as it comes.

    Where this process is stopped (Ctrl-C, SIGTERM), the runs under way are stopped and recorded.
    """
    waiting, active, over = deque(runs), dict[int, Run](), list[tuple[Run, int | None]]()
    many = len(waiting) > 1
    with signals.terminable():
        try:
            while waiting or active:
                for place, run in list(active.items()):
                    if (code := _code(run)) is not None:
                        over.append((active.pop(place), code))
                # The next process wakes up while the page of the one before is published.
                while waiting and len(active) < workers:
                    place = min(set(range(workers)) - active.keys())
                    run, active[place] = waiting[0], waiting.popleft()
                    if result := _begin(run, place, progress, many):
                        del active[place]
                        yield result
                while over:
                    with signals.undisturbed():
                        result = _end(*over.pop())
                    yield result
                time.sleep(0.02)
        finally:
            with signals.undisturbed():
                for run, code in [*over, *((run, None) for run in active.values())]:
                    _end(run, code)


def _begin(run: Run, place: int, progress: bool, many: bool) -> RunResult | None:
    """Start the process of a run; return a result if there is nothing to start."""
    if run.manifest["state"] == "failed":  # it was found impossible before
        publishing.record(run.home, run.manifest)
        publishing.show(run.home, run.report, run.manifest)
        return _result(run, "failed", run.manifest["code"], run.manifest["details"])
    run.begun = time.monotonic()
    try:
        run.held.enter_context(_only_one(run))
        publishing.recover(run.home, key=run.manifest["key"])
        run.manifest |= ledger.process() | {
            "state": "running",
            "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in SHOWN_PACKAGES},
        }
        if stands := ledger.claim(run.home, run.manifest):
            return _already(run, stands)
        run.scratch = Path(tempfile.mkdtemp(prefix="crmlab-run-", dir=publishing.scratch_place()))
        run.manifest["scratch"] = str(run.scratch)
        publishing.record(run.home, run.manifest)
        order = {
            "home": str(run.home),
            "report": asdict(run.report),
            "values": run.values,
            "manifest": run.manifest,
            "progress": {},
        }
        terminal = os.dup(2) if progress else None
        if terminal:
            order["progress"] = {"terminal": terminal, "position": place, "leave": not many}
        page.write(run.folder / child.ORDER, json.dumps(order), 0o600)
        surroundings = {
            # So many run at a time: threads of two that share a processor wait for each other.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // WORKERS)),
            **os.environ,
            "CRMLAB_HOME": str(run.home),
            "CRMLAB_RUN_DIR": str(run.folder),
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's own
            # Nothing of a run outlives it: sockets, and what the engine spills.
            "JUPYTER_RUNTIME_DIR": str(run.scratch),
            "TMPDIR": str(run.scratch),
        }
        with (run.folder / "log.txt").open("wb") as log:
            run.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(run.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=surroundings,
                cwd=run.home,
                start_new_session=True,
                pass_fds=[terminal] if terminal else [],
            )
        if terminal:
            os.close(terminal)
    except BusyError as error:
        run.held.close()
        return _result(run, "busy", BUSY, str(error))
    except tables.UsageError as error:
        return _result(run, "refused", USAGE, str(error))
    except (OSError, LedgerError) as error:
        return _end(run, None, str(error))
    return None


def _already(run: Run, stands: Manifest) -> RunResult:
    """Say that the slot has its page, or that another process makes it."""
    run.held.close()
    if stands["state"] != "published":
        said = f"'{run.manifest['key']}' is being run by another process; it was left alone."
        return _result(run, "busy", BUSY, said)
    asked = run.manifest["as_of"]
    if asked and asked != stands["as_of"]:
        raise tables.UsageError(
            f"Report '{run.report.id}' has a page for the slot {stands['slot']} already, as of "
            f"{stands['as_of']}. Leave out --slot to make another one."
        )
    run.manifest = stands
    return _result(run, "published", DONE, "This slot had its page already.")


@contextlib.contextmanager
def _only_one(run: Run) -> Iterator[None]:
    from filelock import FileLock, Timeout

    key = run.manifest["key"]
    path = run.home / "reports" / "private" / f"{key}.lock"
    make_folder(path.parent, 0o700)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise BusyError(f"'{key}' is being run by another process; it was left alone.") from None


def _code(run: Run) -> int | None:
    """Return the exit code of a run's process once it has ended, or had to be ended."""
    assert run.process
    code = run.process.poll()
    # A cell that takes so long is interrupted and named by its own process first.
    if code is None and time.monotonic() - run.begun > run.report.timeout_minutes * 60 + 10:
        return -signal.SIGALRM
    return code


def _end(run: Run, code: int | None, said: str = "") -> RunResult:
    """Publish what the process of a run made, or record why it made nothing.

    `code` is None where the run was stopped.
    """
    manifest = run.manifest
    try:
        publishing.kill(run.folder)
        if run.process:
            run.process.wait()
            if run.process.stdin:
                run.process.stdin.close()
        manifest |= _answer(run, code, said)
        for name in ("log.txt", "notebook.ipynb"):
            page.clean(run.folder / name)
        for name in (child.ORDER, child.STEP, child.ANSWER):
            (run.folder / name).unlink(missing_ok=True)
        manifest["seconds"] = round(time.monotonic() - run.begun, 1)
        if manifest["state"] == "running":
            try:
                publishing.publish(run.home, manifest, keep=run.report.keep)
            except (OSError, LedgerError, BusyError) as error:
                manifest |= failure("publish", "the files could not be written", str(error))
        with contextlib.suppress(OSError):
            publishing.record(run.home, manifest)
        publishing.show(run.home, run.report, manifest)
    except (OSError, LedgerError, BusyError) as error:
        manifest.setdefault("details", f"the end of the run could not be recorded: {error}")
        if manifest["state"] == "running":
            manifest["state"] = "failed"
    finally:
        ledger.over(manifest)
        if run.scratch:
            shutil.rmtree(run.scratch, ignore_errors=True)
        run.held.close()
    return _result(run, manifest["state"], manifest.get("code", DONE), manifest.get("details", ""))


def _answer(run: Run, code: int | None, said: str) -> dict[str, Any]:
    """Return what a process that ended adds to the manifest; state running: it may be published."""
    step, _, section = "start", "", ""
    with contextlib.suppress(OSError):
        step, _, section = (run.folder / child.STEP).read_text(encoding="utf-8").partition("\n")
    try:
        told: dict[str, Any] = json.loads((run.folder / child.ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    if code == child.MADE and told and (run.folder / child.PAGE).is_file():
        return told
    if said:
        return failure(step, "files could not be written or processes begun", said)
    if code is None:
        return failure(step, "it was stopped", "it was stopped") | {"state": "stopped"}
    if code == -signal.SIGALRM:
        minutes = f"Timeout: it ran for {run.report.timeout_minutes:g} minutes"
        return failure(step, "Timeout", minutes, section)
    if code < 0 or not told:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = _last_line(run.folder / "log.txt")
        return failure(step, f"its process died ({name})", f"its process died ({name}). {last}")
    failed = failure(step, told["reason"], told["details"], section, code)
    return failed | {"state": "refused"} if code == child.USAGE else failed


def failure(
    step: str, reason: str, details: str, section: str = "", code: int = FAILED
) -> dict[str, Any]:
    """Return what a manifest says of a failure: plain words for the front page, and the details.

    The details may hold values from the data and paths, so managers never see them.
    """
    where = f" in the section “{section}”" if section else ""
    doing = STEPS.get(step, STEPS["start"])
    return {
        "state": "failed",
        "code": code,
        "failure": f"{doing.capitalize()} failed{where}: {reason}.".replace("..", "."),
        "details": page.without_secrets(f"{doing} failed: {details}"),
    }


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""
    return ""


def _result(run: Run, state: str, code: int, said: str) -> RunResult:
    shown = run.manifest.get("page") if state == "published" else None
    site = run.home / "reports" / "site"
    lasting = site / run.manifest["key"] / "index.html"
    page_path = (lasting if run.manifest.get("lasting") else site / shown) if shown else None
    return RunResult(
        run.report.id,
        run.manifest["key"],
        run.manifest["slot"],
        state,
        code,
        page_path,
        run.folder,
        run.manifest.get("seconds", 0.0),
        f"Report '{run.report.id}': {said}" if said else "",
    )
