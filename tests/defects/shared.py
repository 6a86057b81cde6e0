"""Defects of what kernels share."""

from __future__ import annotations

GRID_EXCHANGE = (
    (
        "first >= epoch && second >= epoch",
        {"first_word_unchecked": "second >= epoch", "second_word_unchecked": "first >= epoch"},
    ),
    (
        "if (i < count) all_there = is_there(pairs[i]) && all_there;",
        {"last_pair_decides": "all_there = is_there(pairs[i]);"},
    ),
    ("vote_ballot(!all_there) == 0", {"one_lane_decides": "vote_ballot(all_there) != 0"}),
    ("if (i < count && <|!is_there(pairs[i])|>) pairs", {"asked_only_once": "false"}),
)
# Where a thread may have fewer pairs than it has room for.
COUNTED_EXCHANGE = (
    (
        "if (<|i < count|>) pairs[i] = load_relaxed_gpu(source(i));",
        {"access_to_pairs_past_the_count": "true"},
    ),
)
GRID_EXCHANGE_EXPLAINED = {
    "if (i < count) pairs[i] = load_relaxed_gpu(source(i));": "see COUNTED_EXCHANGE",
    "check((first <= epoch": "what the emulator watches for",
    "BIRNN_DEVICE void publish(uint64_t*": "what kernels call",
    "BIRNN_DEVICE void publish(WordPair*": "what kernels call",
}

BATCH_TILE = (
    ("tile_lengths[n] = <|b < batch_size|> ?", {"missing_sequences_have_a_length": "true"}),
)

UNIT_FORWARD = (
    ("if (!lengths) return seq_len;", {"access_to_absent_lengths": ""}),
    (
        "return <|given < 0 ? 0 : given < seq_len ? static_cast<int>(given) : seq_len|>;",
        {"lengths_not_clamped": "static_cast<int>(given)"},
    ),
)

# Where a unit's biases are read.
ELEMENT_OF_BIAS = "to_float(static_cast<const T*>(bias)[gate * hidden_size + unit])"
UNIT_BIAS = (
    (
        f"return <|bias ? {ELEMENT_OF_BIAS} : 0.0f|>;",
        {"access_to_absent_biases": ELEMENT_OF_BIAS},
    ),
)
UNIT_FORWARD_EXPLAINED = {"return bias ?": "see UNIT_BIAS"}

FRAGMENTS = (
    (
        "is_sure || <|chunk < num_chunks|> ? place",
        {"zero_weights_times_what_lies_behind": "true"},
    ),
    (
        "<|if (chunk >= num_chunks) break;|>\n      const uint32_t chunk_mask",
        {"chunks_past_the_last": ""},
    ),
)
# What is asked for too much lies outside of shared memory only where there is one batch tile.
FRAGMENTS_OF_ONE_TILE = (
    FRAGMENTS[0],
    (
        "chunk + 1 < kChunks && <|chunk + 1 < num_chunks|>",
        {"chunk_past_the_last_asked_for": "true"},
    ),
)
FRAGMENTS_OF_ONE_TILE_EXPLAINED = {
    "if (chunk >= num_chunks) break;\n      const uint32_t": "of one batch tile nothing past them "
    "is asked for: spares products with zeros",
}
# Where few columns are multiplied without the matrix units.
FRAGMENTS_OF_FEW_COLUMNS = (
    ("own[<|n * pitch|> + four * 4]", {"first_of_few_columns_for_all": "0"}),
    ("<|sum += shfl_xor(sum, 1);|>", {"sums_of_a_neighbour_forgotten": ""}),
    ("<|sum += shfl_xor(sum, 2);|>", {"sums_of_half_a_quad_forgotten": ""}),
)
FRAGMENTS_EXPLAINED = {
    "if (n >= count) break;": "spares the products of columns that are not there",
    "else if (chunk + 1 < kChunks": "see FRAGMENTS_OF_ONE_TILE",
    "const int now = (chunk": "known when compiled",
    "return condition <= 0.0f": "relu's derivative; the cells are tested by their values",
    "if (n + 1 < kBatchTiles)": "known when compiled",
    "const bool is_sure =": "known when compiled",
    "if (chunk > 0 && chunk % kChunksToABranch == 0": "spares products with zeros",
    "if (i + kAhead < kLoads)": "known when compiled",
    "if (kChunks % kChunksToABranch == 0 &&": "spares the search for zeros",
    "if (chunk >= num_chunks) break;\n      uint32_t all": "as of fewer batch tiles, below",
    "if (m >= num_tiles || tile_mask == 0) continue;": "as of fewer batch tiles, below",
    "if (m < num_tiles)": "spares products with the zeros of row tiles that are not there",
    "step < kChains - 1 ? second": "known when compiled",
}

PAIRS = (
    (
        "<|if (both) pair.second = source[1];|>",
        {"second_unit_always_read": "pair.second = source[1];"},
    ),
    (
        "<|if (both) target[1] = pair.second;|>",
        {"second_unit_always_written": "target[1] = pair.second;"},
    ),
    ("if (<|paired|>) {\n    *reinterpret_cast", {"odd_pairs_written_as_words": "true"}),
    ("if (<|paired|>) {\n    unpack(", {"odd_pairs_read_as_words": "true"}),
)

BACKWARD_PAIRS = (
    (
        "if (kInner || k <= length[e]) <|c_after[e] = from.before;|>",
        {"c_after_of_the_step_before": ""},
    ),
    # Which pairs there are.
    ("const bool exists = <|n < tile_batch|> &&", {"access_to_pairs_past_the_tile": "true"}),
    ("<|first_sequence + n < args.batch_size|> &&", {"missing_sequences_have_a_length": "true"}),
    ("<|first_unit + pair * 2 < args.hidden_size|>;", {"pairs_past_the_hidden_size": "true"}),
    ("<|unit_of(e) + 1 < args.hidden_size|>;", {"second_unit_always_there": "true"}),
    # What is read.
    ("if (<|k < 0|> || k > length[e]) continue;", {"access_before_the_first_step": "false"}),
    ("if (k < 0 || <|k > length[e]|>) continue;", {"access_past_the_end": "false"}),
    (
        "if (<|array|>)\n      take<kPaired>",
        {"access_to_absent_arrays": "static_cast<const void*>(&args)"},
    ),
    ("if (<|k >= length[e]|>) continue;", {"access_to_a_step_past_the_end": "false"}),
    (
        "<|take<kPaired>(e, k, kDy, dir.dy, row * args.dy_stride);|>",
        {"gradients_of_output_forgotten": ""},
    ),
    (
        "<|take<true>(e, k, kDy, at(dir.dy, row, args.dy_stride));|>",
        {"gradients_of_output_of_inner_steps_forgotten": ""},
    ),
    (
        "<|take<kPaired>(e, k, kDc, dir.dc, row * args.dc_stride);|>",
        {"gradients_of_cell_state_forgotten": ""},
    ),
    (
        "take<true>(e, k, kDc, <|dir.dc|>,",
        {"gradients_of_cell_state_of_inner_steps_forgotten": "static_cast<const void*>(nullptr)"},
    ),
    (
        "if (<|(kTakesDc && args.dir.dc) || args.resets || args.recurrent_mask|>) shortest",
        {
            "inner_steps_without_cell_state": "args.resets || args.recurrent_mask",
            "inner_steps_without_resets": "(kTakesDc && args.dir.dc) || args.recurrent_mask",
            "inner_steps_without_a_mask": "(kTakesDc && args.dir.dc) || args.resets",
        },
    ),
    (
        "<|carried[e][1] += to_float(dc.second);|>",
        {"gradients_of_cell_state_of_the_second_unit_forgotten": ""},
    ),
    (
        "return k > 0 && <|k + 1 < -shortest|>;",
        {"last_steps_are_inner_with_more": "k < -shortest"},
    ),
    (
        "return <|k > 0|> && k + 1 < -shortest",
        {"first_step_is_inner_with_more": "k >= 0"},
    ),
    ("(slots) + <|(k & 1)|> * kStepBytes", {"operands_of_one_step": "0"}),
    ("return k > 0 && <|k + 1 < shortest|>;", {"last_steps_are_inner": "k < shortest"}),
    ("return <|k > 0|> && k + 1 < shortest", {"first_step_is_inner": "k >= 0"}),
    ("if (<|args.paired|>)\n        fetch_as<true>(k);", {"odd_pairs_fetched_as_words": "true"}),
    # Resets and masks.
    ("<|(block & 1) * kMaxTileSequences|> + n;", {"one_block_of_resets": "0"}),
    (
        "if (<|args.resets && k % kResetSteps == kResetSteps / 2 && k > kResetSteps|>)",
        {"resets_of_earlier_steps_not_loaded": "false"},
    ),
    (
        "return <|(word >> (k % kResetSteps) & 1u) != 0|>;",
        {"reset_of_the_step_after": "(word >> ((k + 1) % kResetSteps) & 1u) != 0"},
    ),
    ("<|anew ? 0.0f : of(from.before)|>,", {"state_before_a_reset_counts": "of(from.before)"}),
    ("if (anew) carried[e][half] = 0.0f;", {"carried_across_a_reset": ""}),
    (
        "if (<|args.recurrent_mask|>) {\n      Pair<T> mask;",
        {"gradients_not_masked": "static_cast<const void*>(nullptr)"},
    ),
    ("dh[half] = apart ? <|0.0f|> :", {"direct_path_masked_too": "direct[half]"}),
    ("const bool anew = <|begins_anew(e, k)|>;\n    BIRNN", {"gradients_cross_a_reset": "false"}),
    (
        "<|if (length[e] < 0) continue;|>\n        carried[e][0] = dcx",
        {"access_to_dcx_of_missing_sequences": ""},
    ),
    ("if (<|has_both(e)|>) carried[e][1] = dcx", {"access_to_dcx_of_a_missing_unit": "true"}),
    ("if (<|has_both(e)|>) dh[1] = dhy[1];", {"access_to_dhy_of_a_missing_unit": "true"}),
    ("if (<|k == 0|>) {\n      offset", {"state_before_the_first_step": "k < 0"}),
    # Time.
    ("k == length[e] - 1", {"dhy_at_every_step": "k == args.seq_len - 1"}),
    ("kInner || <|k < length[e]|>) {", {"ends_ignored": "k < length[e] + 1"}),
    (
        "args.dir.reverse && k < length[e] ? length[e] - 1 - k : k",
        {
            "row_of_the_reverse_direction": "args.dir.reverse && k < length[e] "
            "? args.seq_len - 1 - k : k"
        },
    ),
    (
        "const float direct[2] = {<|kCell == Cell::kGru ? carried[e][0] : 0.0f|>,",
        {"gru_direct_path_forgotten": "0.0f"},
    ),
    # What is stored.
    (
        "k == 0 && args.first_dgates",
        {
            "first_dgates_of_the_last_step": "k == args.seq_len - 1 && args.first_dgates",
            "access_to_absent_first_dgates": "k == 0",
        },
    ),
    (
        "<|if (length[e] < 0) continue;|>\n      if (length[e] > 0)",
        {"gradients_of_missing_sequences": ""},
    ),
    ("length[e] > 0", {"state_of_an_empty_sequence": "true"}),
    ("k < args.seq_len", {"padding_not_written": "false"}),
)
BACKWARD_PAIRS_EXPLAINED = {
    "static constexpr int kActivations =": "known when compiled",
    "return kCell == Cell::kLstm ? args.dir.cx": "known when compiled",
    "offset = kCell == Cell::kLstm ?": "known when compiled",
    "return kCell == Cell::kLstm ? args.dir.reserve": "known when compiled",
    "all_given(shfl(": "see access_to_absent_arrays: an inner step asks nothing",
    "if (tile_lengths[n] >= 0 && tile_lengths[n] < shortest)": "of is_inner",
    "cp_async<sizeof(Bits)>(target": "see operands_not_awaited",
    "return which == kBefore ?": "known when compiled",
    ": which == kDy": "known when compiled",
    ": which == kDc": "known when compiled",
    "static constexpr bool kTakesDc =": "known when compiled",
    "if (all_given && is_inner(k))": "of is_inner",
    "if (all_given && is_inner_with_more(k))": "of is_inner_with_more",
    "if (length[e] < 0) continue;\n      const auto at": "spares copies of what nobody reads",
    "else if constexpr (kGates > 1)": "known when compiled",
    "if (length[e] == steps) c_after": "of others it comes with their last step",
    "if (kInner || k <= length[e]) from": "spares reading what nobody asks for",
    "if ((is_inner(k) || is_inner_with_more(k)) && args.paired) {": "a shorter way of the same",
    "return to_float(half == 0": "known when compiled",
    "(half == 0 ? dgates": "known when compiled",
    "kCell == Cell::kGru ? carried[e][1] : 0.0f};": "as of the first unit",
    "if (n < kMaxTileSequences &&": "words that nobody asks for",
    "cp_async<4>(target, source);": "see operands_not_awaited",
    "if (!args.resets) return;": "without resets nobody looks at words",
    "if (!args.resets) return false;": "as above",
    "const uint32_t word = given[": "see one_block_of_resets",
    "if (args.recurrent_mask) BIRNN_UNROLL": "of a mask that is not there nobody reads",
    "if (length[e] >= 0)\n": "of pairs that are not there nobody reads",
    "gradient_of_state<kStep != StepKind::kInner>": "known when compiled",
    "const bool anew = kStep != StepKind::kInner": "see carried_across_a_reset",
    "const bool apart =": "a longer way of the same, where nothing is given",
    "if (!apart) return;": "as above",
}

RESETS = (
    (
        "t = <|reverse ? length - k : k|>;",
        {
            "reset_at_the_reverse_step_itself": "reverse ? length - 1 - k : k",
            "reset_off_by_one_step": "reverse ? length - k : k + 1",
        },
    ),
    ("const bool anew = <|t < length|> &&", {"reverse_begins_anew_at_its_start": "true"}),
    ("if (<|k % kResetSteps == 0|>) {", {"words_of_the_first_steps": "k == 0"}),
    (
        "vote_ballot(<|(word >> (k % kResetSteps) & 1u) != 0|>);",
        {"reset_of_the_step_after": "(word >> ((k + 1) % kResetSteps) & 1u) != 0"},
    ),
)
RESETS_EXPLAINED = {
    "if (!resets) return;": "there is room for the words, which nobody reads",
    "const bool exists = n < num_sequences": "of others nobody looks at the bits",
}

BIAS_GRADIENTS = (
    ("sync_threads();  // all have read", {"no_barrier_before_the_sums_of_biases": ""}),
    ("sync_threads();  // the sums of all threads", {"no_barrier_after_the_sums_of_biases": ""}),
    (
        "if (<|at.row < tile_batch && at.row % 2 == 0|>)",
        {"sums_of_biases_past_the_tile": "at.row % 2 == 0"},
    ),
    ("<|own_slots[i] = Bits64{};|>", {"sums_of_biases_not_cleared": ""}),
    ("row < <|tile_batch / 2|>; ++row", {"biases_of_one_row_left_out": "tile_batch / 2 - 1"}),
    ("if (<|unit >= args.hidden_size|>) continue;", {"biases_past_the_hidden_size": "false"}),
    ("if (<|args.adds_to_bias_sums|>) sum", {"sums_of_biases_never_start": "true"}),
    ("if (<|num_groups == 1|>) store", {"biases_of_one_group_not_stored": "false"}),
    (
        "if (<|bias && gate >= 0|>)",
        {"access_to_absent_biases": "gate >= 0", "biases_of_no_gate": "bias != nullptr"},
    ),
    (
        "<|sums[e][block][1] += to_float(dgates.second);|>",
        {"bias_of_the_second_unit_forgotten": ""},
    ),
)
