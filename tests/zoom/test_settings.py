"""Settings and prompts: what is allowed, and what the errors say."""

from __future__ import annotations

import pytest

from zoomc.zoom.errors import SettingsError
from zoomc.zoom.settings import ZoomSettings, prompt_per_keyframe


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keyframes", 0),
        ("frames_per_keyframe", 0),
        ("steps", 0),
        ("feather", -1),
        ("seed", -1),
        ("shrink", 1.0),
        ("shrink", 0.0),
        ("guidance", float("nan")),
        ("fps", 0),
        ("fps", 1000),
        ("upscale", 0),
        ("direction", "sideways"),
    ],
)
def test_values_out_of_range_name_the_setting(name, value):
    with pytest.raises(SettingsError, match=name.replace("_", "-")):
        ZoomSettings(**{name: value})


def test_small_frames_are_enlarged_unless_told():
    assert ZoomSettings().enlargement(64, 96) == 4
    assert ZoomSettings().enlargement(512, 768) == 1
    assert ZoomSettings(upscale=2).enlargement(64, 96) == 2


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", ["a", "a", "a", "a"]),
        ("", ["", "", "", ""]),
        (["a", "b"], ["a", "b", "b", "b"]),
        (("a", "b", "c", "d"), ["a", "b", "c", "d"]),
        ({1: "a", 3: "b"}, ["a", "a", "b", "b"]),
        ({2: "b"}, ["", "b", "b", "b"]),
    ],
)
def test_prompt_per_keyframe(prompts, expected):
    assert prompt_per_keyframe(prompts, 4) == expected


@pytest.mark.parametrize("prompts", [[], ["a"] * 5, {0: "a"}, {5: "a"}])
def test_prompts_that_do_not_fit(prompts):
    with pytest.raises(SettingsError):
        prompt_per_keyframe(prompts, 4)
