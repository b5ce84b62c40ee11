"""The largest numbers in a request or a bundle. Each is far above any use and keeps arithmetic bounded."""

MAX_REFERENCE = 1024 * 1024  # pixels of a reference picture; larger ones are scaled down, as in diffusers
MAX_STEPS = 1000  # network calls per picture
MAX_COUNT = 4096  # pictures per request
MAX_TEXT = 100_000  # characters of a prompt: above any tokenizer's limit, below that of a PNG text chunk
MAX_TOKENS = 10_000
MAX_SIDE = 16_384  # pixels
MAX_FRAMES = 1_000_000  # of a video, and of any run of latent frames
MIN_FPS, MAX_FPS = 0.01, 1000  # of a video
MAX_WIDTH = 2**16  # any fixed dimension of a graph's inputs and outputs
MAX_RANK = 1024  # of the LoRA files that a bundle takes at run time
QUANTIZED = ("int8", "w8a8", "fp8")  # precisions whose large matrices have 8 bits; the first one is for processors
PART_BYTES = 2**28  # weights of a part of a graph: the default of an export
PRECISIONS = ("keep", "fp16", "bf16", "fp32")  # what an export may be asked for
NOISES = ("philox", "torch")  # kinds of noise that a request may name
MAX_TRAINED = 64  # sizes that a bundle was trained at
MAX_PROMPTS = 8 * 2**20  # bytes of prompts.json
MAX_NAMES, MAX_NAME = 50_000, 400  # names in prompts.json, and characters of a name, a tag or a style
FLOW = ("flow-match-euler", "flow-match-renoised")  # samplers of networks that give a velocity
BETAS = ("euler", "euler-ancestral", "ddim", "lcm", "tcd", "dpm++2m")  # and of those trained on betas
GRIDS = ("", "diffusers", "unipc")  # levels of a video's sampler, see `sampling/motion.py`
GIVEN = ("mask", "first")  # how a video's first stage gets the picture
