"""A model whose weights are codes, in place of the original ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import nn

from .kernels.weights import Encoding, encode, pack, prune
from .kernels.weights import coded as coded_weight
from .kernels.weights.op import DECODE, RESTORE

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object

KEEP = Encoding("keep")

#: Weights with fewer elements than this are kept: their scales would outweigh what codes save.
TINY = 1024

#: The buffers that a coded layer holds its weight in.
PARTS = ("weight_codes", "weight_table", "weight_groups", "weight_scale")

#: The buffer that says of a pruned layer which weights its codes are those of.
MASK = "weight_mask"


class Coded(_Module):
    """A layer that holds its weight in codes; eager torch decodes it on every call.

    Of a pruned weight it holds those that were kept, and a bit for each, or each block, that says
    so; of one that was only pruned, the numbers themselves.
    """

    weight_codes: torch.Tensor
    weight_shape: list[int]
    weight_dtype: torch.dtype
    #: The spelling of a pruned layer's encoding; else empty.
    weight_encoding: str = ""

    @property
    def weight(self) -> torch.Tensor:
        """The weight the codes stand for, in the type the layer had it in."""
        if self.weight_codes.is_floating_point():
            parts = self.weight_codes, self.weight_mask
            return RESTORE(*parts, self.weight_shape, self.weight_encoding)  # type: ignore[no-any-return]
        pruned = (self.weight_mask, self.weight_encoding) if self.weight_encoding else ()
        return DECODE(  # type: ignore[no-any-return]
            self.weight_codes,
            self.weight_table,
            self.weight_groups,
            self.weight_scale,
            self.weight_shape,
            *pruned,
        ).to(self.weight_dtype)


class CodedLinear(Coded, nn.Linear):  # type: ignore[override]
    """A linear layer with a coded weight."""


class CodedConv2d(Coded, nn.Conv2d):  # type: ignore[override]
    """A convolution with a coded weight."""


#: What has a weight to encode.
Layer = nn.Linear | nn.Conv2d

#: What a layer becomes.
CODED: dict[type[nn.Module], type[Coded]] = {nn.Linear: CodedLinear, nn.Conv2d: CodedConv2d}


def compress(
    model: nn.Module,
    *inputs: Any,
    weights: str | Mapping[str, str] = "int4",
    calibrate: bool = True,
    **kwargs: Any,
) -> nn.Module:
    """Replace the weights of a model's linears and convolutions by codes, in place.

    The original weights are dropped layer by layer. The model then runs in eager, slowly, and
    compiles as before: ``torch.compile(model, backend="zoomc")`` computes with the codes.

    Args:
        model: in eval mode, on the CPU.
        *inputs: example inputs; one run with them finds the first and last convolution and the
            layers that see one row a picture, which take int8, and what codes are chosen by.
            Without any, order of definition tells the ends.
        weights: an encoding for every layer, as the option ``weights`` spells it, or one by name
            of weight (``{"mid.conv.weight": "int8"}``); layers not named are kept. ``keep+2:4``
            and the like leave pruned layers what is not zero, and a mask.
        calibrate: choose codes of a table by what the layers read in that run.
        **kwargs: example inputs by name.

    Returns:
        the model.

    Raises:
        EncodingError: a spelling that names no encoding.
        NonFiniteWeightError: a weight holds NaN or infinity; layers before it are compressed.
    """
    layers = {name: module for name, module in model.named_modules() if _encodable(module)}
    seen = _watch(model, layers, calibrate, inputs, kwargs) if inputs or kwargs else None
    if isinstance(weights, str):
        chosen = _choose(layers, Encoding.parse(weights), seen)
    else:
        by_name = {k.removesuffix(".weight"): Encoding.parse(v) for k, v in weights.items()}
        chosen = {name: by_name[name] for name in layers if name in by_name}
    chosen = {name: encoding for name, encoding in chosen.items() if encoding != KEEP}
    for family in _families(layers, chosen):
        grams = [seen.grams.pop(name) for name in family if name in seen.grams] if seen else []
        _encode_family([layers[name] for name in family], chosen[family[0]], grams)
    return model


@dataclass
class _Seen:
    """What one run showed.

    Attributes:
        order: layers as they ran.
        few: linears that see a row a picture.
        grams: second moments of what layers read, where asked for and finite.
    """

    order: list[str]
    few: set[str]
    grams: dict[str, torch.Tensor]


def _encodable(module: nn.Module) -> TypeGuard[Layer]:
    return type(module) in CODED and cast("Layer", module).weight.is_floating_point()


def _choose(
    layers: Mapping[str, Layer], asked: Encoding, seen: _Seen | None
) -> dict[str, Encoding]:
    """An encoding for every layer that takes one."""
    order, few = (seen.order, seen.few) if seen else (list(layers), set())
    convs = [name for name in order if isinstance(layers[name], nn.Conv2d)]
    gentle = few | {*convs[:1], *convs[-1:]}
    chosen = {}
    for name, module in layers.items():
        shape = module.weight.shape
        if torch.Size(shape).numel() < TINY or module.weight.dtype is torch.float64:
            continue
        milder = KEEP if asked.kind == "keep" else Encoding("int8")
        chosen[name] = milder if name in gentle else asked
    return chosen


def _watch(
    model: nn.Module,
    layers: Mapping[str, Layer],
    calibrate: bool,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> _Seen:
    """Run the model and look at its layers."""
    from .passes.calibrate import gram
    from .passes.candidates import row_a_picture

    order: dict[str, None] = {}
    pictures: set[int] = set()
    read: dict[str, torch.Size] = {}
    grams: dict[str, torch.Tensor] = {}

    def seen(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            order[name] = None
            if isinstance(module, nn.Linear):
                read[name] = args[0].shape
            else:
                pictures.add(args[0].shape[0])
            if calibrate and getattr(module, "groups", 1) == 1:
                channels_last = args[0] if isinstance(module, nn.Linear) else args[0].movedim(1, -1)
                moments = gram(channels_last)
                if torch.isfinite(moments).all():
                    grams[name] = moments

        return hook

    handles = [m.register_forward_pre_hook(seen(name)) for name, m in layers.items()]
    try:
        with torch.no_grad():
            model(*inputs, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    few = {n for n, size in read.items() if row_a_picture(size, pictures)}
    return _Seen(list(order), few, grams)


def _families(layers: Mapping[str, Layer], chosen: Mapping[str, Encoding]) -> list[list[str]]:
    """Layers that share a table of values: siblings of one input width, as queries and keys.

    The compiler multiplies by such weights as one, which takes one table for all.
    """
    families: dict[Any, list[str]] = {}
    for name, encoding in chosen.items():
        weight = layers[name].weight
        key: Any = name
        if encoding.table and isinstance(layers[name], nn.Linear):
            key = name.rpartition(".")[0], encoding, weight.shape[1], weight.dtype
        families.setdefault(key, []).append(name)
    return list(families.values())


def _encode_family(family: list[Layer], encoding: Encoding, grams: list[torch.Tensor]) -> None:
    """Encode the weights of some layers through one table, and drop them.

    ``grams`` are the moments of what was seen of the layers. Siblings mostly read the same; those
    that do not are encoded by the mean.
    """
    gram = torch.stack(grams).mean(dim=0) if grams and encoding.table else None
    pruning = encoding.pruning
    with torch.no_grad():
        weights = [module.weight.detach() for module in family]
        if pruning:  # each by itself, so that each keeps the same share, and whole blocks
            weights = [prune(weight, pruning) for weight in weights]
        weight = torch.cat(weights) if len(family) > 1 else weights[0]
        if encoding.kind == "keep":
            coded = coded_weight.Coded(weight, None, None, torch.empty(0, device=weight.device))
        else:
            coded = encode(weight, encoding, gram=gram, pruned=pruning is not None)
    sizes = [len(module.weight) for module in family]
    nothing = torch.empty(0, dtype=torch.int8, device=weight.device)
    groups = nothing if coded.group_scale is None else coded.group_scale
    start = 0
    for module, size in zip(family, sizes, strict=True):
        rows = slice(start, start + size)
        start += size
        weight = module.weight
        codes, mask = coded.codes[rows], None
        if pruning:
            packed, mask = coded_weight.pack_pruned(codes, coded.table, encoding.code_bits, pruning)
        else:
            packed = pack(codes, encoding.code_bits)
        become_coded(module, list(weight.shape), weight.dtype, str(encoding) if pruning else "")
        parts = (
            packed,
            nothing if coded.table is None else coded.table,
            groups if coded.group_scale is None else groups[rows],
            coded.channel_scale[rows].view(torch.int32),
        )
        for name, tensor in zip(PARTS, parts, strict=True):
            module.register_buffer(name, tensor.clone())
        if mask is not None:
            module.register_buffer(MASK, mask)


def become_coded(
    module: nn.Module, shape: list[int], dtype: torch.dtype, encoding: str = ""
) -> None:
    """Turn a layer into one without a weight of its own; ``encoding`` is that of a pruned one."""
    if not isinstance(module, Coded):
        del module._parameters["weight"]
        module.__class__ = CODED[type(module)]
    module._buffers.pop(MASK, None)
    module.weight_shape = shape  # type: ignore[assignment]
    module.weight_dtype = dtype  # type: ignore[assignment]
    module.weight_encoding = encoding  # type: ignore[assignment]
