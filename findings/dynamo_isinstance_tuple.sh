#!/usr/bin/env bash
# One would guess: isinstance(x, A) and isinstance(x, (A,)) are the same question, in compiled code too.
# What happens: torch.compile answers the first as Python does, by __class__ where the type does not
# decide; with a tuple it asks issubclass(type(x), ...), so that the two differ for an object whose
# __class__ is a property (as those of unittest.mock and of proxies are).
# Seen: eager "True True", compiled "True False". torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch


class A(torch.nn.Module):
    pass


class StandsForA(torch.nn.Module):
    __class__ = property(lambda self: A)

    def forward(self, x):
        return x


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = StandsForA()

    def forward(self, x):
        one = 1 if isinstance(self.inner, A) else 0
        of_tuple = 1 if isinstance(self.inner, (A,)) else 0
        return x + one, x + of_tuple


model, x = Outer(), torch.zeros(1)
eager = [bool(y) for y in model(x)]
compiled = [bool(y) for y in torch.compile(model, backend="eager", fullgraph=True)(x)]
print("eager", *eager, "compiled", *compiled)
assert eager == [True, True]
assert compiled == [True, False]
PYTHON
