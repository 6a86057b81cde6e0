"""Per-sample gradients for opacus: a grad sampler for the layers, checked and trained with.

    pip install --no-deps -r requirements/real-models.txt        (or: make real-models)
    python examples/private_training.py

Opacus keeps what went into a module and the gradient of its first result, and asks a grad sampler
for the gradients of each sample. Here that is the gradient of one sequence, mapped over the batch
by vmap. The exit status is 1 if a gradient differs from that of its sequence alone.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import birnn_cuda

TOLERANCE = 1e-9  # of relative errors in fp64


class WithoutHooks(nn.Module):
    """The output of a layer, past the hooks by which opacus watches it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layer.forward(input)[0]
        return output


def per_sample_gradients(
    layer: Any, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """The gradient of each parameter for each sequence, ``[B, *parameter.shape]``.

    Args:
        layer: of this package.
        activations: what the layer was given; the first is the input, batch first.
        backprops: the gradient of its output, batch first.
    """
    module, batch_dim = WithoutHooks(layer), 0 if layer.batch_first else 1
    parameters: dict[str, Any] = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], sequence: Tensor, d_output: Tensor) -> Tensor:
        output = functional_call(module, parameters, (sequence.unsqueeze(batch_dim),))
        product: Tensor = output.squeeze(batch_dim) * d_output
        return product.sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, activations[0], backprops)
    return {parameters[name]: gradient for name, gradient in gradients.items()}


class Tagger(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = layer(3, 8, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(16, 2)

    def forward(self, input: Tensor) -> Tensor:
        output, _ = self.rnn(input)
        tags: Tensor = self.linear(output)
        return tags


def loss_of(tags: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(tags.flatten(0, 1), labels.flatten())


def main() -> int:
    """Train a tagger of each kind; returns the exit status."""
    opacus = import_module("opacus")
    grad_sample = import_module("opacus.grad_sample")
    grad_sample.register_grad_sampler([birnn_cuda.RNN, birnn_cuda.GRU, birnn_cuda.LSTM])(
        per_sample_gradients
    )
    warnings.simplefilter("ignore")  # of hooks on inputs that need no gradient
    worst = 0.0
    for layer in (birnn_cuda.RNN, birnn_cuda.GRU, birnn_cuda.LSTM):
        torch.manual_seed(0)
        model = Tagger(layer).double()
        input = torch.randn(64, 10, 3, dtype=torch.float64)
        data = torch.utils.data.TensorDataset(input, (input.sum(2) > 0).long())
        private, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
            data_loader=torch.utils.data.DataLoader(data, batch_size=16),
            noise_multiplier=0.1,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        losses: list[float] = []
        for epoch in range(5):
            for sequences, labels in loader:
                optimizer.zero_grad()
                loss = loss_of(private(sequences), labels)
                loss.backward()
                losses.append(loss.item())
                if epoch == 0:
                    worst = max(worst, largest_error(model, sequences, labels))
                optimizer.step()
        print(f"{layer.__name__}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
        if not losses[-1] < losses[0]:
            return 1
    print(f"per-sample gradients against one sequence at a time: {worst:.0e}")
    return 0 if worst < TOLERANCE else 1


def largest_error(model: nn.Module, sequences: Tensor, labels: Tensor) -> float:
    """Of the gradients that opacus holds, against those of each sequence alone."""
    errors: list[float] = []
    bare = Tagger(type(model.rnn)).double()  # type: ignore[arg-type]  # without opacus's hooks
    bare.load_state_dict({k.removeprefix("_module."): v for k, v in model.state_dict().items()})
    for index in range(len(sequences)):
        one = slice(index, index + 1)
        alone = torch.autograd.grad(
            loss_of(bare(sequences[one]), labels[one]), list(bare.parameters())
        )
        for parameter, expected in zip(model.parameters(), alone, strict=True):
            difference = parameter.grad_sample[index] - expected  # type: ignore[attr-defined]
            errors.append((difference.norm() / expected.norm().clamp(min=1e-12)).item())
    return max(errors)


if __name__ == "__main__":
    sys.exit(main())
