"""A stand-in for the Hugging Face hub on this machine, and a checkpoint in the layout of CDM's published student."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def build_student(root: Path) -> Path:
    """Write a tiny SD3 with T5 as the authors' scripts/save.py saves a student, to `root`, and return it.

    The transformer is in bf16 and the rest in fp16, a file of their own holds the sigmas, and no segue.json is there.
    """
    import torch
    from diffusers import SD3Transformer2DModel
    from transformers import T5Config, T5EncoderModel

    from segue.training.video.text import make_tokenizer

    from .checkpoints import build_sd3

    build_sd3(root, seed=5, dtype="float16")
    (root / "segue.json").unlink()
    transformer = SD3Transformer2DModel.from_pretrained(root / "transformer", torch_dtype=torch.bfloat16)
    transformer.save_pretrained(root / "transformer")
    torch.manual_seed(5)
    tokenizer = make_tokenizer(["a red apple on a wooden table", "a red heart"], 60, 77)
    tokenizer.save_pretrained(root / "tokenizer_3")
    config = T5Config(vocab_size=len(tokenizer), d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5EncoderModel(config).half().save_pretrained(root / "text_encoder_3")
    path = root / "model_index.json"
    added = {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    about = {"custom_sigmas": [1.0, 0.75, 0.5, 0.25], "deterministic": True, "checkpoint_path": "/home/them/ema"}
    (root / "student_pipeline_meta.json").write_text(json.dumps(about))
    return root


@contextmanager
def hub(model: str, directory: Path) -> Iterator[str]:
    """Serve the files of `directory` as `model` (ORG/NAME) at COMMIT; yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            files = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
            data, name = None, ""
            if path in (f"/api/models/{model}", *(f"/api/models/{model}/revision/{r}" for r in ("main", COMMIT))):
                data = json.dumps({"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            elif path == f"/api/models/{model}/tree/{COMMIT}":
                rows = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": _sum(p)} for n, p in files.items()]
                data = json.dumps(rows)
            elif (name := path.removeprefix(f"/{model}/resolve/{COMMIT}/")) in files:
                data = files[name].read_bytes()
            found = data.encode() if isinstance(data, str) else data or b"not found"
            self.send_response(200 if data is not None else 404)
            if name in files:
                self.send_header("ETag", f'"{_sum(files[name])}"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            if body:
                self.wfile.write(found)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _sum(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
