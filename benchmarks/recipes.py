"""Every recipe of the scenes, one run after another: what each costs and what it learns, in one table.

    python benchmarks/recipes.py                                 # all of them
    python benchmarks/recipes.py --only shapes,shapes_clip --seed 1
    python benchmarks/recipes.py --show                          # the table of what has been run
    python benchmarks/recipes.py --steps 60                      # speed and memory alone, of short runs without evaluations

Runs lie in FOLDER/seed-S/runs/NAME, where the recipes that start from others look for them; one that is complete is not run again, one that was
stopped goes on. Speed is the median over the progress lines, the first one left out; memory the largest that the training process had resident;
the figures are those of the evaluation at the end of the run, on 2,000 validation scenes. Nothing else should run meanwhile.
"""
import argparse, json, os, statistics, subprocess, sys
from pathlib import Path

from rils_nb.config import all_recipes
from rils_nb.core import append_jsonl, command, suggest, read_jsonl, UserError

FIRST = ['shapes', 'shapes_clip', 'shapes_mae']  # others start from them, or ask them
FIGURES = {'image-to-text R@1': 'retrieval/i2t_r1', 'shape': 'scenes/shape', 'patches, local': 'scenes/patch_colour',
           'plain': 'scenes/patch_colour_plain', 'probe': 'probe/linear', 'classifier': 'classification/top1'}

def train(name, folder, seed, steps=0):
    "Run a recipe to its end, or for some steps, and note the memory that it needed."
    short = ['--steps', str(steps), '--tasks', '', '--log_every', '10'] if steps else []
    argv = [sys.executable, '-m', 'rils_nb.train', name, '--seed', str(seed), *short] + ['--resume'] * (folder/'runs'/name/'config.json').exists()
    with open(folder/f'{name}.txt', 'a') as log:
        child = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for already
    if child.returncode: raise UserError(f'{name} ended with {child.returncode}: see {folder/f"{name}.txt"}')
    append_jsonl(folder/'memory.jsonl', dict(recipe=name, gigabytes=used.ru_maxrss / 2**20))

def row(name, folder):  # -> list of str
    "A recipe's line of the table."
    run = folder/'runs'/name
    speed = [r['images_per_second'] for r in read_jsonl(run/'log.jsonl') if 'images_per_second' in r][1:]
    batch = json.loads((run/'config.json').read_text())['batch']
    memory = max((r['gigabytes'] for r in read_jsonl(folder/'memory.jsonl') if r['recipe'] == name), default=0)
    results = {f'{r["task"]}/{k}': v for r in read_jsonl(run/'results.jsonl') for k, v in r['metrics'].items()}
    figures = ['–' if results.get(k) is None else f'{100 * results[k]:.1f}' for k in FIGURES.values()]
    return [f'`{name}`', f'{statistics.median(speed) / batch:.1f}' if speed else '–', f'{memory:.1f}', *figures]

@command
def main():
    known = [n for n in all_recipes() if n.startswith('shapes')]
    names = FIRST + [n for n in known if n not in FIRST]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default=','.join(names), help='recipes, as a,b (all)')
    p.add_argument('--seed', type=int, default=0, help='of the runs (0)')
    p.add_argument('--folder', default='.', help='where seed-S is made, or steps-N (here)')
    p.add_argument('--steps', type=int, default=0, help='of short runs, for speed and memory alone (0: whole runs)')
    p.add_argument('--show', action='store_true', help='train nothing')
    args = p.parse_args()
    for n in (chosen := args.only.split(',')):
        if n not in names: raise UserError(f'no recipe of the scenes is called `{n}`{suggest(n, names)} (valid: {", ".join(names)})')
    folder = Path(args.folder)/(f'steps-{args.steps}' if args.steps else f'seed-{args.seed}')
    folder.mkdir(parents=True, exist_ok=True)
    for name in [] if args.show else chosen:
        if not (folder/'runs'/name/'curves.png').exists():
            print(name, flush=True)
            train(name, folder, args.seed, args.steps)
    rows = [row(n, folder) for n in chosen if (folder/'runs'/n/'curves.png').exists()]
    head = ['recipe', 'steps/s', 'memory, GB', *FIGURES]
    for r in (head, ['---'] * len(head), *rows): print('| ' + ' | '.join(r) + ' |')

if __name__ == '__main__': main()
