"""A small project to run reports in: one quick notebook, one small shop."""

import re

import nbformat

from crmlab import reports
from crmlab.reports import ledger


def make(folder):
    """Write the project's notebook, shop and reports.toml."""
    for name in ("notebooks", "data/small", "reports"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "small" / "shop.toml").write_text('name = "Small <shop>"\n')
    (folder / "data" / "small" / "transactions.csv").write_text(
        "customer_id,purchased_at,amount\na,2024-01-01,5\na,2024-01-09,2\nb,oops,2\n"
        "card-00017,2024-01-04,3\n"
    )
    (folder / "reports" / "reports.toml").write_text(
        '[[report]]\nid = "quick"\nnotebook = "quick"\nshop = "small"\n'
    )
    write_notebook(folder)
    return folder


def write_notebook(project, code="", end=None):
    end = end or (
        'results.publish(summary="All <b>well</b>", '
        'kpis=[results.Kpi("Rows", level, "count", "up")], '
        "left_out=shop.check(as_of=as_of).left_out())"
    )
    cells = [
        nbformat.v4.new_markdown_cell("# What <now>?\n\nSome text."),
        nbformat.v4.new_code_cell(
            'shop_name: str = "small"  # a folder\nas_of: str = ""  # a date\n'
            'level: int = 3  # how many\nshare: float = 0.5  # of all\nword: str = "x"  # said',
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell(
            "from crmlab import results, sources\nshop = sources.open_shop(shop_name)"
        ),
        nbformat.v4.new_markdown_cell("## A part"),
        nbformat.v4.new_code_cell(code),
        nbformat.v4.new_code_cell(end),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    nbformat.write(notebook, project / "notebooks" / "quick.ipynb")


def go(project, **options):
    report = reports.load(project)["quick"]
    return reports.run(project, report, progress=False, **options)


def goes(project, **options):
    """Run the report, and expect a page of it."""
    result = go(project, **options)
    assert (result.state, result.code) == ("published", 0), result
    return result


def site(project):
    folder = project / "reports" / "site"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def last_manifest(project):
    return max(ledger.entries(project), key=lambda row: row["started"])


def front_page(project):
    """Return the front page without the moments on it: one was made a minute after another."""
    text = site(project)["index.html"].decode()
    return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(\+00:00| UTC)", "", text)
