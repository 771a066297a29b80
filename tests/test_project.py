"""Workflows, forms and metadata of the project: what a hosting service, pip and citation tools read, but no command runs."""

import re
import tomllib
from pathlib import Path

import pytest
import release_check
import yaml

from gapclose import __version__
from gapclose.training.trackers.config import TRACKERS

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M))

pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="a checkout or source distribution has .github")


def load(path: Path) -> dict:
    """The mapping in a file. GitHub's key ``on`` is True in YAML 1.1."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict), path
    return {"on" if key is True else key: value for key, value in found.items()}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def python_versions() -> list[str]:
    """Those of the classifiers."""
    return [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]


def test_there_is_a_workflow_for_tests_lint_package_docs_and_the_newest_libraries():
    run = {path.stem: {step["run"].strip() for step in steps(load(path)) if "run" in step} for path in WORKFLOWS}
    expected = {"tests": "make test", "lint": "make lint", "package": "make release-check", "newest": "make test-newest"}
    expected["docs"] = "make docs-check"
    assert {name: command for name, command in expected.items() if command not in run.get(name, set())} == {}
    assert "schedule" in load(GITHUB / "workflows/newest.yml")["on"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_is_bounded_and_has_no_rights_it_does_not_need(path):
    workflow = load(path)
    assert set(workflow["on"]) <= {"push", "pull_request", "schedule", "workflow_dispatch"}  # never pull_request_target
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert isinstance(job.get("timeout-minutes"), int), f"{name} has no timeout"
        assert job["runs-on"] == "ubuntu-latest" and "permissions" not in job
    assert "secrets." not in path.read_text()
    for entry in workflow["on"].get("schedule", []):
        assert re.fullmatch(r"[\d*,/-]+( [\d*,/-]+){4}", entry["cron"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_steps_use_pinned_actions_and_commands_that_exist(path):
    for step in steps(load(path)):
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]), step["uses"]
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            if step["uses"].startswith("actions/setup-python@"):
                read = step["with"]["cache-dependency-path"].split()
                assert step["with"]["cache"] == "pip" and read and all((ROOT / name).is_file() for name in read)
            continue
        assert "${{" not in step["run"], "an expression inside a command can be injected; hand it over in env"
        asked = re.findall(r"^make ([\w-]+)", step["run"], re.M)
        assert asked and set(asked) <= TARGETS, step["run"]


def test_the_packages_of_every_tracker_are_there_where_the_tests_run():
    """Tests of a tracker are skipped where its package is missing, so the extra of the tests names it, or `make test-slow` installs it."""
    extras = PROJECT["optional-dependencies"]
    brought = set(re.findall(r"[\w-]+", " ".join(line for name in ("dev", "all") for line in extras[name] if line.startswith("gapclose["))))
    slow = (ROOT / "Makefile").read_text().partition("\ntest-slow:")[2].partition("\n\n")[0]
    assert set(TRACKERS) <= brought | set(re.findall(r'"\.\[(\w+)\]"', slow))
    pinned = {re.split(r"[^\w-]", line)[0] for name in TRACKERS for line in extras[name]}
    assert pinned <= set(CONSTRAINTS)


def test_python_versions_agree():
    """Classifiers, the oldest that pip accepts, and what the tests run on."""
    versions = python_versions()
    matrix = load(GITHUB / "workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert matrix == versions and PROJECT["requires-python"] == f">={versions[0]}"
    others = [
        step["with"]["python-version"] for path in WORKFLOWS for step in steps(load(path)) if "python-version" in step.get("with", {})
    ]
    assert {version for version in others if "matrix" not in version} <= set(versions)
    assert set(load(GITHUB / "workflows/package.yml")["jobs"]["package"]["strategy"]["matrix"]["python"]) <= set(versions)


def test_commands_in_the_documents_of_contributors_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text() + (GITHUB / "pull_request_template.md").read_text()
    assert set(re.findall(r"(?:`|^    )make ([a-z][\w-]*)", text, re.M)) <= TARGETS
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony and set(phony[1].split()) == TARGETS


def test_the_table_of_tested_versions_is_that_of_the_constraints():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Tested versions")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| ([a-z][\w-]*) \| (\d\S*) \|$", table, re.M)) == CONSTRAINTS


def test_hooks_before_a_commit_use_the_ruff_of_the_constraints():
    repositories = {entry["repo"].rpartition("/")[2]: entry for entry in load(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert repositories["ruff-pre-commit"]["rev"] == f"v{CONSTRAINTS['ruff']}"
    assert [hook["id"] for hook in repositories["ruff-pre-commit"]["hooks"]] == ["ruff-check", "ruff-format"]
    assert {"end-of-file-fixer", "check-yaml", "check-toml"} <= {hook["id"] for hook in repositories["pre-commit-hooks"]["hooks"]}


@pytest.mark.parametrize("name", ["bug", "feature", "wrong_number"])
def test_forms_of_issues_are_what_github_takes(name):
    form = load(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form["name"] and form["description"] and form["labels"] and set(form) <= {"name", "description", "labels", "title", "body"}
    identifiers = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(identifiers) == len(set(identifiers))
    for field in form["body"]:
        assert field["type"] in {"markdown", "input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"].get("label") or field["attributes"].get("value")
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_citation_names_this_version_and_the_paper():
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "version", "license", "references"} <= set(citation)
    assert str(citation["version"]) == __version__ and citation["license"] == PROJECT["license"]
    assert citation["references"][0]["url"] == PROJECT["urls"]["Paper"]


def test_the_notice_ships_and_names_what_is_fetched():
    assert {"LICENSE", "NOTICE"} == set(PROJECT["license-files"])
    notice = (ROOT / "NOTICE").read_text()
    fetched = {
        path for file in (ROOT / "configs").glob("*.yaml") for path in re.findall(r"^  path: (\w[\w.-]*/[\w.-]+)", file.read_text(), re.M)
    }
    fetched = {name for name in fetched if not name.startswith(("data/", "models/", "runs/"))}
    fetched |= set(re.findall(r"^MODEL \?= (\S+)$", (ROOT / "Makefile").read_text(), re.M))
    assert len(fetched) >= 7 and {name for name in fetched if name not in notice} == set()
    assert "speech.ogg" in notice and "CC BY 4.0" in notice


def test_a_release_check_has_an_example_to_run():
    alone, of_run = release_check.examples(ROOT)
    assert any("import" in block and "gapclose" in block for block in alone)
    assert all("runs/" in block for block in of_run)
