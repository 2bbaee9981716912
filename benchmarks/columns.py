"""Memory and time of one training step against the number of columns: levels computed again in the backward pass, beside all activations stored.

    python benchmarks/columns.py                                             # 4, 8 and 16 columns of B's width, batch 4, this machine's CPU
    python benchmarks/columns.py --device cuda --precision bf16 --batch 64 --steps 20 --rounds 5
    python benchmarks/columns.py --width 64 --side 32 --patch 8 --batch 16   # seconds, to see that it runs

A step is RevColV2's pre-training (forward, backward, AdamW), half of the columns going up and half going down, mask ratio 0.75. Each contestant runs in a
process of its own and in turns: two steps that do not count and `--steps` that do. Printed are medians over the rounds. Memory is the peak that the
step needs beyond weights, gradients and optimizer: on CUDA what torch had allocated, on a CPU what the process had resident beyond what it had before its first step, without
what AdamW's two averages and the gradients take. Wanted: flat within 5 % from 4 to 16 columns, and at most 1.45 times the time of plain storage.
"""
import argparse, contextlib, json, resource, statistics, subprocess, sys, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--columns', default='4,8,16', help='how many, even numbers')
parser.add_argument('--width', type=int, default=320, help='of the columns')
parser.add_argument('--side', type=int, default=224, help='of the image in pixels')
parser.add_argument('--patch', type=int, default=16, help='side of a patch in pixels')
parser.add_argument('--batch', type=int, default=4, help='images in a step')
parser.add_argument('--rounds', type=int, default=3, help='rounds of turns')
parser.add_argument('--steps', type=int, default=3, help='counted steps in a turn')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--precision', default='float32', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--turn', help=argparse.SUPPRESS)  # what the process of one turn is started with
args = parser.parse_args()
WAYS = ('stored', 'again')

def turn(n, way):
    "Seconds of each counted step, and bytes at the peak."
    import torch
    from timm.models import register_model
    from rils_nb.columns.encoder import _columns
    from rils_nb.config import Config
    from rils_nb.core import key
    from rils_nb.methods import make
    from rils_nb.model import SIZES, Size
    from rils_nb.optim import optimizer_of
    from rils_nb.processes import tune_cpu
    def rils_benchmarked(pretrained=False, **kwargs):
        return _columns('base', 'rils_benchmarked', pretrained, **dict(ups=n // 2, downs=n // 2, embed_dim=args.width, num_heads=args.width // 32, img_size=args.side, patch_size=args.patch) | kwargs)
    register_model(rils_benchmarked)
    SIZES['RevColV2-benchmarked'] = Size('rils_benchmarked', args.patch, encoder='columns', native=args.side)
    if args.device == 'cpu': tune_cpu(args.precision == 'bf16')
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    config = Config(method='revcolv2', size='RevColV2-benchmarked', image_size=args.side, batch=args.batch, checkpointing=way == 'again')
    method = make(config).to(args.device).train()
    optimizer, cuda = optimizer_of(method, config), args.device == 'cuda'
    batch = dict(image=torch.randint(256, (args.batch, 3, args.side, args.side), dtype=torch.uint8), keys=torch.tensor([key(0, 0, i) for i in range(args.batch)]))
    batch = {k: v.to(args.device) for k, v in batch.items()}
    own = sum(p.nbytes for p in method.parameters() if p.requires_grad)                     # gradients take as much, AdamW twice
    sync = torch.cuda.synchronize if cuda else lambda: None
    autocast = lambda: torch.autocast(args.device, torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext()
    def step():
        sync()
        t = time.perf_counter()
        with autocast(): loss = method(batch)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sync()
        return time.perf_counter() - t
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = torch.cuda.memory_allocated() if cuda else resident()
    seconds = [step() for _ in range(2 + args.steps)][2:]
    return seconds, (torch.cuda.max_memory_allocated() if cuda else resident()) - before - 3 * own

def compare():
    "Let the contestants take turns."
    counts, turns = [int(n) for n in args.columns.split(',')], {}
    for r in range(args.rounds):
        for n in counts:
            for way in WAYS:
                print(f'\rround {r + 1}/{args.rounds}: {n} columns, {way:8}', end='', file=sys.stderr, flush=True)
                run = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--turn', f'{n},{way}'], capture_output=True, text=True)
                if run.returncode: sys.exit(f'\nerror: {n} columns, {way}, does not run:\n{run.stderr[-2000:]}')
                seconds, peak = json.loads(run.stdout.splitlines()[-1])
                turns.setdefault((n, way), []).append((statistics.median(seconds), peak))
    median = lambda n, way, k: statistics.median(t[k] for t in turns[n, way])
    print(f'\r{"columns":>8} {"stored, MB":>11} {"again, MB":>10} {"stored, s":>10} {"again, s":>9} {"ratio":>6}')
    for n in counts:
        ratio = statistics.median(b[0] / a[0] for a, b in zip(turns[n, 'stored'], turns[n, 'again']))
        print(f'{n:8} {median(n, "stored", 1) / 1e6:11.0f} {median(n, "again", 1) / 1e6:10.0f} {median(n, "stored", 0):10.2f} {median(n, "again", 0):9.2f} {ratio:6.2f}')

if args.turn:
    n, way = args.turn.split(',')
    print(json.dumps(turn(int(n), way)))
else: compare()
