"""Run the folder ``interpreted`` where it can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...interpreter import run

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

FOLDER = Path(__file__).with_name("interpreted")


@pytest.mark.parametrize("part", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_in_the_interpreter(part: str) -> None:
    run(FOLDER / part)
