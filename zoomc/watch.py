"""Notice that weights changed after compilation, so that no answer is ever stale."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from .errors import StaleWeightsError
from .targets.pages import CODES
from .targets.tensors import on_device, recording

#: Pause between calls, in seconds, after which all of the weights are read again. The steps of a
#: denoising loop follow each other faster, so they pay for a look at a few samples only.
READ_AFTER = 5.0

#: Weights of at most this many bytes in all are read on every call: it takes under a millisecond.
SMALL = 4 << 20

_SAMPLES = 16
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WeightWatch:
    """Remembers a model's weights and says whether they are still the same.

    A replaced tensor and every in-place operation torch knows of show in the tensor's identity,
    address and version counter, looked at on each call. Writes through ``.data``, as LoRA fusing
    does, leave all three alone; they are found by sampling each weight on each call, and by a
    checksum of everything when the model is small or the calls have paused. What escapes is a
    ``.data`` write to a few elements of a large model within seconds of a call, or to the codes of
    a compressed one, whose pages need not be in memory: ``zoomc.refresh(model)`` covers that.

    Values are compared where they lie: a call waits for a GPU's answer once, and for no copies. One
    that a caller records in a CUDA graph of its own cannot wait, and compares no values.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        """Remember ``weights`` as they are.

        Raises:
            StaleWeightsError: a weight was made under ``torch.inference_mode``, which counts no
                versions.
        """
        self.remember(weights)

    def remember(self, weights: Sequence[torch.Tensor]) -> None:
        """Take these weights as the ones compiled."""
        if any(w.is_inference() for w in weights):
            raise StaleWeightsError(
                "some weights were created under torch.inference_mode, where torch does not count"
                " changes and zoomc could answer with stale ones: load the model under"
                " torch.no_grad() instead (calling it under inference_mode is fine)"
            )
        self._state = _state(weights)
        weights = [w for w in weights if w.numel() and w.dtype not in CODES]
        self._weights = weights
        self._views = [_sample_view(w) for w in weights]
        self._sample = _sample(self._views)
        self._checksum = _checksum(self._weights)
        self._small = sum(w.nbytes for w in weights) <= SMALL
        self._last = time.monotonic()

    def changed(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these are other weights than the remembered ones, or hold other values."""
        found = self.look(weights)
        return found() if callable(found) else found

    def look(self, weights: Sequence[torch.Tensor]) -> bool | Callable[[], bool]:
        """The same, or what waits for a GPU to answer it, which may be asked for more meanwhile."""
        if _state(weights) != self._state:
            return True
        if recording():
            return False
        if self._small or time.monotonic() - self._last > READ_AFTER:
            return _differ(_checksum(self._weights), self._checksum)
        return _differ(_sample(self._views), self._sample)

    def rest(self) -> None:
        """A call ended: pauses count from here."""
        self._last = time.monotonic()


def _state(weights: Sequence[torch.Tensor]) -> list[tuple[int, int, int]]:
    return [(id(w), w.data_ptr(), w._version) for w in weights]


def _sample_view(weight: torch.Tensor) -> torch.Tensor:
    """A view of a few elements spread over the weight's memory, as integers."""
    flat = weight.detach().as_strided((_extent(weight),), (1,))
    return flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].view(_BITS[flat.element_size()])


def _extent(weight: torch.Tensor) -> int:
    """Elements from the first to the last in memory, whatever the strides."""
    return 1 + sum((n - 1) * s for n, s in zip(weight.shape, weight.stride(), strict=True))


def _sample(views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A copy of the samples, one tensor a device and size of element."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for view in views:
        groups.setdefault((view.device, view.dtype), []).append(view)
    return [torch.cat(group) for group in groups.values()]


def _checksum(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One wrapping sum of 64-bit words a weight: reads everything once, at memory speed.

    One tensor a device.
    """
    groups: dict[torch.device, list[torch.Tensor]] = {}
    for weight in weights:
        groups.setdefault(weight.device, []).append(_sum(weight.detach()))
    return [torch.stack(group) for group in groups.values()]


def _sum(weight: torch.Tensor) -> torch.Tensor:
    data = weight.contiguous().reshape(-1).view(torch.uint8)
    words = data.numel() // 8 * 8
    return data[:words].view(torch.int64).sum() + data[words:].sum()


def _differ(now: Sequence[torch.Tensor], then: Sequence[torch.Tensor]) -> bool | Callable[[], bool]:
    """Whether any value differs, asked of a device once, since an answer has to be waited for."""
    answers: dict[torch.device, list[torch.Tensor]] = {}
    for a, b in zip(now, then, strict=True):
        answers.setdefault(a.device, []).append(a.ne(b).any())
    flags = [torch.stack(found).any() for found in answers.values()]
    return _on_their_way(flags) if any(flag.is_cuda for flag in flags) else any(map(bool, flags))


def _on_their_way(flags: Sequence[torch.Tensor]) -> Callable[[], bool]:
    """Whether any flag is set; the wait is for the flags alone and for nothing asked for later."""
    events, copies = [], []
    for flag in flags:
        with on_device([flag]):
            copies.append(flag.to("cpu", non_blocking=True))
            if flag.is_cuda:
                events.append(torch.cuda.Event())
                events[-1].record()

    def answer() -> bool:
        for event in events:
            event.synchronize()
        return any(map(bool, copies))

    return answer
