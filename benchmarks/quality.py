"""What compressing the UNet does to the built-in model's pictures.

    python benchmarks/quality.py
    python benchmarks/quality.py --images 8 --seeds 1 --ways int8,int4
    python benchmarks/quality.py --peers openvino_int8,openvino_int4 --openvino-python PYTHON

Unseen pictures of the drawn set lose their border and are painted again from their captions, with
the same noise, by the pipeline in fp32 eager and with its UNet compressed in each way (the names
ending in ``-all`` compress the text encoder and the VAE too). PSNR and SSIM are of the painted
part alone, against fp32. ``other-noise`` is fp32 with noise of another seed: a different picture
of the same scene, the floor of what the figures can mean. The UNet's own error is that of its
output, step by step, on what fp32 feeds it; there it is timed, too, in turn with fp32 eager, so
that what else the machine does falls on both. Every peer runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import about
from masked import psnr, side_by_side, ssim
from peer import Peer
from PIL import Image
from rich.console import Console

from zoomc.demo import GUIDANCE, demo_pipeline
from zoomc.record import collect
from zoomc.training.data import VALIDATION_SEED_OFFSET
from zoomc.training.scenes import KEEPS, draw

SIZE = 64

#: Seeds are offset by this where noise must be another one, or pictures are for calibration.
ELSEWHERE = 1_000_000

#: Ways to run the pipeline: zoomc's options for the UNet; None is eager.
WAYS: dict[str, dict[str, Any] | None] = {
    "other-noise": None,
    "eager-bf16": None,
    "keep": {"weights": "keep"},
    "bf16": {"weights": "keep", "dtype": "bf16"},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
    "int4-plain": {"weights": "int4", "calibrate": False},
    "shared": {"weights": "shared"},
    "int4+2:4": {"weights": "int4+2:4"},
    "int4+50%": {"weights": "int4+50%"},
    "keep+2:4": {"weights": "keep+2:4"},
    "keep+50%": {"weights": "keep+50%"},
    **{
        f"{weights}-error-{error:g}": {"weights": weights, "max_error": error}
        for weights, error in (
            *(("int4", 0.03), ("int4", 0.02), ("int4", 0.01)),
            *(("int4+50%", 0.1), ("int4+50%", 0.05)),
        )
    },
    "int8-all": {"weights": "int8"},
    "int4-all": {"weights": "int4"},
}

Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Unet(torch.nn.Module):
    """Stands where the pipeline's UNet stood, and notes some of its calls.

    Args:
        unet: whose configuration the pipeline asks for.
        step: computes the output from sample, time and text.
    """

    def __init__(self, unet: Any, step: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, torch.float32, torch.device("cpu")
        self.step = step
        self.noting = False
        self.noted: list[tuple[Call, torch.Tensor]] = []

    def forward(
        self, sample: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor]:
        """As ``UNet2DConditionModel`` without a dictionary."""
        out = self.step(sample, t, encoder_hidden_states)
        if self.noting:
            self.noted.append(((sample, t, encoder_hidden_states), out))
        return (out,)


@dataclass
class Scenes:
    """What is painted: pictures, their captions, and the part that is lost.

    Attributes:
        images: (N, H, W, 3) uint8.
        captions: N sentences.
        masks: (N, H, W) bool, true where to paint.
    """

    images: np.ndarray
    captions: list[str]
    masks: np.ndarray

    @classmethod
    def unseen(cls, count: int, first: int = 0) -> Scenes:
        """Pictures the model was not trained on, each keeping the window of a zoom."""
        drawn = [draw(VALIDATION_SEED_OFFSET, first + i, SIZE) for i in range(count)]
        masks = np.ones((count, SIZE, SIZE), bool)
        for i, mask in enumerate(masks):
            border = round(SIZE * (1 - KEEPS[i % len(KEEPS)]) / 2)
            mask[border:-border, border:-border] = False
        return cls(np.stack([p.image for p in drawn]), [p.caption for p in drawn], masks)

    def batches(self, size: int) -> Iterator[slice]:
        """Parts of equal size, so that each way compiles once."""
        return (slice(i, i + size) for i in range(0, len(self.captions), size))


def paint(
    pipeline: Any,
    scenes: Scenes,
    seed: int,
    arguments: argparse.Namespace,
    progress: Callable[[str], None] = lambda _: None,
) -> torch.Tensor:
    """The pictures as the model decodes them, (N, H, W, 3) fp32 in 0 … 1."""
    painted = []
    for part in scenes.batches(arguments.batch):
        result = pipeline(
            prompt=scenes.captions[part],
            image=[Image.fromarray(image) for image in scenes.images[part]],
            mask_image=[Image.fromarray(mask) for mask in scenes.masks[part]],
            height=SIZE,
            width=SIZE,
            strength=1.0,
            num_inference_steps=arguments.steps,
            guidance_scale=GUIDANCE,
            generator=[
                torch.Generator().manual_seed(seed * len(scenes.captions) + i)
                for i in range(part.start, part.stop)
            ],
            output_type="np",
        )
        painted.append(torch.from_numpy(result.images))
        progress(f"{part.stop} of {len(scenes.captions)} pictures, seed {seed}")
    return torch.cat(painted)


@dataclass
class Way:
    """A way to run the UNet, ready to paint.

    Attributes:
        pipeline: with the UNet in place.
        weight_bytes: of the UNet's weights as they are kept; known after the first call.
        extra: whatever else is worth knowing, after the first call.
    """

    pipeline: Any
    weight_bytes: Callable[[], int]
    extra: Callable[[], dict[str, Any]] = field(default=lambda: {})
    close: Callable[[], None] = lambda: None


def pipeline_of() -> Any:
    pipeline = demo_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def eager(dtype: torch.dtype = torch.float32) -> Way:
    """torch as it is."""
    pipeline = pipeline_of()
    unet = torch.nn.Module.to(pipeline.unet, dtype)
    pipeline.unet = Unet(
        unet, lambda x, t, text: unet(x.to(dtype), t, text.to(dtype), return_dict=False)[0].float()
    )
    return Way(pipeline, lambda: sum(p.nbytes for p in unet.parameters()))


def compiled(options: dict[str, Any], everything: bool, records: list[Any]) -> Way:
    """zoomc under the UNet, or under all four models."""
    pipeline = pipeline_of()
    unet = pipeline.unet
    settings: dict[str, Any] = {"backend": "zoomc", "options": options | {"fallback": "error"}}
    if everything:
        pipeline.text_encoder.compile(**settings)
        for name in ("_encode", "_decode"):
            method = torch.compile(getattr(pipeline.vae, name), **settings)
            setattr(pipeline.vae, name, method)
    run = torch.compile(unet, **settings)
    pipeline.unet = Unet(unet, lambda x, t, text: run(x, t, text, return_dict=False)[0])

    def extra() -> dict[str, Any]:
        from zoomc.report import Report

        layers: Counter[str] = Counter()
        found: dict[str, Any] = {"compile_seconds": 0.0}
        for graph in Report(records).to_dict()["graphs"]:
            found["compile_seconds"] += sum(graph["seconds"].values())
            layers.update(layer["encoding"] for layer in graph["layers"])
            if graph["encoding_error"] is not None:
                found["encoding_error"] = graph["encoding_error"]
                found["layer_errors"] = [
                    {key: layer[key] for key in ("weight", "shape", "encoding", "errors")}
                    for layer in graph["layers"]
                ]
        return found | {"layers": dict(layers)}

    def weight_bytes() -> int:
        return sum(r.executable.report["weight_bytes"] for r in records)

    return Way(pipeline, weight_bytes, extra)


def peer(name: str, arguments: argparse.Namespace, calls: list[Call], folder: str) -> Way:
    """Another compiler's UNet, in a process of its own."""
    pipeline = pipeline_of()
    python = arguments.openvino_python if name.startswith("openvino") else arguments.torchao_python
    process = Peer(python, name, calls, folder)
    pipeline.unet = Unet(pipeline.unet, process)
    ready = process.ready
    return Way(
        pipeline,
        lambda: ready["weight_bytes"],
        lambda: {"compile_seconds": ready["compile"], "note": ready["note"]},
        process.close,
    )


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def beside(way: Way, original: Way, noted: list[tuple[Call, torch.Tensor]]) -> dict[str, Any]:
    """The UNet's error on each of fp32's calls, and its seconds and fp32's, in turn."""
    errors, seconds = [], []
    step, wanted = way.pipeline.unet.step, original.pipeline.unet.step
    for call, out in noted:
        start = time.perf_counter()
        wanted(*call)
        middle = time.perf_counter()
        errors.append(relative(step(*call), out))
        seconds.append((time.perf_counter() - middle, middle - start))
    return {"unet_error": errors, "seconds": seconds}


def figures(
    way: Way, pictures: torch.Tensor, reference: torch.Tensor, masks: torch.Tensor
) -> dict[str, Any]:
    """What one way did to the pictures."""
    return {
        "psnr": [round(v, 3) for v in psnr(pictures, reference, masks).tolist()],
        "ssim": [round(v, 5) for v in ssim(pictures, reference, masks).tolist()],
        "weight_bytes": way.weight_bytes(),
        **way.extra(),
    }


TABLE = ("PSNR median", "worst", "SSIM median", "worst", "UNet error", "MB", "ms a step", "× fp32")


def line(name: str, row: dict[str, Any]) -> str:
    """One way as a row of a Markdown table."""
    error, seconds = row.get("unet_error"), row.get("seconds")
    shown = f"{statistics.mean(error):.1e} ({min(error):.1e}–{max(error):.1e})" if error else ""
    ms = f"{statistics.median(own for own, _ in seconds) * 1e3:.0f}" if seconds else ""
    times = f"{statistics.median(fp32 / own for own, fp32 in seconds):.2f}" if seconds else ""
    return (
        f"| {name} | {statistics.median(row['psnr']):.1f} | {min(row['psnr']):.1f}"
        f" | {statistics.median(row['ssim']):.3f} | {min(row['ssim']):.3f} | {shown}"
        f" | {row['weight_bytes'] / 1e6:.2f} | {ms} | {times} |"
    )


def measure(arguments: argparse.Namespace, console: Console) -> None:
    """Paint in every way asked for; figures are written as they come."""
    scenes = Scenes.unseen(arguments.images)
    masks = torch.from_numpy(np.tile(scenes.masks, (arguments.seeds, 1, 1)))
    rows: dict[str, dict[str, Any]] = {}
    shown: list[tuple[str, torch.Tensor]] = []
    out = {"arguments": vars(arguments), **about(), "ways": rows}

    def every_seed(way: Way, name: str, offset: int = 0, note: bool = False) -> torch.Tensor:
        with console.status(name) as status:

            def progress(text: str) -> None:
                way.pipeline.unet.noting = False  # the first batch is enough
                status.update(f"{name}: {text}")

            way.pipeline.unet.noting = note
            seeds = range(offset, offset + arguments.seeds)
            return torch.cat([paint(way.pipeline, scenes, s, arguments, progress) for s in seeds])

    def add(name: str, way: Way, pictures: torch.Tensor, steps: dict[str, Any]) -> None:
        rows[name] = figures(way, pictures, reference, masks) | steps
        print(line(name, rows[name]), flush=True)
        shown.append((name, pictures[: arguments.show]))
        for path, write in (
            (arguments.json, lambda p: p.write_text(json.dumps(out, indent=1))),
            (arguments.picture, lambda p: side_by_side(shown).save(p)),
        ):
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write(Path(path))

    original = eager()
    hidden = torch.from_numpy(scenes.images / 255.0 * ~scenes.masks[..., None])
    shown.append(("kept", hidden[: arguments.show]))
    print(f"| | {' | '.join(TABLE)} |\n|{'---|' * (len(TABLE) + 1)}")
    reference = every_seed(original, "fp32", note=True)
    noted = original.pipeline.unet.noted
    add("fp32", original, reference, {})
    calls = calibration(original, arguments) if arguments.peers else []
    for name in [*arguments.ways.split(","), *arguments.peers.split(",")]:
        if not name:
            continue
        gc.collect()
        torch._dynamo.reset()
        if name == "other-noise":
            add(name, original, every_seed(original, name, ELSEWHERE), {})
            continue
        with collect() as records, tempfile.TemporaryDirectory() as folder:
            if name == "eager-bf16":
                way = eager(torch.bfloat16)
            elif name in WAYS:
                way = compiled(WAYS[name] or {}, name.endswith("-all"), records)
            else:
                way = peer(name, arguments, calls, folder)
            pictures = every_seed(way, name)
            add(name, way, pictures, beside(way, original, noted))
            way.close()


def calibration(way: Way, arguments: argparse.Namespace) -> list[Call]:
    """What the UNet is called with, step by step, on pictures that are not measured."""
    unet = way.pipeline.unet
    before, unet.noted, unet.noting = unet.noted, [], True
    paint(way.pipeline, Scenes.unseen(arguments.batch, ELSEWHERE), ELSEWHERE, arguments)
    calls = [call for call, _ in unet.noted]
    unet.noted, unet.noting = before, False
    return calls


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--images", type=int, default=64)
    add("--seeds", type=int, default=2)
    add("--batch", type=int, default=16, help="pictures painted at once; divides --images")
    add("--steps", type=int, default=20)
    add("--ways", default=",".join(WAYS), help="any of: %(default)s")
    add("--peers", default="", help="any of openvino, openvino_int8, openvino_int4, torchao_int4")
    add("--openvino-python", default=sys.executable)
    add("--torchao-python", default=sys.executable)
    add("--threads", type=int, default=0, help="0 = torch's own choice")
    add("--show", type=int, default=6, help="pictures in the side-by-side picture")
    add("--picture", help="PNG file for pictures side by side")
    add("--json", help="file for the figures, of every picture")
    parsed = parser.parse_args(arguments)
    parsed.batch = min(parsed.batch, parsed.images)
    unknown = set(filter(None, parsed.ways.split(","))) - set(WAYS)
    if unknown:
        parser.error(f"no way is called {', '.join(sorted(unknown))}; known: {', '.join(WAYS)}")
    if parsed.images % parsed.batch:
        parser.error(f"--batch {parsed.batch} does not divide --images {parsed.images}")
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    with torch.no_grad():
        measure(parsed, Console(stderr=True))


if __name__ == "__main__":
    main()
