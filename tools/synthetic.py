"""Makes and runs `synthetic:NAME` for each model_type, and writes results/synthetic.md.

python3 tools/synthetic.py run TFCHECK STATE.json NAME…   # adds what each name came to; those in the state are left out
python3 tools/synthetic.py table STATE.json > results/synthetic.md

A release's names: python -c "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as n; print(*n)"
"""

import array
import collections
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

RELEASE = "5.24.0"
AT_ONCE = 12
REST = f"""
[inputs]
lengths = [24]
batch = [2]

[[versions]]
name = "{RELEASE}"
source = "transformers=={RELEASE}"

[candle]
modes = []

[run]
modes = ["eager"]
attention = ["eager"]
dtypes = ["f32"]
devices = ["cpu"]
warm_up = 0
iterations = 1
rounds = 1
trace = false
noise = false
diagnose_s = 0
threads = 1
"""


def finite(path):
    """Whether all numbers of a safetensors file of f32 are finite."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rest = data[start:]
    return all(map(math.isfinite, array.array("f", rest[: len(rest) // 4 * 4])))


def run(tfcheck, names, folder):
    """What the names came to, of those that one run reaches: {"made", "ran", "why"}."""
    checkpoints = "".join(f'[[checkpoints]]\nsource = "synthetic:{name}"\nname = "{name}"\n\n' for name in names)
    (folder / "tfcheck.toml").write_text(checkpoints + REST)
    command = [tfcheck, "--format", "json", "--quiet", "run", "--results", str(folder / "results"), "--full"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    try:
        said = json.loads(answer.stdout)
    except ValueError:
        said = {}
    error = said.get("error") or {}
    text = " ".join(f"{error.get('message', '')} {' '.join(error.get('causes', []))}".split()) or answer.stderr[-2000:]
    # The first name that the error names; it may end with one of another.
    named = {name: re.search(rf"(synthetic:{re.escape(name)}(?![\w.-])|/{re.escape(name)}-(default|b2-24)\b)", text) for name in names}
    refused = min((name for name in names if named[name]), key=lambda name: named[name].start(), default=None)
    if refused and not said.get("summary"):
        return {refused: {"made": "cannot be made" not in text and "does not read" not in text, "ran": False, "why": text}}
    runs = sorted(path.parent for path in (folder / "results").glob("run_*/summary.json"))
    if not runs:
        # A run that ended for another reason, which one name alone is told.
        if len(names) == 1:
            return {names[0]: {"made": False, "ran": False, "why": text}}
        return run(tfcheck, names[:1], folder)
    summary = json.loads((runs[-1] / "summary.json").read_text())
    found = {}
    for case in summary["cases"]:
        cell = case["cells"][0]
        name = case["checkpoint"].removeprefix("synthetic:")
        found[name] = {"made": True, "ran": cell["outcome"] == "completed", "why": cell.get("reason", ""), "inputs": case["inputs"]}
        # A run of one case has no folder for it.
        folder = runs[-1] / case["name"] if (runs[-1] / case["name"]).is_dir() else runs[-1]
        files = list(folder.rglob("logits_*.safetensors"))
        if found[name]["ran"] and not (files and all(map(finite, files))):
            found[name] |= {"ran": False, "why": "its outputs are not finite"}
    return found


def run_all(tfcheck, state, names):
    known = json.loads(state.read_text()) if state.exists() else {}
    rest = [name for name in names if name not in known]
    while rest:
        with tempfile.TemporaryDirectory() as folder:
            found = run(tfcheck, rest[:AT_ONCE], pathlib.Path(folder))
        known |= found
        state.write_text(json.dumps(known, indent=1))
        rest = [name for name in rest if name not in known]
        print(len(known), "known,", len(rest), "left", flush=True)


# Reasons, by what their sentences have in common.
REASONS = [
    ("is a part without a model class of its own; the error names the whole", r"without a model of its own"),
    ("has a config and no model class", r"has a config and no model"),
    ("needs a package that the environment lacks", r"needs the package"),
    ("cannot be constructed with small sizes", r"cannot be constructed"),
    ("was not reached before this table was made", r"not reached"),
    ("has a config that tfcheck's limits refuse", r"config\.json: `"),
    ("is saved by one class or release and loaded by another that lacks weights", r"the checkpoint (lacks|has another shape)"),
    ("gives numbers that are not finite", r"not finite"),
    ("fails in `forward`, or the general rules find no inputs", r""),
]


def table(state):
    known = json.loads(state.read_text())
    ran = [name for name, what in known.items() if what["ran"]]
    made = [name for name, what in known.items() if what["made"] and not what["ran"]]
    print("# Synthetic checkpoints of every model type\n")
    print(
        f"Made by `tools/synthetic.py`: each of the {len(known)} values of `model_type` that transformers {RELEASE} knows, as\n"
        f"`synthetic:NAME`, made and run once in {RELEASE} (eager, float32, batch 2, on the CPU). {len(ran)} are built and run with finite\n"
        f"outputs, {len(made)} are built and not run, {len(known) - len(ran) - len(made)} are not built. Inputs of {sum('tokens' in known[name]['inputs'] for name in ran)} of those that run have tokens.\n"
    )
    print("| outcome | reason | count | names |\n| --- | --- | --- | --- |")
    print(f"| built and run | | {len(ran)} | all that no other row has |")
    for outcome, is_made in [("built, not run", True), ("not built", False)]:
        groups = collections.defaultdict(list)
        for name, what in sorted(known.items()):
            if not what["ran"] and what["made"] == is_made:
                groups[next(title for title, pattern in REASONS if re.search(pattern, what["why"]))].append(name)
        for title, _ in REASONS:
            if names := groups.get(title):
                print(f"| {outcome} | {title} | {len(names)} | {', '.join(names)} |")


if sys.argv[1] == "run":
    run_all(sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4:])
else:
    table(pathlib.Path(sys.argv[2]))
