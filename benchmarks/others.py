"""Captioners of the transformers package, of the sizes people use, with random weights, for generation.py."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from showtell import Features, ImageSpec


def blip_base() -> nn.Module:
    """Salesforce/blip-image-captioning-base: ViT-B/16 at 384, BERT-base with cross-attention."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    config = BlipConfig(
        text_config={"num_attention_heads": 12}, vision_config={"image_size": 384, "num_attention_heads": 12}
    )
    return BlipForConditionalGeneration(config).eval()


def vit_gpt2() -> nn.Module:
    """nlpconnect/vit-gpt2-image-captioning: ViT-B/16 at 224, GPT-2 with cross-attention."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    decoder = GPT2Config(add_cross_attention=True, is_decoder=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), decoder)
    model = VisionEncoderDecoderModel(config).eval()
    end = decoder.eos_token_id
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, end)
        setattr(model.config, name, end)
    return model


def caption(model: Any, pixels: Tensor, *, beams: int, words: int) -> Tensor:
    """Exactly `words` new tokens for each image: (N, 1 + words)."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.inference_mode():
        tokens = model.generate(
            pixel_values=pixels, num_beams=beams, do_sample=False, min_new_tokens=words, max_new_tokens=words
        )
    assert tokens.shape == (len(pixels), 1 + words)  # what begins a caption, and the words
    return tokens


class ViTEncoder(nn.Module):
    """A transformers ViT as a showtell encoder: the class token, and the patches as grid."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.feature_dim = vit.config.hidden_size
        self.image_spec = ImageSpec(vit.config.image_size, vit.config.image_size)

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Features:
        tokens = self.vit(2 * images - 1).last_hidden_state
        return Features(tokens[:, 0], tokens)
