"""Run tests where Triton's interpreter is.

Triton decides at import whether functions are compiled or interpreted, once for a process; so
folders called ``interpreted`` are run in a process of their own, by the ``test_interpreted.py``
beside each, or by who names nothing else on pytest's command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(path: Path) -> None:
    """Run a file of tests in the interpreter and expect all to pass."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def interprets() -> bool:
    """Whether Triton interprets in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the interpreter where all that is to run needs it, before Triton is imported."""
    named = [Path(arg.split("::")[0]).resolve() for arg in config.args]
    if all("interpreted" in path.parts for path in named) and "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    if interprets():
        sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
        from interpreting import prepare

        prepare()


def pytest_ignore_collect() -> bool | None:
    """Leave these folders to ``test_interpreted.py`` where others run in the same process."""
    return None if interprets() else True


@pytest.fixture(autouse=True)
def in_the_interpreter() -> None:
    """Files that are named beside others are collected all the same."""
    if not interprets():
        pytest.skip("needs a process of its own: name files of such folders alone, or set"
                    " TRITON_INTERPRET=1")  # fmt: skip
