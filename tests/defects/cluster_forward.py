"""Defects of the cluster forward kernel: for every mask, barrier and buffer."""

from __future__ import annotations

KERNEL = (
    # Buffers.
    ("shared.alloc<T>(<|2 * h_elements|>)", {"room_for_one_buffer_of_h": "h_elements"}),
    (
        "shared.alloc<T>(<|args.groups * kSlots * kSlotElements|>)",
        {"too_little_room_for_gates": "args.groups * kSlots * kSlotElements - 1"},
    ),
    (
        "<|args.k_split > 1 ? args.k_split * kBatchTiles * kTiles * 32 : 0|>;",
        {"access_to_partial_sums_without_room": "0"},
    ),
    (
        "shared.alloc<Bits128>(<|args.groups * partial_elements|>)",
        {"access_to_the_last_partial_sums": "args.groups * partial_elements / 8 * 7"},
    ),
    (
        "shared.alloc<float>(<|args.groups * kSums * kUnits|>)",
        {"too_little_room_for_biases": "args.groups * kSums * kUnits - 1"},
    ),
    ("shared.alloc<int>(<|NB|>)", {"too_little_room_for_lengths": "NB - 1"}),
    ("shared.alloc<MBarrier>(<|2|>)", {"room_for_one_mbarrier": "1"}),
    ("shared.alloc<uint32_t>(<|1|>)", {"no_room_for_the_mask": "0"}),
    (
        "shared.alloc<Bits128>(<|args.groups * args.k_split * args.shared_chunks * kTiles * 64|>)",
        {
            "too_little_room_for_weights": "args.groups * args.k_split * args.shared_chunks "
            "* (kTiles * 64 - 1)"
        },
    ),
    ("h + <|((k + 1) & 1) * h_elements|>", {"one_buffer_of_h": "(k & 1) * h_elements"}),
    ("const int row = <|(k & 1)|> * h_elements", {"always_the_first_h": "0"}),
    ("to_piece + <|next * h_elements * sizeof(T)|>;", {"always_pushed_to_the_first_h": "0"}),
    (
        "shared.alloc<T>(<|args.groups * kBlockElements|>)",
        {"too_little_room_for_h_on_its_way": "args.groups * kBlockElements - 1"},
    ),
    ("shared.alloc<T>(<|16 / sizeof(T)|>)", {"too_little_room_for_zeros": "4 / sizeof(T)"}),
    ("shared.alloc<int>(<|12|>)", {"too_little_room_for_constants": "8"}),
    (
        "T* const masks = shared.alloc<T>(<|args.groups * mask_elements|>)",
        {"too_little_room_for_masks": "args.groups * mask_elements / 2"},
    ),
    (
        "T* const staged_masked = shared.alloc<T>(<|args.groups * mask_elements|>)",
        {"too_little_room_for_masked_h": "args.groups * mask_elements / 2"},
    ),
    (
        "of_part * kBatchTiles + tile",
        {"one_place_for_all_sums": "tile", "sums_of_one_tile": "of_part * kBatchTiles"},
    ),
    (
        "(chunk - register_chunks) * kTiles + m",
        {"one_chunk_of_shared_weights": "0 * kTiles + m"},
    ),
    # Barriers, mbarriers and waits.
    (
        "mbarrier_wait<Scope::kCluster>(&full[k & 1], (k - 1) >> 1 & 1);",
        {
            "no_wait_for_h": "",
            "wrong_parity": "mbarrier_wait<Scope::kCluster>(&full[k & 1], k >> 1 & 1);",
        },
    ),
    (
        "const uint32_t to_signal = <|next|> *",
        {"peers_signalled_of_another_step": "(next ^ 1u)"},
    ),
    ("const uint32_t next = <|(k + 1) & 1|>;", {"pushes_into_the_own_step": "k & 1"}),
    (
        "if (<|arms && k > 0 && k + 2 < steps|>)",
        {
            "never_armed_again": "false",
            "armed_by_all_threads": "has_cluster && k > 0 && k + 2 < steps",
            "armed_before_the_first_wait": "arms && k + 2 < steps",
        },
    ),
    (
        "mbarrier_arrive_expect_tx(&full[<|k & 1|>], step_bytes);",
        {"armed_for_another_step": "(k + 1) & 1"},
    ),
    (
        "if (steps > 1) mbarrier_arrive_expect_tx(&full[1], step_bytes);",
        {"first_step_not_armed": ""},
    ),
    (
        "if (steps > 2) mbarrier_arrive_expect_tx(&full[0], step_bytes);",
        {"second_step_not_armed": ""},
    ),
    (
        "static_cast<uint32_t>(<|args.num_groups * kBlockElements * sizeof(T)|>);",
        {
            "too_few_bytes_expected": "args.num_groups * kBlockElements * sizeof(T) - 16",
            "own_bytes_not_expected": "(args.num_groups - own_groups) * kBlockElements * sizeof(T)",
        },
    ),
    ("if (<|thread == 0|>) {\n      // A step is", {"mbarriers_of_all_threads": "true"}),
    ("mbarrier_init(&full[0], 1);", {"two_arrivals_awaited": "mbarrier_init(&full[0], 2);"}),
    ("mbarrier_init(&full[1], 1);", {"two_arrivals_awaited": "mbarrier_init(&full[1], 2);"}),
    ("cluster_sync();", {"no_cluster_barrier_at_the_start": "sync_threads();"}),
    ("sync_threads();  // the lengths", {"no_barrier_at_the_start": ""}),
    ("if (!has_cluster) sync_threads();", {"no_barrier_of_one_block": ""}),
    ("cp_async_wait<kSlots - 1>();", {"gates_not_awaited": "cp_async_wait<kSlots>();"}),
    (
        "if (k < steps) fetch(k, ring + k * kSlotElements);\n      <|cp_async_commit();|>",
        {"first_copies_in_one_group": "if (k + 1 == kSlots) cp_async_commit();"},
    ),
    ("<|turn + 1 < kSlots|> ? turn + 1", {"one_slot_of_gates": "false"}),
    ("fetch(k + kSlots, slot);\n      <|cp_async_commit();|>", {"copies_not_committed": ""}),
    ("sync_warp();  // the slot of step k", {"gates_of_other_lanes_not_awaited": ""}),
    (
        "if (k + kSlots < steps) fetch(k + kSlots, slot);",
        {"gates_of_another_step": "if (k + kSlots < steps) fetch(k + kSlots - 1, slot);"},
    ),
    ("bar_arrive(1 + own_group, k_split * 32);", {"no_barrier_of_a_group": ""}),
    ("bar_sync(1 + own_group, k_split * 32);", {"no_barrier_of_a_group": ""}),
    ("sync_warp();  // h of the group", {"h_of_other_lanes_not_awaited": ""}),
    ("sync_warp();  // what backward needs", {"reserve_of_other_lanes_not_awaited": ""}),
    (
        "if (<|hands_over && k + 1 < steps|>) {",
        {"push_at_the_last_step": "hands_over"},
    ),
    ("if (<|has_cluster|>) push_all();", {"push_of_one_block": "true"}),
    # What is handed on in place of h.
    ("if (<|!args.recurrent_mask|>) return Precision", {"hx_not_masked": "true"}),
    ("masks[i] = <|b < B && unit < H|>", {"access_to_masks_of_missing_sequences": "unit < H"}),
    ("if (<|is_masked|>) {  // in place of h", {"h_not_masked": "false"}),
    (
        "sync_warp();  // the masked h of the group",
        {"masked_h_of_other_lanes_not_awaited": ""},
    ),
    ("if (is_masked) load_pieces(staged);", {"y_is_what_is_handed_on": ""}),
    ("if (<|!has_cluster && first_block == 0|>) {", {"one_block_hands_on_h": "false"}),
    # Where sequences begin anew.
    (
        "if (anew != 0) {\n      <|if (has_cluster && k > 0) await_h(k);|>",
        {"zeros_before_h_has_come": ""},
    ),
    (
        "if (<|anew >> n & 1u|>) *reinterpret_cast",
        {"h_goes_on_at_a_reset": "false", "h_of_a_neighbour_cut": "anew >> (n ^ 1) & 1u"},
    ),
    (
        "T* piece = <|h + (k & 1) * h_elements|> + i;",
        {"zeros_in_the_other_h": "h + (~k & 1) * h_elements"},
    ),
    ("<|i += 32 * kPieceUnits|>)", {"zeros_of_the_first_units": "i += H"}),
    (
        "if (<|anew >> sequence(tile, j) & 1u|>) state",
        {"own_states_go_on_at_a_reset": "false"},
    ),
    ("bar_sync(kWarps + 1, working_warps * 32);", {"zeros_not_awaited": ""}),
    (
        "(<|left < args.groups ? left : args.groups|>) * args.k_split",
        {"idle_warps_awaited": "args.groups"},
    ),
    ("return <|next < steps ? next : steps|>;", {"steps_past_the_end": "next"}),
    ("if (<|j < lane_pushes|>) push(peers[j]);", {"push_past_the_cluster": "true"}),
    ("if (<|j >= pushes|>) break;", {"push_past_the_last_group": "false"}),
    ("all_push ? pushes : <|lane_pushes|>;", {"push_past_the_cluster": "pushes"}),
    ("<|next < cluster|> ? next : next - cluster", {"push_to_other_ranks": "true"}),
    ("<|*mask = kTf32Mask;|>", {"no_mask": ""}),
    ("<|*reinterpret_cast<Bits128*>(zeros) = Bits128{};|>", {"no_zeros": ""}),
    ("all_push = <|constants[6] % kLaneBlocks == 0|>;", {"all_lanes_push": "true"}),
    # Masks of the packing kernel.
    ("<|unit < H|> && column < H", {"access_to_weights_of_missing_units": "true"}),
    ("unit < H && <|column < H|>", {"missing_columns_not_masked": "true"}),
    # Masks of pieces.
    ("cp_async<16>(piece, <|count > 0|> ?", {"copies_past_the_end": "true"}),
    ("source + offset : source, <|count > 0|> ? 16", {"copies_past_the_end": "true"}),
    ("cp_async<4>(piece + i, <|i < count|> ?", {"copies_of_words_past_the_end": "true"}),
    ("source + offset + i : source, <|i < count|> ? 4", {"copies_of_words_past_the_end": "true"}),
    ("piece[i] = <|i < count|> ?", {"elements_past_the_end": "true"}),
    ("if (<|access == 16|>) {\n    cp_async", {"copies_that_are_not_aligned": "true"}),
    ("} else if (<|access == 4|>) {", {"words_that_are_not_aligned": "true"}),
    ("if (count <= 0) return;", {"pieces_of_no_unit_stored": ""}),
    (
        "if (<|access == 16|>) {\n    *reinterpret",
        {"access_to_pieces_not_aligned": "true"},
    ),
    ("if (<|i < count|>) target[offset + i] =", {"floats_past_the_end_stored": "true"}),
    ("if (<|2 * i < count|>) target", {"halves_past_the_end_stored": "true"}),
    ("if (<|2 * i + 1 < count|>) target", {"second_half_past_the_end_stored": "true"}),
    # Masks of groups and columns.
    ("<|groups_left < args.groups|> ?", {"groups_past_the_last": "false"}),
    ("const bool has_group = <|own_group < own_groups|>;", {"warps_without_a_group_go_on": "true"}),
    ("<|has_group|> && part < kBatchTiles ?", {"owners_without_a_group": "true"}),
    ("has_group && <|part < kBatchTiles|> ?", {"owners_without_a_tile": "true"}),
    ("const bool owner = <|own_tiles > 0|>;", {"all_warps_are_owners": "true"}),
    ("<|chunks_left < args.warp_chunks|> ?", {"columns_past_the_last": "false"}),
    ("<|own_chunks < kChunks|> ?", {"chunks_past_the_registers": "true"}),
    ("if (<|has_group|>) {\n    BIRNN_UNROLL", {"access_to_weights_of_no_group": "true"}),
    ("if (<|chunk < register_chunks|>)\n", {"access_to_weights_of_no_chunk": "true"}),
    ("<|unit < H|> ? unit_bias", {"access_to_biases_of_missing_units": "true"}),
    (
        "<|dir.hx && row < NB && first_sequence + row < B|>;\n",
        {
            "access_to_absent_hx": "row < NB && first_sequence + row < B",
            "access_to_states_of_missing_sequences": "dir.hx != nullptr && row < NB",
        },
    ),
    (
        "exists && i < H ? handed_on(i) : from_float<T>(0.0f)",
        {
            "h_of_missing_units_not_zeroed": "exists && i < H ? handed_on(i) "
            ": h[row * args.pitch + i]"
        },
    ),
    ("if (<|i > 0 && i >= own_tiles|>) break;", {"tiles_of_other_warps": "false"}),
    (
        "if (<|b < B && u < H|>) body",
        {"states_of_missing_sequences": "u < H", "states_of_missing_units": "b < B"},
    ),
    (
        "kGates > 1 && first_state && owner",
        {"initial_state_forgotten": "false", "access_to_an_absent_state": "kGates > 1 && owner"},
    ),
    ("if (<|block + first_block < kGates|>)\n", {"gates_past_the_last": "true"}),
    ("kBatchTiles > 1 && !(own_mask >> tile & 1)", {"inputs_of_other_tiles": "false"}),
    ("if (k_split == 1) load_new_gate();", {"new_gates_not_loaded": ""}),
    ("if (<|k_split > 1|>) {\n      const auto partial", {"parts_not_added": "false"}),
    ("of_part < k_split", {"sums_of_two_warps": "of_part < 2"}),
    # Few sequences.
    ("constants[7] = <|B <= kFewColumns|>;", {"many_sequences_as_few": "true"}),
    ("<|lane_sums.add_to(sums[0], B);|>", {"few_sequences_not_multiplied": ""}),
    (
        "<|lane_sums.add(further, 0, columns + chunk * Precision::kChunkColumns, pitch, B);|>",
        {"shared_weights_of_few_forgotten": ""},
    ),
    # Masks of time.
    (
        "reverse && k < length ? length - 1 - k : k",
        {"row_of_the_reverse_direction": "reverse && k < length ? steps - 1 - k : k"},
    ),
    (
        "const int count = <|k < piece_length(tile)|> ?",
        {"access_to_gates_past_the_end": "true"},
    ),
    ("kGates > 1 && <|k < length_of(tile, j)|>)", {"states_of_ended_sequences_go_on": "true"}),
    # Masks of what is stored.
    (
        "!lane_stores : <|piece_length(tile) < 0|> || first_block > 0) return;",
        {"outputs_of_missing_sequences": "false"},
    ),
    (
        "k < piece_length(tile) ? pieces[i] : Bits128{}",
        {"padding_is_not_zero": "pieces[i]"},
    ),
    ("k < args.seq_len", {"padding_is_not_written": "false"}),
    ("if (<|kGates > 1 && save_reserve|>) {", {"reserve_in_inference": "kGates > 1"}),
    (
        "if (k >= piece_length(tile)) return;",
        {"reserve_past_the_end": "if (piece_length(tile) < 0) return;"},
    ),
    ("if (block + first_block >= kBlocks) continue;", {"blocks_past_the_last": ""}),
    ("if (!owner) return;", {"last_states_of_no_owner": ""}),
    (
        "if (<|length < 0|> || first_block > 0) return;",
        {"last_states_of_missing_sequences": "false"},
    ),
    ("output_of(tile, length - 1)", {"hy_of_another_step": "output_of(tile, steps - 1)"}),
    ("i < kPieceUnits && <|i < piece_count|>", {"hy_of_missing_units": "true"}),
    ("if (<|length > 0|>)\n        value", {"hy_of_an_empty_sequence": "true"}),
    ("else if (<|dir.hx|>)", {"access_to_absent_hx": "static_cast<const void*>(&dir)"}),
    (
        "static_cast<const T*>(dir.hx)[at + i]",
        {"hy_of_an_empty_sequence": "from_float<T>(0.0f)"},
    ),
)
KERNEL_EXPLAINED = {
    "mbarrier_init_fence();": "the cluster's barrier shows the mbarriers, too; what st_async of a "
    "peer needs beyond that the emulator does not model",
    "const int gate = kUnits == 8": "known when compiled",
    "const int unit = group * kUnits + (kUnits == 8": "known when compiled",
    "if constexpr (sizeof(T) == 4)": "known when compiled",
    "if (part == 0) {": "once is enough",
    "if (few) {": "of `few`, above",
    "if (!few) {": "of `few`, above",
    "if (chunk >= register_chunks) break;": "spares products of weights that are zero",
    "<|if (cluster > 1) {|>\n    if (thread == 0) {": "one block has no mbarriers; see "
    "arrival_of_one_block",
    "const T* const first_state =": "known when compiled",
    "<|if (owner) {|>\n    for (int k = 0; k < kSlots": "of `owner`, above",
    "if (k < steps) fetch(k, ring": "spares copies of nothing: no sequence has such a step",
    "if (kCell == Cell::kLstm) return sums": "known when compiled",
    "if (kCell == Cell::kGru && of == 2) return": "known when compiled",
    "return sums[i][of == 3 ? 2 : of]": "known when compiled",
    "return of < kGates ?": "known when compiled",
    "<|if (owner) {|>\n      cp_async_wait": "of `owner`, above",
    "if (kCell != Cell::kGru || of != 2)": "known when compiled",
    "<|if (owner) {|>\n        load_new_gate();": "of `owner`, above",
    "<|if (owner) {|>\n      for_each_tile": "of `owner`, above",
    "carried = kCell == Cell::kGru ?": "known when compiled",
    "st_async(peer + (to_next": "its rank, above",
    "if (thread == 0) {\n    *mask": "once is enough",
    "if (has_cluster && k > 0)": "before the first step the wait would be over at once",
    "const bool reverse = kKeeps": "as the launch says",
    "const bool save_reserve = kKeeps": "see reserve_in_inference",
    "const bool has_cluster = kKeeps": "see push_of_one_block",
    "return kBatchTiles == 1 ?": "known when compiled",
    "body(i, kBatchTiles == 1": "known when compiled",
    "ClusterAddress peers[": "known when compiled",
    "if (kLaneBlocks == 4 && cluster > 1) {": "one block has no peers; see push_of_one_block",
    "peers[kLaneBlocks == 4 ? j": "known when compiled",
    "map_rank(full, j < lane_pushes ?": "an address that is used where there is a peer",
    "const bool lane_stores =": "of one batch tile; see outputs_of_missing_sequences",
    "few = constants[7] != 0;": "of `few`, above",
    "const T* const columns =": "of `row`, above",
    "if (!has_cluster) BIRNN_UNROLL": "more work, where blocks push",
    "if (all_push) {": "see all_lanes_push",
    "from_float<T>(block < kSums ?": "known when compiled",
    "const int mask_elements =": "the size of arrays: see too_little_room_for_masks",
    "constants[8] = args.recurrent_mask": "see h_not_masked",
    "const bool is_masked =": "see h_not_masked",
    "if (anew != 0) {": "spares a barrier where nothing begins",
    "<|if (owner)|>\n        for_each_unit": "of `owner`, above",
    "const bool hands_over =": "one block that hands on h as it is has stored it already",
    "const bool arms =": "see armed_by_all_threads",
    "return kCell == Cell::kLstm  ? LstmCell": "known when compiled",
    ": kCell == Cell::kGru ? state": "known when compiled",
    "const int64_t last = length > 0": "a place that is read only where there is a step",
}
