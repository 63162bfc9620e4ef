"""Tests here need Triton's interpreter; ``test_interpreted.py`` starts a process that has it."""

from __future__ import annotations

import os

from ....interpreter import widen_bf16

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    widen_bf16()
