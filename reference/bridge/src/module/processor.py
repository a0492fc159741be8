"""Pictures, sounds and texts through a checkpoint's own processor, once, so that every variant gets the same tensors."""

import inspect
import pathlib
import wave

import numpy
import torch
import transformers

RATE = 16_000
BUILT_IN = "built-in"


def picture(path):
    """The picture at `path` in RGB, or a test picture of 96 × 64 pixels: waves of different lengths and a disc."""
    from PIL import Image

    if path != BUILT_IN:
        return Image.open(path).convert("RGB")
    y, x = numpy.mgrid[0:64, 0:96] / 64
    channels = [numpy.sin(5.3 * (c + 1) * x) * numpy.cos(3.1 * y + c) for c in range(3)]
    pixels = numpy.stack(channels, axis=-1)
    pixels[(x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.05] = (0.8, -0.2, 0.4)
    return Image.fromarray(((pixels + 1) * 127).round().astype(numpy.uint8))


def sound(path, rate):
    """The samples at `path`, a WAV file of 16 bits, or a second of a chirp from 200 Hz to 3 kHz."""
    if path == BUILT_IN:
        time = numpy.arange(rate) / rate
        return numpy.sin(2 * numpy.pi * (200 + 1400 * time) * time).astype(numpy.float32)
    with wave.open(path, "rb") as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{path} has {8 * file.getsampwidth()} bits a sample; 16 are read")
        if file.getframerate() != rate:
            raise ValueError(f"{path} has {file.getframerate()} samples a second, and the model takes {rate}")
        samples = numpy.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, file.getnchannels())
    return (samples.mean(axis=1) / 32768).astype(numpy.float32)


def load(checkpoint):
    """The checkpoint's processor, or its image processor, feature extractor or tokenizer where that is all it has."""
    options = dict(local_files_only=True, trust_remote_code=False)
    problems = []
    for name in ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"):
        try:
            return getattr(transformers, name).from_pretrained(checkpoint, **options)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0]}")
    raise ValueError("the checkpoint has no processor that this release loads: " + "; ".join(problems))


def rendered(processor, texts, pictures, sounds, chat):
    """The texts as the processor gets them: through the chat template, each with its share of pictures and sounds."""
    if not chat:
        return texts
    each = [len(pictures) // len(texts), len(sounds) // len(texts)]
    contents = [
        [{"type": "image"}] * each[0] + [{"type": "audio"}] * each[1] + [{"type": "text", "text": text}] for text in texts
    ]
    return [
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        for content in contents
    ]


def prepare(checkpoint, texts, images, audio, chat):
    """The class, the texts as they were tokenised, and the tensors by the names of the model's arguments."""
    processor = load(checkpoint)
    extractor = getattr(processor, "feature_extractor", processor)
    rate = getattr(extractor, "sampling_rate", RATE)
    pictures = [picture(path) for path in images]
    sounds = [sound(path, rate) for path in audio]
    texts = rendered(processor, texts, pictures, sounds, chat)
    takes = inspect.signature(processor.__call__).parameters
    keywords = dict(return_tensors="pt")
    has_tokenizer = getattr(processor, "tokenizer", None) is not None
    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    is_text_read = has_tokenizer and texts and not (sounds and is_encoder_decoder) and config.model_type != "vision-encoder-decoder"
    if is_text_read:
        keywords |= dict(text=texts, padding=True)
    if pictures:
        # One list of pictures for each text, unless there is one text or one picture for each.
        share = len(pictures) // max(len(texts), 1)
        nested = is_text_read and len(texts) > 1 and share > 1
        keywords["images"] = [pictures[at * share : (at + 1) * share] for at in range(len(texts))] if nested else pictures
    if sounds and not pictures and not has_tokenizer:
        tensors = processor(sounds, sampling_rate=rate, return_tensors="pt", padding=True)
    elif sounds and "audio" not in takes and "audios" not in takes:
        tensors = extractor(sounds, sampling_rate=rate, return_tensors="pt")
    else:
        if sounds:
            keywords["audio" if "audio" in takes else "audios"] = sounds
            keywords["sampling_rate"] = rate
        tensors = processor(**keywords)
    made = {name: value for name, value in dict(tensors).items() if isinstance(value, torch.Tensor)}
    if is_encoder_decoder and "decoder_input_ids" not in made and not is_text_read:
        rows = next(iter(made.values())).shape[0]
        part = getattr(config, "decoder", config)
        start = [config.decoder_start_token_id, getattr(part, "bos_token_id", None), 0]
        start = next(token for token in start if token is not None)
        tokenizer = getattr(processor, "tokenizer", None)
        ids = tokenizer(texts[0]).input_ids if texts and tokenizer is not None else []
        made["decoder_input_ids"] = torch.tensor([[start, *ids]] * rows)
    kept = {}
    for name, value in made.items():
        value = value.contiguous()
        kept[name] = value.to(torch.int64) if not value.is_floating_point() else value.to(torch.float32)
    return type(processor).__name__, list(texts), kept


def write(tensors, path):
    """Writes the tensors as safetensors under a temporary name, then renames it."""
    from safetensors.torch import save_file

    path = pathlib.Path(path)
    partial = path.with_name(f".part-{path.name}")
    save_file(tensors, partial)
    partial.rename(path)


def compare(frozen, tensors):
    """How each frozen tensor differs from the one of this release: name, relative L2 or a reason, first index that differs."""
    from safetensors.torch import load_file

    found = []
    for name, expected in sorted(load_file(frozen).items()):
        # Made by tfcheck for every variant.
        if name in ("position_ids", "labels") or name.startswith("decoder_"):
            continue
        own = tensors.get(name)
        if own is None:
            # A release whose model takes none makes none.
            if name not in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
                found.append((name, None, "this release makes none", None))
            continue
        if own.shape != expected.shape:
            found.append((name, None, f"shape {list(own.shape)} instead of {list(expected.shape)}", None))
            continue
        apart = own.double() - expected.double()
        index = torch.nonzero(apart)
        first = index[0].tolist() if len(index) else None
        relative = (apart.norm() / expected.double().norm().clamp(min=1e-300)).item()
        found.append((name, relative, None, first))
    for name in sorted(set(tensors) - set(load_file(frozen))):
        if not name.startswith("decoder_"):
            found.append((name, None, "the frozen inputs have none", None))
    return found
