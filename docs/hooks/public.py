"""Show `segue.open` under its public name: type checkers want it assigned, so its signature is not found from there."""

from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """Makes `segue.open` stand for the function that opens a bundle."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the assignment by an alias."""
        pkg.set_member("open", griffe.Alias("open", "segue.runtime.pipeline.open_model", parent=pkg))
