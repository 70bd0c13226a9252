"""The second test environment: TransformerLens 3.9, which still has HookedTransformer."""

import nox

nox.options.default_venv_backend = "venv"
PARALLEL = ("-n", "logical", "--maxprocesses", "4", "--dist", "worksteal")
ORACLES = (
    "evaluation",
    "extraction",
    "forward",
    "hooked_transformer",
    "hooks",
    "lens",
    "patchscoping",
    "residuals",
    "sweeps",
)


@nox.session
def transformer_lens_3(session: nox.Session) -> None:
    """Run the oracle tests on both classes."""
    session.install("-c", "constraints-transformer-lens-3.txt", "-e", ".[dev]")
    files = [f"tests/test_{name}.py" for name in ORACLES]
    session.run("pytest", *PARALLEL, "-m", "not model", *files, *session.posargs)
