"""How far label logits of every family are from transformers', over the cases of its parity tests.

Takes no arguments; prints a table. Tiny random checkpoints at a spread where a wrong number shows.
"""

import importlib
import inspect
from itertools import product

import torch
import transformers

import grid_parity
from families import FAMILIES

_TESTS = {"smolvlm": "test_parity"}  # of others, by the family's name


def main() -> None:
    torch.set_num_threads(1)
    print("| family | cases | largest difference |")
    print("|---|---|---|")
    for family in FAMILIES:
        tests = importlib.import_module(_TESTS.get(family, f"test_{family}"))
        axes = [tests.VARIANTS]
        if len(inspect.signature(tests.case.__wrapped__).parameters) == 2:
            axes.append(tests.SIZES)
        measure = getattr(tests, "difference", grid_parity.difference)
        found = [measure(tests.case(*names)) for names in product(*axes)]
        print(f"| {family} | {len(found)} | {max(found):.1e} |")
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
