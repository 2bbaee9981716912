"""Training on a CPU that is also used by other programs: images a second with different numbers of threads and processes, quiet and busy.

    python benchmarks/busy.py                                   # shapes, quiet and beside one busy loop for each core
    python benchmarks/busy.py --recipes shapes,shapes_clip,shapes_mae,shapes_segment --rounds 5
    python benchmarks/busy.py --against 262f60f                 # the code of another commit in turns with this

Every measurement is a process of its own that trains `--steps` steps; the settings take turns, so that all meet the same machine, and each round begins with
another one. What is printed is the median over rounds of the images a second behind the first fifth of the steps, with the lowest and the highest. A busy
loop is a Python process that counts. Two processes share the batch by torchrun.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
SETTINGS = {'as it is': {}, '1 thread': dict(OMP_NUM_THREADS='1'), f'{CORES} processes': dict(OMP_NUM_THREADS='1', processes=CORES),
            'waiting actively': dict(OMP_WAIT_POLICY='ACTIVE'), **{f'spin {n}': dict(GOMP_SPINCOUNT=str(n)) for n in (0, 300, 1_000, 3_000, 30_000)}}

@contextmanager
def busy_loops(n):
    "Within this block, so many processes use a core each."
    loops = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(n)]
    try: yield
    finally:
        for p in loops: p.kill(), p.wait()

def images_per_second(tree, recipe, steps, flags, processes=1, **env):
    "Train with the code of a folder."
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as d:
        argv = [sys.executable, *launcher, '-m', 'rils_nb.train', recipe, '--steps', str(steps), '--log_every', str(max(1, steps // 5)), '--tasks', '', '--eval_data', '',
                '--save_every', '1000000', '--out', f'{d}/run', *flags]
        run = subprocess.run(argv, cwd=d, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(tree), 'ACCELERATE_USE_CPU': '1', **env})
        if run.returncode: sys.exit(f'error: {run.stderr[-2000:]}')
        rows = [json.loads(line) for line in (Path(d)/'run'/'log.jsonl').read_text().splitlines()]
    return len(rows[1:]) / sum(1 / r['images_per_second'] for r in rows[1:])

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--recipes', default='shapes', metavar='A,B')
parser.add_argument('--settings', default=f'as it is,1 thread,{CORES} processes', metavar='A,B', help=', '.join(SETTINGS))
parser.add_argument('--against', metavar='COMMIT', help='another commit, as a further setting')
parser.add_argument('--loops', default=f'0,{CORES}', metavar='N,N', help='busy loops beside')
parser.add_argument('--steps', type=int, default=60)
parser.add_argument('--rounds', type=int, default=3)
parser.add_argument('flags', nargs='*', help='flags of rils-train, behind --')
args = parser.parse_args()

with tempfile.TemporaryDirectory() as d, ExitStack() as stack:
    contestants = {s: (ROOT, SETTINGS[s]) for s in args.settings.split(',')}
    if args.against:
        subprocess.run(['git', 'worktree', 'add', '-q', '--detach', f'{d}/tree', args.against], cwd=ROOT, check=True)
        stack.callback(subprocess.run, ['git', 'worktree', 'remove', '--force', f'{d}/tree'], cwd=ROOT)
        contestants[args.against] = f'{d}/tree', {}
    for recipe in args.recipes.split(','):
        for n in map(int, args.loops.split(',')):
            found = {name: [] for name in contestants}
            for i in range(args.rounds):
                names = list(contestants)
                for name in names[i % len(names):] + names[:i % len(names)]:
                    tree, setting = contestants[name]
                    with busy_loops(n): found[name].append(images_per_second(tree, recipe, args.steps, args.flags, **setting))
            for name, values in found.items():
                print(f'{recipe:16} {n} busy loops  {name:18} {statistics.median(values):6.0f} images/s ({min(values):.0f} to {max(values):.0f})', flush=True)
