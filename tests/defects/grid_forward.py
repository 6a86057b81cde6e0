"""Defects of the grid forward kernel: for every mask, barrier and buffer."""

from __future__ import annotations

KERNEL = (
    # Buffers.
    (
        "shared.alloc<Bits128>(<|kWarps * kSpare * 64|>)",
        {"too_little_room_for_spare_weights": "kWarps * kSpare * 64 - 1"},
    ),
    (
        "shared.alloc<float>(<|2 * kWarps * kSourceFloats|>)",
        {"room_for_one_buffer_of_sums": "kWarps * kSourceFloats"},
    ),
    (
        "shared.alloc<int>(<|kTileBatch|>)",
        {"too_little_room_for_lengths": "kTileBatch - 1"},
    ),
    ("shared.alloc<uint32_t>(<|1|>)", {"no_room_for_the_mask": "0"}),
    (
        "shared.alloc<T>(<|recurrent_mask ? kCells * kThreads : 0|>)",
        {"too_little_room_for_masks": "recurrent_mask ? kCells * kThreads / 2 : 0"},
    ),
    ("(epoch & 1) * (kWarps * kSourceFloats)", {"one_buffer_of_sums": "0"}),
    (
        "(fragment - kHeld) * 64 + step * 32 + lane",
        {"one_place_for_spare_weights": "step * 32 + lane"},
    ),
    (
        "reinterpret_cast<uint64_t*>(ring + int64_t{epoch & 1} * args.slot_pairs)",
        {"one_slot": "reinterpret_cast<uint64_t*>(ring)"},
    ),
    (
        "const WordPair* const slot = ring + <|int64_t{epoch & 1} * args.slot_pairs|>;",
        {"one_slot": "int64_t{0}"},
    ),
    (
        "team * args.num_directions + direction",
        {"directions_share_a_ring": "team", "teams_share_a_ring": "direction"},
    ),
    # Barriers and waits.
    ("sync_threads();  // the lengths of the group before", {"no_barrier_between_groups": ""}),
    ("sync_threads();  // the lengths, at first", {"no_barrier_after_the_lengths": ""}),
    ("sync_threads();  // the sums", {"no_barrier_after_the_sums": ""}),
    (
        "grid_exchange::await(there, source_of(piece), epoch);",
        {
            "no_wait_for_the_words": "",
            "words_of_another_epoch": "grid_exchange::await(there, source_of(piece), epoch - 1);",
        },
    ),
    (
        "if (k + 1 < steps) publish_state(epoch + 1);",
        {"published_after_the_last_step": "publish_state(epoch + 1);"},
    ),
    (
        "if (steps > 0) publish_state(epoch + 1);",
        {
            "epochs_start_again": "epoch = 0; if (steps > 0) publish_state(epoch + 1);",
            "published_without_a_step": "publish_state(epoch + 1);",
        },
    ),
    # Masks of the packing kernel.
    ("<|gate < kNumGates<kCell>|> && unit < H", {"access_to_weights_of_no_gate": "true"}),
    ("gate < kNumGates<kCell> && <|unit < H|>", {"access_to_weights_of_missing_units": "true"}),
    ("unit < H && <|column < H|>", {"missing_columns_not_masked": "true"}),
    (
        "return <|column < H ? grid_exchange::kNever : grid_exchange::kAlways|>;",
        {
            "ring_not_cleared": "grid_exchange::kAlways",
            "missing_units_awaited": "grid_exchange::kNever",
        },
    ),
    # Masks of weights and columns.
    ("if (rank * U >= H) return;  // no unit", {"blocks_without_units_stay": ""}),
    ("even + <|(warp < odd ? 1 : 0)|>", {"left_over_chunks_lost": "0"}),
    ("warp * even + <|(warp < odd ? warp : odd)|>", {"chunks_of_the_warp_before": "odd"}),
    ("<|chunk < own_chunks|> && m < args.num_tiles", {"weights_of_other_warps": "true"}),
    ("chunk < own_chunks && <|m < args.num_tiles|>", {"access_to_tiles_of_other_chunks": "true"}),
    ("words[chunk] = <|chunk < own_chunks|> ?", {"words_of_other_warps": "true"}),
    ("own_chunks == 0 && i < kSourceFloats", {"sums_of_idle_warps_not_zeroed": "false"}),
    ("if (thread == 0) *mask = kTf32Mask;", {"no_mask": ""}),
    # Masks of cells.
    ("<|i < num_cells|> && rank * U", {"access_to_cells_past_the_group": "true"}),
    ("i < num_cells && <|rank * U + i % U < H|>", {"cells_of_missing_units": "true"}),
    ("<|exists|> && unit[e] % Precision::kWordElements == 0", {"words_of_missing_cells": "true"}),
    (
        "exists && <|unit[e] % Precision::kWordElements == 0|>",
        {"both_units_publish_their_word": "true"},
    ),
    ("if (<|word[e] >= 0|>) grid_exchange::publish", {"words_before_the_slot": "true"}),
    ("<|exists|> ? unit_bias", {"access_to_biases_of_missing_units": "true"}),
    ("const bool exists = <|sequence[e] >= 0|> &&", {"access_to_lengths_of_missing_cells": "true"}),
    (
        "sequence[e] >= 0 && <|first_sequence + sequence[e] < B|>;",
        {"missing_sequences_have_a_length": "true"},
    ),
    (
        "<|if (length[e] < 0) continue;|>\n      if (dir.hx)",
        {"access_to_states_of_missing_sequences": ""},
    ),
    (
        "if (dir.hx) h[e] = static_cast<const T*>(dir.hx)[state_offset(e)];",
        {
            "initial_state_forgotten": "",
            "access_to_an_absent_hx": "h[e] = static_cast<const T*>(dir.hx)[state_offset(e)];",
        },
    ),
    (
        "kCell == Cell::kLstm && dir.cx",
        {"initial_cell_forgotten": "false", "access_to_an_absent_cx": "kCell == Cell::kLstm"},
    ),
    (
        "<|if (sequence[e] < 0) continue;|>\n        const float* const from",
        {"access_to_sums_of_missing_cells": ""},
    ),
    (
        "kCell == Cell::kGru && gate == 2 ? 3 : gate",
        {"gru_products_on_the_input_side": "gate"},
    ),
    # What is handed on in place of h.
    (
        "if (recurrent_mask) factors[e * kThreads] = recurrent_mask[state_offset(e)];",
        {
            "mask_of_the_first_group": "if (recurrent_mask && group == team) "
            "factors[e * kThreads] = recurrent_mask[state_offset(e)];"
        },
    ),
    (
        "if (sequence[e] < 0 || <|!is_of(anew, e)|>) continue;",
        {"own_states_go_on_at_a_reset": "true"},
    ),
    (
        "if (steps > 0) <|clear_states(begin_anew(0));|>",
        {"first_states_go_on_at_a_reset": "begin_anew(0);"},
    ),
    (
        "if (steps > 1) <|next_anew = begin_anew(1);|>",
        {"first_reset_forgotten": "begin_anew(1);"},
    ),
    ("<|handed[e] = masked(e, to_float(h[e]));|>", {"hx_not_masked": "handed[e] = h[e];"}),
    ("handed[e] = <|is_of(next_anew, e)|> ?", {"h_handed_on_at_a_reset": "false"}),
    (": <|masked(e, h_new)|>;", {"h_not_masked": "from_float<T>(h_new)"}),
    ("clear_states(next_anew);", {"c_goes_on_at_a_reset": ""}),
    # Masks of time.
    ("group += args.teams", {"one_group_of_a_team": "group += args.num_groups"}),
    ("if (<|k >= length[e]|>) continue;", {"access_to_gates_past_the_end": "false"}),
    ("fetch(k + 1);", {"gates_of_another_step": "fetch(k + 2);", "gates_not_fetched": ""}),
    ("const bool ended = <|k >= length[e]|>;", {"ended_sequences_go_on": "false"}),
    (
        "dir.reverse && k < length[e] ? length[e] - 1 - k : k",
        {"row_of_the_reverse_direction": "dir.reverse && k < length[e] ? steps - 1 - k : k"},
    ),
    # Masks of what is stored.
    (
        "<|if (length[e] < 0) continue;|>\n        const bool active",
        {"outputs_of_missing_sequences": ""},
    ),
    ("const bool active = <|k < length[e]|>;", {"padding_not_masked": "true"}),
    ("active ? h[e] : from_float<T>(0.0f)", {"padding_is_not_zero": "h[e]"}),
    ("k < args.seq_len", {"padding_is_not_written": "false"}),
    (
        "active && args.save_reserve",
        {"reserve_past_the_end": "args.save_reserve", "reserve_in_inference": "active"},
    ),
    (
        "<|if (length[e] < 0) continue;|>\n      static_cast<T*>(dir.hy)",
        {"states_of_missing_sequences": ""},
    ),
)
KERNEL_EXPLAINED = {
    "const int apart =": "which sequences share a warp: bank conflicts alone",
    "const auto warp_has =": "spares a warp without cells the work; it has no word to publish",
    "if (!warp_has(e)) continue;": "as above",
    "if (own_chunks > 0) {": "spares an idle warp the products: its words are zeros",
    "if (exists) held[": "of `exists`, above",
    "if (fragment < kHeld) {": "known when compiled",
    "if (part == 0) {": "known when compiled",
    "if (fragment >= kHeld) from_shared": "known when compiled",
    "fragment < kHeld ? held[fragment < kHeld ? fragment : 0] : from_shared": "known when compiled",
    "if (piece + kBuffers < kPieces)": "known when compiled",
    "if (part + 1 < kPiecesOfTile) continue;": "known when compiled",
    "kChains == 2 ? chains[0][m][i]": "known when compiled",
    "j < kGates ? to_float": "known when compiled",
    "if (!ended) {": "of `ended`, above",
    "const auto is_of =": "of its uses",
    "if (length[e] >= 0) handed[e] =": "of others the mask is not there",
    "<|if (resets) {|>\n      if (steps > 0)": "without resets no bit is set",
    "<|if (resets) {|>\n        clear_states": "as above",
    "next_anew = k + 2 < steps ?": "past the last step there are no words",
}

# What the interpreter of PTX has no means to see, and why.
NOT_IN_PTX = {
    "blocks_without_units_stay": "nobody reads what they compute; that they poll for words which "
    "may be overwritten by then is known where a poll is called one",
}
