#!/usr/bin/env python3
"""Measures what tfcheck adds to many small units: `scale.py TFCHECK [UNITS] [--slurm]`.

Each unit is one case of a scripted worker that answers at once. The script runs all units in one process, then in ten shards
that are merged, and with --slurm also as jobs of the cluster that SLURM_CONF names. It prints one line per measurement.
"""
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time

WORKER = r'''
import json, os, struct, sys
requests, replies = os.fdopen(int(os.environ["TFCHECK_REQUEST_FD"])), os.fdopen(int(os.environ["TFCHECK_REPLY_FD"]), "w")
for line in requests:
    request = json.loads(line)
    if request["do"] == "exit":
        break
    if request["do"] == "load":
        with open(request["inputs"], "rb") as file:
            shape = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["input_ids"]["shape"] + [2]
        reply = {"is": "ready", "libraries": {}, "load_ns": 1, "notes": []}
    else:
        count = 4 * shape[0] * shape[1] * shape[2]
        header = json.dumps({"logits": {"dtype": "F32", "shape": shape, "data_offsets": [0, count]}}).encode()
        header += b" " * (-len(header) % 8)
        with open(request["logits"], "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header + bytes(count))
        reply = {"is": "forwarded", "elapsed_ns": 1, "shape": shape, "positions": "all", "peak_bytes": None, "prefill": None}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
'''


def timed(command, **options):
    """Seconds of a command, and the largest resident set of any command so far in MiB."""
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    return time.monotonic() - begun


def peak(command):
    """Seconds and peak resident set of one command in MiB."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        seconds = timed(command)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        os.write(write, json.dumps([seconds, usage]).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    return json.loads(os.read(read, 1000))


def main():
    arguments = [word for word in sys.argv[1:] if not word.startswith("--")]
    tfcheck, units = os.path.abspath(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("worker.py", "w") as file:
            file.write(WORKER)
        lengths = list(range(1, units + 1))
        with open("tfcheck.toml", "w") as file:
            file.write(
                f'versions = []\n[[checkpoints]]\nsource = "synthetic:llama:tiny"\n[inputs]\nlengths = {lengths}\n'
                '[candle]\nmodes = []\n[[commands]]\nname = "fake"\nprogram = ["python3", "-S", "-E", "worker.py"]\n'
                "[run]\nthreads = 1\nrounds = 0\ntrace = false\nnoise = false\ndiagnose_s = 0\n"
                "[engine]\nmemory_mb = 200\n"
            )
        # The worker alone: its start and its end.
        quiet = {"TFCHECK_REQUEST_FD": "0", "TFCHECK_REPLY_FD": "1", "PATH": os.environ["PATH"]}
        alone = min(
            timed(["python3", "-S", "-E", "worker.py"], stdin=subprocess.DEVNULL, env=quiet) for _ in range(20)
        )
        print(f"a worker alone: {1000 * alone:.0f} ms", flush=True)
        seconds = timed([tfcheck, "run", "--results", "whole", "--quiet"])
        print(f"{units} units in one process: {seconds:.1f} s, {1000 * (seconds / units - alone):.0f} ms a unit beside its worker", flush=True)
        run = os.path.join("whole", [name for name in os.listdir("whole") if name.startswith("run_")][0])
        seconds, mib = peak([tfcheck, "compare", run, "--quiet"])
        print(f"report of {units} cells: {seconds:.1f} s, {mib:.0f} MiB", flush=True)
        for index in range(1, 11):
            timed([tfcheck, "run", "--shard", f"{index}/10", "--results", f"shard_{index}", "--quiet"])
        shards = [f"shard_{index}" for index in range(1, 11)]
        seconds, mib = peak([tfcheck, "merge", *shards, "--results", "merged", "--quiet"])
        print(f"merge of 10 shards, with the report: {seconds:.1f} s, {mib:.0f} MiB", flush=True)
        with open("plan.json", "w") as file:
            subprocess.run([tfcheck, "plan", "--json", "--quiet"], check=True, stdout=file)
        size = os.path.getsize("plan.json") / 1e6
        seconds = min(
            timed([tfcheck, "run", "--plan", "plan.json", "--unit", "1", "--results", "unit", "--quiet"]) for _ in range(5)
        )
        print(f"one unit of the plan ({size:.1f} MB) in its own process: {1000 * (seconds - alone):.0f} ms beside its worker", flush=True)
        if "--slurm" in sys.argv:
            seconds = timed([tfcheck, "run", "--engine", "slurm", "--results", "slurm", "--quiet"])
            print(f"{units} units as Slurm jobs: {seconds:.1f} s, {1000 * seconds / units:.0f} ms a unit", flush=True)


main()
