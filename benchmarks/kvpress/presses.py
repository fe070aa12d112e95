"""kvpress' half of the comparison; `side_by_side.py` writes the prompts and says how to run both.

The pipeline of kvpress itself answers, with the presses as they come. With the question known it
stands in the text that is compressed, as in kvpress' own query-aware evaluation.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KVzipPress,
    SnapKVPress,
    TOVAPress,
)
from kvpress.pipeline import KVPressTextGenerationPipeline
from meter import Log, measure
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

N_ANSWER = 24  # tokens, as on the other side
PRESSES: dict[str, dict[str, Callable[[float], BasePress]]] = {
    "read": {
        "snapkv": SnapKVPress,
        "adakv of snapkv": lambda ratio: AdaKVPress(SnapKVPress(ratio)),
        "tova": TOVAPress,
    },
    "unknown": {
        "kvzip": KVzipPress,
        "expected-attention": ExpectedAttentionPress,
        "keydiff": KeyDiffPress,
        "adakv of expected-attention": lambda ratio: AdaKVPress(
            ExpectedAttentionPress(ratio, epsilon=1e-2)
        ),
    },
}


def load(gguf: Path, folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return model and tokenizer; KVzipPress looks for the tokenizer in the folder of the model."""
    if not folder.exists():
        source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Answer every prompt with every press and share of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("folder", type=Path, help="where the prompts are and the log is kept")
    parser.add_argument("--share", type=float, action="append", help="rows kept; repeatable")
    parser.add_argument("--question", choices=PRESSES, action="append", help="repeatable")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--no-full", action="store_true", help="leave the whole cache out")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    set_verbosity_error()
    logging.disable(logging.WARNING)
    model, tokenizer = load(options.model, options.folder / "model", getattr(torch, options.dtype))
    ask = KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    log = Log(options.folder / "kvpress.jsonl")
    for line in (options.folder / "prompts.jsonl").read_text().splitlines():
        prompt = json.loads(line)
        text, question = prompt["text"] + "\n\n", prompt["question"]
        for known in options.question or PRESSES:
            presses = PRESSES[known]
            inputs = (text + question, "") if known == "read" else (text, question)

            def answer(press: BasePress | None, inputs: tuple[str, str] = inputs) -> str:
                found = ask(inputs[0], question=inputs[1], press=press, max_new_tokens=N_ANSWER)
                return str(found["answer"])

            key = {"side": "kvpress", "question": known}
            key |= {name: prompt[name] for name in ("task", "seed")}
            number = prompt["number"]
            if not options.no_full:
                measure(log, number, lambda a=answer: a(None), method="full", share=1.0, **key)
            for share in options.share or (0.1, 0.25, 0.5):
                for name, make in presses.items():
                    press = make(1 - share)
                    measure(
                        log, number, lambda a=answer, p=press: a(p), method=name, share=share, **key
                    )
        print(prompt["task"], prompt["seed"], flush=True)


if __name__ == "__main__":
    main()
