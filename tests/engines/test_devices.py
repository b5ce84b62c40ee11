import sys

import psutil

from segue.engines import devices


class Nvml:
    """Stands in for NVIDIA's library, which answers only where its driver is."""

    def __init__(self, failing=""):
        self.failing = failing

    def __getattr__(self, name):
        if name == self.failing:
            raise RuntimeError(f"{name} failed")
        values = {
            "nvmlSystemGetDriverVersion": b"580.95", "nvmlDeviceGetCount": 1, "nvmlDeviceGetName": "RTX 4090",
            "nvmlDeviceGetCudaComputeCapability": (8, 9), "nvmlDeviceGetMemoryInfo": type("M", (), {"total": 24 << 30}),
        }  # fmt: skip
        return lambda *_: values.get(name)


def test_a_gpu_is_named_with_its_capability_and_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert devices.driver() == devices.Driver("580.95", (devices.Gpu("RTX 4090", 89, 24 << 30),))


def test_a_driver_that_does_not_answer_is_no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("nvmlDeviceGetCount"))
    found = devices.driver()
    assert found.gpus == ()
    assert "nvmlDeviceGetCount failed" in found.why


def test_a_gpu_without_memory_of_its_own_has_the_machines(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("nvmlDeviceGetMemoryInfo"))
    (gpu,) = devices.driver().gpus
    assert gpu.memory == psutil.virtual_memory().total


def test_a_broken_gpu_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("nvmlDeviceGetName"))
    found = devices.driver()
    assert found.gpus == ()
    assert found.version == "580.95"


def test_a_library_that_is_absent_says_so():
    assert devices.library("libnosuchthing.so.9")
