"""Defects of the stepwise kernels: for every mask. They have no barrier and no shared memory."""

from __future__ import annotations

KERNEL = (
    # Lengths and rows.
    (
        "if (<|step.lengths|>) {",
        {
            "lengths_ignored": "step.lengths && step.reverse ? step.lengths : nullptr",
            "lengths_ignored_in_reverse": "!step.reverse ? step.lengths : nullptr",
            "absent_lengths_read": "&step.seq_len",
        },
    ),
    (
        "at.length = <|given < 0 ? 0 : given < step.seq_len ? given : step.seq_len|>;",
        {"lengths_not_clamped": "given"},
    ),
    ("at.active = <|step.index < at.length|>;", {"ended_sequences_are_active": "true"}),
    (
        "const bool backwards = <|at.active && step.reverse|>;",
        {"padding_backwards": "step.reverse", "all_forwards": "false"},
    ),
    (
        "? <|at.length - 1 - step.index|> :",
        {"reverse_from_the_end_of_the_batch": "step.seq_len - 1 - step.index"},
    ),
    (
        "at.previous_row = <|backwards|> ?",
        {"neighbour_rows_swapped": "!backwards"},
    ),
    ("return <|array|> ? load", {"absent_array_read": "&index"}),
    ("; <|b < step.batch_size|>; b +=", {"sequence_past_the_batch": "b <= step.batch_size"}),
    ("; <|u < width|>; u +=", {"unit_past_the_width": "u <= width"}),
    # Several sequences in a row.
    (
        "if (<|!resets|>) return false;\n  return step.reverse ?",
        {"resets_forgotten_by_the_later_step": "true"},
    ),
    (
        "return step.reverse ? <|step.index > 0 && resets[at.previous_row]|> :",
        {
            "reverse_begins_anew_at_its_own_step": "resets[at.row]",
            "access_reverse_past_the_end": "resets[at.previous_row]",
        },
    ),
    (
        "if (<|!resets || step.index + 1 >= at.length|>) return false;",
        {
            "resets_forgotten_by_the_earlier_step": "true",
            "dhy_cut_by_what_lies_past_the_end": "!resets",
        },
    ),
    (
        "resets[<|step.reverse ? at.row : at.row + step.batch_size|>];",
        {
            "cut_at_its_own_step": "at.row",
            "reverse_cut_like_forward": "at.row + step.batch_size",
        },
    ),
    (
        "return <|gates_h && !anew|> ?",
        {
            "product_continued": "gates_h != nullptr",
            "absent_product_added": "static_cast<const Real*>(dir.cy) != nullptr",
        },
    ),
    ("const Real h_prev = <|anew|> ? Real(0) : carried;", {"gru_continues_h": "false"}),
    ("const Real c_prev = <|anew|> ? Real(0) : carried;", {"lstm_continues_c": "false"}),
    ("if (<|is_cut|>) return Carried<T>(0);", {"dh_carried_across": "false"}),
    (
        "const Real h_prev = <|begins_anew(step, dir.resets, at)|> ? Real(0) : continued;",
        {"gru_gradients_of_the_h_before": "false"},
    ),
    ("const Real c_prev = <|anew|> ? Real(0) : continued;", {"lstm_gradients_of_the_c": "false"}),
    ("*dc = <|anew|> ? Real(0) : dc_prev;", {"dc_carried_across": "false"}),
    (
        "const bool is_cut = <|at.active && begins_anew(step, dir.resets, at)|>;",
        {"dhx_across": "false"},
    ),
    # Regularisers.
    ("if (<|masked|>) store(masked + state", {"masked_h_not_handed_on": "nullptr"}),
    ("if (<|!regularisers.zoneout_h|>) return h;", {"zoneout_of_h_forgotten": "true"}),
    (
        "carried = <|step.index == 0|> ? load_or_zero<T>(dir.hx, state)",
        {"zoneout_begins_with_hy": "false"},
    ),
    ("mix(h, <|anew|> ? Carried<T>(0) : carried, share)", {"zoneout_across": "false"}),
    ("if (<|regularisers.zoneout_h|>) keep(0, h);", {"mixed_h_alone_is_kept": "nullptr"}),
    (
        "if (<|regularisers.zoneout_h || regularisers.zoneout_c|>) keep(5, c);",
        {
            "c_kept_with_zoneout_of_h_alone": "regularisers.zoneout_h != nullptr",
            "c_kept_with_zoneout_of_c_alone": "regularisers.zoneout_c != nullptr",
        },
    ),
    (
        "if (<|regularisers.zoneout_c|>) {\n"
        "        const int64_t shares = at.row * regularisers.zoneout_c_stride + u;\n"
        "        c = ",
        {"zoneout_of_c_forgotten": "nullptr"},
    ),
    ("<|regularisers.recurrent_mask|> ? load_or_zero", {"gradients_unmasked": "nullptr"}),
    ("if (<|!regularisers.zoneout_h|>) return;", {"gradients_past_zoneout_of_h": "true"}),
    (
        "\n          <|regularisers.zoneout_h|> ? load(reserve)",
        {"gradients_of_the_mixed_h": "nullptr"},
    ),
    ("*direct = <|regularisers.zoneout_h|> ?", {"gru_alone_hands_back": "nullptr"}),
    (
        "if (<|regularisers.zoneout_c|>) {\n"
        "        const int64_t shares = at.row * regularisers.zoneout_c_stride + u;\n"
        "        direct_c",
        {"gradients_past_zoneout_of_c": "nullptr"},
    ),
    (
        "is_mixed = <|regularisers.zoneout_h || regularisers.zoneout_c|>;",
        {"gradients_of_the_mixed_c": "false"},
    ),
    ("<|regularisers.zoneout_c|> ? direct_c + d.c", {"dc_past_the_cell_forgotten": "nullptr"}),
    ("load(w), <|load(w + hidden_size)|>,", {"peephole_of_f_is_that_of_i": "load(w)"}),
    # Forward.
    (
        "<|if (is_first) store(hy + unit, load_or_zero<T>(dir.hx, unit));|>",
        {
            "state_of_an_empty_sequence": "",
            "last_state_overwritten": "store(hy + unit, load_or_zero<T>(dir.hx, unit));",
        },
    ),
    (
        "if (is_first) cy[unit] = load_or_zero<T>(dir.cx, unit);",
        {
            "cell_of_an_empty_sequence": "",
            "last_cell_overwritten": "cy[unit] = load_or_zero<T>(dir.cx, unit);",
        },
    ),
    ("store(output, Real(0));", {"padding_not_written": ""}),
    (
        "carried = <|is_first|> ? load_or_zero<T>(dir.hx, unit) : load(hy",
        {"gru_begins_with_hy": "false"},
    ),
    ("carried = <|is_first|> ? load_or_zero<T>(dir.cx", {"lstm_begins_with_cy": "false"}),
    (
        "if (save_reserve) store(gates + block * H, value);",
        {"reserve_in_inference": "store(gates + block * H, value);"},
    ),
    ("recurrent_part(2) + <|bias(3)|>", {"bias_of_the_wrong_side": "bias(2)"}),
    (
        "store(output, Carried<T>(0));\n      if (<|step.index == 0|>)",
        {"projected_state_of_an_empty_sequence": "false", "last_projected_overwritten": "true"},
    ),
    ("if (<|at.active|>) {\n      const bool anew", {"projected_padding": "true"}),
    # Backward.
    ("if (<|is_last|>) return dhx[state];", {"dhy_forgotten": "false"}),
    (
        "return <|is_gru || regularisers.zoneout_h|> ?",
        {"direct_path_forgotten": "false", "direct_path_of_zoneout_forgotten": "is_gru"},
    ),
    ("if (step_dgates) store(step_dgates + offset, value);", {"gates_not_beside": ""}),
    (
        "if (<|first_dgates && is_first|>)",
        {"first_dgates_of_the_last_step": "first_dgates && step.index + 1 == at.length"},
    ),
    (
        "const bool is_last = <|step.index + 1 == at.length|>;\n"
        "      const bool is_cut = ends_before_next(step, dir.resets, at);\n      dh = carried",
        {"dhy_at_every_step": "step.index + 1 == step.seq_len"},
    ),
    (
        "const bool is_last = <|step.index + 1 == at.length|>;\n"
        "      const bool is_cut = ends_before_next(step, dir.resets, at);\n      d = carried",
        {"projected_dhy_at_every_step": "step.index + 1 == step.seq_len"},
    ),
    (
        "= <|is_first|> ? load_or_zero<T>(dir.hx, unit)\n",
        {"gru_ends_without_hx": "false"},
    ),
    ("continued = <|is_first|> ? load_or_zero<T>(dir.cx", {"lstm_ends_without_cx": "false"}),
    (
        "<|*dc + load_or_zero<T>(dir.dc, at.row * dir.dc_stride + u)|>;",
        {"gradients_of_the_cell_states_forgotten": "*dc"},
    ),
    ("if (<|at.active|>) {\n      const bool is_last", {"projected_gradients_of_padding": "true"}),
    ("if (step_dproj) store(step_dproj + unit, d);", {"projection_not_beside": ""}),
    (
        "carried_dh<T>(dir, regularisers, <|!at.active|>, is_cut, is_gru",
        {"dhx_of_an_empty_sequence": "false"},
    ),
)
KERNEL_EXPLAINED = {
    "return condition <= Real(0)": "relu's derivative; the cells are tested by their values",
    "if (!at.active) {\n      if (wide) {\n        if (is_first) store(wide + unit, Real(0));": ""
    "the product with what stays there is not looked at; zeros keep NaN out of it",
    "const bool is_first = step.index == 0;": "of each use, in its place",
    "if (!at.active) {\n      for (int block": "of ended_sequences_are_active",
    "if (wide) {\n      store": "with a projection or without",
    "if (wide_dh) {": "with a projection or without",
    "emit(0, kCell == Cell::kTanh ?": "known when compiled",
    "dh = carried_dh<T>(dir, regularisers, is_last, is_cut, kCell == Cell::kGru": ""
    "known when compiled",
    "h = kCell == Cell::kTanh ?": "known when compiled",
    "if (is_first) store_masked(": "a row that nobody looks at; zeros keep NaN out of the product",
    "if (step.index == 0) store_masked(": "the same",
}
LAUNCHES = (
    ("const bool gathers = <|lengths && dir.reverse|>;", {"gradients_not_gathered": "false"}),
    ("dgates + <|first_column|>,", {"blocks_of_the_input": "0"}),
    ("step.index == 0 ? <|dir.hx|> : dir.hy;", {"initial_state_forgotten": "nullptr"}),
    ("if (<|masked && h_prev|>) {", {"product_of_h_unmasked": "false"}),
    ("if (<|step.index == 0|>)\n        if", {"initial_state_not_masked": "false"}),
)

# With the reset gate before the product.
RESET_BEFORE = (
    ("if (<|anew|>) return Carried<T>(0);", {"reset_continues_h": "false"}),
    (
        "return <|step.index == 0|> ? load_or_zero<T>(dir.hx, unit)\n                         :",
        {"reset_begins_with_hy": "false"},
    ),
    ("keep(3, Real(0));", {"reserve_of_padding_not_zero": ""}),
    (
        "if (save_reserve) store(gates + block * H, value);",
        {"reset_reserve_in_inference": "store(gates + block * H, value);"},
    ),
    ("<|gates_h && !anew|> ?", {"gates_continued": "gates_h != nullptr"}),
    (
        "if (<|regularisers.recurrent_mask|>) h = h *",
        {"reset_of_the_unmasked_h": "nullptr"},
    ),
    ("store(reset_h + unit, <|reset|>);", {"product_of_h_not_reset": "h"}),
    ("keep(3, <|reset|>);", {"h_kept_not_reset": "h"}),
    (
        "<|if (step.index == 0) store(hy + unit, load_or_zero<T>(dir.hx, unit));|>",
        {
            "reset_state_of_an_empty_sequence": "",
            "reset_last_state_overwritten": "store(hy + unit, load_or_zero<T>(dir.hx, unit));",
        },
    ),
    ("store(output, Real(0));", {"reset_padding_not_written": ""}),
    (
        "if (save_reserve) store(gates + 2 * H, act.n);",
        {
            "n_not_kept": "",
            "n_kept_in_inference": "store(gates + 2 * H, act.n);",
        },
    ),
    (
        "h = <|mixed_h<T>(step, dir, regularisers, at, anew, unit, u, h)|>;",
        {"reset_zoneout_forgotten": "h"},
    ),
    ("if (beside) store(beside + block * hidden_size, value);", {"reset_gates_not_beside": ""}),
    (
        "first(<|first_dgates && step.index == 0|> ?",
        {
            "reset_first_dgates_of_the_last_step": "first_dgates && step.index + 1 == at.length",
            "reset_first_dgates_of_the_batch": "first_dgates && step.index + 1 == step.seq_len",
        },
    ),
    (
        "const bool is_last = <|step.index + 1 == at.length|>;",
        {"reset_dhy_with_a_product_of_nothing": "false"},
    ),
    (
        "is_cut = <|ends_before_next(step, dir.resets, at)|>;",
        {"reset_dh_carried_across": "false"},
    ),
    (
        "continued = <|step.index == 0|> ? load_or_zero<T>(dir.hx, unit)",
        {"reset_ends_without_hx": "false"},
    ),
    (
        "const Real h_prev = <|begins_anew(step, dir.resets, at)|> ? Real(0) : continued;",
        {"reset_gradients_of_the_h_before": "false"},
    ),
    ("*direct = <|regularisers.zoneout_h|> ?", {"reset_gru_alone_hands_back": "nullptr"}),
    ("if (<|!at.active|>) return;", {"gradients_of_r_past_the_end": "false"}),
    (
        "<|regularisers.recurrent_mask|> ? load_or_zero<T>(regularisers.recurrent_mask, unit) : 1",
        {"reset_gradients_unmasked": "nullptr"},
    ),
)
RESET_BEFORE_EXPLAINED = {
    "if (!at.active) {\n      store(reset_h + unit": "of reserve_of_padding_not_zero",
    "if (!at.active) {\n      store(output": "of reset_padding_not_written",
    "if (!at.active) {\n      for (int block": "of reset_gates_not_beside, which it writes too",
    "product && !anew ?": "where h is zero, so is r * h and what the library makes of it",
    "if (step.index == 0) store_masked(": "a row that nobody looks at; zeros keep NaN out",
    "beside(step_dgates ?": "the address alone",
    "if (first) store(": "of reset_first_dgates_of_the_last_step",
}
RESET_BEFORE_LAUNCHES = (
    ("const bool gathers = <|lengths && dir.reverse|>;", {"reset_gradients_not_gathered": "false"}),
    ("step.index == 0 ? <|dir.hx|> : dir.hy;", {"reset_initial_state_forgotten": "nullptr"}),
    ("if (<|masked && h_prev|>) {", {"reset_product_of_h_unmasked": "false"}),
    ("if (<|step.index == 0|>)\n        if", {"reset_initial_state_not_masked": "false"}),
    ("walk.multiply_by(<|dgates + 2 * H|>,", {"product_of_the_wrong_gates": "dgates"}),
)
