"""Memory and time of one training step against the number of columns: levels computed again in the backward pass, beside all activations stored; and how far their gradients are apart.

    python benchmarks/columns.py                                             # 4, 8 and 16 columns of B's width, batch 4, this machine's CPU
    python benchmarks/columns.py --device cuda --precision bf16 --batch 64 --steps 20 --rounds 5
    python benchmarks/columns.py --width 64 --side 32 --patch 8 --batch 16   # seconds, to see that it runs
    python benchmarks/columns.py --gradients                                 # 4, 8, 12, 16 and 24 columns of width 64, ten seeds; minutes

A step is RevColV2's pre-training (forward, backward, AdamW), half of the columns going up and half going down, mask ratio 0.75. Each contestant runs in a
process of its own and in turns: two steps that do not count and `--steps` that do. Printed are medians over the rounds. Memory is what a step needs at its
peak beyond weights, gradients and optimizer, on CUDA what torch has allocated, on a CPU (Linux, glibc) what the process has resident. The forward pass is measured
against the state between steps, the backward pass without the gradients that stand at its end. On a CPU a turn for memory is another than the turn for time: the trainer lets
the process keep every page that it ever had, which is fast, and hides what a step needs. Wanted: for four columns more at most one list
of levels more (float64), within 5 %, and at most 1.45 times the time of plain storage.

--gradients makes one row of columns, up and down, with weights that are disturbed, and with all gates at their bound. Printed is the largest difference of a gradient from that of plain
storage, in relation to the largest number of the same tensor: the median and the worst over seeds, both directions and both kinds of gates; beside it the same where only the levels behind
the last column are remembered. Wanted: below 6e-5, which is one number read as its neighbour in float32, multiplied by eight three times.
"""
import argparse, contextlib, ctypes, json, statistics, subprocess, sys, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--columns', default='', help='how many, even numbers (4,8,16; of --gradients 4,8,12,16,24)')
parser.add_argument('--width', type=int, default=0, help='of the columns (320; of --gradients 64)')
parser.add_argument('--side', type=int, default=224, help='of the image in pixels')
parser.add_argument('--patch', type=int, default=16, help='side of a patch in pixels')
parser.add_argument('--batch', type=int, default=4, help='images in a step')
parser.add_argument('--rounds', type=int, default=3, help='rounds of turns')
parser.add_argument('--steps', type=int, default=3, help='counted steps in a turn')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--precision', default='float32', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--gradients', action='store_true', help='compare gradients, in float32 and with bf16')
parser.add_argument('--seeds', type=int, default=10, help='of --gradients')
parser.add_argument('--turn', help=argparse.SUPPRESS)  # what the process of one turn is started with
args = parser.parse_args()
args.columns, args.width = args.columns or ('4,8,12,16,24' if args.gradients else '4,8,16'), args.width or (64 if args.gradients else 320)
WAYS = ('stored', 'again')

def turn(n, way, peak):
    "Seconds of a step, and the bytes that it needs; on a CPU one of the two."
    import torch
    from timm.models import register_model
    from rils_nb.models.columns import _columns
    from rils_nb.config import Config
    from rils_nb.core import hash_key
    from rils_nb.methods.base import make
    from rils_nb.models.vit import SIZES, Size
    from rils_nb.training.optim import optimizer_of
    from rils_nb.training.processes import tune_cpu
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
    batch = dict(image=torch.randint(256, (args.batch, 3, args.side, args.side), dtype=torch.uint8), keys=torch.tensor([hash_key(0, 0, i) for i in range(args.batch)]))
    batch = {k: v.to(args.device) for k, v in batch.items()}
    own = sum(p.nbytes for p in method.parameters() if p.requires_grad)                     # gradients take as much, AdamW twice
    sync = torch.cuda.synchronize if cuda else lambda: None
    autocast = lambda: torch.autocast(args.device, torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext()
    memory = Memory(cuda) if peak or cuda else None
    def step():
        sync()
        t = time.perf_counter()
        between = memory and memory.start()
        with autocast(): loss = method(batch)['loss']
        forward = memory and memory.peak() - between
        if memory: memory.start()
        loss.backward()
        backward = memory and memory.peak() - between - own
        optimizer.step()
        optimizer.zero_grad()
        sync()
        return time.perf_counter() - t, memory and max(forward, backward)
    steps = [step() for _ in range(2 + args.steps)][2:]
    return [statistics.median(v) if v[0] is not None else None for v in zip(*steps)]

class Memory:
    "Bytes in use now, and their peak since then."
    def __init__(self, cuda):
        import torch
        self.cuda = torch.cuda if cuda else None
        if cuda: return
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**16)    # M_MMAP_THRESHOLD: every large block is one of its own,
        libc.mallopt(-4, 2**20)    # M_MMAP_MAX
        libc.mallopt(-2, 2**16)    # M_TOP_PAD
        libc.mallopt(-1, 2**16)    # M_TRIM_THRESHOLD: and goes back when it is freed
    def read(self, line):
        with open('/proc/self/status') as f: return 1024 * next(int(l.split()[1]) for l in f if l.startswith(line))
    def start(self):
        if self.cuda: self.cuda.reset_peak_memory_stats()
        else:
            with open('/proc/self/clear_refs', 'w') as f: f.write('5')
        return self.cuda.memory_allocated() if self.cuda else self.read('VmRSS')
    def peak(self): return self.cuda.max_memory_allocated() if self.cuda else self.read('VmHWM')

def make_row(n, up, seed, gate):
    "A row of columns with disturbed weights; with one gate for all channels, if it is not None."
    import torch
    from rils_nb.models.unit import column
    from rils_nb.models.vit import init_like_mae
    torch.manual_seed(seed)
    row = torch.nn.ModuleList(column(args.width, args.width // 32, up=up) for _ in range(n))
    init_like_mae(row)
    for p in row.parameters(): p.data += 0.5 * torch.randn_like(p) * (p.data.std() if p.ndim > 1 else 1)
    for level in (level for c in row for level in c.levels if gate is not None): level.gate.data.fill_(gate)
    return row.to(args.device)

def gradients_of(row, bf16, stored, segment):
    "Gradients of the embedded image and of all weights."
    import torch
    from rils_nb.models import reversible
    reversible.SEGMENT, levels = segment, len(row[0].levels)
    x = torch.randn(4, 17, args.width, generator=torch.Generator().manual_seed(0)).to(args.device).requires_grad_()
    with torch.autocast(args.device, torch.bfloat16, enabled=bf16): state = reversible.run_columns(row, [x] * levels, x, stored=stored)
    return torch.autograd.grad(sum((k + 1) * s.float().sin().mean() for k, s in enumerate(state)), [x, *row.parameters()])

def compare_gradients():
    "A table of how far gradients are from those of plain storage."
    from rils_nb.models.unit import SEGMENT
    apart = lambda a, b: max(((p - q).abs().max() / q.abs().max()).item() for p, q in zip(a, b, strict=True))
    print(f'{"":8} {f"every {SEGMENT}th column remembered":>36} {"the last column remembered":>36}')
    print(f'{"columns":>8}' + 2 * f' {"float32":>8} {"worst":>8} {"bf16":>9} {"worst":>8}')
    for n in counts:
        found = {(segment, bf16): [] for segment in (SEGMENT, n) for bf16 in (False, True)}
        for seed, up, gate in ((seed, up, gate) for seed in range(args.seeds) for up in (True, False) for gate in (None, 9.)):
            row = make_row(n, up, seed, gate)
            for bf16 in (False, True):
                true = gradients_of(row, bf16, True, n)
                for segment in {SEGMENT, n}: found[segment, bf16].append(apart(gradients_of(row, bf16, False, segment), true))
        print(f'{n:8}' + ''.join(f' {statistics.median(found[k]):8.0e} {max(found[k]):8.0e}' + ' ' * (not k[1]) for k in found), flush=True)

def compare():
    "Let the contestants take turns."
    turns = {}
    def take(n, way, what):
        run = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--turn', f'{n},{way},{what}'], capture_output=True, text=True)
        if run.returncode: sys.exit(f'\nerror: {n} columns, {way}, does not run:\n{run.stderr[-2000:]}')
        return json.loads(run.stdout.splitlines()[-1])
    for r in range(args.rounds):
        for n in counts:
            for way in WAYS:
                print(f'\rround {r + 1}/{args.rounds}: {n} columns, {way:8}', end='', file=sys.stderr, flush=True)
                seconds, peak = take(n, way, 'time')
                turns.setdefault((n, way), []).append((seconds, peak or take(n, way, 'memory')[1]))
    median = lambda n, way, k: statistics.median(t[k] for t in turns[n, way])
    print(f'\r{"columns":>8} {"stored, MB":>11} {"again, MB":>10} {"stored, s":>10} {"again, s":>9} {"ratio":>6}')
    for n in counts:
        ratio = statistics.median(b[0] / a[0] for a, b in zip(turns[n, 'stored'], turns[n, 'again']))
        print(f'{n:8} {median(n, "stored", 1) / 1e6:11.1f} {median(n, "again", 1) / 1e6:10.1f} {median(n, "stored", 0):10.2f} {median(n, "again", 0):9.2f} {ratio:6.2f}')

counts = [int(n) for n in args.columns.split(',')]
if args.gradients: compare_gradients()
elif args.turn:
    n, way, what = args.turn.split(',')
    print(json.dumps(turn(int(n), way, what == 'memory')))
else: compare()
