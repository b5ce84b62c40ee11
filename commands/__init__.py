"""The commands of `segue`: parse, call, show progress. A file for each family of commands."""
