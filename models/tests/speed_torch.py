#!/usr/bin/env python3
"""How long transformers needs for what examples/speed.rs times, the two taking turns.

    speed_torch.py CHECKPOINT [--dtype f32] [--threads 2] [--batch 1] [--tokens 128] [--cached 128] [--rounds 10]
                   [--patience 300] [--variants eager compiled frozen] [--native target/release/examples/speed]

One process a variant, all loaded and warm, one computing at a time: each round asks every variant once for each of its
passes, and the next round starts with the next variant. eager is transformers as it is, compiled is torch.compile,
frozen is that with TORCHINDUCTOR_FREEZING=1, which inlines the weights; all with sdpa attention and no gradients.
Prefill gives the logits of every position without a cache; decode is one token after a cache, in a dynamic and in a
static one, compiled each for its own. Prints medians, least values, and fused divided by the best of torch's medians,
with its interval. A variant that fails to run is named with its error and left out.

Cores of a virtual machine are often shared. A fixed piece of arithmetic is timed before and after each answer; rounds
go on for at most `--patience` seconds until every pass has `--rounds` answers that both readings call quiet, and the
quietest answers count, however long they took themselves. How many of them were not quiet is printed.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

# As in speed.rs: tokens timed after a cache, and one before them that is not.
DECODED = 8
# The passes of torch's variants and of the native ones.
PARTS = ["prefill", "decode dynamic", "decode static"]
NATIVE = ["fused prefill", "fused decode", "plain read", "eager prefill", "eager decode"]
# A reading this much above the best (the 5th percentile of all) is one of a busy machine: quiet ones lie within 3 to 6 %
# of it, those beside a busy neighbour 20 to 100 % above.
BUSY = 1.06


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    for name, default in [("threads", 2), ("batch", 1), ("tokens", 128), ("cached", 128), ("rounds", 10), ("patience", 300)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variants", nargs="*", default=["eager", "compiled", "frozen"])
    parser.add_argument("--native", type=pathlib.Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def ids(batch, seq):
    """The same as in speed.rs."""
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

    def answer(self, name):
        """Milliseconds of the passes of one part, none where it does not run."""
        part = {"prefill": self.prefill, "decode dynamic": self.decode_dynamic, "decode static": self.decode_static}
        if name in self.failed:
            return []
        try:
            return part[name]()
        except Exception as error:  # A variant that does not run is a result, not the end of the others.
            self.failed[name] = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            print(f"{self.args.worker} {name}: {self.failed[name]}", file=sys.stderr)
            return []

    def serve(self):
        # Compiles; the second time for what inductor does on a second call.
        for name in 2 * PARTS:
            self.answer(name)
        print("ready", flush=True)
        for name in sys.stdin:
            print(json.dumps(self.answer(name.strip())), flush=True)


def start(args, variant):
    """A process that answers every name of a pass with a line of milliseconds."""
    if variant == "native":
        command = [args.native, args.checkpoint, f"dtype={args.dtype}", "read=yes", "driven=yes"]
        command += [f"{key}={getattr(args, key)}" for key in ["threads", "batch", "tokens", "cached"]]
        environment = os.environ
    else:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", variant]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_FREEZING": str(int(variant == "frozen"))}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{variant} did not start")
    return process


def ask(process, name):
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


class Yardstick:
    """A fixed piece of arithmetic, timed on as many threads as the variants have."""

    def __init__(self, threads):
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.threads = threads
        self.readings = []

    def once(self):
        data = bytes(1 << 20)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            hashlib.blake2b(data).digest()
            times.append(time.perf_counter() - start)
        # The first meets cold caches and a slow clock.
        return min(times[1:])

    def read(self):
        """Seconds on the slowest of the threads."""
        # Until threads of OpenMP no longer turn on the spot.
        time.sleep(0.01)
        reading = max(self.pool.map(lambda _: self.once(), range(self.threads)))
        self.readings.append(reading)
        return reading

    def limit(self):
        """The slowest reading of a quiet machine."""
        return BUSY * sorted(self.readings)[len(self.readings) // 20]


def quietest(answers, rounds):
    """Of `(reading, median)`, so many with the least readings."""
    return sorted(answers)[:rounds]


def interval(above, below):
    """95 %, by bootstrap of the ratio of medians."""
    draw = random.Random(0)

    def median(values):
        return statistics.median(draw.choices(values, k=len(values)))

    ratios = sorted(median(above) / median(below) for _ in range(2000))
    return ratios[50], ratios[-51]


def rounds(args, processes, yardstick):
    """Answers by name, `(reading, median)` each."""
    answers = {}
    begun = time.monotonic()
    number = 0
    before = yardstick.read()
    while True:
        turn = number % len(processes)
        for variant, process in processes[turn:] + processes[:turn]:
            for name in NATIVE if variant == "native" else [f"torch {variant} {part}" for part in PARTS]:
                kept = answers.setdefault(name, [])
                limit = yardstick.limit()
                if sum(reading <= limit for reading, _ in kept) >= 3 * args.rounds:
                    continue
                # Nothing is begun on a busy machine, while patience lasts and something is known of it.
                while number > 0 and before > yardstick.limit() and time.monotonic() - begun < args.patience:
                    before = yardstick.read()
                times = ask(process, name.removeprefix(f"torch {variant} "))
                after = yardstick.read()
                if times:
                    kept.append((max(before, after), statistics.median(times)))
                before = after
        number += 1
        limit = yardstick.limit()
        quiet = [sum(reading <= limit for reading, _ in kept) for kept in answers.values() if kept]
        if number >= args.rounds and (min(quiet) >= args.rounds or time.monotonic() - begun > args.patience):
            return {name: kept for name, kept in answers.items() if kept}


def main():
    args = arguments()
    if args.worker:
        Worker(args).serve()
        return
    variants = args.variants + (["native"] if args.native else [])
    processes = [(variant, start(args, variant)) for variant in variants]
    yardstick = Yardstick(args.threads)
    answers = rounds(args, processes, yardstick)
    for _, process in processes:
        process.stdin.close()
        process.wait()
    limit = yardstick.limit()
    counted = {}
    print(f"{'ms':<30}{'median':>10}{'least':>10}{'of':>6}{'busy':>6}")
    for name, kept in sorted(answers.items(), key=lambda item: ("decode" in item[0], item[0])):
        quiet = quietest(kept, args.rounds)
        counted[name] = [median for _, median in quiet]
        busy = sum(reading > limit for reading, _ in quiet)
        least = min(median for _, median in kept)
        print(f"{name:<30}{statistics.median(counted[name]):>10.2f}{least:>10.2f}{len(kept):>6}{busy:>6}")

    def ratio(above, below):
        low, high = interval(counted[above], counted[below])
        value = statistics.median(counted[above]) / statistics.median(counted[below])
        print(f"{above} / {below}: {value:.3f} [{low:.3f}, {high:.3f}]")

    for kind in ["prefill", "decode"]:
        torch = [name for name in counted if name.startswith("torch ") and f" {kind}" in name]
        if f"fused {kind}" in counted and torch:
            ratio(f"fused {kind}", min(torch, key=lambda name: statistics.median(counted[name])))
    if "plain read" in counted:
        ratio("fused decode", "plain read")


if __name__ == "__main__":
    main()
