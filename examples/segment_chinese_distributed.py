"""The training of segment_chinese.py on several processes or GPUs, with checkpoints.

    torchrun --nproc-per-node=2 examples/segment_chinese_distributed.py --parallel ddp
    torchrun --nproc-per-node=2 examples/segment_chinese_distributed.py --parallel fsdp

Everything that has to do with distribution is torch's own: DistributedDataParallel or FSDP2 share
the work, torch.distributed.checkpoint saves. Each process takes its share of every batch, so the
losses are those of one process on the whole batch (but for dropout, whose masks differ). Started
again with the same --checkpoints, the training goes on after the last complete checkpoint, also on
another number of processes or with another --parallel.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from chinese_corpus import ARCHIVE, CorpusError, Sentence, fetch_archive, read_archive, score, split
from segmenter import CELLS, IGNORED, Segmenter, Vocabulary, bucket, collate, save, tag
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from birnn_cuda.ops import build_info

FOLDER = Path(__file__).with_name("output")
REFUSED = 2


class InputError(Exception):
    """Options that do not fit together, or nothing to work on."""


def device_of(local_rank: int) -> torch.device:
    """This process's GPU, where there is one and birnn_cuda is built for it, else the CPU."""
    if build_info()["cuda_version"] is not None and torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


class Job:
    """Model, optimizer and batches: of one seed the same in every process."""

    def __init__(
        self, sentences: Sequence[Sentence], arguments: argparse.Namespace, device: torch.device
    ) -> None:
        self.arguments, self.device = arguments, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.vocabulary = Vocabulary.of([sentence.text for sentence in sentences])
        self.encoded = [self.vocabulary.encode(*sentence) for sentence in sentences]
        lengths = [len(sentence.text) for sentence in sentences]
        generator = torch.Generator().manual_seed(arguments.seed)
        self.batches = [
            batch
            for _ in range(arguments.epochs)
            for batch in bucket(lengths, arguments.batch_characters, generator)
        ]
        self.model = self._distribute(self.plain_model())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=arguments.learning_rate)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of Segmenter after the vocabulary."""
        names = ("embedding_size", "hidden_size", "cell", "dropout")
        return {name: getattr(self.arguments, name) for name in names}

    def plain_model(self) -> Segmenter:
        torch.manual_seed(self.arguments.seed)
        # FSDP2 takes no sparse gradients.
        return Segmenter(self.vocabulary, **self.options, sparse=False).to(self.device)

    def _distribute(self, model: nn.Module) -> nn.Module:
        if self.arguments.parallel == "ddp":
            return DistributedDataParallel(model)
        if self.arguments.parallel == "fsdp":
            # The BiRNN is gathered when it runs, apart from the rest.
            fully_shard(model.get_submodule("tagger"))
            fully_shard(model)
        return model

    def step(self, number: int) -> tuple[float, float]:
        """Train on batch `number`; returns the loss of the whole batch and its gradient's norm."""
        indices = self.batches[number]
        own = indices[self.rank :: self.world_size]
        # Of a batch of fewer texts than processes, some have none: they join in with a weight of 0.
        batch = collate([self.encoded[i] for i in own or indices[:1]], self.device)
        tags = batch.tags if own else torch.full_like(batch.tags, IGNORED)
        num_characters = sum(len(self.encoded[i].characters) for i in indices)

        # Dropout that a resumed training repeats.
        torch.manual_seed((self.arguments.seed * 1_000_003 + number) * 4096 + self.rank)
        self.model.train()
        scores = self.model(batch.characters, batch.bigrams, batch.lengths)
        flat = scores.flatten(0, 1), tags.flatten()
        loss = cross_entropy(*flat, ignore_index=IGNORED, reduction="sum") / num_characters
        self.optimizer.zero_grad()
        # The gradients are averaged over the processes; the loss of the batch is the sum.
        (loss * self.world_size).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.optimizer.step()
        total: Tensor = loss.detach()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.item(), norm.item()

    # ---- checkpoints: folders by the number of steps done, complete when they have .metadata

    def save_checkpoint(self, steps_done: int) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer, "steps": torch.tensor(steps_done)}
        dcp.save(  # type: ignore[attr-defined]
            state, checkpoint_id=self.arguments.checkpoints / f"{steps_done:07d}"
        )

    def load_checkpoint(self) -> int:
        """Load the last complete checkpoint; returns how many steps it has behind it."""
        folders = sorted(path.parent for path in self.arguments.checkpoints.glob("*/.metadata"))
        if not folders:
            return 0
        model, optimizer = get_state_dict(self.model, self.optimizer)
        steps = torch.tensor(0)
        try:
            dcp.load(  # type: ignore[attr-defined]
                {"model": model, "optimizer": optimizer, "steps": steps},
                checkpoint_id=folders[-1],
            )
        except (CheckpointException, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"{folders[-1]} is not a checkpoint of this training ({reason}): give another "
                "--checkpoints"
            ) from None
        set_state_dict(
            self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer
        )
        return int(steps)

    def whole_model(self) -> Segmenter:
        """The trained model on one process, whatever it was distributed over; all have to call."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=options)
        model = self.plain_model()
        if self.rank == 0:
            model.load_state_dict(weights)
        return model


def corpus(arguments: argparse.Namespace) -> Path:
    """The archive, which one process of each machine downloads if it is not there."""
    if arguments.corpus:
        given: Path = arguments.corpus
        return given
    if dist.is_initialized() and int(os.environ["LOCAL_RANK"]) != 0:
        dist.barrier()
        return fetch_archive()
    archive = fetch_archive()
    if dist.is_initialized():
        dist.barrier()
    return archive


def train(arguments: argparse.Namespace, device: torch.device) -> None:
    """The whole job, in each of the processes; rank 0 reports and writes the model."""
    train_set, held_out = split(read_archive(corpus(arguments))[: arguments.paragraphs])
    if not train_set or not held_out:
        raise InputError("too few paragraphs to hold some out")
    job = Job(train_set, arguments, device)

    def report(text: str) -> None:
        if job.rank == 0:
            print(text, flush=True)

    start = job.load_checkpoint()
    report(
        f"{arguments.parallel} on {job.world_size} process(es), {device.type}: "
        f"steps {start + 1} to {len(job.batches)}"
    )
    for number in range(start, len(job.batches)):
        loss, norm = job.step(number)
        report(f"step {number + 1} loss {loss:.9g} gradient {norm:.9g}")
        if (number + 1) % arguments.checkpoint_every == 0 or number + 1 == len(job.batches):
            job.save_checkpoint(number + 1)

    model = job.whole_model()
    if job.rank == 0:
        tags = tag(model, job.vocabulary, [sentence.text for sentence in held_out])
        found = score(zip((sentence.tags for sentence in held_out), tags, strict=True))
        report(f"held out: F1 {found.f1:.4f}")
        arguments.model.parent.mkdir(parents=True, exist_ok=True)
        save(arguments.model, model, job.vocabulary, job.options)
        report(f"saved: {arguments.model}")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(option: str, help: str, **options: Any) -> None:
        main_parser.add_argument(option, help=f"{help} (default: %(default)s)", **options)

    add("--parallel", "how processes share the work", choices=("none", "ddp", "fsdp"), default=None)
    add("--cell", "of the BiRNN", choices=CELLS, default="lstm")
    add("--hidden-size", "of each direction", type=positive, default=128)
    add("--embedding-size", "of a character and of a bigram", type=positive, default=64)
    add("--dropout", "of the embeddings", type=float, default=0.2)
    add("--epochs", "times to read the corpus", type=positive, default=2)
    add("--batch-characters", "most a batch may hold, over all", type=positive, default=4096)
    add("--learning-rate", "of Adam", type=float, default=2e-3)
    add("--seed", "one seed, one result", type=int, default=0)
    add("--checkpoints", "folder of them", type=Path, default=FOLDER / "checkpoints")
    add("--checkpoint-every", "steps between two", type=positive, default=100)
    add("--model", "file for the trained model", type=Path, default=FOLDER / "segmenter.pt")
    main_parser.add_argument("--paragraphs", type=positive, help="how many to read (default: all)")
    main_parser.add_argument("--corpus", type=Path, help=f"{ARCHIVE} (default: downloaded once)")
    return main_parser


def check(arguments: argparse.Namespace, under_torchrun: bool) -> None:
    """Complete --parallel; refuse what does not fit together."""
    if arguments.parallel is None:
        arguments.parallel = "ddp" if under_torchrun else "none"
    if arguments.parallel != "none" and not under_torchrun:
        raise InputError(
            f"--parallel {arguments.parallel} needs torchrun: torchrun --nproc-per-node=2 "
            f"{sys.argv[0]} --parallel {arguments.parallel}"
        )
    if arguments.parallel == "none" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "--parallel none is for one process: give ddp or fsdp, or run without torchrun"
        )
    if not 0 <= arguments.dropout < 1:
        raise InputError(f"--dropout must be at least 0 and less than 1, got {arguments.dropout}")
    if not 0 < arguments.learning_rate < float("inf"):
        raise InputError(f"--learning-rate must be greater than 0, got {arguments.learning_rate}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    arguments = parser().parse_args(argv)
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    try:
        check(arguments, under_torchrun)
        device = device_of(int(os.environ.get("LOCAL_RANK", "0")))
        if arguments.parallel != "none":
            dist.init_process_group()  # gloo for the CPU, NCCL for GPUs
        train(arguments, device)
    except (CorpusError, InputError, OSError) as error:
        print(f"segment_chinese_distributed.py: error: {error}", file=sys.stderr)
        return REFUSED
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
