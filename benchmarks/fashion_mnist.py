"""Fashion-MNIST: what frozen features of runs are good for, and fine-tuning from a run against fine-tuning from random weights.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion       # 31 MB; or any folder with the four idx files
    python benchmarks/fashion_mnist.py --data fashion --init runs/shapes                        # two starts, two sizes of the data, three seeds: twelve runs of 2,000 steps
    python benchmarks/fashion_mnist.py --data fashion --init runs/shapes --images 200 --steps 5 --seeds 0 --folder trial      # to see that it runs
    python benchmarks/fashion_mnist.py --folder runs/fashion_mnist --show                       # the table of what has been run

Frozen features: `probe` (logistic regression on the most images of --images, its penalty chosen on a fifth of them; nearest neighbours) and `low_shot`
with the deviation over the draws, all on the 10,000 test images; the same for the same encoder with random weights. Fine-tuning: the recipe
`shapes_finetune` with crops and mirrored images, the same steps from each start, with the deviation over the seeds; from random weights all layers learn
at the same rate, from a run the lower ones more slowly. The first of --init says which encoder has random weights. What is complete is not run again,
what was stopped goes on. Nothing else should run meanwhile.
"""
import argparse, dataclasses, gzip, statistics, sys
from pathlib import Path

import numpy as np
import torch
from rils_nb import evaluate, fit, load, recipe
from rils_nb.core import command, read_jsonl, UserError, writing_folder
from rils_nb.evals.low_shot import show_low_shot
from rils_nb.evals.harness import record, format_metric
from rils_nb.methods.base import make
from rils_nb.data.packing import pack
from rils_nb.data.readers import Source
from rils_nb.training.runs import save
from rils_nb.data.samples import encode_png
from rils_nb.plots.viz import save_figure

CLASSES = ['T-shirt', 'trousers', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']  # 0 to 9
FILES = dict(train='train', test='t10k')
FROZEN = {'linear': 'probe/linear', '1-NN': 'probe/knn1', '20-NN': 'probe/knn20'} | {f'{k}-shot': f'low_shot/{k}_shot' for k in (1, 2, 5, 10)}
RANDOM = 'random weights'

def read_idx(folder, name):
    "The array of an idx file, packed by gzip or not, wherever it lies in a folder."
    found = sorted(p for p in Path(folder).rglob(f'{name}*') if p.name in (name, f'{name}.gz'))
    if not found: raise UserError(f'no `{name}.gz` in `{folder}`: apt-get download dataset-fashion-mnist, dpkg -x FILE {folder}')
    data = (gzip.open if found[0].suffix == '.gz' else open)(found[0], 'rb').read()
    if data[:3] != b'\0\0\x08': raise UserError(f'`{found[0]}` is no idx file of bytes')
    head = 4 + 4 * data[3]                                                                    # the number of dimensions, then each
    return np.frombuffer(data, np.uint8, offset=head).reshape(*np.frombuffer(data, '>u4', data[3], 4))

class Idx(Source):
    "The first images of each class."
    def __init__(self, folder, part, n):
        self.classes = CLASSES
        self.x, self.y = (read_idx(folder, f'{FILES[part]}-{what}') for what in ('images-idx3-ubyte', 'labels-idx1-ubyte'))
        if len(self.x) != len(self.y) or self.y.max() >= len(CLASSES): raise UserError(f'`{folder}` holds {len(self.x)} images and {len(self.y)} labels up to {self.y.max()}')
        self.index = np.sort(np.concatenate([np.flatnonzero(self.y == c)[:n // len(CLASSES)] for c in range(len(CLASSES))]))
        if len(self.index) != n: raise UserError(f'there are no {n} images, {n // len(CLASSES)} of each class, in the part `{part}`: it has {len(self.y)}')
    def __len__(self): return len(self.index)
    def raw(self, i):
        x = torch.from_numpy(self.x[self.index[i]].copy()).expand(3, -1, -1)
        return encode_png(x), '.png', None, int(self.y[self.index[i]]), str(self.index[i])

def pattern(folder, part, n): return f'{folder}/data/{part}-{n}-*.tar'

def shards(data, folder, part, n):
    "The pattern of the shards that hold a part; they are written where they are not there."
    out = folder/'data'/f'{part}-{n}'
    if not list(out.parent.glob(f'{out.name}-*.tar')): pack(Idx(data, part, n), out)
    return pattern(folder, part, n)

def measured(start, n, folder):  # -> lines of results
    "What is known of the frozen features of a model, with so many training images."
    return [r for r in read_jsonl(folder/'frozen.jsonl') if (r['model'], r['options']['train_data']) == (start, pattern(folder, 'train', n))]

def frozen(start, spec, n, test, folder):
    "Evaluate the features of a model, once."
    if measured(start, n, folder): return
    own = dict(train_data=pattern(folder, 'train', n), train_samples=0, draws=10, lists=str(folder/f'lists-{n}'))
    print(f'\n{start}, frozen', flush=True)
    record(folder/'frozen.jsonl', start, test, evaluate(spec, test, 'probe,low_shot', n=0, **own), **own)

def without_training(run, folder):
    "A checkpoint of the same encoder before its first step."
    if not folder.exists():
        with writing_folder(folder) as aside: save(make(load(run).config), aside)
    return str(folder)

def run_of(folder, start, n, steps, seed): return folder/f'from-{start.replace("/", "-").replace(" ", "-")}'/f'{n}-images-{steps}-steps-seed-{seed}'

def finetune(start, run, n, steps, seed, train, test, folder):
    "Fine-tune from a run, or from random weights, once."
    out, of = run_of(folder, start, n, steps, seed), load(run).config
    if top1(out) is not None: return
    base = recipe('shapes_finetune')
    opts = base.opts.replace('layer_decay=0.75', 'layer_decay=1') if start == RANDOM else base.opts
    print(f'\n{start}, {n} images, seed {seed}', flush=True)
    config = dataclasses.replace(base, init='' if start == RANDOM else run, opts=opts, size=of.size, image_size=of.image_size, data=train, eval_data=test, seed=seed,
                                 tasks='classification', eval_samples=0, steps=steps, crop=0.7, flip=True, workers=1, out=str(out), resume=(out/'config.json').exists())
    if stopped := fit(config): sys.exit(128 + stopped)

def top1(out):
    "What a run's classifier names right at its end, or None."
    found = [r['metrics']['top1'] for r in read_jsonl(out/'results.jsonl') if r['task'] == 'classification']
    return found[-1] if found else None

def figures(start, a, folder):  # -> list of str
    "A line of the table."
    of = {f'{r["task"]}/{k}': v for r in measured(start, max(a.images), folder) for k, v in r['metrics'].items()}
    row = [format_metric(k, of[k], of.get(f'{k}_std')) if k in of else '–' for k in FROZEN.values()]
    for n in a.images:
        found = [v for s in a.seeds if (v := top1(run_of(folder, start, n, a.steps, s))) is not None]
        row.append(format_metric('top1', statistics.mean(found), statistics.stdev(found) if len(found) > 1 else None) if found else '–')
    return row

def numbers(text): return [int(v) for v in text.split(',')]

@command
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='fashion', help='folder that holds the idx files, at any depth (fashion)')
    p.add_argument('--init', default='runs/shapes', help='runs to start from, as a,b (runs/shapes)')
    p.add_argument('--images', type=numbers, default=[1000, 60_000], help='training images, a run for each (1000,60000)')
    p.add_argument('--seeds', type=numbers, default=[0, 1, 2], help='of fine-tuning (0,1,2)')
    p.add_argument('--steps', type=int, default=2000, help='of fine-tuning, each of 128 images (2000)')
    p.add_argument('--folder', default='runs/fashion_mnist', help='where all is kept (runs/fashion_mnist)')
    p.add_argument('--show', action='store_true', help='run nothing')
    a = p.parse_args()
    folder, runs = Path(a.folder), a.init.split(',')
    starts = {r: r for r in runs} | {RANDOM: folder/'untrained'}
    if not a.show:
        test, train = shards(a.data, folder, 'test', 10_000), {n: shards(a.data, folder, 'train', n) for n in a.images}
        starts[RANDOM] = without_training(runs[0], folder/'untrained')
        for start, spec in starts.items(): frozen(start, spec, max(a.images), test, folder)
        for start, spec in starts.items():
            for n in a.images:
                for seed in a.seeds: finetune(start, spec, n, a.steps, seed, train[n], test, folder)
    head = ['start', *FROZEN, *(f'fine-tuned on {n:,}' for n in a.images)]
    rows = [[f'`{s}`' if s != RANDOM else s, *figures(s, a, folder)] for s in starts]
    for r in (head, ['---'] * len(head), *rows): print('| ' + ' | '.join(r) + ' |')
    few = {s: r['metrics'] for s in starts for r in measured(s, max(a.images), folder) if r['task'] == 'low_shot'}
    if few: save_figure(show_low_shot(few), folder/'low_shot.png')

if __name__ == '__main__': main()
