"""Run the folder ``interpreted`` where it can run: in a process that has Triton's interpreter.

Triton decides at import whether functions are compiled or interpreted, once for a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

FOLDER = Path(__file__).with_name("interpreted")


@pytest.mark.parametrize("part", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_in_the_interpreter(part: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER / part)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
