"""What an allocator is told, and what it says."""

import ctypes

import torch


def give_back() -> None:
    """Return freed memory to the system: CUDA's cache, and glibc's heap, which otherwise stays resident."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another C library: nothing to trim


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an allocator raised it: CUDA's has a type of its own, the CPU's a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
