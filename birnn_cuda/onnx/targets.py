"""The runtimes that :func:`birnn_cuda.onnx.export` writes for, and what each was seen to do right.

Every line was found by running the versions named in the table of docs/exchange.md on files of this
package; tests/exchange runs them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

__all__ = ["Target", "parts_of", "target_of"]

# Larger than any finite number that is not to be clipped.
_NO_CLIP = 3.4028234663852886e38

_PEEPHOLES = "lstm_peepholes"
_RESET_BEFORE = "gru_reset_before"
_AS_AFTER = "applies the reset gate after the product all the same"
_EQUAL_LENGTHS = "run sequences of one length together, without lengths="


@dataclasses.dataclass(frozen=True)
class Target:
    """The form of a node that one runtime runs right.

    Attributes:
        name: of the runtime.
        clip_with_lengths: a clip that clips nothing, where the runtime ignores lengths without one.
        lists_every_output: a node names all of its outputs, used or not, where the runtime takes
            one for another as soon as some are left out.
        leaves_shapes_out: nothing is said of the shapes of results, where the runtime will not have
            the inputs' dimensions fixed beside them.
        states_steps: cells of which the file states a number of steps, the example's, though others
            run as well: where it states none, or 1, values are wrong.
        refused: what it does not run right, by what it is: of cells "tanh", "relu", "gru", "lstm",
            "gru_reset_before", "lstm_peepholes", a cell's "tanh in one direction", and "lengths",
            "states" (initial ones) and "final states"; with the reason.
    """

    name: str
    clip_with_lengths: float | None = None
    lists_every_output: bool = False
    leaves_shapes_out: bool = False
    states_steps: tuple[str, ...] = ()
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def check(self, parts: Collection[str]) -> None:
        """Refuse what the runtime does not run right of ``parts``, as :attr:`refused` calls them.

        Raises:
            NotImplementedError: names it, with the reason.
        """
        for part, reason in self.refused.items():
            if part in parts:
                raise NotImplementedError(f"target {self.name!r} does not take {part}: {reason}")


def parts_of(cell: str, num_directions: object, lengths: object, hx: object) -> list[str]:
    """What a call of a layer asks of a runtime, by the names of :attr:`Target.refused`."""
    given = {"lengths": lengths, "states": hx}
    parts = [cell, *(name for name, value in given.items() if value is not None)]
    return parts if num_directions == 2 else [*parts, f"{cell} in one direction"]


_TARGETS = {
    target.name: target
    for target in (
        Target("onnxruntime"),
        Target(
            "openvino",
            clip_with_lengths=_NO_CLIP,
            refused={_PEEPHOLES: "OpenVINO leaves the peepholes out, without a word"},
        ),
        Target(
            "opencv",
            lists_every_output=True,
            refused={
                "tanh": "OpenCV has no RNN operator",
                "relu": "OpenCV has no RNN operator",
                _PEEPHOLES: "OpenCV raises an error",
                "lengths": f"OpenCV raises an error for an LSTM with them; {_EQUAL_LENGTHS}",
            },
        ),
        Target(
            "ncnn",
            refused={
                "relu": "pnnx makes it a tanh layer",
                _RESET_BEFORE: f"ncnn {_AS_AFTER}",
                _PEEPHOLES: "ncnn ends the process",
                "tanh in one direction": "pnnx converts the bidirectional RNN alone",
                "lengths": "pnnx did not convert a node with them as an input, and as constants an "
                f"RNN and a GRU gave other values; {_EQUAL_LENGTHS}",
                "final states": "an RNN and a GRU gave other values with them, and an LSTM none; "
                "return the output alone, which holds them",
            },
        ),
        Target(
            "mnn",
            lists_every_output=True,
            states_steps=("gru", "lstm"),
            refused={
                "relu": "MNN runs it as tanh",
                _RESET_BEFORE: f"MNN {_AS_AFTER}",
                _PEEPHOLES: "MNN does not convert it",
                "lengths": f"MNN runs every sequence to the last step; {_EQUAL_LENGTHS}",
            },
        ),
        Target(
            "tract",
            leaves_shapes_out=True,
            refused={
                "relu": "tract runs it as tanh",
                "lengths": f"tract takes constant lengths alone; {_EQUAL_LENGTHS}",
            },
        ),
    )
}


def target_of(name: str) -> Target:
    """The target of that name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in _TARGETS:
        raise ValueError(f"target must be one of {sorted(_TARGETS)}, got {name!r}")
    return _TARGETS[name]
