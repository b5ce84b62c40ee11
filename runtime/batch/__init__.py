"""Jobs from a file, on several processes or a Ray cluster."""
