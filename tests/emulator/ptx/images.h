// The modules of a process: what nvcc put into its objects, found again by the kernels' addresses.
#pragma once

#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// One fat binary. Its text is taken apart when first wanted: a mistake in it is an error of the
// launch.
struct Binary {
  std::string file, text;
  int architecture = 0;
  std::unique_ptr<Image> image;

  Image& get_image();
};

struct Kernel {
  Binary* binary = nullptr;
  std::string name;
  size_t most_dynamic_shared = 48 << 10;  // until cudaFuncSetAttribute says more
  bool may_have_large_clusters = false;
};

// From the bytes of a fat binary. Throws SyntaxError.
void read_fat_binary(const void* data, Binary& binary);

// Decodes every function of a text. Returns what is wrong with it, or nothing.
std::string check(const std::string& file, const std::string& text);

Binary* add_binary(const void* data);
void add_kernel(Binary*, const void* host_function, const std::string& name);
// Null if it is none.
Kernel* find_kernel(const void* host_function);
// That of the first binary.
int architecture();

// Runs a kernel on the emulator; 0, or 1 and a message in birnn::emulator::last_error().
int launch(Kernel&, const birnn::emulator::LaunchConfig&, void* const* arguments);

}  // namespace ptx
