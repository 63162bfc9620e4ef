import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoomc.training.scenes import FISH, FLOORS, KEEPS, NUMBERS, WATERS, WORDS, draw


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 2**31))
def test_a_picture_is_the_same_every_time(seed: int, index: int) -> None:
    first, again = draw(seed, index), draw(seed, index)
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.caption, first.keep) == (again.caption, again.keep)


def test_another_seed_or_index_is_another_picture() -> None:
    first = draw(0, 0).image
    assert not np.array_equal(first, draw(0, 1).image)
    assert not np.array_equal(first, draw(1, 0).image)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_size_and_type(size: int) -> None:
    picture = draw(3, 5, size)
    assert picture.image.shape == (size, size, 3)
    assert picture.image.dtype == np.uint8


def test_captions_follow_the_grammar_in_known_words() -> None:
    grammar = re.compile(
        rf"(?:(?:(?P<number>{'|'.join(NUMBERS[1:])}) )?(?:{'|'.join(FISH)}) fish in )?"
        rf"(?:{'|'.join(WATERS)}) water(?: over (?:{'|'.join(FLOORS)}))?(?: with .+)?"
    )
    seen = set()
    for index in range(300):
        text = draw(7, index).caption
        match = grammar.fullmatch(text)
        assert match, text
        assert set(text.split()) <= set(WORDS), text
        seen.add(match["number"])
    assert seen == {None, *NUMBERS[1:]}


def test_most_pictures_are_nested_by_shares_that_end_on_latent_cells() -> None:
    keeps = [draw(1, i).keep for i in range(200)]
    assert 0.5 < np.mean([k > 0 for k in keeps]) < 0.75
    assert {k for k in keeps if k} == set(KEEPS)
    assert all((16 * k).is_integer() and (16 * (1 - k)) % 2 == 0 for k in KEEPS)


def test_the_caption_names_the_water_that_is_there() -> None:
    # Blue water has more blue than red everywhere along the top edge unless a fish is there.
    for index in range(60):
        picture = draw(11, index)
        top = np.median(picture.image[0].astype(int), axis=0)
        if "dark water" in picture.caption:
            assert top.sum() < 300
        elif "green water" in picture.caption:
            assert top[1] == top.max()
        elif "blue water" in picture.caption:
            assert top[2] == top.max() and top[0] == top.min()
