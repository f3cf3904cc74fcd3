"""Whatever dies, fills up or is hostile: the last good page stays, the front page says so."""

import ast
import contextlib
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from crmlab import reports
from crmlab.reports import config, index, ledger, publishing
from crmlab.tables import UsageError
from tests.conftest import ROOT, need
from tests.projects import front_page, go, goes, last_manifest, site, write_notebook


def members(project):
    """Return the processes of the project's runs, by what they are."""
    found = {}
    for process in psutil.process_iter():
        try:
            folder = process.environ().get("CRMLAB_RUN_DIR", "")
            if folder.startswith(str(project)):
                is_kernel = any("ipykernel" in word for word in process.cmdline())
                found["kernel" if is_kernel else "child"] = process
        except psutil.Error:
            continue
    return found


def start(project, slot):
    # A shell's background job ignores Ctrl-C, and so would everything that it starts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pathlib import Path; from crmlab import reports; home = Path('.');"
        f"reports.run(home, reports.load(home)['quick'], slot={slot!r}, progress=False)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@pytest.mark.parametrize("who", ["kernel", "child"])
def test_a_process_of_the_run_that_is_killed_is_a_failed_run(project, who):
    goes(project, slot="2024-01-20")
    before = site(project)
    write_notebook(project, "import time; time.sleep(60)")
    parent = start(project, "2024-01-21")
    process = wait_for(lambda: len(members(project)) == 2 and members(project)[who])
    time.sleep(1)
    process.kill()
    assert parent.wait(timeout=60) == 0
    row = last_manifest(project)
    assert row["state"] == "failed"
    assert ("DeadKernel" if who == "kernel" else "its process died (SIGKILL)") in row["failure"]
    assert_well_kept(project, before)


def assert_well_kept(project, before):
    """Check that nothing runs on, the last good page stands and is said to be old, all goes on."""
    assert members(project) == {}
    index.write(project)
    assert "last run failed" in front_page(project)
    after = site(project)
    assert after.pop("index.html") != before.pop("index.html")
    assert after == before
    write_notebook(project)
    goes(project, slot="2024-01-25")
    assert "last run failed" not in front_page(project)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_is_stopped_or_killed_leaves_nothing_behind(project, stop):
    goes(project, slot="2024-01-20")
    before = site(project)
    write_notebook(project, "import time; time.sleep(60)")
    parent = start(project, "2024-01-21")
    wait_for(lambda: len(members(project)) == 2)
    scratch = Path(last_manifest(project)["scratch"])
    assert scratch.is_dir()
    time.sleep(1)
    parent.send_signal(stop)
    assert parent.wait(timeout=60) != 0
    assert last_manifest(project)["state"] == ("failed" if stop == signal.SIGKILL else "stopped")
    wait_for(lambda: not members(project), 10)  # the kernel looks for its parent every second
    publishing.recover(project)
    assert not scratch.exists()
    assert_well_kept(project, before)


def test_a_run_that_is_killed_is_taken_up_again_but_not_for_ever(project):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + 'schedule = "0 6 * * *"\n')
    write_notebook(project, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert [result.state for result in reports.run_due(project)] == ["failed"]
    assert reports.due(project) == [], "a failure without retries is not tried again"
    # What ends the whole runner is another matter: it comes back, three times in all.
    row = last_manifest(project)
    for attempt, left in ((1, 1), (2, 1), (3, 0)):
        killed = {**row, "state": "running", "pid": 1, "born": 0.0, "attempt": attempt}
        publishing.record(project, killed)
        assert len(reports.due(project)) == left


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_runner_that_is_stopped_while_it_publishes_publishes_first(project, stop):
    parent = start(project, "2024-01-21")
    wait_for(lambda: len(site(project)) > 0)
    parent.send_signal(stop)
    parent.wait(timeout=60)
    assert last_manifest(project)["state"] == "published"
    assert "as of Jan 9, 2024" in front_page(project)
    assert "last run failed" not in front_page(project)


def notebooks_of(project):
    found = (project / "reports" / "private").rglob("notebook.ipynb")
    return b"".join(path.read_bytes() for path in found)


def test_a_run_that_is_stopped_leaves_no_secret_in_its_notebook(project, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2-canary")
    show = "import os; print(os.environ['SHOP_PASSWORD'])"
    write_notebook(project, show, end="import time; time.sleep(60)")
    for stop in (signal.SIGTERM, signal.SIGKILL):
        parent = start(project, "2024-01-21")
        wait_for(lambda: b"hunter2" in notebooks_of(project))
        parent.send_signal(stop)
        parent.wait(timeout=60)
        publishing.recover(project)
        for path in (project / "reports").rglob("*"):
            assert not path.is_file() or b"hunter2" not in path.read_bytes(), (stop, path)


def test_a_run_killed_while_it_publishes_is_published_to_its_end(project):
    goes(project, slot="2024-01-20")
    whole = goes(project, slot="2024-01-21")
    row, pages = last_manifest(project), site(project)
    dated = project / "reports" / "site" / row["page"]
    # As it stood between the two files: the dated page is there, the lasting one is the old one.
    folder = project / "reports" / "private" / row["folder"]
    shutil.copy(dated, folder / "page.html")
    whole.page.write_bytes(pages[f"{row['key']}/20240120T000000Z.html"])
    publishing.record(project, {**row, "state": "publishing", "keep": 12, "pid": 1, "born": 0.0})
    publishing.recover(project)
    index.write(project)
    assert last_manifest(project)["state"] == "published"
    again = site(project)
    assert again.pop("index.html")
    pages.pop("index.html")
    assert again == pages


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("import os, shutil; shutil.rmtree(os.environ['CRMLAB_RUN_DIR'])", "failed"),
        ("import os, shutil; shutil.rmtree(os.environ['TMPDIR'])", "failed"),
        ("for _ in range(100): print('x' * 1_000_000)", "published"),
        ("import subprocess; subprocess.Popen(['sleep', '1000'])", "published"),
    ],
)
def test_a_notebook_that_misbehaves_harms_only_itself(project, code, state):
    goes(project, slot="2024-01-20")
    before = site(project)
    write_notebook(project, code)
    assert go(project, slot="2024-01-21").state == state
    assert members(project) == {}
    if state == "failed":
        assert_well_kept(project, before)
    assert len((project / "reports" / "site" / "index.html").read_bytes()) < 100_000


def hostile(seed):
    """Return a name or a value that somebody could try."""
    chance = random.Random(seed)
    parts = [
        "'", '"', "\\", "\n", "\0", "`", "$(id)", "{{7*7}}", "%s", "../", "/etc/passwd", ";", "--",
        "'; drop table runs; --", "__import__('os').system('id')", "<script>alert(1)</script>",
        "\u202e", "\ud800", "日本", "=cmd()", "\r", "#", "]]>", "${HOME}", "x" * 300, "import os",
    ]  # fmt: skip
    words = [chance.choice(parts) for _ in range(chance.randint(1, 4))]
    return "".join(words) + chance.choice(string.ascii_letters)


def test_hostile_names_and_values_become_neither_code_nor_paths(project):
    notebook = project / "notebooks" / "quick.ipynb"
    taken = 0
    for number in range(500):
        value = hostile(number)
        with pytest.raises(UsageError):
            config.validate(notebook, {hostile(-number): 1})
        try:
            values = config.validate(notebook, {"word": value})
        except UsageError:
            continue
        taken += 1
        assert values == {"word": value}
        slug = config.slug(values)
        assert Path("a", slug).resolve().parent == Path("a").resolve()
        assert slug.isascii()
        assert slug.isprintable()
        cells = parameterize_notebook(load_notebook_node(str(notebook)), values).cells
        [cell] = [c for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
        [statement] = ast.parse(cell.source).body
        assert ast.literal_eval(statement.value) == value
    assert 100 < taken < 450
    value = "<script>alert(1)</script>'; drop table runs; -- ../$(id)"
    page = goes(project, parameters={"word": value}).page
    assert "<script>alert" not in page.read_text() + front_page(project)
    assert page.resolve().is_relative_to(project / "reports" / "site")
    assert len(ledger.entries(project)) == 1


def test_a_secret_of_the_environment_reaches_no_file_of_the_project(project, monkeypatch):
    secret = "c4n4ry-\"<&>'-value"
    monkeypatch.setenv("SHOP_PASSWORD", secret)
    for code in (
        "import os; print(os.environ)",
        "import os, sys; sys.stderr.write(os.environ['SHOP_PASSWORD'])",
        "import os; raise ValueError(os.environ)",
        "import os; os.environ['SHOP_PASSWORD']",
        "import os; os.system('echo $SHOP_PASSWORD')",
    ):
        write_notebook(project, code)
        result = go(project)
        assert result.state == ("failed" if "raise" in code else "published")
        assert "c4n4ry" not in result.said
    for path in (project / "reports").rglob("*"):
        assert not path.is_file() or b"c4n4ry" not in path.read_bytes(), path


# In a mount namespace of its own, where even an ordinary user may fill or lock a file system.
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
LIMITED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_survival import {what}
{what}(Path({project!r}))
"""


def in_own_mounts(what, project):
    can = subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode == 0
    need(can, "the right to make a user namespace (unshare)")
    code = LIMITED.format(root=str(ROOT), project=str(project), what=what.__name__)
    done = subprocess.run([*OWN_MOUNTS, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def locked_site(project):
    os.environ["CRMLAB_HOME"] = str(project)
    goes(project, slot="2024-01-20")
    before, folder = site(project), project / "reports" / "site"
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)
    result = go(project, slot="2024-01-21")
    assert (result.state, result.code) == ("failed", 1), result
    assert "publishing the page failed" in result.said
    assert site(project) == before
    subprocess.run(["umount", str(folder)], check=True)
    assert_well_kept(project, before)


def test_a_site_that_is_read_only_keeps_its_pages(project):
    in_own_mounts(locked_site, project)


def full_disk(project):
    os.environ["CRMLAB_HOME"] = str(project)
    disk = project / "reports"
    toml = (disk / "reports.toml").read_text()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", disk)
    (disk / "reports.toml").write_text(toml)
    goes(project, slot="2024-01-20T00:00")
    states, filler = [], disk / "filler"
    for number, free in enumerate(range(0, 400, 8)):
        before = site(project)
        with filler.open("wb") as file:
            space = os.statvfs(disk)
            file.write(b"x" * max(0, space.f_bavail * space.f_frsize - free * 1024))
        result = go(project, slot=f"2024-01-21T{number // 60:02}:{number % 60:02}")
        states.append(result.state)
        if result.state != "published":
            assert result.code != 0
            assert result.said
            after = site(project)
            assert {n: b for n, b in after.items() if n in before and n != "index.html"} == {
                n: b for n, b in before.items() if n != "index.html"
            }, free
            assert all(page.rstrip().endswith(b"</html>") for page in after.values()), free
        filler.unlink()
        publishing.recover(project)
        index.write(project)
        assert members(project) == {}
        failed = "last run failed" in front_page(project)
        rows = [(row["state"], row["slot"], row["started"]) for row in ledger.entries(project)]
        assert failed == (last_manifest(project)["state"] != "published"), (free, result, rows)
        if states[-3:] == ["published"] * 3:
            break
    assert states[0] != "published"
    assert states[-3:] == ["published"] * 3
    goes(project, slot="2024-01-22")


@pytest.mark.slow
def test_a_run_of_many_cells_has_a_limit_in_all(project):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + "timeout_minutes = 0.05\n")
    notebook = nbformat.read(project / "notebooks" / "quick.ipynb", 4)
    slow = [nbformat.v4.new_code_cell("import time; time.sleep(2.2)") for _ in range(9)]
    notebook.cells[3:3] = slow
    nbformat.write(notebook, project / "notebooks" / "quick.ipynb")
    result = go(project)
    assert result.state == "failed"
    assert result.seconds < 18
    assert "it ran for 0.05 minutes" in result.said
    assert members(project) == {}


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_keeps_its_pages(project):
    in_own_mounts(full_disk, project)


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_lose_nothing(project):
    path = project / "reports" / "reports.toml"
    path.write_text(path.read_text() + "keep = 1000\n")
    usual = goes(project, slot="2024-01-20T00:00").seconds + 2  # and the start of its runner
    chance = random.Random(7)
    states = []
    for number in range(100):
        before = site(project)
        parent = start(project, f"2024-01-21T{number // 60:02}:{number % 60:02}")
        deadline = time.monotonic() + chance.uniform(0.1, 1.1) * usual
        while time.monotonic() < deadline and parent.poll() is None:
            time.sleep(0.01)
        processes = {"parent": parent, **members(project)}
        name = chance.choice(sorted(processes))
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[name].kill()
        parent.wait(timeout=60)
        publishing.recover(project)
        index.write(project)
        assert wait_for(lambda: not members(project), 10)
        row = last_manifest(project)
        states.append(row["state"])
        after = site(project)
        for path, content in before.items():
            if path.endswith("Z.html"):
                assert after[path] == content
        lasting = after[f"{row['key']}/index.html"]
        dated = [content for path, content in after.items() if path.endswith("Z.html")]
        assert lasting in dated
        failed = "last run failed" in front_page(project)
        assert failed == (row["state"] != "published")
    assert states.count("published") > 5
    assert states.count("failed") > 20
    goes(project, slot="2024-01-25")
