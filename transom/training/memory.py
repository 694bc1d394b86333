"""How much memory this process holds, and held at most."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch


def peak(device: torch.device) -> int:
    """The most bytes held so far: on the device if it is a GPU, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def resident() -> int:
    """Bytes of main memory held now (Linux; elsewhere the most so far)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak(torch.device("cpu"))
