"""From a bundle on disk to pictures, without a training framework."""
