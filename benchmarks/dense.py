"""Time and memory of one step of dense transfer (forward, backward, AdamW), and of computing AP.

    python benchmarks/dense.py --side 512                                # ViTDet-B, one image, float32, this machine's CPU
    python benchmarks/dense.py --device cuda --precision bf16 --side 1024 --batch 8 --steps 10
    python benchmarks/dense.py --size tiny --side 64 --opts pyramid=2:1,width=32,convs=1,fc=64   # seconds, to see that it runs
    python benchmarks/dense.py --ap 200                                  # hotcoco beside pycocotools on predictions of so many images

A step is one of the method on images of noise with twelve objects each, in a process of its own: one that does not count and `--steps` that do; the median is
printed. Memory is the highest that torch held on a GPU, or the highest resident size of the process on a CPU less what it had before the method was made.
"""
import argparse, contextlib, io, resource, statistics, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--side', type=int, default=512, help='of the square image')
parser.add_argument('--batch', type=int, default=1, help='images in a step')
parser.add_argument('--steps', type=int, default=3, help='counted steps')
parser.add_argument('--classes', type=int, default=80, help='how many')
parser.add_argument('--objects', type=int, default=12, help='of an image')
parser.add_argument('--size', default='ViT-B-16', help='encoder size')
parser.add_argument('--opts', default='', help='more options of the method, as key=value,key=value')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--precision', default='float32', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--checkpointing', action='store_true', help='recompute activations of the encoder')
parser.add_argument('--ap', type=int, default=0, metavar='IMAGES', help='time AP on so many images instead')
args = parser.parse_args()

def resident(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def objects(g):
    "Boxes of random places and sizes, and the ellipses within."
    import torch
    size = args.side * (0.05 + 0.45 * torch.rand(args.objects, 2, generator=g))
    corner = torch.rand(args.objects, 2, generator=g) * (args.side - size)
    at = (torch.arange(args.side) + 0.5 - corner[..., None]) / size[..., None] * 2 - 1                 # (k,2,S)
    return dict(boxes=torch.cat([corner, corner + size], 1), labels=torch.randint(args.classes, (args.objects,), generator=g),
                masks=at[:, 0, None, :].square() + at[:, 1, :, None].square() < 1)

def step():
    "Seconds of each counted step, and the memory that it took."
    import torch
    from rils_nb.config import Config
    from rils_nb.core import hash_key
    from rils_nb.methods.base import make
    from rils_nb.training.optim import optimizer_of
    from rils_nb.training.processes import tune_cpu
    if args.device == 'cpu': tune_cpu(args.precision == 'bf16')
    torch.set_float32_matmul_precision('high')
    g = torch.Generator().manual_seed(0)
    known = [objects(g) for _ in range(args.batch)]
    batch = dict(image=torch.randint(256, (args.batch, 3, args.side, args.side), dtype=torch.uint8, generator=g), keys=torch.tensor([hash_key(0, i) for i in range(args.batch)]))
    batch = {k: v.to(args.device) for k, v in batch.items()} | {k: [o[k] for o in known] for k in known[0]}
    before = resident()
    config = Config(method='detect', size=args.size, image_size=args.side, batch=args.batch, lr=1e-4, weight_decay=0.1, beta2=0.999, checkpointing=args.checkpointing,
                    opts=','.join(filter(None, [f'classes={args.classes}', args.opts])))
    method = make(config).to(args.device).train()
    optimizer, seconds = optimizer_of(method, config), []
    autocast = lambda: torch.autocast(args.device, torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext()
    for _ in range(1 + args.steps):
        t = time.perf_counter()
        with autocast(): loss = method(batch)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()                                                                                    # waits for a GPU
        seconds.append(time.perf_counter() - t)
    s, memory = statistics.median(seconds[1:]), torch.cuda.max_memory_allocated() if args.device == 'cuda' else resident() - before
    weights = sum(p.numel() for p in method.parameters())
    print(f'{args.size}, {weights / 1e6:.1f} M weights, {args.batch} x {args.side} px, {args.precision}, {torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"}')
    print(f'{s:.3f} s a step, {args.batch / s:.2f} images/s, {memory / 2**30:.2f} GiB at most')

def average_precision():
    "Both libraries on the same predictions, boxes and masks."
    import torch
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from rils_nb.evals.detection import as_coco, average_precision
    g, truth, found = torch.Generator().manual_seed(0), [], []
    for i in range(args.ap):
        known = objects(g)
        many = torch.randint(args.objects, (100,), generator=g)                                        # a hundred an image, as detectors give
        move = (torch.rand(100, 2, generator=g) * args.side / 10).round()
        truth += as_coco(known, i)
        found += as_coco({k: v[many] for k, v in known.items()} | dict(boxes=known['boxes'][many] + move.repeat(1, 2), scores=torch.rand(100, generator=g),
            masks=torch.stack([m.roll((int(y), int(x)), (0, 1)) for m, (x, y) in zip(known['masks'][many], move)])), i)
    images, names = [dict(id=i + 1, height=args.side, width=args.side) for i in range(args.ap)], [str(c) for c in range(args.classes)]
    theirs, numbered = COCO(), [t | dict(id=i + 1) for i, t in enumerate(truth)]
    theirs.dataset = dict(images=images, annotations=numbered, categories=[dict(id=i + 1, name=n) for i, n in enumerate(names)])
    for kind in ('bbox', 'segm'):
        t = time.perf_counter()
        ours = average_precision(images, truth, found, names, kind)
        a = time.perf_counter() - t
        with contextlib.redirect_stdout(io.StringIO()):
            t = time.perf_counter()
            theirs.createIndex()
            judge = COCOeval(theirs, theirs.loadRes([dict(f) for f in found]), kind)
            judge.evaluate(), judge.accumulate(), judge.summarize()
            b = time.perf_counter() - t
        assert ours['ap'] == judge.stats[0], (ours, judge.stats)
        print(f'{kind}: AP {100 * ours["ap"]:.3f} of {len(found)} objects by both; hotcoco {a:.3f} s, pycocotools {b:.3f} s, {b / a:.0f} times as long')

average_precision() if args.ap else step()
