"""Keyframes on disk: a folder of PNG files with a manifest, so that a run can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import OutputError, PictureError, ResumeError
from .picture import load_picture

MANIFEST = "manifest.json"
_VERSION = 1


def beside(output: Path, ending: str) -> Path:
    """A name next to the output's, with another ending in place of its own."""
    return output.with_name(f"{output.stem if output.suffix else output.name}{ending}")


class KeyframeStore:
    """The keyframes of one zoom.

    A keyframe counts once its prompt stands in the manifest, which is written after the picture;
    both are renamed into place, so that an interrupt leaves no half of either.

    Args:
        folder: made if missing.
        settings: everything the keyframes depend on, but for the prompts; JSON values only.
        prompts: of keyframes 1, 2, ...
        fresh: drop the keyframes that are there.

    Raises:
        ResumeError: where the folder holds keyframes made with other settings.
        OutputError: where the folder cannot be written.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], prompts: list[str], fresh: bool = False
    ) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._prompts = prompts
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {str(folder)!r}: {error}") from None
        self._done: list[str] = []
        if fresh:
            self._clear()
        else:
            self._done = self._resume()

    @property
    def count(self) -> int:
        """Generated keyframes at hand."""
        return len(self._done)

    def load(self, index: int) -> np.ndarray:
        """Keyframe ``index``, (H, W, 3) uint8."""
        return load_picture(self._file(index))

    def save(self, index: int, keyframe: np.ndarray) -> None:
        """Keep keyframe ``index``: the next one, or 0, the picture.

        Raises:
            OutputError: where it cannot be written.
        """
        file = self._file(index)
        part = file.with_suffix(".part")
        try:
            Image.fromarray(keyframe).save(part, format="PNG", compress_level=4)
            os.replace(part, file)
            if index:
                self._done = [*self._done[: index - 1], self._prompts[index - 1]]
            self._write_manifest()
        except OSError as error:
            raise OutputError(f"cannot write {str(file)!r}: {error}") from None

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:04d}.png"

    def _write_manifest(self) -> None:
        content = {"version": _VERSION, "settings": self._settings, "prompts": self._done}
        part = self.folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.folder / MANIFEST)

    def _clear(self) -> None:
        # Only what this class writes: the folder may hold something else.
        for file in (self.folder / MANIFEST, *self.folder.glob("[0-9][0-9][0-9][0-9].png")):
            file.unlink(missing_ok=True)

    def _resume(self) -> list[str]:
        file = self.folder / MANIFEST
        if not file.exists():
            return []
        remedy = (
            f"; add --fresh (fresh=True) to start over, or choose another output. "
            f"The keyframes are in {str(self.folder)!r}"
        )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version, settings = content["version"], content["settings"]
            prompts = list(content["prompts"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ResumeError(f"{str(file)!r} is damaged" + remedy) from None
        if version != _VERSION:
            raise ResumeError(f"{str(file)!r} comes from another version of zoomc" + remedy)
        done = self._sound(prompts)
        changes = [
            f"{key} was {settings.get(key)!r}, now {self._settings.get(key)!r}"
            for key in sorted(self._settings.keys() | settings.keys())
            if self._settings.get(key) != settings.get(key)
        ]
        changes += [
            f"the prompt of keyframe {index} was {was!r}, now {now!r}"
            for index, (was, now) in enumerate(zip(done, self._prompts, strict=False), 1)
            if was != now
        ]
        if changes and done:
            shown = "; ".join(changes[:3])
            more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ResumeError(
                f"the {len(done)} keyframes kept from before were made with other settings: "
                f"{shown}{more}{remedy}"
            )
        return [] if changes else done

    def _sound(self, prompts: list[str]) -> list[str]:
        """The keyframes up to the first that is missing or damaged."""
        for index in range(len(prompts) + 1):
            try:
                self.load(index)
            except PictureError:
                return prompts[: max(index - 1, 0)]
        return prompts
