"""Time and extra peak memory of the reconstruction loss, forward and backward, beside its plain computation.

    python benchmarks/loss.py                   # 128 images, 147 of 196 patches masked, 4,096 texts, 512 channels
    python benchmarks/loss.py --device cuda
"""
import argparse, statistics, time

import torch
import torch.nn.functional as F
from rils_nb.training.processes import tune_cpu
from rils_nb.losses import language_reconstruction
from torch.profiler import ProfilerActivity, profile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--images', type=int, default=128, help='images of one process, all matched')
parser.add_argument('--texts', type=int, default=4096, help='texts of all processes')
parser.add_argument('--rounds', type=int, default=5, help='alternating rounds after one that is not counted')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
args = parser.parse_args()

def plain(g, f, z, mask, matched):
    "Eq. 8-9 on all hidden rows at once."
    rows = mask.bool() & matched[:, None]
    z = F.normalize(z, dim=-1)
    log_q = (F.normalize(g[rows], dim=-1) @ z.T / 0.1).log_softmax(-1)
    log_p = (F.normalize(f[rows], dim=-1) @ z.T / 0.04).log_softmax(-1).detach()
    return F.kl_div(log_q, log_p, reduction='sum', log_target=True) / rows.sum()

def peak(run):
    "Bytes that a function holds at its peak, beyond what was there before."
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: run()
    held = most = 0
    for e in sorted((e for e in p.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        held += e.nbytes()
        most = max(most, held)
    return most

if args.device == 'cpu': tune_cpu()
torch.manual_seed(0)
n, e = 196, 512
g, f, z = (torch.randn(*s, e, device=args.device) for s in ((args.images, n), (args.images, n), (args.texts,)))
f, z = f + z[:args.images, None], z + 0.1
mask = (torch.rand(args.images, n, device=args.device).argsort(1) < 147)
matched = torch.ones(args.images, dtype=torch.bool, device=args.device)

def run(loss, to=torch.float32):
    x = g.to(to).requires_grad_()
    value = loss(x, f.to(to), z.to(to), mask, matched)
    return value.detach(), torch.autograd.grad(value, x)[0]

def apart(x, y): return f'{(x - y).norm() / y.norm():.1e}'

def seconds(loss):
    if args.device == 'cuda': torch.cuda.synchronize()
    t = time.perf_counter()
    run(loss)
    if args.device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - t

times = [(seconds(plain), seconds(language_reconstruction)) for _ in range(args.rounds + 1)][1:]
memory = [peak(lambda: run(loss)) for loss in (plain, language_reconstruction)]
(a, ga), (b, gb) = run(plain), run(language_reconstruction)
print(f'plain {statistics.median(t[0] for t in times):.2f} s, {memory[0] / 1e6:,.0f} MB; language_reconstruction '
      f'{statistics.median(t[1] for t in times):.2f} s, {memory[1] / 1e6:,.0f} MB')
print(f'time {statistics.median(b / a for a, b in times):.2f}x, memory 1/{memory[0] / memory[1]:.1f}; relative difference of the value '
      f'{apart(b, a)}, of the gradient {apart(gb, ga)}')
if args.images * args.texts <= 2**20:  # all of it in float64 as well, where the machine allows that
    exact = run(plain, torch.float64)[1]
    print(f'gradient in float64: relative difference {apart(run(language_reconstruction, torch.float64)[1], exact)}; '
          f'float32 is as far from it as rounding makes it: plain {apart(ga, exact)}, language_reconstruction {apart(gb, exact)}')
