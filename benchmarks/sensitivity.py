"""Which layers of the built-in model's UNet make the error of 4-bit weights.

    python benchmarks/sensitivity.py --threads 1

Each layer's weight alone takes 4 bits, rounded without calibration, the rest of the UNet stays in
fp32, and its output is compared with fp32's on what fp32 feeds it while it paints unseen pictures,
over all steps. Then all layers take 4 bits but for those that cost most, more and more of them.
Layers that zoomc gives 8 bits by itself are marked.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from quality import ELSEWHERE, Call, Scenes, Unet, paint, pipeline_of, relative
from rich.console import Console
from rich.progress import track
from zoomc.kernels.weights import Encoding, decode, encode
from zoomc.passes.candidates import TINY

Noted = Sequence[tuple[Call, torch.Tensor]]


@contextmanager
def in_four_bits(layers: Sequence[Any]) -> Iterator[None]:
    """The layers' weights as 4-bit codes stand for them, for a while."""
    kept = [layer.weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data = decode(encode(weight, Encoding.parse("int4")))
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data = weight


def error(unet: Any, layers: Sequence[Any], noted: Noted) -> float:
    """Of the UNet's output with these layers in 4 bits, the mean over what was noted."""
    with in_four_bits(layers):
        return statistics.mean(relative(unet.step(*call), out) for call, out in noted)


def eight_bits_anyway(name: str) -> bool:
    """Whether zoomc gives the layer 8 bits whatever is asked: see ``zoomc.passes.encode``."""
    return name in ("conv_in", "conv_out") or "time_emb" in name


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--images", type=int, default=2)
    add("--steps", type=int, default=10)
    add("--show", type=int, default=12, help="layers in the table")
    add("--threads", type=int, default=0, help="0 = torch's own choice")
    add("--json", help="file for the figures of every layer")
    parsed = parser.parse_args(arguments)
    parsed.batch = parsed.images
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    console = Console(stderr=True)
    with torch.no_grad():
        pipeline = pipeline_of()
        model = pipeline.unet
        unet = pipeline.unet = Unet(model, lambda *call: model(*call, return_dict=False)[0])
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, kinds) and layer.weight.numel() >= TINY
        }
        unet.noting = True
        paint(pipeline, Scenes.unseen(parsed.images, ELSEWHERE), 0, parsed)
        unet.noting = False
        alone = {
            name: error(unet, [layer], unet.noted)
            for name, layer in track(layers.items(), console=console)
        }
        order = sorted(layers, key=alone.__getitem__, reverse=True)
        squares = sum(value**2 for value in alone.values())
        print("| layer | weight | error, alone | of all squares |\n|---|---|---|---|")
        for name in order[: parsed.show]:
            shape = "×".join(map(str, layers[name].weight.shape))
            mark = " (8 bits by default)" if eight_bits_anyway(name) else ""
            share = alone[name] ** 2 / squares
            print(f"| `{name}`{mark} | {shape} | {alone[name]:.1e} | {share:.1%} |")
        coded = [name for name in order if not eight_bits_anyway(name)]
        total = sum(layers[name].weight.numel() for name in layers)
        left = {}
        for kept in (0, 4, 8, 16, 32, 64):
            rest = [layers[name] for name in coded[kept:]]
            left[kept] = error(unet, rest, unet.noted)
            share = sum(layer.weight.numel() for layer in rest) / total
            print(f"without the {kept} that cost most: {left[kept]:.2e}, {share:.0%} in 4 bits")
    if parsed.json:
        Path(parsed.json).write_text(json.dumps({"alone": alone, "left": left}, indent=1))


if __name__ == "__main__":
    main()
