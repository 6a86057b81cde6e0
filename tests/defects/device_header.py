"""Defects planted in the text of device_cuda.cuh: what the C++ of the emulator cannot see, and the
PTX that nvcc makes of it can."""

from __future__ import annotations

from typing import NamedTuple

RACE = r"WARNING: ThreadSanitizer: data race"
HANGS = r"deadlock\n|livelock\n"
WRONG = r"FAILED: "


class Defect(NamedTuple):
    after: str  # the text behind which the first `old` is replaced
    old: str
    new: str
    source: str  # the program that shows it
    variant: str
    report: str


DEFECTS = {
    # Operands.
    "ldmatrix_of_a_generic_address": Defect(
        "void ldmatrix_x4(uint32_t",
        '"r"(shared_address(row))',
        '"r"(static_cast<uint32_t>(reinterpret_cast<size_t>(row)))',
        "conformance.cu",
        "plain",
        r"ldmatrix\S*: outside of shared memory|ldmatrix\S*: .*the cluster's window",
    ),
    "mbarrier_of_a_generic_address": Defect(
        "void mbarrier_init(MBarrier*",
        '"r"(shared_address(barrier))',
        '"r"(static_cast<uint32_t>(reinterpret_cast<size_t>(barrier)))',
        "conformance.cu",
        "plain",
        r"mbarrier\.init\S*: .*(outside|the cluster's window)",
    ),
    "mma_operands_swapped": Defect(
        "void mma_m16n8k16<Half>",
        "{%4, %5, %6, %7}",
        "{%5, %4, %6, %7}",
        "conformance.cu",
        "plain",
        WRONG,
    ),
    "mma_of_the_other_format": Defect(
        "void mma_m16n8k16<BFloat16>", "bf16.bf16", "f16.f16", "conformance.cu", "plain", WRONG
    ),
    "transposed_not_at_all": Defect(
        "void ldmatrix_x4_trans", ".trans", "", "conformance.cu", "plain", WRONG
    ),
    "sizes_of_a_copy_swapped": Defect(
        "void cp_async(void*",
        "16, %2;",
        "16, 16;",
        "conformance.cu",
        "plain",
        WRONG,
    ),
    "mapa_operands_swapped": Defect(
        "ClusterAddress map_rank", "%0, %1, %2;", "%0, %2, %1;", "conformance.cu", "plain", WRONG
    ),
    "words_of_a_vector_swapped": Defect(
        "store_cluster(ClusterAddress destination, const Bits128&",
        "{%1, %2, %3, %4}",
        "{%1, %2, %4, %3}",
        "conformance.cu",
        "plain",
        WRONG,
    ),
    "vector_misaligned": Defect(
        "st_async(ClusterAddress destination, const Bits128&",
        "destination.address)",
        "destination.address + 4)",
        "conformance.cu",
        "plain",
        r"st\.async\S*: misaligned address",
    ),
    "vector_of_memory_misaligned": Defect(
        "store_cluster(ClusterAddress destination, const Bits64&",
        '"r"(destination.address)',
        '"r"(destination.address + 4)',
        "conformance.cu",
        "plain",
        r"st\.shared::cluster\S*: misaligned address",
    ),
    "own_window_for_the_clusters": Defect(
        "load_cluster<uint32_t>(ClusterAddress",
        "ld.shared::cluster",
        "ld.shared::cta",
        "conformance.cu",
        "plain",
        r"ld\.shared::cta\S*: .*the cluster's window",
    ),
    # Counts, parities, predicates.
    "too_few_bytes": Defect(
        "void mbarrier_arrive_expect_tx",
        '"r"(bytes)',
        '"r"(bytes - 16)',
        "defects.cu",
        "plain",
        WRONG,
    ),
    "wrong_parity": Defect(
        "BIRNN_DEVICE void mbarrier_wait",
        '"r"(parity)',
        '"r"(parity ^ 1u)',
        "defects.cu",
        "plain",
        rf"{WRONG}|{HANGS}",
    ),
    "predicate_inverted": Defect(
        "BIRNN_DEVICE void mbarrier_wait",
        "selp.u32 %0, 1, 0, complete;",
        "selp.u32 %0, 0, 1, complete;",
        "defects.cu",
        "plain",
        rf"{WRONG}|{HANGS}",
    ),
    "one_group_too_many_pending": Defect(
        "void cp_async_wait()", '"n"(Pending)', '"n"(Pending + 1)', "defects.cu", "thread", RACE
    ),
    "arrives_without_waiting": Defect(
        "void bar_sync(int id", "bar.sync", "bar.arrive", "defects.cu", "thread", RACE
    ),
    # Scopes and orders.
    "block_for_cluster_in_an_arrival": Defect(
        "void mbarrier_arrive_remote",
        "release.cluster.shared",
        "release.cta.shared",
        "conformance.cu",
        "thread",
        RACE,
    ),
    "block_for_cluster_in_a_wait": Defect(
        "Scope::kBlock: .acquire.cta",
        '#define BIRNN_CLUSTER_WAIT "relaxed.cluster"',
        '#define BIRNN_CLUSTER_WAIT "acquire.cta"',
        "defects.cu",
        "thread",
        RACE,
    ),
    "no_fence_after_a_relaxed_wait": Defect(
        "Scope::kBlock: .acquire.cta",
        '"fence.acquire.sync_restrict::shared::cluster.cluster;"',
        '""',
        "defects.cu",
        "thread",
        RACE,
    ),
    "cluster_arrival_relaxed": Defect(
        "void cluster_arrive()", "arrive.release", "arrive.relaxed", "defects.cu", "thread", RACE
    ),
    "acquire_relaxed": Defect(
        "load_acquire_gpu(", "ld.acquire", "ld.relaxed", "defects.cu", "thread", RACE
    ),
    "release_relaxed": Defect(
        "store_release_gpu(", "st.release", "st.relaxed", "conformance.cu", "thread", RACE
    ),
    "no_fence": Defect(
        "void fence_acq_rel_gpu()", '"fence.acq_rel.gpu;"', '""', "defects.cu", "thread", RACE
    ),
    # Instructions.
    "another_function": Defect(
        "float tanh_fast(", "tanh.approx", "ex2.approx", "conformance.cu", "plain", WRONG
    ),
    "rounded_to_the_other_format": Defect(
        "Half from_float<Half>", "cvt.rn.f16", "cvt.rn.bf16", "conformance.cu", "plain", WRONG
    ),
    "an_approximate_root": Defect(
        "float sqrt_precise(", "::sqrtf(x)", "x * ::rsqrtf(x)", "conformance.cu", "plain", WRONG
    ),
    # What the compiler may then move, or read once.
    "a_polled_load_without_volatile_and_clobber": Defect(
        "BIRNN_DEVICE uint32_t load_acquire_gpu",
        """asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(global_address(source))
               : "memory");""",
        """asm("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(global_address(source)));""",
        "conformance.cu",
        "plain",
        rf"{HANGS}|loops without an end",
    ),
}

# Planted, and not caught: what only a GPU, or a reader, can show.
ONLY_ON_A_GPU = {
    "bar_sync without its clobber of memory": "the accesses stay in place",
}


def plant(text: str, defect: Defect) -> str:
    """The text of the header with the defect."""
    assert text.count(defect.after) == 1, (
        f"{defect.after!r} stands {text.count(defect.after)} times"
    )
    head, after, tail = text.partition(defect.after)
    assert defect.old in tail, f"{defect.old!r} does not stand behind {defect.after!r}"
    return head + after + tail.replace(defect.old, defect.new, 1)
