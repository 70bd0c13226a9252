"""Find the layer from which on a role can be told from everyday prompts."""

import sys

import rolelens as rl


def main(role: str = "lawyer") -> None:
    lens = rl.load("smollm2")
    of_role = rl.activations(lens, rl.load_roles()[role], positions=[-1])[:, :, 0]
    of_base = rl.activations(lens, rl.load_base(), positions=[-1])[:, :, 0]
    curve = rl.separation(rl.projections(of_role, of_base, name=role))
    for layer, auroc, low, high in zip(
        curve.layers, curve.auroc, curve.low, curve.high, strict=True
    ):
        print(
            f"layer {layer:2}  AUROC {auroc:.3f} [{low:.3f}, {high:.3f}]  {'#' * int(40 * auroc)}"
        )
    surely = [layer for layer, low in zip(curve.layers, curve.low, strict=True) if low > 0.9]
    print(f"{role}: surely above 0.9 first at layer {surely[0]}" if surely else "never above 0.9")


if __name__ == "__main__":
    main(*sys.argv[1:])
