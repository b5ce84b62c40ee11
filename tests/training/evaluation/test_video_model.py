"""Both stages in PyTorch: they draw at the levels at which the runtime draws."""

from pathlib import Path

import numpy as np

import segue
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.sampling import motion
from segue.training.evaluation.video_model import settings_of

BUNDLE = Path(segue.__file__).parent / "bundles/emoji-motion"


def test_evaluation_draws_both_stages_at_the_levels_of_the_runtime():
    content, found = read_manifest(BUNDLE), settings_of(BUNDLE)
    assert content.video is not None
    for levels, sampler in ((found.motion, content.video.motion.sampler), (found.detail, content.sampler)):
        expected = motion.schedule(sampler)
        assert np.array_equal(levels.sigmas, expected.sigmas)
        assert np.array_equal(levels.timesteps, expected.timesteps)
