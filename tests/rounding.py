"""How far a result may be from fp64: what rounding to a format costs, drawn many times.

A recurrent layer that computes in a format errs where it rounds. The model here is such a layer in
fp64: at each of these places it adds an error of its own, uniform within half a unit in the last
place, as rounding to nearest makes of numbers that are not round. Some runs of the model, the
draws, give as many error vectors e of each result: sums of many small independent errors, each
times a derivative, and so nearly normal of some covariance S. ||e||^2 is then distributed like
chi-squared of f = tr(S)^2 / tr(S^2) degrees of freedom, scaled (Satterthwaite 1946, "An approximate
distribution of estimates of variance components", Biometrics Bulletin 2(6)), and its quotient by
the mean of the draws like F(f, draws * f). `limit` is the norm that this exceeds in one of
1 / `CHANCE` tensors: of many numbers little more than the root mean square of the draws, of a
single one eight times as much.

What is rounded. In 16 bits: all that is stored, that is h, the reserve and dgates, and of a layer
W_ih x and all results. In tf32: the factors of products. The rest is fp32, whose cost is added as
the tolerance of the tests in fp32.

How often a test fails by chance: `make test` compares about 9,000 tensors with such a limit (`make
soak-tests` counts them), so that one run in 100,000 does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

observers: list[Callable[[str, float, float, bool], None]] = []  # of each check

CHANCE = 1e-9  # that a tensor without a fault exceeds its limit
DRAWS = 32
MOST_FREEDOM = 100.0


@dataclass(frozen=True)
class Format:
    """unit: the largest relative error of rounding to nearest; smallest: the least normal number;
    stored: what is stored is rounded, else the factors of products."""

    unit: float
    smallest: float
    stored: bool = True


FORMATS = {
    "fp64": Format(2**-53, 2**-1022),
    "ieee": Format(2**-24, 2**-126),
    "tf32": Format(2**-11, 2**-126, stored=False),
    # Libraries may cut off what they cannot hold: all errors lie to one side, up to a whole unit.
    "tf32 of libraries": Format(2**-9, 2**-126, stored=False),
    "fp16": Format(2**-11, 2**-14),
    "bf16": Format(2**-8, 2**-126),
}
OF_DTYPE = {
    torch.float64: FORMATS["fp64"],
    torch.float32: FORMATS["ieee"],
    torch.float16: FORMATS["fp16"],
    torch.bfloat16: FORMATS["bf16"],
}


class Rounding:
    """The errors that one format makes. None: none.

    A seed of its own, so that nothing else that is random changes by it.
    """

    def __init__(self, format: Format | None, device: str = "cpu") -> None:
        self.format = format
        self.generator = torch.Generator(device).manual_seed(torch.initial_seed() % 2**63)

    def _round(self, x: Tensor) -> Tensor:
        assert self.format is not None
        exponent_bits = 0x7FF0000000000000
        power = (x.view(torch.int64) & exponent_bits).view(torch.float64)  # 2^floor(log2 |x|)
        half_unit = power.clamp_min_(self.format.smallest).mul_(self.format.unit)
        half_unit = torch.minimum(half_unit, x.abs())  # what is zero, or less than that, becomes 0
        shape = x.shape
        noise = torch.rand(shape, dtype=x.dtype, device=x.device, generator=self.generator)
        return noise.mul_(2).sub_(1).mul_(half_unit).add_(x)

    def stored(self, x: Tensor) -> Tensor:
        return self._round(x) if self.format and self.format.stored else x

    def factor(self, x: Tensor) -> Tensor:
        return self._round(x) if self.format and not self.format.stored else x

    def weight(self, weight: Tensor, draws: int) -> Tensor:
        """A weight [D, n, k] as a factor of all products of a draw: [D, M, n, k]."""
        weight = weight.unsqueeze(1)
        if self.format is None or self.format.stored:
            return weight
        return self._round(weight.repeat(1, draws, 1, 1))

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """[D, M, .., k] times such a weight transposed, [D, M, k, n]."""
        rows = self.factor(x).flatten(2, -2)
        if weight.size(1) == 1:
            products = (rows.flatten(1, 2) @ weight[:, 0]).unflatten(1, rows.shape[1:3])
        else:
            products = rows @ weight
        return products.unflatten(2, x.shape[2:-1])

    def outer(self, d: Tensor, x: Tensor) -> Tensor:
        """The sum of d^T x over T and B, [D, M, n, k]: of [D, M, T, B, n] and [D, M, T, B, k]."""
        return self.factor(d.flatten(2, 3).transpose(2, 3)) @ self.factor(x.flatten(2, 3))


# ---------------------------------------------------------------------------------------------
# The limit.


def limit(errors: Tensor, chance: float = CHANCE) -> float:
    """The norm that the error of a tensor exceeds with this probability, by draws of the error:
    [draws, elements]."""
    draws = errors.size(0)
    gram = (errors @ errors.t()).double()
    mean = gram.diagonal().mean().item()
    if mean == 0:
        return 0.0
    across = (gram.square().sum() - gram.diagonal().square().sum()).item() / (draws * (draws - 1))
    # Half of what the draws say, for they may err; and never so much that the limit is nearer than
    # 1.45 times the root mean square: rounding errors are not quite uniform, nor independent.
    freedom = min(max(1.0, mean * mean / max(across, 1e-300) / 2), MOST_FREEDOM)
    return math.sqrt(mean * _quantile(_rounded_down(freedom), draws, chance))


def check(
    actual: Tensor,
    expected: Tensor,
    tolerance: float,
    draws: Tensor | None = None,
    what: str = "tensor",
    errors: Tensor | None = None,
) -> None:
    """The error of a tensor, ||actual - expected||, within what rounding costs.

    tolerance: what fp32 or fp64 is allowed, relative to the tensor, or to 1 where it is less: of
    operands of the order of 1, the few numbers of a tiny tensor may cancel. draws: the tensor by
    draws of a model that rounds, [draws, *shape]; or errors: those of the draws, [draws, n].
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    expected = expected.detach().double()
    allowed = tolerance * max(expected.norm().item(), 1.0)
    if draws is not None:
        errors = (draws - expected.to(draws.device)).flatten(1)
    if errors is not None:
        allowed += limit(errors)
    error = (actual.detach().double() - expected).norm().item()
    for observe in observers:
        observe(what, error, allowed, errors is not None)
    assert error <= allowed, f"{what}: error {error:.3g} > {allowed:.3g}"


def _rounded_down(freedom: float) -> float:
    """To a power of 2^(1/4), so that few quantiles are computed."""
    return 2.0 ** (math.floor(4 * math.log2(freedom)) / 4)


@functools.cache
def _quantile(freedom: float, draws: int, chance: float) -> float:
    """What a quotient distributed as F(freedom, draws * freedom) exceeds with this probability."""
    below, above = 1.0, 1e6
    while above / below > 1.001:
        middle = math.sqrt(below * above)
        if _tail(middle, freedom, draws * freedom) > chance:
            below = middle
        else:
            above = middle
    return above


def _tail(quotient: float, upper: float, lower: float) -> float:
    """P(F(upper, lower) > quotient): the mean, over the denominator, of the numerator's tail."""
    half = lower / 2
    log_y = torch.linspace(-1, 1, 1001, dtype=torch.float64) * min(30.0, 40 / math.sqrt(half))
    y = log_y.exp()  # of mean 1
    log_density = half * (math.log(half) + log_y - y) - math.lgamma(half)  # of log y
    shape = torch.tensor(upper / 2, dtype=torch.float64)
    tail = torch.special.gammaincc(shape, upper / 2 * quotient * y)
    return float((log_density.exp() * tail).sum() * (log_y[1] - log_y[0]))
