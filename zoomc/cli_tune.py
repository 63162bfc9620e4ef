"""``zoomc tune``: its arguments, its progress bar, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ZoomcError
from .targets.errors import TuningError

if TYPE_CHECKING:
    import torch

EXAMPLES = """examples:
  zoomc tune                                    the built-in model's UNet, on this machine
  zoomc tune path/to/pipeline --part all --dtype bfloat16 -O weights=int4 --limit 600
  zoomc tune path/to/pipeline --tracker 192.168.0.2:9190 --key board

What is found is kept in a file of JSON lines, which compilation uses from then on; the same command
goes on where it was interrupted. With --tracker, kernels are measured on a device that runs TVM's
RPC server: python -m tvm.exec.rpc_server --tracker HOST:PORT --key NAME
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes besides a model's own arguments."""
    command.add_argument("--target", choices=("cpu",), default="cpu", help="what to tune for")
    command.add_argument(
        "--store", type=Path, metavar="FILE", help="where to keep results (default: option tuning)"
    )
    command.add_argument(
        "--candidates", type=int, metavar="N", help="tiles measured of each kernel (default: 16)"
    )
    command.add_argument(
        "--limit", type=float, metavar="SECONDS", help="begin no kernel of a model after so long"
    )
    command.add_argument(
        "--tracker", metavar="HOST:PORT", help="measure on a device behind TVM's RPC tracker"
    )
    command.add_argument("--key", help="name under which that device registered")
    command.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")


def check(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense.

    Raises:
        ZoomcError: saying what to change.
    """
    if (arguments.tracker is None) != (arguments.key is None):
        raise ZoomcError("--tracker and --key go together: the tracker and the device's name")
    if arguments.candidates is not None and arguments.candidates < 2:
        raise ZoomcError("--candidates: at least 2, the planner's choice and another")


def run(
    arguments: argparse.Namespace,
    options: dict[str, str],
    models: Iterator[tuple[str, torch.nn.Module, tuple[Any, ...]]],
) -> int:
    """Tune models, named and with example inputs; returns the exit code."""
    from . import tuning as api
    from .options import Options

    if arguments.store is not None:
        options["tuning"] = str(arguments.store)
    options["target"] = arguments.target
    settings = Options.resolve(options=options)
    if settings.tuning == "off":
        raise TuningError("tuning=off keeps nothing of a tuning run; name a file with --store")
    device, close = None, _nothing
    if arguments.tracker is not None:
        from .targets.tvm.remote import RemoteDevice

        device = RemoteDevice(arguments.tracker, arguments.key, settings.isa, settings.threads)
        close = device.close
    try:
        for part, model, inputs in models:
            with _reporter(arguments.quiet) as reporter:
                result = api.tune(
                    model,
                    *inputs,
                    options=options,
                    device=device,
                    candidates=arguments.candidates,
                    seconds=arguments.limit,
                    reporter=reporter,
                )
            print(f"{part}\n{result}\nkept in {result.store.path}")
    except KeyboardInterrupt:
        print("\nInterrupted. What was found is kept; the same command goes on from there.")
        return 130
    finally:
        close()
    return 0


def _nothing() -> None:
    pass


def _reporter(quiet: bool) -> Any:
    """A context whose value tells of progress on standard error: bars on a terminal, else lines."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .targets.tuning import Entry
    from .targets.tvm.tune import Reporter, Task

    console = Console(stderr=True, quiet=quiet)
    bars = Progress(
        TextColumn("tuning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    class Terminal(Reporter):
        def __enter__(self) -> Reporter:
            bars.start()
            return self

        def __exit__(self, *_: object) -> None:
            bars.stop()

        def begin(self, total: int, done: int) -> None:
            self.task = bars.add_task("", total=total, completed=done, detail="")
            if done:
                say(f"{done} of {total} kernels are known from before")

        def candidate(self, task: Task, tried: int) -> None:
            bars.update(self.task, detail=f"{task.kernel.name}, {tried} tiles")

        def end(self, task: Task, entry: Entry) -> None:
            bars.advance(self.task)
            if not console.is_terminal:
                gain = f"{1 - entry.seconds / entry.untuned:.1%} less" if entry.plan else "kept"
                say(
                    f"{task.kernel.name}: {entry.seconds * 1e3:.3f} ms, {gain}, {entry.tried} tiles"
                )

        def failed(self, task: Task, reason: str) -> None:
            bars.advance(self.task)
            say(f"{task.kernel.name} is left as it is: {reason}")

    return Terminal()
