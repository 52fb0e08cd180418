"""`calibrl` whose TRL samples nothing: each row's answer follows from its prompt and from its place
in the batch, so runs of one and of several processes see the same batch."""
import os
import sys

from trl import GRPOTrainer


def answer(tokenizer, ids, place):
    "The token ids of an answer: some in tags and some not, of several lengths."
    number = (sum(ids) + 7*place) % 23
    text = f"<think>a={number}</think><answer>{number}</answer>" if place % 3 else f"no {number**2}"
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def given(self, prompt_ids, images, fields, count, **unused):
    "What TRL calls to sample."
    first = self.accelerator.process_index*len(prompt_ids)
    return [answer(self._tokenizer, ids, i) for i, ids in enumerate(prompt_ids, first)], None


def shard_on_cpu():
    """accelerate 1.15 takes FSDP and DeepSpeed for DDP where it is told to use a CPU; this puts its
    choice right. All else of them runs on a CPU as it is."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType
    made = AcceleratorState.__init__

    def sharding(self, *args, fsdp_plugin=None, deepspeed_plugin=None, **kwargs):
        before = dict(AcceleratorState._shared_state)
        made(self, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or before.get("fsdp_plugin")
        self.deepspeed_plugins = deepspeed_plugin or before.get("deepspeed_plugins")
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
        if self.deepspeed_plugins is not None:
            self.distributed_type = DistributedType.DEEPSPEED
            if deepspeed_plugin is not None:
                start_deepspeed(deepspeed_plugin)

    AcceleratorState.__init__ = sharding


def start_deepspeed(plugin):
    "What accelerate does for DeepSpeed where there is a GPU."
    from deepspeed import comm
    plugin.set_mixed_precision("no")
    plugin.select(_from_accelerator_state=True)
    if not comm.is_initialized():
        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


if __name__ == "__main__":
    GRPOTrainer._generate_single_turn = given
    if {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ):
        shard_on_cpu()
    from calibrl.cli import main
    sys.exit(main())
