"""An adapter folded into its base, so that it loads without peft (beside the arrow: checkpoints -> export).

Reads    a base folder and an adapter folder          Writes  config.json, *.safetensors into the folder it is given
Errors   ModelError naming the folder that cannot be loaded; exit code of the contract
Used by  `dropforge export ID DIR --merge` as `python -m trainer.models.merge BASE ADAPTER OUT`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from core.daemon.pid_manager import die_with_parent
from core.errors import DropforgeError, ModelError
from trainer.models.load import load_causal_lm

_SHARD = "5GB"  # what the Hub and most loaders like


def merge(base: Path, adapter: Path, out: Path) -> None:
    """Write base + adapter as one ordinary model folder (weights, config, generation config).

    Raises:
        ModelError: one of the two cannot be loaded, or they do not fit each other.
    """
    model = load_causal_lm(str(base))
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter does not load: {error}", where=str(adapter)) from error
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.save_pretrained(out, max_shard_size=_SHARD)


def main(argv: Sequence[str] | None = None) -> int:
    """Merge what the command line names; returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m trainer.models.merge", description=merge.__doc__)
    for name in ("base", "adapter", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args(argv)
    try:
        merge(arguments.base, arguments.adapter, arguments.out)
    except DropforgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
