"""When threads that share a layer's units stop to meet, because others have their cores."""

import os
import subprocess
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "cpu/step_barrier.h"

using birnn::cpu::Crowding;
using std::chrono::microseconds;
using std::chrono::milliseconds;

void expect(bool holds, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d\\n", line);
  std::exit(1);
}
#define EXPECT(condition) expect(condition, __LINE__)

int main() {
  const Crowding::Clock::time_point start = Crowding::Clock::now();
  EXPECT(!Crowding::is_crowded(start));
  // The first pass wakes the threads: its waits say nothing.
  Crowding::begin_pass();
  Crowding::note_wait(milliseconds(5), start);
  EXPECT(!Crowding::is_crowded(start));
  Crowding::begin_pass();
  Crowding::note_wait(microseconds(499), start);
  EXPECT(!Crowding::is_crowded(start));
  // Eight times as long as was lost.
  Crowding::note_wait(milliseconds(2), start);
  EXPECT(Crowding::is_crowded(start + microseconds(15999)));
  EXPECT(!Crowding::is_crowded(start + milliseconds(16)));
  // The first pass after it, again; then twice as long.
  const auto second = start + milliseconds(17);
  Crowding::begin_pass();
  Crowding::note_wait(milliseconds(2), second);
  EXPECT(!Crowding::is_crowded(second));
  Crowding::begin_pass();
  Crowding::note_wait(milliseconds(2), second);
  EXPECT(Crowding::is_crowded(second + microseconds(31999)));
  EXPECT(!Crowding::is_crowded(second + milliseconds(32)));
  // Many passes and some time later it is as if it were the first, and never more than a fifth of a
  // second.
  const auto third = second + milliseconds(100);
  for (int pass = 0; pass < 4; ++pass) Crowding::begin_pass();
  Crowding::note_wait(milliseconds(1), third);
  EXPECT(Crowding::is_crowded(third + microseconds(7999)));
  EXPECT(!Crowding::is_crowded(third + milliseconds(8)));
  const auto fourth = third + milliseconds(100);
  for (int pass = 0; pass < 4; ++pass) Crowding::begin_pass();
  Crowding::note_wait(milliseconds(300), fourth);
  EXPECT(Crowding::is_crowded(fourth + milliseconds(199)));
  EXPECT(!Crowding::is_crowded(fourth + milliseconds(200)));
}
"""


def test_how_long_nobody_meets(tmp_path):
    source, program = tmp_path / "crowding.cpp", tmp_path / "crowding"
    source.write_text(PROGRAM)
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, "-std=c++20", f"-I{CSRC}", source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
