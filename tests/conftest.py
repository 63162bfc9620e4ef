"""Shared by all tests: no leftovers from the environment, a fresh Dynamo for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# A user's own settings must not change what is tested.
for _name in [name for name in os.environ if name.startswith("ZOOMC_")]:
    del os.environ[_name]
# Tests compare with eager closely; those of coded weights ask for them.
os.environ["ZOOMC_WEIGHTS"] = "keep"


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Compiled code and its recompile counts do not carry over."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def no_tuning_file(monkeypatch):
    """What a user's own tuning runs found must not change what is tested either."""
    from zoomc.targets import tuning

    monkeypatch.setattr(tuning, "default_path", lambda: Path(os.devnull) / "tuning.jsonl")
