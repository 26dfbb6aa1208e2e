"""The PyTorch reference: timm's Swin, transformers' BERT, six projections.

Parameter names are those of timm 1.x and transformers inside ``vit_model`` and
``text_transformer``; :mod:`hat_export.model.keys` translates the official checkpoint's names.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hat_export.spec import LEVEL_STAGES, LEVEL_SUFFIXES, ModelSpec

Levels = tuple[Tensor, Tensor, Tensor]


class HAT(nn.Module):
    """Hierarchical Alignment Transformers (Bin et al., ACM MM 2023, arXiv 2308.04343).

    Args:
        spec: The architecture.
        drop_path: Stochastic depth rate of the image encoder, for training only.
        dropout: Dropout of the text encoder, for training only.
    """

    def __init__(self, spec: ModelSpec, drop_path: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.vit_model = SwinTransformer(
            img_size=spec.image_size,
            patch_size=spec.patch_size,
            window_size=spec.window_size,
            embed_dim=spec.embed_dim,
            depths=spec.depths,
            num_heads=spec.image_heads,
            num_classes=0,
            global_pool="",
            drop_path_rate=drop_path,
        )
        # HAT's own LayerNorms on the stage outputs; the last stage uses Swin's final ``norm``.
        self.vit_model.norm_1 = nn.LayerNorm(spec.level_widths[0])
        self.vit_model.norm_2 = nn.LayerNorm(spec.level_widths[1])
        config = BertConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.text_dim,
            num_hidden_layers=spec.text_layers,
            num_attention_heads=spec.text_heads,
            intermediate_size=spec.text_hidden,
            hidden_act="gelu",
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=spec.text_positions,
            layer_norm_eps=1e-12,
        )
        # text_states hands over a boolean mask, which this implementation takes and eager doesn't.
        config._attn_implementation = "sdpa"
        self.text_transformer = BertModel(config, add_pooling_layer=False)
        for suffix, width in zip(LEVEL_SUFFIXES, spec.level_widths, strict=True):
            setattr(self, f"cross_modal_image_transform{suffix}", nn.Linear(width, spec.dim))
            setattr(self, f"cross_modal_text_transform{suffix}", nn.Linear(spec.text_dim, spec.dim))

    def image_stages(self, pixel_values: Tensor) -> Levels:
        """Normed Swin stage outputs, before the projections.

        Args:
            pixel_values: float [images, 3, H, W], preprocessed.

        Returns:
            Three tensors [images, regions, width], regions and width of the level.
        """
        swin = self.vit_model
        x = swin.patch_embed(pixel_values)
        norms = {
            stage: cast(nn.LayerNorm, norm)
            for stage, norm in zip(LEVEL_STAGES, (swin.norm_1, swin.norm_2, swin.norm), strict=True)
        }
        levels = []
        for stage, layer in enumerate(swin.layers):
            x = layer(x)  # timm 1.x merges patches at a stage's start: this is before the merging
            if stage in norms:
                levels.append(norms[stage](x.flatten(1, 2)))
        first, second, third = levels
        return first, second, third

    def text_states(self, input_ids: Tensor, attention_mask: Tensor) -> Levels:
        """Hidden states of the text encoder's level layers, before the projections.

        Args:
            input_ids: int64 [captions, words], padded with 0.
            attention_mask: [captions, words], nonzero on real words.

        Returns:
            Three tensors [captions, words, text_dim].
        """
        bert = self.text_transformer
        hidden = bert.embeddings(input_ids=input_ids)
        mask = attention_mask.to(torch.bool)[:, None, None, :]
        wanted = self.spec.text_level_layers
        states: dict[int, Tensor] = {}
        for index in range(max(wanted) + 1):
            hidden = bert.encoder.layer[index](hidden, attention_mask=mask)
            states[index] = hidden
        first, second, third = (states[layer] for layer in wanted)
        return first, second, third

    def encode_images(self, pixel_values: Tensor) -> Levels:
        """Region features per level: three tensors [images, regions, d], not normalised."""
        return self._project("image", self.image_stages(pixel_values))

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Levels:
        """Word features per level: three tensors [captions, words, d], not normalised."""
        return self._project("text", self.text_states(input_ids, attention_mask))

    def _project(self, side: str, states: Levels) -> Levels:
        first, second, third = (
            getattr(self, f"cross_modal_{side}_transform{suffix}")(state)
            for suffix, state in zip(LEVEL_SUFFIXES, states, strict=True)
        )
        return first, second, third
