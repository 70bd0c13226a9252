"""How much memory a sweep takes beside the model, for few cells and for many."""

import resource
import subprocess
import sys

import rolelens as rl

QUESTIONS = 8


def measure(n_alphas: int) -> None:
    """Print cells, and the peak over what stood there before the sweep (MiB)."""
    lens, base = rl.load("smollm2"), rl.load_base()
    vectors = rl.role_vectors(lens, {"lawyer": rl.load_roles()["lawyer"][:8]}, base[:8])
    rl.evaluate(lens, list(rl.load_task("mini"))[:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    questions = list(rl.load_task("mini"))[:QUESTIONS]
    alphas = tuple(0.5 * n for n in range(1, n_alphas + 1))
    tokens = "post-instruction"
    swept = rl.sweep(lens, vectors, questions, alphas=alphas, tokens=tokens, method="cloze")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"| {len(swept.cells)} | {before >> 10} | {(peak - before) >> 10} |", flush=True)


def main() -> None:
    """Measure each size in a process of its own."""
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
        return
    print("| cells | before (MiB) | more during the sweep (MiB) |\n|---|---|---|", flush=True)
    for n_alphas in (1, 8):
        subprocess.run([sys.executable, __file__, str(n_alphas)], check=True)


if __name__ == "__main__":
    main()
