from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from zoomc.training.scenes import WORDS, draw
from zoomc.training.tokenizer import LENGTH, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_captions_are_one_token_a_word_and_fit(tokenizer: CLIPTokenizer) -> None:
    for index in range(300):
        words = draw(0, index).caption.split()
        ids = tokenizer(" ".join(words))["input_ids"]
        assert len(ids) == len(words) + 2 <= LENGTH
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id


def test_no_two_words_share_a_token(tokenizer: CLIPTokenizer) -> None:
    assert len({tokenizer(word)["input_ids"][1] for word in WORDS}) == len(set(WORDS))


def test_an_unknown_word_falls_apart_instead_of_failing(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("zebra")["input_ids"]
    assert len(ids) > 3 and tokenizer.decode(ids, skip_special_tokens=True) == "zebra"


@given(words=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=12, unique=True))
def test_any_words_become_one_token_each(words: list[str]) -> None:
    tokenizer = build_tokenizer(words)
    for word in words:
        assert len(tokenizer(word)["input_ids"]) == 3
