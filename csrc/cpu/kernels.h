// The recurrence on CPU cores, for one instruction set. Included inside that set's namespace, after
// vector.h.
//
// One step of a direction is x W_ih^T + h W_hh^T for all active sequences, then the cell. The
// weights are packed once a call into panels of kColumns vectors, so that the product streams them
// without strides; a panel holds all gates of the same units. Panels are the outer loop: a panel is
// read once for the whole batch. Every other step walks the panels backwards, so that the part of
// W_hh that the cache still holds is used first. Weights that few products read are not packed at
// all (in_place.h).
//
// A thread runs all steps of some sequences alone or, where few rows would have each core stream
// all weights, of some units, and then meets the threads of the other units once a step.
//
// The input projection belongs to the step, although all of it could be one product beforehand: its
// sums are where those of h start, in the first-level cache, and no array of T * B * G*H numbers is
// written, read again and paged in. Against a BLAS product of a few steps at a time this measured
// 1.1 to 1.4 times as fast over all shapes (AVX2, 2 cores). Few sequences project several steps at
// once, so that W_ih is not streamed for every single one.
//
// Sequences lie in rows sorted by length, longest first, so the active ones are a prefix. A row's
// sums are added in the same order whatever rows are computed beside it: results do not depend on
// how a batch is split over threads. Nothing is allocated here.
//
// Which numbers it is done with says a type, `Numbers`:
//   Plain<Real>      float or double throughout (product.h)
//   Widened<Weight>  16-bit weights, widened as they are loaded; all else is float (product.h)
//   Words<...>       weights and rows in words of two bf16 or four int8, that one instruction
//                    multiplies and adds up (words.h), or in tiles of such words (tiles.h)
#include "cpu/lanes.h"
// lanes.h comes first
#include "cpu/numbers.h"
// numbers.h comes first
#include "cpu/panels.h"
// panels.h comes first
#include "cpu/in_place.h"
#include "cpu/product.h"
#include "cpu/words.h"
#if defined(BIRNN_HAS_TILES)
#include "cpu/tiles.h"
#endif
#include "cpu/steps.h"
// steps.h comes before the passes
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/normalised.h"
#include "cpu/reset_before.h"
#include "cpu/table.h"
