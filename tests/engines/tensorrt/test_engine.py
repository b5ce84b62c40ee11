"""Running an engine. No GPU is needed: stand-ins for TensorRT and CUDA check what is asked of them and in which order.

They show that buffers, shapes and errors are handled, not that a real engine computes anything.
"""

import ctypes
import sys
import types

import numpy as np
import pytest

from segue.engines import devices
from segue.engines.tensorrt import engine as tensorrt
from segue.engines.tensorrt.scratch import Scratch
from segue.errors import EngineError, MissingDependencyError, SegueError, UsageError

GPU = devices.Driver("580", (devices.Gpu("RTX 4090", 89, 24 << 30),))
PROFILES = [((1, 2), (4, 2), (8, 2)), ((1, 2), (2, 2), (3, 2))]  # of x


class Cuda:
    """Device memory is host memory; counts what is not freed. A launched graph does what was captured."""

    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.held, self.failing, self.log = {}, "", []
        self.capturing, self.graphs = None, {}
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __getattr__(self, name):
        def call(*arguments):
            if name == self.failing:
                return (2,)
            self.log.append(name)
            done = getattr(type(self), f"_{name}", None)
            return (0,) if done is None else done(self, *arguments)

        return call

    def _cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        return 0, 7

    def _cudaStreamBeginCapture(self, stream, mode):
        self.capturing = []
        return (0,)

    def _cudaStreamEndCapture(self, stream):
        work, self.capturing = self.capturing, None
        return 0, work

    def _cudaGraphInstantiate(self, graph, flags):
        self.graphs[len(self.graphs) + 1] = graph
        return 0, len(self.graphs)

    def _cudaGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            work()
        return (0,)

    def _cudaMalloc(self, size):
        buffer = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def _cudaFree(self, address):
        del self.held[address]
        return (0,)

    def _cudaMemcpyAsync(self, target, source, size, kind, stream):
        ctypes.memmove(target, source, size)
        return (0,)


class Engine:
    """y = 2 x, for x float32 [n, 2]."""

    num_io_tensors, num_optimization_profiles, streamable_weights_size = 2, 2, 100
    weight_streaming_budget_v2, weights = 100, 1000

    def __init__(self, trt):
        self.trt = trt

    def get_engine_stat(self, stat):
        assert stat == self.trt.EngineStat.TOTAL_WEIGHTS_SIZE
        return self.weights

    def get_tensor_name(self, i):
        return "xy"[i]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == "x" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name="FLOAT")

    def get_tensor_location(self, name):
        return self.trt.TensorLocation.DEVICE

    def get_tensor_shape(self, name):
        return (-1, 2)

    def get_tensor_profile_shape(self, name, index):
        return PROFILES[index]

    def create_runtime_config(self):
        return self.trt.config

    def create_execution_context(self, strategy):
        strategy = getattr(strategy, "strategy", strategy)
        assert strategy == "user managed"
        return Context(sys.modules["cuda.bindings.runtime"])


class Context:
    def __init__(self, cuda):
        self.cuda = cuda
        self.profile, self.shape, self.addresses, self.scratch = None, None, {}, None

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return stream == 7

    def set_input_shape(self, name, shape):
        assert self.profile is not None
        low, _, high = PROFILES[self.profile]
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        return self.shape

    def update_device_memory_size_for_shapes(self):
        return 16 * self.shape[0]

    def set_device_memory(self, address, size):
        assert size == 16 * self.shape[0]
        self.scratch = address

    def execute_async_v3(self, stream):
        assert self.scratch
        count, addresses = int(np.prod(self.shape)), dict(self.addresses)

        def work():
            x, y = (np.ctypeslib.as_array((ctypes.c_float * count).from_address(addresses[n])) for n in "xy")
            y[:] = 2 * x

        if self.cuda.capturing is None:
            work()
        else:
            self.cuda.capturing.append(work)
        return True


@pytest.fixture
def cuda(monkeypatch):
    made = Cuda()
    package = types.ModuleType("cuda.bindings")
    package.runtime = made
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    monkeypatch.setattr(devices, "driver", lambda: GPU)
    return made


@pytest.fixture
def trt(monkeypatch):
    made = types.ModuleType("tensorrt_rtx")
    made.__version__ = "10.14.1"
    made.ILogger = type("ILogger", (), {"__init__": lambda self: None})
    made.TensorIOMode = types.SimpleNamespace(INPUT=1, OUTPUT=2)
    made.EngineStat = types.SimpleNamespace(TOTAL_WEIGHTS_SIZE=0)
    made.TensorLocation = types.SimpleNamespace(DEVICE=0, HOST=1)
    made.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user managed")
    made.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="none")
    made.config = types.SimpleNamespace()
    made.config.set_execution_context_allocation_strategy = lambda s: setattr(made.config, "strategy", s)
    made.engine = Engine(made)
    made.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda data: made.engine)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", made)
    return made


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "engine.plan").write_bytes(b"plan")
    return tmp_path / "engine.plan"


def opened(plan, **options):
    return tensorrt.TensorRtEngine(plan, "tensorrt-rtx", **options)


def test_arrays_go_through_buffers_that_are_kept_and_freed(cuda, trt, plan):
    with opened(plan) as engine:
        for rows in (3, 2, 8):
            x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
            assert np.array_equal(engine.run({"x": x})["y"], 2 * x)
        assert engine.device_bytes == 1000 + 8 * 2 * 4 * 2 + 16 * 8  # weights, x and y, scratch
        assert cuda.log.count("cudaMalloc") == 6  # of x, y and scratch: at first, and when they grew
    assert cuda.held == {}
    assert engine.device_bytes == 0
    with pytest.raises(UsageError, match="was closed"):
        engine.run({"x": x})
    engine.close()


def test_engines_share_what_they_work_with_and_follow_it_when_it_moves(cuda, trt, plan):
    scratch = Scratch()
    few, many = (np.ones((rows, 2), np.float32) for rows in (2, 8))
    with opened(plan, scratch=scratch) as one, opened(plan, scratch=scratch) as other:
        for _ in range(3):
            one.run({"x": few})
        assert (scratch.size, one.device_bytes) == (32, 1000 + 2 * 2 * 2 * 4 + 32)
        other.run({"x": many})  # the larger one has it moved
        assert scratch.size == 128
        before = one._context.scratch
        assert np.array_equal(one.run({"x": few})["y"], 2 * few)
        assert one._context.scratch == other._context.scratch != before
    assert len(cuda.held) == 1  # the scratch is not the engines' to free
    scratch.close()
    scratch.close()
    assert cuda.held == {}


def test_the_tightest_profile_is_taken(cuda, trt, plan):
    with opened(plan) as engine:
        engine.run({"x": np.ones((2, 2), np.float32)})
        assert engine._context.profile == 1
        engine.run({"x": np.ones((5, 2), np.float32)})
        assert engine._context.profile == 0
        assert engine.fits({"x": (8, 2)})
        assert not engine.fits({"x": (9, 2)})
        with pytest.raises(EngineError, match=r"was not built for x \[9, 2\]"):
            engine.run({"x": np.ones((9, 2), np.float32)})


def test_weights_are_streamed_within_their_budget(cuda, trt, plan):
    for weights, budget, held in ((60, 60, 960), (600, 100, 1000), (None, 100, 1000)):
        with opened(plan, weights=weights) as engine:
            assert trt.engine.weight_streaming_budget_v2 == budget
            assert engine.device_bytes == held


def test_weights_of_which_tensorrt_does_not_tell_are_not_guessed(cuda, trt, plan):
    trt.engine.weights = -1
    with opened(plan) as engine:
        assert engine.device_bytes is None


def test_arrays_stay_on_the_device_between_calls(cuda, trt, plan):
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    with opened(plan) as engine:
        placed = engine.put({"x": x})["x"]
        copies = cuda.log.count("cudaMemcpyAsync")
        kept = placed
        for _ in range(3):
            before, kept = kept, engine.run({"x": kept}, ("y",))["y"]
        assert cuda.log.count("cudaMemcpyAsync") == copies
        assert np.array_equal(kept.numpy(), 8 * x)
        assert np.array_equal(before.numpy(), 4 * x)  # the one before is not written over
        assert np.array_equal(engine.run({"x": kept})["y"], 16 * x)
        placed.close()
        placed.close()
    assert cuda.held == {}


def test_a_resident_array_is_not_cast(cuda, trt, plan):
    with opened(plan) as engine:
        wrong = tensorrt.TrtResident(0, (2, 2), np.dtype(np.float16), None, None)
        with pytest.raises(UsageError, match="takes x as float32, got float16"):
            engine.run({"x": wrong})


def test_a_loop_of_tensorrt_is_replayed_as_cuda_graphs(cuda, trt, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(trt, "__name__", "tensorrt")
    x = np.ones((2, 2), np.float32)
    with tensorrt.TensorRtEngine(plan, "tensorrt") as engine:
        kept = engine.run({"x": x}, ("y",))["y"]
        for _ in range(9):
            kept = engine.run({"x": kept}, ("y",))["y"]
        assert np.array_equal(kept.numpy(), 2**10 * x)
        assert cuda.log.count("cudaGraphInstantiate") == 2  # the buffers take turns
        assert cuda.log.count("cudaGraphLaunch") >= 5
        launched = cuda.log.count("cudaGraphLaunch")
        for value in (1, 2, 3):
            assert np.array_equal(engine.run({"x": value * x})["y"], 2 * value * x)
        assert cuda.log.count("cudaGraphLaunch") > launched
        assert np.array_equal(engine.run({"x": np.ones((5, 2), np.float32)})["y"], np.full((5, 2), 2))


def test_an_engine_that_streams_weights_is_not_captured(cuda, trt, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(trt, "__name__", "tensorrt")
    with tensorrt.TensorRtEngine(plan, "tensorrt", weights=60) as engine:
        for _ in range(4):
            engine.run({"x": np.ones((2, 2), np.float32)})
    assert "cudaStreamBeginCapture" not in cuda.log


def test_rtx_captures_nothing_where_weights_are_streamed(cuda, trt, plan):
    with opened(plan, weights=60) as engine:
        engine.run({"x": np.ones((2, 2), np.float32)})
    assert trt.config.cuda_graph_strategy == "none"


def test_rtx_captures_graphs_itself(cuda, trt, plan):
    with opened(plan) as engine:
        for _ in range(3):
            assert np.array_equal(engine.run({"x": np.ones((2, 2), np.float32)})["y"], np.full((2, 2), 2))
    assert (trt.config.strategy, trt.config.cuda_graph_strategy) == ("user managed", "whole")
    assert "cudaGraphLaunch" not in cuda.log


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_failure_of_cuda_is_an_error_and_everything_is_freed(cuda, trt, plan, call):
    engine = opened(plan)
    cuda.failing = call
    with pytest.raises(SegueError, match="CUDA failed"):
        engine.run({"x": np.ones((2, 2), np.float32)})
    engine.close()
    assert cuda.held == {}


def test_an_engine_that_does_not_deserialise_says_so(cuda, trt, plan):
    trt.engine = None
    with pytest.raises(EngineError, match="does not fit RTX 4090 with driver 580"):
        opened(plan)


def test_a_plan_that_is_gone_or_empty_is_an_error(cuda, trt, plan, tmp_path):
    plan.write_bytes(b"")
    with pytest.raises(EngineError, match="cannot be read"):
        opened(plan)
    with pytest.raises(EngineError, match="cannot be read"):
        opened(tmp_path / "none")


def test_host_tensors_are_refused_and_the_stream_is_given_back(cuda, trt, plan):
    trt.TensorLocation = types.SimpleNamespace(DEVICE=1, HOST=0)
    trt.engine.get_tensor_location = lambda name: 0
    with pytest.raises(EngineError, match="in host memory"):
        opened(plan)
    assert "cudaStreamDestroy" in cuda.log


def test_without_a_gpu_nothing_is_deserialised(trt, plan, monkeypatch):
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("", (), "no driver"))
    trt.Runtime = lambda logger: pytest.fail("a deserialiser was made")
    with pytest.raises(EngineError, match="no driver"):
        opened(plan)


def test_without_cuda_python_it_says_what_to_install(trt, plan, monkeypatch):
    monkeypatch.setattr(devices, "driver", lambda: GPU)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match="pip install cuda-python"):
        opened(plan)
