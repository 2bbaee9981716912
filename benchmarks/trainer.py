"""A step of the whole trainer beside that of another commit: reading, forward, backward, update, everything that the loop does for it.

    python benchmarks/trainer.py --against HEAD~1
    python benchmarks/trainer.py --against c77e152 --rounds 5 -- --size ViT-B-16 --image_size 224 --batch 8 --steps 8

What stands behind `--` are flags of rils-train. The two are run in turns, each in a process of its own; the first three steps of a run do not count.
Printed: the median seconds of a step on either side, and the median and spread of the rounds' ratios.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--against', required=True, metavar='COMMIT', help='the commit to compare the working tree with')
parser.add_argument('--rounds', type=int, default=3, help='turns of each')
parser.add_argument('flags', nargs='*', default=['--steps', '60'], help='flags of rils-train, behind --')
args = parser.parse_args()

def seconds(tree, out):
    "Seconds of each counted step of a run with the code of a folder."
    argv = ['-m', 'rils_nb.train', *args.flags, '--tasks', '', '--eval_data', '', '--log_every', '1', '--save_every', '1000000', '--out', str(out)]
    run = subprocess.run([sys.executable, *argv], cwd=out.parent, env=dict(os.environ, PYTHONPATH=str(tree)), capture_output=True, text=True)
    if run.returncode: sys.exit(f'error: the trainer of {tree} does not run:\n{run.stderr[-2000:]}')
    rows, config = [json.loads(line) for line in (out/'log.jsonl').read_text().splitlines()], json.loads((out/'config.json').read_text())
    return [config['batch'] / r['images_per_second'] for r in rows][3:]

with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    subprocess.run(['git', 'worktree', 'add', '-q', '--detach', d/'tree', args.against], cwd=ROOT, check=True)
    try:
        ours, theirs = [], []
        for i in range(args.rounds):
            for found, tree, name in ((theirs, d/'tree', 'theirs'), (ours, ROOT, 'ours')): found.append(statistics.median(seconds(tree, d/f'{name}{i}')))
            print(f'round {i + 1}: {args.against} {theirs[-1]:.4f} s, here {ours[-1]:.4f} s, ratio {ours[-1] / theirs[-1]:.3f}', flush=True)
    finally: subprocess.run(['git', 'worktree', 'remove', '--force', d/'tree'], cwd=ROOT)
ratios = [a / b for a, b in zip(ours, theirs)]
print(f'median: {args.against} {statistics.median(theirs):.4f} s, here {statistics.median(ours):.4f} s, ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})')
