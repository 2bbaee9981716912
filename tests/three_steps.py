"""Three steps of every method on one global batch of 8, shared by however many processes there are: loss, gradients and weights go to a file."""
import re

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from rils_nb.config import Config, recipe
from rils_nb.core import hash_key
from rils_nb.data.loader import loader
from rils_nb.training.processes import full_tensors, world
from rils_nb.methods.base import METHODS, complete_config, import_methods, make
from rils_nb.models.passes import TwoPasses
from rils_nb.methods.rils import RILS
from rils_nb.data.scenes import Scenes
from rils_nb.training.optim import optimizer_of
from small import light

PIXELS = 'decoder_width=64,decoder_depth=2,decoder_heads=4'
RUNS = dict(clip='', mae=PIXELS, mae_clip=PIXELS, rils='', rils_one_sided='', rils_none_matched='', rils_prototypes='prototype_grad=true')
RUNS |= dict(clip_sigmoid='contrastive=sigmoid', clip_frozen='freeze=image', rils_learned='num_prototypes=7,every_image=true', rils_averaged='ema_targets=encoder,visible_patches=true',
             rils_local='local_targets=true,decoder=prompting', rils_semantic='')
RUNS |= {f'{run}_accum': RUNS[run] for run in ('clip', 'mae', 'mae_clip', 'rils', 'rils_one_sided', 'rils_prototypes', 'clip_sigmoid', 'rils_learned')}
import_methods()
OTHERS = [m for m in METHODS if m not in RUNS]  # with the options of their recipe on the scenes, shapes_NAME
RUNS |= {f'{m}{more}': None for m in OTHERS for more in ('', '_accum')}
LABELLED = dict(finetune_augmented=dict(method='finetune', crop=0.3, flip=True, opts='erase_prob=0.5,drop_path=0.3,head_init=0.02'),  # every augmentation at once
                linear_many=dict(method='linear', opts='pools=normed:class,lr_factors=0.1:1,held_out=0.4'))
LABELLED['revcolv2_again'] = dict(method='revcolv2', size='RevColV2-tiny', checkpointing=True)  # levels computed again in the backward pass (no labels, but started in the same way)
LABELLED['milan_as_code'] = dict(method='milan', masking='semantic', opts=recipe('shapes_milan').opts + ',class_target=true,projected_prompts=true,student_pixels=true')  # its authors' code
LABELLED['finetune_columns'] = dict(method='finetune', size='RevColV2-tiny', checkpointing=True, crop=0.3, flip=True, opts='drop_path=0.3,head_init=0.02')
LABELLED['detect_cascade'] = dict(method='detect', image_size=64, opts=recipe('shapes_detect').opts + ',cascade=true,federated=3')  # three stages of boxes, each image is asked about three classes
LABELLED['detect_columns'] = dict(method='detect', size='RevColV2-tiny', checkpointing=True, image_size=64, opts='window_size=0,rel_pos=false,pyramid=2:1,width=32,convs=1,fc=32,'
                                  'anchor_scale=4,rpn_samples=32,rpn_topk=20,roi_samples=16,drop_path=0.3,cascade=true')  # a map for each level, and three looks
RUNS |= {f'{run}{more}': None for run in LABELLED for more in ('', '_accum')}
RUNS |= {f'{run}_fsdp': RUNS[run] for run in ('clip', 'mae', 'mae_clip', 'rils', 'rils_one_sided', 'rils_one_sided_accum', 'rils_averaged', 'rils_semantic', 'rils_local', *OTHERS)}
HITS = dict(rils_one_sided=[1, 0, 1, 1, 0, 0, 0, 0], rils_none_matched=[0] * 8)  # with 2 processes, the second has no matched image

class Given(RILS):
    "RILS whose matched images are given by the batch."
    def compare(self, z_i, z_t, batch): return super().compare(z_i, z_t, batch)[0], self.hit

METHODS['given'] = Given

def batch_of(step):
    "The global batch of a step: 8 images, captions of different lengths, one of them twice."
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(1, 49000, (8, 9), generator=g)
    tokens[:, 6:] = 0
    tokens[torch.arange(8), torch.randint(3, 6, (8,), generator=g)] = 49407
    tokens[5] = tokens[1]
    return dict(image=torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=g), tokens=tokens,
                ids=torch.tensor([0, 1, 2, 3, 4, 1, 6, 7]), keys=torch.tensor([hash_key(0, step, i) for i in range(8)]))

def distribute(method, fsdp):
    "A method for several processes, as Accelerate does it."
    if not fsdp: return DistributedDataParallel(method)
    for m in method.modules():
        if type(m).__name__ in method._no_split_modules: fully_shard(m)
    return fully_shard(method)

def plain(run): return run.removesuffix('_fsdp').removesuffix('_accum')  # the run by one process

def method_of(run, accum):  # -> the method of a run, in float64
    name = plain(run)
    if name in LABELLED: config = complete_config(Config(batch=8, weight_decay=0.5, accum=accum, **LABELLED[name]), Scenes(n=64))
    elif name in OTHERS: config = complete_config(recipe(f'shapes_{name}', batch=8, weight_decay=0.5, accum=accum), Scenes(n=64))
    else: config = Config(method='given' if name in HITS else re.sub('_(prototypes|sigmoid|frozen|learned|averaged|local|semantic)$', '', name), opts=RUNS[run], masking='semantic' if 'semantic' in name else 'random', batch=8, weight_decay=0.5, accum=accum)
    method = make(light(config)).double()
    if method.asks: method.meet(make(Config(method='clip', size='test', seed=1)).double().eval().requires_grad_(False))
    return method

def share_of(method, run, step):  # -> this process's share of the global batch of a step
    rank, n = world()
    if plain(run) in (*OTHERS, *LABELLED): return dict(next(iter(loader(method.config, Scenes(n=64), method.views, start=step, rank=rank, world=n, steps=step + 1))), progress=(step + 1) / 3)
    mine = slice(rank * 8 // n, (rank + 1) * 8 // n)
    if plain(run) in HITS: method.hit = torch.tensor(HITS[plain(run)], dtype=bool)[mine]
    return {k: v[mine] for k, v in batch_of(step).items()}

def three_steps(run):  # -> dict of tensors
    "Train a method for three steps in float64; everything that two process counts must agree on."
    n = world()[1]
    method = method_of(run, 2 if '_accum' in run and n > 1 else 1)                           # two processes in parts against one in one piece
    model = distribute(method, run.endswith('_fsdp')) if n > 1 else method
    optimizer, kept = optimizer_of(method, method.config), {}
    for step in range(3):
        loss = model(share_of(method, run, step))['loss']
        loss.backward()
        total = loss.detach().clone()
        if n > 1: dist.all_reduce(total)
        kept[f'loss/{step}'] = total / n
        if step == 0: kept |= full_tensors({f'grad/{k}': p.grad for k, p in method.named_parameters() if p.requires_grad}, True)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    return kept | full_tensors({f'weight/{k}': v for k, v in method.state_dict().items()}, True) | dict(world=torch.tensor(n))

def bf16_step(precision='bf16'):  # -> dict of gradients, and how many blocks had one backward pass for two passes
    "A step of RILS under autocast, all images matched in one process and some in the other; float64 is the reference."
    (rank, n), joined = world(), []
    method = make(light(Config(method='given', batch=8)))
    mine, method.hit = slice(rank * 8 // n, (rank + 1) * 8 // n), torch.tensor([1, 1, 1, 1, 0, 1, 0, 0], dtype=bool)
    method.hit = method.hit[mine]
    if precision == 'float64': method.double()
    model, whole = DistributedDataParallel(method) if n > 1 else method, TwoPasses.differentiate
    TwoPasses.differentiate = lambda self, i, grad: joined.append(len(self.kept[i])) or whole(self, i, grad)
    try:
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'): loss = model({k: v[mine] for k, v in batch_of(0).items()})['loss']
        loss.backward()
    finally: TwoPasses.differentiate = whole
    return {k: p.grad.clone() for k, p in method.named_parameters() if p.requires_grad} | dict(joined=torch.tensor(joined))

def begin_bf16(out):
    "One of the processes that share the batch."
    kept = bf16_step()
    if world()[0] == 0: torch.save(kept, out)

def begin(run, out):
    "One of the processes that share the batch."
    kept = three_steps(run)
    if world()[0] == 0: torch.save(kept, out)
