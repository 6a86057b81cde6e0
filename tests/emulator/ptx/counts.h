// What a launch executed: how often each warp went through each instruction.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "program.h"

namespace ptx {

// A warp goes through an instruction as often as the lane that does so most often: lanes that part
// are counted as what they cost, one after the other, only where one of them loops longer.
struct Counter {
  explicit Counter(const Program& entry) { add_program(entry); }

  size_t size() const { return num_instructions_; }
  size_t index_of(const Program& program) const;
  // What one thread did.
  void add(const birnn::emulator::ThreadContext& thread, const std::vector<uint32_t>& counts);
  // The launch as an object of JSON.
  std::string json() const;

 private:
  void add_program(const Program& program);

  std::vector<std::pair<const Program*, size_t>> programs_;
  size_t num_instructions_ = 0;
  // Block x, y, z and warp: the executions of each instruction.
  std::map<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>, std::vector<uint32_t>> warps_;
};

// Whether launches are counted from now on. Forgets what was counted.
void count_launches(bool on);
bool counts_launches();
void keep_counts(const Counter& counter);
// Of the launches since, an array of JSON.
std::string counts_json();

}  // namespace ptx
