"""What keeps the house in order: the map, the notebooks, the documents, the environments."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from crmlab import tables
from crmlab.__main__ import main
from tests.conftest import ROOT, need

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Each big package has one home.
HOMES = {
    "lifetimes": {"fitting"},
    "sklearn": {"windows", "candidates", "learners", "weighing"},
    "folium": {"maps"},
    "papermill": {"reports"},
    "nbconvert": {"reports"},
    "ipywidgets": set(),
    "matplotlib": {
        "drawing",
        "customer_charts",
        "churn_charts",
        "campaign_charts",
        "catchment_charts",
        "radar_charts",
        "charts",
    },
    "click": {"__main__"},
}


def layers():
    """Read the map of the README: a list of sets of module names, lowest first."""
    table = README.split("## The map")[1].split("|---|---|")[1]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    return [{re.match(r"`(\w+)`", part.strip())[1] for part in row.split(" · ")} for row in rows]


def modules():
    found = {
        path.stem: [path] for path in (ROOT / "crmlab").glob("*.py") if path.stem != "__init__"
    }
    for folder in (ROOT / "crmlab").glob("*/__init__.py"):
        found[folder.parent.name] = list(folder.parent.glob("*.py"))
    return found


def imports(paths):
    """Return the crmlab modules and the other packages that these files import when they run."""
    own, others = set(), set()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in typing_only:
                continue
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                top, _, rest = name.partition(".")
                (own if top == "crmlab" else others).add(
                    rest.split(".")[0] if top == "crmlab" else top
                )
    return own, others


def test_the_map_names_every_module_once():
    named = [name for layer in layers() for name in layer]
    assert sorted(named) == sorted(modules())


def test_imports_point_down():
    below = set()
    for layer in layers():
        for name in layer:
            own, _ = imports(modules()[name])
            assert own - {name} <= below, f"{name} imports {own - below} from beside or above it"
        below |= layer


def test_each_big_package_has_one_home():
    for package, homes in HOMES.items():
        users = {name for name, paths in modules().items() if package in imports(paths)[1]}
        assert users <= homes, package


def lines_of_code(path):
    """Count what is neither blank, nor a comment, nor a docstring: to explain costs nothing."""
    text = path.read_text(encoding="utf-8")
    explained = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            explained |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    code = [n for n, line in lines if line.strip() and not line.lstrip().startswith("#")]
    return len(set(code) - explained)


def test_the_package_stays_small():
    paths = [path for paths in modules().values() for path in paths]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert max(lines.values()) <= 450, max(lines, key=lines.get)
    assert sum(map(lines_of_code, paths)) <= 19_800


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_is_thin_unsaved_and_has_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", [])
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(re.search(r"\bdef |^[!%]", cell.source, re.MULTILINE) for cell in code)
    assert "papermill" not in notebook.metadata
    assert notebook.cells[0].source.startswith("# ")
    assert "results.publish(" in code[-1].source


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in found if _holds(one)}


def _holds(requirement, extra=""):
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.mark.lock
def test_the_lock_pins_everything_that_pyproject_asks_for_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--", text)
    pins = locked()
    extras = PROJECT["optional-dependencies"].values()
    for wanted in [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]:
        asked = Requirement(wanted)
        if asked.name == "crmlab":
            continue  # the extras for the tests are among those for users
        pin = next(iter(pins[canonicalize_name(asked.name)].specifier))
        assert pin.operator == "=="
        assert asked.specifier.contains(pin.version), wanted


@pytest.mark.lock
def test_everything_installed_for_crmlab_is_in_the_lock_with_that_version():
    pins, seen, todo = locked(), set(), [("crmlab", frozenset({"dev"}))]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != "crmlab":
            try:
                installed = version(name)
            except PackageNotFoundError:
                continue
            assert name in pins, f"{name} is installed and not locked"
            assert pins[name].specifier.contains(installed, prereleases=True), name
        for line in requires(name) or []:
            needed = Requirement(line)
            if any(_holds(needed, extra) for extra in extras or {""}) or _holds(needed):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert len(seen) > 100


def test_the_conda_environment_asks_for_the_same_versions():
    conda = {
        "duckdb": "python-duckdb",
        "ibis-framework": "ibis-duckdb",
        "matplotlib": "matplotlib-base",
    }
    text = (ROOT / "environment.yml").read_text()
    listed = {
        line.strip(" -") for line in text.splitlines() if line.startswith(("  - ", "      - "))
    }
    wanted = {f"python{PROJECT['requires-python']}"}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        wanted.add(f"{conda.get(requirement.name, requirement.name)}{requirement.specifier}")
    assert listed - {"conda-forge", "pip", "pip:", "e ."} == wanted
    assert "- -e ." in text


def test_the_owners_packages_are_all_there():
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    owners = {"jupyterlab", "pandas", "lifetimes", "scikit-learn", "ipywidgets", "folium"}
    assert names >= owners | {"papermill"}


def test_every_command_and_option_is_in_the_readme():
    commands = README.split("## Commands")[1].split("\n## ")[0]
    for name, command in main.commands.items():
        parameters = command.params
        arguments = [
            p.metavar or p.name.upper() for p in parameters if p.param_type_name == "argument"
        ]
        assert f"`{' '.join(['crmlab', name, *arguments])}`" in commands
        for option in (p for p in parameters if p.param_type_name == "option"):
            assert option.opts[0] in commands
    named = set(re.findall(r"^\| `crmlab ([\w-]+)", commands, re.MULTILINE))
    assert named == set(main.commands)


def test_the_readmes_python_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ.copy()
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"BG/NBD +alpha +4\.4136\d+ +0\.3782", done.stdout)
    assert "to compare customers, and its total with caution" in done.stdout


def test_the_readme_names_every_policy_with_its_default():
    from crmlab.settings import Policy

    for name, field in Policy.__dataclass_fields__.items():
        default = {"": '""', (): "[]"}.get(field.default, field.default)
        default = f'"{default}"' if isinstance(default, str) and default != "[]" else default
        assert f"| `{name}` | `{default}` |" in README


def test_the_table_dictionary_is_that_of_the_contract():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert text.endswith(tables.dictionary())


def test_the_documents_stay_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60
    assert "\n## " in (ROOT / "CHANGELOG.md").read_text()


def tracked():
    need((ROOT / ".git").exists(), "the git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


def test_no_data_and_no_page_is_in_git():
    for path in tracked():
        if path.parts[0] == "data":
            assert path.name in ("shop.toml", "README.md"), path
        if path.parts[0] == "reports":
            assert path.as_posix() == "reports/reports.toml"
        assert path.suffix not in (".parquet", ".csv", ".gz", ".html", ".png", ".sqlite"), path


def test_the_top_level_is_what_the_owner_named():
    top = {path.parts[0] for path in tracked()}
    assert top >= {
        "notebooks",
        "crmlab",
        "data",
        "reports",
        "tests",
        "environment.yml",
        "README.md",
    }
