"""The page on SwiftI2V is enough to write the loop: this one was written from it alone, and draws Segue's frames.

Everything above `segue_frames` imports nothing of Segue.
"""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps
from tokenizers import Tokenizer

TYPES = {"float16": np.float16, "float32": np.float32, "int64": np.int64}


def philox_words(count, seed, stream, number):
    counter = np.zeros((4, -(-count // 4)), np.uint64)
    counter[0], counter[1], counter[2] = np.arange(counter.shape[1]), stream, number
    c0, c1, c2, c3 = counter
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    for turn in range(10):
        k0 = np.uint64((seed + turn * 0x9E3779B9) % 2**32)
        k1 = np.uint64(((seed >> 32) + turn * 0xBB67AE85) % 2**32)
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> half) ^ c1 ^ k0, b & low, (a >> half) ^ c3 ^ k1, a & low
    return np.stack([c0, c1, c2, c3], 1).reshape(-1)[:count]


def noise(shape, seed, stream, number):
    words = philox_words(int(np.prod(shape)), seed, stream, number)
    normal = NormalDist()
    return np.array([normal.inv_cdf((int(word) + 0.5) / 2**32) for word in words], np.float32).reshape(shape)


class Graphs:
    """The graphs of a bundle, each loaded when it is first called."""

    def __init__(self, bundle):
        self.root = Path(bundle)
        self.content = json.loads((self.root / "bundle.json").read_text())
        self.sessions = {}

    def has(self, name):
        return name in self.content["components"]

    def __call__(self, name, **feeds):
        spec = self.content["components"][name]
        if name not in self.sessions:
            self.sessions[name] = onnxruntime.InferenceSession(
                str(self.root / spec["graph"]), providers=["CPUExecutionProvider"]
            )
        cast = {i["name"]: feeds[i["name"]].astype(TYPES[i["dtype"]]) for i in spec["inputs"]}
        names = [o["name"] for o in spec["outputs"]]
        return dict(zip(names, self.sessions[name].run(names, cast), strict=True))


class Autoencoder:
    """One half of an autoencoder in one window; it keeps the caches."""

    def __init__(self, graphs, name, mean, std):
        self.graphs, self.name, self.caches = graphs, name, None
        self.mean, self.std = (np.array(v, np.float32).reshape(-1, 1, 1, 1) for v in (mean, std))

    def _call(self, half, **feeds):
        stage = "first" if self.caches is None else "next"
        made = self.graphs(f"{self.name}_{half}_{stage}", **feeds, **(self.caches or {}))
        self.caches = {k.removeprefix("next_"): v for k, v in made.items() if k.startswith("next_cache_")}
        return made

    def encode(self, frames):
        """Frames [n, h, w, 3] to normalised latents [channels, T, h, w]."""
        made = []
        for start in (0, *range(1, len(frames), 4)):
            part = frames[start : start + (4 if start else 1)]
            latents = self._call("encoder", pixels=part.transpose(3, 0, 1, 2)[None])["latents"]
            made.append((latents[0].astype(np.float32) - self.mean) / self.std)
        return np.concatenate(made, 1)

    def decode(self, latents):
        """Normalised latents [channels, T, h, w] to frames [n, h, w, 3]."""
        made = []
        for i in range(latents.shape[1]):
            pixels = self._call("decoder", latents=(latents[:, i : i + 1] * self.std + self.mean)[None])["pixels"]
            made.append(pixels[0].astype(np.float32).transpose(1, 2, 3, 0))
        return np.concatenate(made)


def sigmas_of(sampler):
    steps, k = sampler["steps"], np.float32(sampler["shift"])
    x = np.array(sampler["sigmas"] or [1 - i / steps for i in range(steps)]).astype(np.float32)
    x = k * x / (1 + (k - 1) * x)
    return np.append(x, np.float32(0)), x * np.float32(sampler["train_timesteps"])


def tokens(graphs, prompt):
    spec = graphs.content["tokenizers"]["tokenizer"]
    tokenizer = Tokenizer.from_file(str(graphs.root / spec["file"]))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids, length = tokenizer.encode(prompt).ids, spec["length"]
    if len(ids) > length:
        ids = [*ids[: length - 1], ids[-1]]
    pad = length - len(ids)
    return np.array([ids + [spec["pad_id"]] * pad], np.int64), np.array([[1] * len(ids) + [0] * pad], np.int64)


def states_of(graphs, prompt):
    ids, mask = tokens(graphs, prompt)
    return graphs("text_encoder", input_ids=ids, attention_mask=mask)["states"]


def stage_one(graphs, image, text, seed, window):
    video = graphs.content["video"]
    motion, scale, frames = video["motion"], video["scale"], video["frames"]
    height, width, _ = image.shape
    low = image.reshape(height // scale, scale, width // scale, scale, 3).mean((1, 3), dtype=np.float32)
    clip = np.zeros((frames, *low.shape), np.float32)
    clip[0] = low
    given = Autoencoder(graphs, "vae", motion["mean"], motion["std"]).encode(clip)
    mask = np.zeros((4, *given.shape[1:]), np.float32)
    mask[:, 0] = 1
    sampler = motion["sampler"]
    sigmas, times = sigmas_of(sampler)
    latents = noise(given.shape, seed, 1, window)
    for i, time in enumerate(times):
        second = graphs.has("transformer_2") and time < 0.9 * sampler["train_timesteps"]
        seen = np.concatenate([latents, mask, given])[None].repeat(len(text), 0)
        v = graphs(
            "transformer_2" if second else "transformer",
            latents=seen, timestep=np.full(len(text), time, np.float32), text=text,
        )["velocity"].astype(np.float32)  # fmt: skip
        if len(text) == 2:
            v = v[:1] + np.float32(sampler["guidance"]) * (v[1:] - v[:1])
        latents = latents + (sigmas[i + 1] - sigmas[i]) * v[0]
    return latents


def reference_of(graphs, low, image):
    video = graphs.content["video"]
    motion = video["motion"]
    small = np.clip(Autoencoder(graphs, "vae", motion["mean"], motion["std"]).decode(low), -1, 1)
    height, width, _ = image.shape
    large = [image]
    for frame in small[1:]:
        planes = [
            Image.fromarray(np.ascontiguousarray(frame[..., c])).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        large.append(np.clip(np.stack([np.asarray(plane) for plane in planes], -1), -1, 1))
    return Autoencoder(graphs, "detail_vae", video["mean"], video["std"]).encode(np.stack(large))


def stage_two(graphs, reference, text, seed, window, count):
    """Normalised latents of `count` latent frames, the image latent included."""
    content, video = graphs.content, graphs.content["video"]
    many, before, after = video["targets"], video["before"], video["after"]
    sigmas, times = sigmas_of(content["sampler"])
    made = reference[:, :1]
    for start in range(1, count, many):
        stop = min(start + many, count)
        neighbours = list(range(max(1, start - before), start))
        behind = list(range(stop, min(stop + after, count)))
        clean, targets = [0, *neighbours], list(range(start, stop))
        number = window * (video["frames"] - 1) // 4
        shape = (reference.shape[0], *reference.shape[2:])
        latents = np.stack([noise(shape, seed, 2, number + i) for i in targets], 1)
        noisy = slice(len(clean), len(clean) + len(targets))
        positions = np.array([[*clean, *targets, *behind]], np.int64)
        for i, time in enumerate(times):
            shown = np.concatenate([made[:, clean], latents, reference[:, behind]], 1)
            beside = np.concatenate([made[:, clean], reference[:, targets], reference[:, behind]], 1)
            timesteps = np.zeros(positions.shape, np.float32)
            timesteps[:, noisy] = time
            v = graphs(
                "detail_transformer", latents=np.concatenate([shown, beside])[None], timesteps=timesteps,
                positions=positions, text=text,
            )["velocity"].astype(np.float32)  # fmt: skip
            latents = latents + (sigmas[i + 1] - sigmas[i]) * v[0][:, noisy]
        made = np.concatenate([made, latents], 1)
    return made


def frames_of(bundle, picture, prompt, frames, seed, size, negative=""):
    """Return the frames of a video, uint8 [n, height, width, 3]; `picture` is an upright sRGB Pillow picture."""
    graphs = Graphs(bundle)
    video = graphs.content["video"]
    height, width = size
    image = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)).astype(np.float32)
    image = image / np.float32(127.5) - np.float32(1)
    text = states_of(graphs, prompt)
    both = text
    if video["motion"]["sampler"]["guidance"] > 1:
        both = np.concatenate([states_of(graphs, negative), text])
    left, window, shown = -(-(frames - 1) // 4) * 4, 0, []
    while not shown or left:
        adds = min(video["frames"] - 1, left)
        low = stage_one(graphs, image, both, seed, window)
        count = adds // 4 + 1
        reference = reference_of(graphs, low, image)[:, :count]
        latents = stage_two(graphs, reference, text, seed, window, count)
        made = Autoencoder(graphs, "detail_vae", video["mean"], video["std"]).decode(latents)
        levels = np.round(np.clip(made / 2 + np.float32(0.5), 0, 1) * np.float32(255)).astype(np.uint8)
        shown.append(levels[1:] if window else levels)
        image, window, left = np.clip(made[-1], -1, 1), window + 1, left - adds
    return np.concatenate(shown)


def segue_frames(bundle, picture, prompt, frames, seed, size, negative=""):
    import segue

    with segue.open(bundle) as model:
        request = segue.AnimationRequest(np.asarray(picture), prompt, negative, frames=frames, seed=seed, size=size)
        return np.concatenate(list(model.frames(request)))


def decibels(ours, theirs):
    error = np.square(ours.astype(np.float64) - theirs).mean()
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def emoji():
    """A picture that is neither square nor of a trained size."""
    import segue

    with segue.open("emoji") as model:
        square = Image.fromarray(model.generate("grinning cat", seed=1))
    wide = Image.new("RGB", (200, 160), (255, 255, 255))
    wide.paste(square, (36, 16))
    return wide


def test_the_loop_of_the_page_draws_the_frames_of_the_shipped_bundle(emoji):
    import segue

    bundle = Path(segue.__file__).parent / "bundles/emoji-motion"
    request = (emoji, "grinning cat", 17, 3, (128, 128))
    ours, theirs = segue_frames("emoji-motion", *request), frames_of(bundle, *request)
    assert ours.shape == theirs.shape == (17, 128, 128, 3)
    assert decibels(ours, theirs) > 60


def test_the_loop_of_the_page_chains_windows_and_takes_guidance(emoji, video_bundle):
    request = (emoji, "a red heart", 29, 2**40 + 5, (64, 128), "waving hand")
    ours, theirs = segue_frames(video_bundle, *request), frames_of(video_bundle, *request)
    assert ours.shape == theirs.shape == (29, 64, 128, 3)
    assert decibels(ours[17:], theirs[17:]) > 60
    assert decibels(ours[:17], theirs[:17]) > 60


def test_seventeen_frames_are_not_the_first_of_thirty_three(emoji):
    short, long = (segue_frames("emoji-motion", emoji, "grinning cat", n, 3, (64, 64)) for n in (17, 33))
    assert np.array_equal(short[:13], long[:13])
    assert decibels(short[13:], long[13:17]) < 50
