#!/usr/bin/env python3
"""Reports which transformers versions read the synthetic checkpoints, and which compute the same float64 output.

    <environment>/bin/python versions.py run OUT.json CHECKPOINT...
    versions.py table OUT.json... > ../src/synthetic/versions.md

`run` loads each checkpoint (no missing, unexpected or mismatched weights), runs it in f32 for 1 and 3 rows (the latter
padded on the left), 48 and 64 tokens, and compares its float64 output for 80 tokens and for the padded rows with
`logits_{long,b3}.f64.safetensors` of the same folder, if they exist, by relative L2 over real positions.
"""

import json
import pathlib
import sys

SAME = 1e-12


def check(folder: pathlib.Path) -> str:
    import sequences
    import torch
    import transformers
    import truth
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        return "not in this version"
    torch.set_num_threads(1)
    text = sequences.text_config(config)
    generator = torch.Generator().manual_seed(2)
    for rows, width in [(1, 48), (3, 48), (1, 64), (3, 64)]:
        ids = torch.randint(5, text.get("vocab_size", 280), (rows, width), generator=generator)
        real = torch.arange(width) >= 11 * torch.arange(rows)[:, None]
        ids[~real] = text.get("pad_token_id") or 0
        inputs = sequences.complete(config, {"input_ids": ids, "attention_mask": real.long()}, generator)
        values, real = truth.compute(folder, inputs, "f32")[1], sequences.real(inputs)
        if not torch.isfinite(values[real] if values.ndim == 3 else values).all():
            return f"not finite for {rows} rows of {width}"
    worst = 0.0
    for name in ["long", "b3"]:
        if not (folder / f"logits_{name}.f64.safetensors").exists():
            continue
        inputs = load_file(folder / f"inputs_{name}.safetensors")
        (kind, values), real = truth.compute(folder, inputs, "f64"), sequences.real(inputs)
        expected = load_file(folder / f"logits_{name}.f64.safetensors")[kind]
        if values.ndim == 3:
            values, expected = values[real], expected[real]
        worst = max(worst, ((values - expected).norm() / expected.norm()).item())
    return "ok" if worst <= SAME else f"differs by {worst:.1e}"


def run(out: str, folders: list) -> None:
    import transformers

    cells = {"": transformers.__version__}
    for folder in map(pathlib.Path, folders):
        try:
            cells[folder.name] = check(folder)
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).replace(f"{folder}", folder.name).split())
            cells[folder.name] = f"{type(error).__name__}: {reason}"[:160]
    pathlib.Path(out).write_text(json.dumps(cells, indent=1))


def table(files: list) -> None:
    columns = [json.loads(pathlib.Path(file).read_text()) for file in files]
    notes = {}
    print("# transformers versions and synthetic checkpoints\n")
    print("Made by `models/tests/versions.py`. **ok**: every weight finds its place and the float64 output equals")
    print(f"{columns[0]['']}'s to {SAME:.0e}; **-**: not in this version; **≠**: another result (relative L2).\n")
    print("| checkpoint |", " | ".join(column[""] for column in columns), "|")
    print("|---|" + "---|" * len(columns))
    for name in list(columns[0])[1:]:
        cells = []
        for column in columns:
            cell = column.get(name, "not run")
            if cell.startswith("differs by "):
                cell = "≠ " + cell.removeprefix("differs by ")
            elif cell == "not in this version":
                cell = "-"
            elif cell != "ok":
                cell = f"[{notes.setdefault(cell, len(notes) + 1)}]"
            cells.append(cell)
        print(f"| {name} |", " | ".join(cells), "|")
    print()
    for note, number in notes.items():
        print(f"{number}. `{note}`")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3:])
    else:
        table(sys.argv[2:])
