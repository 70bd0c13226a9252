"""Read a role vector as text, beside a random direction of the same norm."""

import sys

import rolelens as rl


def main(role: str = "mathematician", layer: str = "16") -> None:
    lens = rl.load("smollm2")
    vectors = rl.role_vectors(lens, {role: rl.load_roles()[role]}, rl.load_base())
    direction = vectors[role].at(int(layer))
    reading, control = rl.patchscope(lens, [direction, direction.random_like()])
    print(reading.prompt)
    print(f"unsteered: {reading.baseline}")
    print(f"{role}: {reading.text}")
    print(f"random: {control.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
