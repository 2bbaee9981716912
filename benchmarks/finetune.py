"""Time of one step of fine-tuning (forward, backward, AdamW): the method `finetune` beside timm's own model, mixing, drop path and loss on the same batch.

    python benchmarks/finetune.py                                       # ViT-B/16, batch 8, float32, this machine's CPU
    python benchmarks/finetune.py --device cuda --precision bf16 --batch 128 --rounds 5 --steps 20
    python benchmarks/finetune.py --size tiny --batch 16                # seconds, to see that it runs

Each contestant runs in a process of its own and in turns, as in step.py: three steps that do not count and `--steps` that do. Printed are medians over
the rounds, and the median of the rounds' ratios to `timm`. Both get the same bytes, labels and settings: Mixup 0.8, CutMix 1.0, smoothing 0.1, drop path
0.1, layer-wise rates, fused AdamW. timm mixes the batch with itself reversed under one lambda, we mix neighbours under one each. `timm+settings` gets
what our trainer sets for the process on CPUs (`processes.tune_cpu`).
"""
import argparse, contextlib, json, statistics, subprocess, sys, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--batch', type=int, default=8, help='images in a step, an even number')
parser.add_argument('--rounds', type=int, default=3, help='rounds of turns')
parser.add_argument('--steps', type=int, default=3, help='counted steps in a turn')
parser.add_argument('--classes', type=int, default=1000, help='how many')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--precision', default='float32', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--size', default='ViT-B-16', help='encoder size')
parser.add_argument('--only', default='timm,timm+settings,finetune', help='contestants, the first is the reference')
parser.add_argument('--turn', help=argparse.SUPPRESS)  # what the process of one turn is started with
args = parser.parse_args()

def theirs(side):
    "timm's model and loss; what a step does."
    import timm, torch
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import param_groups_layer_decay
    from rils_nb.models.vit import SIZES
    model = timm.create_model(SIZES[args.size].timm, num_classes=args.classes, img_size=side, global_pool='avg', drop_path_rate=0.1).to(args.device).train()
    mean, std = (torch.tensor(v, device=args.device).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    mix, criterion = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=args.classes), SoftTargetCrossEntropy()
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.65)
    def loss(batch):
        x, target = mix((batch['image'].float() / 255 - mean) / std, batch['label'])
        return criterion(model(x), target)
    return loss, torch.optim.AdamW([g | dict(lr=4e-4 * g.pop('lr_scale')) for g in groups], fused=True)

def ours(side):
    "The method and its optimizer."
    from rils_nb.config import Config
    from rils_nb.methods.base import make
    from rils_nb.training.optim import optimizer_of
    config = Config(method='finetune', opts=f'classes={args.classes}', size=args.size, image_size=side, batch=args.batch, lr=4e-4, weight_decay=0.05, beta2=0.999)
    method = make(config).to(args.device).train()
    return lambda batch: method(batch)['loss'], optimizer_of(method, config)

def turn(name):
    "Seconds of each counted step."
    import torch
    from rils_nb.config import Config
    from rils_nb.core import hash_key
    from rils_nb.models.vit import SIZES
    from rils_nb.training.processes import tune_cpu
    from rils_nb.finetuning.augment import mix_view
    if args.device == 'cpu' and name != 'timm': tune_cpu(args.precision == 'bf16')
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    side, keys = SIZES[args.size].native, [hash_key(0, 0, i) for i in range(args.batch)]
    view = mix_view(Config(image_size=side))
    batch = dict(image=torch.randint(256, (args.batch, 3, side, side), dtype=torch.uint8), label=torch.randint(args.classes, (args.batch,)),
                 mix=torch.stack([view({}, k) for k in keys]), keys=torch.tensor(keys))
    batch = {k: v.to(args.device) for k, v in batch.items()}
    loss, optimizer = (theirs if name.startswith('timm') else ours)(side)
    sync = torch.cuda.synchronize if args.device == 'cuda' else lambda: None
    autocast = lambda: torch.autocast(args.device, torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext()
    def step():
        sync()
        t = time.perf_counter()
        with autocast(): value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        sync()
        return time.perf_counter() - t
    for _ in range(3): step()
    return [step() for _ in range(args.steps)]

def compare():
    "Let the contestants take turns."
    names, turns = args.only.split(','), {}
    for r in range(args.rounds):
        for name in names:
            print(f'\rround {r + 1}/{args.rounds}: {name:20}', end='', file=sys.stderr, flush=True)
            run = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--turn', name], capture_output=True, text=True)
            if run.returncode: sys.exit(f'\nerror: `{name}` does not run:\n{run.stderr[-2000:]}')
            turns.setdefault(name, []).append(statistics.median(json.loads(run.stdout.splitlines()[-1])))
    print(f'\r{"":16} {"s/step":>8} {"ratio":>6} {"img/s":>8}')
    for name, own in turns.items():
        s, ratio = statistics.median(own), statistics.median(a / b for a, b in zip(own, turns[names[0]]))
        print(f'{name:16} {s:8.3f} {ratio:6.2f} {args.batch / s:8.1f}')

if args.turn: print(json.dumps(turn(args.turn)))
else: compare()
