"""The site of the documentation: what its hooks fill in, and that it builds without a warning."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from site_links import links_inside, on_page_content
from site_reference import PARTS, configuration, files, python

import gapclose
from gapclose.pipeline.config import known_keys

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_site_fetches_nothing():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False and not config.get("extra_javascript")
    assert not [css for css in config["extra_css"] if "://" in css or "@import" in (DOCS / css).read_text()]


def test_every_generated_part_has_its_page():
    marks = [mark for path in DOCS.rglob("*.md") for mark in re.findall(r"^<!-- generated: ([\w-]+) -->$", path.read_text(), re.M)]
    assert sorted(marks) == sorted(PARTS)


def test_the_configuration_page_has_every_key():
    page = configuration()
    assert [key for key in known_keys() if f'<a id="{key}"></a>' not in page and f"\n## {key}\n" not in page] == []
    assert "`seed`" in page and "[data-formats](../how-to/data-formats.md)" in page and "docs/how-to" not in page


def test_the_python_page_has_every_public_name():
    page = python()
    assert [name for name in gapclose.__all__ if name != "__version__" and f"::: gapclose.{name}\n" not in page] == []


def test_the_page_of_files_has_every_schema_and_its_keys():
    page = files()
    assert [p.name for p in (ROOT / "gapclose").glob("*/schemas/*.json") if f"schemas/{p.name}\n" not in page] == []
    assert "`verdict.NAME`" in page or "`modality.NAME`" in page
    assert "    `stage` <small>string" in page


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("how-to/data.md", "[rules](../../CONTRIBUTING.md#tests)", "rules (`CONTRIBUTING.md`)"),
        ("how-to/data.md", "[CONTRIBUTING.md](../../CONTRIBUTING.md)", "`CONTRIBUTING.md`"),
        ("how-to/data.md", "[`configs/digits.yaml`](../../configs/digits.yaml)", "`configs/digits.yaml`"),
        ("reference/changelog.md", "[gpus](../../docs/how-to/gpus.md#slurm)", "[gpus](../how-to/gpus.md#slurm)"),
        ("index.md", "[here](start/quickstart.md)", "[here](start/quickstart.md)"),
        ("index.md", "[paper](https://arxiv.org/abs/2605.13737)", "[paper](https://arxiv.org/abs/2605.13737)"),
        ("index.md", "```\n[x](../README.md)\n```", "```\n[x](../README.md)\n```"),
    ],
)
def test_links_that_leave_the_site_become_code(page, link, expected):
    assert links_inside(f"See {link}.\n", page) == f"See {expected}.\n" or links_inside(link, page) == expected


def test_roles_of_docstrings_become_code_and_intervals_stay_together():
    assert on_page_content("<td>0.5 [-0.4, 0.6]</td>") == "<td>0.5&nbsp;[-0.4,&nbsp;0.6]</td>"
    assert on_page_content("as for :func:<code>measure</code>") == "as for <code>measure</code>"


def test_every_interval_of_the_comparison_is_in_its_tables():
    """docs/results/comparison.md shows a part of the CSV files beside it."""
    there = set[tuple[str, ...]]()
    for path in (DOCS / "results").glob("comparison-*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                there |= {tuple(row[k] for k in (name, f"{name} lower", f"{name} upper")) for name in row if f"{name} lower" in row}
    shown = re.findall(r"(-?\d\.\d{3}) \[(-?\d\.\d{3}), (-?\d\.\d{3})\]", (DOCS / "results/comparison.md").read_text())
    assert len(shown) > 30 and [interval for interval in shown if interval not in there] == []


@pytest.mark.parametrize("kind", ["ways", "differences", "points", "noise"])
def test_every_row_of_the_comparison_has_its_seeds_and_its_interval(kind):
    """As its page says: Student's t, over five seeds or three; and the page explains the columns of every file."""
    with (DOCS / f"results/comparison-{kind}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 10 and {(row["seeds"], row["interval"]) for row in rows} <= {("5", "t"), ("3", "t")}
    assert {row["variant"] for row in rows if row["seeds"] == "3"} <= {"comply, choices on val"}
    explained = (DOCS / "results/comparison.md").read_text().partition("Their columns:")[2]
    own = {"variant", "labels", "way", "seeds", "interval", "labelled items", "val chose", "base counted", "minus", "of", "over budget"}
    assert [name for name in own & set(rows[0]) if f"`{name}`" not in explained] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="the site needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    told = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert 'id="train.epochs"' in (tmp_path / "site/reference/configuration/index.html").read_text()
