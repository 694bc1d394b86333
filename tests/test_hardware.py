"""The machine: that what is measured is plausible, and that limits and meters are read as they stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from transom import hardware
from transom.errors import Refused
from transom.hardware import EnergyMeter, Hardware


@pytest.fixture(scope="module")
def cpu() -> Hardware:
    return Hardware.detect("cpu")


def test_detect_tells_plausible_facts(cpu: Hardware) -> None:
    assert cpu.device == "cpu"
    assert cpu.name
    assert cpu.cores >= 1
    assert 0 < cpu.memory <= cpu.memory_total
    assert cpu.disk > 0
    assert set(cpu.to_dict()) >= {"device", "name", "cores", "memory", "disk"}


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="device is 'cuda:99'; this machine has cpu"):
        Hardware.detect("cuda:99")


def test_limits_are_measured_once(cpu: Hardware) -> None:
    assert 1e8 < cpu.peak_flops(torch.float32) < 1e15
    assert cpu.peak_flops("float32") == cpu.peak_flops(torch.float32)
    assert 1e8 < cpu.bandwidth() < 1e13


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(4.0, torch.bfloat16), (1.4, torch.float32), (0.011, torch.float32)]
)
def test_bfloat16_is_chosen_where_it_pays(
    ratio: float, dtype: torch.dtype, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"float32": 1e11, "bfloat16": ratio * 1e11}
    monkeypatch.setattr(Hardware, "peak_flops", lambda self, dtype: speeds[dtype])
    choice = cpu.choose_dtype()
    assert choice.dtype is dtype
    assert choice.reason.startswith(choice.name)
    assert f" {ratio} times" in choice.reason
    assert cpu.choose_dtype("float32").dtype is torch.float32


def test_a_container_limits_cores_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(str(10**9))
    (tmp_path / "memory.current").write_text(str(7 * 10**8))
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000000\n")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.physical_cores() == 1
    assert Hardware.detect("cpu").memory == 5 * 10**8
    assert Hardware.detect("cpu").memory_total == 10**9
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert Hardware.detect("cpu").memory_total > 10**9


def test_threads_are_the_physical_cores_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(hardware, "physical_cores", lambda: 6)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what torchrun sets
        assert hardware.use_threads() == 6
        assert hardware.use_threads(processes=2) == 3 == torch.get_num_threads()
        assert hardware.use_threads(processes=12) == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert hardware.use_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_energy_is_read_from_rapl_where_it_is_readable(
    cpu: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("900000000")
    (zone / "max_energy_range_uj").write_text("1000000000")
    monkeypatch.setattr(hardware, "POWERCAP", tmp_path)
    meter = EnergyMeter(cpu)
    assert meter.method.startswith("RAPL")
    (zone / "energy_uj").write_text("950000000")
    assert meter.joules() == pytest.approx(50)
    (zone / "energy_uj").write_text("20000000")  # the counter has wrapped
    assert meter.joules() == pytest.approx(50 + 70)


def test_energy_without_a_meter_says_that_it_is_assumed(
    cpu: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "POWERCAP", tmp_path / "none")
    meter = EnergyMeter(cpu)
    watts, how = cpu.watts()
    assert meter.method == how
    assert how.startswith("assumed: 12 W")
    assert watts >= 12 * cpu.cores
    assert 0 <= meter.joules() < meter.joules() + 1


def test_more_kinds_of_products_are_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    hardware.tune_libraries()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "4096"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    hardware.tune_libraries()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "16"


def test_waiting_threads_sleep_soon_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    hardware.tune_libraries()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    hardware.tune_libraries()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    hardware.tune_libraries()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_keeping_memory_works_where_there_is_glibc() -> None:
    import platform

    assert hardware.keep_memory() is (platform.libc_ver()[0] == "glibc")


@pytest.mark.gpu
def test_a_cuda_device_is_preferred_and_measured() -> None:
    gpu = Hardware.detect()
    assert gpu.device.startswith("cuda")
    assert gpu.peak_flops("bfloat16") > gpu.peak_flops("float32") > 1e12
    assert gpu.bandwidth() > 1e11
    assert gpu.watts()[0] > 10
