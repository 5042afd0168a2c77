"""Small configurations of transformers' families, by one rule for all and a few exceptions."""

from __future__ import annotations

from typing import Any

#: What an attribute of this name becomes, whichever family has it.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "true_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size",), 48),
    "vocab_size": 99,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "image_size": 64,
    "num_labels": 5,
}

#: The same in models that have another size a stage.
SHALLOW = ("depths", "depth")

#: Latent attention, in which keys and values come from a small space.
_LATENT: dict[str, Any] = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_group": 2, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"]},
}
_LINEAR: dict[str, Any] = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
_WINDOWS: dict[str, Any] = {
    "embed_dim": 24,
    "window_size": 2,
    "num_layers": None,
    "num_heads": [1, 2, 4, 8],
    "depths": [2, 1, 1, 1],
}

#: What a family needs beside, or instead; None leaves the family's own value.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "axk1": _LATENT | {"head_dim": None},
    "axk2": _LATENT
    | {"head_dim": None, "index_topk": 6, "index_head_dim": 8, "index_n_heads": 2}
    | {"layer_types": ["indexed_attention"] * 2, "n_group": None, "topk_group": None},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    **dict.fromkeys(("convnext", "convnextv2"), {"num_stages": None, "num_hidden_layers": None}),
    "deepseek_v2": _LATENT | {"head_dim": None, "first_k_dense_replace": 1},
    "deepseek_v3": _LATENT | {"head_dim": None, "first_k_dense_replace": 1},
    "deit": {"patch_size": 8},
    "donut-swin": _WINDOWS,
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"bos_token_id": 1, "eos_token_id": 2},
    "glm": {"eos_token_id": 2},
    "glm4": {"eos_token_id": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "hiera": {"image_size": [64, 64], "num_heads": [1, 2, 4, 8], "embed_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "minicpm3": _LATENT | {"head_dim": None},
    "mistral4": _LATENT | {"head_dim": None, "first_k_dense_replace": 1},
    "mobilebert": {"intra_bottleneck_size": 32},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    "qwen3_5_text": _LINEAR,
    "qwen3_5": {"text_config": _LINEAR},
    "qwen3_next": _LINEAR,
    "reformer": {
        **{"axial_pos_shape": [4, 3], "axial_pos_embds_dim": [8, 24], "attention_head_size": 8},
        **{"attn_layers": ["local", "lsh"], "feed_forward_size": 48, "num_buckets": 2},
        **{"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "hash_seed": 0},
    },
    "siglip2": {"vision_config": {"patch_size": 8, "num_patches": 16}},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 64},
        "num_hidden_layers": 4,
        **{"attention_head_dim": 16, "num_key_value_heads": 4, "mamba_dt_rank": 4},
    },
    "zamba2": {
        **{"layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1]},
        **{"n_mamba_heads": 4, "mamba_headdim": 16, "mamba_d_state": 8, "adapter_rank": 4},
        **{"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
        **{"kv_channels": 8, "num_query_groups": 4, "chunk_size": 8},
    },
}


def small(family: str) -> Any:
    """A configuration of a family with small sizes."""
    import transformers

    kind = type(transformers.AutoConfig.for_model(family))
    options = _merged(_fitting(kind()), EXCEPTIONS.get(family, {}))
    config = kind(**options)
    config.num_labels = 5
    return config


def _merged(options: dict[str, Any], exceptions: dict[str, Any]) -> dict[str, Any]:
    merged = dict(options)
    for name, value in exceptions.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merged(merged.get(name, {}), value)
        else:
            merged[name] = value
    return merged


def _fitting(config: Any) -> dict[str, Any]:
    """The attributes that a configuration has among those above, and those of its parts."""
    found: dict[str, Any] = {}
    for name in {*config.to_dict(), *config.attribute_map}:
        value = getattr(config, name, None)
        if name in SHALLOW and isinstance(value, (list, tuple)):
            found[name] = [1] * len(value)
        elif name in SMALL and not isinstance(value, (list, tuple)):
            found[config.attribute_map.get(name, name)] = SMALL[name]
        elif hasattr(value, "to_dict") and hasattr(value, "attribute_map"):
            found[name] = _fitting(value)
    return found
