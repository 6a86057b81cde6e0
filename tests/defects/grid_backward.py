"""Defects of the grid backward kernel: for every mask, barrier and buffer."""

from __future__ import annotations

KERNEL = (
    # Buffers.
    (
        "shared.alloc<Bits128>(<|2 * kWarps * num_tiles * 32|>)",
        {"access_to_a_second_buffer_of_sums": "kWarps * num_tiles * 32"},
    ),
    (
        "shared.alloc<Bits128>(<|kWarps * rest_chunks * num_tiles * 64|>)",
        {"room_for_the_rest_of_two_warps": "2 * rest_chunks * num_tiles * 64"},
    ),
    (
        "shared.alloc<Bits64>(<|Biases::kSlots|>)",
        {"room_for_half_of_the_biases": "Biases::kSlots / 2"},
    ),
    ("shared.alloc<int>(<|NB|>)", {"too_little_room_for_lengths": "NB - 1"}),
    (
        "<|2 * kMaxTileSequences|> + mask_words",
        {"room_for_one_block_of_resets": "kMaxTileSequences"},
    ),
    (
        "? <|Pairs::kMaskWords|> : 0",
        {"room_for_half_of_the_mask": "Pairs::kMaskWords / 2"},
    ),
    ("if (of.resets) sync_threads();", {"no_barrier_after_the_first_resets": ""}),
    ("shared.alloc<uint32_t>(<|1|>)", {"no_room_for_the_mask": "0"}),
    ("shared.alloc<BackwardArguments>(<|1|>)", {"no_room_for_the_arguments": "0"}),
    ("gates_ring + <|(epoch & 1)|> *", {"one_slot_of_gates": "0"}),
    ("* 2 + <|slot|>;", {"one_slot_of_sums": "0"}),
    (
        "sums_of(column_team, <|epoch & 1|>) + (exists",
        {"sums_of_the_step_before_the_last": "(epoch + 1) & 1"},
    ),
    ("column_team * source_pairs", {"slots_of_one_source": "0"}),
    ("turn & 1", {"one_buffer_of_sums_of_warps": "0"}),
    (
        "(warp * rest_chunks + chunk - kChunks) * num_tiles + m",
        {"one_place_for_the_rest": "(chunk - kChunks) * num_tiles + m"},
    ),
    # Barriers and waits.
    (
        "grid_exchange::await(parts, first + source * source_pairs, source_pairs, count, epoch);",
        {"no_wait_for_the_sums": ""},
    ),
    (
        "grid_exchange::await(b, source, 32, count, epoch);",
        {"no_wait_for_the_gates": ""},
    ),
    ("if (steps > 0) receive_sums();", {"no_wait_for_the_last_sums": ""}),
    ("if (s > 0) receive_sums();", {"no_sums_of_the_step_before": ""}),
    ("++epoch;", {"epochs_begin_anew_with_a_group": "epoch = s == 0 ? 1 : epoch + 1;"}),
    ("<|sync_threads();|>\n        if (Q > 1) {", {"no_barrier_after_the_sums_of_warps": ""}),
    ("sync_threads();  // all have read the lengths", {"no_barrier_before_the_lengths": ""}),
    ("sync_threads();  // the lengths", {"no_barrier_after_the_lengths": ""}),
    ("sync_threads();  // the mask and", {"no_barrier_after_the_arguments": ""}),
    ("*mask = kTf32Mask;", {"no_mask": ""}),
    # Masks of the packing kernel.
    ("? <|grid_exchange::kNever|> :", {"ring_of_gates_not_cleared": "1u"}),
    (": <|grid_exchange::kAlways|>;", {"columns_that_nobody_publishes": "grid_exchange::kNever"}),
    ("return <|grid_exchange::kNever|>; }", {"ring_of_sums_not_cleared": "1u"}),
    ("<|payload * kElements < num_columns|> ?", {"gates_of_all_columns_there": "false"}),
    ("if (<|Q > 1|>)\n    grid_exchange::clear", {"cleared_without_a_ring": "true"}),
    ("<|unit < H|> && state < H", {"missing_units_not_masked": "true"}),
    ("unit < H && <|state < H|>", {"access_to_weights_of_missing_states": "true"}),
    # Masks of weights and columns.
    (
        "<|left < 0 ? 0 : left < args.warp_chunks ? left : args.warp_chunks|>;",
        {"chunks_of_other_warps": "args.warp_chunks"},
    ),
    ("if (<|m < num_tiles|>) fragment.load", {"access_to_the_rest_of_no_tile": "true"}),
    ("first < <|own_chunks|>; first +=", {"chunks_in_shared_memory_left_out": "0"}),
    ("<|m >= num_tiles|> || own_chunks == 0", {"sums_of_tiles_past_the_last": "false"}),
    (
        "if (<|(first + i) * args.warp_chunks < num_chunks|>)",
        {"sums_of_idle_warps": "true"},
    ),
    (
        "n % 8 / 2);\n            for (int w = 0; <|w * args.warp_chunks < num_chunks|>;",
        {"sums_of_idle_warps": "w < kWarps"},
    ),
    # Masks of the sums.
    ("const bool exists = <|place < source_pairs|>;", {"sums_of_pairs_past_the_last": "true"}),
    ("if (Q == 1) return;", {"sums_awaited_without_a_ring": ""}),
    (
        "<|Q - source < kAskedSources|> ?",
        {"sources_past_the_last": "false"},
    ),
    ("if (<|Q > 1|>) {\n          // Warp m", {"sums_published_without_a_ring": "true"}),
    ("if (<|warp < num_tiles && owner < Q|>) {", {"rows_of_no_owner": "warp < num_tiles"}),
    ("if (n / 8 != tile) continue;", {"sums_of_another_tile": ""}),
    ("(tile * 4 + lane % 4) * half_units", {"batch_tiles_in_one_place": "(lane % 4) * half_units"}),
    # Masks of pairs of units.
    ("if (n >= NB) continue;", {"access_to_gates_past_the_group": ""}),
    (
        "bias_gradients.add(e, b, dgates[b]);",
        {
            "biases_not_summed": "",
            "biases_of_the_first_group": "if (first_sequence == 0) "
            "bias_gradients.add(e, b, dgates[b]);",
        },
    ),
    (
        "<|if (pairs.length[e] < 0) continue;|>\n        BIRNN_UNROLL",
        {"dgates_of_missing_pairs": ""},
    ),
)
KERNEL_EXPLAINED = {
    "Biases::kSlots > 0 ? bias_slots :": "known when compiled",
    "if (m < num_tiles && chunk < own_chunks)": "spares the reading of weights whose products "
    "nobody keeps; what they would be still lies in the workspace",
    "const int rest_chunks = kRest &&": "the size of an array: none where nothing is left over",
    "if (thread == 0) {\n    *mask": "once is enough",
    "if (i >= count) continue;": "with sources_past_the_last",
    "const int count = exists": "of `exists`, above",
    "if (pairs.length[e] >= 0) pairs.template undo": "spares a pair that has no step the search "
    "for one",
    "if (first + i < own_chunks)": "spares products of words that nobody asked for",
    "if (m >= num_tiles || own_chunks == 0) break;": "an idle warp is spared the writing of sums "
    "that nobody reads",
    "four[i] = kChains == 2": "known when compiled",
}
