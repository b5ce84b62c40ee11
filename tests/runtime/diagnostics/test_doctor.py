import importlib.metadata
import sys
import types

import pytest

from segue.engines import devices, targets
from segue.engines.ort.providers import CPU, CUDA, TENSORRT
from segue.runtime.bundle import reader
from segue.runtime.diagnostics import doctor
from segue.runtime.diagnostics.doctor import FAULT, LIBRARIES, NOTE, OK, TENSORRT_LIBRARIES, examine


def of(found):
    return {finding.subject: finding for finding in found}


def test_the_processor_alone_runs_a_bundle(exported):
    found = of(examine(reader.read(exported)))
    assert found["target ort-cpu"].state == OK
    assert found["tiny on ort-cpu"].state == OK
    assert found["processor"].text


def test_without_a_driver_rtx_builds_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("", (), "no driver here"))
    found = of(examine())
    assert "no driver here" in found["GPU"].text
    assert found["target tensorrt-rtx"].state == NOTE
    assert "builds engines here, and runs none" in found["target tensorrt-rtx"].text


def test_both_packages_of_onnx_runtime_are_a_fault(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "1.31.1" if n == "onnxruntime-gpu" else real(n))
    found = of(examine())["ONNX Runtime"]
    assert found.state == FAULT
    assert "break each other" in found.text
    assert found.hint.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_a_gpu_with_engines_missing_says_what_to_run(exported, monkeypatch):
    gpu = devices.Gpu("NVIDIA GeForce RTX 4090", 89, 24 * 2**30)
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580.95", (gpu,)))
    found = of(examine(reader.read(exported)))
    assert found["GPU 0"].text == "NVIDIA GeForce RTX 4090, 24.0 GiB, SM 8.9, driver 580.95"
    fit = found["tiny on tensorrt-rtx"]
    assert fit.state == NOTE
    assert "segue build" in fit.hint


def test_a_gpu_that_rtx_does_not_build_for_is_told(monkeypatch):
    gpu = devices.Gpu("NVIDIA H100", 90, 80 * 2**30)
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580.95", (gpu,)))
    found = of(examine())["target tensorrt-rtx"]
    assert found.state == NOTE
    assert "this GPU is SM 9.0" in found.text


def test_engines_need_cuda_python(monkeypatch):
    gpu = devices.Gpu("NVIDIA GeForce RTX 4090", 89, 24 * 2**30)
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580.95", (gpu,)))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # as where only cuda-core and its like are there
    found = of(examine())["target tensorrt-rtx"]
    assert found.state == FAULT
    assert "no cuda-python" in found.text


def test_a_broken_package_is_a_fault(monkeypatch):
    def breaks(target):
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(doctor.targets, "load", breaks)
    found = of(examine())
    assert found["target ort-cpu"].state == FAULT
    assert "undefined symbol" in found["target ort-cpu"].text


@pytest.mark.parametrize("precision", ["bf16"])
def test_bfloat16_does_not_fit_the_processor(edit, precision):
    path = edit(lambda table: table["components"]["transformer"].update(precision=precision))
    fit = of(examine(reader.read(path)))["tiny on ort-cpu"]
    assert fit.state == FAULT
    assert "transformer" in fit.text


@pytest.mark.skipif(sys.platform != "linux", reason="the names of libraries are Linux's")
@pytest.mark.parametrize("gpus", [(), (devices.Gpu("NVIDIA H200", 90, 139 * 2**30),)], ids=["no GPU", "a GPU"])
@pytest.mark.parametrize(
    "absent", [(), ("libcudnn.so.9", "libnvinfer.so.10"), ("libnvinfer.so.10",)], ids=["all there", "two", "TensorRT"]
)
def test_libraries_of_cuda_are_named_found_or_missing_with_a_gpu_and_without(monkeypatch, gpus, absent):
    looked_for = []

    def library(name):
        looked_for.append(name)
        return f"{name}: cannot open shared object file" if name in absent else ""

    compiled = types.SimpleNamespace(__version__="1.31.1", get_available_providers=lambda: [TENSORRT, CUDA, CPU])
    loaded = targets.load
    monkeypatch.setattr(targets, "load", lambda of: compiled if of.provider in (CUDA, TENSORRT) else loaded(of))
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580.95" if gpus else "", gpus, "no driver"))
    monkeypatch.setattr(devices, "library", library)
    found = of(examine())
    assert {"libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcufft.so.12"} <= set(looked_for)
    for name, needed in (("ort-cuda", LIBRARIES), ("ort-tensorrt", (*LIBRARIES, *TENSORRT_LIBRARIES))):
        finding = found[f"target {name}"]
        missing = [library for library in needed if library in absent]
        there = [library for library in needed if library not in absent]
        assert f"found {', '.join(there)}" in finding.text
        assert (f"missing {', '.join(missing)}" in finding.text) == bool(missing)
        wanted = FAULT if set(missing) & set(LIBRARIES) else NOTE if missing else OK  # TensorRT may not be wanted
        assert finding.state == (wanted if gpus else NOTE)
        assert ("onnxruntime-gpu[cuda,cudnn]" in finding.hint) == bool(missing)


def test_a_plugin_of_onnx_runtime_that_does_not_register_is_a_fault(monkeypatch):
    gpu = devices.Gpu("NVIDIA GeForce RTX 4090", 89, 24 * 2**30)
    plugin = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.get_library_path = lambda: "nowhere.so"
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580.95", (gpu,)))
    found = of(examine())["target ort-rtx"]
    assert found.state == FAULT
    assert "nowhere.so" in found.text


def test_the_verdict_is_one_sentence_about_what_runs(exported):
    found = examine()
    assert doctor.verdict(found) == "This machine runs ort-cpu. The shipped bundles need no more than ort-cpu."
    assert doctor.verdict(examine(reader.read(exported)), "tiny").endswith("tiny runs on ort-cpu.")
    assert doctor.verdict([]).startswith("This machine runs no bundle yet")
    assert doctor.verdict(found, "tiny").endswith("tiny does not fit: see the table.")


def test_a_cache_that_cannot_be_written_is_not_called_fine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert of(examine())["cache"].state == OK
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "segue").write_text("a file where the directory should be")
    found = of(examine())["cache"]
    assert found.state == NOTE
    assert f"{tmp_path / 'segue'} cannot be written" in found.text
    assert "XDG_CACHE_HOME" in found.hint
