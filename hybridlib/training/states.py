"""What a training state is made of: the form of its mappings and lists, which is JSON, and its tensors by their place.

A state is what `state_dict` methods return: mappings, lists and tuples of tensors, of `StoredTensor`s, which are read
when needed, and of plain values.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from hybridlib.method.store import StoredTensor, strides

State = dict[str, Any]
PIECE_BYTES = 1 << 21  # at a time in memory, several times over: freed pieces are not given back at once


def flat(state: Any) -> tuple[Any, dict[str, Tensor | StoredTensor]]:
    """Return the form of `state`, which is JSON, and its tensors by their place in it."""
    tensors: dict[str, Tensor | StoredTensor] = {}
    return _form(state, "", tensors), tensors


def _form(value: Any, place: str, tensors: dict[str, Tensor | StoredTensor]) -> Any:
    """Return the form of `value`, and put its tensors, by their `place`, into `tensors`.

    It is no function inside of `flat`: one that calls itself there would keep all tensors until garbage is collected.
    """
    if isinstance(value, (Tensor, StoredTensor)):
        while place in tensors:  # {"a.b": …, "a": {"b": …}}
            place += "'"
        tensors[place] = value
        if isinstance(value, Tensor) and not value.is_contiguous():  # channels_last: the state lies as its weight does
            return dict(strided=[place, list(strides(value))])
        return dict(tensor=place)
    if isinstance(value, dict):
        above = f"{place}." if place else ""
        pairs = [[_form(key, "", tensors), _form(item, f"{above}{key}", tensors)] for key, item in value.items()]
        return dict(dict=pairs)
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_form(item, f"{place}.{at}", tensors) for at, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state cannot hold a {type(value).__name__}, as {place} is")


def built(form: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return the state that has this `form`; `tensor` returns the tensor at a place."""
    if not isinstance(form, dict):
        return form
    ((kind, value),) = form.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "strided":
        found = tensor(value[0])
        return found.new_empty_strided(found.shape, value[1]).copy_(found)
    if kind == "dict":
        return {built(key, tensor): built(item, tensor) for key, item in value}
    items = [built(item, tensor) for item in value]
    return tuple(items) if kind == "tuple" else items


def copied(state: Any) -> Any:
    """Return a copy of `state` that shares no tensor with it; a `StoredTensor` becomes a tensor."""
    form, tensors = flat(state)
    return built(form, lambda name: read_if_stored(tensors[name]).detach().clone())


def read_if_stored(tensor: Tensor | StoredTensor) -> Tensor:
    """Return `tensor`, from its store if it lies in one."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def pieces(tensor: Tensor | StoredTensor) -> Iterator[Tensor]:
    """Yield `tensor` on the host, some rows of its first axis at a time: of one that lies elsewhere no more is here."""
    rows, nbytes = (tensor.shape or [0])[0], math.prod(tensor.shape) * tensor.dtype.itemsize
    if nbytes <= PIECE_BYTES:
        yield read_if_stored(tensor).detach().cpu()
        return
    step = max(1, rows * PIECE_BYTES // nbytes)
    for at in range(0, rows, step):
        some = slice(at, at + step)
        yield (tensor.read(rows=some) if isinstance(tensor, StoredTensor) else tensor[some].detach()).cpu()


def size_bytes(state: Any) -> int:
    """Return the bytes of all tensors in `state`."""
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in flat(state)[1].values())
