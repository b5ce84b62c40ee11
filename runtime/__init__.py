"""From a bundle on disk to pictures and videos, without a training framework."""
