"""Time of one training step (forward, backward, AdamW), ours beside open_clip's CLIP, in alternating rounds of one run.

    python benchmarks/step.py                                  # ViT-B/16, batch 8, float32, this machine's CPU
    python benchmarks/step.py --device cuda --precision bf16 --batch 256 --rounds 20

Prints the median seconds of each and the ratio to open_clip, the median of the ratios of the rounds. `rils@0.5` has half of its images
matched. Captions have 12 to 20 tokens; open_clip computes all 77, as its training does.
"""
import argparse, contextlib, json, statistics, time

import open_clip
import torch
from open_clip.loss import ClipLoss
from rils_nb.config import Config
from rils_nb.core import key
from rils_nb.methods import RILS, make
from rils_nb.train import optimizer_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--batch', type=int, default=8, help='images in a step')
parser.add_argument('--rounds', type=int, default=5, help='counted rounds after one that is not; in each, every contestant has a turn of 3 steps, the last 2 count')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--precision', default='float32', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--size', default='ViT-B-16', help='encoder size; open_clip must know a model of this name')
parser.add_argument('--only', default='open_clip clip,clip,rils@0.1,rils@0.5,rils@1.0,mae,mae_clip', help='contestants, the first is the reference')
parser.add_argument('--out', help='write the figures to this JSON file')
args = parser.parse_args()

class Given(RILS):
    "RILS with a given share of matched images."
    share = 1.
    def reconstruct(self, x, f, z_t, hit, keys):
        given = torch.arange(len(hit), device=hit.device) < round(self.share * len(hit))
        return super().reconstruct(x, f, z_t, given, keys)

class OpenCLIP(torch.nn.Module):
    "open_clip's own model and loss on the same batch; normalised on the device as ours is."
    def __init__(self):
        super().__init__()
        self.model, self.loss = open_clip.create_model(args.size, output_dict=True), ClipLoss()
        for name in ('mean', 'std'): self.register_buffer(name, torch.tensor(getattr(open_clip, f'OPENAI_DATASET_{name.upper()}')).view(3, 1, 1))
    def forward(self, batch):
        image = (batch['image'].float() / 255 - self.mean) / self.std
        full = torch.nn.functional.pad(batch['tokens'], (0, 77 - batch['tokens'].shape[1]))
        return dict(loss=self.loss(**self.model(image, full)))
    def after_step(self): self.model.logit_scale.data.clamp_(0, 4.6052)

def contestant(name):
    "A model with its optimizer, by name: `open_clip clip`, a method, or `rils@SHARE`."
    config = Config(method=name.partition('@')[0] if ' ' not in name else 'clip', size=args.size, image_size=224, batch=args.batch, weight_decay=0.5)
    if ' ' in name: model = OpenCLIP()
    elif '@' in name:
        model = Given(config)
        model.share = float(name.partition('@')[2])
    else: model = make(config)
    model = model.to(args.device).train()
    return model, optimizer_of(model, config)

def sync():
    if args.device == 'cuda': torch.cuda.synchronize()

def step(model, optimizer, batch):
    "Seconds of one step."
    sync()
    t = time.perf_counter()
    with torch.autocast(args.device, torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext(): loss = model(batch)['loss']
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.after_step()
    sync()
    return time.perf_counter() - t

torch.manual_seed(0)
torch.set_float32_matmul_precision('high')
lengths = torch.randint(12, 21, (args.batch,))
tokens = torch.randint(1, 49000, (args.batch, 20)) * (torch.arange(20) < lengths[:, None])
tokens[torch.arange(args.batch), lengths - 1] = 49407
batch = dict(image=torch.randint(256, (args.batch, 3, 224, 224), dtype=torch.uint8), tokens=tokens, ids=torch.arange(args.batch),
             keys=torch.tensor([key(0, 0, i) for i in range(args.batch)]))
batch = {k: v.to(args.device) for k, v in batch.items()}
names = args.only.split(',')
models = {name: contestant(name) for name in names}
seconds = {name: [] for name in names}
for round_ in range(args.rounds + 1):
    for name in names:
        turn = [step(*models[name], batch) for _ in range(3)]
        if round_: seconds[name].append(sum(turn[1:]) / 2)  # the first step of a turn pays for memory that the last contestant gave back

rows = []
for name in names:
    ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[names[0]]))
    rows.append(dict(name=name, seconds=statistics.median(seconds[name]), ratio=ratio, images_per_second=args.batch / statistics.median(seconds[name])))
    print(f'{name:16} {rows[-1]["seconds"]:8.3f} s {rows[-1]["images_per_second"]:8.1f} img/s   {ratio:.2f}x {names[0]}')
if args.out:
    device = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    with open(args.out, 'w') as f:
        json.dump(dict(device=device, torch=torch.__version__, precision=args.precision, size=args.size, batch=args.batch, rounds=args.rounds, rows=rows), f, indent=1)
