"""The runtimes that :func:`birnn_cuda.onnx.export` writes for, and what each was seen to do right.

Every line was found by running the versions named in the table of docs/exchange.md on files of this
package; tests/exchange runs them again.
"""

from __future__ import annotations

import dataclasses

__all__ = ["Target", "target_of"]

# Larger than any finite number that is not to be clipped.
_NO_CLIP = 3.4028234663852886e38


@dataclasses.dataclass(frozen=True)
class Target:
    """The form of a node that one runtime runs right.

    Attributes:
        name: of the runtime.
        clip_with_lengths: a clip that clips nothing, where the runtime ignores lengths without one.
        refused: what it does not run right, by what it is: of cells "tanh", "relu", "gru", "lstm",
            and "lengths" and "states"; with the reason.
    """

    name: str
    clip_with_lengths: float | None = None
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def check(self, cell: str, with_lengths: bool, with_states: bool) -> None:
        """Refuse what the runtime does not run right.

        Raises:
            NotImplementedError: names it, with the reason.
        """
        wanted = {cell: True, "lengths": with_lengths, "states": with_states}
        for part, reason in self.refused.items():
            if wanted.get(part):
                raise NotImplementedError(f"target {self.name!r} does not take {part}: {reason}")


_TARGETS = {
    target.name: target
    for target in (
        Target("onnxruntime"),
        Target("openvino", clip_with_lengths=_NO_CLIP),
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
