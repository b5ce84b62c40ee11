"""The bundle: its manifest, the checks of its values, the reader, the table of families."""
