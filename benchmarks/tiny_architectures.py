"""Tiny checkpoints of many architectures, built by configuration: random weights, real structure.

Sizes are chosen so that every linear's columns divide by 32 where the architecture lets them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.12,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
    "depth": 2,
    "num_heads": 2,
    "out_hidden_size": 64,
}
OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 128, "n_positions": 256}
STATE = {"state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": 32, "n_groups": 1, "num_heads": 4}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}


def text(config: str, **more: Any) -> Callable[[], Any]:
    """A configuration class by name, with the common sizes and some of its own."""

    def make() -> Any:
        import transformers

        return getattr(transformers, config)(**{**BASE, **more})

    return make


def wrapped(config: str, text_config: dict[str, Any], vision: dict[str, Any], **more: Any) -> Callable[[], Any]:
    """A vision-language configuration around a text one."""

    def make() -> Any:
        import transformers

        return getattr(transformers, config)(
            text_config={**BASE, **text_config}, vision_config={**VISION, **vision}, **more
        )

    return make


def falcon() -> Any:
    """Falcon derives the sizes of its heads, and refuses to be told."""
    import transformers

    own = {key: value for key, value in BASE.items() if key not in ("head_dim", "num_key_value_heads")}
    return transformers.FalconConfig(**own, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=128)


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "Llama": text("LlamaConfig"),
    "Llama-4": wrapped(
        "Llama4Config",
        {"intermediate_size_mlp": 128, **EXPERTS, "interleave_moe_layer_step": 2, "attn_temperature_tuning": False},
        {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64, "pixel_shuffle_ratio": 0.5},
    ),
    "Mistral": text("MistralConfig"),
    "Mistral-3": wrapped("Mistral3Config", {"model_type": "mistral"}, {"model_type": "pixtral", "head_dim": 16}),
    "Mixtral": text("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "Qwen2": text("Qwen2Config"),
    "Qwen2.5-VL": wrapped(
        "Qwen2_5_VLConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        {"fullatt_block_indexes": [1]},
    ),
    "Qwen3": text("Qwen3Config", tie_word_embeddings=True),
    "Qwen3-MoE": text("Qwen3MoeConfig", **EXPERTS),
    "Qwen3-VL": wrapped(
        "Qwen3VLConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "Qwen3-Next": text("Qwen3NextConfig", **EXPERTS, **DELTA, shared_expert_intermediate_size=32),
    "Qwen3.5": wrapped("Qwen3_5Config", {**DELTA}, {"num_position_embeddings": 16}),
    "Qwen3.5-MoE": wrapped(
        "Qwen3_5MoeConfig",
        {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
        {"num_position_embeddings": 16},
    ),
    "Gemma-2": text("Gemma2Config", query_pre_attn_scalar=16, sliding_window=8),
    "Gemma-3 text": text("Gemma3TextConfig", query_pre_attn_scalar=16, sliding_window=8),
    "Gemma-3 wrapper": wrapped(
        "Gemma3Config", {"query_pre_attn_scalar": 16, "sliding_window": 8}, {}, mm_tokens_per_image=4
    ),
    "Gemma-3n text": text(
        "Gemma3nTextConfig",
        vocab_size_per_layer_input=160,
        hidden_size_per_layer_input=32,
        num_kv_shared_layers=0,
        laurel_rank=32,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "Gemma-4 E": text(
        "Gemma4TextConfig",
        global_head_dim=16,
        vocab_size_per_layer_input=160,
        hidden_size_per_layer_input=32,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
    ),
    "Gemma-4 wrapper": wrapped(
        "Gemma4Config",
        {
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
        },
        {},
    ),
    "Phi-3": text("Phi3Config"),
    "gpt-oss": text(
        "GptOssConfig",
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
    ),
    "DeepSeek-V3": text("DeepseekV3Config", **EXPERTS, **MLA, **ROUTED, num_key_value_heads=4),
    "GLM-4": text("Glm4Config"),
    "GLM-4-MoE": text("Glm4MoeConfig", **EXPERTS, **ROUTED),
    "OLMo-2": text("Olmo2Config"),
    "Cohere": text("CohereConfig"),
    "Cohere-2": text("Cohere2Config", sliding_window=8),
    "StarCoder2": text("Starcoder2Config"),
    "SmolLM3": text("SmolLM3Config"),
    "LFM2": text("Lfm2Config", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "Falcon": falcon,
    "Falcon-H1": text(
        "FalconH1Config", mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1
    ),
    "GPT-NeoX": text("GPTNeoXConfig"),
    "GPT-2": text("GPT2Config", **OLD),
    "GPT-J": text("GPTJConfig", **OLD, rotary_dim=8),
    "GPT-Neo": text(
        "GPTNeoConfig", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8
    ),
    "OPT": text("OPTConfig", ffn_dim=128, word_embed_proj_dim=64),
    "BLOOM": text("BloomConfig", **OLD),
    "MPT": text("MptConfig", d_model=64, n_heads=4, n_layers=2),
    "Mamba": text("MambaConfig", **STATE),
    "Mamba-2": text("Mamba2Config", **{**STATE, "num_heads": 8, "head_dim": 16}),
    "RWKV": text("RwkvConfig", attention_hidden_size=64),
    "Jamba": text(
        "JambaConfig",
        **{
            **EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        use_mamba_kernels=False,
        mamba_dt_rank=32,
    ),
    "Granite": text("GraniteConfig"),
    "Granite-MoE": text("GraniteMoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "Granite-hybrid": text(
        "GraniteMoeHybridConfig",
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=16,
        shared_intermediate_size=128,
    ),
    "Nemotron": text("NemotronConfig"),
    "Exaone-4": text("Exaone4Config", sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "Phi": text("PhiConfig"),
    "StableLM": text("StableLmConfig"),
    "ERNIE-4.5": text("Ernie4_5Config"),
    "Seed-OSS": text("SeedOssConfig"),
    "OLMoE": text("OlmoeConfig", **EXPERTS),
    "BERT": text("BertConfig"),
    "T5": text("T5Config", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
}


def model_class(config: Any) -> Any:
    """The class whose name stands in such a checkpoint's `architectures`."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    named = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind) or auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(
        kind
    )
    if kind == "bert":
        named = "BertForMaskedLM"
    if kind == "t5":
        named = "T5ForConditionalGeneration"
    return getattr(transformers, named)


def make(name: str, folder: Path, *, seed: int = 0, plain: bool = False, **changes: Any) -> Path:
    """Write a tiny checkpoint in bfloat16, with norms in float32, a tensor that no class knows, and further files.

    Args:
        plain: without that tensor and those files. changes: of its configuration.
    """
    import torch
    from transformers.utils import logging

    from tests.tiny_models import make_tokenizer

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config = ARCHITECTURES[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)(config).to(torch.bfloat16)
        for key, parameter in model.named_parameters():
            if "norm" in key and parameter.dim() == 1 and key.endswith("weight"):
                torch.nn.init.normal_(parameter, 0.0 if "gemma" in config.model_type else 1.0, 0.1)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    if not plain:
        adorn(folder)
    return folder


def adorn(folder: Path) -> None:
    """What real folders hold besides: float32 norms beside bfloat16, a head for drafting, a licence, a processor."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    norms = {key: tensor.float() * 1.001 for key, tensor in tensors.items() if tensor.dim() == 1 and "norm" in key}
    extra = {"mtp.fc.weight": torch.ones(4, 4, dtype=torch.bfloat16)}
    save_file({**tensors, **norms, **extra}, path, metadata={"format": "pt"})
    (folder / "LICENSE").write_text("as it was\n")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}\n')
