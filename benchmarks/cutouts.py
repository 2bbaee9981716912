"""Photographs of things, cut out and laid on photographed backgrounds: boxes, outlines and label maps of eight classes, as a user's own data would have them.

    python benchmarks/cutouts.py                                          # fetches 224 MB of Debian's packages, once; writes cutouts/
    rils-data check coco:cutouts/train.json --show cutouts.png
    rils-train shapes_detect --data coco:cutouts/train.json --eval_data coco:cutouts/val.json
    rils-train shapes_segment --data maps:cutouts/train.csv,names=names.txt --eval_data maps:cutouts/val.csv,names=names.txt
    rils-data pack coco:cutouts/train.json shards/train && rils-data pack coco:cutouts/val.json shards/val

The cut-outs are photographs among the stamps of Tux Paint (GPL-2), the backgrounds are of MATE's and Lomiri's wallpapers (GPL-2+, CC-BY and CC-BY-SA): free,
and none of it is part of this project. Validation has cut-outs of its own, a quarter of each class, and backgrounds of its own. An image shows one to
three things, mirrored or not, turned by up to 15 degrees, 30 to 60 % of the side long; what lies behind keeps three quarters of its pixels. Each image
is drawn from the seed and its number, so that the first hundred are the same however many are asked for.

It needs apt-get, of Debian or Ubuntu. Elsewhere, unpack the three packages (.deb) into one folder and name it with --packages.
"""
import argparse, csv, json, re, subprocess
from pathlib import Path

import hotcoco
import numpy as np
from PIL import Image
from rils_nb.core import UserError, command, progress_bar, writing_folder

PACKAGES = ('tuxpaint-stamps-default', 'mate-backgrounds', 'lomiri-wallpapers-16.04')
STAMPS = {  # class -> folders
    'bird': ('animals/birds',), 'fish': ('animals/fish',), 'hoofed animal': tuple(f'animals/mammals/{k}' for k in ('bovines', 'camel', 'deer', 'equines')),
    'flower': ('plants/flowers',), 'fruit': ('food/fruit',), 'vegetable': ('food/vegetables',), 'tool': ('household/tools',),
    'vehicle': ('vehicles', *(f'vehicles/{k}' for k in ('auto', 'construction', 'emergency', 'masstransit', 'race')))}
OTHERS = {'lobster', 'seahorse', 'shrimp', 'cementmixer', 'toolbox', '7spoke256', 'wheel_tractor'}  # of these folders, and not of the class
BACKGROUNDS = dict(train=('Aqua', 'Blinds', 'Dune', 'RainDrops', 'Wood', 'Dragonfly_by_Bolly', 'aitzgorri_by_Aitzol_Berasategi', 'life_by_Aitzol_Berasategi',
                          'sunset_by_Aitzol_Berasategi'),
                   val=('GreenMeadow', 'Storm', 'Bridge_by_Sander_Klootwijk', 'picosdeeuropa_by_Aitzol_Berasategi'))  # without a thing of the classes
OPAQUE = 128  # alpha, of 255, from which a pixel belongs to a thing

def fetched(folder):
    "The folder with the packages' files, fetched where it is not there."
    if folder.is_dir(): return folder
    with writing_folder(folder) as aside:
        try:
            subprocess.run(['apt-get', 'download', *PACKAGES], cwd=aside, check=True)
            for deb in sorted(aside.glob('*.deb')):
                subprocess.run(['dpkg', '-x', deb.name, '.'], cwd=aside, check=True)
                deb.unlink()
        except (OSError, subprocess.CalledProcessError) as e:
            raise UserError(f'the packages cannot be fetched ({e}): unpack {", ".join(PACKAGES)} into a folder, and give --packages FOLDER')
    return folder

def split(names):
    "Names in two lists: a quarter, those that share a first word together, is for validation."
    family = lambda name: re.split('[-_]', name.lower())[0]
    held = sorted({family(n) for n in names})[2::4]
    return dict(train=[n for n in sorted(names) if family(n) not in held], val=[n for n in sorted(names) if family(n) in held])

def opened(path):
    "A cut-out without its empty border, at most 256 pixels long."
    image = Image.open(path).convert('RGBA')
    image = image.crop(outlined(image).getbbox())
    image.thumbnail((256, 256), Image.Resampling.LANCZOS)
    return image

def outlined(image): return image.getchannel('A').point(lambda a: 255 * (a >= OPAQUE))

def cutouts(folder):
    "The cut-outs of each side and class, as dict: side -> dict: class -> list of RGBA images."
    stamps, found = folder/'usr/share/tuxpaint/stamps', dict(train={}, val={})
    for name, folders in STAMPS.items():
        paths = {p.stem: p for f in folders for p in (stamps/f).glob('*.png') if p.stem not in OTHERS and not p.stem.endswith(('_mirror', '_flip', '_mirror_flip'))}
        for side, names in split(paths).items(): found[side][name] = [opened(paths[n]) for n in names]
        if not all(found[side][name] for side in found): raise UserError(f'`{stamps}` has {len(paths)} photographs of the class {name}: unpack {PACKAGES[0]} into `{folder}`')
    return found

def backgrounds(folder):
    "The backgrounds of each side, 600 pixels high."
    paths = {p.stem: p for p in (folder/'usr/share/backgrounds').rglob('*.jpg')}
    missing = [n for names in BACKGROUNDS.values() for n in names if n not in paths]
    if missing: raise UserError(f'`{folder}` lacks the background `{missing[0]}.jpg`: unpack {", ".join(PACKAGES[1:])} into it')
    def small(image): return image.convert('RGB').resize((600 * image.width // image.height, 600), Image.Resampling.LANCZOS)
    return {side: [small(Image.open(paths[n])) for n in names] for side, names in BACKGROUNDS.items()}

def varied(thing, size, rng):
    "A cut-out as it may stand in an image: mirrored or not, turned, of some size."
    if rng.random() < 0.5: thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thing = thing.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    thing = thing.crop(outlined(thing).getbbox())
    scale = size * rng.uniform(0.3, 0.6) / max(thing.size)
    return thing.resize([max(2, round(scale * s)) for s in thing.size], Image.Resampling.LANCZOS)

def part(background, size, rng):
    "A square of a background: from a half to all of its height, mirrored or not."
    side = int(min(background.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(s - side + 1)) for s in background.size)
    image = background.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image

def compose(things, background, rng):
    "Things (RGBA) on a background (RGB), one over another -> the image, and masks (k,S,S) of what is seen of each; None for one that found no place."
    image, size, masks = background.convert('RGBA'), background.size[0], []
    for thing in things:
        new, alpha = None, np.asarray(thing.getchannel('A')) >= OPAQUE
        for _ in range(30):
            top, left = (int(rng.integers(size - s + 1)) for s in alpha.shape)
            mask = np.zeros((size, size), bool)
            mask[top:top + alpha.shape[0], left:left + alpha.shape[1]] = alpha
            if mask.any() and all((m & ~mask).sum() >= 0.75 * whole for m, whole in filter(None, masks)):
                new = mask
                break
        if new is not None:
            masks = [m and (m[0] & ~new, m[1]) for m in masks]
            image.alpha_composite(thing, (left, top))
        masks.append(None if new is None else (new, new.sum()))
    return image.convert('RGB'), [m and m[0] for m in masks]

def drawn(things, scenery, size, rng):
    "An image, and the class and mask of each thing in it."
    labels = rng.integers(len(things), size=rng.integers(1, 4)).tolist()
    kinds = list(things.values())
    chosen = [varied(kinds[y][rng.integers(len(kinds[y]))], size, rng) for y in labels]
    image, masks = compose(chosen, part(scenery[rng.integers(len(scenery))], size, rng), rng)
    return image, [(y, m) for y, m in zip(labels, masks) if m is not None]

def as_coco(mask):
    "Box, area and outline of a mask, in COCO's words."
    (y0, x0), (y1, x1) = (np.argwhere(mask).min(0).tolist(), (np.argwhere(mask).max(0) + 1).tolist())
    runs = hotcoco.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(bbox=[x0, y0, x1 - x0, y1 - y0], area=int(mask.sum()), iscrowd=0, segmentation=dict(size=list(mask.shape), counts=runs['counts'].decode()))

def write(folder, side, things, scenery, n, size, seed):
    "Images, label maps, SIDE.json in COCO's format and SIDE.csv with image, map and caption."
    (folder/side).mkdir(), (folder/f'{side}-maps').mkdir()
    names, images, annotations, rows = list(things), [], [], []
    for i in progress_bar(range(n), desc=side, unit='image'):
        image, objects = drawn(things, scenery, size, np.random.default_rng([seed, side == 'val', i]))
        file, numbers = f'{side}/{i:05}.jpg', np.zeros((size, size), np.uint8)
        for y, mask in objects:
            numbers[mask] = y + 1
            annotations.append(dict(id=len(annotations) + 1, image_id=i + 1, category_id=y + 1) | as_coco(mask))
        image.save(folder/file, quality=95)
        Image.fromarray(numbers).save(folder/f'{side}-maps'/f'{i:05}.png')
        images.append(dict(id=i + 1, file_name=file, height=size, width=size))
        rows.append([file, f'{side}-maps/{i:05}.png', 'a photo of ' + ' and '.join(f'a {names[y]}' for y, _ in objects)])
    categories = [dict(id=k + 1, name=name) for k, name in enumerate(names)]
    (folder/f'{side}.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    with open(folder/f'{side}.csv', 'w', newline='') as f: csv.writer(f).writerows([['image', 'map', 'caption'], *rows])

@command
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folder', default='cutouts', help='folder to write; it must not exist (cutouts)')
    p.add_argument('--packages', default='data/cutouts', help="folder with the packages' files; fetched where it is not there (data/cutouts)")
    p.add_argument('--train', type=int, default=2000, help='training images (2000)')
    p.add_argument('--val', type=int, default=500, help='validation images (500)')
    p.add_argument('--size', type=int, default=96, help='side of the images in pixels, from 32 to 600 (96)')
    p.add_argument('--seed', type=int, default=0, help='of all that is drawn (0)')
    a = p.parse_args()
    if min(a.train, a.val) < 1 or not 32 <= a.size <= 600: raise UserError('--train and --val are 1 or more, --size from 32 to 600')
    if Path(a.folder).exists(): raise UserError(f'`{a.folder}` exists already: move it away, or give another --folder')
    packages = fetched(Path(a.packages))
    things, scenery = cutouts(packages), backgrounds(packages)
    with writing_folder(a.folder) as aside:
        for side, n in (('train', a.train), ('val', a.val)): write(aside, side, things[side], scenery[side], n, a.size, a.seed)
        (aside/'names.txt').write_text('\n'.join(['background', *STAMPS]) + '\n')
    for side in things: print(f'{side}: {len(scenery[side])} backgrounds, cut-outs: ' + ', '.join(f'{name} {len(images)}' for name, images in things[side].items()))

if __name__ == '__main__': main()
