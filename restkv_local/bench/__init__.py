"""Speed and memory of every cache a user could choose, side by side in one run, in llama-bench's words.

No NumPy in this file, so that ``--help`` stays fast.
"""

from typing import Final

N_PROMPT: Final = 512  # llama-bench's pp512
N_GEN: Final = 128  # and tg128
N_REPETITIONS: Final = 3
DEPTHS: Final = (512, 2048, 8192)
REFERENCES: Final = ("full", "q8_0", "shift")  # by default
ALL_REFERENCES: Final = (*REFERENCES, "tiles", "none")
