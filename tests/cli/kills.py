"""Kill ``gradood score`` again and again, change its inputs in between, and look at the rows.

``python -m tests.cli.kills FOLDER --kills 200`` prints one JSON line ("amid": of the kills,
those that left an unfinished file) and exits 1 if an input has two
rows, or none, though no run refused to go on. Runs are forked from a process that has PyTorch in
memory, since starting Python takes longer than scoring.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from gradood.cli import app
from tests.pictures import pixels


def start(arguments, environment, log):
    child = os.fork()
    if child:
        return child
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    status = 1
    try:
        app(list(map(str, arguments)))
    except SystemExit as exit:
        status = exit.code or 0
    finally:
        os._exit(status if isinstance(status, int) else 1)


class Inputs:
    """A folder whose pictures come and go, or a list of arrays that grows."""

    def __init__(self, folder, chance):
        from PIL import Image

        self.folder, self._chance, self._number = folder, chance, 0
        folder.mkdir()
        self._pictures = [Image.fromarray(array) for array in pixels("mnist", 20)]
        self.ever = set()
        for _ in range(150):
            self.add()

    def add(self):
        self._number += 1
        name = f"{self._chance.choice('abcxyz')}{self._number:05}.png"
        made = self.folder.parent / "made.png"
        self._pictures[self._number % 20].save(made)
        os.replace(made, self.folder / name)
        self.ever.add(name)

    def change(self):
        present = sorted(path.name for path in self.folder.iterdir())
        for _ in range(self._chance.randrange(4)):
            self.add()
        for name in self._chance.sample(present, self._chance.randrange(3)):
            (self.folder / name).unlink()

    def now(self):
        return {path.name for path in self.folder.iterdir()}


def scored(state):
    """Rows that an unfinished run has written."""
    try:
        found = json.loads(state.read_text())
    except FileNotFoundError:
        return 0
    return found["scored"] + found["skipped"]


def wait_for_rows(state, children, seconds=10.0):
    before, end = scored(state), time.monotonic() + seconds
    while scored(state) == before and time.monotonic() < end:
        if all(os.waitid(os.P_PID, c, os.WEXITED | os.WNOHANG | os.WNOWAIT) for c in children):
            return
        time.sleep(0.001)


def rows_of(outputs):
    found = []
    for out in outputs:
        if out.suffix == ".parquet":
            import pyarrow.parquet as pq

            found += pq.read_table(out, columns=["id"]).column("id").to_pylist()
        else:
            found += [json.loads(line)["id"] for line in out.read_text().splitlines()]
    return found


def once(root, chance, kills, world, suffix, change):
    """One score file, or one a process, through so many kills; what went wrong, and the kills."""
    inputs, done, refused, amid = Inputs(root / "in", chance), 0, 0, 0
    names = [
        f"s-{r:05}-of-{world:05}.{suffix}" if world > 1 else f"s.{suffix}" for r in range(world)
    ]
    log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    arguments = [
        "score",
        root / "in",
        "--out",
        root / f"s.{suffix}",
        "--batch-size",
        "4",
        "--resume",
    ]
    arguments += ["--on-error", "skip"]  # a picture may go between being listed and being read
    for _ in range(10 * kills + 20):
        last = done >= kills
        ranks = [{"RANK": str(r), "WORLD_SIZE": str(world)} for r in range(world)]
        children = [start(arguments, ranks[r], log) for r in range(world)]
        if not last:
            states = [root / f"{name}.state" for name in names]
            if chance.random() < 0.8:  # the start takes most of the time
                wait_for_rows(chance.choice(states), children)
            time.sleep(chance.random() * 0.12)
            for child in children:
                if os.waitpid(child, os.WNOHANG)[0] == 0:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    done += 1
            going = [scored(root / f"{name}.state") for name in names]
            amid += any(0 < rows < len(inputs.ever) for rows in going)
            if change and all(not (root / name).exists() for name in names):
                inputs.change()
            continue
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(status not in (0, 3) for status in statuses):
            refused = 1
        break
    os.close(log)
    said = (root / "log").read_text()
    problems = ["a traceback"] if "Traceback" in said else []
    if not refused:
        found = rows_of(root / name for name in names)
        twice, lost = len(found) - len(set(found)), inputs.now() - set(found)
        problems += [f"{twice} twice"] if twice else []
        problems += [f"{len(lost)} lost, such as {min(lost)}"] if lost else []
        problems += ["rows of nothing"] if set(found) - inputs.ever else []
    elif "cannot" not in said and "added since" not in said:
        problems.append(f"refused without a sentence: {said[-300:]}")
    return problems, done, refused, amid


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--each", type=int, default=10, help="Kills of one score file.")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chance, begin = random.Random(chosen.seed), time.monotonic()
    wrong, kills, refused, files, amid = [], 0, 0, 0, 0
    while kills < chosen.kills:
        root = chosen.folder / str(files)
        root.mkdir(parents=True)
        world, suffix = 1 + files % 2, ("jsonl", "parquet")[files // 2 % 2]
        change = files % 5 != 4
        problems, done, refusals, going = once(root, chance, chosen.each, world, suffix, change)
        wrong += [f"{root.name} ({world} processes, {suffix}): {problem}" for problem in problems]
        kills, refused, files = kills + done, refused + refusals, files + 1
        amid += going
    seconds = round(time.monotonic() - begin)
    facts = {
        "kills": kills,
        "amid": amid,
        "files": files,
        "refused": refused,
        "wrong": wrong,
        "seconds": seconds,
    }
    print(json.dumps(facts))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
