"""A stand-in for CUDA writes down what is asked of it: no GPU is needed, and none is shown to obey."""

import types

import pytest

from segue.engines.tensorrt.cuda_graph import KEPT, CudaGraph
from segue.errors import SegueError


class Cuda:
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.log, self.made = [], 0

    def __getattr__(self, name):
        def call(*arguments):
            self.log.append((name, *arguments))
            if name == "cudaGraphInstantiate":
                self.made += 1
                return 0, f"recording {self.made}"
            return (0, "graph") if name == "cudaStreamEndCapture" else (0,)

        return call

    def launched(self):
        return [what for name, what, *_ in self.log if name == "cudaGraphLaunch"]


def did(result):
    return result[1] if len(result) > 1 else None


@pytest.fixture
def cuda():
    return Cuda()


def test_the_second_call_is_recorded_and_the_third_replays_it(cuda):
    ran = []
    with CudaGraph(cuda, 7, did) as graph:
        for _ in range(3):
            graph.run("shapes", "addresses", lambda: ran.append(1))
        assert len(ran) == 2  # by itself, and into the recording
        assert cuda.launched() == ["recording 1", "recording 1"]
    assert ("cudaGraphExecDestroy", "recording 1") in cuda.log


def test_buffers_that_take_turns_have_a_recording_each(cuda):
    graph = CudaGraph(cuda, 7, did)
    for turn in range(8):
        graph.run("shapes", turn % 2, lambda: None)
    assert cuda.launched() == ["recording 1", "recording 2"] * 3


def test_other_shapes_void_every_recording(cuda):
    graph, ran = CudaGraph(cuda, 7, did), []
    for shapes in ("small", "small", "large", "small"):
        graph.run(shapes, "addresses", lambda: ran.append(1))
    assert len(ran) == 4
    assert ("cudaGraphExecDestroy", "recording 1") in cuda.log


def test_no_more_than_a_few_recordings_are_kept(cuda):
    graph = CudaGraph(cuda, 7, did)
    for address in range(3 * KEPT):
        graph.run("shapes", address, lambda: None)
        graph.run("shapes", address, lambda: None)
    destroyed = [name for name, *_ in cuda.log].count("cudaGraphExecDestroy")
    assert cuda.made - destroyed <= KEPT


def test_what_cannot_be_captured_is_done_plainly_from_then_on(cuda):
    graph, ran = CudaGraph(cuda, 7, did), []

    def execute():
        ran.append(1)
        if cuda.log and cuda.log[-1][0] == "cudaStreamBeginCapture":
            raise SegueError("not capturable")

    for _ in range(4):
        graph.run("shapes", "addresses", execute)
    assert len(ran) == 5  # each call, and the attempt
    assert cuda.launched() == []
    assert [name for name, *_ in cuda.log] == ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphDestroy"]


def test_any_other_failure_ends_the_capture_too(cuda):
    graph = CudaGraph(cuda, 7, did)
    graph.run("shapes", "addresses", lambda: None)
    with pytest.raises(ZeroDivisionError):
        graph.run("shapes", "addresses", lambda: 1 / 0)
    assert ("cudaStreamEndCapture", 7) in cuda.log
    assert cuda.log[-1][0] == "cudaGraphDestroy"
