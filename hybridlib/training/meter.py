"""What the system measures and asks for: time and peak memory of a step, on a GPU or a CPU; freed memory; SIGTERM."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch

MB = 1e6


class Meter:
    """A stopwatch that waits for `device`, and the peak memory since the last `enter_phase`.

    Memory on a GPU is what the CUDA allocator has handed out. On a CPU it is resident memory above `floor_mb`, what the
    process held before there was a model: interpreter, libraries, corpus. Without Linux's /proc it is 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.floor_mb = 0.0 if device.type == "cuda" else _status_mb("VmRSS")
        self._started_s = 0.0

    def start(self) -> None:
        """Start the stopwatch."""
        self._synchronise()
        self._started_s = time.perf_counter()

    def stop(self) -> float:
        """Return the seconds since `start`, with the device's outstanding work."""
        self._synchronise()
        return time.perf_counter() - self._started_s

    def enter_phase(self) -> None:
        """Count peak memory anew from here."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            except OSError:
                pass  # the peak then counts from the process's start: too high, never too low

    def peak_mb(self) -> float:
        """Return the peak memory in MB since the last `enter_phase`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        return max(0.0, _status_mb("VmHWM") - self.floor_mb)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _status_mb(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(key + ":")), 0.0)


def nvml_used_mb(device: torch.device) -> float | None:
    """Return the MB that all processes use on the GPU `device`, as its driver counts; None without an NVIDIA driver."""
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")).used / MB
    except pynvml.NVMLError:
        return None


def give_back() -> None:
    """Return freed memory to the system: CUDA's cache and glibc's heap, which otherwise stay resident."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another C library: nothing to trim


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an allocator raised `error`: CUDA's by a type of its own, the CPU's by a message."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Preemption:
    """While its block runs, SIGTERM only sets `asked`, for a loop to read between two steps.

    When the block ends, a process that was asked ends by that signal, as if nothing had caught it. Outside the main
    thread, where Python handles no signals, nothing is caught.
    """

    asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
