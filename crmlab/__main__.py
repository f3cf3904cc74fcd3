"""The commands. Each is thin: the work is in the modules, and a clear error is one sentence."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

# What schedulers read; see the README.
FAILED, USAGE, DATA, BUSY = 1, 2, 3, 75


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Say an expected error in its own words, with the exit code that schedulers read."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        from crmlab.tables import DataError, UsageError

        try:
            command(*args, **options)
        except UsageError as error:
            _stop(error, USAGE)
        except DataError as error:
            _stop(error, DATA)
        except OSError as error:
            _stop(error, FAILED)

    return wrapped


def _stop(error: Exception, code: int) -> None:
    click.echo(f"Error: {error}", err=True)
    raise SystemExit(code)


@click.group()
def main() -> None:
    """Turn receipts into pages that a manager trusts."""


@main.command()
@_plain_errors
def demo() -> None:
    """Prepare the demo shops, run their reports, print the front page's path."""
    from crmlab import demo as demo_shops
    from crmlab import reports, sources

    home = sources.home()
    written = demo_shops.prepare(home / "data", progress=lambda text: click.echo(text, err=True))
    for report in reports.load(home).values():
        if report.shop in written:
            _run(report)
    click.echo(home / "reports" / "site" / "index.html")


@main.command()
@_plain_errors
def shops() -> None:
    """List the shops and what each table holds."""
    from crmlab import sources
    from crmlab.tables import CONTRACT, DataError

    names = sources.shop_names()
    if not names:
        click.echo(f"No shops under {sources.home() / 'data'} yet. `crmlab demo` makes some.")
    for name in names:
        try:
            shop = sources.open_shop(name)
            held = [shop.check(table) for table in CONTRACT if shop.has(table)]
            told = "; ".join(
                f"{check.table} {check.used:,} rows"
                + (f", {check.first} to {check.last}" if check.first else "")
                for check in held
            )
            click.echo(f"{name:<20} {shop.settings.name}: {told or 'no data; see `crmlab check`'}")
        except DataError as error:
            click.echo(f"{name:<20} {str(error).splitlines()[0]}")


@main.command()
@click.argument("shop")
@_plain_errors
def check(shop: str) -> None:
    """Read every table of SHOP against the contract."""
    from crmlab import proposals, sources
    from crmlab.tables import CONTRACT, DataError

    opened = sources.open_shop(shop)
    folder = sources.home() / "reports" / "private" / opened.id / "set_aside"
    broken = []
    for table in CONTRACT:
        try:
            named = table == "transactions" or table in opened.settings.tables
            if not named and not opened.has(table):
                continue
            click.echo(opened.check(table, as_of=dt.date.today()))
            if path := opened.write_set_aside(folder, table):
                click.echo(f"  The rows set aside, each with the rule it broke: {path}")
        except DataError as error:
            broken.append(str(error))
    if broken:
        raise DataError("\n".join(broken))
    click.echo(f"\n{proposals.review(opened, as_of=dt.date.today()).possible}")


@main.command("new-shop")
@click.argument("name")
@click.argument("source")
@click.option("--currency", default="", help="Such as EUR.")
@click.option("--locale", default="", help="How readers write numbers and dates, such as de_DE.")
@click.option("--timezone", default="", help="Of the shop's clock, such as Europe/Kyiv.")
@_plain_errors
def new_shop(name: str, source: str, currency: str, locale: str, timezone: str) -> None:
    """Look at SOURCE (files or a database), write the shop.toml of a shop NAME, and check it."""
    from crmlab import proposals, sources
    from crmlab.tables import DataError

    click.echo("Looking at the source ...", err=True)
    proposal = proposals.propose(name, source, currency=currency, locale=locale, timezone=timezone)
    path = proposals.write(proposal)
    click.echo(f"{proposal.toml()}\nThis is now {path}\n")
    review = proposals.review(sources.open_shop(name), as_of=dt.date.today())
    click.echo(review)
    if review.broken:
        raise DataError(f"See above. Change {path}, then run `crmlab check {name}`.")


@main.command()
@click.argument("report_id", metavar="ID")
@click.option("--shop", help="Another shop than reports.toml names.")
@click.option("--as-of", help="The last day that counts, such as 2025-12-31.")
@click.option("--slot", help="The scheduled time that the run is for, such as 2026-01-05T06:00.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@_plain_errors
def report(
    report_id: str, shop: str | None, as_of: str | None, slot: str | None, settings: tuple[str, ...]
) -> None:
    """Run the report ID of reports.toml now."""
    from crmlab import reports, sources
    from crmlab.tables import UsageError, did_you_mean

    known = reports.load(sources.home())
    if report_id not in known:
        raise UsageError(
            f"There is no report '{report_id}'; reports.toml has {', '.join(known) or 'none'}."
            + did_you_mean(report_id, known)
        )
    for setting in settings:
        if "=" not in setting:
            raise UsageError(f"--set {setting}: write it as NAME=VALUE, such as margin=0.3.")
    parameters = dict(setting.split("=", 1) for setting in settings)
    page = _run(known[report_id], shop=shop, as_of=as_of, slot=slot, parameters=parameters)
    click.echo(page)


def _run(report: Any, **options: Any) -> Any:
    """Run a report and return its page; a run that failed or is busy ends the command."""
    from crmlab import reports, sources

    try:
        result = reports.run(sources.home(), report, **options)
    except reports.RunError as error:
        _stop(error, FAILED)
    except reports.BusyError as error:
        _stop(error, BUSY)
    return result.page


if __name__ == "__main__":
    main()
