"""Every way to divide a pass among the blocks of a GPU, timed: what the plan chooses from.

The plan takes its choice from estimates (csrc/cuda/plan/cost_model.h). Here those that look best,
and others like them, are run and timed instead, the recurrence alone and captured in a CUDA graph.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.cuda_graph import GraphRun
from benchmarks.measure.problem import (
    DTYPES,
    FIXED_TOLERANCES,
    ROUNDINGS,
    Tensors,
    make_layer,
    relative_error,
)
from benchmarks.measure.results import Entry
from benchmarks.measure.timing import interleave
from benchmarks.sections.session import ASSUMED_SECONDS_A_CUDA_ENTRY, Session, step_cost

SIDES = ("forward", "backward")
STEPWISE = "stepwise"  # the kernel that takes every shape, and judges the others
PROJECTION = "projection"  # what a forward pass computes before its recurrence
NUMBERS = ("blocks", "batch_tiles", "k_split", "groups_at_once")
ANSWERS = ("blocks", "batch_tiles", "k_split", "resident_clusters", "clusters_apart")

# Of one kernel so many, each with another number of blocks; of all so many more; none that is
# estimated at over so many times the best.
EACH_KERNEL, BEST_OF_ALL, HOPELESS = 8, 6, 4.0
ASSUMED_DIVISIONS = 20  # for the progress bar
ROUNDINGS_ALLOWED = 32  # kernels round in different places; the tests judge them more strictly

Division = Mapping[str, Any]


def name_of(division: Division) -> str:
    """Short, and unique among the divisions of a pass: stepwise, or cluster 8/1/2/1."""
    kernel: str = division["kernel"]
    if kernel == STEPWISE:
        return kernel
    return f"{kernel} {'/'.join(str(division[number]) for number in NUMBERS)}"


def plan_arguments(case: Case) -> dict[str, Any]:
    """A case as the arguments of ``ops.plan`` and ``ops.divisions``."""
    return {
        "cell": "tanh" if case.cell == "rnn" else case.cell,
        "dtype": str(DTYPES[case.dtype]).removeprefix("torch."),
        "seq_len": case.seq_len,
        "batch_size": case.batch_size,
        "input_size": case.input_size,
        "hidden_size": case.hidden_size,
        "num_directions": case.num_directions,
        "precision": "tf32" if case.dtype == "tf32" else "ieee",
        "captured": True,
    }


def resident_clusters(choices: Sequence[Division]) -> list[list[int]]:
    """What the driver said of them, as ``ops.divisions`` takes it where there is no such device."""
    asked = [division for division in choices if division["kernel"] in ("block", "cluster")]
    return [[division[number] for number in ANSWERS] for division in asked]


def worth_timing(choices: Sequence[Division], chosen: int) -> list[Division]:
    """Of all divisions those to be timed: stepwise, which takes every shape, first."""

    def estimate(division: Division) -> float:
        return float(division["microseconds_per_step"])

    ranked = sorted(choices, key=estimate)
    of_blocks: dict[str, dict[int, Division]] = {}
    for division in ranked:
        of_blocks.setdefault(division["kernel"], {}).setdefault(division["blocks"], division)
    picked = [division for division in ranked if division["kernel"] == STEPWISE]
    picked.append(choices[chosen])
    for divisions in of_blocks.values():
        picked += list(divisions.values())[:EACH_KERNEL]
    picked += ranked[:BEST_OF_ALL]
    likely = picked[:2] + [d for d in picked[2:] if estimate(d) <= HOPELESS * estimate(ranked[0])]
    return list({name_of(division): division for division in likely}.values())


class Recurrence:
    """One pass of a layer, and next to nothing but its recurrence: a step may be captured.

    The forward pass is that of training, from few inputs: what else it computes, their projection,
    is :meth:`projection`. The backward pass is asked for the gradients of the initial states alone.
    """

    def __init__(self, case: Case, side: str, seed: int, device: str) -> None:
        import birnn_cuda
        from birnn_cuda import ops

        arguments = plan_arguments(case)
        dtype = DTYPES[case.dtype]
        generator = torch.Generator(device).manual_seed(seed)
        D, B, H = case.num_directions, case.batch_size, case.hidden_size

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        layer = make_layer(birnn_cuda, case, dtype, device)
        named = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        self.weights = list(named.values())
        self.weights_ih = [w for name, w in named.items() if name.startswith("weight_ih")]
        for weight in self.weights:
            values = torch.rand(weight.shape, generator=generator, device=device)
            weight.copy_((2 * values - 1) * H**-0.5)
        self.input = draw(case.seq_len, B, case.input_size)
        self.hx = draw(D, B, H)
        self.cx = draw(D, B, H) if case.cell == "lstm" else None
        self.d_output = draw(case.seq_len, B, D * H)
        options = arguments["cell"], D
        operands = (self.input, self.hx, self.cx, self.weights, None, None)
        self.step: Callable[[], Any]
        if side == "forward":
            self.step = lambda: ops.forward(*operands, *options, True, arguments["precision"])
            return
        output, _, _, reserve = ops.forward(*operands, *options, True, arguments["precision"])
        needs_grad = [False, True, self.cx is not None, *[False] * len(self.weights)]
        self.step = lambda: ops.backward(
            *(self.d_output, None, None),
            *operands,
            *(output, reserve),
            *options,
            *(arguments["precision"], needs_grad, None),
        )

    def projection(self) -> list[torch.Tensor]:
        """x W_ih^T of each direction."""
        rows = self.input.flatten(0, 1)
        return [rows @ weight.t() for weight in self.weights_ih]

    def results(self, returned: Any) -> Tensors:
        """What the recurrence computed: its output, or the gradients of the initial states."""
        first, *states = returned[:3]
        tensors = {"first": first, **{f"state {i}": state for i, state in enumerate(states)}}
        return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


class Projection:
    """The projection of a recurrence, as a step of its own."""

    def __init__(self, recurrence: Recurrence) -> None:
        self.step = recurrence.projection

    def results(self, returned: Any) -> Tensors:
        return {}


def step_microseconds(entry: Entry) -> dict[str, float]:
    """By division: the median time less that of the projection, over the steps."""
    samples: Mapping[str, Sequence[float]] = entry["samples"]
    before = statistics.median(samples[PROJECTION]) if PROJECTION in samples else 0.0
    steps = entry["case"]["seq_len"]
    times = {
        name: (statistics.median(seconds) - before) * 1e6 / steps
        for name, seconds in samples.items()
        if name != PROJECTION
    }
    return {name: time for name, time in times.items() if time > 0}


@dataclass(frozen=True)
class DivisionsMeasurement:
    """One pass of one case by every division that is worth it."""

    case: Case
    side: str

    @property
    def key(self) -> str:
        return f"divisions/{self.case.key}/{self.side}"

    def cost(self, session: Session) -> float:
        rounds = session.preset.limits.min_rounds + 1
        step = step_cost(self.case, session.device)
        return ASSUMED_SECONDS_A_CUDA_ENTRY + ASSUMED_DIVISIONS * (rounds + 4) * step

    def measure(self, session: Session) -> dict[str, Any]:
        from birnn_cuda import ops

        seed = session.seed_of(self.key)
        case, limits = self.case, dict(session.gpu_limits)
        choices, chosen = ops.divisions(limits, self.side, **plan_arguments(case))
        recurrence = Recurrence(case, self.side, seed, session.device)
        fixed = FIXED_TOLERANCES.get(case.dtype)
        tolerance = 2 * fixed if fixed else ROUNDINGS_ALLOWED * ROUNDINGS[case.dtype]
        divisions = {name_of(division): division for division in worth_timing(choices, chosen)}
        steps: dict[str, Callable[[], Any]] = {}
        failed: dict[str, str] = {}
        expected: Tensors | None = None  # what stepwise computes, which comes first
        for name, division in divisions.items():
            try:
                forced = [dict(division) if side == self.side else None for side in SIDES]
                with ops.forced_kernel("", 1, *forced):
                    run = GraphRun(recurrence)
                found = {key: t.clone() for key, t in run.results(run.step()).items()}
            except Exception as error:  # of one division: the others go on
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            if name == STEPWISE:
                expected = found
            if expected is None:
                failed[name] = f"{STEPWISE} failed, which it is compared with"
                continue
            worst = max(relative_error(found[key], expected[key]) for key in expected)
            if worst <= tolerance:
                steps[name] = run.step
            else:  # also NaN
                failed[name] = f"relative error {worst:.2g}, allowed {tolerance:.2g}"
        repeats, samples = 0, dict[str, list[float]]()
        if steps:
            if self.side == "forward":
                steps[PROJECTION] = GraphRun(Projection(recurrence)).step
            rng = random.Random(seed)
            repeats, samples = interleave(
                steps, rng, session.preset.limits, session.stopwatch.clock
            )
        return {
            "section": "divisions",
            "unit": "seconds",
            "case": case.as_dict(),
            "side": self.side,
            "seed": seed,
            "subjects": list(divisions),
            "control": None,
            "divisions": divisions,
            "chosen": name_of(choices[chosen]),
            "resident_clusters": resident_clusters(choices),
            "tolerance": tolerance,
            "failed": failed,
            "repeats": repeats,
            "samples": samples,
        }


def of_cases(cases: Iterable[Case]) -> list[DivisionsMeasurement]:
    """Both passes of each."""
    return [DivisionsMeasurement(case, side) for case in cases for side in SIDES]
