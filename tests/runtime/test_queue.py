"""Many callers of one model: order, the limit, taking back, stopping, closing; from threads and from asyncio."""

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

import segue
from segue.errors import BusyError, Cancelled, UsageError


@pytest.fixture(scope="module")
def model(exported):
    with segue.open(exported) as opened:
        yield opened


@pytest.fixture
def queue(model):
    with segue.ModelQueue(model, limit=3) as made:
        yield made


def asked(seed=0):
    return segue.Request("a red heart", seed=seed, steps=2, size=64)


class Gate:
    """Work that stands still until it is let go."""

    def __init__(self):
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, model):
        self.begun.set()
        assert self.open.wait(30)


def test_callers_in_many_threads_get_the_pictures_that_each_asked_for(model):
    alone = [model.render(asked(seed)).images for seed in range(6)]
    with segue.ModelQueue(model, limit=6) as queue, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: queue.submit(asked(seed)).result().images, range(6)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, found, strict=True))


def test_requests_are_done_in_the_order_of_asking(queue):
    gate, order = Gate(), []
    first = queue.do(gate)
    others = [queue.do(lambda model, number=number: order.append(number)) for number in (1, 2)]
    gate.open.set()
    for future in (first, *others):
        future.result(30)
    assert order == [1, 2]


def test_one_request_too_many_is_refused_at_once_and_a_finished_one_leaves_its_place(queue):
    gate = Gate()
    futures = [queue.do(gate), queue.submit(asked()), queue.submit(asked())]
    with pytest.raises(BusyError, match="3 requests are waiting or running"):
        queue.submit(asked())
    assert len(queue) == 3
    gate.open.set()
    for future in futures:
        future.result(30)
        queue.submit(asked()).result(30)
    assert len(queue) == 0


def test_a_request_that_waits_can_be_taken_back(queue):
    gate = Gate()
    first = queue.do(gate)
    assert gate.begun.wait(30)
    second = queue.submit(asked())
    assert second.cancel()
    assert len(queue) == 1
    gate.open.set()
    first.result(30)
    with pytest.raises(CancelledError):
        second.result(30)


def test_a_request_that_runs_is_stopped_before_its_next_call(queue):
    token, steps = segue.CancelToken(), []

    def on_step(done, total, latents):
        steps.append(done)
        token.cancel()

    with pytest.raises(Cancelled):
        queue.submit(asked(), on_step=on_step, cancel=token).result(30)
    assert steps == [1]


def test_what_fails_comes_out_of_the_future_and_the_next_one_runs(queue):
    with pytest.raises(UsageError, match=r"steps must be .*, got 0"):
        queue.submit(segue.Request("a red heart", steps=0)).result(30)
    assert queue.submit(asked()).result(30).images.shape == (1, 64, 64, 3)


def test_closing_stops_what_runs_and_takes_back_what_waits(model):
    queue = segue.ModelQueue(model, limit=3)
    begun = threading.Event()
    running = queue.submit(segue.Request("a red heart", steps=1000, size=64), on_step=lambda *_: begun.set())
    waiting = queue.submit(asked())
    assert begun.wait(30)
    queue.close()
    with pytest.raises(Cancelled):
        running.result(30)
    with pytest.raises(Cancelled, match="before the request ran"):
        waiting.result(30)
    with pytest.raises(UsageError, match="was closed"):
        queue.submit(asked())
    assert model.render(asked()).images.shape == (1, 64, 64, 3)  # the model is not the queue's


def test_tasks_of_asyncio_await_their_pictures(queue):
    async def several():
        return await asyncio.gather(*(queue.render(asked(seed)) for seed in range(3)))

    first, again = asyncio.run(several()), asyncio.run(several())
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, again, strict=True))


def test_a_cancelled_task_stops_its_request(queue):
    steps = []

    async def stopped():
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_step(done, total, latents):
            steps.append(done)
            loop.call_soon_threadsafe(begun.set)

        task = asyncio.create_task(queue.render(segue.Request("a red heart", steps=1000, size=64), on_step=on_step))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    queue.submit(asked()).result(30)
    assert len(steps) < 1000


def test_frames_of_a_video_come_segment_by_segment_and_no_faster_than_they_are_read(video_bundle):
    image = np.full((32, 32, 3), 128, np.uint8)
    request = segue.AnimationRequest(image, "waving hand", frames=65)
    made, steps = [], 2

    async def read(queue):
        taken = []
        async for frames in queue.frames(request, on_event=lambda event: made.append(event.stage)):
            await asyncio.sleep(0.1)  # time enough to run ahead
            most = len(taken) + 3  # this one, the one that may wait, and the one that is begun
            assert made.count("detail") <= most * steps
            taken.append(frames)
        return taken

    with segue.open(video_bundle) as model, segue.ModelQueue(model) as queue:
        expected = np.concatenate(list(model.frames(request)))
        found = asyncio.run(read(queue))
    assert len(found) > 1
    assert np.array_equal(np.concatenate(found), expected)


def test_leaving_the_loop_over_frames_stops_the_video(video_bundle):
    request = segue.AnimationRequest(np.zeros((32, 32, 3), np.uint8), frames=201)
    events = []

    async def first(queue):
        frames = queue.frames(request, on_event=events.append)
        async for found in frames:
            await frames.aclose()
            return found

    with segue.open(video_bundle) as model, segue.ModelQueue(model) as queue:
        assert len(asyncio.run(first(queue))) >= 1
        queue.do(lambda _: None).result(30)
        assert events[-1].window < 3  # of 13
        assert len(next(model.animate(request.image, frames=5))) >= 1  # nothing holds the model


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_that_is_none_is_refused(model, limit):
    with pytest.raises(UsageError, match="limit"):
        segue.ModelQueue(model, limit)
