"""Images per second and core from shards to the device, ours beside open_clip's training pipeline, in alternating rounds.

    OMP_NUM_THREADS=1 python benchmarks/data.py                # 512 x 384 JPEGs, crops of half the area and more, 224 px, no workers
    OMP_NUM_THREADS=1 python benchmarks/data.py --memory       # resident memory of all processes over 200,000 samples of 32 px

The shards hold crops of the two photographs that scikit-learn brings along, resized, mirrored at random, written at quality 90 (2.2 bits a pixel,
as photographs have), with captions of 12 words. open_clip's pipeline is `open_clip_train.data.get_wds_dataset` with `image_transform`, as its
trainer calls them, but with our range of crops. It normalises as it loads; ours gives uint8, which the model normalises on the device:
`rils_nb normalised` counts that, too (on a CPU it is the same core's work, on a GPU it is nothing). The first batches of a turn, which fill
open_clip's shuffle buffer and start workers, are not counted.
"""
import argparse, importlib.util, io, json, logging, random, statistics, sys, tempfile, time
from string import ascii_lowercase
from types import ModuleType, SimpleNamespace

import open_clip
import psutil
import torch
import webdataset as wds
from PIL import Image, ImageOps
from rils_nb.data import tokens
from rils_nb.data.loader import loader
from rils_nb.data.packing import pack
from rils_nb.data.readers import open_source
from rils_nb.config import Config
from rils_nb.models.vit import SIZES, ImageEncoder
from sklearn.datasets import load_sample_images

lacking = [] if importlib.util.find_spec('pandas') else ['pandas']  # open_clip_train imports it for tables, which are not read here
sys.modules.update((name, ModuleType(name)) for name in lacking)
from open_clip_train import data as open_clip_data
for name in lacking: del sys.modules[name]
open_clip_data.tarfile_to_samples_nothrow = wds.tarfile_to_samples(handler=open_clip_data.log_and_continue)  # theirs fails with webdataset 1

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--workers', type=int, default=0, help='loading processes; 0 = in this one')
parser.add_argument('--batch', type=int, default=64, help='images in a batch')
parser.add_argument('--batches', type=int, default=8, help='counted batches in a turn')
parser.add_argument('--rounds', type=int, default=7, help='counted rounds after one that is not; in each, every contestant has a turn')
parser.add_argument('--size', default='512x384', help='width x height of the JPEGs in the shards')
parser.add_argument('--samples', type=int, default=2000, help='images in the shards')
parser.add_argument('--crop', type=float, default=0.5, help='smallest share of the area that a crop keeps')
parser.add_argument('--device', default='cpu', help='cpu or cuda')
parser.add_argument('--memory', action='store_true', help='instead: how memory grows over 200,000 samples, with 0 and with 2 workers')
parser.add_argument('--out', help='write the figures to this JSON file')
args = parser.parse_args()

def shards(folder, n, width, height, captions=1):
    "Write `n` images with captions of 11 words and a made-up name into 4 shards; returns their pattern."
    rng, words = random.Random(0), [w[:-4] for w in tokens._tokenizer().encoder if w.endswith('</w>') and w[:-4].isalpha()]
    photos = [Image.fromarray(x) for x in load_sample_images().images]
    with wds.ShardWriter(f'{folder}/%d.tar', maxcount=n // 4, encoder=False, verbose=0) as writer:
        for i in range(n):
            photo = photos[i % 2]
            h = rng.randint(7 * photo.height // 10, photo.height)
            w = min(photo.width, h * width // height)
            x, y = rng.randint(0, photo.width - w), rng.randint(0, photo.height - h)
            image = photo.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
            (ImageOps.mirror(image) if rng.random() < 0.5 else image).save(file := io.BytesIO(), 'JPEG', quality=90)
            texts = [' '.join([*rng.choices(words, k=11), ''.join(rng.choices(ascii_lowercase, k=8))]) for _ in range(captions)]
            writer.write({'__key__': f'{i:06}', 'jpg': file.getvalue(), 'txt': texts[0].encode()} | ({'json': json.dumps(dict(caption=texts)).encode()} if captions > 1 else {}))
    return folder + '/{0..3}.tar'

def theirs(pattern):
    "open_clip's batches of float images and tokens."
    transform = open_clip.image_transform(224, is_train=True, aug_cfg=dict(scale=(args.crop, 1.)))
    options = SimpleNamespace(train_data=pattern, train_num_samples=10**7, train_data_upsampling_factors=None, seed=0, batch_size=args.batch,
                              workers=args.workers, world_size=1)
    for image, _ in open_clip_data.get_wds_dataset(options, transform, is_train=True, tokenizer=open_clip.get_tokenizer('ViT-B-32')).dataloader:
        yield image.to(args.device, non_blocking=True)

def ours(pattern):
    "Our batches of uint8 images, on the device."
    tokens._tokens.cache_clear()  # as if every caption came for the first time
    config = Config(data=pattern, image_size=224, crop=args.crop, batch=args.batch, workers=args.workers)
    for batch in loader(config, open_source(pattern), ('image', 'tokens')): yield batch['image'].to(args.device, non_blocking=True)

encoder = ImageEncoder(SIZES['tiny'].timm, 32).to(args.device)
def normalised(pattern):
    "Ours, with what the image encoder does first."
    return (encoder.normalise(image) for image in ours(pattern))

def turn(pipeline, pattern):
    "Images per second and core."
    batches = pipeline(pattern)
    for _ in range(1 + 2 * args.workers): next(batches)  # buffers and queues are filled
    if args.device == 'cuda': torch.cuda.synchronize()
    t = time.perf_counter()
    for _ in range(args.batches): assert next(batches).shape == (args.batch, 3, 224, 224)
    if args.device == 'cuda': torch.cuda.synchronize()
    return args.batches * args.batch / (time.perf_counter() - t) / max(1, args.workers)

def speed(folder):
    "Alternate turns, print the medians, return the rows."
    pattern = shards(folder, args.samples, *map(int, args.size.split('x')))
    contestants = {'open_clip': theirs, 'rils_nb': ours, 'rils_nb normalised': normalised}
    rates = {name: [] for name in contestants}
    for round_ in range(args.rounds + 1):
        for name, pipeline in contestants.items():
            rate = turn(pipeline, pattern)
            if round_: rates[name].append(rate)
    rows = []
    for name, r in rates.items():
        ratio = statistics.median(a / b for a, b in zip(r, rates['open_clip']))
        rows.append(dict(name=name, images_per_second_and_core=statistics.median(r), ratio=ratio))
        print(f'{name:20} {rows[-1]["images_per_second_and_core"]:8.0f} img/s/core   {ratio:.2f}x open_clip')
    return rows

def memory(folder):
    "Resident memory in MB of this process and its workers at every 20,000th sample; returns the rows."
    pattern, rows, batch = shards(folder, 10_000, 32, 32, captions=10), [], 100
    source = open_source(pattern)
    for workers in (0, 2):
        config, held = Config(data=pattern, image_size=32, crop=args.crop, batch=batch, workers=workers), []
        for step, _ in enumerate(loader(config, source, ('image', 'tokens'), steps=200_000 // batch), 1):
            if step * batch % 20_000 == 0: held.append([p.memory_info().rss / 2**20 for p in (psutil.Process(), *psutil.Process().children())])
        rows.append(dict(name=f'{workers} workers', megabytes=held))
        at = lambda i: ' + '.join(f'{m:.1f}' for m in held[i])
        print(f'{workers} workers: {at(0)} MB at sample 20,000, {at(2)} at 60,000 (caches are full), {at(-1)} at 200,000')
    return rows

if __name__ == '__main__':
    torch.manual_seed(0)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder: rows = (memory if args.memory else speed)(folder)
    if args.out:
        device = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
        with open(args.out, 'w') as f:
            json.dump(dict(device=device, torch=torch.__version__, size=args.size, batch=args.batch, workers=args.workers, rounds=args.rounds, rows=rows), f, indent=1)
