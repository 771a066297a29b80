"""Build wheel and sdist, install them into a bare environment outside the checkout, and use them there.

    make release-check            # build, install, `gapclose --version`, import, the Python examples that need no run
    make release-check DEMO=1     # the demo as well, and the examples that read its run
    make release-check SITE=DIR   # dependencies from an installed site-packages directory instead of a download

Wheel and sdist are left in ``dist/``. The wheel is built from the sdist.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDS_RUN = "runs/"
"""what an example contains that reads the demo's run"""
PAGES = ("README.md", "docs/how-to/python.md")
"""whose examples are tried: of the second, those that need no run"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the checkout on the path, show its output, and return it; a failure ends the check."""
    print("$", *command, flush=True)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    lines = []
    with subprocess.Popen(
        [str(part) for part in command], cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            print("   ", line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"release-check: {' '.join(map(str, command))!r} ended with {process.returncode}")
    return "".join(lines).strip()


def environment(folder: Path) -> Path:
    """Make a virtual environment with pip and return its directory of programs."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def build(root: Path, work: Path, dist: Path) -> tuple[Path, Path]:
    """Return the wheel and the sdist of ``root``, made by the `build` package in an environment of its own."""
    programs = environment(work / "tools")
    run(programs / "python", "-m", "pip", "install", "--quiet", "build", cwd=work)
    shutil.rmtree(dist, ignore_errors=True)
    run(programs / "python", "-m", "build", "--outdir", dist, root, cwd=work)
    return next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))


def examples(root: Path) -> tuple[list[str], list[str]]:
    """Return the blocks of Python of the pages that stand alone, and those of README that read the demo's run."""
    readme, page = (re.findall(r"```python\n(.*?)```", (root / name).read_text(encoding="utf-8"), re.S) for name in PAGES)
    return [b for b in readme + page if NEEDS_RUN not in b], [b for b in readme if NEEDS_RUN in b]


def use(programs: Path, place: Path, version: str) -> None:
    """Check command and import of an installation."""
    told = run(programs / "gapclose", "--version", cwd=place)
    if version not in told.split():
        raise SystemExit(f"release-check: `gapclose --version` prints {told!r}, but gapclose/core/version.py has {version}")
    where = run(programs / "python", "-c", "import gapclose; print(gapclose.__file__)", cwd=place)
    where = where.splitlines()[-1]
    if not Path(where).resolve().is_relative_to(programs.parent.resolve()):
        raise SystemExit(f"release-check: gapclose is imported from {where}, not from the installation in {programs.parent}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", action="store_true", help="also run the demo and the examples that read its run (minutes)")
    parser.add_argument("--site", type=Path, help="a site-packages directory to take the dependencies from, instead of a download")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where wheel and sdist go; it is emptied first")
    args = parser.parse_args()
    version = re.findall(r'__version__ = "(.+)"', (ROOT / "gapclose/core/version.py").read_text())[0]
    alone, of_run = examples(ROOT)
    if not alone:
        raise SystemExit(
            f"release-check: {' and '.join(PAGES)} have no block of Python without {NEEDS_RUN!r}, so that nothing would be tried"
        )
    with tempfile.TemporaryDirectory(prefix="gapclose-release-") as folder:
        work = Path(folder)
        wheel, sdist = build(ROOT, work, args.dist.resolve())
        programs = environment(work / "bare")
        pip = (programs / "python", "-m", "pip", "install", "--quiet")
        if args.site:
            packages = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work)
            Path(packages, "zz_dependencies.pth").write_text(f"{args.site.resolve()}\n")
            run(*pip, "--no-deps", wheel, cwd=work)
        else:
            run(*pip, "-c", ROOT / "constraints.txt", "torch", cwd=work)  # first and alone, as in the Makefile
            run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=work)
        place = work / "elsewhere"
        place.mkdir()
        use(programs, place, version)
        for block in alone:
            run(programs / "python", "-c", block, cwd=place)
        if args.demo:
            shutil.copy(ROOT / "configs/digits.yaml", place)
            run(programs / "gapclose", "close", "--config", "digits.yaml", "--run_dir", "runs/digits", cwd=place)
            for block in of_run:
                run(programs / "python", "-c", block, cwd=place)
        run(*pip, "--no-deps", "--force-reinstall", sdist, cwd=work)
        use(programs, place, version)
    print(f"release-check: {wheel.name} and {sdist.name} install and run" + ("" if args.demo else "; the demo was not run (DEMO=1)"))


if __name__ == "__main__":
    sys.exit(main())
