import threading

import numpy as np
import pytest

from segue.engines.base import Closing, TensorSpec
from segue.engines.streamed import StreamedEngine, StreamedPart
from segue.errors import SegueError, UsageError

X, Y = TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (2,))


class Kept(list):
    """What is loaded and closed, in order, and how many parts were there at a time at most."""

    most = 0


class Part(Closing):
    """A part that adds one to what it takes and waits, while it works, until `then` is loaded."""

    def __init__(self, name: str, kept: Kept, takes: str, gives: str, then: threading.Event | None = None) -> None:
        self.name, self.kept, self.takes, self.gives, self.then = name, kept, takes, gives, then
        kept.append(f"load {name}")
        kept.most = max(kept.most, sum(1 if event.startswith("load") else -1 for event in kept))

    def run(self, feeds, keep=()):
        assert set(feeds) == {self.takes}
        if self.then is not None:
            assert self.then.wait(10), "the next part was not loaded meanwhile"
        return {self.gives: feeds[self.takes] + 1}

    def close(self) -> None:
        self.kept.append(f"close {self.name}")


def chain(kept: Kept, ahead: bool) -> StreamedEngine:
    """Return three parts, x to a to b to y."""
    loaded = {name: threading.Event() for name in "123"}

    def opener(name: str, takes: str, gives: str, following: str | None):
        def load():
            part = Part(name, kept, takes, gives, loaded[following] if ahead and following else None)
            loaded[name].set()
            return part

        return StreamedPart(load, (takes,))

    parts = [opener("1", "x", "a", "2"), opener("2", "a", "b", "3"), opener("3", "b", "y", None)]
    return StreamedEngine(parts, (X,), (Y,), "the graph", ahead)


@pytest.mark.parametrize(("ahead", "most"), [(True, 2), (False, 1)])
def test_parts_run_in_order_and_few_are_there_at_a_time(ahead, most):
    kept = Kept()
    engine = chain(kept, ahead)
    assert kept == []
    for _ in range(2):
        assert engine.run({"x": np.zeros(2, np.float32)})["y"].tolist() == [3, 3]
    assert kept.most == most
    assert kept.count("load 2") == kept.count("close 2") == 2


@pytest.mark.parametrize("ahead", [True, False])
def test_a_part_that_fails_leaves_none_behind(ahead, monkeypatch):
    kept = Kept()
    engine = chain(kept, ahead)

    def fail(self, feeds, keep=()):
        if self.name == "2":
            raise SegueError("no")
        return {self.gives: feeds[self.takes]}

    monkeypatch.setattr(Part, "run", fail)
    with pytest.raises(SegueError, match="no"):
        engine.run({"x": np.zeros(2, np.float32)})
    assert sorted(event[5:] for event in kept if event.startswith("load")) == sorted(
        event[6:] for event in kept if event.startswith("close")
    )


def test_a_part_that_does_not_load_is_the_runs_failure():
    def fail():
        raise SegueError("cannot load")

    engine = StreamedEngine([StreamedPart(fail, ("x",))], (X,), (Y,), "the graph", ahead=True)
    with pytest.raises(SegueError, match="cannot load"):
        engine.run({"x": np.zeros(2, np.float32)})


def test_feeds_are_checked_and_nothing_stays_on_a_device():
    engine = chain(Kept(), ahead=False)
    with pytest.raises(UsageError, match=r"takes x of shape \[2\]"):
        engine.run({"x": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="is streamed"):
        engine.run({"x": np.zeros(2, np.float32)}, keep=["y"])
    with pytest.raises(UsageError, match="is streamed"):
        engine.put({"x": np.zeros(2, np.float32)})
