import datetime as dt
import json
import os
import re
import shutil
import stat

import nbformat
import pandas as pd
import pytest

from crmlab import reports, results
from crmlab.reports import child, config, index, ledger, page
from crmlab.tables import UsageError
from tests.projects import front_page, go, goes, last_manifest, site, write_notebook


def test_a_run_publishes_a_page_and_keeps_the_rest_private(project):
    result = go(project, slot="2024-01-20T06:00")
    assert result.page.name == "index.html"
    dated = result.page.with_name("20240120T060000Z.html")
    assert result.page.read_bytes() == dated.read_bytes()
    assert stat.S_IMODE(result.page.stat().st_mode) == 0o644
    assert stat.S_IMODE(result.folder.stat().st_mode) == 0o700
    manifest = last_manifest(project)
    assert (manifest["state"], manifest["as_of"]) == ("published", "2024-01-09")
    assert manifest["kpis"][0]["value"] == 3
    assert manifest["versions"]["papermill"]
    html = result.page.read_text()
    assert "All &lt;b&gt;well&lt;/b&gt;" in html
    assert "Small &lt;shop&gt;" in html
    assert "What &lt;now&gt;?" in html
    assert "set aside: purchased_at unreadable" in html
    aside = project / "reports" / "private" / "small" / "set_aside" / "transactions.parquet"
    assert pd.read_parquet(aside)["rule"].tolist() == ["purchased_at unreadable"]
    front = (project / "reports" / "site" / "index.html").read_text()
    assert "small/quick/" in front
    assert "All &lt;b&gt;well&lt;/b&gt;" in front


def test_the_same_slot_run_late_gives_the_same_page_apart_from_the_time_it_was_made(project):
    first = go(project, slot="2024-01-05T06:00").page.read_text()
    again = go(project, slot="2024-01-05T06:00").page.read_text()
    # The last day with a purchase before the slot: what a punctual run would have seen.
    assert last_manifest(project)["as_of"] == "2024-01-04"

    def without_time(html):
        return [line for line in html.splitlines() if " UTC" not in line]

    assert without_time(first) == without_time(again)


def test_tiles_show_the_change_since_an_earlier_date_not_since_a_rerun(project):
    go(project, as_of="2024-01-05", parameters={"level": "4"})
    manifest = last_manifest(project)
    assert manifest["key"].endswith(config.slug({"level": 4}))
    kpi = {"label": "Rows", "value": 5.0, "kind": "count", "better": "up", "text": "5"}
    assert index.previous(project, manifest["key"], "2024-01-05") is None
    before = index.previous(project, manifest["key"], "2024-01-09")
    tile = child._tile(kpi, before, results.Numbers())
    assert (tile["change"], tile["direction"]) == ("▲ +25.0% since Jan 5, 2024", "up")
    share = {**kpi, "kind": "share", "value": 3.9, "better": "down"}
    assert child._tile(share, before, results.Numbers())["change"].startswith("▼ −10.0 points")
    assert child._tile(share, before, results.Numbers())["direction"] == "up"
    assert child._tile(kpi, None, results.Numbers())["change"] == ""


def test_old_data_are_said_to_be_old_unless_the_report_fixes_its_date(project):
    assert "Old data: this page shows" in go(project).page.read_text()
    toml = project / "reports" / "reports.toml"
    toml.write_text(toml.read_text() + 'parameters = { as_of = "2024-01-05" }\n')
    assert "Old data: this page shows" not in go(project).page.read_text()


FAILURES = {
    "an exception": ("raise RuntimeError('it broke')", None, 1, "RuntimeError"),
    "an exit": ("import os; os._exit(3)", None, 1, "DeadKernel"),
    "bad data": (
        "from crmlab import tables\nraise tables.DataError('Too few customers: 3.')",
        None,
        3,
        "Too few customers: 3.",
    ),
    "a script on the page": (
        "from IPython.display import HTML\nHTML('<script>1</script>')",
        None,
        1,
        "it holds a script",
    ),
    "a picture from elsewhere": (
        'from IPython.display import HTML\nHTML(\'<img alt="x" src="http://example.org/x.png">\')',
        None,
        1,
        "asks for something outside it",
    ),
    "nothing published": ("", "1", 1, "published nothing"),
    "too slow": ("import time; time.sleep(60)", None, 1, "a cell ran for 0.1 min"),
    "customers' ids": (
        "import pandas as pd; pd.DataFrame({'customer_id': ['card-00017', 'x']})",
        None,
        1,
        "it names 1 customers by their id",
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_leaves_the_last_good_page_and_is_said_on_the_front_page(project, what):
    code, end, exit_code, said = FAILURES[what]
    goes(project, slot="2024-01-20T06:00")
    before = site(project)
    write_notebook(project, code, end)
    toml = project / "reports" / "reports.toml"
    usual = toml.read_text()
    toml.write_text(usual + "timeout_minutes = 0.1\n" * (what == "too slow"))
    result = go(project, slot="2024-01-21T06:00")
    assert (result.state, result.code, result.page) == ("failed", exit_code, None)
    assert said in result.said
    toml.write_text(usual)
    after = site(project)
    front = after.pop("index.html").decode()
    before.pop("index.html")
    assert after == before
    assert "last run failed" in front
    assert "The page shown is the last good one." in front
    assert "it broke" not in front
    assert "Too few customers" not in front
    manifest = last_manifest(project)
    assert manifest["state"] == "failed"
    assert said in manifest["details"]
    write_notebook(project)
    goes(project, slot="2024-01-22T06:00")
    assert "last run failed" not in site(project)["index.html"].decode()


def test_a_page_that_ends_early_is_a_good_page_without_the_rest(project):
    end = (
        'results.end_page(summary="Only this: <b>one</b> thing.", '
        'kpis=[results.Kpi("Rows", 3, "count")])'
    )
    write_notebook(project, code='print("before the end")', end=end)
    notebook = nbformat.read(project / "notebooks" / "quick.ipynb", as_version=4)
    more = nbformat.v4.new_markdown_cell("## Never reached"), nbformat.v4.new_code_cell("1 / 0")
    notebook.cells += more
    nbformat.write(notebook, project / "notebooks" / "quick.ipynb")
    html = go(project, slot="2024-01-20T06:00").page.read_text()
    assert last_manifest(project)["state"] == "published"
    assert "Only this: &lt;b&gt;one&lt;/b&gt; thing." in html
    assert "A part" in html
    for word in ("Never reached", "PageEnds", "Exception", "encountered", "Traceback"):
        assert word not in html


def test_an_analyst_sees_a_sentence_where_the_page_ends():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    with pytest.raises(results.PageEnds) as ended:
        results.end_page(summary="Too few customers.")
    shown = shell.InteractiveTB and ended.value._render_traceback_()
    assert shown == ["The notebook ends here. Too few customers."]


def test_a_site_that_cannot_be_written_is_a_failed_run(project):
    (project / "reports" / "site").mkdir()
    (project / "reports" / "site" / "small").write_text("in the way")
    assert "publishing the page failed" in go(project).said
    assert (project / "reports" / "site" / "small").read_text() == "in the way"


def test_a_shop_whose_data_are_gone_keeps_its_page(project):
    go(project)
    before = site(project)
    (project / "data" / "small" / "transactions.csv").unlink()
    result = go(project)
    assert result.code == 3
    assert "has no file" in result.said
    after = site(project)
    assert {k: v for k, v in after.items() if k != "index.html"} == {
        k: v for k, v in before.items() if k != "index.html"
    }


def test_a_try_by_hand_that_is_refused_or_fails_leaves_no_mark_on_the_front_page(project):
    go(project)
    write_notebook(project, "from crmlab import tables\nraise tables.UsageError('margin is 30')")
    before = front_page(project)
    result = go(project)
    assert (result.state, result.code) == ("refused", 2)
    assert "margin is 30" in result.said
    assert front_page(project) == before
    write_notebook(project, "1 / 0")
    assert go(project, parameters={"level": 5}).state == "failed"
    assert front_page(project) == before
    states = [row["state"] for row in ledger.entries(project)]
    assert states == ["published", "refused", "failed"]


def test_a_run_of_an_older_date_does_not_take_the_newest_pages_place(project):
    newest = go(project, slot="2024-01-20")
    older = go(project, slot="2024-01-08", as_of="2024-01-05")
    assert older.page.name == "20240108T000000Z.html"
    assert "as of Jan 9, 2024" in newest.page.read_text()
    assert "as of Jan 9, 2024" in front_page(project)
    assert "as of Jan 5, 2024" in older.page.read_text()


def test_the_newest_slot_is_shown_though_a_wrong_receipt_is_gone(project):
    log = project / "data" / "small" / "transactions.csv"
    right = log.read_text()
    log.write_text(right + "a,2024-03-09,5\n")
    go(project, slot="2024-03-20")
    log.write_text(right)
    corrected = goes(project, slot="2024-03-21")
    assert corrected.page == project / "reports/site" / corrected.key / "index.html"
    assert "as of Jan 9, 2024" in front_page(project)


@pytest.mark.parametrize("asked", [{"as_of": "2062-11-21"}, {"slot": "2062-11-21T06:00"}])
def test_days_to_come_are_refused(project, asked):
    with pytest.raises(UsageError, match="still to come"):
        go(project, **asked)
    for slot in ("9999-12-31T23:59-05:00", "0001-01-01T00:00+05:00"):
        with pytest.raises(UsageError, match="must be like"):
            go(project, slot=slot)


def test_a_page_left_by_a_clock_that_was_ahead_is_shown_no_more(project):
    ahead = goes(project, slot=dt.datetime.now(dt.UTC) + dt.timedelta(days=30))
    now = goes(project)
    assert (ahead.page, now.page) == (now.page, ahead.page)
    assert last_manifest(project)["lasting"] and ahead.page.exists()


def test_a_page_that_was_taken_back_is_made_anew(project):
    taken = goes(project, slot="2024-01-20")
    shutil.rmtree(taken.page.parent)
    index.write(project)
    assert "Small" not in front_page(project)
    assert goes(project, slot="2024-01-20").page.exists()
    shutil.rmtree(taken.page.parent)
    older = goes(project, slot="2024-01-08", as_of="2024-01-05")
    assert older.page == taken.page
    links = re.findall(r'href="(small[^"]+)"', front_page(project))
    assert links and all((project / "reports" / "site" / link).is_file() for link in links)


def test_a_page_of_an_older_date_hides_no_failure(project):
    goes(project, slot="2024-01-20")
    write_notebook(project, "1 / 0")
    go(project, slot="2024-01-21")
    write_notebook(project)
    goes(project, as_of="2024-01-04")
    assert "last run failed" in front_page(project)
    goes(project, slot="2024-01-22")
    assert "last run failed" not in front_page(project)


def test_a_page_just_made_is_not_retired(project):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + "keep = 1\n")
    goes(project, slot="2024-01-20")
    assert goes(project, slot="2024-01-08", as_of="2024-01-05").page.exists()


def test_folders_of_earlier_tries_go_with_their_run(project):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + "keep = 1\n")
    write_notebook(project, "1 / 0")
    go(project, slot="2024-01-20")
    go(project, slot="2024-01-20")
    write_notebook(project)
    goes(project, slot="2024-01-20")
    folders = project / "reports" / "private" / "small" / "quick"
    assert len(list(folders.glob("2024*"))) == 3
    goes(project, slot="2024-01-21")
    assert len(list(folders.glob("2024*"))) == 1


def test_a_slot_with_a_zone_is_the_shops_wall_clock(project):
    (project / "data" / "small" / "shop.toml").write_text('timezone = "Europe/Kyiv"\n')
    go(project, slot="2024-01-20T23:30+00:00")
    assert last_manifest(project)["slot"] == "2024-01-21T01:30:00+02:00"


def test_a_record_that_cannot_be_read_stops_no_other_report(project):
    go(project)
    for number, text in enumerate(("{", "{}", "[]", '"x"', '{"state": "published"}')):
        bad = project / "reports" / "private" / "small" / "quick" / f"bad{number}"
        bad.mkdir()
        (bad / "manifest.json").write_text(text)
    go(project)
    assert "small/quick/" in front_page(project)


def test_a_broken_shop_toml_is_said_on_the_front_page(project):
    go(project)
    (project / "data" / "small" / "shop.toml").write_text("privacyk = 3\n")
    assert "no setting 'privacyk'" in go(project).said
    assert "the data break the contract" in front_page(project)


def test_secrets_and_values_of_the_data_do_not_reach_the_front_page(project, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2-canary")
    write_notebook(project, "import os; raise ValueError('boom ' + os.environ['SHOP_PASSWORD'])")
    result = go(project)
    assert "boom ***" in result.said
    (project / "data" / "small" / "shop.toml").write_text(
        '[source]\nurl = "mysql://crm:${SHOP_PASSWORD}@db/shop"\n'
    )
    assert "not 'mysql'" in go(project).said
    (project / "data" / "small" / "shop.toml").write_text("")
    (project / "data" / "small" / "transactions.csv").write_text(
        "customer_id,purchased_at,amount\na,Anna Muster,1\n"
    )
    assert "Anna Muster" in go(project).said
    for path in (project / "reports").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    assert "Anna" not in front_page(project)
    assert str(project) not in front_page(project)


def test_no_parameter_holds_a_secret_and_a_longer_secret_hides_none(project, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdefghijklmnop-tail")
    assert page.without_secrets("x abcdefghijklmnop-tail y abcdef") == "x *** y ***"
    with pytest.raises(UsageError, match="holds the value of a secret"):
        go(project, parameters={"word": "abcdef"})


@pytest.mark.parametrize(
    "shown", ["Anna Schmidt", "id=card-00017", "[card-00017]", "card-00017/x", "(+380501)"]
)
def test_a_page_that_names_a_customer_is_refused(project, shown):
    log = project / "data" / "small" / "transactions.csv"
    log.write_text(log.read_text() + "Anna Schmidt,2024-01-04,3\n(+380501),2024-01-04,3\n")
    goes(project)
    write_notebook(project, f"from IPython.display import HTML\nHTML({f'<p>{shown}</p>'!r})")
    result = go(project)
    assert result.state == "failed"
    assert "it names 1 customers by their id" in result.said


def test_private_folders_are_private_and_public_ones_can_be_served(project):
    before = os.umask(0o077)
    try:
        go(project)
    finally:
        os.umask(before)
    for path in (project / "reports").rglob("*"):
        if path.is_dir():
            mode = stat.S_IMODE(path.stat().st_mode)
            private = "private" in path.relative_to(project).parts
            assert mode == (0o700 if private else 0o755), path


def test_what_cannot_be_written_is_one_sentence(project):
    (project / "reports" / "private").write_text("in the way")
    result = go(project)
    assert result.code == 1
    assert "private" in result.said


def test_old_data_are_said_on_the_front_page_too(project):
    go(project, slot="2024-06-01")
    assert "old data" in front_page(project)
    assert "144 days before its run" in front_page(project)


def test_a_report_that_is_being_run_is_left_alone(project):
    from filelock import FileLock

    lock = project / "reports" / "private" / f"small/quick/{config.slug({})}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        result = go(project)
    assert (result.state, result.code) == ("busy", 75)
    assert "being run by another process" in result.said


def test_parameters_are_read_from_the_notebook_with_their_help(project):
    found = config.schema(project / "notebooks" / "quick.ipynb")
    assert [(p.name, p.type, p.default, p.help) for p in found.values()][2:4] == [
        ("level", int, 3, "how many"),
        ("share", float, 0.5, "of all"),
    ]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"level": "7"}, {"level": 7}),
        ({"share": 1}, {"share": 1.0}),
        ({"share": "1e-3"}, {"share": 0.001}),
        ({"word": "007"}, {"word": "007"}),
        ({"word": "'); import os; ('"}, {"word": "'); import os; ('"}),
    ],
)
def test_parameters_become_what_the_notebook_says_they_are(project, given, read):
    assert config.validate(project / "notebooks" / "quick.ipynb", given) == read


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"levle": 3}, "no parameter 'levle'; it has .*mean 'level'"),
        (
            {"level": "many"},
            r"'level' is 'many'; it must be a whole number, such as 3 \(how many\)",
        ),
        ({"level": 2.5}, "must be a whole number"),
        ({"level": True}, "must be a whole number"),
        ({"share": "1.2.3"}, "must be a number"),
        ({"word": 7}, "must be text"),
        ({"__import__('os')": 1}, "no parameter"),
    ],
)
def test_other_parameters_are_refused_before_anything_runs(project, given, said):
    with pytest.raises(UsageError, match=said):
        go(project, parameters=given)
    assert not (project / "reports" / "private").exists()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[[report]]\nid = "a"\n', "'a': it needs notebook, shop"),
        ('[[report]]\nid = "a"\nnotebok = "b"\n', "no setting 'notebok', but id.*mean 'notebook'"),
        ('[[report]]\nid = "../a"\nnotebook = "b"\nshop = "c"\n', "is no plain name"),
        ('[[report]]\nid = "a"\nnotebook = "b"\nshop = "c"\n' * 2, "two reports have the id 'a'"),
        ("[[report]\n", "not valid TOML"),
        ("report = 3\n", "with double brackets"),
        ("[[report]]\nid = 3\n", "id = 3 must be text"),
        ('[[report]]\nid = "a"\nparameters = "x"\n', "parameters = 'x' must be a table, such as"),
        (
            '[[report]]\nid = "a"\ntimeout_minutes = -1\n',
            "timeout_minutes = -1 must lie between 0.01 and 1440",
        ),
    ],
)
def test_a_broken_reports_toml_is_an_error_in_words(project, toml, said):
    (project / "reports" / "reports.toml").write_text(toml)
    with pytest.raises(UsageError, match=said):
        reports.load(project)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("level: int = ", "is no Python"),
        ("level: int = 60 * 60", "is not `name: type = default`"),
        ('level: int = "abc"', "is not `name: type = default`"),
        ("import os", "is not `name: type = default`"),
        (None, "is no notebook"),
    ],
)
def test_a_broken_parameters_cell_is_an_error_in_words(project, source, said):
    path = project / "notebooks" / "quick.ipynb"
    if source is None:
        path.write_text("no JSON")
    else:
        notebook = nbformat.read(path, 4)
        notebook.cells[1].source = source
        nbformat.write(notebook, path)
    with pytest.raises(UsageError, match=said):
        config.schema(path)


def test_a_slug_is_one_folder_name_whatever_the_values(project):
    for value in ("../../etc", "a/b", "x" * 500, "", ".", "\x00", "дата"):
        slug = config.slug({"word": value})
        assert "/" not in slug
        assert not slug.startswith(".")
        assert len(slug) < 80
    assert config.slug({"word": "a/b"}) != config.slug({"word": "a_b"})
    assert config.slug({"as_of": "2024-01-01"}) == config.slug({})


GOOD = (
    "<html><head><style>p{color:red}</style></head><body><h1>a</h1><h2>b</h2>"
    '<a href="http://example.org">out</a><figure role="img" aria-label="x"><svg/></figure>'
    '<img alt="y" src="data:image/png;base64,AA=="></body></html>'
)


def test_a_page_that_stands_alone_passes_the_check():
    page.check(GOOD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("<style>", '<link href="x.css"><style>'), "asks for something outside"),
        (("p{color:red}", "@import 'x'"), "a style asks"),
        (("p{color:red}", "p{background:url(http://x)}"), "a style asks"),
        (("<h2>b", '<p style="background:url(//x)"><h2>b'), "a style asks"),
        (("<h2>b", "<script>1</script><h2>b"), "script or a frame"),
        (("<h2>b", '<p onclick="x()"><h2>b'), "runs code"),
        (('aria-label="x"', ""), "no alternative text"),
        (('alt="y"', 'alt="No description has been provided for this image"'), "no alternative"),
        (("<h2>b</h2>", "<h3>b</h3>"), "headings"),
        (("<h2>b</h2>", "<h1>b</h1>"), "headings"),
        (("<h2>b", "x" * 5_000_001 + "<h2>b"), "bytes, more than"),
    ],
)
def test_a_page_that_does_not_is_refused(change, said):
    assert change[0] in GOOD
    with pytest.raises(page.PageError, match=said):
        page.check(GOOD.replace(*change))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    page.write(target, "old", 0o644)
    with pytest.raises(UnicodeEncodeError):
        page.write(target, "new \ud800", 0o644)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_manifest_tells_when_and_how_long(project):
    go(project)
    manifest = json.loads(json.dumps(last_manifest(project)))
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(manifest["started"])
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=10)
    assert 0 < manifest["seconds"] < 600
    assert len(manifest["fingerprint"]) == 16


def test_a_notebook_without_a_title_is_no_page(project):
    notebook = nbformat.read(project / "notebooks" / "quick.ipynb", 4)
    del notebook.cells[0]
    with pytest.raises(page.PageError, match="has no title"):
        page.sections(notebook)


def test_the_front_page_without_runs_says_how_to_begin(project):
    assert "No report has run yet" in index.write(project).read_text()
    shutil.rmtree(project / "reports" / "site")
