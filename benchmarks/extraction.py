"""Extraction of role vectors, beside the steering-vectors library."""

import statistics

import torch
from measure import flops, timed
from transformers import AutoModelForCausalLM, AutoTokenizer

import rolelens as rl
from rolelens import embedded

LAYERS = list(range(24))
N_ROLES, N_PROMPTS, REPEATS = 8, 16, 3


def main() -> None:
    """Check that both give the same directions, then print the median ratios."""
    from steering_vectors import train_steering_vector

    lens, prompts = rl.load("smollm2"), rl.load_roles()
    base = list(rl.load_base())[:N_PROMPTS]
    roles = {name: list(prompts[name])[:N_PROMPTS] for name in list(prompts)[:N_ROLES]}
    model = AutoModelForCausalLM.from_pretrained(embedded.folder()).eval()
    # TransformerLens sets its own to put a BOS before every text, which the template has already.
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder())

    def ours() -> torch.Tensor:
        return rl.role_vectors(lens, roles, base, layers=LAYERS, positions=[-1]).directions[:, :, 0]

    def theirs(size: int) -> torch.Tensor:
        rendered = {
            name: sorted(map(lens.chat.render, prompts), key=len)
            for name, prompts in {**roles, "base": base}.items()
        }
        out = torch.zeros(len(roles), len(LAYERS), lens.d_model)
        for n, role in enumerate(roles):
            pairs = list(zip(rendered[role], rendered["base"], strict=True))
            vector = train_steering_vector(
                model, tokenizer, pairs, layers=[at - 1 for at in LAYERS[1:]], batch_size=size
            )
            for at in LAYERS[1:]:
                out[n, at] = vector.layer_activations[at - 1]
        return out

    print("| peer | peer (s) | rolelens (s) | ratio | FLOP ratio |\n|---|---|---|---|---|")
    for kind, size in (("as first written", 1), ("well batched", 16)):
        slow, fast = [], []
        for _ in range(REPEATS):
            (one, expected), (two, directions) = timed(lambda size=size: theirs(size)), timed(ours)
            live = slice(1, None)  # entering layer 0 both are zero
            error = (directions[:, live] - expected[:, live]).norm(dim=-1)
            if (error > 1e-4 * expected[:, live].norm(dim=-1)).any():
                raise SystemExit("the two give other directions; no ratio is given.")
            slow.append(one)
            fast.append(two)
        ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
        counted = flops(lambda size=size: theirs(size))[0] / flops(ours)[0]
        print(
            f"| steering-vectors 0.12.2, {kind} | {statistics.median(slow):.0f} | "
            f"{statistics.median(fast):.1f} | {ratio:.1f}x | {counted:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
