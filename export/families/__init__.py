"""Model families: what is traced of each, under which names, with which shapes."""
