"""The doctor: what this machine has, what works on it, and the one command for what does not.

Every finding is tried rather than inferred: a step of training is a real step of a tiny model. Read next:
hardware.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .hardware import Hardware, use_threads

EXTRAS = {"datasets": "data", "pyarrow": "data", "tensorboard": "tensorboard", "wandb": "wandb"}
TORCH = ((2, 11), (2, 14))
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, whether it is well, and what to do when it is not."""

    what: str
    found: str
    state: str = ""
    """`ok`, `bad` (training does not work) or `note`; empty for a plain fact."""
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, in the order a person reads them."""

    findings: list[Finding]

    @property
    def can_train(self) -> bool:
        """Whether nothing stands in the way of `transom train`."""
        return all(finding.state != "bad" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"can_train": self.can_train, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            mark = {"ok": "ok", "bad": "NO", "note": "--"}.get(finding.state, "")
            lines.append(f"{mark:3}{finding.what:<11} {finding.found}")
            if finding.fix:
                lines.append(f"{'':15}fix: {finding.fix}")
        return "\n".join(lines)


def examine(device: str = "auto") -> Report:
    """Look at all that training needs; a few seconds. Raises Refused for a device that is not there."""
    hardware = Hardware.detect(device)
    use_threads()
    return Report([finding for look in LOOKS for finding in look(hardware)])


def _python(hardware: Hardware) -> Iterator[Finding]:
    yield Finding("transom", f"{__version__}, Python {sys.version.split()[0]} in {sys.prefix}")


def _torch(hardware: Hardware) -> Iterator[Finding]:
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    fits = TORCH[0] <= version < TORCH[1]
    yield Finding(
        "torch",
        f"{torch.__version__}, {build} build",
        "" if fits else "note",
        "" if fits else "pip install 'torch>=2.11,<2.14'   (others are not tried)",
    )
    if not torch.cuda.is_available() and (shutil.which("nvidia-smi") or os.path.exists("/dev/nvidia0")):
        yield Finding(
            "gpu",
            "there is an NVIDIA card that torch cannot use",
            "note",
            "update the NVIDIA driver; `nvidia-smi` shows what it supports"
            if torch.version.cuda
            else "pip install --force-reinstall 'torch>=2.11,<2.14'   (this torch was built without CUDA)",
        )


def _device(hardware: Hardware) -> Iterator[Finding]:
    yield Finding("device", f"{hardware.device}: {hardware.name}, {hardware.cores} physical cores")
    yield Finding(
        "memory",
        f"{hardware.memory / GB:.1f} GB free of {hardware.memory_total / GB:.1f} GB",
        *_low(hardware),
    )


def _low(hardware: Hardware) -> tuple[str, str]:
    return ("note", "close other programs; `nano` needs about 1 GB") if hardware.memory < GB else ("", "")


def _speed(hardware: Hardware) -> Iterator[Finding]:
    plain, short = (hardware.peak_flops(dtype) / 1e9 for dtype in ("float32", "bfloat16"))
    yield Finding("speed", f"matrix products: float32 {plain:,.0f}, bfloat16 {short:,.0f} GFLOP/s (measured)")
    yield Finding("", f"memory: {hardware.bandwidth() / GB:.1f} GB/s (measured)")
    yield Finding("arithmetic", hardware.choose_dtype().reason)


def _native(hardware: Hardware) -> Iterator[Finding]:
    """The CPU kernels that models run with, or why there are none."""
    from .native.library import COMPILE, WORDS, Unavailable, best

    try:
        found = f"native, {WORDS[best().level]}: decoders write and encoders read with them on a CPU"
        yield Finding("kernels", found, "ok")
    except Unavailable as why:
        fix = f"{COMPILE}   (needs a C++ compiler: g++ or clang++)" if COMPILE in str(why) else ""
        yield Finding("kernels", f"by PyTorch; native ones {why}", "note", fix)


def _folder(hardware: Hardware) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile(dir="."):
            writable = True
    except OSError:
        writable = False
    fix = "" if writable else "run in a folder of your own, or give --out a folder that you may write to"
    found = f"{hardware.disk / GB:.1f} GB free in {Path.cwd()}{'' if writable else ', which is not writable'}"
    if writable and hardware.disk < GB:
        fix = "free some space; a run of `nano` writes about 0.1 GB"
    yield Finding("disk", found, "" if writable and not fix else "note" if writable else "bad", fix)


def _limits(hardware: Hardware) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, least, flag in (
        ("RLIMIT_AS", 8e9, "v"),
        ("RLIMIT_FSIZE", 2e9, "f"),
        ("RLIMIT_NOFILE", 256, "n"),
    ):
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY and soft < least:
            yield Finding("limit", f"{name} is {soft:,}", "note", f"ulimit -{flag} unlimited")
    if os.environ.get("OMP_NUM_THREADS") == "1" and hardware.cores > 1:
        yield Finding(
            "threads", "OMP_NUM_THREADS=1 is set; Transom uses all physical cores all the same", "note"
        )


def _training(hardware: Hardware) -> Iterator[Finding]:
    """One step of a tiny model, with the checks of a real one."""
    import torch

    from .model.config import ModelConfig
    from .model.transformer import Transformer

    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=64, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, ffn_dim=64, max_len=16
    )
    try:
        model = Transformer(config).to(hardware.device)
        tokens = torch.arange(32, device=hardware.device).view(2, 16)
        hidden = model(tokens, dtype=hardware.choose_dtype().dtype)
        model.logits(hidden).logsumexp(-1).sum().backward()
        sizes = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        well = bool(sizes) and all(size == size and size < float("inf") for size in sizes)
        found = "forward and backward of a tiny model" if well else "gradients of a tiny model are not finite"
    except RuntimeError as error:
        well, found = False, f"a tiny model fails: {str(error).splitlines()[0][:80]}"
    yield Finding("training", found, "ok" if well else "bad", "" if well else "transom doctor --device cpu")


def _extras(hardware: Hardware) -> Iterator[Finding]:
    missing = [name for name in EXTRAS if not _installed(name)]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRAS[name] for name in missing))
        yield Finding(
            "extras", f"not installed: {', '.join(missing)}", "note", f"pip install 'transom[{extras}]'"
        )
    if not sysconfig.get_path("stdlib") or not Path(sysconfig.get_path("stdlib"), "argparse.py").exists():
        yield Finding("stdlib", "the standard library's sources are not here", "note", "name your own data")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


LOOKS: list[Callable[[Hardware], Iterator[Finding]]] = [
    _python,
    _torch,
    _device,
    _folder,
    _limits,
    _speed,
    _native,
    _training,
    _extras,
]
