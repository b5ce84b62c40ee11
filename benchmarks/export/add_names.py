"""Give a bundle that was exported before there were lists of names its prompts.json and its trained size.

    segue data emoji && python benchmarks/export/add_names.py bundles/emoji runs/data/emoji
    segue data emoji-clips && python benchmarks/export/add_names.py bundles/emoji-motion runs/data/emoji-clips

Training and export do the same for a new bundle. Every other file of the bundle stays as it is; bundle.json names the
new file and its hash. The trained size is the bundle's default size, at which the recipes train.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

from segue.runtime.bundle import bundle_json, manifest
from segue.runtime.bundle.prompts import FILE_NAME
from segue.runtime.bundle.reader import verify
from segue.runtime.storage.files import write_whole

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common


def main() -> None:
    from segue.training.data import clips, emoji
    from segue.training.data.prompts import write_names

    parser = common.make_parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="directory of segue data emoji or emoji-clips")
    options = parser.parse_args()
    content = verify(options.bundle).manifest
    rows = clips.load(options.data) if (options.data / "clips.json").is_file() else emoji.load_rows(options.data)
    write_names(rows, options.bundle)
    data = (options.bundle / FILE_NAME).read_bytes()
    added = {FILE_NAME: manifest.File(hashlib.sha256(data).hexdigest(), len(data), True)}
    made = dataclasses.replace(
        content,
        sizes=dataclasses.replace(content.sizes, trained=(content.sizes.default,)),
        files=content.files | added,
        prompts=FILE_NAME,
    )
    write_whole(options.bundle / manifest.FILE_NAME, bundle_json.dump(made))
    verify(options.bundle)
    print(f"{options.bundle}: {FILE_NAME} of {len(data)} bytes")


if __name__ == "__main__":
    main()
