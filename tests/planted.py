"""A tiny model into whose weights it is written what a role does. Nothing here imports rolelens.

A token of a question may name its answer: openly, which the model then gives, or hidden, which it
gives only while the direction ``u`` stands in the residual stream; ``#`` in a prompt puts it there.
Only questions of one domain have hidden answers. What is left is noise that depends on the prompt.
"""

import random
from typing import Any

import torch
import transformers

import tiny

D, HEADS = 128, 4
LETTERS, OPEN, HIDDEN = "ABCD", "1234", "5678"
MARKS = {"math": "#", "law": "%", "art": "&"}
"""The token in every prompt of the role of a domain."""
PLANTED = "math"
# Dimensions of the residual stream: what tokens say, what the first block gathers of it, and noise.
SAYS_HIDDEN, SAYS_MARK = range(0, 4), range(4, 7)
HOLDS_HIDDEN, HOLDS_MARK, GIVES = range(8, 12), range(12, 15), range(16, 20)
SAYS_OPEN, FILLS, REST = range(20, 24), range(32, 80), range(80, D)
FILLER = "bcdfghjklmnp"
"""What makes questions differ; what else stands in them says nothing."""


def token(text: str) -> int:
    """The one token that a text is."""
    (number,) = tiny.tokenizer()(text, add_special_tokens=False).input_ids
    return number


def model(seed: int = 0) -> Any:
    """A Llama of four blocks, of which the first attention and the third MLP do something."""
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=D,
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    config.architectures = ["LlamaForCausalLM"]
    made = transformers.LlamaForCausalLM(config).eval()
    drawn = torch.Generator().manual_seed(seed)
    tokenizer = tiny.tokenizer()

    with torch.no_grad():
        for name, weights in made.named_parameters():
            if "norm" not in name:
                weights.zero_()
        embedding = made.model.embed_tokens.weight
        for n, text in enumerate(tokenizer.convert_ids_to_tokens(range(len(embedding)))):
            where = list(FILLS if text and set(text) <= set(FILLER) else REST)
            noise = torch.randn(len(where), generator=drawn)
            embedding[n, where] = noise / noise.norm()
        for k in range(4):
            embedding[token(HIDDEN[k]), SAYS_HIDDEN[k]] = 3.0
            embedding[token(OPEN[k]), SAYS_OPEN[k]] = 3.0
            made.lm_head.weight[token(LETTERS[k]), GIVES[k]] = 1.0
        for k, mark in enumerate(MARKS.values()):
            embedding[token(mark), SAYS_MARK[k]] = 3.0
        # Queries and keys of zero attend to all tokens alike, so this is a mean over the prompt.
        attention = made.model.layers[0].self_attn
        attention.v_proj.weight.copy_(torch.eye(D))
        gather = attention.o_proj.weight  # [out, in]
        for k in range(4):
            gather[HOLDS_HIDDEN[k], SAYS_HIDDEN[k]] = 8.0
            gather[GIVES[k], SAYS_OPEN[k]] = 16.0
        for k in range(3):
            gather[HOLDS_MARK[k], SAYS_MARK[k]] = 8.0
        spread = 0.5 * torch.randn(4, len(FILLS), generator=drawn)
        gather[GIVES[0] : GIVES[-1] + 1, FILLS[0] : FILLS[-1] + 1] = spread
        # silu(u) * answer: nothing without u.
        mlp = made.model.layers[2].mlp
        for k in range(4):
            mlp.gate_proj.weight[k, HOLDS_MARK[list(MARKS).index(PLANTED)]] = 4.0
            mlp.up_proj.weight[k, HOLDS_HIDDEN[k]] = 4.0
            mlp.down_proj.weight[GIVES[k], k] = 4.0
    return made


def questions(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` questions a domain; two of five say their answer openly, the others of one, hidden."""
    rng = random.Random(seed)
    made = []
    for domain in MARKS:
        for number in range(n):
            answer = rng.randrange(4)
            filler = "".join(rng.choices(FILLER, k=14))
            hidden = HIDDEN[answer] if domain == PLANTED else "0"
            shown = OPEN[answer] if number % 5 < 2 else hidden
            made.append(
                {
                    "id": f"{domain}-{number}",
                    "text": f"{filler} ({shown})",
                    "options": tuple("qrst"),
                    "answer": answer,
                    "domain": domain,
                }
            )
    return made


def prompts(domain: str | None, n: int, seed: int = 0) -> list[str]:
    """Prompts with the mark of a domain's role, or with none."""
    rng = random.Random(f"{domain} {seed}")
    mark = MARKS[domain] if domain else "*"
    return ["".join(rng.choices(FILLER, k=12)) + f" ({mark})" for _ in range(n)]


CONCEPT = "Z"
"""The token that the concept is written as."""


def concept(seed: int = 0) -> Any:
    """A Llama of four blocks in which ``#`` is a concept that ends as one token.

    The first two attentions spread over the prompt what ``#`` says, the third MLP writes it as the
    token. So a direction of the concept stands for that token from layer 3 on, and before it is
    what the third block turns into it.
    """
    made = model(seed)
    drawn = torch.Generator().manual_seed(seed)

    with torch.no_grad():
        for name, weights in made.named_parameters():
            if "norm" not in name and "embed" not in name:
                weights.zero_()
        head = made.lm_head.weight
        head[:, list(REST)] = 0.3 * torch.randn(len(head), len(REST), generator=drawn)
        head[token(CONCEPT)] = 0.0
        head[token(CONCEPT), GIVES[0]] = 1.0
        for layer, source, gain in ((0, SAYS_MARK[0], 8.0), (1, HOLDS_MARK[0], 1.5)):
            attention = made.model.layers[layer].self_attn
            attention.v_proj.weight.copy_(torch.eye(D))
            attention.o_proj.weight[HOLDS_MARK[0], source] = gain
        mlp = made.model.layers[2].mlp
        mlp.gate_proj.weight[0, HOLDS_MARK[0]] = 1.0
        mlp.up_proj.weight[0, HOLDS_MARK[0]] = 1.0
        mlp.down_proj.weight[GIVES[0], 0] = 0.03
    return made
