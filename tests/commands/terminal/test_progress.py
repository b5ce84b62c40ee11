"""The bar of a command: what it shows in a terminal of any width, and how it follows the calls of a plan."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

import segue
from segue.commands.terminal import progress
from segue.commands.terminal.progress import Bar, Work, clock, counted

GUIDE = Path(segue.__file__).parent / "docs/guide/first-picture.md"
WIDTHS = (40, 80, 120)


@pytest.fixture
def watch(monkeypatch):
    """A clock that the test turns."""
    made = SimpleNamespace(now=100.0, monotonic=lambda: made.now)
    monkeypatch.setattr(progress, "time", made)
    return made


def shown(bar, width):
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(bar)
    return [line.rstrip() for line in console.export_text().splitlines()]


def planned(**phases):
    """Return a plan with the calls and seconds of each component."""
    made = [SimpleNamespace(component=name, calls=calls, seconds=time) for name, (calls, time) in phases.items()]
    return SimpleNamespace(phases=made)


def video(watch, verbose):
    """Return the bar of a video of 33 frames after 13 of them."""
    work = Work("frames", 33, verbose=verbose)
    work.plan(planned(text=(1, 1.0), motion=(9, 3.0), detail=(12, 6.0)))
    watch.now += 0.5
    work.call("text")
    for _ in range(9):
        work.call("motion")
    for _ in range(4):
        watch.now += 1.375
        work.call("detail")
    work.count(13, 33)
    work.say("window 0: detail 1/3", used_MiB=466.2, planned_MiB=509.0)
    return work


def test_a_bar_tells_frames_of_all_frames_and_the_time_left_for_all_of_them(watch):
    lines = {width: shown(video(watch, verbose=False), width) for width in WIDTHS}
    assert all(len(drawn) == 1 for drawn in lines.values())
    for width, (line,) in lines.items():
        assert line.startswith("frames 13/33 ━━━━━━")
        assert line.endswith(" 0:00:04 left")  # 6 of 10 planned seconds took 6
        assert cell_len(line) <= width
    assert cell_len(lines[40][0]) == 40


def test_stages_and_memory_are_told_only_if_they_were_asked_for_and_stay_readable(watch):
    for width in WIDTHS:
        plain, told = (shown(video(watch, verbose), width) for verbose in (False, True))
        assert not any("MiB" in line or "window" in line for line in plain)
        assert max(map(cell_len, told)) <= width
        words = " ".join(" ".join(told).split())
        assert words.endswith("window 0: detail 1/3, used 466 MiB, planned 509 MiB, 0:00:06 passed")
        assert told[0].startswith("frames 13/33 ━")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_guide_shows_what_a_terminal_of_each_width_shows(watch, width):
    page = GUIDE.read_text(encoding="utf-8")
    for verbose in (False, True):
        drawn = "\n".join(shown(video(watch, verbose), width))
        assert drawn in page, f"at {width} columns:\n{drawn}"


def test_a_label_that_is_too_long_gives_way_to_the_amount():
    bar = Bar("a-recipe-with-a-name-of-many-many-words")
    bar.begin()
    counted(bar, "steps")(3, 400)
    (line, *_) = shown(bar, 30)
    assert line.endswith("… 3/400")
    assert cell_len(line) <= 30


def test_before_the_amount_is_known_a_bar_shows_its_label():
    assert shown(Bar("hashing"), 40)[0].startswith("hashing ")


def test_bytes_are_shown_in_megabytes(watch):
    bar = Bar("copy")
    update = counted(bar, "bytes")
    update(0, 4e8)
    watch.now += 2
    update(1e8, 4e8)
    assert " ".join(shown(bar, 120)).split()[:2] == ["copy", "100/400"]
    assert bar.more == "50 MB/s"
    assert bar.left == "0:00:06 left"


def test_the_time_left_of_a_run_that_goes_on_counts_only_its_own_work(watch):
    bar = Bar("emoji-teacher")
    update = counted(bar, "steps")
    update(300, 400)
    watch.now += 10
    update(310, 400)
    assert bar.left == "0:01:30 left"


def test_the_time_left_runs_down_between_two_calls(watch):
    bar = Bar("frames")
    bar.begin()
    watch.now += 5
    bar.move(0.5)
    watch.now += 2
    assert bar.left == "0:00:03 left"
    watch.now += 60
    assert bar.left == "0:00:00 left"


def test_each_call_counts_with_the_time_that_its_plan_gives():
    work = Work("pictures", 2)
    work.plan(planned(text_encoder=(2, 1.0), transformer=(8, 8.0), vae_decoder=(2, 1.0)))
    shares = []
    for name in ("text_encoder", *4 * ["transformer"], "vae_decoder"):
        work.call(name)
        shares.append(round(work.done, 3))
    assert shares == [0.05, 0.15, 0.25, 0.35, 0.45, 0.5]
    work.call("transformer_step")  # it is in no plan
    assert round(work.done, 3) == 0.5


def test_without_figures_of_time_every_call_counts_the_same():
    work = Work("frames", 5)
    work.plan(planned(text=(1, 0.0), detail=(3, 0.0)))
    work.call("detail")
    assert work.done == 0.25


def test_calls_that_an_earlier_run_made_are_done_and_not_timed(watch):
    work = Work("frames", 33)
    work.plan(planned(motion=(10, 5.0), detail=(10, 5.0)))
    work.skip("motion", 10)
    work.skip("detail", 2)
    assert work.done == 0.6
    watch.now += 3
    work.call("detail")
    work.call("detail")
    assert round(work.done, 3) == 0.7
    assert work.left == "0:00:09 left"


def test_without_a_plan_steps_move_the_bar_and_with_one_they_do_not():
    work = Work("pictures", 2)
    work.plan(None)
    work.reach(3, 4)
    assert work.done == 0.75
    work = Work("pictures", 2)
    work.plan(planned(transformer=(4, 1.0)))
    work.reach(3, 4)
    assert work.done == 0


def test_one_picture_is_not_counted():
    work = Work("picture", 1)
    assert work.amount == ""
    assert shown(work, 40)[0].startswith("picture ")


def test_a_share_never_leaves_its_range():
    work = Work("frames", 5)
    work.plan(planned(detail=(1, 1.0)))
    for _ in range(3):
        work.call("detail")
    assert work.done == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (8.4, "0:00:08"), (3725, "1:02:05"), (360000, "100:00:00")]
)
def test_times_begin_with_hours(seconds, text):
    assert clock(seconds) == text
