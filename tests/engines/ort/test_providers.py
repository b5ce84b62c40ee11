import sys
import types

import pytest

from segue.engines.ort.providers import CPU, CUDA, RTX, TENSORRT, choose, preload, provider_options, rtx_devices
from segue.errors import EngineError, MissingDependencyError

PROFILE = {"x": ((1, 4), (1, 8), (2, 16)), "t": ((1,), (1,), (2,))}


class Options:
    def add_provider_for_devices(self, devices, settings):
        self.added = devices, settings


def runtime(devices, registered):
    """Return a stand-in for onnxruntime whose plugin shows `devices` once it is registered."""
    shown = []

    def register(name, path):
        registered.append((name, path))
        shown.extend(devices)

    return types.SimpleNamespace(get_ep_devices=lambda: shown, register_execution_provider_library=register)


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.get_library_path = lambda: "plugin.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)


def test_providers_that_compile_are_told_the_shapes_of_every_input():
    rtx = provider_options(RTX, PROFILE, "fp16")
    assert rtx == {
        "nv_profile_min_shapes": "x:1x4,t:1",
        "nv_profile_opt_shapes": "x:1x8,t:1",
        "nv_profile_max_shapes": "x:2x16,t:2",
    }
    tensorrt = provider_options(TENSORRT, PROFILE, "bf16")
    assert tensorrt["trt_profile_max_shapes"] == "x:2x16,t:2"
    assert (tensorrt["trt_fp16_enable"], tensorrt["trt_bf16_enable"]) == ("0", "1")
    assert not any("cache" in name for name in {**rtx, **tensorrt})
    assert provider_options(CUDA, PROFILE, "fp16") == provider_options(CPU, PROFILE, "fp16") == {}


@pytest.mark.parametrize(
    ("precision", "wide", "fp16", "int8"),
    [("fp16", False, "1", "0"), ("fp16", True, "0", "0"), ("fp32", False, "0", "0"), ("w8a8", False, "1", "1")],
)
def test_tensorrt_may_use_fp16_where_the_graph_is_in_it_throughout(precision, wide, fp16, int8):
    found = provider_options(TENSORRT, PROFILE, precision, wide)
    assert (found["trt_fp16_enable"], found["trt_int8_enable"]) == (fp16, int8)


def test_tensorrt_as_a_provider_refuses_fp8():
    with pytest.raises(EngineError, match="does not support fp8"):
        provider_options(TENSORRT, PROFILE, "fp8")
    assert "nv_profile_min_shapes" in provider_options(RTX, PROFILE, "fp8")


def test_a_plugin_that_does_not_load_says_why(plugin):
    def register(name, path):
        raise OSError("libcuda.so.1: cannot open")

    onnxruntime = types.SimpleNamespace(get_ep_devices=lambda: [], register_execution_provider_library=register)
    with pytest.raises(EngineError, match=r"does not load: libcuda\.so\.1"):
        rtx_devices(onnxruntime)


def test_what_tensorrt_leaves_over_runs_by_cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    onnxruntime = types.SimpleNamespace(get_available_providers=lambda: [TENSORRT, CPU])
    assert choose(onnxruntime, Options(), TENSORRT, {"a": "1"}) == [(TENSORRT, {"a": "1"}), CUDA]
    assert choose(onnxruntime, Options(), CPU, {}) == [(CPU, {})]


def test_libraries_that_are_missing_are_not_printed_among_the_answers(capsys):
    def preload_dlls():
        print("Failed to load libcudnn.so.9")
        raise RuntimeError("no directory")

    preload(types.SimpleNamespace(preload_dlls=preload_dlls), CUDA)
    assert capsys.readouterr().out == ""


def test_a_provider_that_is_not_compiled_in_is_told_before_it_is_tried():
    onnxruntime = types.SimpleNamespace(get_available_providers=lambda: [CPU], __version__="1.32.0")
    with pytest.raises(
        MissingDependencyError, match=r"1\.32\.0 is built without CUDAExecutionProvider. Run segue doctor"
    ):
        choose(onnxruntime, Options(), CUDA, {})


def test_the_plugin_is_registered_once_and_given_its_device(plugin):
    device, registered, options = types.SimpleNamespace(ep_name=RTX), [], Options()
    onnxruntime = runtime([device], registered)
    for _ in range(2):
        assert choose(onnxruntime, options, RTX, {"nv": "1"}) == []
        assert options.added == ([device], {"nv": "1"})
    assert registered == [(RTX, "plugin.so")]


def test_a_plugin_without_a_gpu_is_an_error(plugin):
    with pytest.raises(EngineError, match=r"finds no GPU.*segue doctor"):
        rtx_devices(runtime([types.SimpleNamespace(ep_name="another")], []))


def test_a_plugin_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"):
        rtx_devices(runtime([], []))
