import datetime as dt
import http.server
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zoneinfo

import cronsim
import pytest

from crmlab import reports
from crmlab.reports import cron, index, ledger, publishing
from crmlab.tables import DataError, UsageError
from tests.conftest import need
from tests.projects import front_page, go, goes, last_manifest, site, write_notebook

UTC = dt.UTC
LINES = [
    "0 6 * * mon",
    "30 3 * * *",
    "30 2 * * *",
    "*/20 * * * *",
    "15 * * * *",
    "0 */6 * * *",
    "0 4 1 * *",
]


def scheduled(project, more="", schedule="0 6 * * *"):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + f'schedule = "{schedule}"\n{more}')


def at(text):
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("zone", ["Europe/Kyiv", "America/New_York", "UTC"])
@pytest.mark.parametrize("line", LINES)
def test_the_newest_slot_is_the_last_that_cron_would_have_run(line, zone):
    zone = zoneinfo.ZoneInfo(zone)
    for day in ("2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25", "2026-11-01"):
        start = dt.datetime.fromisoformat(day).replace(tzinfo=UTC) - dt.timedelta(hours=20)
        forward = cronsim.CronSim(line, (start - dt.timedelta(days=40)).astimezone(zone))
        slots = [next(forward).astimezone(UTC)]
        while slots[-1] < start + dt.timedelta(hours=60):
            slots.append(next(forward).astimezone(UTC))
        for minutes in range(0, 48 * 60, 23):
            now = start + dt.timedelta(minutes=minutes, seconds=17)
            expected = max(slot for slot in slots if slot <= now)
            found = cron.newest_slot(line, now.astimezone(zone))
            assert found.astimezone(UTC) == expected, now


@pytest.mark.parametrize("line", LINES)
def test_no_slot_comes_twice_on_the_days_when_the_clock_changes(line):
    zone = zoneinfo.ZoneInfo("Europe/Kyiv")
    for day in ("2026-03-28T12:00", "2026-10-24T12:00"):
        now, seen = at(day), []
        for _ in range(48 * 12):
            now += dt.timedelta(minutes=5)
            slot = cron.newest_slot(line, now.astimezone(zone)).astimezone(UTC)
            if slot not in seen:
                assert not seen or slot > seen[-1]
                seen.append(slot)
        local = [slot.astimezone(zone).strftime("%d %H:%M") for slot in seen]
        if not line.startswith("*") and line.split()[1] != "*":
            assert len(set(local)) == len(local), "a job at fixed hours runs once a day"


def test_what_is_due_runs_once_and_a_missed_slot_is_caught_up_newest_only(project):
    scheduled(project)
    now = at("2024-01-20T07:00")
    [run] = reports.due(project, now)
    assert run.manifest["slot"] == "2024-01-20T06:00:00+00:00"
    [again] = reports.due(project, now)
    assert again.manifest["key"] == run.manifest["key"], "it waits until it was made"
    [result] = reports.run_all([run], progress=False)
    assert result.state == "published"
    assert reports.due(project, now) == []
    [result] = reports.run_all([again], progress=False)
    assert (result.code, result.said) == (0, "Report 'quick': This slot had its page already.")
    [late] = reports.due(project, at("2024-01-25T11:00"))
    assert late.manifest["slot"] == "2024-01-25T06:00:00+00:00"
    assert [row["state"] for row in ledger.entries(project)] == ["published", "waiting"]


def test_a_late_run_gives_the_page_that_a_punctual_one_gives(project):
    scheduled(project)
    [run] = reports.due(project, at("2024-01-05T06:01"))
    list(reports.run_all([run], progress=False))
    first = last_manifest(project)
    shutil.rmtree(project / "reports" / "private")
    ledger.path(project).unlink()
    [run] = reports.due(project, at("2024-01-05T23:59"))
    list(reports.run_all([run], progress=False))
    again = last_manifest(project)
    same = ("slot", "as_of", "kpis", "summary", "page", "fingerprint", "left_out")
    assert [again[name] for name in same] == [first[name] for name in same]
    assert again["as_of"] == "2024-01-04"


def test_a_failure_is_tried_again_as_often_as_the_report_says(project):
    scheduled(project, "retries = 2\n")
    flag = project / "tries"
    write_notebook(
        project,
        f"with open({str(flag)!r}, 'a') as f: f.write('x')\n"
        f"if len(open({str(flag)!r}).read()) < 3: raise RuntimeError('not yet')",
    )
    results = list(reports.run_due(project))
    assert [result.state for result in results] == ["failed", "failed", "published"]
    assert last_manifest(project)["attempt"] == 3
    assert list(reports.run_due(project)) == []
    assert "last run failed" not in front_page(project)


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [("DataError", "failed", 3), ("UsageError", "refused", 2)],
)
def test_what_would_only_fail_again_is_tried_once_and_shown(project, error, state, code):
    scheduled(project, "retries = 3\n")
    write_notebook(project, f"from crmlab import tables\nraise tables.{error}('No.')")
    [result] = reports.run_due(project)
    assert (result.state, result.code) == (state, code)
    assert reports.due(project) == []
    assert "last run failed" in front_page(project)
    assert "in the section “A part”" in front_page(project)


BROKEN = {
    "no shop": 'notebook = "quick"\nshop = "nowhere"',
    "no notebook": 'notebook = "nothing"\nshop = "small"',
    "no parameter": 'notebook = "quick"\nshop = "small"\nparameters = { levle = 3 }',
    "no column": 'notebook = "quick"\nshop = "small"\nsweep = { word = "all" }',
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_report_that_cannot_run_stops_no_other_one(project, what):
    scheduled(project)
    path = project / "reports" / "reports.toml"
    broken = f'[[report]]\nid = "broken"\nschedule = "0 6 * * *"\n{BROKEN[what]}\n\n'
    path.write_text(broken + path.read_text())
    results = {result.report: result.state for result in reports.run_due(project)}
    assert results["quick"] == "published"
    assert results["broken"] == "failed"
    assert "Starting the run failed: what it asks for is not possible." in front_page(project)
    assert list(reports.run_due(project)) == []


def sweep(project, wanted):
    (project / "data" / "small" / "stores.csv").write_text("store_id,name\n007,A\n012,<b>B\n")
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + f"sweep = {{ word = {wanted} }}\n")


def test_what_failed_is_tried_again_once_its_entry_or_notebook_is_changed(project):
    scheduled(project)
    path = project / "reports" / "reports.toml"
    right = path.read_text()
    path.write_text(right.replace('notebook = "quick"', 'notebook = "quikc"'))
    [result] = reports.run_due(project)
    assert (result.state, result.code) == ("failed", 2)
    assert "no notebook 'quikc'" in result.said
    assert list(reports.run_due(project)) == []
    path.write_text(right)
    write_notebook(project, "1 / 0")
    assert [result.state for result in reports.run_due(project)] == ["failed"]
    assert list(reports.run_due(project)) == []
    write_notebook(project)
    assert [result.state for result in reports.run_due(project)] == ["published"]
    write_notebook(project, "1 + 1")
    assert list(reports.run_due(project)) == [], "what has its page has it"


@pytest.mark.parametrize("wrong", ['schedule = "0 6 * *"', "retires = 3", "[[report"])
def test_a_wrong_entry_of_reports_toml_stops_no_other_and_is_said(project, wrong):
    scheduled(project)
    path = project / "reports" / "reports.toml"
    entry = f'[[report]]\nid = "wrong"\nnotebook = "quick"\nshop = "small"\n{wrong}\n'
    path.write_text(path.read_text() + entry)
    with pytest.raises(UsageError, match="no cron line|no setting 'retires'|not valid TOML"):
        list(reports.run_due(project))
    # A file that cannot be read at all holds no report.
    states = [row["state"] for row in ledger.entries(project)]
    assert states == ([] if wrong == "[[report" else ["published"])
    assert "1 entry of reports.toml cannot be read" in front_page(project)
    path.write_text(path.read_text().replace(entry, ""))
    list(reports.run_due(project))
    assert "cannot be read" not in front_page(project)


def test_run_due_returns_though_another_process_makes_a_page(project):
    scheduled(project)
    [run] = reports.due(project)
    write_notebook(project, "import time; time.sleep(8)")
    other = start("report", "quick", "--slot", run.manifest["slot"])
    while ledger.entries(project)[0]["state"] != "running":
        time.sleep(0.1)
    assert list(reports.run_due(project)) == []
    assert other.wait(timeout=60) == 0
    assert list(reports.run_due(project)) == []


def test_a_page_that_cannot_be_locked_stops_no_other(project):
    path = project / "reports" / "reports.toml"
    scheduled(project)
    path.write_text(path.read_text() + path.read_text().replace('"quick"\nnote', '"other"\nnote'))
    (project / "reports/private/small/quick/standard-44136fa3.lock").mkdir(parents=True)
    states = {result.report: result.state for result in reports.run_due(project)}
    assert states == {"quick": "failed", "other": "published"}


def test_a_page_of_the_slot_made_by_hand_leaves_the_others_due(project):
    sweep(project, '["a", "b", "c"]')
    scheduled(project)
    slot = "2024-01-20T06:00"
    [by_hand] = reports.by_hand(
        project, reports.load(project)["quick"], slot=slot, parameters={"word": "b"}
    )
    list(reports.run_all([by_hand], progress=False))
    left = reports.due(project, at("2024-01-20T07:00"))
    assert [run.values["word"] for run in left] == ["a", "c"]


def test_odd_values_of_a_sweep_stop_no_other(project):
    sweep(project, '["a", "a", "S\u00e3o\u00a0Paulo", "\u202ereversed", "' + "x" * 1001 + '"]')
    scheduled(project)
    results = list(reports.run_due(project))
    assert sorted(result.state for result in results) == ["failed"] * 2 + ["published"] * 2
    assert {result.code for result in results} == {0, 2}
    assert list(reports.run_due(project)) == []


def test_a_sweep_over_yes_and_no(project):
    (project / "data/small/stores.csv").write_text("store_id,own\n1,true\n2,false\n")
    notebook = project / "notebooks" / "quick.ipynb"
    notebook.write_text(notebook.read_text().replace('word: str = \\"x\\"', "word: bool = True"))
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + 'sweep = { word = "stores.own" }\n')
    runs = reports.pages(project, reports.load(project)["quick"])
    assert [run.values["word"] for run in runs] == [False, True]


def test_a_sweep_makes_a_page_for_each_value_and_one_bad_value_stops_no_other(project):
    sweep(project, '"stores.store_id"')
    write_notebook(project, "if word == '007': raise RuntimeError('not this one')")
    runs = reports.by_hand(project, reports.load(project)["quick"])
    assert [run.values["word"] for run in runs] == ["007", "012"]
    results = list(reports.run_all(runs, progress=False))
    assert sorted(result.state for result in results) == ["failed", "published"]
    assert last_manifest(project)["slot"] == runs[0].manifest["slot"] == runs[1].manifest["slot"]
    assert "word-012-" in front_page(project)
    [one] = reports.by_hand(project, reports.load(project)["quick"], parameters={"word": "012"})
    assert one.manifest["key"] == runs[1].manifest["key"]


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ('"transactions.customer_id"', UsageError, "page of single customers"),
        ('"stores.nme"', DataError, "no column 'nme' .* stores has store_id, name"),
        ('"nowhere.name"', UsageError, "must be \"all\""),
        ('"transactions.amount"', DataError, "has 0 values"),
    ],
)  # fmt: skip
def test_a_sweep_that_is_not_possible_is_said_in_words(project, wanted, error, said):
    sweep(project, wanted)
    with pytest.raises(error, match=said):
        reports.pages(project, reports.load(project)["quick"])


def test_a_sweep_goes_over_a_list_as_it_is_written(project):
    sweep(project, '["b", "007"]')
    runs = reports.pages(project, reports.load(project)["quick"])
    assert [run.values["word"] for run in runs] == ["b", "007"]


def test_a_sweep_by_hand_that_was_killed_goes_on_where_it_stopped(project):
    sweep(project, '["a", "b", "c"]')
    marks = project / "marks"
    marks.mkdir()
    # The next page is begun while one is published: it must not get far before the stop.
    write_notebook(
        project,
        "import os, time\ntime.sleep(4 * (word == 'b'))\n"
        f"os.close(os.open(f'{marks}/{{word}}-{{os.getpid()}}', os.O_CREAT))",
    )
    report = reports.load(project)["quick"]
    runs = reports.by_hand(project, report)
    sweeping = reports.run_all(runs, workers=1, progress=False)
    assert next(sweeping).state == "published"
    sweeping.close()  # as Ctrl-C does between two pages
    again = reports.by_hand(project, report)
    assert again[0].manifest["slot"] == runs[0].manifest["slot"]
    assert [r.state for r in reports.run_all(again, progress=False)] == ["published"] * 3
    assert sorted(path.name[0] for path in marks.iterdir()) == ["a", "b", "c"]
    new = reports.by_hand(project, report)
    assert new[0].manifest["slot"] > runs[0].manifest["slot"]


def test_two_run_due_at_once_make_each_page_once(project):
    scheduled(project)
    write_notebook(project, "import time; time.sleep(3)")
    both = [start("run-due") for _ in range(2)]
    codes = sorted(process.wait(timeout=120) for process in both)
    assert codes == [0, 75]
    assert [row["state"] for row in ledger.entries(project)] == ["published"]
    assert start("run-due").wait(timeout=60) == 0
    assert len(list((project / "reports" / "private" / "small" / "quick").glob("2*Z-*"))) == 1


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "crmlab", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_a_ledger_held_by_another_process_is_waited_for_then_left_alone(project, monkeypatch):
    goes(project)
    before = site(project)
    monkeypatch.setattr(ledger, "PATIENCE", 0.2)
    holder = sqlite3.connect(ledger.path(project), isolation_level=None)
    holder.execute("begin exclusive")
    result = go(project)
    assert (result.state, result.code) == ("busy", 75)
    assert "is held by another process" in result.said
    with pytest.raises(reports.BusyError):
        list(reports.run_due(project))
    holder.execute("rollback")
    holder.close()
    assert site(project) == before
    goes(project)


@pytest.mark.parametrize("damage", ["garbage", "torn", "empty", "gone", "a row"])
def test_a_damaged_ledger_is_made_anew_from_the_records_of_the_runs(project, damage):
    scheduled(project)
    now = at("2024-01-20T07:00")
    [run] = reports.due(project, now)
    list(reports.run_all([run], progress=False))
    goes(project, parameters={"level": 4})
    before, pages, file = ledger.entries(project), site(project), ledger.path(project)
    whole = file.read_bytes()
    if damage == "garbage":
        file.write_bytes(os.urandom(len(whole)))
    elif damage == "torn":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "gone":
        file.unlink()
    else:
        with sqlite3.connect(file) as db:
            db.execute("update runs set manifest = substr(manifest, 1, 40)")
        db.close()
    marks = [row.pop("mark", None) for row in before]
    assert marks[0] and ledger.entries(project) == before
    assert reports.due(project, now) == [], "a slot that has its page gets no second one"
    assert "mark" in ledger.entries(project, run.manifest["key"])[0], "and is not looked up again"
    assert site(project) == pages
    goes(project)
    kept = list(file.parent.glob("runs.sqlite.damaged-*"))
    assert len(kept) == (damage in ("garbage", "torn", "a row"))


def test_pages_beyond_those_to_keep_are_retired_with_their_runs(project):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + "keep = 2\n")
    for day in range(20, 24):
        goes(project, slot=f"2024-01-{day}T06:00")
    names = sorted(name.rsplit("/", 1)[-1] for name in site(project))
    assert names == ["20240122T060000Z.html", "20240123T060000Z.html", "index.html", "index.html"]
    assert len(list((project / "reports" / "private" / "small" / "quick").glob("2*Z-*"))) == 2
    assert len(ledger.entries(project)) == 4, "the ledger remembers"


@pytest.fixture
def inbox():
    """A server on this machine that keeps what it is sent."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802 the library's name
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()
    thread.join()


def test_word_is_sent_when_a_page_fails_and_when_it_is_well_again(project, inbox, monkeypatch):
    address, received = inbox
    monkeypatch.setenv("CRMLAB_NOTIFY", address)
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + 'notify = ["${CRMLAB_NOTIFY}"]\n')
    goes(project, slot="2024-01-20")
    assert received == []
    write_notebook(project, "raise ValueError('Anna Muster')")
    go(project, slot="2024-01-21")
    go(project, slot="2024-01-22")
    write_notebook(project)
    goes(project, slot="2024-01-23")
    told = [message["message"] for message in received]
    assert len(told) == 2, "a page that stays broken is said once"
    assert "quick of Small <shop> failed" in told[0].replace("&lt;", "<").replace("&gt;", ">")
    assert "Running the notebook failed in the section “A part”: ValueError." in told[0]
    assert "Anna" not in told[0]
    assert "is well again" in told[1]


def test_word_is_sent_of_a_run_that_was_killed_once_it_is_not_taken_up_again(
    project, inbox, monkeypatch
):
    address, received = inbox
    monkeypatch.setenv("CRMLAB_NOTIFY", address)
    scheduled(project, 'notify = ["${CRMLAB_NOTIFY}"]\n', schedule="0 0 1 1 *")
    goes(project, slot="2024-01-20")
    [run] = reports.due(project)
    killed = run.manifest | {"state": "running", "pid": 1, "born": 0.0}
    publishing.record(project, killed | {"attempt": 2})
    assert [result.state for result in reports.run_due(project)] == ["published"]
    assert received == []
    publishing.record(project, killed | {"attempt": 3})
    assert list(reports.run_due(project)) == []
    assert len(received) == 1
    assert "It was killed before its end" in received[0]["message"]


def test_no_word_is_sent_of_a_try_by_hand(project, inbox, monkeypatch):
    address, received = inbox
    monkeypatch.setenv("CRMLAB_NOTIFY", address)
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + 'notify = ["${CRMLAB_NOTIFY}"]\n')
    goes(project)
    before = front_page(project)
    write_notebook(project, "1 / 0")
    assert go(project, as_of="2024-01-05").state == "failed"
    assert received == []
    assert front_page(project) == before


def test_no_word_is_sent_while_a_run_will_be_tried_again(project, inbox, monkeypatch):
    address, received = inbox
    monkeypatch.setenv("CRMLAB_NOTIFY", address)
    scheduled(project, 'retries = 1\nnotify = ["${CRMLAB_NOTIFY}"]\n')
    flag = project / "tried"
    write_notebook(
        project, f"import pathlib\nflag = pathlib.Path({str(flag)!r})\n"
        "if not flag.exists(): flag.touch(); raise RuntimeError('not yet')"
    )  # fmt: skip
    assert [result.state for result in reports.run_due(project)] == ["failed", "published"]
    assert received == []


def test_a_page_is_late_once_its_next_time_has_passed_while_it_is_scheduled(project):
    scheduled(project)
    [run] = reports.due(project, at("2024-01-20T07:00"))
    list(reports.run_all([run], progress=False))
    front = front_page(project)
    assert ">late<" in front
    assert "A newer page was due" in front
    goes(project, slot="2024-01-20T06:00", parameters={"level": 9})
    assert front_page(project).count(">late<") == 1, "a try by hand is never late"
    toml = project / "reports" / "reports.toml"
    right = toml.read_text()
    toml.write_text(right.replace("0 6 * * *", "0 6 1 1 *").replace("2024", "2025"))
    index.write(project)
    assert ">late<" in front_page(project)
    toml.write_text(right.replace('schedule = "0 6 * * *"', ""))
    index.write(project)
    assert ">late<" not in front_page(project)


def test_a_report_that_failed_and_is_no_more_leaves_the_front_page(project):
    scheduled(project, 'sweep = { word = ["a", "b"] }\n')
    write_notebook(project, "if word == 'b': 1 / 0")
    list(reports.run_all(reports.due(project, at("2024-01-20T07:00")), progress=False))
    assert "last run failed" in front_page(project)
    toml = project / "reports" / "reports.toml"
    toml.write_text(toml.read_text().replace('["a", "b"]', '["a"]'))
    list(reports.run_all(reports.due(project, at("2024-01-21T07:00")), progress=False))
    assert "last run failed" not in front_page(project)


def test_the_lines_for_cron_run_the_command_in_this_project(project, tmp_path):
    text = reports.scheduler_file("cron", project)
    [line] = [line for line in text.splitlines() if not line.startswith("#")]
    fields = line.split(maxsplit=5)
    assert next(cronsim.CronSim(" ".join(fields[:5]), at("2024-01-01T00:00")))
    (project / "reports" / "private").mkdir()
    scheduled(project)
    # As cron does it: a bare environment, another folder, and % unescaped.
    done = subprocess.run(
        ["/bin/sh", "-c", fields[5].replace(r"\%", "%")], cwd="/", env={"PATH": "/usr/bin:/bin"}
    )
    log = (project / "reports" / "private" / "run-due.log").read_text()
    assert done.returncode == 0, log
    assert "published" in log


def test_the_units_for_systemd_are_valid(project, tmp_path):
    text = reports.scheduler_file("systemd", project)
    _, service, timer = text.split("# ~/.config/systemd/user/")
    for part in (service, timer):
        name, _, unit = part.partition("\n")
        (tmp_path / name).write_text(unit)
    assert f'ExecStart="{sys.executable.rsplit("/", 1)[0]}/crmlab" run-due' in service
    verify = need(shutil.which("systemd-analyze"), "systemd-analyze")
    units = [str(tmp_path / name) for name in ("crmlab.service", "crmlab.timer")]
    done = subprocess.run([verify, "verify", *units], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if "crmlab" in line]
    assert told == []


def test_the_file_for_airflow_is_python_that_names_each_scheduled_report(project):
    scheduled(project)
    text = reports.scheduler_file("airflow", project)
    compile(text, "dags.py", "exec")
    assert "('quick', '0 6 * * *', 'UTC', 0, 25)," in text


@pytest.mark.slow
def test_twenty_run_due_at_once_make_each_page_once(project):
    scheduled(project)
    sweep(project, '["a", "b", "c", "d"]')
    codes = [process.wait(timeout=600) for process in [start("run-due") for _ in range(20)]]
    assert set(codes) <= {0, 75}
    assert 0 in codes
    assert [row["state"] for row in ledger.entries(project)] == ["published"] * 4
    folders = list((project / "reports" / "private" / "small" / "quick").glob("2*Z-*"))
    assert len(folders) == 4
