"""A window that draws a picture of a prompt, and animates it if there is a bundle for videos.

    python examples/desktop/main.py [PICTURES_BUNDLE [VIDEOS_BUNDLE]]

The runtime works in its own thread. It reports to the window by Qt signals, which cross threads safely.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtGui import QImage, QPixmap
from PySide6.QtWidgets import (
    QApplication,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

import segue
from segue.runtime.media.sinks import find_sink

SIDE = 384  # pixels of the picture on the screen


class Signals(QObject):
    """The reports of the worker thread to the window."""

    progress = Signal(int, int)
    frames = Signal(object)
    done = Signal(object)
    failed = Signal(str)


class Window(QWidget):
    """Requests pictures and videos from a ModelQueue and shows them."""

    def __init__(self, pictures: segue.ModelQueue, videos: segue.ModelQueue | None) -> None:
        super().__init__()
        self.setWindowTitle("Segue")
        self.pictures, self.videos = pictures, videos
        self.image: np.ndarray | None = None
        self.origin: dict = {}  # metadata of the picture: its request and its bundle
        self.film: list[np.ndarray] = []
        self.token: segue.CancelToken | None = None

        self.prompt = QLineEdit("a red heart")
        self.seed = QSpinBox(prefix="Seed ", maximum=2**31 - 1, toolTip="Another seed gives another picture.")
        self.draw = QPushButton("&Draw", clicked=self.ask)
        self.stop = QPushButton("&Cancel", clicked=self.cancel, enabled=False)
        self.play = QPushButton("&Animate", clicked=self.animate, enabled=False, visible=videos is not None)
        self.keep = QPushButton("&Save…", clicked=self.save, enabled=False)
        self.progress = QProgressBar(textVisible=False)
        self.picture = QLabel(alignment=Qt.AlignmentFlag.AlignCenter)
        self.picture.setFixedSize(SIDE, SIDE)
        self.status = QLabel("Ready.", wordWrap=True)
        self.prompt.returnPressed.connect(self.ask)

        buttons = QHBoxLayout()
        for button in (self.seed, self.draw, self.stop, self.play, self.keep):
            buttons.addWidget(button)
        layout = QVBoxLayout(self)
        for part in (self.prompt, self.progress, self.picture, self.status):
            layout.addWidget(part)
        layout.insertLayout(1, buttons)

        self.signals = Signals()
        self.signals.progress.connect(self.show_progress)
        self.signals.frames.connect(lambda frames: self.film.extend(frames))
        self.signals.done.connect(self.show_result)
        self.signals.failed.connect(self.show_failure)
        self.clock = QTimer(self, interval=83, timeout=self.show_next_frame)
        self.shown = 0

    def ask(self) -> None:
        """Draw the prompt."""
        if not self.draw.isEnabled():
            return
        request, token = segue.Request(self.prompt.text(), seed=self.seed.value()), segue.CancelToken()

        def on_step(done: int, total: int, latents: np.ndarray) -> None:
            self.signals.progress.emit(done, total)

        self.begin(token, lambda: self.pictures.submit(request, on_step=on_step, cancel=token))

    def animate(self) -> None:
        """Make a video of the picture and play its frames from the first segment."""
        assert self.videos is not None
        assert self.image is not None
        token, image, words, seed = segue.CancelToken(), self.image, self.prompt.text(), self.seed.value()
        self.film, self.shown = [], 0

        def on_event(event: Any) -> None:
            self.signals.progress.emit(event.done, event.total)

        def work(model: segue.Model) -> None:
            for frames in model.animate(image, words, seed=seed, on_event=on_event, cancel=token):
                self.signals.frames.emit(frames)

        self.clock.start()
        videos = self.videos
        self.begin(token, lambda: videos.do(work, token))

    def begin(self, token: segue.CancelToken, submit: Callable[[], Future]) -> None:
        """Give work to a queue; the window gets its result or failure."""
        try:
            future = submit()
        except segue.SegueError as error:
            self.show_failure(str(error))
            return
        self.token = token
        self.busy(True)
        self.status.setText("Working…")
        self.progress.setRange(0, 0)
        future.add_done_callback(self.ended)

    def ended(self, future: Future) -> None:
        """Report the end of work; it runs in the worker's thread."""
        try:
            self.signals.done.emit(future.result())
        except CancelledError:
            self.signals.failed.emit("Cancelled.")
        except Exception as error:  # a bug must not leave the window waiting
            self.signals.failed.emit(str(error))

    def cancel(self) -> None:
        """Stop the work before its next network call."""
        if self.token is not None:
            self.token.cancel()

    def show_progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self.progress.setRange(0, total)
        self.progress.setValue(done)

    def show_result(self, result: segue.Result | None) -> None:
        """Show a picture. A video was already shown while it was made."""
        if result is not None:
            self.clock.stop()
            self.film = []
            self.image, self.origin = result.images[0], result.metadata[0]
            self.paint(self.image)
        self.busy(False)
        self.status.setText("Done.")
        self.show_progress(1, 1)

    def show_failure(self, text: str) -> None:
        """Show what went wrong. After a stopped video the picture stays."""
        self.clock.stop()
        if self.image is not None:
            self.paint(self.image)
        self.busy(False)
        self.show_progress(0, 1)
        self.status.setText(text)

    def show_next_frame(self) -> None:
        """Paint the next frame of the video; after the last frame, the first."""
        if self.film:
            self.paint(self.film[self.shown % len(self.film)])
            self.shown += 1

    def paint(self, image: np.ndarray) -> None:
        """Show uint8 [height, width, 3]."""
        height, width, _ = image.shape
        data = np.ascontiguousarray(image)
        pixels = QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888)
        whole = QPixmap.fromImage(pixels).scaled(
            SIDE, SIDE, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
        self.picture.setPixmap(whole)

    def busy(self, working: bool) -> None:
        """Enable the buttons that can be used now."""
        self.draw.setEnabled(not working)
        self.stop.setEnabled(working)
        self.play.setEnabled(not working and self.image is not None)
        self.keep.setEnabled(not working and self.image is not None)

    def save(self) -> None:
        """Write the picture, or its video if there is one, to a file of the user's choice."""
        kinds = ("Picture (*.png)", "Video (*.mp4)")
        shown = kinds if self.film else kinds[:1]
        path, _ = QFileDialog.getSaveFileName(self, "Save", "picture.png", ";;".join(shown))
        if path and self.image is not None:
            try:
                self.write(Path(path))
            except segue.SegueError as error:
                self.show_failure(str(error))

    def write(self, path: Path) -> None:
        """Write the video if the name ends in .mp4 and there is one, else the picture; raises SegueError."""
        if path.suffix.lower() == ".mp4" and self.film:
            height, width, _ = self.film[0].shape
            with find_sink(path)(path, 1000 / self.clock.interval(), height, width, None) as write:
                write(np.stack(self.film))
        else:
            assert self.image is not None
            segue.write_png(path, self.image, self.origin)


def main(arguments: list[str]) -> int:
    """Open the bundles and the window; return the exit code."""
    app = QApplication(arguments[:1])
    names = arguments[1:3] or ["emoji", "emoji-motion"]
    try:
        models = [segue.open(name) for name in names]
    except segue.SegueError as error:  # a program without a console can show it only here
        QMessageBox.critical(None, "Segue", str(error))
        return error.exit_code
    queues = [segue.ModelQueue(model) for model in models]
    window = Window(queues[0], queues[1] if len(queues) > 1 else None)
    window.show()
    code = app.exec()
    for queue, model in zip(queues, models, strict=True):
        queue.close()
        model.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
