"""Thousands of damaged files: nothing crashes, every loss is counted by its kind, odd files that can be used are, and good neighbours are still read.

The damage is a function of the seed. Each kind is a function registered in `KINDS`; it gives the members of one sample and what must become of it.
"""
import io, re, struct, subprocess, sys, tarfile, zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rils_nb.config import Config
from rils_nb.core import Registry, UserError
from rils_nb.data.samples import BadSample
from rils_nb.data.readers import open_source
from rils_nb.data.loader import loader
from rils_nb.data.packing import check, pack

# What a picture looks like: four quarters of known colours, so that a turned one is seen

COLOURS = np.array([[[200, 30, 30], [30, 170, 40]], [[30, 40, 190], [220, 210, 60]]], np.uint8)  # (2,2,3)
def picture(w=48, h=32): return Image.fromarray(COLOURS.repeat(h // 2, 0).repeat(w // 2, 1))
def corners(x):  # (3,H,W) -> (2,2,3), the middles of the quarters
    h, w = x.shape[1:]
    return x[:, [h // 4, 3 * h // 4]][:, :, [w // 4, 3 * w // 4]].permute(1, 2, 0)
def looks(x, colours=COLOURS, near=40): return bool(((corners(x).int() - torch.from_numpy(colours.astype(int))).abs() < near).all())

def file_of(image, format, **kw):
    image.save(buffer := io.BytesIO(), format, **kw)
    return buffer.getvalue()
def jpeg(): return file_of(picture(), 'JPEG', quality=95)
def png(): return file_of(picture(), 'PNG')
def webp(): return file_of(picture(), 'WEBP', lossless=True)
FILES = dict(jpg=jpeg, png=png, webp=webp)
def noise(rng, low, high): return rng.integers(0, 256, int(rng.integers(low, high)), np.uint8).tobytes()

KINDS = Registry('damage')  # name -> function of a generator: members (suffix -> bytes) of one sample, and its fate
# A fate is the kind of BadSample, or a test of the sample that is read

# Pictures that are none

@KINDS.register()
def empty_image(rng): return {rng.choice(list(FILES)): b'', 'txt': b'a picture'}, 'image'
@KINDS.register()
def garbage_image(rng): return {rng.choice(list(FILES)): noise(rng, 1, 4000), 'txt': b'a picture'}, 'image'
@KINDS.register()
def cut_image(rng):
    suffix = rng.choice(list(FILES))
    data = FILES[suffix]()
    return {suffix: data[:int(rng.integers(1, 0.8 * len(data)))], 'txt': b'a picture'}, 'image'
@KINDS.register()
def magic_and_garbage(rng):
    suffix = rng.choice(list(FILES))
    return {suffix: FILES[suffix]()[:int(rng.integers(4, 30))] + noise(rng, 100, 2000), 'txt': b'a picture'}, 'image'
@KINDS.register()
def page_for_a_picture(rng): return {'jpg': b'<html><body>404 not found</body></html>' * int(rng.integers(1, 50)), 'txt': b'a picture'}, 'image'
@KINDS.register()
def other_format(rng): return {'jpg': file_of(picture(), rng.choice(['EPS', 'TGA', 'PCX'])), 'txt': b'a picture'}, 'image'  # EPS is a program
@KINDS.register()
def one_pixel(rng): return {'png': file_of(Image.new('RGB', (1, int(rng.integers(1, 9)))), 'PNG'), 'txt': b'a picture'}, 'tiny'

def huge(rng): return int(rng.choice([11_000, 12_000, 60_000]))  # Pillow alone refuses from 13,378 squared on
@KINDS.register()
def huge_png(rng):
    data = bytearray(png())
    data[16:24] = struct.pack('>II', huge(rng), huge(rng))
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    return {'png': bytes(data), 'txt': b'a picture'}, 'bomb'
@KINDS.register()
def huge_jpeg(rng):
    data = bytearray(jpeg())
    at = data.index(b'\xff\xc0') + 5
    data[at:at + 4] = struct.pack('>HH', huge(rng), huge(rng))
    return {'jpg': bytes(data), 'txt': b'a picture'}, 'bomb'
@KINDS.register()
def huge_bmp(rng):
    data = bytearray(file_of(picture(), 'BMP'))
    data[18:26] = struct.pack('<ii', huge(rng), huge(rng))
    return {'bmp': bytes(data), 'txt': b'a picture'}, 'bomb'

# Pictures that are odd, and used

def used(colours=COLOURS, near=40, caption='a picture'):
    return lambda s: looks(s['image'], colours, near) and s['captions'] == [caption]
@KINDS.register()
def wrong_suffix(rng):
    a, b = rng.choice(list(FILES), 2, replace=False)
    return {a: FILES[b](), 'txt': b'a picture'}, used()
@KINDS.register()
def cmyk(rng): return {'jpg': file_of(picture().convert('CMYK'), 'JPEG', quality=95), 'txt': b'a picture'}, used()
@KINDS.register()
def sixteen_bits(rng):
    grey = COLOURS[:, :, 0]
    data = file_of(Image.fromarray(grey.repeat(16, 0).repeat(24, 1).astype(np.uint16) * 257), 'PNG')
    return {'png': data, 'txt': b'a picture'}, used(colours=grey[:, :, None].repeat(3, 2), near=2)
@KINDS.register()
def animated(rng):
    format = rng.choice(['GIF', 'PNG', 'WEBP'])
    more = [Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)) for _ in range(3)]
    return {format.lower(): file_of(picture(), format, save_all=True, append_images=more, **(dict(lossless=True) if format == 'WEBP' else {})), 'txt': b'a picture'}, used()
@KINDS.register()
def palette(rng): return {'png': file_of(picture().convert('P', palette=Image.Palette.ADAPTIVE), 'PNG'), 'txt': b'a picture'}, used()
@KINDS.register()
def grey(rng): return {'jpg': file_of(picture().convert('L'), 'JPEG', quality=95), 'txt': b'a picture'}, lambda s: s['image'].shape == (3, 32, 48)
@KINDS.register()
def transparent(rng):  # white where one sees through it
    image = Image.new('RGBA', (8, 8), (9, 9, 9, 0))
    image.paste((9, 9, 9, 255), (0, 0, 4, 8))
    return {'png': file_of(image, 'PNG'), 'txt': b'a picture'}, lambda s: bool((s['image'][..., :4] == 9).all() and (s['image'][..., 4:] == 255).all())
@KINDS.register()
def nothing_to_see(rng):  # an alpha that hides every pixel was written by mistake
    return {'png': file_of(Image.new('RGBA', (8, 8), (9, 9, 9, 0)), 'PNG'), 'txt': b'a picture'}, lambda s: bool((s['image'] == 9).all())
@KINDS.register()
def progressive(rng): return {'jpg': file_of(picture(), 'JPEG', quality=95, progressive=True), 'txt': b'a picture'}, used()
@KINDS.register()
def turned(rng):  # EXIF's orientation k says how the picture was stored; what is read must be upright
    k, exif = int(rng.integers(1, 9)), Image.Exif()
    exif[0x0112] = k
    stored = {1: [], 2: [Image.FLIP_LEFT_RIGHT], 3: [Image.ROTATE_180], 4: [Image.FLIP_TOP_BOTTOM], 5: [Image.TRANSPOSE], 6: [Image.ROTATE_90],
              7: [Image.TRANSVERSE], 8: [Image.ROTATE_270]}[k]
    image = picture()
    for how in stored: image = image.transpose(how)
    suffix, format = [('jpg', 'JPEG'), ('png', 'PNG'), ('webp', 'WEBP')][rng.integers(3)]
    data = file_of(image, format, exif=exif, **dict(JPEG=dict(quality=95), WEBP=dict(lossless=True)).get(format, {}))
    return {suffix: data, 'txt': b'a picture'}, lambda s: s['image'].shape == (3, 32, 48) and used()(s)
@KINDS.register()
def strip(rng):
    return {'png': file_of(picture(2 * int(rng.integers(1, 3)), 2 * int(rng.integers(500, 4000))), 'PNG'), 'txt': b'a picture'}, lambda s: s['captions'] == ['a picture']

# Captions

@KINDS.register()
def empty_caption(rng): return {'jpg': jpeg(), 'txt': rng.choice([b'', b' ', b'\n\n', b'\0\0', b'\xef\xbb\xbf', b'\t \r\n'])}, 'caption'
@KINDS.register()
def not_utf8(rng): return {'jpg': jpeg(), 'txt': b'a picture ' + bytes([int(rng.integers(0x80, 0xc0)), 0xff]) + noise(rng, 0, 50)}, 'caption'
@KINDS.register()
def json_of_no_use(rng):
    return {'jpg': jpeg(), 'json': rng.choice([b'', b'{', b'[1, 2]', b'3.5', b'{"caption": null}', b'{"caption": 3.5}', b'{"caption": ""}', b'{"other": "x"}',
                                               b'{"caption": "\\ud800"}', b'\xff\xfe{', b'[' * 100_000, b'{"caption": ["", null]}'])}, 'caption'
@KINDS.register()
def json_of_captions_alone(rng): return {'jpg': jpeg(), 'json': rng.choice([b'"a picture"', b'["a picture"]'])}, used()
@KINDS.register()
def with_nul(rng): return {'jpg': jpeg(), 'txt': b'a\0 picture\0'}, used()
@KINDS.register()
def megabyte(rng): return {'jpg': jpeg(), 'txt': 'a long story '.encode() * 80_000}, lambda s: looks(s['image']) and s['captions'][0].startswith('a long story a')
@KINDS.register()
def megabyte_of_one_word(rng): return {'jpg': jpeg(), 'txt': bytes(rng.integers(97, 123, 2**20, np.uint8))}, lambda s: len(s['captions'][0]) == 2000
@KINDS.register()
def right_to_left(rng):
    text = str(rng.choice(['صورة \u200fجميلة جدا', 'תמונה\u200e יפה', '\u202eerutcip a\u202c', 'a \u200fصورة\u200e picture']))
    return {'jpg': jpeg(), 'txt': text.encode()}, used(caption=text)

# Halves

@KINDS.register()
def no_caption(rng): return {'jpg': jpeg()}, 'pair'
@KINDS.register()
def no_image(rng): return {'txt': b'a picture'}, 'pair'
@KINDS.register()
def label_without_image(rng): return {'cls': b'3', 'txt': b'a picture'}, 'pair'
@KINDS.register()
def label_that_is_none(rng): return {'jpg': jpeg(), 'cls': b'\xff' + noise(rng, 1, 9), 'txt': b'a picture'}, 'label'

# Headers: the name of the kind says what is done to the header of the first member after the shard is written

def damaged_header(rng): return {'jpg': jpeg(), 'txt': b'a picture'}, 'tar'
HEADERS = Registry('damage of a header')  # name -> function of header (512 bytes), generator -> header
@HEADERS.register()
def garbage_header(head, rng): return bytes(rng.integers(1, 256, 512, np.uint8))
@HEADERS.register()
def flipped_header(head, rng):
    at = int(rng.integers(0, 100))
    return head[:at] + bytes([head[at] ^ 1 << int(rng.integers(8))]) + head[at + 1:]
@HEADERS.register()
def zero_header(head, rng): return bytes(512)
def _sized(head, size):  # with a right checksum
    head = bytearray(head)
    head[124:136], head[148:156] = size, b' ' * 8
    head[148:156] = b'%06o\0 ' % sum(head)
    return bytes(head)
@HEADERS.register()
def size_beyond_the_end(head, rng): return _sized(head, b'77777777777\0')
@HEADERS.register()
def size_below_zero(head, rng): return _sized(head, b'\xff' * 10 + struct.pack('>H', int(rng.integers(2**16))))
@HEADERS.register()
def size_too_small(head, rng): return _sized(head, b'%011o\0' % int(rng.integers(0, 500)))
@HEADERS.register()
def size_of_no_number(head, rng): return _sized(head, b'not a number')
KINDS.update({name: damaged_header for name in HEADERS})

# Shards of damage between good neighbours

def good(n):
    "A good pair that only this number has: base, members, fate."
    image = Image.fromarray(np.random.default_rng(n).integers(0, 256, (2, 2, 3), np.uint8)).resize((48, 32), Image.Resampling.NEAREST)
    pixels, caption = torch.from_numpy(np.array(image)).permute(2, 0, 1), f'neighbour number {n}'
    return f'good-{n:05}', dict(png=file_of(image, 'PNG'), txt=caption.encode()), lambda s: torch.equal(s['image'], pixels) and s['captions'] == [caption]

def write_shard(path, samples, format=tarfile.PAX_FORMAT):
    "A tar of (base, members, fate); returns {(base, suffix): place and length of header and data}."
    places = {}
    with open(path, 'wb') as f, tarfile.open(fileobj=f, mode='w', format=format) as t:
        for base, members, _ in samples:
            for suffix, data in members.items():
                info = tarfile.TarInfo(f'{base}.{suffix}')
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
                places[base, suffix] = (f.tell() - (len(data) + 511) // 512 * 512 - 512, 512 + len(data))
    return places

def build(folder, n, per_shard=40):
    "Shards with `n` damaged samples, all kinds in turn, a good neighbour after each, every fifth shard cut; returns {base: fate}."
    fates, names = {}, list(KINDS)
    for shard, first in enumerate(range(0, n, per_shard)):
        samples, heads, path = [good(90_000 + shard)], {}, Path(folder)/f'{shard:03}.tar'
        for i in range(first, min(n, first + per_shard)):
            rng, name = np.random.default_rng([0, i]), names[i % len(names)]
            base = f'{i:05}-{name}' + '-' * (120 if i // len(names) % 3 == 2 else 0)  # beyond 100 bytes, a name has a header of its own
            samples += [(base, *KINDS[name](rng)), good(i)]
            if name in HEADERS: heads[base] = (HEADERS[name], rng)
        places = write_shard(path, samples, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[shard % 2])
        data = bytearray(path.read_bytes())
        for base, (damage, rng) in heads.items():
            at = places[base, 'jpg'][0]
            data[at:at + 512] = damage(bytes(data[at:at + 512]), rng)
        if shard % 5 == 4:
            base = samples[-1][0]
            at, length = places[base, 'png']
            del data[at + int(rng.integers(1, length)):]
            samples[-1] = (base, None, 'tar')
        path.write_bytes(data)
        fates |= {base[:90]: fate for base, _, fate in samples}
    return fates

def read_all(source):
    "What can be read: {beginning of the base: sample}; and (kind, where) of what cannot, with what the scan found."
    samples, bad = {}, list(source.bad)
    for i in range(len(source)):
        try: sample = source.read(i)
        except BadSample as e: bad.append((e.kind, e.where))
        else: samples[Path(sample['name'].rpartition(': ')[2]).stem[:90]] = sample
    return samples, bad

def judge(source, fates):
    "Every damaged sample is counted by its kind, or used as it should be; every good neighbour is read."
    samples, bad = read_all(source)
    for base, fate in fates.items():
        kinds = {kind for kind, where in bad if base in where}
        if callable(fate): assert base in samples and fate(samples[base]) and not kinds, (base, base in samples, kinds)
        elif fate == 'tar': assert base not in samples and (kinds or 'tar' in {kind for kind, _ in bad}), (base, kinds)
        else: assert base not in samples and kinds == {fate}, (base, kinds, fate)
    assert set(samples) <= set(fates), set(samples) - set(fates)
    return samples, bad

def epochs_agree(pattern):
    "A whole epoch through the loader, the same with 0 and with 2 workers; damaged samples are reported and replaced."
    config, source, runs = Config(batch=32, image_size=32, crop=0.5), open_source(pattern), []
    steps = -(-len(source) // 32)
    for workers in (0, 2): runs.append(list(loader(replace(config, workers=workers), source, ('image', 'tokens'), steps=steps)))
    for a, b in zip(*runs, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ('image', 'tokens', 'ids', 'keys')) and a['bad'] == b['bad']
        assert a['image'].shape == (32, 3, 32, 32)
    bad = read_all(source)[1][len(source.bad):]
    assert set(bad) == {tuple(x) for batch in runs[0] for x in batch['bad']}

def rot(folder, seed):
    "A shard of good pairs with random damage of its bytes: what is untouched is still read."
    rng, path, samples = np.random.default_rng([1, seed]), Path(folder)/f'rot-{seed}.tar', [good(i) for i in range(30)]
    places, data = write_shard(path, samples), np.fromfile(path, np.uint8)
    hit = np.zeros(len(data), bool)
    for at in rng.integers(0, len(data), int(rng.integers(1, 60))): hit[at:at + int(rng.choice([1, 1, 1, 16, 700]))] = True
    data[hit] = rng.integers(0, 256, hit.sum(), np.uint8) if seed % 2 else 0
    end = int(rng.integers(0, len(data))) if seed % 5 == 0 else len(data)
    hit[end:] = True
    data[:end].tofile(path)
    try: found, _ = read_all(open_source(str(path)))
    except UserError: found = {}  # no pair is left
    for base, _, same in samples:
        if not any(hit[at:at + length].any() for (b, _), (at, length) in places.items() if b == base): assert base in found and same(found[base]), f'seed {seed}: {base}'

def fuzz(folder, n):
    "All of it over `n` damaged samples."
    fates, pattern = build(folder, n), f'{folder}/[0-9]*.tar'
    samples, bad = judge(open_source(pattern), fates)
    figures, found = check(open_source(pattern))
    assert Counter(found) == Counter(bad) and (figures['good'], figures['damaged']) == (len(samples), len(bad))
    epochs_agree(pattern)
    pack(open_source(pattern), Path(folder)/'packed', shuffle=None)  # what is whole can be packed, and is the same
    packed = open_source(f'{folder}/packed-*.tar')
    assert (len(packed), packed.bad) == (len(samples), [])
    for i, sample in enumerate(samples.values()): assert torch.equal(packed.read(i)['image'], sample['image']) and packed.read(i)['captions'] == sample['captions']
    return fates

def train(out, pattern, *more):
    "Exit code, output and errors of a short run."
    line = f'-m rils_nb.train --data {pattern} --batch 32 --steps 12 --log_every 2 --precision float32 --out {out}'.split()
    run = subprocess.run([sys.executable, *line, '--eval_data', '', '--tasks', '', *more], capture_output=True, text=True, timeout=240)
    return run.returncode, run.stdout, run.stderr

# What is shown

def test_damage_of_every_kind(tmp_path):
    fuzz(tmp_path, 4 * len(KINDS))

def test_bit_rot(tmp_path):
    for seed in range(40): rot(tmp_path, seed)

@pytest.mark.slow
def test_a_run_ends_when_too_much_is_damaged(tmp_path):
    build(tmp_path, 5 * len(KINDS))
    pattern = f'{tmp_path}/*.tar'
    code, _, said = train(tmp_path/'halves', pattern)  # half pairs and lost headers are known before the first step
    assert code == 2 and re.fullmatch(r'error: \d+ samples of `.*` are damaged or incomplete \(\d+ pair, \d+ tar\) and \d+ whole, more than --max_bad 0.05: .*\n', said), said
    code, out, said = train(tmp_path/'all', pattern, '--max_bad', '1')
    assert code == 0 and 'left out, damaged or incomplete:' in out and re.search(r'passed over: \d+ image, \d+ caption, \d+ bomb', out), out + said
    samples = [(f'{i:05}', *KINDS['cut_image' if i % 5 == 0 else 'wrong_suffix'](np.random.default_rng(i))) for i in range(200)]
    write_shard(tmp_path/'whole.tar', samples)
    code, _, said = train(tmp_path/'contents', tmp_path/'whole.tar')  # damaged contents are met on the way
    assert code == 2 and re.fullmatch(r'error: \d+ damaged samples in \d+ \(\d+ image\), more than --max_bad 0.05: see `.*bad.jsonl`\n', said), said

@pytest.mark.long
@pytest.mark.slow
def test_thousands_of_damaged_samples(tmp_path):
    fates = fuzz(tmp_path, 3000)
    assert sum(not base.startswith('good') for base in fates) == 3000

@pytest.mark.long
@pytest.mark.slow
def test_much_bit_rot(tmp_path):
    for seed in range(500): rot(tmp_path, seed)
