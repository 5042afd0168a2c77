"""Models that the project has never seen: every norm equal to autograd's, and no fallback."""

import pytest
import torch
from torch import nn

import gradood
from tests.gradients.oracle import assert_as_promised, randomise

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TORCHVISION = {
    "resnet18": {},
    "densenet121": {},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "convnext_tiny": {},
    "regnet_y_400mf": {},
    "swin_t": {},
    "swin_v2_t": {},
    "vit_b_16": {"image_size": 32},
}
TIMM = {
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {}),
    "vit_tiny_patch16_224": (224, {"depth": 2}),
    "beit_base_patch16_224": (224, {"depth": 2, "embed_dim": 48, "num_heads": 4}),
    "mixer_s32_224": (224, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "levit_128s": (224, {}),
    "resnetv2_50": (64, {}),  # weight standardisation
    "xcit_nano_12_p16_224": (64, {}),
    "swinv2_cr_tiny_224": (224, {"depths": (1, 1, 1, 1)}),
    "coatnet_nano_rw_224": (224, {}),
}


def small_config(config):
    return config(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=5,
    )


def hf_vit():
    config = small_config(transformers.ViTConfig)
    config.image_size, config.patch_size = 32, 8
    return transformers.ViTForImageClassification(config), torch.randn(2, 3, 32, 32)


def hf_bert():
    config = small_config(transformers.BertConfig)
    return transformers.BertForSequenceClassification(config), torch.randint(1, 99, (2, 11))


def hf_distilbert():
    config = transformers.DistilBertConfig(
        dim=48, hidden_dim=64, n_layers=2, n_heads=4, num_labels=5
    )
    return transformers.DistilBertForSequenceClassification(config), torch.randint(1, 99, (2, 11))


def hf_gpt2():
    config = transformers.GPT2Config(
        vocab_size=99, n_embd=48, n_layer=2, n_head=4, num_labels=5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config), torch.randint(1, 99, (2, 11))


def ended(length, end):
    """Tokens of texts that end with ``end``, and have it nowhere else."""
    x = torch.randint(3, 99, (2, length))
    x[:, -1] = end
    return x


def hf_bart():
    config = transformers.BartConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_labels=5,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.BartForSequenceClassification(config), ended(11, 2)


def hf_t5():
    config = transformers.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, num_labels=5,
        eos_token_id=1, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForSequenceClassification(config), ended(11, 1)


def hf_deberta():
    config = small_config(transformers.DebertaConfig)
    config.relative_attention, config.pos_att_type = True, ["c2p", "p2c"]
    config.max_relative_positions = 16
    return transformers.DebertaForSequenceClassification(config), torch.randint(1, 99, (2, 11))


def hf_deberta_v2():
    config = small_config(transformers.DebertaV2Config)
    config.relative_attention, config.pos_att_type = True, ["c2p", "p2c"]
    config.position_buckets, config.share_att_key = 8, True
    config.norm_rel_ebd = "layer_norm"
    return transformers.DebertaV2ForSequenceClassification(config), torch.randint(1, 99, (2, 11))


def hf_mixtral():
    config = transformers.MixtralConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_labels=5,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
    )  # fmt: skip
    model = transformers.MixtralForSequenceClassification(config)
    model.set_experts_implementation("batched_mm")
    return model, torch.randint(1, 99, (2, 11))


def torch_encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.encoder(x.transpose(0, 1)).mean(0))

    return Classifier(), torch.randn(2, 7, 16)


def small_swin():
    """Windows in the batch dimension, shifted in every second block."""
    model = torchvision.models.SwinTransformer(
        [4, 4], 24, depths=[2, 2], num_heads=[2, 4], window_size=[7, 7], num_classes=5
    )
    return model, torch.randn(2, 3, 56, 56)


FUNCTIONS = (
    hf_vit, hf_bert, hf_distilbert, hf_gpt2, hf_bart, hf_t5, hf_deberta, hf_deberta_v2, hf_mixtral,
    torch_encoder, small_swin,
)  # fmt: skip
OTHERS = {f.__name__: f for f in FUNCTIONS}


def build(name):
    torch.manual_seed(0)
    if name in TORCHVISION:
        model = getattr(torchvision.models, name)(num_classes=5, **TORCHVISION[name])
        x = torch.randn(2, 3, *(2 * (32 if name == "vit_b_16" else 64,)))
    elif name in TIMM:
        size, options = TIMM[name]
        model = timm.create_model(name, num_classes=5, **options)
        x = torch.randn(2, 3, size, size)
    else:
        model, x = OTHERS[name]()
    return randomise(model).eval(), x


#: Seconds each, and together two minutes; every family keeps a member that is quick.
QUICK = {
    *("resnet18", "mobilenet_v3_small", "convnext_atto"),
    *("vit_tiny_patch16_224", "beit_base_patch16_224"),
    *OTHERS,
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in (*TORCHVISION, *TIMM, *OTHERS)
    ],
)
def test_norms_of_known_models(name):
    model, x = build(name)
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    assert_as_promised(gradood.gradient_norms(model, x), model, x)
    explanation = gradood.explain(model, x)
    assert not explanation.fallbacks, str(explanation)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "convnext_atto", "hf_vit", "hf_bert"]
)
def test_norms_of_known_models_in_float32(name):
    model, x = build(name)
    assert_as_promised(gradood.gradient_norms(model, x), model, x)
