"""A safetensors file of a state, written tensor by tensor and with a checksum: free of code when loaded, never whole in memory.

The library's own writer takes all tensors in memory at once, which would double a run's peak at every checkpoint.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybridlib.method.offload import StoredTensor

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL", torch.complex64: "C64"}  # fmt: skip
NO_SHA256 = "0" * 64  # stands in the file while its checksum is taken
HEADER_BYTES = 100_000_000  # no sound file has a longer one: safetensors' own limit
PIECE_BYTES = 1 << 24


class Damaged(ValueError):
    """A file that is not as it was written; the message names it."""


def flat(state: Any) -> tuple[Any, dict[str, Tensor | StoredTensor]]:
    """Return a state's form, which is JSON, and its tensors by their place in it."""
    tensors: dict[str, Tensor | StoredTensor] = {}

    def form(value: Any, place: str) -> Any:
        if isinstance(value, (Tensor, StoredTensor)):
            while place in tensors:  # {"a.b": …, "a": {"b": …}}
                place += "'"
            tensors[place] = value
            return dict(tensor=place)
        if isinstance(value, dict):
            return dict(
                dict=[
                    [form(key, ""), form(item, f"{place}.{key}" if place else str(key))] for key, item in value.items()
                ]
            )
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [form(item, f"{place}.{at}") for at, item in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a state cannot hold a {type(value).__name__}, as {place} is")

    return form(state, ""), tensors


def built(form: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return the state of a form, given what reads its tensors."""
    if not isinstance(form, dict):
        return form
    ((kind, value),) = form.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "dict":
        return {built(key, tensor): built(item, tensor) for key, item in value}
    items = [built(item, tensor) for item in value]
    return tuple(items) if kind == "tuple" else items


def copied(state: Any) -> Any:
    """Return a state that shares no tensor with this one; what is kept elsewhere is read."""
    form, tensors = flat(state)
    return built(form, lambda name: read_if_stored(tensors[name]).detach().clone())


def read_if_stored(tensor: Tensor | StoredTensor) -> Tensor:
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def size_bytes(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in flat(state)[1].values())


def write(path: Path, state: Any) -> None:
    """Write a state; a tensor that is kept elsewhere is read when its turn comes. Raise `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form, tensors = flat(state)
    header: dict[str, Any] = {"__metadata__": dict(sha256=NO_SHA256, form=json.dumps(form))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = dict(dtype=DTYPES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    with path.open("wb", buffering=0) as out:
        digest = hashlib.sha256()
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            out.write(piece)
        for tensor in tensors.values():
            whole = read_if_stored(tensor).detach().cpu()
            data = memoryview(whole.contiguous().view(-1).view(torch.uint8).numpy())
            digest.update(data)
            while data:  # one call writes no more than 2 GiB
                data = data[out.write(data) :]
        out.seek(8 + text.index(NO_SHA256.encode()))
        out.write(digest.hexdigest().encode())


def read(path: Path) -> Any:
    """Return the state, its tensors on the host. Raise `Damaged` for a file that its checksum does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("sha256") != sha256(path, about.get("sha256", "").encode()):
                raise Damaged(f"{path} is damaged: its content does not match its checksum")
            return built(json.loads(about["form"]), file.get_tensor)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{path} is damaged: {error}") from None


def sha256(path: Path, known: bytes) -> str:
    """Return the checksum of a file's content with `known`, the checksum that stands in its header, blotted out."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), HEADER_BYTES))
        digest.update(start + (header.replace(known, NO_SHA256.encode(), 1) if known else header))
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
