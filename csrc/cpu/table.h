// The functions of an instruction set for one kind of numbers.

// Numbers that are plain have all cells; the others those that all kinds of numbers have.
template <class N>
constexpr bool computes_all_cells =
    !N::kPacks && std::is_same_v<typename N::Weight, typename N::Real>;

template <class N>
void run_forward_cell(const ForwardTask& task) {
  switch (task.shape->cell) {
    case Cell::kTanh:
      return run_forward<N, Cell::kTanh>(task);
    case Cell::kRelu:
      return run_forward<N, Cell::kRelu>(task);
    case Cell::kGru:
      return run_forward<N, Cell::kGru>(task);
    case Cell::kLstm:
      return run_forward<N, Cell::kLstm>(task);
    case Cell::kGruResetBefore:
      if constexpr (computes_all_cells<N>) return run_reset_before_forward<N>(task);
      return;
    case Cell::kLstmPeepholes:
      if constexpr (computes_all_cells<N>) return run_forward<N, Cell::kLstmPeepholes>(task);
      return;
  }
}

template <class N>
void run_backward_cell(const BackwardTask& task) {
  switch (task.shape->cell) {
    case Cell::kTanh:
      return run_backward<N, Cell::kTanh>(task);
    case Cell::kRelu:
      return run_backward<N, Cell::kRelu>(task);
    case Cell::kGru:
      return run_backward<N, Cell::kGru>(task);
    case Cell::kLstm:
      return run_backward<N, Cell::kLstm>(task);
    case Cell::kGruResetBefore:
      if constexpr (computes_all_cells<N>) return run_reset_before_backward<N>(task);
      return;
    case Cell::kLstmPeepholes:
      if constexpr (computes_all_cells<N>) return run_backward<N, Cell::kLstmPeepholes>(task);
      return;
  }
}

template <class N>
void run_normalised_forward_cell(const NormalisedTask& task) {
  if (task.shape->cell == Cell::kGru) return run_normalised_forward<N, Cell::kGru>(task);
  run_normalised_forward<N, Cell::kLstm>(task);
}

template <class N>
void run_normalised_backward_cell(const NormalisedTask& task) {
  if (task.shape->cell == Cell::kGru) return run_normalised_backward<N, Cell::kGru>(task);
  run_normalised_backward<N, Cell::kLstm>(task);
}

template <class N>
constexpr Element row_element() {
  if (std::is_same_v<typename N::Row, BFloat16>) return Element::kBFloat16;
  return sizeof(typename N::Row) == 8 ? Element::kFloat64 : Element::kFloat32;
}

template <class N>
const KernelTable& kernel_table() {
  static const KernelTable table = [] {
    KernelTable t{row_element<N>(),    N::kReadsInPlace, !N::kPacks, packed_bytes<N>,
                  first_unit<N>,       pack_rows<N>,     nullptr,    Scratch<N>::bytes_for,
                  run_forward_cell<N>, nullptr};
    if constexpr (!std::is_same_v<typename N::Weight, int8_t>) {
      t.pack_columns = pack_columns<N>;
      t.backward = run_backward_cell<N>;
    }
    if constexpr (computes_all_cells<N>) {
      t.normalised_scratch_bytes = NormalisedScratch<N>::bytes_for;
      t.normalised_forward = run_normalised_forward_cell<N>;
      t.normalised_backward = run_normalised_backward_cell<N>;
    }
    return t;
  }();
  return table;
}
