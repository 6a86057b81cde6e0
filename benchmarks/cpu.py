"""``python -m benchmarks cpu``: on CPU cores, against torch.nn, onnxruntime and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.command import MeasuringCommand
from benchmarks.cpu_cases import PRESETS, SECTIONS
from benchmarks.measure.cases import Case
from benchmarks.peers.onnxruntime import OnnxPeer
from benchmarks.peers.openvino import OpenVinoPeer
from benchmarks.peers.peer import Peer
from benchmarks.sections.accuracy import AccuracyMeasurement
from benchmarks.sections.busy import BusyMeasurement
from benchmarks.sections.dtypes import DtypesMeasurement
from benchmarks.sections.import_time import ImportMeasurement
from benchmarks.sections.layers import LayerMeasurement
from benchmarks.sections.lengths import LengthsMeasurement
from benchmarks.sections.memory import MemoryMeasurement
from benchmarks.sections.resets import ResetsMeasurement
from benchmarks.sections.session import Measurement
from benchmarks.sections.streaming import StreamingMeasurement


class CpuCommand(MeasuringCommand):
    name = "cpu"
    help = "measure on CPU cores, against torch.nn, onnxruntime and OpenVINO"
    description = __doc__ or ""
    budgets = "quick (about 1 minute), standard (about 20; the default) or full"
    sections = SECTIONS
    presets = PRESETS

    def all_peers(self) -> list[Peer]:
        return [self.torch_layer(), OnnxPeer(), OpenVinoPeer()]

    def measurements(
        self, cases: Mapping[str, Sequence[Case]], sections: Sequence[str], filtered: bool
    ) -> list[Measurement]:
        measurements: list[Measurement] = []
        measurements += [LayerMeasurement(case) for case in cases.get("layers", [])]
        measurements += [DtypesMeasurement(case) for case in cases.get("dtypes", [])]
        measurements += [LengthsMeasurement(case) for case in cases.get("lengths", [])]
        measurements += [ResetsMeasurement(case) for case in cases.get("resets", [])]
        measurements += [MemoryMeasurement(case) for case in cases.get("memory", [])]
        measurements += [AccuracyMeasurement(case) for case in cases.get("accuracy", [])]
        measurements += [StreamingMeasurement(case) for case in cases.get("streaming", [])]
        measurements += [BusyMeasurement(case) for case in cases.get("busy", [])]
        if "import" in sections and not filtered:
            measurements.append(ImportMeasurement())
        return measurements


COMMAND = CpuCommand()
