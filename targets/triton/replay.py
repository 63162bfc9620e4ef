"""A step recorded once as a CUDA graph: its launches cost the CPU one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Replay:
    """A recorded step: inputs are copied in, results copied out, so nothing is ever shared.

    It holds the memory of its values until it is dropped, and is good for the weights it was
    recorded with.
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

    def _record(self, run: Callable[[Sequence[Any]], list[Any]]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(self._inputs)  # first calls may allocate, compile and wait; recorded ones may not
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = run(self._inputs)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """Run the step on inputs of the recorded shapes."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return [y.clone() if isinstance(y, torch.Tensor) else y for y in self._outputs]
