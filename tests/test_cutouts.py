"""The cut-out photographs of benchmarks/cutouts.py: composing, on cut-outs that are made here."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rils_nb.data.loader import annotation_of
from rils_nb.data.readers import open_source

sys.path.append(str(Path(__file__).parent.parent/'benchmarks'))
import cutouts

def square(colour, side=20, alpha=255): return Image.new('RGBA', (side, side), (*colour, alpha))

def disc(colour, side=60):
    y, x = np.mgrid[:side, :side] + 0.5
    rgba = np.full((side, side, 4), (*colour, 0), np.uint8)
    rgba[(x - side / 2)**2 + (y - side / 2)**2 < (side / 2)**2, 3] = 255
    return Image.fromarray(rgba)

@pytest.fixture
def things(): return {'red thing': [disc((255, 0, 0)), disc((200, 0, 0), 40)], 'blue thing': [square((0, 0, 255))]}

@pytest.fixture
def scenery(): return [Image.new('RGB', (120, 90), (0, c, 0)) for c in (200, 250)]

def test_what_is_seen_of_each_is_its_mask():
    colours = (255, 0, 0), (0, 0, 255), (90, 90, 90)
    crowded = 0
    for seed in range(20):
        image, masks = cutouts.compose([square(c) for c in colours], Image.new('RGB', (48, 48), (0, 200, 0)), np.random.default_rng(seed))
        pixels, there = np.asarray(image), [(c, m) for c, m in zip(colours, masks) if m is not None]
        for c, m in there:
            assert np.array_equal(m, (pixels == c).all(-1)) and 300 <= m.sum() <= 400  # three quarters of 20 x 20
            crowded += m.sum() < 400
        assert (pixels == (0, 200, 0)).all(-1).sum() == 48 * 48 - sum(m.sum() for _, m in there) and masks[0] is not None
    assert crowded  # some do lie before others

def test_a_thing_without_a_place_is_left_out():
    image, masks = cutouts.compose([square((255, 0, 0), 32), square((0, 0, 255), 32)], Image.new('RGB', (32, 32)), np.random.default_rng(0))
    assert masks[0].all() and masks[1] is None and (np.asarray(image) == (255, 0, 0)).all()

def test_half_transparent_borders_belong_to_nothing():
    _, masks = cutouts.compose([square((255, 0, 0), alpha=cutouts.OPAQUE - 1), square((255, 0, 0), alpha=cutouts.OPAQUE)], Image.new('RGB', (40, 40)), np.random.default_rng(0))
    assert masks[0] is None and masks[1].sum() == 400

def test_sides_share_no_family():
    found = cutouts.split(['apple_red', 'apple-green', 'banana', 'cherry', 'cherry_2', 'kiwi', 'lemon', 'mango', 'pear'])
    assert found == dict(train=['apple-green', 'apple_red', 'banana', 'kiwi', 'lemon', 'mango'], val=['cherry', 'cherry_2', 'pear'])

def test_readers_find_the_same_in_both_formats(tmp_path, things, scenery):
    for side, n in (('train', 12), ('val', 4)): cutouts.write(tmp_path, side, things, scenery, n, 64, 0)
    (tmp_path/'names.txt').write_text('background\n' + '\n'.join(things) + '\n')
    boxes, maps = open_source(f'coco:{tmp_path}/train.json'), open_source(f'maps:{tmp_path}/train.csv,names=names.txt')
    assert (len(boxes), boxes.object_names, maps.semantic_names, boxes.counted.total()) == (12, sorted(things, key=list(things).index), ['background', *things], 0)
    seen = set()
    for i in range(12):
        image = boxes.read(i)['image']
        known, semantic = annotation_of(boxes, i, image), annotation_of(maps, i, image)['semantic']
        assert torch.equal(known['masks'].sum(0) > 0, semantic > 0) and known['masks'].sum(0).max() <= 1 and len(known['labels'])
        for box, mask, y in zip(known['boxes'].long().tolist(), known['masks'], known['labels'].tolist()):
            assert (semantic[mask] == y + 1).all()
            assert mask.sum() == mask[box[1]:box[3], box[0]:box[2]].sum() and all(e.any() for e in (mask[box[1]], mask[box[3] - 1], mask[:, box[0]], mask[:, box[2] - 1]))
            colour = image[:, mask].float().mean(1)
            assert colour.argmax() == (0, 2)[y], colour
            seen.add(y)
        assert maps.read(i)['captions'][0].count('a ') >= len(known['labels'])
    assert seen == {0, 1}

def test_an_image_depends_on_its_number_and_the_seed_alone(tmp_path, things, scenery):
    for name, n, seed in (('few', 2, 0), ('more', 5, 0), ('other', 2, 1)):
        (tmp_path/name).mkdir()
        cutouts.write(tmp_path/name, 'val', things, scenery, n, 64, seed)
    few, more, other = ((tmp_path/name/'val'/'00001.jpg').read_bytes() for name in ('few', 'more', 'other'))
    assert few == more != other
