"""A recorded step is safe to replay: with a stand-in for CUDA graphs, where there is no GPU."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

from zoomc.kernels.triton.gpu import GPUS
from zoomc.targets.constants import Constants
from zoomc.targets.triton import executable as module
from zoomc.targets.triton.executable import GpuExecutable
from zoomc.targets.triton.plan import make_plan, schedule
from zoomc.targets.triton.replay import Replay

from zoomc import passes
from zoomc.capture import capture


class Graph:
    """What a CUDA graph does: repeats what was recorded, on the memory it was recorded with."""

    recording: Graph | None = None

    def __init__(self) -> None:
        self.work: list[Any] = []

    def replay(self) -> None:
        for again in self.work:
            again()


@contextlib.contextmanager
def recorded(graph: Graph, **_: Any):
    """torch's own leaves its stream the current one where the recording fails."""
    before = Stream.current
    Stream.current, Graph.recording = Stream("graph"), graph
    try:
        yield
    finally:
        Graph.recording = None
    Stream.current = before


class Stream:
    """Notes what it waits for."""

    current: Stream

    def __init__(self, name: str = "side") -> None:
        self.name = name
        self.waits: list[Any] = []

    def wait_stream(self, _: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        self.waits.append(event.stream)


class Event:
    stream: Stream | None = None

    def record(self) -> None:
        self.stream = Stream.current


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """Graphs, streams and waiting, in place of CUDA's."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recorded)
    monkeypatch.setattr(Stream, "current", Stream("the caller's"), raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream.current)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda x: setattr(Stream, "current", x))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def step(run):
    """A step as a GPU runs it: recorded, its work is done again into the same results."""

    def recording(inputs):
        results = run(inputs)
        graph = Graph.recording
        if graph is not None:

            def again() -> None:
                for old, new in zip(results, run(inputs), strict=True):
                    old.copy_(new)

            graph.work.append(again)
        return results

    return recording


def test_inputs_are_copied_in_and_results_out():
    replay = Replay(
        step(lambda inputs: [inputs[0] * 2, inputs[0] + inputs[1]]), [torch.ones(3)] * 2
    )
    a, b = torch.randn(3), torch.randn(3)
    first = replay([a, b])
    kept = [y.clone() for y in first]
    second = replay([b, b])
    for got, wanted in zip(second, (b * 2, b + b), strict=True):
        assert torch.equal(got, wanted)
    for got, wanted in zip(first, kept, strict=True):
        assert torch.equal(got, wanted), "a result changed under its owner's hands"
    a.zero_()
    assert torch.equal(first[0], kept[0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(4, 6)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x)[0] * self.layer.weight.sum(0).cos()


def compiled(graph: bool = True, run=None, model: nn.Module | None = None):
    """An executable of leftovers alone, which run on a CPU as they are, and its model."""
    model, x = model or Net(), torch.randn(2, 6)
    program = capture(model, [x], {})
    passes.run(program.graph)
    plan = make_plan(program.graph, GPUS["sm_90"])
    assert not plan.kernels
    steps = schedule(program.graph, plan)
    weights = dict(program.graph.named_parameters()) | dict(program.graph.named_buffers())
    executable = GpuExecutable(
        program.graph, plan, steps, Constants(weights.get), GPUS["sm_90"], graph=graph,
        interpreted=False,
    )  # fmt: skip
    executable.bind()
    executable.own_run = executable._run
    executable._run = step(run or executable._run)  # type: ignore[method-assign]
    return executable, model


def test_replays_follow_changed_inputs_and_weights():
    executable, model = compiled()
    for _ in range(3):
        x = torch.randn(2, 6)
        torch.testing.assert_close(executable(x)[0], model(x))
    recording = executable._replay
    assert isinstance(recording, Replay)
    model.layer.weight.mul_(0.5)
    assert not torch.allclose(executable(x)[0], model(x)), "weights are compiled in until bound"
    executable.bind()
    assert executable._replay is None, "a recording of other weights must not survive"
    torch.testing.assert_close(executable(x)[0], model(x))
    assert executable._replay is not recording


def test_it_can_be_turned_off():
    executable, model = compiled(graph=False)
    x = torch.randn(2, 6)
    torch.testing.assert_close(executable(x)[0], model(x))
    assert executable._replay is None
    executable.describe()
    assert executable.report["cuda_graph"] is False


def test_inference_mode_and_ordinary_calls_mix():
    executable, model = compiled()
    x = torch.randn(2, 6)
    with torch.inference_mode():
        torch.testing.assert_close(executable(x)[0], model(x))
    torch.testing.assert_close(executable(2 * x)[0], model(2 * x))


def test_a_step_that_cannot_be_recorded_runs_launch_by_launch(monkeypatch):
    """What is told is what stopped it, not that a stopped recording cannot be ended."""

    @contextlib.contextmanager
    def ending_badly(graph, **options):
        with recorded(graph, **options):
            try:
                yield
            except RuntimeError:
                raise RuntimeError("operation failed due to a previous error during capture")

    def run(inputs):
        if Graph.recording:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return own(inputs)

    monkeypatch.setattr(torch.cuda, "graph", ending_badly)
    executable, model = compiled(run=run)
    own = executable.own_run
    x, before = torch.randn(2, 6), Stream.current
    for _ in range(2):
        torch.testing.assert_close(executable(x)[0], model(x))
    said = executable.report["cuda_graph"]
    assert said == "not recorded: operation not permitted when stream is capturing"
    assert Stream.current is before, "calls would go on in the recording's stream"


def test_nothing_is_recorded_inside_a_callers_recording(monkeypatch):
    executable, model = compiled()
    x = torch.randn(2, 6)
    monkeypatch.setattr(module, "recording", lambda: True)
    torch.testing.assert_close(executable(x)[0], model(x))
    assert executable._replay is None
    monkeypatch.setattr(module, "recording", lambda: False)
    torch.testing.assert_close(executable(x)[0], model(x))
    recording = executable._replay
    assert recording is not None
    monkeypatch.setattr(module, "recording", lambda: True)
    monkeypatch.setattr(recording, "_graph", None)
    torch.testing.assert_close(executable(x)[0], model(x))


def test_a_call_on_another_stream_waits_for_the_one_before():
    executable, _ = compiled()
    first = Stream.current
    executable(torch.randn(2, 6))
    Stream.current = second = Stream("another")
    executable(torch.randn(2, 6))
    assert second.waits == [first]
    Stream.current = third = Stream("a third")
    executable.bind()
    assert third.waits == [second], "memory of weights in use must not be had by others"


def test_no_garbage_is_collected_while_recording():
    """It may end another graph, which may wait for the GPU."""
    seen = []

    def run(inputs):
        seen.append(gc.isenabled())
        return [inputs[0] * 2]

    Replay(run, [torch.ones(3)])
    assert seen == [True, False] and gc.isenabled()
    gc.disable()
    try:
        Replay(run, [torch.ones(3)])
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_results_memory_is_no_constants():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4), requires_grad=False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.sort(x)[0], self.weight.sin()

    executable, model = compiled(graph=False, model=Constant())
    x = torch.randn(4)
    executable(x)[1].zero_()
    torch.testing.assert_close(executable(x)[1], model(x)[1])


def test_launches_go_to_the_gpu_that_inputs_lie_on(monkeypatch):
    from torch._subclasses import FakeTensorMode
    from zoomc.targets.tensors import on_device

    with FakeTensorMode():
        there = torch.empty(2, device="cuda:1")
    chosen = []
    monkeypatch.setattr(
        torch.cuda, "device", lambda d: chosen.append(d) or contextlib.nullcontext()
    )
    with on_device([3, torch.ones(1), there]):
        pass
    with on_device([torch.ones(1)]):
        pass
    assert chosen == [torch.device("cuda:1")]


def test_a_call_is_timed_behind_an_idle_gpu(monkeypatch):
    """So that what is timed is the kernel and not how long Python takes to ask for it."""
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def synchronize(self):
            pass

        def elapsed_time(self, _):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("idle"))
    assert module.elapsed(lambda: order.append("call"), interpreted=False) == 2e-3
    assert order == ["idle", "event", "call", "event"]
