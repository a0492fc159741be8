#!/usr/bin/env python3
"""Computes the logits (or hidden states) of transformers for a checkpoint, for every position.

    truth.py CHECKPOINT INPUTS OUT --dtype f64 --attention eager [--device cpu]

INPUTS is a safetensors file with `input_ids` and `attention_mask`, int64, [batch, seq], and optionally `position_ids`
(by default each row counts from its first real token, as `generate` does), and further inputs under the names of
transformers' `forward`. OUT gets `logits`, f64 or f32, of shape [batch, seq, vocab_size], or [batch, labels] for a
classifier, `logits_per_image`, [images, texts], for a dual encoder, `text_embeds` or `image_embeds` for a projection, or
`last_hidden_state` for a model without a head.
Values at padded positions are undefined.

f32 and bf16 are unmodified transformers. f64 is modified: transformers casts to float32 inside norms, softmax and rope
in every dtype, so that its float64 results are accurate to 1e-7 only. Here those casts go to float64 as well, and the
result is accurate to about 1e-14.
"""

import argparse
import contextlib
import inspect
import json
import os
import pathlib
import unittest.mock

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Float64(TorchFunctionMode):
    """Replaces float32 by float64 in every torch call, and makes float64 the default dtype."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exception):
        torch.set_default_dtype(torch.float32)
        return super().__exit__(*exception)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        replaced = [torch.float64 if a is torch.float32 else a for a in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*replaced, **named)


def auto_class(config):
    """The auto class of the config's `architectures`; `AutoModel` if they name no head."""
    kinds = {
        "ForCausalLM": transformers.AutoModelForCausalLM,
        "LMHeadModel": transformers.AutoModelForCausalLM,
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "ForConditionalGeneration": transformers.AutoModelForSeq2SeqLM,
    }
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("WithProjection"):
        return getattr(transformers, architecture)
    if architecture == "T5EncoderModel":
        return transformers.AutoModelForTextEncoding
    if config.model_type == "whisper":
        return transformers.AutoModelForSpeechSeq2Seq
    if config.model_type == "qwen2_vl":
        # The second is the name up to 4.45.
        names = ("AutoModelForImageTextToText", "AutoModelForVision2Seq")
        return next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    return next((auto for ending, auto in kinds.items() if architecture.endswith(ending)), transformers.AutoModel)


def constructor(auto):
    """Constructs a model from a config; a class by its name has no public one."""
    return getattr(auto, "from_config", None) or auto._from_config


def plain(model):
    """The model in eval mode, with experts in a loop: the grouped product that 5.x prefers does not support float64."""
    if hasattr(model, "set_experts_implementation") and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model.eval()


def load(checkpoint: pathlib.Path, dtype: torch.dtype, attention: str):
    """The model and the loading info that is not empty, such as missing or unexpected weights."""
    model, info = auto_class(transformers.AutoConfig.from_pretrained(checkpoint)).from_pretrained(
        checkpoint,
        torch_dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    return plain(model), {key: sorted(map(str, value)) for key, value in info.items() if value}


def widen(model, checkpoint: pathlib.Path, attention: str):
    """A copy of the model constructed under `Float64`, so that values computed at construction (inverse frequencies) are
    float64 as well. Its parameters are those of `model`, which float32 holds exactly."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    # Initial weights are overwritten anyway, and 4.57.6 fails to initialise a layer norm without bias (stablelm).
    with unittest.mock.patch.object(transformers.PreTrainedModel, "init_weights", lambda self: None):
        wide = constructor(auto_class(config))(config, torch_dtype=torch.float64, attn_implementation=attention)
    wide = wide.double()
    wide.tie_weights()
    parameters = dict(model.named_parameters())
    # 5.x ties T5's head at construction, and unties it if the checkpoint has another.
    for name in parameters.keys() - dict(wide.named_parameters()).keys():
        module, _, leaf = name.rpartition(".")
        setattr(wide.get_submodule(module), leaf, torch.nn.Parameter(parameters[name].data.double()))
    for name, parameter in wide.named_parameters():
        parameter.data = parameters.pop(name).data.double()
    assert not parameters, f"not taken over: {sorted(parameters)}"
    return plain(wide)


def default_position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids, [batch, seq]: 0 at the first real token of each row and at the padding before it."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def arguments(model, inputs: dict) -> dict:
    """The inputs that the model's forward accepts. Only decoders get position ids; an encoder counts from the start of the
    row (BERT) or from its first real token (RoBERTa)."""
    accepted = inspect.signature(model.forward).parameters
    passed = {name: value for name, value in inputs.items() if name in accepted and name != "position_ids"}
    if "input_features" in inputs:  # not cast by the model, as pixels are
        passed["input_features"] = inputs["input_features"].to(model.dtype)
    decoder = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    if decoder and "position_ids" in accepted:
        passed["position_ids"] = inputs.get("position_ids", default_position_ids(inputs["attention_mask"]))
    if "use_cache" in accepted:
        passed["use_cache"] = False
    return passed


def chunked(model, inputs: dict, chunk: int):
    """The logits of a decoder that processes the inputs through its KV cache, `chunk` tokens at a time."""
    cache, logits = transformers.DynamicCache(config=model.config), []
    for start in range(0, inputs["input_ids"].shape[1], chunk):
        end = start + chunk
        part = {
            "input_ids": inputs["input_ids"][:, start:end],
            "attention_mask": inputs["attention_mask"][:, :end],
            "position_ids": inputs["position_ids"][:, start:end],
        }
        logits.append(model(**part, past_key_values=cache, use_cache=True).logits)
    return {"logits": torch.cat(logits, dim=1)}


@torch.no_grad()
def compute(checkpoint, inputs: dict, dtype: str, attention="eager", device="cpu", whole=True, chunk=None):
    """Name and values of the output, on the CPU, in f64 or f32. If `whole`, missing or unexpected weights are an error.
    With `chunk`, a decoder processes that many tokens at a time through its KV cache."""
    model, info = load(checkpoint, torch.float32 if dtype == "f64" else DTYPES[dtype], attention)
    if info and whole:
        raise SystemExit(f"{checkpoint} does not load whole: {json.dumps(info)}")
    with Float64() if dtype == "f64" else contextlib.nullcontext():
        if dtype == "f64":
            model = widen(model, checkpoint, attention)
        inputs = {key: value.to(device) for key, value in inputs.items()}
        model = model.to(device)
        output = chunked(model, inputs, chunk) if chunk else model(**arguments(model, inputs))
    names = ("logits", "logits_per_image", "text_embeds", "image_embeds", "last_hidden_state")
    name = next(name for name in names if name in output)
    return name, output[name].to("cpu", torch.float64 if dtype == "f64" else torch.float32).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("inputs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default="f64")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    inputs = load_file(options.inputs)
    name, values = compute(options.checkpoint, inputs, options.dtype, options.attention, options.device)
    temporary = options.out.with_suffix(".tmp")
    save_file({name: values}, temporary, metadata={"transformers": transformers.__version__, "dtype": options.dtype})
    temporary.rename(options.out)


if __name__ == "__main__":
    main()
