"""The desktop example: driven and screenshotted offscreen, and packaged into a folder that runs by itself."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/desktop"

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("PySide6.QtWidgets", reason="PySide6 cannot be imported here", exc_type=ImportError)


@pytest.fixture(scope="module")
def app():
    from PySide6.QtWidgets import QApplication

    return QApplication.instance() or QApplication([])


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("desktop_example", EXAMPLE / "main.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def window(app, example, video_bundle):
    import segue

    with (
        segue.open("emoji") as model,
        segue.open(video_bundle) as videos,
        segue.ModelQueue(model) as queue,
        segue.ModelQueue(videos) as films,
    ):
        made = example.Window(queue, films)
        made.show()
        yield made
        made.close()


def until(app, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        app.processEvents()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_prompt_becomes_a_picture_and_then_a_video_and_both_are_saved(app, example, window, tmp_path, monkeypatch):
    import segue

    window.prompt.setText("a red heart")
    window.seed.setValue(5)
    window.prompt.returnPressed.emit()
    assert not window.draw.isEnabled()
    until(app, window.draw.isEnabled)
    with segue.open("emoji") as model:
        assert np.array_equal(window.image, model.generate("a red heart", seed=5))
    window.play.click()
    until(app, lambda: window.film)
    until(app, window.draw.isEnabled)
    assert len(window.film) == 17
    until(app, lambda: window.shown > 1)
    for name in ("saved.png", "saved.mp4"):
        monkeypatch.setattr(example.QFileDialog, "getSaveFileName", lambda *_, name=name: (str(tmp_path / name), ""))
        window.keep.click()
    assert segue.read_metadata(tmp_path / "saved.png")["seed"] == 5
    with av.open(str(tmp_path / "saved.mp4")) as saved:
        assert len(list(saved.decode(video=0))) == 17
    shot = window.grab().toImage()
    assert shot.save(str(tmp_path / "window.png"))
    colours = {shot.pixelColor(x, shot.height() // 2).name() for x in range(0, shot.width(), 8)}
    assert len(colours) > 10


def test_cancel_stops_what_runs(app, window, monkeypatch):
    import segue

    plain = segue.Request
    monkeypatch.setattr(segue, "Request", lambda prompt, **more: plain(prompt, steps=900, **more))
    window.ask()
    until(app, lambda: window.progress.value() > 1)
    window.stop.click()
    until(app, window.draw.isEnabled)
    assert window.progress.value() == 0
    assert window.status.text() != "Done."


def test_what_fails_is_said_in_the_window(app, window, monkeypatch):
    import segue

    plain = segue.Request
    monkeypatch.setattr(segue, "Request", lambda prompt, **more: plain(prompt, size=17, **more))
    window.ask()
    until(app, window.draw.isEnabled)
    assert "size 17x17" in window.status.text()


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool (Debian: apt install)"
)
def test_the_packaged_program_runs_without_python_and_draws(tmp_path):
    from PIL import ImageGrab

    pytest.importorskip("PyInstaller")
    build = [sys.executable, "-m", "PyInstaller", str(EXAMPLE / "segue-desktop.spec"), "-y", "--log-level", "ERROR"]
    subprocess.run(
        [*build, "--distpath", str(tmp_path / "dist"), "--workpath", str(tmp_path / "build")], check=True, cwd=tmp_path
    )
    folder = tmp_path / "dist/segue-desktop"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"the packaged program has {size / 1e6:.0f} MB")
    assert not list(folder.rglob("torch"))
    display = f":{90 + os.getpid() % 400}"
    bare = {"HOME": str(tmp_path), "DISPLAY": display, "PATH": "/nowhere", "QT_QPA_PLATFORM": "xcb"}
    with subprocess.Popen(["Xvfb", display, "-screen", "0", "640x640x24"], stderr=subprocess.DEVNULL) as screen:
        try:
            time.sleep(1)
            with subprocess.Popen([folder / "segue-desktop"], env=bare) as program:
                try:
                    keys = [
                        "xdotool",
                        "search",
                        "--sync",
                        "--name",
                        "^Segue$",
                        "windowfocus",
                        "--sync",
                        "key",
                        "Return",
                    ]
                    subprocess.run(keys, env={**os.environ, "DISPLAY": display}, check=True, timeout=60)
                    end, red = time.monotonic() + 60, 0.0
                    while red < 0.05 and time.monotonic() < end:
                        time.sleep(0.5)
                        pixels = np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB")).astype(int)
                        red = float(((pixels[..., 0] > 200) & (pixels[..., 1] < 90)).mean())
                    assert red >= 0.05, "the red heart is on the screen"
                    assert program.poll() is None
                finally:
                    program.kill()
        finally:
            screen.kill()
