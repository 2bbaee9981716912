"""Peak memory and seconds of odd inputs: what must be refused, or done in parts, before memory is taken for it.

    python benchmarks/memory.py                       # all cases
    python benchmarks/memory.py strip photograph_evaluated
    python benchmarks/memory.py --limit 1000          # exit code 1 where a case takes more megabytes than these (the default)

Each case runs in processes of its own: one that writes its files, and one that is measured. Printed are the megabytes that are there before the case begins
(Python, torch and this package), the highest resident size of the process, and the seconds without the imports; the limit is on the difference. To add a case, write a function of a folder that writes what it
needs, and one of the same folder that does what is measured, and register it: `@case(the_first)`.
"""
import argparse, json, resource, subprocess, sys, tempfile, time
from pathlib import Path

CASES = {}  # name -> (function of a folder that writes the files, function of the folder that is measured)

def case(prepare):  # function of a folder
    "Decorator that registers what is measured under its name."
    def add(run):
        CASES[run.__name__] = prepare, run
        return run
    return add

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # megabytes

# Objects

def photograph(folder, h=3000, w=4000, objects=100):
    "A photograph of 12 megapixels with a hundred outlines of fifty points each."
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (h // 50, w // 50, 3), dtype=np.uint8)).resize((w, h)).save(folder/'photo.jpg')
    annotations = []
    for i in range(objects):
        (x, y), r, t = rng.uniform(0.2, 0.8, 2) * (w, h), rng.uniform(50, 600), np.linspace(0, 2 * np.pi, 50, endpoint=False)
        points = np.stack([x + r * np.cos(t) * rng.uniform(0.8, 1, 50), y + r * np.sin(t) * rng.uniform(0.8, 1, 50)], 1).clip(0, (w, h))
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        annotations.append(dict(id=i, image_id=1, category_id=1 + i % 3, bbox=[x0, y0, x1 - x0, y1 - y0], area=float(r * r), iscrowd=0, segmentation=[points.ravel().round(2).tolist()]))
    write_coco(folder, [dict(id=1, file_name='photo.jpg', height=h, width=w)], annotations)

def write_coco(folder, images, annotations):
    categories = [dict(id=i, name=n) for i, n in enumerate(('cat', 'dog', 'cow'), 1)]
    (folder/'all.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))

def opened(folder):
    from rils_nb.data.readers import open_source
    return open_source(f'coco:{folder}/all.json')

def detector(**kwargs):
    from rils_nb.config import Config
    from rils_nb.methods.base import make
    return make(Config(method='detect', image_size=64, batch=4, opts='classes=3,pyramid=2:1,width=32,convs=1,fc=64,anchor_scale=4,score_threshold=0'), **kwargs)

@case(photograph)
def photograph_checked(folder):
    from rils_nb.data.packing import check
    print(check(opened(folder))[0]['objects'], 'objects')

@case(photograph)
def photograph_trained_on(folder):
    from rils_nb.data.loader import loader
    m, source = detector(), opened(folder)
    print(f"loss {m(next(iter(loader(m.config, source, m.views))))['loss'].item():.2f}")

@case(photograph)
def photograph_evaluated(folder):
    from rils_nb.evals.harness import run_tasks
    m, source = detector(), opened(folder)
    m.classes = source.object_names
    print(run_tasks(m, m.config, source, 'detection'))

@case(photograph)
def photograph_packed(folder):
    from rils_nb.data.packing import pack
    source = opened(folder)
    for resize in (0, 800): pack(source, folder/f'packed{resize}', resize=resize)

@case(photograph)
def photograph_shown(folder):
    from rils_nb.plots.viz import contact_sheet, save_figure
    save_figure(contact_sheet(opened(folder)), str(folder/'sheet.png'))

def claim(folder, side):
    "A picture of 64 pixels that the file says to be much larger."
    import numpy as np
    from PIL import Image
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder/'a.png'), Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder/'b.png')
    outline = [[10, 10, side - 10, 10, side - 10, side - 10, 10, side / 2]]
    sizes = dict(a=side, b=64)
    write_coco(folder, [dict(id=i, file_name=f'{k}.png', height=n, width=n) for i, (k, n) in enumerate(sizes.items())],
               [dict(id=i, image_id=0, category_id=1, bbox=[10, 10, side - 20, side - 20], segmentation=outline) for i in range(20)] + [dict(id=99, image_id=1, category_id=1, bbox=[4, 4, 20, 20])])

@case(lambda folder: claim(folder, 20_000))
def claim_of_20000(folder):
    from rils_nb.data.packing import check
    print(*check(opened(folder))[1])

@case(lambda folder: claim(folder, 9_000))
def claim_of_9000(folder):
    from rils_nb.data.packing import check
    print(*check(opened(folder))[1])

# Label maps

def maps(folder, h, w, n=1, name='maps'):
    "Images of one size with label maps of 150 classes."
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (max(1, h // 50), max(1, w // 50), 3), dtype=np.uint8)).resize((w, h)).save(folder/f'{i}.jpg')
        Image.fromarray(rng.integers(0, 150, (max(1, h // 50), max(1, w // 50)), dtype=np.uint8)).resize((w, h), 0).save(folder/f'{i}.png')
    (folder/'maps.csv').write_text('image,map\n' + ''.join(f'{i}.jpg,{i}.png\n' for i in range(n)))

def segmenter():
    "Reads a class off each pixel: what is measured is the evaluation, whatever the model."
    import torch
    class Reads(torch.nn.Module):
        image_size, classes = 512, [str(i) for i in range(150)]
        def segment(self, x): return x.float().mean(1, keepdim=True) - torch.arange(150).view(1, -1, 1, 1)
    return Reads()

def segmented(folder, **options):
    from rils_nb.config import Config
    from rils_nb.evals.harness import run_tasks
    from rils_nb.data.readers import open_source
    print(run_tasks(segmenter(), Config(batch=16, eval_samples=0), open_source(f'maps:{folder}/maps.csv,names=150'), 'semantic_segmentation', **options))

@case(lambda folder: maps(folder, 2, 8000))
def strip(folder): segmented(folder)

@case(lambda folder: maps(folder, 3000, 4000, 3))
def large_maps(folder): segmented(folder)

@case(lambda folder: maps(folder, 1500, 2000))
def large_map_as_it_is(folder): segmented(folder, side=-1)

@case(lambda folder: maps(folder, 480, 640, 16))
def many_maps(folder): segmented(folder)

@case(lambda folder: maps(folder, 3000, 4000, 3))
def large_maps_from_words(folder):
    import torch
    from rils_nb.config import Config
    from rils_nb.evals.harness import run_tasks
    from rils_nb.data.readers import open_source
    class Sees(torch.nn.Module):  # patches and words without a meaning
        image_size = 224
        def tokenize(self, texts): return torch.tensor([len(t) for t in texts])
        def encode_text(self, t): return torch.nn.functional.one_hot(t % 16, 16).float()
        def encode_tokens(self, x, local=False): return torch.nn.functional.avg_pool2d(x.float().repeat(1, 6, 1, 1)[:, :16], 16).flatten(2).mT
    print(run_tasks(Sees(), Config(batch=32, eval_samples=0), open_source(f'maps:{folder}/maps.csv,names=ade20k'), 'zeroshot_segmentation', shifts=1))

# Pictures

def large_png(folder, mode, side):
    "A picture of one colour: a few KB in the file, much more in memory."
    from PIL import Image
    folder = folder/'pictures'
    folder.mkdir()
    if mode == 'P': Image.new('P', (side, side)).save(folder/'a.png', bits=1)
    else: Image.new(mode, (side, side), 4000).save(folder/'a.png')
    (folder/'a.txt').write_text('one colour')

def picture_checked(folder):
    from rils_nb.data.packing import check
    from rils_nb.data.readers import open_source
    print(*check(open_source(f'{folder}/pictures'))[1])

@case(lambda folder: large_png(folder, 'P', 10_000))
def palette_of_100_megapixels(folder): picture_checked(folder)

@case(lambda folder: large_png(folder, 'P', 5_000))
def palette_of_25_megapixels(folder): picture_checked(folder)

@case(lambda folder: large_png(folder, 'I;16', 8_000))
def grey_16_bits_of_64_megapixels(folder): picture_checked(folder)

@case(lambda folder: large_png(folder, 'I;16', 5_000))
def grey_16_bits_of_25_megapixels(folder): picture_checked(folder)

# Neighbours

@case(lambda folder: None)
def neighbours_of_21841_classes(folder):
    import torch
    from rils_nb.evals.probe import knn
    g = torch.Generator().manual_seed(0)
    x, y, x_test = torch.randn(5000, 64, generator=g), torch.randint(21_841, (5000,), generator=g), torch.randn(1500, 64, generator=g)
    print({k: len(v) for k, v in knn(x, y, x_test, 21_841).items()})

# The command

def run(name, folder):
    "Measure one case in this process."
    import torch, rils_nb.evals.harness, rils_nb.data.packing, rils_nb.plots.viz
    from rils_nb.methods.base import import_methods
    import_methods(), rils_nb.evals.harness.import_tasks()
    torch.set_num_threads(1)
    before, t = peak(), time.perf_counter()
    CASES[name][1](folder)
    print(json.dumps(dict(before=before, peak=peak(), seconds=time.perf_counter() - t)))

def measure(name):  # -> dict of before, peak and seconds, or the last line of what went wrong
    with tempfile.TemporaryDirectory() as folder:
        for what in ('prepare', 'run'):
            out = subprocess.run([sys.executable, __file__, '--do', what, name, folder], capture_output=True, text=True)
            if out.returncode: return (out.stderr.strip().splitlines() or [f'ended with code {out.returncode}'])[-1]
        return json.loads(out.stdout.splitlines()[-1])

if __name__ == '__main__':
    if sys.argv[1:2] == ['--do']:
        what, name, folder = sys.argv[2:]
        CASES[name][0](Path(folder)) if what == 'prepare' else run(name, Path(folder))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', metavar='CASE', help=', '.join(CASES) + '; none: all')
    parser.add_argument('--limit', type=int, default=1000, help='megabytes that a case may take beside what was there before (1000)')
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES): parser.error(f'no case {", ".join(sorted(unknown))} (there are {", ".join(CASES)})')
    print(f'{"case":26} {"before":>7} {"peak MB":>8} {"seconds":>8}')
    worst = 0
    for name in args.cases or CASES:
        found = measure(name)
        if isinstance(found, str): print(f'{name:26} {found}')
        else: print(f'{name:26} {found["before"]:7} {found["peak"]:8} {found["seconds"]:8.1f}', flush=True)
        worst = max(worst, found['peak'] - found['before'] if isinstance(found, dict) else args.limit + 1)
    sys.exit(int(worst > args.limit))
