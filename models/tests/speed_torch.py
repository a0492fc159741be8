#!/usr/bin/env python3
"""Times transformers on the forward passes that examples/speed.rs times, interleaved with it.

    speed_torch.py CHECKPOINT [--dtype f32] [--threads 2] [--batch 1] [--tokens 128] [--cached 128] [--rounds 10]
                   [--variants eager compiled frozen] [--passes prefill decode] [--native target/release/examples/speed]

Each variant has its own process; all are loaded and warm, and one computes at a time. A round runs every variant once,
and the next round starts with the next variant. eager is unmodified transformers, compiled is torch.compile, frozen is
torch.compile with TORCHINDUCTOR_FREEZING=1, which inlines the weights; all use sdpa attention and no gradients. Prefill
computes the logits of every position without a cache. Decode computes one token with a dynamic and with a static KV
cache, each compiled separately. Prints medians, minima, and the native fused backend's time over the lowest torch median,
with the interval of ratios over rounds. A variant that fails is reported with its error and omitted.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

# As in speed.rs: number of timed decode steps; one untimed step precedes them.
DECODED = 8
# Seconds to wait before each variant. On two cores of a Xeon, a run without the wait measured times 25 % longer, for torch
# and for the native backend; the cause is unknown.
PAUSE = 0.1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    for name, default in [("threads", 2), ("batch", 1), ("tokens", 128), ("cached", 128), ("rounds", 10)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variants", nargs="*", default=["eager", "compiled", "frozen"])
    parser.add_argument("--passes", nargs="*", choices=["prefill", "decode"], default=["prefill", "decode"])
    parser.add_argument("--native", type=pathlib.Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def ids(batch, seq):
    """Token ids, [batch, seq]; the same as in speed.rs."""
    import torch

    return (torch.arange(batch * seq) * 37 % 1000).reshape(batch, seq)


class Worker:
    """One variant in its own process."""

    def __init__(self, args):
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
        self.torch, self.transformers, self.args = torch, transformers, args
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        config = transformers.AutoConfig.from_pretrained(args.checkpoint)
        options = {"config": config, "dtype": self.dtype, "attn_implementation": "sdpa", "use_safetensors": True}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(args.checkpoint, **options).eval()
        self.config = config
        compiled = args.worker != "eager"
        # Positions are tensors that change from token to token; only the dynamic cache changes shapes.
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.grow = torch.compile(self.model, dynamic=True) if compiled else self.model
        self.failed = {}

    def prefill(self):
        prompt = ids(self.args.batch, self.args.tokens)
        return [self.timed(lambda: self.forward(input_ids=prompt, use_cache=False).logits)]

    def decode(self, cache, forward):
        past, token = ids(self.args.batch, self.args.cached), ids(self.args.batch, 1)
        self.model(input_ids=past, past_key_values=cache, cache_position=self.torch.arange(self.args.cached))
        times = []
        for position in range(self.args.cached, self.args.cached + DECODED + 1):
            at = self.torch.tensor([position])
            step = {"input_ids": token, "past_key_values": cache, "cache_position": at}
            step["position_ids"] = at.expand(self.args.batch, 1)
            times.append(self.timed(lambda: forward(**step).logits))
        return times[1:]

    def decode_dynamic(self):
        return self.decode(self.transformers.DynamicCache(config=self.config), self.grow)

    def decode_static(self):
        length = self.args.cached + DECODED + 1
        cache = self.transformers.StaticCache(config=self.config, max_cache_len=length, max_batch_size=self.args.batch)
        return self.decode(cache, self.forward)

    def timed(self, body):
        start = time.perf_counter()
        body()
        return (time.perf_counter() - start) * 1e3

    def round(self):
        samples = {}
        parts = {"prefill": self.prefill, "decode dynamic": self.decode_dynamic, "decode static": self.decode_static}
        for name, part in parts.items():
            if name in self.failed or name.split()[0] not in self.args.passes:
                continue
            try:
                samples[f"torch {self.args.worker} {name}"] = part()
            except Exception as error:  # A failed variant must not stop the others.
                self.failed[name] = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
                print(f"{self.args.worker} {name}: {self.failed[name]}", file=sys.stderr)
        return samples

    def serve(self):
        # The first round compiles; inductor may compile again on the second call.
        self.round()
        self.round()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(json.dumps(self.round()), flush=True)


def start(args, variant):
    """A process that runs one round per line on its standard input."""
    if variant == "native":
        command = [args.native, args.checkpoint, f"dtype={args.dtype}", "driven=yes"]
        command += ["plain=yes", f"decode={'yes' if 'decode' in args.passes else 'no'}"]
        command += [f"{key}={getattr(args, key)}" for key in ["threads", "batch", "tokens", "cached"]]
        environment = os.environ
    else:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", variant]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_FREEZING": str(int(variant == "frozen"))}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def ask(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def interval(ratios):
    """95 % bootstrap interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[-51]


def main():
    args = arguments()
    if args.worker:
        Worker(args).serve()
        return
    variants = args.variants + (["native"] if args.native else [])
    # Started in parallel, because most of the time is spent in torch's compiler.
    processes = [start(args, variant) for variant in variants]
    for variant, process in zip(variants, processes):
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{variant} did not start")
    # The median of each name in each round.
    rounds = []
    samples = {}
    for number in range(args.rounds):
        turn = number % len(processes)
        answers = {}
        for process in processes[turn:] + processes[:turn]:
            time.sleep(PAUSE)
            answers |= ask(process)
        for name, times in answers.items():
            samples.setdefault(name, []).extend(times)
        rounds.append({name: statistics.median(times) for name, times in answers.items()})
    for process in processes:
        process.stdin.close()
        process.wait()
    print(f"{'ms':<30}{'median':>10}{'least':>10}")
    for name, times in sorted(samples.items(), key=lambda item: ("decode" in item[0], item[0])):
        print(f"{name:<30}{statistics.median(times):>10.2f}{min(times):>10.2f}")
    for kind in ["prefill", "decode"]:
        torch = [name for name in samples if name.startswith("torch ") and f" {kind}" in name]
        native = f"fused {kind}"
        if native in samples and torch:
            best = min(torch, key=lambda name: statistics.median(samples[name]))
            ratios = [answers[native] / answers[best] for answers in rounds]
            low, high = interval(ratios)
            print(f"{native} / {best}: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]")
    # Ratios within a round, because a slow phase of the machine affects both.
    for name, plain in [("fused prefill", "plain arithmetic"), ("fused decode", "plain read")]:
        if name in samples and plain in samples:
            ratios = [answers[name] / answers[plain] for answers in rounds]
            low, high = interval(ratios)
            print(f"{name} / {plain} of its weights: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
