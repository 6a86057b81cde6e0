"""Defects of the cluster backward kernel: for every mask, barrier and buffer."""

from __future__ import annotations

KERNEL = (
    # Buffers.
    ("shared.alloc<float>(<|2 * inbox_floats|>)", {"room_for_one_inbox": "inbox_floats"}),
    ("shared.alloc<T>(<|2 * NB * args.pitch|>)", {"room_for_one_stage": "NB * args.pitch"}),
    ("shared.alloc<int>(<|NB|>)", {"too_little_room_for_lengths": "NB - 1"}),
    ("shared.alloc<MBarrier>(<|2|>)", {"room_for_one_mbarrier": "1"}),
    ("shared.alloc<uint32_t>(<|1|>)", {"no_room_for_the_mask": "0"}),
    ("staged + (s & 1) * NB * args.pitch", {"one_staged_buffer": "staged"}),
    (
        "next * inbox_floats + rank * slot_floats",
        {"one_inbox": "rank * slot_floats", "slots_of_one_source": "next * inbox_floats"},
    ),
    ("inbox + <|(s & 1)|> * inbox_floats", {"one_inbox": "0"}),
    ("const int next = <|(s + 1) & 1|>;", {"pushes_into_the_own_step": "s & 1"}),
    # Barriers, mbarriers and waits.
    (
        "if (cluster > 1) <|mbarrier_wait<Scope::kCluster>(&full[s & 1], (s - 1) >> 1 & 1);|>",
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
        "if (<|cluster > 1 && thread == 0 && s + 2 <= steps|>)",
        {
            "never_armed_again": "false",
            "armed_by_all_threads": "cluster > 1 && s + 2 <= steps",
            "armed_without_a_cluster": "thread == 0 && s + 2 <= steps",
        },
    ),
    (
        "mbarrier_arrive_expect_tx(&full[<|s & 1|>], step_bytes);",
        {"armed_for_another_step": "(s + 1) & 1"},
    ),
    (
        "st_async(map_rank(target, owner), four, map_rank(&full[<|next|>], owner));",
        {"peers_signalled_of_another_step": "s & 1"},
    ),
    (
        "static_cast<uint32_t>(inbox_floats) * 4",
        {"too_few_bytes_expected": "static_cast<uint32_t>(inbox_floats) * 4 - 16"},
    ),
    ("if (<|s > 0|>) {\n      wait_for_slots(s);", {"armed_at_the_first_step": "true"}),
    ("sync_threads();  // staged dgates", {"no_barrier_after_staging": ""}),
    ("if (cluster == 1) sync_threads();", {"no_barrier_of_one_block": ""}),
    ("cluster_sync();", {"no_cluster_barrier_at_the_start": ""}),
    ("sync_threads();  // the lengths", {"no_barrier_after_the_zeros": ""}),
    ("if (steps > 0) wait_for_slots(steps);", {"no_wait_for_the_last_slots": ""}),
    ("if (thread == 0) *mask = kTf32Mask;", {"no_mask": ""}),
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
    ("<|owner < cluster|> ? owner << kRankShift", {"rows_past_the_last_block": "true"}),
    ("m >= own_tiles || <|destination[m] < 0|>", {"rows_of_nobody_pushed": "false"}),
    ("if (<|cluster > 1|>)\n          st_async(", {"push_of_one_block": "true"}),
    # Masks of pairs of units.
    (
        "<|if (pairs.length[e] < 0) continue;|>\n      Pair<T> dgates",
        {"access_to_the_stage_of_missing_pairs": ""},
    ),
    (
        "<|if (pairs.length[e] < 0) continue;|>\n      BIRNN_UNROLL",
        {"access_to_dgates_of_missing_pairs": ""},
    ),
    (
        "<|if (kBlocks == kGates) return block * U;|>",
        {"columns_of_another_cell": "return (block + 1) % kBlocks * U;"},
    ),
    (
        "block == 0 ? <|args.num_chunks * Precision::kChunkColumns|> :",
        {"gru_gate_of_the_input_multiplied": "0"},
    ),
)
KERNEL_EXPLAINED = {
    "mbarrier_init_fence();": "the cluster's barrier shows the mbarriers, too; what st_async of a "
    "peer needs beyond that the emulator does not model",
    "<|if (cluster > 1) {|>\n    if (thread == 0) {": "one block has no mbarriers; see "
    "push_of_one_block",
    "if (cluster > 1) mbarrier_wait": "as above",
}
