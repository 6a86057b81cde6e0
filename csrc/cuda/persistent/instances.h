// From the values of a call to the template instance that is compiled for them: what the launchers
// of all kernels share.
#pragma once

#include <type_traits>
#include <utility>

#include "recurrence.h"

namespace birnn::cuda {

// body(std::integral_constant<int, i>) for i in 0 .. kCount - 1.
template <class Body, int... kIndices>
void for_each_index(const Body& body, std::integer_sequence<int, kIndices...>) {
  (body(std::integral_constant<int, kIndices>{}), ...);
}
template <int kCount, class Body>
void for_each_index(const Body& body) {
  for_each_index(body, std::make_integer_sequence<int, kCount>{});
}

// body(std::integral_constant<Cell, cell>), and what it returns.
template <class Body>
int visit_cell(Cell cell, const Body& body) {
#if defined(BIRNN_ONE_CELL)  // for tests that build a kernel many times
  return cell == BIRNN_ONE_CELL ? body(std::integral_constant<Cell, BIRNN_ONE_CELL>{}) : -1;
#else
  switch (cell) {
    case Cell::kTanh:
      return body(std::integral_constant<Cell, Cell::kTanh>{});
    case Cell::kRelu:
      return body(std::integral_constant<Cell, Cell::kRelu>{});
    case Cell::kGru:
      return body(std::integral_constant<Cell, Cell::kGru>{});
    case Cell::kGruResetBefore:
    case Cell::kLstmPeepholes:
      return -1;  // stepwise alone: see takes() in sizes.h
    case Cell::kLstm:
      break;
  }
  return body(std::integral_constant<Cell, Cell::kLstm>{});
#endif
}

}  // namespace birnn::cuda
