"""What once went wrong without a word, as a user would meet it: each case is the script that showed it, and fails on commit c77e152."""
import json, math, os, pickle, signal, subprocess, sys, tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from accelerate.state import AcceleratorState
from open_clip.transform import PreprocessCfg, image_transform_v2
from rils_nb import harness, loader as loading
from rils_nb.config import Config
from rils_nb.core import UserError, read_jsonl
from rils_nb.readers import open_source
from rils_nb.loader import loader
from rils_nb.packing import pack
from rils_nb.libraries import OpenCLIP, Timm, view_of
from rils_nb.features import text_features
from rils_nb.evals.probe import probe
from rils_nb.evals.retrieval import recall, retrieval
from rils_nb.evals.zeroshot import accuracy, zeroshot
from rils_nb.methods import METHODS, make
from rils_nb.rils import RILS
from rils_nb.runs import EMA, WEIGHTS, load, newest, read_tensors
from rils_nb.scenes import Scenes
from rils_nb.train import fit

SMALL = Config(image_size=16, batch=8, steps=6, log_every=1, save_every=1, keep=99, eps=0.01, precision='float32', data='scenes:n=64', eval_data='', tasks='')

@pytest.fixture(autouse=True)
def afresh(): AcceleratorState._reset_state(reset_partial_state=True)  # as if each case had a kernel of its own

# 1. What is not finite

def test_nothing_is_found_by_nan():
    with pytest.raises(UserError, match='100 of 100 queries are not finite'): recall(torch.full((100, 8), torch.nan), torch.eye(100, 8), [[i] for i in range(100)])

@pytest.mark.parametrize('evaluate', ['retrieval', 'zeroshot', 'probe', 'low_shot', 'scenes'])
def test_one_nan_in_the_weights_is_no_result(evaluate):
    model, source = make(SMALL).eval(), Scenes('val', n=60)
    weight = model.visual.trunk.norm.weight if evaluate in ('probe', 'low_shot') else model.visual.head.proj.weight  # a probe reads what is before the projection
    with torch.no_grad(): weight.flatten()[0] = torch.nan
    with pytest.raises(UserError, match='60 of 60 image features of `rils` are not finite'): harness.run_tasks(model, SMALL, source, [evaluate])

def test_nor_one_in_the_text_tower():
    model = make(SMALL).eval()
    with torch.no_grad(): model.text.text_projection[0, 0] = torch.nan
    with pytest.raises(UserError, match='2 of 2 text features of `rils` are not finite'): text_features(model, ['a', 'b'])

# 2. Gradients

class Steep(RILS):
    "RILS whose loss has an infinite slope at some steps; its value is what it always was."
    at, spoil, told, seen = (), False, 0, []
    def __init__(self, config): super().__init__(config)
    def forward(self, batch):
        out, w = super().forward(batch), self.visual.head.proj.weight.flatten()[0]
        step = round(batch['progress'] * self.config.steps)
        return out | dict(loss=out['loss'] + (w - w.detach()).sqrt()) if step in self.at else out
    def after_step(self):
        super().after_step()
        self.seen.append(self.visual.head.proj.weight.detach().clone())
        if self.told == len(self.seen): os.kill(os.getpid(), signal.SIGTERM)
        if self.spoil: self.visual.head.proj.weight.data[0, 0] = math.inf

@pytest.fixture
def steep(monkeypatch):
    monkeypatch.setitem(METHODS, 'steep', Steep)
    monkeypatch.setattr(Steep, 'at', (3,))
    monkeypatch.setattr(Steep, 'seen', [])
    return replace(SMALL, method='steep')

MORE = dict(plain={}, clipped=dict(clip_grad=1.), averaged=dict(ema=0.9), in_parts=dict(accum=2), bf16=dict(precision='bf16'), chosen=dict(
    best='retrieval/i2t_r1', tasks='retrieval', eval_every=1, eval_data='scenes:split=val,n=30'), everything=dict(clip_grad=1., ema=0.9, accum=2))

@pytest.mark.parametrize('more', MORE.values(), ids=MORE)
def test_an_infinite_slope_changes_nothing(steep, tmp_path, more):
    assert fit(replace(steep, out=str(tmp_path/'run'), **more)) == 0
    files = list((tmp_path/'run'/'checkpoints').glob('step-*/*.safetensors'))
    assert len(files) == 5 * (3 if 'ema' in more else 2)                                # none is written after the step that was skipped
    for f in files: assert all(v.isfinite().all() for v in read_tensors(f).values()), f
    _, _, before, after, later, _ = Steep.seen
    assert torch.equal(before, after) and not torch.equal(after, later)
    assert [r['skipped'] for r in read_jsonl(tmp_path/'run'/'log.jsonl')] == [0, 0, 0, 1, 0, 0]
    if 'best' in more: assert all(v.isfinite().all() for v in load(tmp_path/'run'/'checkpoints'/'best').state_dict().values())

@pytest.mark.parametrize('clip_grad', [0., 1.])
def test_slopes_that_stay_infinite_end_the_run(steep, tmp_path, monkeypatch, clip_grad):
    monkeypatch.setattr(Steep, 'at', range(3, 99))
    with pytest.raises(UserError, match='not finite for 5 steps up to step 8.*the last good checkpoint stands'):
        fit(replace(steep, out=str(tmp_path/'run'), steps=30, clip_grad=clip_grad))
    assert newest(tmp_path/'run').name == 'step-0000003' and all(v.isfinite().all() for v in load(tmp_path/'run').state_dict().values())

@pytest.mark.parametrize('every,told', [(1, 0), (99, 0), (99, 2)], ids=['on the way', 'at the last step', 'on a signal'])
def test_weights_that_are_not_finite_are_never_written(steep, tmp_path, monkeypatch, every, told):
    "A method that spoils them itself."
    monkeypatch.setattr(Steep, 'spoil', True)
    monkeypatch.setattr(Steep, 'told', told)
    with pytest.raises(UserError, match='after step . 1 tensors of the weights are not finite, e.g. `visual.head.proj.weight`: they are not written'):
        fit(replace(steep, out=str(tmp_path/'run'), save_every=every, steps=3))
    assert not list((tmp_path/'run'/'checkpoints').glob('*'))

# 3. The probe

@pytest.fixture
def noise(tmp_path):
    "A folder of 300 images of noise in two classes, drawn by chance."
    rng = np.random.default_rng(0)
    for i in range(300):
        p = tmp_path/'noise'/'ab'[rng.integers(2)]/f'{i}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(p)
    return tmp_path/'noise'

def test_a_probe_is_not_tested_on_what_it_learned_from(noise, tmp_path, capsys):
    model, source = make(replace(SMALL, method='mae')).eval(), open_source(str(noise))
    pack(source, tmp_path/'packed')                                                     # the same images under another name
    for train_data in (noise, f'{tmp_path}/packed-*.tar'):
        with pytest.raises(UserError, match='all 300 training images .* are those of the test'): probe(model, SMALL, source, train_data=str(train_data))
    trained = make(replace(SMALL, method='mae', data=str(noise))).eval()                # a run on the evaluation data
    r = probe(trained, SMALL, source)
    assert r['n'] == 150 and abs(r['knn1'] - 0.5) < 0.2 and 'trained on the evaluation data' in capsys.readouterr().out

# 4. Preprocessing

STRIP = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 400, 3), dtype=np.uint8))

@pytest.mark.parametrize('mode', ['shortest', 'longest', 'squash'])
def test_open_clip_sees_what_open_clip_shows(mode):
    net = open_clip.CLIP(8, dict(image_size=64, layers=1, width=64, patch_size=16), dict(width=64, heads=1, layers=1))
    net.visual.preprocess_cfg = dict(size=64, resize_mode=mode, interpolation='bicubic', mean=(.5, .4, .3), std=(.2, .3, .4))
    model, theirs = OpenCLIP('x', net), image_transform_v2(PreprocessCfg(**net.visual.preprocess_cfg), is_train=False)
    torch.testing.assert_close(model.normalise(view_of(model, TF.pil_to_tensor(STRIP))[None])[0], theirs(STRIP))

def test_siglip_squashes():
    "As its published weights ask for: the right end of the strip is seen."
    net = open_clip.create_model('ViT-B-16-SigLIP')
    net.visual.preprocess_cfg = net.visual.preprocess_cfg | {k: v for k, v in open_clip.get_pretrained_cfg('ViT-B-16-SigLIP', 'webli').items() if k in ('mean', 'std', 'interpolation', 'resize_mode')}
    half = torch.zeros(3, 100, 400, dtype=torch.uint8)
    half[..., 300:] = 255
    assert view_of(OpenCLIP('x', net), half).float().mean().item() == pytest.approx(255 / 4, abs=2)

@pytest.mark.parametrize('mode', ['center', 'squash', 'border'])
def test_timm_sees_what_timm_shows(mode):
    net = timm.create_model('rils_tiny_patch8_32', num_classes=0)
    net.pretrained_cfg = net.pretrained_cfg | dict(crop_mode=mode, crop_pct=0.9)
    model, theirs = Timm('x', net), timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    torch.testing.assert_close(model.normalise(view_of(model, TF.pil_to_tensor(STRIP))[None])[0], theirs(STRIP))

# 5. Processes that are not forked

@pytest.fixture
def sources(tmp_path):
    pack(open_source('scenes:n=64'), tmp_path/'s', per_shard=20)
    pack(open_source('scenes:split=val,n=64'), tmp_path/'v', per_shard=20)
    (tmp_path/'pictures').mkdir()
    for i in range(64): Image.fromarray(Scenes(n=64).image(i).permute(1, 2, 0).numpy()).save(tmp_path/'pictures'/f'{i}.png')
    (tmp_path/'t.csv').write_text('image,caption\n' + ''.join(f'pictures/{i}.png,number {i}\n' for i in range(64)))
    return dict(shards=f'{tmp_path}/s-*.tar', table=f'{tmp_path}/t.csv', scenes='scenes:n=64')

@pytest.mark.parametrize('what', ['shards', 'table', 'scenes'])
def test_sources_and_views_can_be_sent(sources, what):
    source = open_source(sources[what])
    source.read(0)
    views = pickle.loads(pickle.dumps(loader(replace(SMALL, crop=0.5), source, ('image', 'tokens')).dataset))
    assert torch.equal(views[(0, 5)]['image'], loader(replace(SMALL, crop=0.5), source, ('image', 'tokens')).dataset[(0, 5)]['image'])

@pytest.mark.slow
def test_training_and_evaluation_with_spawned_workers(sources, tmp_path, monkeypatch):
    config = replace(SMALL, data=sources['shards'], eval_data=f'{tmp_path}/v-*.tar', tasks='retrieval', crop=0.5, steps=3, save_every=9)
    assert fit(replace(config, out=str(tmp_path/'alone'))) == 0
    monkeypatch.setattr(loading, 'START', 'spawn')
    assert fit(replace(config, out=str(tmp_path/'run'), workers=2)) == 0
    a, b = (read_tensors(newest(tmp_path/r)/WEIGHTS) for r in ('alone', 'run'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    a, b = (read_jsonl(tmp_path/r/'results.jsonl')[0]['metrics'] for r in ('alone', 'run'))
    assert a == b

# 6. and 7. Runs from a notebook

def test_a_run_without_a_folder_finds_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(replace(SMALL, steps=1, out='')) == 0
    assert [p.name for p in tmp_path.iterdir()] == ['runs'] and [p.name for p in (tmp_path/'runs').iterdir()] == ['rils']

def test_one_kernel_trains_in_several_precisions(tmp_path):
    for i, precision in enumerate(('float32', 'bf16', 'float32')): assert fit(replace(SMALL, steps=1, precision=precision, out=str(tmp_path/str(i)))) == 0

# 8. Pixels

@pytest.mark.parametrize('model', [lambda: make(SMALL), lambda: Timm('x', timm.create_model('rils_tiny_patch8_32', num_classes=0))], ids=['ours', 'library'])
def test_floats_are_not_divided_once_more(model):
    model = model().eval()
    x = torch.randint(256, (4, 3, model.image_size, model.image_size), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(x / 255), model.encode_image(x))
        for wrong in (x.float(), (x / 255 - 0.45) / 0.23, x.long()):
            with pytest.raises(UserError, match='images'): model.encode_image(wrong)

# 9. Captions

def test_captions_are_encoded_as_they_stand():
    class Cased(torch.nn.Module):
        image_size, given = 8, []
        def tokenize(self, texts):
            self.given.extend(texts)
            return torch.tensor([[int(t.split()[1])] for t in texts])
        def encode_text(self, tokens): return torch.eye(3)[tokens[:, 0]]
        def encode_image(self, x): return torch.eye(3)[x[:, 0, 0, 0].long()]
    class Three:
        sizes = [3]
        def __len__(self): return 3
        def read(self, i): return dict(image=torch.full((3, 8, 8), i, dtype=torch.uint8), captions=[f'Captions {i} by NASA'])
    retrieval(Cased(), SMALL, Three())
    assert sorted(Cased.given) == [f'Captions {i} by NASA' for i in range(3)]

# 10. Ties

@pytest.mark.parametrize('label', [0, 9])
def test_equal_scores_are_chance(label):
    r = accuracy(torch.zeros(50, 10), torch.full((50,), label))
    assert r['top1'] == pytest.approx(0.1) and r['top5'] == pytest.approx(0.5) and r['mean_per_class'] == pytest.approx(0.1)

# 11. Files

ENDLESS = '''
import resource, sys
from rils_nb.samples import BadSample
from rils_nb.readers import open_source
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**31,) * 2)  # two gigabytes more
source = open_source(sys.argv[1])
for i in range(1, len(source)):
    try: source.read(i)
    except BadSample as e: print(e.kind, flush=True)
'''

def test_files_without_an_end(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path/'a.png')
    with open(tmp_path/'vast.png', 'wb') as f: f.truncate(2**40)
    (tmp_path/'t.csv').write_text('image,caption\na.png,a\n/dev/zero,b\nvast.png,c\n')
    out = subprocess.run([sys.executable, '-c', ENDLESS, str(tmp_path/'t.csv')], capture_output=True, text=True, timeout=900)
    assert (out.returncode, out.stdout.split()) == (0, ['file', 'file']), out.stderr[-500:]

# Their relatives

SCAN = '''
import os, sys, time
from rils_nb import readers, shards
scan = shards.scan
def counted(path):
    with open(sys.argv[2], 'a') as f: print(path, file=f)
    time.sleep(0.2)
    return scan(path)
shards.scan = counted
print(len(readers.open_source(sys.argv[1])))
'''

def test_one_process_of_a_machine_scans(tmp_path):
    pack(open_source('scenes:n=40'), tmp_path/'s', per_shard=5)
    ranks = [subprocess.Popen([sys.executable, '-c', SCAN, f'{tmp_path}/s-*.tar', str(tmp_path/'scans')], stdout=subprocess.PIPE, text=True,
                              env=dict(os.environ, LOCAL_WORLD_SIZE='3')) for _ in range(3)]
    assert [p.communicate(timeout=900)[0].strip() for p in ranks] == ['40'] * 3
    assert len((tmp_path/'scans').read_text().splitlines()) == 8

def test_a_table_takes_little_more_than_its_text(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path/'a.png')
    (tmp_path/'t.csv').write_text('image,caption\na.png,x\n' + ''.join(f'pictures/{i:09}.jpg,a caption of usual length number {i}\n' for i in range(20_000)))
    tracemalloc.start()
    table = open_source(str(tmp_path/'t.csv'))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(table) == 20_001 and taken < 2 * (tmp_path/'t.csv').stat().st_size

def test_an_old_run_keeps_its_order(tmp_path):
    "Checkpoints of before say nothing of the window, which was 20,000 samples then."
    from rils_nb.runs import order_of
    config = replace(SMALL, out=str(tmp_path/'run'), steps=2)
    assert fit(config) == 0
    folder = newest(tmp_path/'run')
    assert order_of(Scenes(n=64), folder)['window'] == order_of(Scenes(n=64), None)['window'] == 100_000
    state = json.loads((folder/'trainer.json').read_text())
    del state['window']
    (folder/'trainer.json').write_text(json.dumps(state))
    assert order_of(Scenes(n=64), folder)['window'] == 20_000

def test_data_of_the_training_are_no_test(tmp_path, capsys):
    model = make(replace(SMALL, data='scenes:n=64')).eval()
    harness.run_tasks(model, replace(SMALL, eval_data='scenes:n=64'), Scenes(n=64), ['retrieval'])
    assert 'is what this model was trained on' in capsys.readouterr().err

# What strangers' shards and pictures are, and what a source knows

def _file(image, format='PNG', **kw):
    import io
    image.save(buffer := io.BytesIO(), format, **kw)
    return buffer.getvalue()

def _blocks(n=0, size=(48, 40)):  # a picture of coloured squares
    return Image.fromarray(np.random.default_rng(n).integers(0, 256, (5, 6, 3), np.uint8)).resize(size, 0)

def _tar(path, *members, mode='w', **kw):  # (name, bytes) or (name, kind of link, target)
    import io, tarfile
    with tarfile.open(path, mode, **kw) as t:
        for name, *what in members:
            info = what[0] if isinstance(what[0], tarfile.TarInfo) else tarfile.TarInfo(name)
            if len(what) == 2 and isinstance(what[0], bytes) and isinstance(what[1], str): info.type, info.linkname, data = what[0], what[1], b''
            else: info.size, data = len(what[-1]), what[-1]
            t.addfile(info, io.BytesIO(data))
    return str(path)

def _all(source): return [source.read(i) for i in range(len(source))]

def test_26_3_suffixes_of_images_that_can_be_decoded(tmp_path):
    for i, (suffix, format) in enumerate(dict(tif='TIFF', tiff='TIFF', jfif='JPEG', jpe='JPEG', ppm='PPM', jp2='JPEG2000').items()):
        (tmp_path/f'{i}.{suffix}').write_bytes(_file(_blocks(i), format))
        (tmp_path/f'{i}.txt').write_text(f'picture {i}')
    shard = _tar(tmp_path/'all.tar', *sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()), ('6.heic', b'x'), ('6.txt', b'phone'))
    for source, lost in ((open_source(f'folder:{tmp_path}'), 0), (open_source(shard), 1)):
        assert sorted(s['captions'][0] for s in _all(source)) == [f'picture {i}' for i in range(6)] and [k for k, _ in source.bad] == ['image'] * lost
    assert '6.heic (.heic images are not decoded' in source.bad[0][1]

def test_26_5_sparse_members_are_not_read_raw(tmp_path):
    import tarfile
    bmp, info = _file(Image.new('RGB', (64, 64)), 'BMP'), tarfile.TarInfo('0.bmp')  # black: a header and zeros, of which `tar -S` stores the first block
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for at, number in ((386, 0), (398, 512), (483, len(bmp))): head[at:at + 12] = b'%011o\0' % number  # from where, how much, size of the file
    head[148:156] = b' ' * 8
    head[148:156] = b'%06o\0 ' % sum(head)
    rest = _tar(tmp_path/'rest.tar', ('0.txt', b'black'), ('1.png', _file(Image.effect_noise((200, 200), 50))), ('1.txt', b'noise'))
    (tmp_path/'a.tar').write_bytes(head + bmp[:512] + Path(rest).read_bytes())
    source = open_source(f'{tmp_path}/a.tar')
    assert [(s['captions'], s['image'].float().mean().item() > 0) for s in _all(source)] == [(['noise'], True)] and any('0.bmp is stored without its zeros' in where for _, where in source.bad)

def test_26_5_links_keep_their_samples(tmp_path):
    import tarfile
    png = _file(_blocks())
    source = open_source(_tar(tmp_path/'a.tar', ('0.png', png), ('0.txt', b'same'), ('1.png', tarfile.LNKTYPE, '0.png'), ('1.txt', tarfile.LNKTYPE, '0.txt'), ('2.png', tarfile.SYMTYPE, './1.png'), ('2.txt', b'other')))
    assert [(s['name'][-5:], s['captions']) for s in _all(source)] == [('0.png', ['same']), ('1.png', ['same']), ('2.png', ['other'])] and not source.bad
    assert torch.equal(source.read(0)['image'], source.read(2)['image'])

def test_26_5_suffixes_of_two_parts(tmp_path):
    source = open_source(_tar(tmp_path/'a.tar', *((f'{i}.{s}', d) for i in range(3) for s, d in (('image.png', _file(_blocks(i))), ('caption.txt', b'%d' % i), ('mask.png', b'none')))))
    assert [s['captions'] for s in _all(source)] == [['0'], ['1'], ['2']] and not source.bad

@pytest.mark.parametrize('name', ['a.tar', 'a.tar.gz', 'a.tgz'])
def test_26_5_a_compressed_shard_says_how_to_unpack_it(tmp_path, name):
    path = _tar(tmp_path/name, ('0.png', _file(_blocks())), ('0.txt', b'x'), mode='w:gz')
    with pytest.raises(UserError, match=f'is compressed by gzip.*: unpack it, gunzip -c {path} > '): open_source(path)

def _decoded(data):
    from rils_nb.samples import decode_image
    return decode_image(data)

def test_26_6_one_nan_costs_one_pixel():
    x = np.random.default_rng(0).random((20, 20), np.float32)
    whole = _decoded(_file(Image.fromarray(x), 'TIFF'))
    for hole in (np.nan, np.inf, -np.inf):
        x[3, 4] = hole
        wrong = (_decoded(_file(Image.fromarray(x), 'TIFF')) != whole).any(0).nonzero().tolist()
        assert wrong in ([], [[3, 4]]), len(wrong)

def test_26_6_alpha_that_is_0_everywhere_hides_nothing():
    empty = np.dstack([np.asarray(_blocks()), np.zeros((40, 48), np.uint8)])
    for image in (Image.fromarray(empty), Image.fromarray(empty[..., 2:])):
        assert torch.equal(_decoded(_file(image)), _decoded(_file(image.convert('RGB')))), _decoded(_file(image)).float().std()

def test_26_6_12_bits_in_a_file_of_16():
    x = np.random.default_rng(0).integers(0, 4096, (20, 20), np.uint16)
    x[0, 0] = 4095
    for format in ('PNG', 'TIFF'):
        seen = _decoded(_file(Image.fromarray(x), format))[0].numpy()
        assert np.abs(seen - x / 4095 * 255).max() <= 0.5, seen.max()

@pytest.mark.parametrize('what', ['zTXt', 'iCCP', 'eXIf', 'tEXt'])
def test_26_6_a_broken_note_loses_no_picture(what):
    import zlib
    png, large = _file(_blocks()), zlib.compress(bytes(2**21))
    content = dict(zTXt=b'a\0\0' + large, iCCP=b'a\0\0' + large, eXIf=b'Exif\0\0nonsense', tEXt=b'a\0b')[what]
    note = len(content).to_bytes(4, 'big') + what.encode() + content + (zlib.crc32(what.encode() + content) ^ (what == 'tEXt')).to_bytes(4, 'big')
    assert torch.equal(_decoded(png[:33] + note + png[33:]), _decoded(png))

@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_26_6_a_jpeg_without_its_end_marker_is_complete(mode):
    from rils_nb.samples import BadSample
    for kw in ({}, dict(progressive=True)):
        jpeg = _file(_blocks().convert(mode), 'JPEG', **kw)
        assert torch.equal(_decoded(jpeg[:-2]), _decoded(jpeg))
        for cut in (3, 50, len(jpeg) - jpeg.rindex(b'\xff\xda')):
            with pytest.raises(BadSample): _decoded(jpeg[:-cut])

def test_26_6_check_counts_pictures_of_one_colour(tmp_path):
    from rils_nb.packing import check
    for i in range(6):
        (_blocks(i) if i < 2 else Image.new('RGB', (48, 40), (i, 200, 200))).save(tmp_path/f'{i}.png')
        (tmp_path/f'{i}.txt').write_text('x')
    assert check(open_source(str(tmp_path)))[0].get('nearly of one colour') == '4 (66.7%), e.g. ' + ', '.join(f'{tmp_path}/{i}.png' for i in (2, 3, 4))

def _lvis(folder, **more):  # eight images with a cat or a dog each, and what people looked for
    folder.mkdir()
    for i in range(8): _blocks(i).save(folder/f'{i}.png')
    images = [dict(id=i, file_name=f'{i}.png', height=40, width=48, neg_category_ids=[1] * (i < 3), not_exhaustive_category_ids=[2] * (i == 5)) for i in range(8)]
    objects = [dict(id=i + 1, image_id=i, category_id=1 + (i < 5), bbox=[4 + i, 5, 12, 20], area=240, iscrowd=0, segmentation=[[4 + i, 5, 16 + i, 5, 16 + i, 25, 4 + i, 25]]) for i in range(8)]
    (folder/'all.json').write_text(json.dumps(dict(images=images, annotations=objects, categories=[dict(id=1, name='cat', frequency='r'), dict(id=2, name='dog', frequency='f')]) | more))
    return f'coco:{folder}/all.json,images={folder}'

class _Guesses(torch.nn.Module):
    classes = ['dog', 'cat']
    def detect(self, images):
        return [dict(boxes=torch.tensor([[6., 5, 18, 25], [8, 5, 20, 25], [30, 8, 40, 20]]), labels=torch.tensor([0, 1, 1]), scores=x.float().mean((1, 2)) / 256) for x in images]

def test_26_12_lvis_is_judged_alike_from_shards(tmp_path):
    import rils_nb.evals.detection
    coco = open_source(_lvis(tmp_path/'lvis'))
    pack(coco, tmp_path/'packed', per_shard=3)
    packed = open_source(f'{tmp_path}/packed-*.tar')
    a, b = (harness.run_tasks(_Guesses(), Config(), s, 'detection') for s in (coco, packed))
    assert a == b and a['detection/box_ap_rare'] >= 0 and packed.object_images == coco.object_images == [3, 5]

def test_26_12_listed_keeps_boxes_and_names(tmp_path):
    coco, spec = open_source(spec := _lvis(tmp_path/'lvis')), spec
    (tmp_path/'list.txt').write_text('6.png\n1.png\n')
    listed = open_source(f'listed:{tmp_path}/list.txt,{spec}')
    assert listed.object_names == ['cat', 'dog'] and [listed.annotation(i)['boxes'].tolist() for i in (0, 1)] == [coco.annotation(i)['boxes'].tolist() for i in (1, 6)]
    assert (listed.federated, listed.object_frequency, listed.searched(0)) == (True, ['r', 'f'], coco.searched(1))

def test_26_12_what_a_source_knows_comes_through_every_wrapper_and_the_pack(tmp_path):
    from rils_nb.readers import Source
    import rils_nb.evals.low_shot, rils_nb.evals.suite
    knowledge = [k for k, v in vars(Source).items() if k[0] != '_' and not callable(v) and not hasattr(v, '__get__')]
    travels = {'classes', 'templates', 'semantic_names', 'object_names', 'object_frequency', 'object_images', 'federated'}
    stays = dict(bad='what is damaged is left out of a pack', counted='so are objects with mistakes', examples='and where they were', columns='shards have no columns',
                 row_count='nor rows', empty_folders='nor folders', beside='nor pictures beside them')
    assert set(knowledge) <= travels | stays.keys(), f'say here how a pack carries {set(knowledge) - travels - stays.keys()}'
    assert {'object_frequency', 'federated'} <= set(knowledge)
    coco, scenes = open_source(_lvis(tmp_path/'lvis')), open_source('scenes:n=8')
    for name, source in (('coco', coco), ('scenes', scenes)):
        pack(source, tmp_path/name, shuffle=None)
        packed, some = open_source(f'{tmp_path}/{name}-*.tar'), rils_nb.evals.low_shot.Some(source, [3, 1])
        for k in [k for k in (*knowledge, 'object_images') if hasattr(source, k)]:
            if k not in stays: assert getattr(packed, k) == getattr(source, k), k
            if k not in ('bad', 'object_images'): assert getattr(some, k) == getattr(source, k), k
        for i, j in ((0, 3), (1, 1)):
            for k, v in source.annotation(j).items():
                if torch.is_tensor(v): assert torch.equal(some.annotation(i)[k], v) and torch.equal(packed.annotation(j)[k], v), k
    from rils_nb.sources import Wrapper
    below = lambda c: [s for d in c.__subclasses__() for s in (d, *below(d))]
    assert not [c for c in below(Source) if 'source' in c.__init__.__code__.co_varnames and not issubclass(c, Wrapper)]
    for wrapper in (Wrapper, *below(Wrapper)):
        w = object.__new__(wrapper)
        w.source, w.index = coco, None
        for k in knowledge: assert k in vars(wrapper) or getattr(w, k) == getattr(coco, k), (wrapper, k)  # it says what the source says, or something of its own

def test_26_22_small_files_of_large_pictures_are_refused_by_their_head(monkeypatch):
    from PIL import ImageFile
    from rils_nb.samples import BadSample
    files = [_file(Image.new('P', (10_000, 10_000)), bits=1), _file(Image.fromarray(np.full((8000, 8000), 4000, np.uint16)))]
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail(f'{self.size} pixels of {self.mode} are decoded'))
    for data in files:
        with pytest.raises(BadSample, match='bomb: (10000x10000|8000x8000) pixels from'): _decoded(data)
