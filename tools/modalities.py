"""Writes results/modalities.md from a run of results/modalities.toml: python3 tools/modalities.py RUN"""

import json
import pathlib
import sys

run = pathlib.Path(sys.argv[1])
summary = json.loads((run / "summary.json").read_text())


def letters(case):
    """The letter of each variant's group; `!` for a failed cell and `-` for an unsupported one."""
    found = {name: group["letter"] for group in case["groups"]["groups"] for name in group["members"]}
    for cell in case["cells"]:
        kind = {"failed": "!", "unsupported": "-"}.get(cell.get("outcome"), "")
        found.setdefault(cell["name"], kind)
    return found


def largest(case):
    """Largest relative L2 between two members of group A."""
    first = case["groups"]["groups"][0]["members"] if case["groups"]["groups"] else []
    pairs = [pair for pair in case["pairs"] if pair["a"] in first and pair["b"] in first and pair["a"] != pair["b"]]
    apart = [pair["relative_l2_to_a"] for pair in pairs if pair["status"] == "compared"]
    return max((x for x in apart if isinstance(x, float)), default=None)


columns = []
for case in summary["cases"]:
    for cell in case["cells"]:
        if not cell["name"].endswith("_f64") and cell["name"] not in columns:
            columns.append(cell["name"])
short = [name.replace("_eager_eager", " eager").replace("_eager_sdpa", " sdpa").replace("candle_", "candle ") for name in columns]
print("# Models of pictures, sound and several sequences\n")
print(f"Made by `tools/modalities.py` of a run of [modalities.toml](modalities.toml): {len(summary['cases'])} synthetic checkpoints, float32, batch 2, with float64 references. A is the group of the newest release's eager mode; `-` is unsupported, `!` failed. The number is the largest relative L2 within A. [docs/inputs.md](../docs/inputs.md) says what each model is fed.\n")
print("| checkpoint | inputs | further outputs |", " | ".join(short), "| within A |")
print("| --- |" * 1, "--- | --- |", " | ".join("---" for _ in short), "| --- |")
for case in summary["cases"]:
    marks = letters(case)
    further = sorted({output["name"] for output in case["outputs"]})
    apart = largest(case)
    inputs = case["inputs"].removeprefix("batch 2, ")
    row = [case["checkpoint"].removeprefix("synthetic:"), inputs, ", ".join(further) or "none"]
    row += [marks.get(name, "") for name in columns] + [f"{apart:.1e}" if apart is not None else "0"]
    print("|", " | ".join(row), "|")
print("\n## Findings\n")
for finding in summary["findings"]:
    # The marks say it.
    if finding["finding"] == "unsupported":
        continue
    what = {
        "diverges": lambda f: f"diverges from A by {f['relative_l2']:.1e}" + (f", first at `{f['place']}`" if f.get("place") else ""),
        "output": lambda f: f"`{f['output']}` diverges by {f['relative_l2']:.1e}, though the main output agrees",
        "failed": lambda f: "fails: " + f["reason"],
        "chain": lambda f: f["sentence"],
        "rounds_worse": lambda f: "rounds worse: " + f["evidence"],
    }.get(finding["finding"], lambda f: f["finding"])(finding)
    print(f"- {finding['subject']} in {', '.join(finding['cases'])}: {what}")
