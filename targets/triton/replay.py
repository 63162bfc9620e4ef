"""A step recorded once as a CUDA graph: its launches cost the CPU one call."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


class Replay:
    """A recorded step: inputs are copied in, results copied out, so nothing is ever shared.

    It holds the memory of its values until it is dropped, and is good for the weights it was
    recorded with. Calls may come from several streams: each waits for the one before.
    """

    def __init__(
        self, run: Callable[[Sequence[Any]], list[Any]], inputs: Sequence[torch.Tensor]
    ) -> None:
        """Record ``run`` on inputs of these shapes.

        Raises:
            RuntimeError: something in the step cannot be recorded, as what waits for the GPU.
        """
        # Tensors made in inference mode could not be written to by calls outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = [torch.empty_like(x).copy_(x) for x in inputs]
            self._record(run)
        self._done = torch.cuda.Event()
        self._done.record()

    def _record(self, run: Callable[[Sequence[Any]], list[Any]]) -> None:
        mine, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(mine)
        with torch.cuda.stream(side):
            run(self._inputs)  # first calls may allocate, compile and wait; recorded ones may not
        mine.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do meanwhile, pinning memory say, spoils nothing of this one's.
            with (
                _workspaces_of_its_own(),
                _uncollected(),
                torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"),
            ):
                self._outputs = run(self._inputs)
        except RuntimeError as error:
            # torch leaves the recording's stream the current one, and of two errors, the one that
            # stopped the recording and the one of ending it so, shows the second.
            torch.cuda.set_stream(mine)
            first = error.__context__
            raise first if isinstance(first, RuntimeError) else error from None

    def wait(self) -> None:
        """Let the current stream wait for the last call, whose memory may be used again then."""
        torch.cuda.current_stream().wait_event(self._done)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """Run the step on inputs of the recorded shapes."""
        self.wait()
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        results = [y.clone() if isinstance(y, torch.Tensor) else y for y in self._outputs]
        self._done.record()
        return results


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: what it ends on a GPU, another graph say, may wait for the GPU."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _workspaces_of_its_own() -> Iterator[None]:
    """Let no library's workspace be shared by a recording and what runs beside it.

    torch keeps one for each stream that ever multiplied, and for good: a recording's must go with
    the recording.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()
