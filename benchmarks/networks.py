"""The layers of well-known networks, as sizes: what the planner and the power model work on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomc.targets.tiling import Attention, Conv, Layer, Step, conv, matmul

sys.path.insert(0, str(Path(__file__).parent))
from models import SD2_UNET


def vgg16(batch: int = 1) -> list[Conv]:
    """The 13 convolutions of VGG-16."""
    blocks = ((64, 224, 2), (128, 112, 2), (256, 56, 3), (512, 28, 3), (512, 14, 3))
    layers, before = [], 3
    for block, (channels, side, count) in enumerate(blocks, 1):
        for number in range(1, count + 1):
            name = f"conv{block}_{number}"
            layers.append(conv(name, (before, channels), (side, side), batch=batch))
            before = channels
    return layers


def alexnet(batch: int = 1) -> list[Conv]:
    """The five convolutions of AlexNet as Eyeriss ran it: 227 pixels, two groups in three."""
    return [
        conv("conv1", (3, 96), (227, 227), 11, stride=4, padding=0, batch=batch),
        conv("conv2", (96, 256), (27, 27), 5, groups=2, batch=batch),
        conv("conv3", (256, 384), (13, 13), 3, batch=batch),
        conv("conv4", (384, 384), (13, 13), 3, groups=2, batch=batch),
        conv("conv5", (384, 256), (13, 13), 3, groups=2, batch=batch),
    ]


def mobilenet(batch: int = 1) -> list[Conv]:
    """MobileNet v1, width 1: depthwise and pointwise convolutions in turn."""
    layers = [conv("conv1", (3, 32), (224, 224), stride=2, padding=(0, 1, 0, 1), batch=batch)]
    side, channels = 112, 32
    steps = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5)
    for number, (out, stride) in enumerate((*steps, (1024, 2), (1024, 1)), 1):
        padding = None if stride == 1 else (0, 1, 0, 1)
        layers.append(
            conv(
                f"dw{number}",
                (channels, channels),
                (side, side),
                stride=stride,
                padding=padding,
                groups=channels,
                batch=batch,
            )
        )
        side //= stride
        layers.append(conv(f"pw{number}", (channels, out), (side, side), 1, batch=batch))
        channels = out
    return layers


def resnet50(batch: int = 1) -> list[Conv]:
    """The 53 convolutions of ResNet-50, strides in the 3×3 ones."""
    layers = [conv("conv1", (3, 64), (224, 224), 7, stride=2, padding=3, batch=batch)]
    side, before = 56, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for block in range(blocks):
            stride = 2 if stage > 2 and block == 0 else 1
            name, size = f"conv{stage}_{block + 1}", (side, side)
            small = (side // stride,) * 2
            if block == 0:
                layers.append(
                    conv(f"{name}s", (before, 4 * width), size, 1, stride=stride, batch=batch)
                )
            layers += [
                conv(f"{name}a", (before, width), size, 1, batch=batch),
                conv(f"{name}b", (width, width), size, stride=stride, padding=1, batch=batch),
                conv(f"{name}c", (width, 4 * width), small, 1, batch=batch),
            ]
            side, before = small[0], 4 * width
    return layers


def chain(layers: Sequence[Layer]) -> list[Step]:
    """A network without branches, as steps for the planner across layers.

    A layer follows the one before it where the maps match: pooling between them breaks the chain.
    """
    steps: list[Step] = []
    for layer in layers:
        before = steps[-1].layer if steps else None
        follows = (
            isinstance(before, Conv)
            and isinstance(layer, Conv)
            and before.out_channels == layer.in_channels
            and (before.rows.outputs, before.columns.outputs)
            == (layer.rows.size, layer.columns.size)
        )
        steps.append(Step(layer, follows))
    return steps


def unet(config: Mapping[str, Any] = SD2_UNET, size: int = 0, batch: int = 1) -> list[Layer]:
    """Every product of a diffusers ``UNet2DConditionModel``, from its configuration."""
    return [step.layer for step in unet_steps(config, size, batch)]


def unet_steps(config: Mapping[str, Any] = SD2_UNET, size: int = 0, batch: int = 1) -> list[Step]:
    """The same with what follows what, products that depend on time and text alone first.

    Args:
        config: as in :mod:`models`.
        size: side of the latents; 0 takes the configuration's.
        batch: latents at once.
    """
    walk = _Unet(config, size or config["sample_size"], batch)
    steps = list(walk)
    return [*map(Step, walk.before), *steps]


class _Unet:
    """Walks a configuration the way diffusers builds the model."""

    def __init__(self, config: Mapping[str, Any], side: int, batch: int) -> None:
        self.config, self.side, self.batch = config, side, batch
        self.channels = config["block_out_channels"]
        embedding = 4 * self.channels[0]
        self.before: list[Layer] = [
            matmul("time_embedding.linear_1", batch, embedding, self.channels[0]),
            matmul("time_embedding.linear_2", batch, embedding, embedding),
        ]

    def __iter__(self) -> Iterator[Step]:
        config, channels = self.config, self.channels
        per_block = config["layers_per_block"]
        yield Step(self.conv("conv_in", config["in_channels"], channels[0]), kept=True)
        skips, before = [channels[0]], channels[0]
        for level, (kind, out) in enumerate(zip(config["down_block_types"], channels, strict=True)):
            for number in range(per_block):
                name = f"down_blocks.{level}"
                yield from self.resnet(f"{name}.resnets.{number}", before, out)
                if "CrossAttn" in kind:
                    yield from self.transformer(f"{name}.attentions.{number}", out, level)
                before = out
                skips.append(out)
            if level < len(channels) - 1:
                layer = self.conv(f"down_blocks.{level}.downsample", out, out, stride=2)
                yield Step(layer, follows=True, kept=True)
                self.side //= 2
                skips.append(out)
        last = len(channels) - 1
        yield from self.resnet("mid_block.resnets.0", before, before)
        yield from self.transformer("mid_block.attentions.0", before, last)
        yield from self.resnet("mid_block.resnets.1", before, before)
        for number, kind in enumerate(config["up_block_types"]):
            level = last - number
            out, name = channels[level], f"up_blocks.{number}"
            for part in range(per_block + 1):
                joined = before + skips.pop()
                yield from self.resnet(f"{name}.resnets.{part}", joined, out, joins=True)
                if "CrossAttn" in kind:
                    yield from self.transformer(f"{name}.attentions.{part}", out, level)
                before = out
            if level:
                self.side *= 2
                yield Step(self.conv(f"{name}.upsample", out, out))
        yield Step(self.conv("conv_out", before, config["out_channels"]), follows=True, whole=True)

    def conv(
        self,
        name: str,
        channels: int,
        out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        extra: int = 0,
    ) -> Conv:
        return conv(
            name,
            (channels, out),
            (self.side, self.side),
            kernel,
            stride=stride,
            padding=kernel // 2,
            batch=self.batch,
            extra_reads=extra,
        )

    def resnet(self, name: str, channels: int, out: int, joins: bool = False) -> Iterator[Step]:
        """Group norms need a whole map; one that joins a skip reads both from far memory."""
        elements = self.batch * self.side**2 * out
        self.before.append(matmul(f"{name}.time_emb_proj", self.batch, out, 4 * self.channels[0]))
        follows = not joins
        if channels != out:
            yield Step(self.conv(f"{name}.conv_shortcut", channels, out, 1), follows, kept=True)
            follows = False
        yield Step(self.conv(f"{name}.conv1", channels, out), follows, whole=True)
        last = self.conv(f"{name}.conv2", out, out, extra=elements)
        yield Step(last, follows=True, whole=True, kept=True)

    def transformer(self, name: str, channels: int, level: int) -> Iterator[Step]:
        """Rows are independent but for self-attention's keys and values."""
        heads = self.config["attention_head_dim"]
        heads = heads[level] if isinstance(heads, (list, tuple)) else heads
        pixels, head_dim = self.side**2, channels // heads
        rows, heads = pixels * self.batch, heads * self.batch
        text, context = 77, self.config["cross_attention_dim"]
        depth = self.config.get("transformer_layers_per_block", 1)
        depth = depth[level] if isinstance(depth, (list, tuple)) else depth
        extra = rows * channels

        def linear(part: str, n: int, k: int, residual: bool = False, gated: bool = False) -> Conv:
            return matmul(f"{name}.{part}", rows, n, k, extra_reads=residual * extra, gated=gated)

        yield Step(linear("proj_in", channels, channels), follows=True, whole=True, kept=True)
        for block in range(depth):
            at = f"transformer_blocks.{block}"
            self.before.append(
                matmul(f"{name}.{at}.attn2.to_kv", text * self.batch, 2 * channels, context)
            )
            yield Step(linear(f"{at}.attn1.to_qkv", 3 * channels, channels), follows=True)
            itself = Attention(f"{name}.{at}.attn1", heads, pixels, pixels, head_dim)
            yield Step(itself, follows=True, whole=True)
            out = linear(f"{at}.attn1.to_out", channels, channels, residual=True)
            yield Step(out, follows=True, kept=True)
            yield Step(linear(f"{at}.attn2.to_q", channels, channels), follows=True)
            cross = Attention(f"{name}.{at}.attn2", heads, pixels, text, head_dim)
            yield Step(cross, follows=True)
            out = linear(f"{at}.attn2.to_out", channels, channels, residual=True)
            yield Step(out, follows=True, kept=True)
            yield Step(linear(f"{at}.ff.proj", 8 * channels, channels, gated=True), follows=True)
            out = linear(f"{at}.ff.out", channels, 4 * channels, residual=True)
            yield Step(out, follows=True, kept=block < depth - 1)
        yield Step(linear("proj_out", channels, channels, residual=True), follows=True, kept=True)


NETWORKS = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "mobilenet": mobilenet,
    "resnet50": resnet50,
    "unet": lambda batch=1: unet(batch=batch),
}
