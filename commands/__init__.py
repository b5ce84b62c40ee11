"""The commands of `segue`: they parse options, call the package and show progress. One file a command family."""
