"""A step of the whole trainer beside that of another commit: reading, forward, backward, update, everything that the loop does for it.

    python benchmarks/trainer.py --against HEAD~1
    python benchmarks/trainer.py --against c77e152 --steps 30 -- --size ViT-B-16 --image_size 224 --batch 8

What stands behind `--` are flags of rils-train. Two runs, one with the code of either commit, make their steps in turns: one waits while the other
makes a step, so that both meet the machine in the same state. The first five steps do not count. Printed: the median seconds of a step on either side,
the median of the ratios of two neighbouring steps, and between which values a repetition's median would lie in 95 of 100 cases (bootstrap).
"""
import argparse, os, random, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TURNS = '''
import os, sys
import torch
told, tell = map(int, sys.argv[1:3])
zero_grad = torch.optim.AdamW.zero_grad
def in_turns(self, *args, **kwargs):
    "Between two calls lies one step: say that it is made, and wait until it is this run's turn again."
    zero_grad(self, *args, **kwargs)
    os.write(tell, b'.')
    if not os.read(told, 1): os._exit(0)
torch.optim.AdamW.zero_grad = in_turns
sys.argv[1:] = sys.argv[3:]
from rils_nb.train import main
main()
'''

class Run:
    "A training with the code of a folder, which makes a step when it is told to."
    def __init__(self, tree, out, flags):
        self.said, (child_told, self.tell), (self.told, child_tell) = out.with_suffix('.txt'), os.pipe(), os.pipe()
        argv = [*map(str, (child_told, child_tell)), *flags, '--tasks', '', '--eval_data', '', '--save_every', '1000000', '--out', str(out)]
        self.process = subprocess.Popen([sys.executable, '-c', TURNS, *argv], cwd=out.parent, env=dict(os.environ, PYTHONPATH=str(tree)),
                                        pass_fds=(child_told, child_tell), stdout=subprocess.DEVNULL, stderr=self.said.open('w'))
        for fd in (child_told, child_tell): os.close(fd)
        self.wait()
    def wait(self):
        if not os.read(self.told, 1): sys.exit(f'error: the trainer ended early:\n{self.said.read_text()[-2000:]}')
    def step(self):  # -> seconds
        start = time.perf_counter()
        os.write(self.tell, b'.')
        self.wait()
        return time.perf_counter() - start
    def end(self):
        os.close(self.tell)
        self.process.wait()

def median_of_ratios(pairs): return statistics.median(a / b for a, b in pairs)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--against', required=True, metavar='COMMIT', help='the commit to compare the working tree with')
parser.add_argument('--steps', type=int, default=150, help='steps of each')
parser.add_argument('flags', nargs='*', help='flags of rils-train, behind --')
args = parser.parse_args()
flags = [*args.flags, '--steps', str(args.steps + 10)]

with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    subprocess.run(['git', 'worktree', 'add', '-q', '--detach', d/'tree', args.against], cwd=ROOT, check=True)
    try:
        theirs, ours = Run(d/'tree', d/'theirs', flags), Run(ROOT, d/'ours', flags)
        pairs = []
        for i in range(args.steps):
            seconds = {run: run.step() for run in ((ours, theirs), (theirs, ours))[i % 2]}
            if i >= 5: pairs.append((seconds[ours], seconds[theirs]))
        for run in (ours, theirs): run.end()
    finally: subprocess.run(['git', 'worktree', 'remove', '--force', d/'tree'], cwd=ROOT)
again = sorted(median_of_ratios(random.Random(i).choices(pairs, k=len(pairs))) for i in range(1000))
print(f'{len(pairs)} steps in turns: {args.against} {statistics.median(b for _, b in pairs):.4f} s, here {statistics.median(a for a, _ in pairs):.4f} s, '
      f'ratio {median_of_ratios(pairs):.3f} ({again[25]:.3f} to {again[975]:.3f})')
