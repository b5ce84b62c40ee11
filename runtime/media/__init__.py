"""Files of pictures and videos: PNG, MP4, provenance."""
