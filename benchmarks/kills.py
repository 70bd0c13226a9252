"""A sweep on the embedded model, killed twenty times at random moments, beside an unbroken one."""

import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rolelens as rl
from rolelens.sweeps import engine

KILLS, WORK = 20, 12.0
"""How often, and how many seconds a run gets at most after it was loaded."""


def sweep(store: Path, log: Path) -> None:
    """The whole run; every piece that was scored leaves a line in the log."""
    plain = engine.Engine.run

    def run(self: Any, piece: Any) -> Any:
        log.open("a").write(".")
        return plain(self, piece)

    engine.Engine.run = run  # type: ignore[method-assign]
    lens, base = rl.load("smollm2"), rl.load_base()
    vectors = rl.role_vectors(lens, {"lawyer": rl.load_roles()["lawyer"][:16]}, base[:16])
    questions = list(rl.load_task("mini"))[:24]
    log.open("a").write("\n")
    rl.sweep(lens, vectors, questions, tokens="post-instruction", store=store)


def tables(store: Path) -> list[Any]:
    """Everything that was scored."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        return [
            connection.execute(f"SELECT * FROM {table}").fetchall()
            for table in ("cells", "items", "directions", "scores")
        ]


def main() -> None:
    """Compare, and count."""
    if len(sys.argv) > 1:
        sweep(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken, log = (Path(folder) / name for name in ("whole.db", "broken.db", "log"))
        started = time.perf_counter()
        subprocess.run([sys.executable, __file__, whole, log], check=True)
        seconds, pieces = time.perf_counter() - started, log.read_text().count(".")
        log.unlink()
        kills = 0
        for _ in range(KILLS):
            log.touch()
            starts = log.read_text().count("\n")
            child = subprocess.Popen([sys.executable, __file__, broken, log])
            while child.poll() is None and log.read_text().count("\n") == starts:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, WORK))
            child.kill()
            kills += child.wait() != 0
        subprocess.run([sys.executable, __file__, broken, log], check=True)
        scored = log.read_text().count(".")
        print(
            f"{pieces} pieces in {seconds:.0f} s unbroken; killed {kills} times: {scored} pieces "
            f"begun, tables {'the same' if tables(whole) == tables(broken) else 'NOT THE SAME'}."
        )


if __name__ == "__main__":
    main()
