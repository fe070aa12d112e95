"""The demo model's weights in another format: CPUs multiply Q8_0 and BF16 two to three times as fast as Q4_1.

python benchmarks/requantise.py demo smollm2-q8_0.gguf
python benchmarks/requantise.py demo smollm2-bf16.gguf --type bf16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from restkv_local.model.demo import resolve_model
from restkv_local.native import load

TYPES = ("q8_0", "bf16", "f16")


def main() -> None:
    """Write a copy of a model whose matrices are of one type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default=TYPES[0])
    options = parser.parse_args()
    llama_cpp = load()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{options.type.upper()}")
    params.allow_requantize = True
    source = str(resolve_model(options.model)).encode()
    if llama_cpp.llama_model_quantize(source, str(options.out).encode(), params):
        parser.exit(1, f"requantise: {options.model} could not be written as {options.out}\n")


if __name__ == "__main__":
    main()
