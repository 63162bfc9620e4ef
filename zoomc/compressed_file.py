"""Files of compressed models: saved, and loaded without the original weights ever existing."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .compressed import CODED, MASK, PARTS, Coded, become_coded
from .errors import CompressedFileError
from .kernels.weights import Encoding
from .kernels.weights.encoding import EncodingError
from .kernels.weights.pruning import kept, mask_bits
from .targets.pages import page_out

_FORMAT = "1"

_AGAIN = "save the model again with zoomc.save_compressed"


def save_compressed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a compressed model's tensors to a safetensors file.

    Args:
        model: what :func:`compress` or :func:`load_compressed` returned.
        path: the file.

    Raises:
        CompressedFileError: if it cannot be written there.
    """
    tensors: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        dense = tensor.detach().cpu().contiguous()
        tensors[name] = dense.clone() if dense.data_ptr() in taken else dense
        taken.add(dense.data_ptr())
    layers = {name: _entry(m) for name, m in model.named_modules() if isinstance(m, Coded)}
    sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header = {"zoomc": _FORMAT, "layers": json.dumps(layers), "checksums": json.dumps(sums)}
    try:
        save_file(tensors, path, metadata=header)
    except (SafetensorError, OSError) as error:
        raise CompressedFileError(f"cannot write {str(path)!r}: {error}") from error
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # only what is on the disk can leave the memory of those who map it


def _entry(module: Coded) -> dict[str, Any]:
    """What a file says of a layer beside its tensors."""
    entry = {"shape": module.weight_shape, "dtype": str(module.weight_dtype)[6:]}
    return entry | ({"encoding": module.weight_encoding} if module.weight_encoding else {})


def load_compressed(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Give a model the weights of a compressed file, in place.

    The model may be built on the meta device, ``with torch.device("meta")``, so that its original
    weights never exist. The file is mapped, not read: the system loads and drops its pages as it
    likes, and the file must stay where it is: the model lies on the CPU then, wherever it lay, and
    may be moved. Once it is compiled, only the copy that its kernels read stays in memory.

    Args:
        model: of the class and configuration that was saved.
        path: what :func:`save_compressed` wrote.

    Returns:
        the model.

    Raises:
        CompressedFileError: the file is missing, damaged, truncated, no compressed model, or
            another model's. The model is then as it was.
    """
    tensors, layers = _read(path)
    _check_fits(model, tensors, layers, path)
    modules = dict(model.named_modules())
    for name, layer in layers.items():
        dtype = getattr(torch, layer["dtype"])
        become_coded(modules[name], layer["shape"], dtype, layer.get("encoding", ""))
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            persistent = leaf not in module._non_persistent_buffers_set
            module.register_buffer(leaf, tensor, persistent=persistent)
    return model.eval()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Every tensor of the file, and its coded layers, checked."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            if header.get("zoomc") != _FORMAT:
                raise CompressedFileError(
                    f"{path} holds no compressed model of this version of zoomc: {_AGAIN}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CompressedFileError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CompressedFileError(f"{path} is damaged or truncated ({error}): {_AGAIN}") from error
    sums = json.loads(header["checksums"])
    damaged = []
    for name, tensor in tensors.items():
        if _checksum(tensor) != sums.get(name):
            damaged.append(name)
        page_out(tensor)  # until somebody reads it
    if damaged or sums.keys() != tensors.keys():
        names = ", ".join(damaged[:3]) or "tensors are missing"
        raise CompressedFileError(f"{path} is damaged ({names}): {_AGAIN}")
    return tensors, json.loads(header["layers"])


def _check_fits(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    layers: Mapping[str, Any],
    path: str | os.PathLike[str],
) -> None:
    """Every tensor of the file has its place in the model, and the reverse."""
    modules = dict(model.named_modules())
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    wanted = dict(own)
    for name, layer in layers.items():
        module = modules.get(name)
        known = isinstance(module, Coded) or type(module) in CODED
        shape = layer["shape"]
        if not known or module is None or list(_weight_shape(module)) != shape:
            raise CompressedFileError(
                f"{path} is another model's: it has a layer {name!r} with a weight of shape"
                f" {tuple(shape)}, which this model has not"
            )
        parts = (*PARTS, MASK) if "encoding" in layer else PARTS
        if "encoding" in layer and not _consistent(name, layer, tensors):
            raise CompressedFileError(f"{path} is damaged ({name}): {_AGAIN}")
        for gone in ("weight", *PARTS, MASK):
            wanted.pop(f"{name}.{gone}", None)
        for part in parts:
            wanted[f"{name}.{part}"] = tensors.get(f"{name}.{part}", torch.empty(0))
    for name in sorted(wanted.keys() ^ tensors.keys()):
        where = "the model" if name in wanted else "the file"
        raise CompressedFileError(f"{path} is another model's: only {where} has {name!r}")
    for name, tensor in tensors.items():
        if name in own and not name.endswith((*PARTS, MASK)) and own[name].shape != tensor.shape:
            raise CompressedFileError(
                f"{path} is another model's: {name!r} is {tuple(tensor.shape)} there and"
                f" {tuple(own[name].shape)} here"
            )


def _consistent(name: str, layer: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a pruned layer's tensors have the sizes that its encoding and shape ask for."""
    try:
        encoding, shape = Encoding.parse(layer["encoding"]), tuple(layer["shape"])
        codes, mask = (tensors[f"{name}.{part}"] for part in (PARTS[0], MASK))
    except (EncodingError, KeyError):
        return False
    if encoding.pruning is None:
        return False
    count, mask_bytes = kept(shape, encoding.pruning), -(-mask_bits(shape, encoding.pruning) // 8)
    floating = encoding.kind == "keep"
    size = count if floating else -(-encoding.code_bits * count // 8)
    sizes = [len(codes), len(mask)] == [size, mask_bytes]
    return sizes and codes.is_floating_point() == floating


def _weight_shape(module: nn.Module) -> Any:
    return module.weight_shape if isinstance(module, Coded) else module.weight.shape


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
