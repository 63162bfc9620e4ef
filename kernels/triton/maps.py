"""Launches that take maps through a group norm, an activation and quantisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..activation import DIPS
from .device import maps as device
from .kernel import Call, Extra, Launch, Operand, Slot, TensorSpec

#: Chunks of an image's pixels whose statistics are gathered apart.
CHUNKS = 64
PIXELS, CHANNELS = 32, 64
#: Means that a program merges at a time.
_MERGED = 8192


def moments_of(result: torch.Tensor, blocks: int) -> torch.Tensor:
    """The moments ``[4, blocks, channels]`` of a result ``[..., channels]``: the reference.

    Over each block of rows: mean, sum of squared distances from it, least and greatest value.
    """
    rows = result.reshape(blocks, -1, result.shape[-1]).float()
    mean = rows.mean(1)
    squares = (rows - mean[:, None]).square().sum(1)
    return torch.stack([mean, squares, rows.amin(1), rows.amax(1)])


def peaks_of(result: torch.Tensor, wide: int) -> torch.Tensor:
    """The largest magnitudes ``[rows, blocks]`` of rows in blocks of columns: the reference."""
    rows = result.reshape(-1, result.shape[-1]).float().abs()
    return torch.stack([block.amax(1) for block in rows.split(wide, 1)], 1)


def gathered(call: Call, chunk: int, wide: int) -> dict[str, Extra]:
    """What a kernel gathers whose programs write blocks of that size, if its call is asked to."""
    asked, channels = call.args.get("gather"), call.out.shape[-1]
    rows, extras = call.out.numel // channels, {}
    if asked and asked % chunk == 0:
        blocks = rows // chunk
        spec = TensorSpec((4, blocks, channels), torch.float32)
        extras["moments"] = Extra(spec, lambda result: moments_of(result, blocks))
    return extras | peaks_gathered(call, wide)


def peaks_gathered(call: Call, wide: int) -> dict[str, Extra]:
    """The same of the rows' largest magnitudes alone."""
    if not call.args.get("gather_peaks"):
        return {}
    channels = call.out.shape[-1]
    spec = TensorSpec((call.out.numel // channels, -(-channels // wide)), torch.float32)
    return {"peaks": Extra(spec, lambda result: peaks_of(result, wide))}


@dataclass(frozen=True)
class _Moments:
    """Moments ``[4, images, chunks, channels]`` in a slot; a chunk has so many pixels or fewer."""

    slot: str
    channels: int
    chunks: int
    per_chunk: int


@dataclass
class Passes:
    """Launches in order and the workspace between them, built up step by step.

    Attributes:
        inputs: slots of maps that are concatenated along their channels.
        specs: theirs: ``(images, pixels..., channels)``.
        operands: moments that were given.
        passed: bytes of maps and moments that the launches move, but for one reading of inputs.
    """

    inputs: Sequence[str]
    specs: Sequence[TensorSpec]
    launches: list[Launch] = field(default_factory=list)
    scratch: dict[str, TensorSpec] = field(default_factory=dict)
    operands: dict[str, Operand] = field(default_factory=dict)
    passed: int = 0
    _groups: int = 0

    @property
    def images(self) -> int:
        """Images in a map."""
        return self.specs[0].shape[0]

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return math.prod(self.specs[0].shape[1:-1])

    @property
    def channels(self) -> list[int]:
        """Channels of each input."""
        return [spec.shape[-1] for spec in self.specs]

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(spec.nbytes for spec in self.specs)

    @property
    def measured(self) -> tuple[str, ...]:
        """Inputs whose moments may be given."""
        return tuple(self.inputs) if len(self.inputs) <= 2 else ()

    def statistics(
        self,
        call: Call,
        groups: int,
        weight: Slot | None,
        bias: Slot | None,
        eps: float,
        extremes: bool,
    ) -> None:
        """Gather what a group norm over the concatenation and its quantisation need.

        Fills ``gain`` and ``offset`` unless ``groups`` is 0, and ``extremes`` where asked. Inputs
        whose moments ``call`` is given are not read.
        """
        total = sum(self.channels)
        first, *rest = self._moments(call)
        second = rest[0] if rest else _Moments("", 0, 0, 0)
        in_group = total // groups if groups else CHANNELS
        self._groups = groups or -(-total // in_group)
        affine = TensorSpec((self.images, total), torch.float32)
        if groups:
            self.scratch |= {"gain": affine, "offset": affine}
        if extremes:
            shape = (2, self.images, self._groups)
            self.scratch["extremes"] = TensorSpec(shape, torch.float32)
        at_once = max(16, _MERGED // power(in_group))
        at_once = min(power(max(first.chunks, second.chunks)), at_once)
        self.launches.append(
            Launch(
                device.map_affine,
                (self._groups, self.images, 1),
                {
                    "moments0": Slot(first.slot),
                    "moments1": Slot(second.slot) if rest else None,
                    "weight": weight,
                    "bias": bias,
                    "gain": self._slot("gain"),
                    "offset": self._slot("offset"),
                    "extremes": self._slot("extremes"),
                    "pixels": self.pixels,
                    "per_chunk0": first.per_chunk,
                    "per_chunk1": second.per_chunk,
                    "chunks0": first.chunks,
                    "chunks1": second.chunks,
                    "channels0": first.channels,
                    "channels1": second.channels,
                    "in_group": in_group,
                    "eps": float(eps),
                    "NORM": groups > 0,
                    "BCHUNK": at_once,
                    "BC": power(in_group),
                },
                warps=8 if at_once * power(in_group) >= 8192 else 4,
            )
        )

    def _moments(self, call: Call) -> list[_Moments]:
        """The moments of all inputs in one tensor, or where some are given in one for each."""
        values = call.args.get("moments")
        if not values:
            return [self._gather("measured", self.inputs)]
        found = []
        for index, (name, value) in enumerate(zip(self.inputs, values, strict=True)):
            slot = f"measured{index}"
            if value is None:
                found.append(self._gather(slot, [name]))
                continue
            self.operands[slot] = Operand((value,))
            chunks = value.spec.shape[1] // self.images
            found.append(_Moments(slot, self.channels[index], chunks, self.pixels // chunks))
        return found

    def _gather(self, slot: str, inputs: Sequence[str]) -> _Moments:
        """Launches that read inputs and write their moments."""
        specs = dict(zip(self.inputs, self.specs, strict=True))
        per_chunk = max(PIXELS, -(-self.pixels // CHUNKS))
        chunks = -(-self.pixels // per_chunk)
        total = sum(specs[name].shape[-1] for name in inputs)
        self.scratch[slot] = TensorSpec((4, self.images, chunks, total), torch.float32)
        self.passed += 2 * self.scratch[slot].nbytes
        at = 0
        for name in inputs:
            channels = specs[name].shape[-1]
            self.launches.append(
                Launch(
                    device.map_moments,
                    (chunks, -(-channels // CHANNELS), self.images),
                    {
                        "x": Slot(name),
                        "moments": Slot(slot),
                        "pixels": self.pixels,
                        "per_chunk": per_chunk,
                        "channels": channels,
                        "channel_at": at,
                        "all_channels": total,
                        "BP": PIXELS,
                        "BC": CHANNELS,
                    },
                    warps=8,
                )
            )
            at += channels
            self.passed += specs[name].nbytes
        return _Moments(slot, total, chunks, per_chunk)

    def write(
        self,
        out: str,
        dtype: torch.dtype,
        pitch: int,
        pre: str,
        border: tuple[int, int, int, int] = (0, 0, 0, 0),
        peaks: bool = False,
    ) -> int:
        """Write the concatenation, normalised and activated, as ``[images, pixels, pitch]``.

        int8 is quantised by :meth:`statistics`' extremes, or between the operand ``bounds`` where
        there is one, with a ``row_scale`` and a ``row_zero`` an image. A ``border`` of zeros is
        added at top, bottom, left and right of maps. Of one input in floats, ``peaks`` of pixels in
        blocks of ``CHANNELS`` may be gathered.

        Returns:
            pixels of an image, with its border.
        """
        integer = dtype is torch.int8
        if integer:
            self.scratch["row_scale"] = TensorSpec((self.images,), torch.float32)
            self.scratch["row_zero"] = TensorSpec((self.images,), torch.int32)
        height, width = self.specs[0].shape[1:-1] if any(border) else (1, self.pixels)
        top, bottom, left, right = border
        wide = width + left + right
        bordered = (height + top + bottom) * wide
        dip, depth = DIPS.get(pre, (0.0, 0.0))
        at = 0
        for index, (name, channels) in enumerate(zip(self.inputs, self.channels, strict=True)):
            written = channels if index + 1 < len(self.inputs) else pitch - at
            arguments: dict[str, Any] = {
                "x": Slot(name),
                "gain": self._slot("gain"),
                "offset": self._slot("offset"),
                "extremes": self._slot("extremes") if integer else None,
                "bounds": Slot("bounds") if integer and "bounds" in self.operands else None,
                "out": Slot(out),
                "scale": Slot("row_scale") if integer else None,
                "zero": Slot("row_zero") if integer else None,
                "peaks": Slot("peaks") if peaks else None,
                "pixels": self.pixels,
                "map_height": height,
                "map_width": width,
                "bordered": bordered,
                "wide": wide,
                "top": top,
                "left": left,
                "channels": channels,
                "channel_at": at,
                "all_channels": sum(self.channels),
                "width": written,
                "pitch": pitch,
                "groups": self._groups,
                "BORDER": any(border),
                "PRE": pre,
                "INTEGER": integer,
                "DIP": dip,
                "DEPTH": depth,
                "BG": power(self._groups or 1),
                "BP": PIXELS,
                "BC": CHANNELS,
            }
            grid = (-(-bordered // PIXELS), -(-written // CHANNELS), self.images)
            self.launches.append(Launch(device.prepare_map, grid, arguments))
            at += channels
        return bordered

    def _slot(self, name: str) -> Slot | None:
        return Slot(name) if name in self.scratch else None


def power(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
