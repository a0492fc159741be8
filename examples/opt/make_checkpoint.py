"""Writes a tiny OPT with random weights into `tiny/`, which shows mistakes that transformers' own initial weights hide.

    <environment>/bin/python make_checkpoint.py        # an environment of tfcheck, or any with transformers and torch
"""

import pathlib

import torch
from transformers import OPTConfig, OPTForCausalLM

torch.manual_seed(0)
config = OPTConfig(
    vocab_size=64, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=48,
    word_embed_proj_dim=16, activation_function="relu", do_layer_norm_before=True, pad_token_id=1, bos_token_id=2, eos_token_id=2,
)
model = OPTForCausalLM(config)
with torch.no_grad():
    for name, weight in model.named_parameters():
        # Attention is far from uniform, no bias is 0 and no weight of a norm is 1.
        weight.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3 if weight.dim() == 1 else 0.5)
model.save_pretrained(pathlib.Path(__file__).parent / "tiny")
