// The emulator's settings for a driver that is loaded by ctypes.
#include "runtime.h"

extern "C" int birnn_emulator_configure(const char* order, const char* landing, uint64_t seed,
                                        int approximate) {
  birnn::emulator::Options& options = birnn::emulator::options();
  if (!birnn::emulator::set_schedule(options, order, landing)) return 1;
  options.seed = seed;
  options.approximate = approximate != 0;
  return 0;
}

extern "C" const char* birnn_emulator_last_error() { return birnn::emulator::last_error().c_str(); }
