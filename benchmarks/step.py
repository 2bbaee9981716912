"""Time, memory and work of one training step (forward, backward, AdamW): ours beside open_clip's CLIP and, where a checkout is given, others.

    python benchmarks/step.py                                              # ViT-B/16, batch 8, float32, this machine's CPU
    python benchmarks/step.py --device cuda --precision bf16 --batch 256 --rounds 3 --steps 20
    python benchmarks/step.py --only 'open_clip clip,SLIP CLIP_VITB16' --checkout SLIP=../SLIP
    python benchmarks/step.py --only clip,rils@1.0 --device cuda --precision bf16 --largest     # the largest batch that fits
    python benchmarks/step.py --only rils@0.5 --device cuda --precision bf16 --batch 256 --profile
    python benchmarks/step.py --only 'open_clip clip,clip,rils@0.5,mae,mae_clip,simclr,slip,milan,maskclip,silc,tips,aclip' --rounds 1

Each contestant runs in a process of its own, as its users run it, and in turns: a round gives each one a process, three steps that do not count (the
memory of a process grows during the first two) and `--steps` that do. Printed are medians over the rounds, and the median of the rounds' ratios to
the first contestant. Captions have 12 to 20 tokens; open_clip and the checkouts compute all 77, as their training does, unless they are cut. Contestants: `open_clip
clip`; our methods by name, each with the views that it asks for; `rils@0.5` with half of its images matched; `milan` with a timm ViT as its teacher; `NAME MODEL` from a checkout. Endings: `+compile`;
`+cut`, open_clip's CLIP with captions that are as long as the batch's longest and not 77 tokens, to see what padding alone is worth; `+settings`, which
gives a contestant what our trainer sets for the process on CPUs (`processes.tune_cpu`), to see what that alone is worth. MFU is the
share of what one large matrix product reaches in the same process.
"""
import argparse, contextlib, json, os, resource, statistics, subprocess, sys, time
from pathlib import Path

NAMES = 'open_clip clip,open_clip clip+settings,open_clip clip+cut+settings,clip,rils@0.1,rils@0.5,rils@0.5+compile,rils@1.0,mae,mae_clip'
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--batch', type=int, default=8, help='images in a step')
parser.add_argument('--rounds', type=int, default=3, help='rounds of turns')
parser.add_argument('--steps', type=int, default=3, help='counted steps in a turn')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--precision', default='float32', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--size', default='ViT-B-16', help='encoder size; open_clip must know a model of this name')
parser.add_argument('--accum', type=int, default=1, help='parts of a batch, for our methods')
parser.add_argument('--checkpointing', action='store_true', help='recompute activations, in our methods')
parser.add_argument('--largest', action='store_true', help='instead: the largest batch of each contestant that does not run out of memory, from --batch on')
parser.add_argument('--profile', action='store_true', help='instead: the operations that a step of each contestant spends its time in')
parser.add_argument('--only', default=NAMES, help=f'contestants, the first is the reference (default: {NAMES})')
parser.add_argument('--checkout', action='append', default=[], metavar='NAME=PATH', help='a repository with `models.py` and `get_loss`, as SLIP and RILS have them')
parser.add_argument('--out', help='write the figures to this JSON file, and a picture beside it')
parser.add_argument('--plot', help='draw the picture of a JSON file that --out wrote, and run nothing')
parser.add_argument('--turn', help=argparse.SUPPRESS)  # what the process of one turn is started with
parser.add_argument('--count', action='store_true', help=argparse.SUPPRESS)  # the turn that counts FLOPs, the first one
args = parser.parse_args()

# One turn

def contestant(name):
    "A method or somebody else's model, on its device."
    from contestants import from_checkout, from_open_clip, make_ours
    if name.startswith('open_clip '):
        import open_clip
        return from_open_clip(name, open_clip.create_model(args.size, output_dict=True)).to(args.device)
    if ' ' in name: return from_checkout(name, dict(c.split('=', 1) for c in args.checkout)).to(args.device)
    return make_ours(name, args.device, size=args.size, image_size=224, batch=args.batch, accum=args.accum, checkpointing=args.checkpointing)

def turn(name):
    "Seconds of each counted step, peak memory, FLOPs of a step, FLOPs a second of a large matrix product."
    import torch
    from rils_nb.config import Config
    from rils_nb.training.processes import tune_cpu
    from rils_nb.training.optim import optimizer_of
    from torch.utils.flop_counter import FlopCounterMode
    from contestants import make_batch, more_views
    foreign = ' ' in name
    if args.device == 'cpu' and (name.endswith('+settings') or not foreign): tune_cpu(args.precision == 'bf16')
    name = name.removesuffix('+settings')
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    batch, model = make_batch(args.batch, 224), contestant(name).train()
    batch = {k: v.to(args.device) if torch.is_tensor(v) else v for k, v in (batch | ({} if foreign else more_views(model, batch))).items()}
    optimizer = optimizer_of(model, Config(weight_decay=0.5))
    sync = torch.cuda.synchronize if args.device == 'cuda' else lambda: None
    autocast = lambda: torch.autocast(args.device, torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext()
    def step():
        sync()
        t = time.perf_counter()
        with autocast(): loss = model(batch)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        sync()
        return time.perf_counter() - t
    for _ in range(3): step()
    seconds = [step() for _ in range(args.steps)]
    peak = torch.cuda.max_memory_allocated() if args.device == 'cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.profile:
        with torch.profiler.profile() as profile: step()
        by = f'self_{args.device}_time_total'.replace('cuda', 'device')
        print(f'{name}\n{profile.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=40)}', file=sys.stderr)
    flops = None
    if args.count and not name.endswith('+compile'):
        with FlopCounterMode(display=False) as counter: step()
        flops = counter.get_total_flops()
    a = torch.randn(4096 if args.device == 'cuda' else 2048, 4096, device=args.device, dtype=torch.bfloat16 if args.precision == 'bf16' else torch.float32)
    def product():
        sync()
        t = time.perf_counter()
        a @ a.T
        sync()
        return time.perf_counter() - t
    best = 2 * a.shape[0]**2 * a.shape[1] / min(product() for _ in range(8))
    device = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    return dict(seconds=seconds, peak=peak, flops=flops, best=best, torch=torch.__version__, device=device)

# All turns

def start(name, *more):
    "A turn in a process of its own."
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], '--turn', name, *more], capture_output=True, text=True)

def fails(name, run): sys.exit(f'\nerror: `{name}` does not run:\n{run.stderr[-2000:]}')

def largest(name):
    "The largest batch that fits: doubled until one does not, then to within a sixteenth."
    def fits(batch):
        print(f'\r{name}: batch {batch:<10}', end='', file=sys.stderr, flush=True)
        run = start(name, '--batch', str(batch), '--steps', '1')
        if run.returncode not in (0, -9) and not any(w in run.stderr for w in ('out of memory', "can't allocate memory", 'MemoryError')): fails(name, run)
        return not run.returncode and json.loads(run.stdout.splitlines()[-1])
    best, step, came = 0, args.batch, None
    while now := fits(best + step): best, step, came = best + step, best + step, now
    if not best: return f'{name}: a batch of {args.batch} does not fit'
    while (step := step // 2) * 16 >= best:
        if now := fits(best + step): best, came = best + step, now
    return f'{name}: batch {best}, peak {came["peak"] / 1e9:.1f} GB, {best / came["seconds"][0]:.1f} images/s in one step'

def compare():
    "Let the contestants take turns; the figures."
    names, turns = args.only.split(','), {}
    for r in range(args.rounds):
        for name in names:
            print(f'\rround {r + 1}/{args.rounds}: {name:40}', end='', file=sys.stderr, flush=True)
            run = start(name, *['--count'] * (r == 0))
            if run.returncode: fails(name, run)
            turns.setdefault(name, []).append(own := json.loads(run.stdout.splitlines()[-1]))
            print(f'\rround {r + 1}/{args.rounds}: {name:24} {statistics.median(own["seconds"]):.3f} s a step, {own["peak"] / 1e9:.1f} GB', file=sys.stderr)  # so that a run that is cut off has said what it knew
    rows = []
    for name, own in turns.items():
        seconds = [statistics.median(t['seconds']) for t in own]
        flops, s = own[0]['flops'], statistics.median(seconds)
        rows.append(dict(name=name, seconds=s, ratio=statistics.median(a / statistics.median(t['seconds']) for a, t in zip(seconds, turns[names[0]])),
                         images_per_second=args.batch / s, peak_gb=statistics.median(t['peak'] for t in own) / 1e9, tflop=flops and flops / 1e12,
                         mfu=flops and flops / s / statistics.median(t['best'] for t in own)))
    settings = {k: getattr(args, k) for k in ('precision', 'size', 'batch', 'rounds', 'steps', 'accum', 'checkpointing')}
    return dict(device=own[0]['device'], torch=own[0]['torch']) | settings | dict(rows=rows)

def table(figures):
    "The figures as text."
    share = lambda v, f: '' if v is None else f.format(v)
    yield f'{"":24} {"s/step":>8} {"ratio":>6} {"img/s":>8} {"peak GB":>8} {"TFLOP":>7} {"MFU":>5}'
    for r in figures['rows']:
        yield f'{r["name"]:24} {r["seconds"]:8.3f} {r["ratio"]:6.2f} {r["images_per_second"]:8.1f} {r["peak_gb"]:8.1f} {share(r["tflop"], "{:7.2f}")} {share(r["mfu"], "{:5.0%}")}'

def plot(figures, path):
    "The ratios of the steps' times as bars."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rows = figures['rows'][::-1]
    fig, ax = plt.subplots(figsize=(6, 0.3 * len(rows) + 0.9))
    ax.barh([r['name'] for r in rows], [r['ratio'] for r in rows], color=['#8a8a8a' if ' ' in r['name'] else '#3b6ea5' for r in rows])
    ax.axvline(1, color='black', lw=0.8)
    label = dict(va='center', fontsize=8, bbox=dict(fc='white', ec='none', pad=0.6))
    for i, r in enumerate(rows): ax.text(r['ratio'] + 0.015, i, f'{r["ratio"]:.2f}   {r["peak_gb"]:.1f} GB', **label)
    ax.set_xlim(0, max(r['ratio'] for r in rows) * 1.22)
    ax.set_title(f'Time of a step against {figures["rows"][0]["name"]}, {figures["size"]}, {figures["precision"]}, batch {figures["batch"]}\n{figures["device"]}', fontsize=9)
    ax.spines[['top', 'right']].set_visible(False)
    fig.savefig(path, dpi=100, bbox_inches='tight')

if args.turn: print(json.dumps(turn(args.turn)))
elif args.plot: plot(json.loads(Path(args.plot).read_text()), Path(args.plot).with_suffix('.png'))
elif args.largest:
    for name in args.only.split(','): print('\r' + largest(name))
elif args.profile:
    for name in args.only.split(','): print(start(name).stderr)
else:
    figures = compare()
    print(*table(figures), sep='\n')
    if args.out:
        Path(args.out).write_text(json.dumps(figures, indent=1) + '\n')
        plot(figures, Path(args.out).with_suffix('.png'))
