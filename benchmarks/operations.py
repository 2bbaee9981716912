"""What a training step asks of the device: operations, casts, bytes and FLOPs of a forward and a backward pass, without a GPU and in seconds.

    python benchmarks/operations.py                                         # encoders of 12 + 12 blocks, narrow
    python benchmarks/operations.py --only rils@0.5 --top 12                # which operations they are
    python benchmarks/operations.py --gpu 65,683,4.0 --at 256               # what a GPU makes of ViT-B/16 with a batch of 256

Counted is every operation that reaches the device and is no view: allocations and views launch nothing. Products and attention give zeros instead of being computed. Counts do not depend on the machine, the width or
the batch (a batch so large that a loss works through it in chunks has some more; weights of more than 16 million are cast back in several operations).
Bytes are those of the tensors that an operation reads and writes, each once; FLOPs are those of products and attention. With `--gpu LAUNCH,PEAK,BANDWIDTH`
(microseconds of the host for an operation, TFLOP/s and TB/s that the GPU reaches) the real size is counted at two small batches, which gives each operation's
bytes and FLOPs at the batch of `--at`. The host needs LAUNCH for each operation; the GPU needs for each the longer of FLOPs / PEAK and bytes / BANDWIDTH; a
step takes the longer of both sums, AdamW included. Contestants as in benchmarks/step.py.
"""
import argparse, contextlib, logging, warnings
from collections import Counter
from types import SimpleNamespace

NAMES = 'open_clip clip,open_clip clip+cut,clip,rils@0.5,rils@1.0,mae,mae_clip,simclr,slip,milan,maskclip,silc,tips,aclip'
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--only', default=NAMES, help=f'contestants (default: {NAMES})')
parser.add_argument('--precision', default='bf16', choices=('float32', 'bf16'), help='bf16 computes under autocast')
parser.add_argument('--depth', type=int, default=12, help='blocks of each encoder')
parser.add_argument('--width', type=int, default=128, help='of both encoders, a multiple of 64')
parser.add_argument('--batch', type=int, default=8, help='images in a step')
parser.add_argument('--top', type=int, default=0, help='print the most frequent operations as well')
parser.add_argument('--gpu', metavar='LAUNCH,PEAK,BANDWIDTH', help='instead: the time of a step of ViT-B/16 on such a GPU')
parser.add_argument('--at', type=int, default=256, help='the batch for --gpu')
args = parser.parse_args()
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)

import timm, torch
from open_clip import create_model
from open_clip.model import CLIP
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from contestants import from_open_clip, make_batch, make_ours, more_views
from rils_nb.config import Config
from rils_nb.models.vit import SIZES, Size
from rils_nb.training.optim import optimizer_of

SIDE = 96  # of the narrow encoders' images in pixels

@register_model
def benchmark_vit(pretrained=False, pretrained_cfg=None, **kwargs):
    more = dict(img_size=SIDE, patch_size=16, embed_dim=args.width, depth=args.depth, num_heads=args.width // 64) | kwargs
    cfg = dict(num_classes=0, input_size=(3, SIDE, SIDE), first_conv='patch_embed.proj', classifier='head')
    return build_model_with_cfg(VisionTransformer, 'benchmark_vit', pretrained, pretrained_cfg=cfg, **more)

SIZES['benchmark'] = Size('benchmark_vit', 16, embed=args.width, text_width=args.width, text_depth=args.depth, text_heads=args.width // 64, native=SIDE)

# Counting

LAUNCHES_NOTHING = {'_unsafe_view', 'detach', 'lift_fresh', 'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided'}
CASTS = {'_to_copy', 'copy_', '_foreach_copy_'}
_attention = '_scaled_dot_product_flash_attention_for_cpu'
UNKNOWN = {_attention: lambda q, k, v, *_: flop_counter.sdpa_flop_count(q.shape, k.shape, v.shape),  # to torch's counter
           f'{_attention}_backward': lambda grad, q, k, v, *_: flop_counter.sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape),
           'addmm_': lambda c, a, b: 2 * a.shape[0] * a.shape[1] * b.shape[1]}
PRODUCTS = {*UNKNOWN, 'mm', 'addmm', 'bmm', 'baddbmm', 'convolution', 'convolution_backward'}

def give_zeros(func, given, kwargs):
    "What an operation gives, in shape and precision: a product takes long, and nothing that is counted depends on its values."
    if func.overloadpacket.__name__.endswith('_'): return given[0]
    out = func(*tree_map_only(torch.Tensor, lambda t: t.to('meta'), given), **kwargs)
    return tree_map_only(torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).zero_(), out)

def bytes_of(t): return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())  # what is expanded is read once

class Counting(TorchDispatchMode):
    "Within this block, what each operation is called, reads and writes, and computes."
    def __init__(self):
        super().__init__()
        self.found = []
    def __torch_dispatch__(self, func, types, given=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = give_zeros(func, given, kwargs or {}) if name in PRODUCTS else func(*given, **(kwargs or {}))
        if func.is_view or name in LAUNCHES_NOTHING: return out
        tensors = [[t for t in tree_leaves(v) if torch.is_tensor(t)] for v in (given, out)]
        count = flop_counter.flop_registry.get(func.overloadpacket)
        flops = UNKNOWN[name](*given) if name in UNKNOWN else count(*given, **(kwargs or {}), out_val=out) if count else 0
        kinds = {t.dtype for v in tensors for t in v}
        self.found.append(SimpleNamespace(name=name, bytes=sum(bytes_of(t) for v in tensors for t in v), flops=flops, cast=name in CASTS and len(kinds) > 1))
        return out

def contestant(name, size):
    if not name.startswith('open_clip '): return make_ours(name, 'cpu', size=size, image_size=SIZES[size].native, batch=args.batch)
    towers = dict(layers=args.depth, width=args.width)
    narrow = lambda: CLIP(args.width, dict(image_size=SIDE, patch_size=16, **towers), dict(heads=args.width // 64, **towers), output_dict=True)
    return from_open_clip(name, narrow() if size == 'benchmark' else create_model(size, output_dict=True))

def count(model, batch):
    "The operations of a step's forward and backward pass, and those of AdamW."
    optimizer = optimizer_of(model, Config())
    for _ in range(2):  # the second step is like all that follow
        optimizer.zero_grad()
        with Counting() as passes:
            with torch.autocast('cpu', torch.bfloat16) if args.precision == 'bf16' else contextlib.nullcontext(): loss = model(batch)['loss']
            loss.backward()
        with Counting() as update: optimizer.step()
    return passes.found, update.found

def counted(name, size, n):
    "The same for a contestant and a batch of `n`."
    torch.manual_seed(0)
    model, batch = contestant(name, size).train(), make_batch(n, SIZES[size].native)
    return count(model, batch if ' ' in name else batch | more_views(model, batch))

# Tables

def print_counts():
    print(f'{"":20} {"operations":>10} {"of them casts":>13} {"AdamW":>6} {"MB":>8} {"GFLOP":>7}')
    for name in args.only.split(','):
        passes, update = counted(name, 'benchmark', args.batch)
        print(f'{name:20} {len(passes):10,} {sum(o.cast for o in passes):13,} {len(update):6} {sum(o.bytes for o in passes) / 1e6:8,.0f} {sum(o.flops for o in passes) / 1e9:7.1f}', flush=True)
        if args.top: print('   ' + ', '.join(f'{k} {v}' for k, v in Counter(o.name for o in passes).most_common(args.top)))

def print_times():
    launch, peak, bandwidth = map(float, args.gpu.split(','))
    print(f'ViT-B/16, {args.precision}, batch {args.at}: {launch:g} us an operation, {peak:g} TFLOP/s, {bandwidth:g} TB/s')
    print(f'{"":20} {"operations":>10} {"host ms":>8} {"GPU ms":>7} {"TFLOP":>6} {"GB":>6} {"images/s":>9}  limit')
    for name in args.only.split(','):
        small, large = (sum(counted(name, 'ViT-B-16', n), []) for n in (4, 8))
        if [o.name for o in small] != [o.name for o in large]: raise SystemExit(f'{name}: the operations depend on the batch')
        grow = lambda a, b: a + (b - a) / 4 * (args.at - 4)
        flops, moved = ([grow(getattr(a, k), getattr(b, k)) for a, b in zip(small, large)] for k in ('flops', 'bytes'))
        host, gpu = len(small) * launch / 1e6, sum(max(f / peak / 1e12, m / bandwidth / 1e12) for f, m in zip(flops, moved))
        print(f'{name:20} {len(small):10,} {host * 1e3:8.0f} {gpu * 1e3:7.0f} {sum(flops) / 1e12:6.1f} {sum(moved) / 1e9:6.0f} {args.at / max(host, gpu):9,.0f}  {"host" if host > gpu else "GPU"}', flush=True)

print_times() if args.gpu else print_counts()
