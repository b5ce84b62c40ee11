"""Files, directories and journals that are whole or absent."""
