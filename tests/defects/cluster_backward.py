"""Defects of the cluster backward kernel: for every mask, barrier and buffer."""

from __future__ import annotations

KERNEL = (
    # Buffers.
    ("shared.alloc<float>(<|2 * inbox_floats|>)", {"room_for_one_inbox": "inbox_floats"}),
    ("shared.alloc<T>(<|2 * NB * args.pitch|>)", {"room_for_one_stage": "NB * args.pitch"}),
    (
        "shared.alloc<Bits64>(<|Biases::kSlots|>)",
        {"room_for_half_of_the_biases": "Biases::kSlots / 2"},
    ),
    ("shared.alloc<int>(<|NB|>)", {"too_little_room_for_lengths": "NB - 1"}),
    ("shared.alloc<MBarrier>(<|2|>)", {"room_for_one_mbarrier": "1"}),
    ("shared.alloc<uint32_t>(<|1|>)", {"no_room_for_the_mask": "0"}),
    ("shared.alloc<T>(<|16 / sizeof(T)|>)", {"too_little_room_for_zeros": "4 / sizeof(T)"}),
    (
        "<|2 * kMaxTileSequences|> + mask_words",
        {"room_for_one_block_of_resets": "kMaxTileSequences"},
    ),
    (
        "? <|Pairs::kMaskWords|> : 0",
        {"room_for_half_of_the_mask": "Pairs::kMaskWords / 2"},
    ),
    (
        "if (args.of.resets) sync_threads();",
        {"no_barrier_after_the_first_resets": ""},
    ),
    ("shared.alloc<int>(<|8|>)", {"too_little_room_for_constants": "6"}),
    (
        "<|2 * Pairs::kOperands * kPairs * kThreads|>);",
        {"room_for_operands_of_one_step": "Pairs::kOperands * kPairs * kThreads"},
    ),
    (
        "T* const stage = staged + <|(s & 1)|> * num_columns * pitch;",
        {"one_staged_buffer": "0"},
    ),
    ("(<|(s & 1)|> * num_columns + column)", {"one_staged_buffer": "0"}),
    ("to_slot = <|next * inbox_floats|> +", {"one_inbox": "0"}),
    ("piece = <|rank * slot_floats|> +", {"slots_of_one_source": "0"}),
    ("inbox + <|(s & 1)|> * inbox_floats", {"one_inbox": "0"}),
    ("const int next = <|(s + 1) & 1|>;", {"pushes_into_the_own_step": "s & 1"}),
    # Barriers, mbarriers and waits.
    (
        "if (has_cluster) <|mbarrier_wait<Scope::kCluster>(&full[s & 1], (s - 1) >> 1 & 1);|>",
        {
            "no_wait_for_the_slots": "",
            "wrong_parity": "mbarrier_wait<Scope::kCluster>(&full[s & 1], s >> 1 & 1);",
        },
    ),
    ("if (<|thread == 0|>) {\n      mbarrier_init", {"mbarriers_of_all_threads": "true"}),
    ("mbarrier_init(&full[0], 1);", {"two_arrivals_awaited": "mbarrier_init(&full[0], 2);"}),
    ("mbarrier_init(&full[1], 1);", {"two_arrivals_awaited": "mbarrier_init(&full[1], 2);"}),
    (
        "if (steps > 0) mbarrier_arrive_expect_tx(&full[1], step_bytes);",
        {"first_step_not_armed": ""},
    ),
    (
        "if (steps > 1) mbarrier_arrive_expect_tx(&full[0], step_bytes);",
        {"second_step_not_armed": ""},
    ),
    (
        "if (<|arms && s > 0 && s + 2 <= steps|>)",
        {
            "never_armed_again": "false",
            "armed_by_all_threads": "has_cluster && s > 0 && s + 2 <= steps",
            "armed_without_a_cluster": "thread == 0 && s > 0 && s + 2 <= steps",
            "armed_at_the_first_step": "arms && s + 2 <= steps",
        },
    ),
    (
        "mbarrier_arrive_expect_tx(&full[<|s & 1|>], step_bytes);",
        {"armed_for_another_step": "(s + 1) & 1"},
    ),
    (
        "peers[m] + <|next|> * static_cast<uint32_t>(sizeof(MBarrier))",
        {"peers_signalled_of_another_step": "(s & 1)"},
    ),
    (
        "static_cast<uint32_t>(inbox_floats) * 4",
        {"too_few_bytes_expected": "static_cast<uint32_t>(inbox_floats) * 4 - 16"},
    ),
    ("cp_async_wait<1>();", {"operands_not_awaited": ""}),
    ("sync_threads();  // staged dgates", {"no_barrier_after_staging": ""}),
    ("if (!has_cluster) sync_threads();", {"no_barrier_of_one_block": ""}),
    ("cluster_sync();", {"no_cluster_barrier_at_the_start": ""}),
    ("sync_threads();  // the lengths", {"no_barrier_after_the_zeros": ""}),
    ("if (steps > 0) wait_for_slots(steps);", {"no_wait_for_the_last_slots": ""}),
    ("<|*mask = kTf32Mask;|>", {"no_mask": ""}),
    ("<|*reinterpret_cast<Bits128*>(zeros) = Bits128{};|>", {"no_zeros": ""}),
    # Masks of the packing kernel.
    ("<|gate < kNumGates<kCell>|> && unit < H", {"access_to_weights_of_no_gate": "true"}),
    ("<|unit < H|> && state < H", {"weights_of_missing_units": "true"}),
    ("unit < H && <|state < H|>", {"access_to_weights_of_missing_states": "true"}),
    # Masks of weights and rows.
    ("<|m < own_tiles|> && chunk < args.num_chunks", {"access_to_tiles_of_nobody": "true"}),
    ("m < own_tiles && <|chunk < args.num_chunks|>", {"access_to_chunks_past_the_last": "true"}),
    (
        "staged[i] = from_float<T>(0.0f);",
        {"staged_columns_not_zeroed": "if (i % 8) staged[i] = from_float<T>(0.0f);"},
    ),
    ("const bool exists = <|owner < cluster|>;", {"rows_past_the_last_block": "true"}),
    ("all_rows || <|pieces[m] >= 0|>) push", {"rows_of_nobody_pushed": "true"}),
    ("const bool all_rows = <|constants[6] != 0|>;", {"all_lanes_push": "true"}),
    ("const bool has_cluster = <|constants[0] > 1|>;", {"push_of_one_block": "true"}),
    ("if (<|pieces[m] >= 0|>)\n            *rein", {"rows_of_nobody_kept": "true"}),
    ("while (<|column < num_columns|>);", {"one_batch_tile": "false"}),
    ("if (<|sources & 4|>)", {"four_sources_forgotten": "false"}),
    ("s > 0 && <|pairs.is_inner(k)|>;", {"all_steps_are_inner": "true"}),
    # Masks of pairs of units.
    (
        "<|if (pairs.length[e] < 0) continue;|>\n      Pair<T> dgates",
        {"access_to_the_stage_of_missing_pairs": ""},
    ),
    (
        "<|if (written.length[e] < 0) continue;|>\n      BIRNN_UNROLL",
        {"access_to_dgates_of_missing_pairs": ""},
    ),
    ("bias_gradients.add(e, block, dgates);", {"biases_not_summed": ""}),
    ("writer, <|first_sequence / NB|>, args", {"biases_of_one_cluster": "0"}),
    (
        "if (<|column >= columns|>) return;",
        {"sums_of_biases_past_the_last": "false"},
    ),
    (
        "<|if (kBlocks == kGates) return block * 2 * half;|>",
        {"columns_of_another_cell": "return (block + 1) % kBlocks * 2 * half;"},
    ),
    (
        "block == 0 ? <|after_chunks|> :",
        {"gru_gate_of_the_input_multiplied": "0"},
    ),
)
KERNEL_EXPLAINED = {
    "mbarrier_init_fence();": "the cluster's barrier shows the mbarriers, too; what st_async of a "
    "peer needs beyond that the emulator does not model",
    "<|if (cluster > 1) {|>\n    if (thread == 0) {": "one block has no mbarriers; see "
    "push_of_one_block",
    "if (has_cluster) mbarrier_wait": "as above",
    "if (s > 0) wait_for_slots(s);": "before the first step the wait would be over at once",
    "if (thread == 0) {\n    *mask": "once is enough",
    "constants[6] = args.num_tiles % kWarps == 0": "see all_lanes_push",
    "const bool others_write =": "either half of the threads may write",
    "if (cluster > 1) peers[m]": "one block has no peers; see push_of_one_block",
    "const bool arms =": "see armed_by_all_threads",
    "if (inner)": "of `inner`, above",
    "else if (s > 0 && pairs.is_inner_with_more(k))": "as above",
    "if (!Precision::kRounds ||": "known when compiled",
    "if (has_cluster) {": "see push_of_one_block",
    "if (m > 0 && m >= own_tiles) break;": "of `pieces`, above",
    "st_async(peers[m]": "its place, above",
    "const bool inner =": "with all_steps_are_inner",
}
