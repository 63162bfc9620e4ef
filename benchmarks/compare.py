"""zoomc beside its peers on one full-size model, in one run.

    python benchmarks/compare.py --model unet --dtype bf16
    python benchmarks/compare.py --model vae_decoder --peers eager,inductor

Every contender runs in a process of its own, so that memory peaks and thread pools are its own.
Each peer is paired with zoomc: both are built, then called in turn, so that a machine whose speed
drifts drifts for both; the ratio is the median over the pairs of calls. Errors are against eager
in fp32, on the input that the model was compiled for (and calibrated on) and on another, of
another step. Inductor runs with weight freezing; OpenVINO, where it is installed (its interpreter
may be another one: ``--openvino-python``), with fixed shapes and the precision as a hint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import about, print_table

WORKER = Path(__file__).with_name("contender.py")


@dataclass
class Result:
    """A contender's figures from one pairing."""

    name: str
    seconds: list[float]
    error: float | None
    error_elsewhere: float | None
    compile_seconds: float
    peak_gb: float
    weights_gb: float


class Contender:
    """A process that holds one compiled model and runs it when told to."""

    def __init__(self, python: str, name: str, arguments: argparse.Namespace, folder: str) -> None:
        command = [
            *(python, str(WORKER), name),
            *("--model", arguments.model, "--dtype", arguments.dtype),
            *("--weights", arguments.weights, "--max-error", str(arguments.max_error)),
            *("--batch", str(arguments.batch), "--size", str(arguments.size)),
            *("--threads", str(arguments.threads), "--folder", folder),
        ]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped with exit code {self._process.wait()}")
        return json.loads(line)

    def call(self) -> float:
        """Seconds of one call."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def result(self, seconds: list[float]) -> Result:
        """Figures after the calls were timed."""
        ready = self.ready
        errors = ready["error"], ready["error_elsewhere"]
        memory = ready["peak_gb"], ready["weights_gb"]
        return Result(self.name, seconds, *errors, ready["compile"], *memory)


def pair(a: Contender, b: Contender, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both, called in turn, with a pause in which idle workers stop spinning."""

    def call(contender: Contender) -> float:
        time.sleep(0.3)
        return contender.call()

    call(a)
    call(b)
    times = [(call(a), call(b)) for _ in range(rounds)]
    return [x for x, _ in times], [y for _, y in times]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model",
        default="unet",
        help="unet, unet_sd15, unet_sdxl, text_encoder, vae_encoder, vae_decoder",
    )
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument(
        "--weights", default="keep", help="zoomc's own option: keep, int8, int4, shared"
    )
    parser.add_argument("--max-error", type=float, default=0, help="zoomc's own option; 0 = any")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=0, help="latent side; 0 = the model's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--peers",
        default="eager,inductor",
        help="any of eager, inductor, openvino, openvino_int8, openvino_int4",
    )
    parser.add_argument("--openvino-python", default=sys.executable)
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # The reference of the errors, left in the folder for the others.
        Contender(sys.executable, "reference", arguments, folder).close()
        for peer in filter(None, arguments.peers.split(",")):
            python = arguments.openvino_python if peer.startswith("openvino") else sys.executable
            first = Contender(python, peer, arguments, folder)
            second = Contender(sys.executable, "zoomc", arguments, folder)
            theirs, ours = pair(first, second, arguments.rounds)
            ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
            rows.append(
                {
                    "peer": vars(first.result(theirs)),
                    "zoomc": vars(second.result(ours)),
                    "ratio": statistics.median(ratios),
                    "ratio_low": min(ratios),
                    "ratio_high": max(ratios),
                }
            )
            first.close()
            second.close()
            print_table(rows[-1:], arguments)
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        figures = {"arguments": vars(arguments), **about(), "pairs": rows}
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
