"""How fast captions come: encoder, search and end to end, beside transformers and beside one photo at a time.

python benchmarks/generation.py [--quick] [--device cuda] [--json out.json]

Everything is measured in one run, and what is compared takes turns. Weights are random and every system says exactly
20 words. Times are from decoded photos in memory unless a row says that it begins at the file.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import (
    against_floor,
    clock,
    in_turn,
    machine,
    machine_speed,
    median,
    operations,
    peak_memory,
    publish,
    ratio,
    seconds,
    size_of,
    use_cpu_time,
    wait,
    weight_bytes,
)
from systems import (
    BEAM_3,
    BEAM_5,
    GREEDY,
    NO_END,
    START,
    VOCABULARY,
    WORDS,
    System,
    bundled,
    resnet,
    resnet_captioner,
)

from showtell import Captioner, Features, __version__
from showtell.decoders import AttentionLSTMDecoder, LSTMDecoder, TransformerDecoder
from showtell.images import load_images
from showtell.protocols import move, slice_features
from showtell.rows import repeat_rows, select_rows

EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "images").glob("*.jpg"))
A = "a: end to end over encoder"
PARTS = ["count", "a", "b", "c", "d", "gpu"]


def say(text: str) -> None:
    print(f"{time.perf_counter() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


STARTED = time.perf_counter()


# --- count first ------------------------------------------------------------------------------------------------------


def counted(
    system: System, batch: int, beams: int, rounds: int, speed: dict[str, float], encoder_s: float
) -> dict[str, Any]:
    """Operations and bytes of encoder, prepare and step; the floor at the machine's own speed; the gap to it.

    `encoder_s`: what a batch of as many photos takes the encoder.
    """
    pixels = torch.rand(batch, 3, 224, 224, device=system.device)
    one, decoder = system.encode(pixels[:1]), system.decoder
    features = Features(*(None if t is None else t.expand(batch, *t.shape[1:]).contiguous() for t in one))
    rows = batch * beams
    tokens = torch.full((rows,), START, device=system.device)
    with torch.inference_mode():
        memory = decoder.prepare(features)
        state = repeat_rows(decoder.initial_state(memory, WORDS), beams)
        calls: dict[str, Callable[[], Any]] = {
            "prepare": lambda: decoder.prepare(features),
            "step": lambda: decoder.step(tokens, dict(state), memory),
        }
        took = in_turn(calls, rounds, system.device)
        spent = {"encoder": encoder_s} | {name: median(values) for name, values in took.items()}
        ops = {name: operations(call) for name, call in calls.items()}
        ops["encoder"] = batch * operations(lambda: system.encode(pixels[:1]))
    element = next(decoder.parameters()).element_size()
    inputs = {name: sum(t.numel() for t in bag.values()) * element for name, bag in (("s", state), ("m", memory))}
    given = sum(t.numel() for t in (features.pooled, features.grid) if t is not None) * element
    bytes_read = {  # weights once, what goes in and what comes out; nothing in between
        "encoder": weight_bytes(system.encoder) + pixels.numel() * element + given,
        "prepare": given + inputs["m"],
        "step": weight_bytes(decoder, without=("embedding", "words.embedding", "projection", "keys", "start"))
        + 2 * inputs["s"]
        + inputs["m"]
        + rows * decoder.vocab_size * element,
    }
    return {n: against_floor(ops[n], bytes_read[n], spent[n], speed) for n in spent}


# --- (a) what the words cost beyond the encoder -----------------------------------------------------------------------


def beyond_the_encoder(system: System, batch: int, rounds: int) -> dict[str, Any]:
    pixels = torch.rand(batch, 3, 224, 224, device=system.device)
    system.caption(pixels[:4], BEAM_3)
    took = in_turn(
        {
            "encoder": lambda: system.encode(pixels),
            "greedy": lambda: system.caption(pixels, GREEDY),
            "beam_3": lambda: system.caption(pixels, BEAM_3),
        },
        rounds,
        system.device,
        warm=rounds > 1,
    )
    return {
        "batch": batch,
        **{f"{name}_s": round(median(values), 3) for name, values in took.items()},
        "greedy_over_encoder": ratio(took, "greedy", "encoder"),
        "beam_3_over_encoder": ratio(took, "beam_3", "encoder"),
    }


# --- (b) beside transformers ------------------------------------------------------------------------------------------


def beside_transformers(device: torch.device, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Images a second, beam 3; a like-for-like pair shares one ViT, and its decoders have GPT-2's size."""
    import others

    blip, vit_gpt2 = others.blip_base().to(device), others.vit_gpt2().to(device)
    vit = others.ViTEncoder(vit_gpt2.encoder)
    gpt2 = TransformerDecoder(50_257, 768, hidden_dim=768, layers=12, heads=12, feedforward_dim=3072)
    theirs = {"transformers: BLIP-base": (blip, 384), "transformers: ViT-GPT2": (vit_gpt2, 224)}
    ours = {
        "showtell: ResNet-50, attention LSTM": resnet(device, "attention-lstm.v1"),
        "showtell: bundled captioner": bundled(device),
        "showtell: the same ViT, transformer of GPT-2's size": System(vit, gpt2, device),
        "showtell: the same ViT, attention LSTM": System(vit, AttentionLSTMDecoder(VOCABULARY, 768), device),
    }
    rows: dict[str, Any] = {name: size_of(model) for name, (model, _) in theirs.items()}
    rows |= {name: size_of(system.encoder, system.decoder) for name, system in ours.items()}
    for batch in batches:
        calls: dict[str, Any] = {}
        for name, (model, size) in theirs.items():
            pixels = torch.rand(batch, 3, size, size, device=device)
            calls[name] = lambda m=model, p=pixels: others.caption(m, p, beams=3, words=WORDS)
        small = torch.rand(batch, 3, 224, 224, device=device)
        for name, system in ours.items():
            calls[name] = lambda s=system, p=small: s.caption(p, BEAM_3)
        took = in_turn(calls, rounds, device, warm=batch == batches[0])
        for name, values in took.items():
            rows[name][f"images_per_s_batch_{batch}"] = round(batch / median(values), 3)
            rows[name][f"peak_mb_batch_{batch}"] = peak_memory(calls[name], device) if batch == batches[0] else None
        for name in calls:
            for other in theirs:
                if name not in theirs:
                    rows[name][f"times {other.split()[1]} at batch {batch}"] = ratio(took, other, name)
        say(f"beside transformers, batch {batch}")
    return rows


# --- (c) beam search beside one photo at a time -----------------------------------------------------------------------


def one_photo_at_a_time(decoder: Any, features: Features, size: int) -> list[list[int]]:
    """The habit of the tutorials: a loop over photos, the K beams of one photo as one batch through the step."""
    captions, no_end = [], torch.tensor(NO_END, device=features.pooled.device)
    for image in range(len(features.pooled)):
        memory = decoder.prepare(slice_features(features, image, image + 1))
        state = repeat_rows(decoder.initial_state(memory, WORDS), size)
        sequences = torch.full((size, 1), START, device=features.pooled.device)
        totals = torch.zeros(size, 1, device=features.pooled.device)
        for length in range(WORDS):
            logits, state = decoder.step(sequences[:, -1], state, memory)
            log_probs = logits.log_softmax(dim=1)
            log_probs.index_fill_(1, no_end, -torch.inf)
            sums = totals + log_probs
            best, place = (sums[0] if length == 0 else sums.flatten()).topk(size)
            rows, words = place // decoder.vocab_size, place % decoder.vocab_size
            sequences = torch.cat([sequences[rows], words.unsqueeze(1)], dim=1)
            state, totals = select_rows(state, rows), best.unsqueeze(1)
        captions.append(sequences[0, 1:].tolist())
    return captions


def search_alone(system: System, photos: int, rounds: int, dim: int = 2048) -> dict[str, Any]:
    features = Features(
        torch.randn(photos, dim, device=system.device), torch.randn(photos, 49, dim, device=system.device)
    )
    found: dict[str, list[list[int]]] = {}

    def together() -> None:
        found["together"] = system.search(features, BEAM_5)[:, 0].tolist()

    def alone() -> None:
        with torch.inference_mode():
            found["alone"] = one_photo_at_a_time(system.decoder, features, 5)

    took = in_turn({"alone": alone, "together": together}, rounds, system.device, warm=False)
    same = sum(a == b for a, b in zip(found["alone"], found["together"], strict=True))
    return {
        "photos": photos,
        "beams": 5,
        "one_at_a_time_s": round(median(took["alone"]), 3),
        "batched_s": round(median(took["together"]), 3),
        "times_as_fast": ratio(took, "alone", "together"),
        "same_best_caption": same,
    }


# --- (d) the parts ----------------------------------------------------------------------------------------------------


def parts(system: System, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for batch in batches:
        pixels = torch.rand(batch, 3, 224, 224, device=system.device)
        features = system.encode(pixels)
        encoder = median(in_turn({"e": lambda p=pixels: system.encode(p)}, rounds, system.device, warm=False)["e"])
        for name, search in (("greedy", GREEDY), ("beam 3", BEAM_3), ("beam 5", BEAM_5)):
            took = in_turn(
                {"s": lambda f=features, s=search: system.search(f, s)},
                rounds,
                system.device,
                warm=batch == 1 or system.device.type == "cuda",  # where the first of each size waits for memory
            )
            spent = median(took["s"])
            rows.append(
                {
                    "batch": batch,
                    "search": name,
                    "encoder_images_per_s": round(batch / encoder, 2),
                    "search_images_per_s": round(batch / spent, 1),
                    "search_tokens_per_s": round(batch * WORDS / spent),
                    "images_per_s": round(batch / (encoder + spent), 2),
                    "over_encoder": round((encoder + spent) / encoder, 3),
                }
            )
        rows[-1]["peak_mb"] = peak_memory(lambda p=pixels: system.caption(p, BEAM_5), system.device)
        say(f"parts, batch {batch}")
    return rows


def from_files(system: System, photos: int) -> dict[str, Any]:
    """Photo decoding alone, one photo's latency from file to words, and many photos with decoding in threads."""
    spec, files = system.encoder.image_spec, [EXAMPLES[n % len(EXAMPLES)] for n in range(photos)]
    decoding = seconds(lambda: load_images(files, spec), torch.device("cpu"))
    result: dict[str, Any] = {"photos_decoded_per_s": round(photos / decoding, 1)}
    for name, search in (("greedy", GREEDY), ("beam_3", BEAM_3)):
        took = []
        for file in files[: max(8, photos // 2)]:
            start = clock()
            system.caption(move(load_images([file], spec), system.device), search)
            wait(system.device)
            took.append(1000 * (clock() - start))
        cuts = statistics.quantiles(took, n=20, method="inclusive")
        result[f"{name}_batch_1_ms"] = {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}
    return result


def bulk(device: torch.device, photos: int, rounds: int) -> dict[str, Any]:
    """The bundled captioner over many files: `caption_iter` beside batch after batch without overlap."""
    captioner, files = Captioner.default(device=device), [EXAMPLES[n % len(EXAMPLES)] for n in range(photos)]
    calls = {f"caption_iter, {n} decoding threads": lambda n=n: list(captioner.caption_iter(files, workers=n))
             for n in (1, 2, 4)}  # fmt: skip
    took = in_turn({"caption": lambda: captioner.caption(files), **calls}, rounds, device)
    return {name: {"images_per_s": round(photos / median(values), 1)} for name, values in took.items()}


def folded(device: torch.device, rounds: int) -> dict[str, Any]:
    """The encoder as it was saved, and as `for_inference` makes it."""
    result = {}
    for name, captioner in (("bundled captioner", Captioner.default()), ("ResNet-50, LSTM", resnet_captioner())):
        eager, fast = captioner.to(device), captioner.for_inference()
        for batch in (1, 32):
            pixels = torch.rand(batch, 3, 224, 224, device=device)
            calls = {
                "eager": lambda p=pixels, c=eager: c.encode_pixels(p),
                "fast": lambda p=pixels, c=fast: c.encode_pixels(p),
            }
            took = in_turn(calls, rounds, device)
            result[f"{name}, batch {batch}"] = {
                **{f"{kind}_ms": round(1000 * median(values), 1) for kind, values in took.items()},
                "times_as_fast": ratio(took, "eager", "fast"),
            }
    return result


# --- GPU only ---------------------------------------------------------------------------------------------------------


def on_gpu(device: torch.device, rounds: int) -> dict[str, Any]:
    """bf16 and channels_last at batch 256; photos from JPEG bytes decoded on the GPU; training steps."""
    from torch.nn import functional as F
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2.functional import resize

    half = resnet(device, "lstm.v1", torch.bfloat16)
    result: dict[str, Any] = {"bf16, channels_last": beyond_the_encoder(half, 256, rounds)}
    files = [torch.frombuffer(bytearray(f.read_bytes()), dtype=torch.uint8) for f in EXAMPLES] * 64

    def from_bytes() -> None:
        photos = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
        half.caption(torch.stack([resize(p, [224, 224], antialias=True) for p in photos]).float().div_(255), BEAM_3)

    took = in_turn({"bytes": from_bytes}, rounds, device)
    result["from JPEG bytes, images_per_s"] = round(len(files) / median(took["bytes"]), 1)
    decoder = LSTMDecoder(VOCABULARY, 2048).to(device)
    optimiser = torch.optim.AdamW(decoder.parameters(), fused=True)
    features = Features(torch.randn(128, 2048, device=device))
    tokens = torch.randint(4, VOCABULARY, (640, WORDS + 1), device=device)

    def train() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = decoder(tokens[:, :-1], decoder.prepare(features)).logits
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()

    took = in_turn({"train": train}, 5 * rounds, device)
    result["training on cached features, captions_per_s"] = round(640 / median(took["train"]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; under 3 minutes on 2 cores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="one thread, processor time: on a busy machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batches", type=int, nargs="+", help="of b (default: 1 16; 1 4 with --quick)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu_time:
        use_cpu_time()
    torch.manual_seed(0)
    device = torch.device(options.device)
    gpu, quick = device.type == "cuda", options.quick
    few = 1 if quick else 0  # rounds; 0: each part's own number
    if gpu:  # TF32 for matrix products as for convolutions, where it is torch's default: one speed is the floor of both
        torch.set_float32_matmul_precision("high")
    versions = {"showtell": __version__, "torch": torch.__version__, "python": platform.python_version()}
    result: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "quick": quick,
        "clock": "processor time" if options.cpu_time else "wall",
        "machine": machine(device),
    }
    lstm, attention = resnet(device, "lstm.v1"), resnet(device, "attention-lstm.v1")
    if {"a", "count"} & set(options.only):
        result[A] = beyond_the_encoder(lstm, 32, few or 7)
        say("a")
    if "count" in options.only:
        speed = machine_speed(device, torch.float32)
        result["machine"] |= speed
        encoder_s, rounds = result[A]["encoder_s"], few or 5
        result["count: batch 32, beam 3"] = {
            "ResNet-50, LSTM": counted(lstm, 32, 3, rounds, speed, encoder_s),
            "ResNet-50, attention LSTM": counted(attention, 32, 3, rounds, speed, encoder_s),
        }
        say("counted")
    if "c" in options.only:
        rounds = few or 5
        result["c: beam search alone"] = {
            "LSTM": search_alone(lstm, 64, rounds),
            "attention LSTM": search_alone(attention, 64, rounds),
        }
        say("c")
    if "d" in options.only:
        batches = [1, 16, 64, 256] if gpu else [1, 16, 64]
        result["d: parts"] = {"ResNet-50, LSTM": parts(lstm, batches, few or 3)}
        if not quick:
            result["d: parts"]["ResNet-50, attention LSTM"] = parts(attention, batches, 3)
        count = 32 if quick else 128
        result["d: from files"] = {
            "photos": "examples/images",
            "ResNet-50, LSTM": {**size_of(lstm.encoder, lstm.decoder), **from_files(lstm, count)},
            "bundled captioner": from_files(bundled(device), count),
        }
        if not options.cpu_time:  # its threads' work would count as its time
            result["d: from files"]["bundled captioner, many files"] = bulk(device, 64 if quick else 256, few or 3)
        say("files")
        result["d: for_inference over eager, encoder"] = folded(device, few or 7)
        say("for_inference")
    if gpu and "gpu" in options.only:
        result["gpu"] = on_gpu(device, 5)
    if "b" in options.only:
        import transformers

        versions["transformers"] = transformers.__version__
        del lstm, attention
        result["b: beside transformers, beam 3"] = beside_transformers(
            device, options.batches or ((1, 4) if quick else (1, 16)), few or 3
        )
    result["versions"] = versions
    result["took_s"] = round(time.perf_counter() - STARTED)
    publish(result, options.json)


if __name__ == "__main__":
    main()
