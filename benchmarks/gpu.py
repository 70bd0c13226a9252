"""One GPU and a large model: how much of the card's speed is used, and how long the paper takes.

``python benchmarks/gpu.py`` takes about 20 minutes on an H100. The model has random weights in
bfloat16 and the shape of an 8 B Llama, behind the embedded model's tokenizer: speed does not depend
on weights. ``--size tiny --device cpu`` tries the script itself anywhere.
"""

import argparse
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from generation import NEW, added, transformers_generate

import rolelens as rl
from rolelens import embedded, forward, runs
from rolelens.sweeps import duration

SIZES = {  # width, width inside an MLP, layers, vocabulary
    "8b": (4096, 14336, 32, 128256),
    "1b": (2048, 8192, 16, 128256),
    "tiny": (64, 128, 4, 49152),
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 operations a second, by a part of the card's name (vendors' data sheets)."""


def model(size: str, device: str) -> Any:
    """A model of random weights, made where it runs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inside, layers, vocab = SIZES[size]
    heads = width // (128 if size != "tiny" else 16)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inside,
        num_hidden_layers=layers,
        vocab_size=vocab,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=8192,
        rope_theta=500000.0,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def vectors(lens: rl.Lens, names: int) -> rl.Directions:
    """Directions of some roles."""
    roles, base = rl.load_roles(), rl.load_base()
    chosen = dict(list(roles.items())[:names])
    return rl.role_vectors(lens, {name: list(p)[:32] for name, p in chosen.items()}, base[:32])


def timed(run: Callable[[], Any]) -> float:
    """Seconds until the device is done."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def syncs(run: Callable[[], Any]) -> Counter[str]:
    """Places in which Python waited for the device, and how often."""
    if not torch.cuda.is_available():
        return Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waiting = [w for w in caught if "synchroniz" in str(w.message)]
    return Counter(f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in waiting)


def peak_memory() -> float:
    """GiB allocated at most since the last call."""
    if not torch.cuda.is_available():
        return float("nan")
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return most


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="8b", choices=SIZES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", default="32,128,512")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --size tiny --device cpu tries the script itself.")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    nan = float("nan")
    peak = next((speed for part, speed in PEAKS.items() if part in card), nan)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.folder())
    lens = rl.load(model(given.size, given.device), tokenizer=tokenizer)
    ops = forward.count_operations(lens.model)
    budget = forward.token_budget(lens.model, 128)
    print(f"{card}; {given.size}, {ops.each / 1e9:.1f} GFLOP a token, batches of {budget} tokens\n")
    print("| what | seconds | tokens a second | share of peak | peak GiB | estimated GiB |")
    print("|---|---|---|---|---|---|")
    directions = vectors(lens, 4)
    mini = rl.load_task("mini")
    questions = list(mini)[:64] if given.size == "tiny" else list(mini)
    grid: dict[str, Any] = {"positions": [-1], "alphas": [1.0, 3.0]}

    def row(what: str, seconds: float, tokens: float, operations: float, gib: float) -> None:
        share = operations / seconds / peak
        print(
            f"| {what} | {seconds:.1f} | {tokens / seconds:,.0f} | {share:.1%} | "
            f"{peak_memory():.1f} | {gib:.1f} |",
            flush=True,
        )

    names = list(directions.names)
    for what, run, searching in (
        ("sweep", rl.sweep, False),
        ("search", rl.search, True),
    ):
        some = directions[names[:1]] if what == "sweep" else directions
        told = rl.estimate(lens, some, questions, **grid, searching=searching, seconds=0)
        run(lens, some, questions[:8], **grid)
        peak_memory()
        seconds = timed(lambda run=run, some=some: run(lens, some, questions, **grid))
        row(what, seconds, told.tokens, told.operations, told.peak_bytes / 2**30)
    d = directions[names[0]].at(lens.n_layers // 2, -1)
    problems = rl.load_task("arithmetic")
    plain = model(given.size, given.device)
    delta = d.vector.to(plain.device, plain.dtype)
    for rows in map(int, given.rows.split(",")):
        prompts = [problems.prompt(problem) for problem in problems]
        prompts = [prompts[n % len(prompts)] for n in range(rows)]
        ids = lens.encode(prompts).ids
        both = []
        for _ in range(2):
            seconds = timed(
                lambda prompts=prompts: lens.generate(
                    prompts, hooks=rl.add(d, 1.0), max_new_tokens=NEW
                )
            )
            both.append(seconds)
        seconds = statistics.median(both)
        tokens = sum(map(len, ids)) + rows * NEW
        row(f"generation, {rows} rows", seconds, tokens, tokens * ops.each, nan)
        with added(plain, d.layer, delta):
            seconds = timed(lambda ids=ids: transformers_generate(plain, tokenizer, ids))
        row(f"`generate` under a hook, {rows} rows", seconds, tokens, tokens * ops.each, nan)
    print("\n| inner loop | waits for the device |\n|---|---|")
    short = {"layers": [lens.n_layers // 2], **grid}
    one = directions[names[:1]]
    swept = syncs(lambda: rl.sweep(lens, one, questions[:32], **short))
    print(f"| sweep of 2 cells on 32 questions | {sum(swept.values())}: {dict(swept)} |")
    for new in (8, 32):
        generated = syncs(
            lambda new=new: lens.generate(prompts[:32], hooks=rl.add(d, 1.0), max_new_tokens=new)
        )
        print(f"| {new} steps of generation | {sum(generated.values())}: {dict(generated)} |")
    told = runs.estimate_paper(lens)
    assert told.speed is not None
    print(f"\nThe paper's experiment on the shipped questions: {told}")
    loop = told.cells * told.items * 100 * ops.each / (0.4 * peak)
    print(f"A loop over its cells at 40 % of the peak, by arithmetic: {duration(loop)}")


if __name__ == "__main__":
    main()
