"""Tests here need Triton's interpreter, see ``tests/interpreter.py``."""

from __future__ import annotations

from ....interpreter import (  # noqa: F401
    in_the_interpreter,
    pytest_configure,
    pytest_ignore_collect,
)
