"""The families that CDM distils, by name. This module imports no training framework."""

from __future__ import annotations

SD3, LONGCAT, MOTION, DETAIL = "sd3", "longcat-image", "swifti2v-motion", "swifti2v-detail"
PICTURE, VIDEO = "picture", "video"

KINDS = {SD3: PICTURE, LONGCAT: PICTURE, MOTION: VIDEO, DETAIL: VIDEO}
"""What each family makes."""

FAMILIES = tuple(KINDS)
PICTURES = tuple(name for name, kind in KINDS.items() if kind == PICTURE)
