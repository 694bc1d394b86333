"""`python -m benchmarks` runs all; `python -m benchmarks NAME [options]` one of them."""

from __future__ import annotations

import importlib
import os
import sys

from transom.hardware import tune_libraries

NAMES = (
    "training_speed",
    "finetune_speed",
    "finetune_quality",
    "shakespeare",
    "small_data",
    "big_file",
    "engine_speed",
    "gguf_parity",
    "shared_cores",
    "serving_speed",
    "adapter_speed",
    "weights_quality",
    "answer_quality",
    "generation_speed",
    "translation_speed",
    "embedding_speed",
    "experts_speed",
    "multi30k",
    "classification",
    "embedding_quality",
    "retrieval_quality",
    "retrieval_speed",
    "poisoned",
    "look_speed",
    "page_speed",
    "reading",
)

SPINS = "300000"
"""As GNU's OpenMP has it: CTranslate2 and llama.cpp bring one of their own, which must not be slowed."""


def main() -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    tune_libraries()  # for all contenders, and before torch is loaded
    asked, options = (sys.argv[1:2], sys.argv[2:]) if len(sys.argv) > 1 else (NAMES, [])
    for name in asked:
        if name not in NAMES:
            sys.exit(f"benchmarks: no '{name}'; there are {', '.join(NAMES)}")
        importlib.import_module(f"benchmarks.{name}").main(options)


if __name__ == "__main__":
    main()
