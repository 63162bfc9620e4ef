"""Keyframes survive interrupts, and are never mixed with those of other settings."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zoomc.zoom.errors import OutputError, ResumeError
from zoomc.zoom.store import MANIFEST, KeyframeStore

SETTINGS = {"seed": 1, "window": (8, 8, 24, 24), "guidance": 7.5}
PROMPTS = ["a", "b", "c"]


def keyframe(index):
    return np.full((8, 8, 3), index, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """The picture and two keyframes."""
    store = KeyframeStore(tmp_path / "z.keyframes", SETTINGS, PROMPTS)
    assert store.count == 0
    for index in range(3):
        store.save(index, keyframe(index))
    assert store.count == 2
    return store.folder


def test_the_same_settings_go_on(folder):
    store = KeyframeStore(folder, dict(reversed(SETTINGS.items())), PROMPTS)
    assert store.count == 2
    assert (store.load(2) == 2).all()
    store.save(3, keyframe(3))
    assert KeyframeStore(folder, SETTINGS, [*PROMPTS, "more"]).count == 3


def test_prompts_to_come_may_change(folder):
    assert KeyframeStore(folder, SETTINGS, ["a", "b", "another"]).count == 2
    assert KeyframeStore(folder, SETTINGS, ["a"]).count == 2


@pytest.mark.parametrize(
    ("settings", "prompts", "words"),
    [
        (SETTINGS | {"seed": 2}, PROMPTS, "seed was 1, now 2"),
        (SETTINGS | {"new": 1}, PROMPTS, "new was None, now 1"),
        (SETTINGS, ["a", "z", "c"], "the prompt of keyframe 2 was 'b', now 'z'"),
    ],
)
def test_other_settings_are_refused_with_a_way_out(folder, settings, prompts, words):
    with pytest.raises(ResumeError) as caught:
        KeyframeStore(folder, settings, prompts)
    assert words in str(caught.value) and "--fresh" in str(caught.value)
    assert KeyframeStore(folder, SETTINGS, PROMPTS).count == 2  # nothing was lost
    assert KeyframeStore(folder, settings, prompts, fresh=True).count == 0
    assert not list(folder.glob("*.png"))


def test_fresh_leaves_other_files_alone(folder):
    (folder / "notes.txt").write_text("mine")
    KeyframeStore(folder, SETTINGS, PROMPTS, fresh=True)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_before_the_first_keyframe_anything_may_change(tmp_path):
    KeyframeStore(tmp_path, SETTINGS, PROMPTS).save(0, keyframe(0))
    assert KeyframeStore(tmp_path, SETTINGS | {"seed": 2}, PROMPTS).count == 0


@pytest.mark.parametrize(("lost", "left"), [(0, 0), (1, 0), (2, 1)])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_from_a_damaged_keyframe_on_all_are_painted_again(folder, lost, left, damage):
    file = folder / f"{lost:04d}.png"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:40])
    assert KeyframeStore(folder, SETTINGS, PROMPTS).count == left


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"settings": {}}'])
def test_a_damaged_manifest_is_said(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ResumeError, match="damaged"):
        KeyframeStore(folder, SETTINGS, PROMPTS)


def test_another_version_is_said(folder):
    content = json.loads((folder / MANIFEST).read_text()) | {"version": 99}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ResumeError, match="another version"):
        KeyframeStore(folder, SETTINGS, PROMPTS)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        KeyframeStore(tmp_path / "file" / "z", SETTINGS, PROMPTS)
