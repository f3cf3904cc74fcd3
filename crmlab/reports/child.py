"""The process of one run: from the shop's data to a checked page in the run's private folder.

The runner starts it in a session of its own and publishes what it made. It ends when the runner
does.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crmlab import sources, tables
from crmlab.reports import config, index, page
from crmlab.results import Numbers, PageEnds, html_table

# Exit codes, and the names of the files by which the runner hears of this process.
MADE, FAILED, USAGE, DATA = 0, 1, 2, 3
ORDER, STEP, ANSWER, PAGE = "order.json", "step", "answer.json", "page.html"


class StepError(Exception):
    """A step failed for a reason other than the data; the message begins with a word for it."""


def main(folder: Path) -> int:
    """Make the page that the order in the folder asks for; the answer stands in the folder too."""
    order = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    code, answer = MADE, {}
    try:
        answer = _make(folder, order)
    except tables.UsageError as error:
        code, answer = USAGE, {"reason": "it was refused as asked for", "details": str(error)}
    except tables.DataError as error:
        code, answer = DATA, {"reason": "the data break the contract", "details": str(error)}
    except page.PageError as error:
        reason = "the page would not stand alone, or would show what it must not"
        code, answer = FAILED, {"reason": reason, "details": str(error)}
    except StepError as error:
        code, answer = FAILED, {"reason": str(error).partition(":")[0], "details": str(error)}
    except Exception as error:
        logging.getLogger(__name__).exception("the run failed")
        first = (str(error).strip().splitlines() or [""])[0]
        code, answer = FAILED, {"reason": type(error).__name__, "details": first}
    text = page.without_secrets(json.dumps(answer, default=str))
    page.write(folder / ANSWER, text, 0o600)
    return code


def _make(folder: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    """Go the steps up to the checked page; return what they add to the manifest."""
    home, manifest = Path(order["home"]), dict(order["manifest"])
    report, values = config.Report(**order["report"]), order["values"]
    notebook = home / "notebooks" / f"{report.notebook}.ipynb"
    at = dt.datetime.fromisoformat(manifest["slot"])
    _step(folder, "open")
    kernel = _kernel(folder)
    shop = sources.open_shop(manifest["shop"])
    # A receipt dated after the slot is no news of the shop's.
    last = shop.last_complete_day(before=at.date())
    values = {**values, "as_of": values.get("as_of") or last.isoformat(), "shop_name": shop.id}
    defaults = {name: one.default for name, one in config.schema(notebook).items()}
    fixed = bool(report.parameters.get("as_of"))
    manifest |= {
        "parameters": {**defaults, **values},
        "as_of": values["as_of"],
        "as_of_said": shop.numbers.day(tables.day(values["as_of"])),
        "last_day": last.isoformat(),
        "notices": [] if fixed else _notices(shop, values["as_of"], at),
        "fingerprint": shop.fingerprint(),
    }
    shop.write_set_aside(home / "reports" / "private" / shop.id / "set_aside")
    _step(folder, "notebook")
    executed = _execute(folder, report, notebook, values, order["progress"], kernel)
    _step(folder, "page")
    title, parts, published = page.sections(executed)
    before = index.previous(home, manifest["key"], values["as_of"])
    manifest |= {"title": title, **{name: published[name] for name in _PUBLISHED}}
    html = page.export(executed, _context(shop, manifest, before))
    page.check(html, scripts=page.scripts(parts))
    if named := _customers_named(shop, html):
        raise page.PageError(f"The page was not published: it names {named} customers by their id.")
    if page.without_secrets(html) != html:
        raise page.PageError("The page was not published: it shows a secret of the environment.")
    page.write(folder / PAGE, html, 0o600)
    return {name: value for name, value in manifest.items() if order["manifest"].get(name) != value}


_PUBLISHED = ("summary", "kpis", "left_out", "used")


def _step(folder: Path, name: str) -> None:
    """Note how far the run is, for the case that it is killed."""
    page.write(folder / STEP, name, 0o600)


def _notices(shop: sources.Shop, as_of: str, at: dt.datetime) -> list[str]:
    """Warn of a page whose date lies further before its slot than the shop's policy allows."""
    day, numbers = tables.day(as_of), shop.numbers
    age = (at.date() - day).days
    if age <= shop.policy.stale_after_days:
        return []
    return [
        f"Old data: this page shows the state of {numbers.day(day)}, {numbers.number(age)} days "
        "before its run."
    ]


def _customers_named(shop: sources.Shop, html: str) -> int:
    """Count the customers whose id stands in the page's text between word boundaries.

    Ids of fewer than five characters cannot be told from the page's own numbers.
    """
    rows = shop.table("transactions")
    said = sorted(page.phrases(html, longer_than=4))
    found = rows.filter(rows.customer_id.isin(said)).customer_id.nunique()
    return int(found.to_pyarrow().as_py())


def _kernel(folder: Path) -> Any:
    """Start the kernel, in the run's private folder; it wakes up while the shop is opened."""
    from jupyter_client.manager import AsyncKernelManager

    # Sockets in the run's scratch folder: nobody else on the machine can listen in.
    sockets = str(Path(tempfile.mkdtemp(), "k"))
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=sockets)

    async def begin() -> None:
        await kernel.start_kernel(cwd=str(folder))

    asyncio.run(begin())
    return kernel


def _execute(
    folder: Path,
    report: config.Report,
    notebook: Path,
    values: Mapping[str, Any],
    progress: Mapping[str, int],
    kernel: Any,
) -> Any:
    """Run the notebook in its kernel, which the runner ends when this process has ended."""
    import nbclient
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    output = folder / "notebook.ipynb"
    bar: dict[str, Any] | bool = False
    if progress:
        form = "{desc} {bar:30} {n_fmt}/{total_fmt} cells"
        terminal = os.fdopen(progress["terminal"], "w")
        bar = {"desc": report.id, "bar_format": form, "file": terminal, **progress}
        del bar["terminal"]
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters=dict(values),
            kernel_name="python3",
            progress_bar=bar,
            execution_timeout=max(1, round(report.timeout_minutes * 60)),
            km=kernel,
        )
    except PapermillExecutionError as error:
        if error.ename == PageEnds.__name__:
            return nbformat.read(output, as_version=4)
        text = page.without_secrets("\n".join(error.traceback))
        page.write(folder / "traceback.log", text, 0o600)
        _step(folder, f"notebook\n{_section(output)}")
        if error.ename == "DataError":
            raise tables.DataError(error.evalue) from None
        if error.ename == "UsageError":
            raise tables.UsageError(error.evalue) from None
        first = (error.evalue.strip().splitlines() or [""])[0]
        raise StepError(f"{error.ename}: {first}") from None
    except nbclient.exceptions.CellTimeoutError:
        raise StepError(f"Timeout: a cell ran for {report.timeout_minutes:g} minutes") from None
    except RuntimeError as error:  # DeadKernelError is one, but not where it died before its start
        if "Kernel died" not in str(error):
            raise
        raise StepError("DeadKernel: the notebook's process died") from None
    finally:
        page.clean(output)
    return nbformat.read(output, as_version=4)


def _section(output: Path) -> str:
    """Return the heading above the cell that raised an exception; empty if there is none."""
    import nbformat

    heading = ""
    for cell in nbformat.read(output, as_version=4).cells:
        if cell.cell_type == "markdown":
            heading = ([heading] + re.findall(r"(?m)^## (.*)$", cell.source))[-1]
        if cell.metadata.get("papermill", {}).get("exception"):
            break
    return heading.strip()


def _context(
    shop: sources.Shop, manifest: dict[str, Any], before: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what the page shows beside the notebook."""
    import pandas as pd

    numbers, policy = shop.numbers, shop.policy
    as_of = tables.day(manifest["as_of"])
    started = dt.datetime.fromisoformat(manifest["started"])
    log = shop.check("transactions", as_of=as_of)
    left_out = pd.DataFrame(manifest["left_out"], columns=["what", "rows", "money"])
    # The amount of a few rows would be somebody's purchase.
    left_out["money"] = left_out["money"].astype(float).where(left_out["rows"] >= policy.privacy_k)
    own = {k: v for k, v in manifest["parameters"].items() if k not in config.SET_BY_THE_RUN}
    own |= manifest["used"]
    return {
        "css": (page.TEMPLATES / "house.css").read_text(encoding="utf-8"),
        "shop": manifest["shop_name"],
        "as_of": numbers.day(as_of),
        "index": "../../../index.html",
        "summary": manifest["summary"],
        "notices": manifest["notices"],
        "tiles": [_tile(kpi, before, numbers) for kpi in manifest["kpis"]],
        "facts": [
            (
                "Purchases from",
                f"{numbers.day(log.first or as_of)} to {numbers.day(log.last or as_of)}",
            ),
            ("Last complete day", numbers.day(tables.day(manifest["last_day"]))),
            ("Seen as of the end of", numbers.day(as_of)),
            *((f"Parameter {name}", _said(value)) for name, value in own.items()),
            ("Fewest customers behind a figure", str(policy.privacy_k)),
            ("Run", f"{numbers.day(started.date())}, {started:%H:%M %Z}"),
            ("Data fingerprint", manifest["fingerprint"]),
            ("Versions", ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())),
        ],
        "left_out": html_table(
            left_out,
            title="What was read, used and left out",
            formats={"rows": numbers.number, "money": numbers.money},
            headings={"what": "transactions", "money": f"amount, {numbers.currency}"},
        ),
    }


def _said(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value) or "not set"


def _tile(kpi: dict[str, Any], before: dict[str, Any] | None, numbers: Numbers) -> dict[str, str]:
    """Add to a KPI its change against the previous page of another date."""
    earlier = {k["label"]: k["value"] for k in (before or {}).get("kpis", [])}.get(kpi["label"])
    if before is None or earlier is None or kpi["value"] is None:
        return {**kpi, "change": "", "direction": ""}
    day = numbers.day(tables.day(before["as_of"]))
    points = kpi["kind"] in ("share", "signed_share")
    change = kpi["value"] - earlier if points else kpi["value"] / earlier - 1 if earlier else 0
    if points:
        said = ("+" if change > 0 else "−") + f"{numbers.number(abs(100 * change), 1)} points"
    else:
        said = numbers.percent(change, signed=True)
    direction = "" if not kpi["better"] or change == 0 else "up" if change > 0 else "down"
    if kpi["better"] == "down" and direction:
        direction = "down" if direction == "up" else "up"
    arrow = "▲ " if change > 0 else "▼ " if change < 0 else ""
    return {**kpi, "change": f"{arrow}{said} since {day}", "direction": direction}


def start(folder: str) -> None:
    """Be the process of a run, until it is made or the runner is gone."""

    def watch() -> None:
        # The runner holds the other end of this pipe, and writes nothing.
        os.read(0, 1)
        os._exit(FAILED)

    os.umask(0o077)
    # jsonschema would compile a grammar for a second, to check a kind of text no notebook holds.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    threading.Thread(target=watch, daemon=True).start()
    sys.exit(main(Path(folder)))
