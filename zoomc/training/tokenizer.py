"""A CLIP tokenizer in which every word of the captions is one token."""

from __future__ import annotations

import itertools
import json
import string
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import CLIPTokenizer

from .scenes import WORDS

LENGTH = 24
"""Tokens a caption is padded to; the longest takes 19."""

_END = "</w>"


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Pieces that byte-pair encoding leaves of a word under the merges known so far."""
    parts = [*word[:-1], word[-1] + _END]
    while len(parts) > 1:
        known = [(ranks[pair], pair) for pair in itertools.pairwise(parts) if pair in ranks]
        if not known:
            break
        _, (a, b) = min(known)
        merged, i = [], 0
        while i < len(parts):
            if parts[i : i + 2] == [a, b]:
                merged.append(a + b)
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    return parts


def merges_for(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges under which every word becomes one token.

    A merge made for one word can split another that was whole, so this goes on until a whole pass
    over the words adds none.
    """
    ranks: dict[tuple[str, str], int] = {}
    words = list(words)
    before = -1
    while before != len(ranks):
        before = len(ranks)
        for word in words:
            while len(parts := _split(word, ranks)) > 1:
                ranks[parts[0], parts[1]] = len(ranks)
    return list(ranks)


def build_tokenizer(words: Iterable[str] = WORDS, length: int = LENGTH) -> CLIPTokenizer:
    """Tokenizer for captions made of ``words``; other words fall apart into letters."""
    letters = string.ascii_lowercase + string.digits + ".,!?'-:;()"
    merges = merges_for(words)
    tokens = [*letters, *(c + _END for c in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        names[0].write_text(json.dumps(vocabulary))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        names[1].write_text("\n".join(lines) + "\n")
        return CLIPTokenizer(*map(str, names), model_max_length=length)
