"""Memory of the three networks of a distillation: as full networks, and as two adapters on one base.

    python benchmarks/training/cdm_lora.py bundles/emoji-teacher [--rank 16]

Each variant runs four iterations in its own process. Weights are counted by their storage, so shared weights count
once. The results go to benchmarks/results/cdm_lora.json.
"""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from segue.training.cdm.data.conditions import Conditions
from segue.training.cdm.distil import Distillation
from segue.training.cdm.families import FAMILIES
from segue.training.cdm.networks import FullNetworks, LoraNetworks, load_teacher
from segue.training.cdm.plan import make_plan
from segue.training.cdm.spec import CdmSpec
from segue.training.loop.device import training_device
from segue.training.loop.run import LoopSpec

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common


def main() -> None:
    parser = common.make_parser(__doc__, "cdm_lora")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--conditions", type=Path, default=Path("runs/emoji-conditions"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, rank in (("full", 0), ("LoRA", options.rank)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found[name] = pool.submit(measured, options.teacher, options.conditions, rank, options.batch).result()
    found |= {
        "weights, LoRA / full": round(found["LoRA"]["weights (bytes)"] / found["full"]["weights (bytes)"], 3),
        "rank": options.rank,
        "batch": options.batch,
        "device": str(training_device()),
        **common.header("torch", "diffusers", "peft"),
    }
    common.report(options.out, found)


def measured(teacher: Path, conditions: Path, rank: int, batch: int) -> dict[str, int]:
    """Distil for four iterations; return the bytes of weights, the planned bytes, and the peak."""
    family, device = FAMILIES["sd3"], training_device()
    spec = CdmSpec(str(teacher), str(conditions), size=(128, 128), tokens=24, rank=rank)
    loop = LoopSpec(steps=4, batch=batch, learning_rate=1e-4)
    network = load_teacher(teacher, family)
    shape = family.shape(network.config, *spec.size)
    networks = (
        LoraNetworks(network, family, False, rank, spec.alpha) if rank else FullNetworks(network, family, False, device)
    )
    training = Distillation(networks, [Conditions(conditions)], shape, spec, loop, device)
    for step in range(loop.steps):
        training.iterate(step)
    modules = [networks.base] if isinstance(networks, LoraNetworks) else [*networks.trained.values(), networks.real]
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in modules for p in m.parameters()}
    planned = make_plan(spec, loop).bytes
    return {
        "weights (bytes)": sum(held.values()),
        "weights, planned (bytes)": planned["weights"],
        "gradients, moments and average, planned (bytes)": planned["gradients"]
        + planned["moments"]
        + planned["average"],
        "peak of the process (bytes)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
