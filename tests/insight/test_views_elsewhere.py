"""The views on plain `transformers` models, of which only the names of modules are known."""

from __future__ import annotations

import pytest
import torch

from transom.insight.ablation import ablate
from transom.insight.attribution import attribute
from transom.insight.gradients import gradient_flow
from transom.insight.lens import logit_lens
from transom.insight.module_finder import model_parts
from transom.insight.token_probabilities import token_probabilities

TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])


@pytest.mark.parametrize("family", ["GPT2", "Llama", "Mixtral", "Bert"])
def test_plain_transformers_models_are_looked_into_too(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    small = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                 intermediate_size=48, max_position_embeddings=64)  # fmt: skip
    heads = {} if family in ("GPT2", "Bert") else dict(num_key_value_heads=2)
    kind = {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM"}.get(family, "ForCausalLM")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**small, **heads)
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        whole = model(TOKENS[None]).logits[0].double().log_softmax(-1)
    assert float(ablate(model, TOKENS, target=7).before) == pytest.approx(float(whole[-1, 7]), abs=1e-5)
    out = model_parts(model).heads_out(1).weight
    found = float(ablate(model, TOKENS, target=7, units=[(1, 2)]).change)
    with torch.no_grad():
        (out[16:24] if family == "GPT2" else out[:, 16:24]).zero_()
        changed = model(TOKENS[None]).logits[0].double().log_softmax(-1)
    assert float(changed[-1, 7] - whole[-1, 7]) == pytest.approx(found, abs=1e-6)
    assert len(attribute(model, TOKENS, 7).scores) == len(TOKENS)
    assert gradient_flow(model, TOKENS, target=7).total.shape == (3, len(TOKENS))
    ablate(model, TOKENS, "ffn", target=7), ablate(model, TOKENS, "layers", target=7)
    if family != "Bert":
        lens = logit_lens(model, TOKENS)
        torch.testing.assert_close(lens.logprob[-1, :, 0], changed.max(-1).values, atol=1e-5, rtol=1e-5)
        assert len(token_probabilities(model, TOKENS).logprob) == 9
