"""Defects of stepwise's kernels of layer-normalised cells: for every sum, barrier and condition."""

from __future__ import annotations

KERNEL = (
    # Sums around the block.
    (
        "partial_(memory.alloc<Real>(<|kSumBuffers * kMostSums * kMaxRowWarps|>))",
        {"access_half_of_the_sums": "kMostSums * kMaxRowWarps"},
    ),
    ("partial_ + <|(count_ & 1)|> * kMostSums", {"one_buffer_of_sums": "0"}),
    (
        "for (int mask = <|16|>; mask > 0;",
        {"half_of_a_warp_summed": "8"},
    ),
    (
        "if (<|lane_id() == 0|>) {",
        {"no_warp_hands_its_sum_on": "false"},
    ),
    ("sync_threads();  // publishes the sums of all warps", {"sums_not_published": ""}),
    (
        "for (int other = 1; <|other < num_warps|>;",
        {"first_warp_alone": "other < 1", "warps_that_are_not_there": "other <= num_warps"},
    ),
    # Norms.
    ("const Real count = <|static_cast<Real>(kBlocks * H)|>;\n  Real own[1]", {"mean_of_H": "H"}),
    ("const Real deviation = <|x(block, u) - mean|>;", {"squares_about_zero": "x(block, u)"}),
    (
        "return {mean, Real(1) / sqrt_precise(<|own[0] / count + eps|>)};",
        {
            "eps_forgotten": "own[0] / count",
            "variance_unbiased": "own[0] / (count - Real(1)) + eps",
        },
    ),
    ("<|own[0] += d(block, u);|>", {"mean_of_the_gradients_forgotten": ""}),
    ("<|own[1] += d(block, u) * x(block, u);|>", {"mean_of_the_products_forgotten": ""}),
    # Rows and units.
    (
        "<|b < step.batch_size|>; b += grid_dim().x",
        {"sequence_past_the_batch": "b <= step.batch_size"},
    ),
    ("<|u < width|>; u += block_dim()", {"unit_past_the_width": "u <= width"}),
    # Forward.
    (
        "if (<|!at.active|>) {\n      for_each_own(H, [&](int64_t u) {\n        output",
        {"ended_sequences_step": "false"},
    ),
    ("output[u] = T(0);", {"padding_not_written": ""}),
    (
        "if (<|is_first|>) hy[u] = load_or_zero",
        {"state_of_an_empty_sequence": "false", "last_state_overwritten": "true"},
    ),
    (
        "if (<|is_first|>) cy[u] = load_or_zero",
        {"cell_of_an_empty_sequence": "false", "last_cell_overwritten": "true"},
    ),
    ("if (<|saved|>) {  // zeros", {"reserve_of_padding_not_written": "nullptr"}),
    ("kScalesBlock<kCell> * H + 2, [&](int64_t i) { <|saved[i] = T(0);|> }", {"padding_kept": ""}),
    (
        "return <|sums && !anew|> ?",
        {"product_continued": "sums != nullptr", "absent_product_read": "sums == nullptr || !anew"},
    ),
    ("if (<|saved|>) saved[of * H + u] = value;", {"activations_not_kept": "nullptr"}),
    (
        "carried = <|is_first|> ? load_or_zero<T>(dir.hx, b * H + u) : hy",
        {"gru_begins_with_hy": "false"},
    ),
    ("const T h_prev = <|anew|> ? T(0) : carried;", {"gru_continues_h": "false"}),
    (
        "carried = <|is_first|> ? load_or_zero<T>(dir.cx, b * H + u) : cy",
        {"lstm_begins_with_cy": "false"},
    ),
    ("<|anew|> ? T(0) : carried, act);", {"lstm_continues_c": "false"}),
    ("if (<|saved|>) saved[5 * H + u] = normalised;", {"normalised_c_not_kept": "nullptr"}),
    ("<|hy[u] = h;|>\n      } else {", {"gru_state_not_handed_on": ""}),
    ("if (<|saved && thread_idx() == 0|>) {", {"scales_not_kept": "false"}),
    # Backward.
    (
        "if (<|step_dsums|>) step_dsums",
        {"gradients_not_beside": "nullptr"},
    ),
    (
        "if (<|!at.active|>) {\n      for_each_own(kBlocks",
        {"ended_sequences_step_back": "false"},
    ),
    ("[&](int64_t i) { <|dgates[i] = T(0);|> }", {"dgates_of_padding": ""}),
    ("[&](int64_t u) { <|dnorm_c[u] = T(0);|> }", {"dnorm_c_of_padding": ""}),
    (
        "const bool is_last = <|step.index + 1 == at.length|>;",
        {"dhy_at_the_last_step_alone": "step.index + 1 == step.seq_len"},
    ),
    (
        "const T continued = <|is_first|> ? load_or_zero<T>(dir.hx",
        {"gru_ends_without_hx": "false"},
    ),
    (
        "<|anew|> ? T(0) : continued);\n        dgates[u] = d.n;",
        {"gru_gradients_of_the_h_before": "false"},
    ),
    ("<|direct[u] = d.h_direct;|>", {"direct_path_forgotten": ""}),
    (
        "const T continued = <|is_first|> ? load_or_zero<T>(dir.cx",
        {"lstm_ends_without_cx": "false"},
    ),
    (
        "<|anew|> ? T(0) : continued);\n        dgates[u] = d.i;",
        {"lstm_gradients_of_the_c": "false"},
    ),
    ("dcx[u] = <|anew|> ? T(0) : d.c;", {"dc_carried_across": "false"}),
    (
        "<|load_or_zero<T>(dir.dc, at.row * dir.dc_stride + u)|>;",
        {"dc_of_the_steps_forgotten": "T(0)"},
    ),
    ("block, H, <|scales[1]|>, ", {"scale_of_the_other_norm": "scales[0]"}),
    ("dgates + <|(kBlocks - kGates) * H|>;", {"blocks_of_the_input": "0"}),
)
KERNEL_EXPLAINED = {
    "const bool is_first = step.index == 0;": "of each use, in its place",
    "for_each_own(kBlocks * H, [&](int64_t i) { dgates": "of dgates_of_padding",
    "carried_dh<T>(dir, Regularisers{}, is_last, is_cut, kCell": "known when compiled",
}
LAUNCHES = (
    ("const bool gathers = <|lengths && dir.reverse|>;", {"gradients_not_gathered": "false"}),
    ("step.index == 0 ? <|dir.hx|> : dir.hy;", {"initial_state_forgotten": "nullptr"}),
    ("end.resets = <|dir.resets|>;", {"dhx_across": "nullptr"}),
    ("if (<|walk.end() < shape.seq_len|>) return 0;", {"no_gradient_of_hx": "true"}),
)
LAUNCHES_EXPLAINED = {
    "if (h_prev)\n": "of initial_state_forgotten",
    "if (const int error": "of test_errors_are_returned",
    "return (s.cell == Cell::kGru ||": "of test_errors_are_returned",
    "(s.element == Element::kFloat32 ||": "of test_errors_are_returned",
    "if (!has_instance(shape)) return kNoInstance;": "of test_errors_are_returned",
    "shape.element == Element::kFloat32 ? of_float": "of every test of two types",
    "shape.cell == Cell::kGru ?": "of every test of two cells",
    "kCell == Cell::kGru,": "known when compiled",
    "walked < walk.end(); ++walked": "of every test",
    "return shape.cell == Cell::kGru\n": "of every test of two cells",
}
