"""Chat with a model while a role vector is added: python steer_a_chat.py "What now?" doctor 3"""

import sys

import rolelens as rl


def main(prompt: str = "What should I do this weekend?", role: str = "doctor", alpha: str = "3"):
    lens = rl.load("smollm2")
    vectors = rl.role_vectors(lens, {role: rl.load_roles()[role]}, rl.load_base())
    direction = vectors[role].at(layer=16)
    steering = rl.add(direction, float(alpha))
    for label, hooks in (("unsteered", rl.Steering()), (f"as {role}", steering)):
        print(f"\n{label}: ", end="")
        for piece in lens.stream(prompt, hooks=hooks, max_new_tokens=40):
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
