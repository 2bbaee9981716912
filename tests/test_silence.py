"""What once went wrong without a word, as a user would meet it: each case is the script that showed it, and fails on commit c77e152, or on 262f60f for those that came later."""
import json, math, os, pickle, re, shutil, signal, subprocess, sys, tempfile, threading, tracemalloc
from concurrent.futures import ThreadPoolExecutor
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
from rils_nb.data import loader as loading
from rils_nb.evals import harness
from rils_nb.config import Config
from rils_nb.core import UserError, read_jsonl
from rils_nb.data.readers import open_source
from rils_nb.data.loader import loader
from rils_nb.data.packing import pack
from rils_nb.evals.libraries import OpenCLIP, Timm, view_of
from rils_nb.evals.features import text_features
from rils_nb.evals.probe import probe
from rils_nb.evals.retrieval import recall, retrieval
from rils_nb.evals.zeroshot import accuracy, zeroshot
from rils_nb.methods.base import METHODS, make
from rils_nb.methods.rils import RILS
from rils_nb.training.runs import EMA, WEIGHTS, load, newest_checkpoint, read_tensors
from rils_nb.data.scenes import Scenes
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
    assert newest_checkpoint(tmp_path/'run').name == 'step-0000003' and all(v.isfinite().all() for v in load(tmp_path/'run').state_dict().values())

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
    a, b = (read_tensors(newest_checkpoint(tmp_path/r)/WEIGHTS) for r in ('alone', 'run'))
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
from rils_nb.data.samples import BadSample
from rils_nb.data.readers import open_source
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
from rils_nb.data import readers, shards
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
    from rils_nb.training.runs import order_of
    config = replace(SMALL, out=str(tmp_path/'run'), steps=2)
    assert fit(config) == 0
    folder = newest_checkpoint(tmp_path/'run')
    assert order_of(Scenes(n=64), folder)['window'] == order_of(Scenes(n=64), None)['window'] == 100_000
    state = json.loads((folder/'trainer.json').read_text())
    del state['window']
    (folder/'trainer.json').write_text(json.dumps(state))
    assert order_of(Scenes(n=64), folder)['window'] == 20_000

def test_data_of_the_training_are_no_test(tmp_path, capsys):
    model = make(replace(SMALL, data='scenes:n=64')).eval()
    harness.run_tasks(model, replace(SMALL, eval_data='scenes:n=64'), Scenes(n=64), ['retrieval'])
    assert 'is what this model was trained on' in capsys.readouterr().err

# The order of the data

def _image(path, i=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(Scenes(n=64).image(i).permute(1, 2, 0).numpy()).save(path)

def _table(d, order):
    for i in range(16): _image(d/f'{i}.png', i)
    (d/'t.csv').write_text('image,caption\n' + ''.join(f'{i}.png,number {i}\n' for i in order))
    return str(d/'t.csv')

def _folder(d, order):
    for k, i in enumerate(order):
        _image(d/'pairs'/f'{k:02}.png', i)
        (d/'pairs'/f'{k:02}.txt').write_text(f'number {i}')
    if order[0]: (d/'pairs'/'00.png').rename(d/'pairs'/'99.png'), (d/'pairs'/'00.txt').rename(d/'pairs'/'99.txt')
    return str(d/'pairs')

def _shards(d, order):
    class Given:
        sizes, classes = [16], None
        def __len__(self): return 16
        def read(self, i): return dict(image=Scenes(n=64).image(order[i]), captions=[f'number {order[i]}'])
    for p in d.glob('s-*'): p.unlink()
    pack(Given(), d/'s', shuffle=None)
    return f'{d}/s-*.tar'

@pytest.mark.parametrize('write', [_table, _folder, _shards])
def test_samples_that_changed_places_are_other_data(tmp_path, write):
    config = replace(SMALL, method='mae', data=write(tmp_path, range(16)), out=str(tmp_path/'run'), steps=1)
    assert fit(config) == 0
    write(tmp_path, [5, *range(1, 5), 0, *range(6, 16)])
    with pytest.raises(UserError, match='as many samples, but not in the same places'): fit(replace(config, resume=True, steps=2))
    write(tmp_path, range(16))
    if write is not _folder: assert fit(replace(config, resume=True, steps=2)) == 0     # as they were, or written anew

# Other systems

WITHOUT = '''
import os, sys
for module in ('fcntl', 'resource', 'pwd', 'grp'): sys.modules[module] = None
for name in ('getuid', 'pread', 'fork', 'sched_getaffinity'): delattr(os, name)
import importlib, pkgutil, rils_nb
for m in pkgutil.walk_packages(rils_nb.__path__, 'rils_nb.'): importlib.import_module(m.name)
from rils_nb import evaluate, fit, load, open_source
from rils_nb.config import Config
from rils_nb.data.packing import check, pack
pack(open_source('scenes:n=24'), 's', per_shard=10)
config = Config(image_size=16, batch=8, steps=3, precision='float32', data='s-*.tar', eval_data='', tasks='', out='run')
assert fit(config) == 0
print(evaluate(load('run'), open_source('s-*.tar'), 'retrieval')['retrieval/n'], check(open_source('s-*.tar'))[0]['good'])
'''

def test_nothing_of_posix_is_needed(tmp_path):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT], cwd=tmp_path, capture_output=True, text=True, timeout=900,
                          env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')])))
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '24 24', done.stderr[-2000:]

# Shares of small numbers

def test_a_grid_of_rates_is_chosen_on_something():
    def held(seed):
        method = make(Config(method='linear', seed=seed, opts='classes=64,lr_factors=0.1:1:10'))
        method.meet_data(Scenes(n=50))
        return int(method.held_out_images(range(50)).sum()), int(method.choice.best())
    found = [held(seed) for seed in range(12)]
    assert min(n for n, _ in found) >= 1 and {best for _, best in found} == {1}         # and where all are equally right it is not the smallest rate

def test_a_share_of_few_is_one():
    from rils_nb.dense.rpn import sample_anchors
    from rils_nb.models.masking import semantic
    assert semantic(torch.tensor([7]), 16, 0.03, torch.ones(1, 16)).hidden.shape == (1, 1)
    assert len(sample_anchors(torch.ones(9), 1, 0.25, torch.tensor(7))[0]) == 1

def test_a_warm_up_of_less_than_a_step_is_said(tmp_path, capsys):
    assert fit(replace(SMALL, method='mae', steps=1, warmup=0.04, out=str(tmp_path/'run'))) == 0
    assert '--warmup 0.04 of 1 steps is less than one' in capsys.readouterr().out

# A first step that is skipped

@pytest.mark.parametrize('name', ['adamw', 'sgd', 'lars'])
def test_a_skipped_first_step_leaves_no_memory(name):
    from rils_nb.training.optim import OPTIMIZERS
    def weights(*found):
        p = torch.nn.Parameter(torch.ones(3, 3))
        optimizer = OPTIMIZERS[name]([dict(params=[p], decays=True, weight_decay=0., factor=1.)], Config(lr=0.1))
        for optimizer.found_inf in map(torch.tensor, found):
            p.grad = torch.full_like(p, torch.nan if optimizer.found_inf else 0.5)
            optimizer.step()
        return p.detach()
    torch.use_deterministic_algorithms(True)                                            # fills new memory with NaN
    try: assert weights(1., 0., 0.).equal(weights(0., 0.)) and not weights(0.).isnan().any()
    finally: torch.use_deterministic_algorithms(False)

# Two at a time

class _Slow:
    sizes, bad, classes = [4], (), None
    def __init__(self, value): self.value, self.begun, self.go = value, threading.Event(), threading.Event()
    def __len__(self): return 4
    def read(self, i):
        self.begun.set()
        assert self.go.wait(60)
        return dict(image=torch.full((3, 8, 8), self.value, dtype=torch.uint8), captions=[f'of {self.value}'])

def test_two_packs_of_one_name(tmp_path):
    one, two = _Slow(1), _Slow(2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pack, one, tmp_path/'s', 1)
        assert one.begun.wait(60)
        second = pool.submit(pack, two, tmp_path/'s', 2)
        two.go.set()
        with pytest.raises(UserError, match='is packing .*wait until it ends'): second.result(60)
        one.go.set()
        first.result(60)
    packed = open_source(f'{tmp_path}/s-*.tar')
    assert [packed.read(i)['captions'] for i in range(4)] == [['of 1']] * 4

def test_names_of_a_deleted_pack(tmp_path):
    for p in pack(Scenes(n=4), tmp_path/'s')[0]: p.unlink()
    source = _Slow(1)
    source.go.set()
    with pytest.raises(UserError, match='is left from an earlier pack'): pack(source, tmp_path/'s')

def test_one_process_after_the_other(tmp_path, monkeypatch):
    "The first leaves between the moment in which the second opens the file and the moment in which it locks it; then a third one comes."
    import fcntl
    from rils_nb import core
    inside = 'import sys; from rils_nb.core import file_lock\nwith file_lock(sys.argv[1]): print("in", flush=True); sys.stdin.read()'
    lockf, others = fcntl.lockf, []
    def slow(*args):
        if not others:
            (tmp_path/'running').unlink()
            others.append(subprocess.Popen([sys.executable, '-c', inside, str(tmp_path/'running')], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert others[0].stdout.readline() == b'in\n'
        return lockf(*args)
    monkeypatch.setattr(fcntl, 'lockf', slow)
    with pytest.raises(UserError, match=r'process \d+ on .* is working in'):
        with core.file_lock(tmp_path/'running'): pass
    others[0].communicate()

# Whose files they are

def test_files_follow_the_umask(tmp_path):
    config = replace(SMALL, method='mae', steps=1)
    for umask, modes in ((0o027, {'0o640', '0o750'}), (0o077, {'0o600', '0o700'})):
        before = os.umask(umask)
        try: assert fit(replace(config, out=str(tmp_path/f'{umask:o}'))) == 0
        finally: os.umask(before)
        found = list((tmp_path/f'{umask:o}').rglob('*'))
        assert {oct(p.stat().st_mode & 0o777) for p in found} == modes, {p.name: oct(p.stat().st_mode) for p in found}

def test_what_may_not_be_read_is_not_damaged():
    with tempfile.TemporaryDirectory() as d:                                            # pytest's own folders are closed to others
        Path(d).chmod(0o755)
        config = replace(SMALL, method='mae', steps=1, out=f'{d}/run')
        assert fit(config) == 0
        load(config.out)
        checkpoint, user = newest_checkpoint(config.out), os.geteuid()
        (checkpoint/WEIGHTS).chmod(0)
        try:
            if user == 0: os.seteuid(65534)                                            # root may read everything
            for given in (config.out, checkpoint):
                with pytest.raises(UserError, match=f'cannot read .*{WEIGHTS}`: Permission denied'): load(given)
        finally: os.seteuid(user)

# Going on

def test_a_folder_of_the_user_stays(tmp_path):
    config = replace(SMALL, method='mae', steps=2, keep=1, out=str(tmp_path/'run'))
    assert fit(config) == 0
    checkpoints = tmp_path/'run'/'checkpoints'
    for name in ('step-0000002-before-longer', 'step-best', 'step-9'): shutil.copytree(checkpoints/'step-0000002', checkpoints/name)
    assert newest_checkpoint(tmp_path/'run').name == 'step-0000002'
    assert fit(replace(config, steps=4, resume=True)) == 0
    assert sorted(p.name for p in checkpoints.iterdir()) == ['step-0000002-before-longer', 'step-0000004', 'step-9', 'step-best']

def test_ten_million_steps_are_more_than_one(tmp_path):
    config = replace(SMALL, method='mae', steps=1, out=str(tmp_path/'run'))
    assert fit(config) == 0
    checkpoints = tmp_path/'run'/'checkpoints'
    for name in ('step-9999999', 'step-10000000'): shutil.copytree(checkpoints/'step-0000001', checkpoints/name)
    assert newest_checkpoint(tmp_path/'run').name == 'step-10000000'

def test_precision_stays_what_it_was(tmp_path, monkeypatch, capsys):
    config = replace(SMALL, method='mae', steps=1, precision='auto', out=str(tmp_path/'run'))
    monkeypatch.setattr('rils_nb.training.machine.has_bf16', lambda: False)
    assert fit(config) == 0
    monkeypatch.setattr('rils_nb.training.machine.has_bf16', lambda: True)
    assert fit(replace(config, steps=2, resume=True)) == 0
    said = capsys.readouterr()
    assert len(re.findall(r' on cpu with [0-9]+ threads?, float32;', said.out)) == 2 and 'goes on in float32, in which this run began' in said.err
# 26. Models of others, and what leaves the project

def clip_folder(folder, quick=False, weights=True):
    "A small CLIP as open_clip stores it; returns it."
    from safetensors.torch import save_file
    cfg = dict(embed_dim=16, vision_cfg=dict(image_size=32, layers=2, width=64, patch_size=16), text_cfg=dict(width=64, heads=1, layers=1), quick_gelu=quick)
    net = open_clip.CLIP(**cfg).eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg={})))
    if weights: save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder/'open_clip_model.safetensors')
    return net

def test_a_folder_without_weights_is_no_model(tmp_path):
    from rils_nb.evals.libraries import load_model
    clip_folder(tmp_path/'clip', weights=False)
    with pytest.raises(UserError, match='has no weights'): load_model(f'open_clip:local-dir:{tmp_path}/clip')

def test_nor_is_a_hub_without_weights(tmp_path, monkeypatch):
    from rils_nb.evals.libraries import load_model
    clip_folder(tmp_path/'clip', weights=False)
    def fetch(model, filename=None, **kw):
        if filename: return str(tmp_path/'clip'/filename)
        raise FileNotFoundError('404 Client Error')
    monkeypatch.setattr(open_clip.factory, 'download_pretrained_from_hf', fetch)
    with pytest.raises(UserError, match='could not be opened.*404 Client Error'): load_model('open_clip:hf-hub:somebody/clip')

def test_timm_leaves_no_layer_random(tmp_path):
    from safetensors.torch import save_file
    from rils_nb.evals.libraries import load_model
    config = dict(architecture='resnet10t', model_args=dict(num_classes=2), pretrained_cfg=dict(num_classes=3, classifier='fc', input_size=[3, 64, 64]))
    (tmp_path/'config.json').write_text(json.dumps(config))
    save_file({k: v for k, v in timm.create_model('resnet10t', num_classes=3).state_dict().items() if not k.startswith('layer4')}, tmp_path/'model.safetensors')
    with pytest.raises(UserError, match=r'no weights for \d+ of its tensors, e.g. `layer4'): load_model(f'timm:local-dir:{tmp_path}')

def test_what_a_library_warns_of_is_said(tmp_path, capsys):
    import shutil
    from rils_nb.evals.libraries import load_model
    clip_folder(tmp_path/'clip')
    shutil.copy(tmp_path/'clip'/'open_clip_model.safetensors', tmp_path/'clip'/'a.safetensors')
    (tmp_path/'clip'/'open_clip_model.safetensors').rename(tmp_path/'clip'/'b.safetensors')
    load_model(f'open_clip:local-dir:{tmp_path}/clip')
    assert "Multiple checkpoints found" in capsys.readouterr().err

def test_weights_are_built_as_they_were_trained(monkeypatch):
    from rils_nb.evals.libraries import open_open_clip
    def built(**kwargs): raise RuntimeError(f'quick_gelu {kwargs.get("quick_gelu", False)}.')
    monkeypatch.setattr(open_clip.factory, 'download_pretrained', lambda cfg, **kw: 'weights.safetensors')
    for kind in ('CLIP', 'CustomTextCLIP', 'CoCa'): monkeypatch.setattr(open_clip.factory, kind, built)
    wrong = []
    for base, tag in open_clip.list_pretrained():
        try: open_open_clip(f'{base}/{tag}')
        except UserError as e:
            if f'quick_gelu {open_clip.get_pretrained_cfg(base, tag).get("quick_gelu", False)}.' not in str(e): wrong.append(f'{base}/{tag}')
    assert not wrong, f'{len(wrong)} of {len(open_clip.list_pretrained())}: {wrong}'

def test_the_results_say_the_activation(tmp_path, monkeypatch):
    net = clip_folder(tmp_path/'clip', quick=True)
    (tmp_path/'tiny-silence.json').write_text(json.dumps(dict(json.loads((tmp_path/'clip'/'open_clip_config.json').read_text())['model_cfg'], quick_gelu=False)))
    open_clip.add_model_config(tmp_path/'tiny-silence.json')
    cfg = dict(file=str(tmp_path/'clip'/'open_clip_model.safetensors'), quick_gelu=True, mean=[.5] * 3, std=[.5] * 3, interpolation='bicubic', resize_mode='shortest')
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-silence', dict(quick=cfg))
    harness.evaluate_command(dict(model='open_clip:tiny-silence/quick', data='scenes:split=val,n=20', tasks='retrieval', out=str(tmp_path/'r.jsonl')), {})
    assert read_jsonl(tmp_path/'r.jsonl')[0]['activations'] == dict(image='QuickGELU', text='QuickGELU')
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert harness.load_model('open_clip:tiny-silence/quick').net.encode_image(x).equal(net.encode_image(x))

def test_a_config_opens_no_connection(tmp_path, monkeypatch):
    from rils_nb.evals import libraries
    from rils_nb.training.runs import save
    fetched = []
    monkeypatch.setitem(libraries.OPENERS, 'open_clip', lambda name: fetched.append(name) or make(Config(method='clip')).eval())
    stranger = make(Config(method='linear', data='scenes:n=64', opts='classes=64,keep_ratio=0.5,teacher=open_clip:hf-hub:stranger/clip'))
    stranger.classes = Scenes().classes
    save(stranger, tmp_path)
    asked = dict(model=str(tmp_path), data='scenes:split=val,n=40', tasks='classification', out=str(tmp_path/'r.jsonl'))
    with pytest.raises(UserError, match='name it with --teacher'): harness.evaluate_command(asked, {})
    with pytest.raises(UserError, match='is not opened by itself'): load(tmp_path).classify(torch.rand(1, 3, 32, 32))
    harness.evaluate_command(asked | dict(tasks='probe'), dict(train_samples=64))
    assert fetched == []
    harness.evaluate_command(asked | dict(teacher='open_clip:hf-hub:stranger/clip'), {})
    assert fetched == ['hf-hub:stranger/clip']

def test_nor_does_a_folder_whose_config_names_a_hub(tmp_path, monkeypatch):
    from rils_nb.evals.libraries import load_model
    clip_folder(tmp_path)
    config = json.loads((tmp_path/'open_clip_config.json').read_text())
    config['model_cfg'] |= dict(custom_text=True, vision_cfg=dict(timm_model_name='hf-hub:stranger/vit', image_size=32))
    (tmp_path/'open_clip_config.json').write_text(json.dumps(config))
    asked = []
    def fetch(*args, **kwargs):
        asked.append(sys.modules['huggingface_hub.constants'].HF_HUB_OFFLINE)
        raise OSError('asked a hub')
    monkeypatch.setattr('timm.models._hub.hf_hub_download', fetch)
    with pytest.raises(UserError): load_model(f'open_clip:local-dir:{tmp_path}')
    assert asked == [True]                                                    # and it would not have been reached

def test_a_name_moves_no_cursor(tmp_path, capsys):
    import io, tarfile
    from rils_nb.core import command, warn
    from rils_nb.data.packing import check_command
    name = 'cat\x1b[2K\rgood\ndamaged: none\u202e'
    with tarfile.open(tmp_path/'x.tar', 'w', format=tarfile.PAX_FORMAT) as t:
        for key, data in (('a.png', b'garbage'), ('a.txt', b'red'), (name + '.png', b'garbage'), (name + '.txt', b'red')):
            info = tarfile.TarInfo(key)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    check_command(open_source(str(tmp_path/'x.tar')), None)
    warn(f'a notice about `{name}`')
    @command
    def fails(): raise UserError(f'an error about `{name}`')
    with pytest.raises(SystemExit): fails()
    out, err = capsys.readouterr()
    assert not set('\x1b\r\u202e') & set(out + err), repr(out + err)
    assert 'damaged: none' not in [line.strip() for line in (out + err).splitlines()]

def test_a_detectors_encoder_is_not_measured_as_another_network(tmp_path):
    from rils_nb.exports import export
    from rils_nb.methods.base import complete_config
    from rils_nb.training.runs import save
    config = Config(method='detect', image_size=32, opts='window_size=2,pyramid=2:1,width=16,convs=1,fc=16,anchor_scale=2,rpn_samples=16,rpn_topk=16,roi_samples=16')
    save(make(complete_config(config, Scenes(n=64))), tmp_path)
    with pytest.raises(UserError, match='trained together with what stands beside it'): harness.evaluate(tmp_path, 'scenes:split=val,n=40', 'probe')
    assert not {'probe', 'low_shot'} & set(harness.choose(load(tmp_path), Scenes('val', n=40)))
    with pytest.raises(UserError, match='windows of 2 patches and with relative positions'): load(tmp_path).encode_image(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match='cannot be exported to timm'): export(tmp_path, 'timm', tmp_path/'out')

def test_a_run_becomes_a_program():
    class Encoder(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
        def forward(self, x): return self.model.encode_image(x)
    encoder, x = Encoder(make(SMALL).eval()), torch.rand(2, 3, 16, 16)
    program, more = torch.export.export(encoder, (x,), dynamic_shapes=({0: torch.export.Dim('images')},)).module(), torch.rand(5, 3, 16, 16)
    with torch.no_grad(): assert torch.allclose(program(more), encoder(more), atol=1e-6)

def follow(words):
    "Run the command that a line holds in brackets."
    import re, shlex
    exec(shlex.split(re.search(r'\((python -c .*)\), then', words)[1])[-1], {})

def test_the_wrong_doors_lead_somewhere(tmp_path, monkeypatch):
    from rils_nb.exports import export
    from rils_nb.evals.libraries import load_model
    monkeypatch.chdir(tmp_path)
    def said(path):
        with pytest.raises(UserError) as e: load_model(path)
        with pytest.raises(UserError) as f: export(path, 'timm', tmp_path/'never')
        assert str(e.value) == str(f.value)
        return str(e.value)
    vit = timm.create_model('vit_tiny_patch16_224', depth=12, num_classes=0)
    torch.save(dict(model=vit.state_dict()), 'mae.pth')                       # as MAE's
    words = said('mae.pth')
    assert "`mae.pth` is a pickle with weights under timm's names" in words and 'give timm:NAME/mae.safetensors' in words
    follow(words)
    assert 'give timm:vit_tiny_patch16_224/mae.safetensors' in said('mae.safetensors')     # a bare file of weights
    assert load_model('timm:vit_tiny_patch16_224/mae.safetensors').net.norm.weight.equal(vit.norm.weight)
    net = clip_folder(tmp_path/'clip')
    assert load_model('clip').net.visual.proj.equal(net.visual.proj)                        # a folder that open_clip opens
    torch.save(dict(state_dict={f'module.{k}': v for k, v in net.state_dict().items()}, epoch=3), 'epoch_3.pt')
    with pytest.raises(UserError) as e: load_model('epoch_3.pt')
    words = str(e.value)
    assert 'give open_clip:NAME/epoch_3.safetensors' in words
    with pytest.raises(UserError, match='`epoch_3.pt` (is rewritten as it is, .*: give --to open_clip|has open_clip.s names, and no model .*: give its name, --model NAME)'): export('epoch_3.pt', 'timm', tmp_path/'never')
    follow(words)
    Path('tiny-doors.json').write_text(json.dumps(json.loads(Path('clip/open_clip_config.json').read_text())['model_cfg']))
    open_clip.add_model_config(Path('tiny-doors.json'))
    assert load_model('open_clip:tiny-doors/epoch_3.safetensors').net.visual.proj.equal(net.visual.proj)

def test_a_clip_of_transformers_is_rewritten(tmp_path):
    from rils_nb.exports import export
    from rils_nb.evals.libraries import load_model
    draw = lambda *shape: torch.randn(*shape) / 8
    tensors = {'logit_scale': draw(1)[0], 'text_projection.weight': draw(16, 64), 'visual_projection.weight': draw(16, 64), 'vision_model.embeddings.class_embedding': draw(64),
               'vision_model.embeddings.patch_embedding.weight': draw(64, 3, 16, 16), 'vision_model.embeddings.position_embedding.weight': draw(5, 64),
               'text_model.embeddings.token_embedding.weight': draw(49408, 64), 'text_model.embeddings.position_embedding.weight': draw(77, 64)}
    norms = ['text_model.final_layer_norm', 'vision_model.pre_layrnorm', 'vision_model.post_layernorm']
    for tower in ('text', 'vision'):
        block = f'{tower}_model.encoder.layers.0.'
        norms += [f'{block}layer_norm1', f'{block}layer_norm2']
        for name, (o, i) in {**{f'self_attn.{n}': (64, 64) for n in ('q_proj', 'k_proj', 'v_proj', 'out_proj')}, 'mlp.fc1': (256, 64), 'mlp.fc2': (64, 256)}.items():
            tensors |= {f'{block}{name}.weight': draw(o, i), f'{block}{name}.bias': draw(o)}
    for n in norms: tensors |= {f'{n}.weight': 1 + draw(64), f'{n}.bias': draw(64)}
    tower = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=256)
    (tmp_path/'hf').mkdir()
    (tmp_path/'hf'/'config.json').write_text(json.dumps(dict(model_type='clip', architectures=['CLIPModel'], projection_dim=16, text_config=tower,
                                                             vision_config=tower | dict(patch_size=16, image_size=32))))
    torch.save(tensors, tmp_path/'hf'/'pytorch_model.bin')
    with pytest.raises(UserError, match="pytorch_model.bin` is a pickle with weights under transformers' names") as e: load_model(tmp_path/'hf')
    follow(str(e.value))
    with pytest.raises(UserError, match='is a CLIPModel of transformers.*rils-export .*hf --to open_clip --out NEW'): load_model(tmp_path/'hf')
    export(tmp_path/'hf', 'open_clip', tmp_path/'new')
    net = load_model(tmp_path/'new').net
    assert net.visual.proj.equal(tensors['visual_projection.weight'].T) and type(net.visual.transformer.resblocks[0].mlp.gelu).__name__ == 'QuickGELU'

def test_neighbours_need_no_table_of_classes():
    from rils_nb.evals.probe import knn
    x, y = torch.randn(400, 8), torch.arange(400) % 40
    found = knn(x, y, x[:50] + 0.1, 10**9)                                    # a table would have 10^12 cells
    few = knn(x, y, x[:50] + 0.1, 40)
    assert all(found[k].equal(few[k]) for k in (1, 20))
# 26. What a folder, a label and a name mean

def pictures(root, *names):
    "Files of 8 x 8 pixels, and texts where a name ends so."
    for n in names:
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        if n.endswith('.txt'): (root/n).write_text(n)
        else: Image.new('RGB', (8, 8)).save(root/n, 'PNG')
    return str(root)

def checked(data, **columns):
    from rils_nb.data.packing import check
    return check(open_source(str(data), **columns))

def test_links_to_folders_are_followed(tmp_path):
    pictures(tmp_path/'store', 'cat/0.png', 'dog/0.png', 'dog/1.png'), pictures(tmp_path/'far', '0.png', '0.txt')
    pictures(tmp_path/'pairs', 'near/0.png', 'near/0.txt'), (tmp_path/'subset').mkdir()
    for link, to in (('subset/cat', '../store/cat'), ('subset/dog', '../store/dog'), ('pairs/far', '../far'), ('pairs/again', '../far'), ('pairs/near/up', '..')):
        os.symlink(to, tmp_path/link)
    source = open_source(str(tmp_path/'subset'))
    assert (source.classes, [source.read(i)['label'] for i in range(len(source))]) == (['cat', 'dog'], [0, 1, 1])
    assert len(open_source(str(tmp_path/'pairs'))) == 2                                 # the real folder once, and no circle

def test_what_systems_leave_behind_is_no_class(tmp_path):
    pictures(tmp_path, 'cat/0.png', 'dog/0.png', '__MACOSX/cat/0.png', '@eaDir/0.png', '#recycle/0.png', 'lost+found/0.png', 'dog/x.png/1.png', 'preview.png'), (tmp_path/'empty').mkdir()
    source = open_source(str(tmp_path))
    assert (source.classes, len(source)) == (['cat', 'dog'], 3)
    figures, bad = checked(tmp_path)
    assert (figures['classes'], figures['images of a class'], bad) == ('2: cat 1, dog 2', '1 / 2 / 2', [])
    assert (figures['folders without an image'], figures['pictures of no class']) == ('1: empty', '1: preview.png')

@pytest.mark.parametrize('names,words', [(('train/a/0.png', 'train/b/0.png', 'val/a/0.png'), 'parts of the data and no classes .*give one of them, as .*/train'),
                                         (('images/0.png', 'captions/0.txt'), 'pictures in `images` and texts of the same names in `captions`')])
def test_what_only_looks_like_classes_is_refused(tmp_path, names, words):
    with pytest.raises(UserError, match=words): open_source(pictures(tmp_path, *names))

def test_pictures_that_are_not_read_are_counted(tmp_path):
    pictures(tmp_path, *(f'{n}.txt' for n in 'abcdef'), 'a.png', 'b.heic', 'c.jxl', 'd.xyz', 'e', 'f.png', 'f.png.txt', 'g.png', 'g.png.txt')
    figures, bad = checked(tmp_path)
    assert (figures['good'], sorted((kind, Path(where.split(' ')[0]).name) for kind, where in bad)) == (2, [*(('image', n) for n in ('b.heic', 'c.jxl', 'd.xyz', 'e')), ('pair', 'f.png')])
    assert len(bad) == 5 and open_source(str(tmp_path)).read(1)['captions'] == ['g.png.txt']

def test_missing_labels_and_lists_are_no_classes(tmp_path):
    pictures(tmp_path, *(f'{i}.png' for i in range(10)))
    labels = ['cat', 'nan', 'None', '10.0', '2', '2.0', '""', '"[\'cat\', \'dog\']"', 'class 10', 'class 2']
    (tmp_path/'t.csv').write_text('image,label\n' + ''.join(f'{i}.png,{l}\n' for i, l in enumerate(labels)))
    (tmp_path/'t.jsonl').write_text(''.join(json.dumps(dict(image=f'{i}.png', label=l)) + '\n' for i, l in enumerate(('dog', 1, 1.0, '1', math.nan, None, ['cat', 'dog'], {'cat': 1}))))
    assert open_source(str(tmp_path/'t.csv')).classes == ['2', '10', 'cat', 'class 2', 'class 10']
    assert open_source(str(tmp_path/'t.jsonl')).classes == ['1', 'dog']
    assert [len(checked(tmp_path/t)[1]) for t in ('t.csv', 't.jsonl')] == [4, 4]
    assert {kind for kind, _ in checked(tmp_path/'t.jsonl')[1]} == {'label'}

def test_one_natural_order(tmp_path):
    names = [f'class {k}' for k in (0, 1, 2, 10)]
    pictures(tmp_path/'folders', *(f'{n}/0.png' for n in names))
    import io, tarfile
    with tarfile.open(tmp_path/'0.tar', 'w') as t:
        for i, n in enumerate(reversed(names)):
            t.add(tmp_path/'folders'/n/'0.png', f'{i}.png')
            info = tarfile.TarInfo(f'{i}.cls')
            info.size = len(n)
            t.addfile(info, io.BytesIO(n.encode()))
    folders, shards = open_source(str(tmp_path/'folders')), open_source(str(tmp_path/'0.tar'))
    assert folders.classes == shards.classes == names
    assert [shards.read(i)['label'] for i in range(4)] == [3, 2, 1, 0]

class Heard(torch.nn.Module):
    "A text tower that keeps what it was asked."
    image_size = 8
    def __init__(self): super().__init__(); self.texts = []
    def tokenize(self, texts): self.texts += texts; return torch.zeros(len(texts), 1, dtype=torch.long)
    def encode_text(self, tokens): return torch.randn(len(tokens), 4)
    def encode_image(self, x): return torch.randn(len(x), 4)

def test_prompts_say_words(tmp_path):
    pictures(tmp_path, 'n01484850/0.png', 'traffic_light/0.png')
    zeroshot(model := Heard(), replace(SMALL, workers=0), open_source(str(tmp_path)))
    assert {'a photo of a great white shark', 'a photo of a traffic light'} < set(model.texts) and not any('_' in t or 'n0' in t for t in model.texts)

def test_public_packs_bring_names_and_prompts(tmp_path):
    pictures(tmp_path/'classes', 'a/0.png', 'b/0.png')
    path, = pack(open_source(str(tmp_path/'classes')), tmp_path/'x')[0]
    (tmp_path/'public'/'test').mkdir(parents=True)
    path.rename(tmp_path/'public'/'test'/'0.tar')
    (tmp_path/'public'/'classnames.txt').write_text('ant\nbee\n')
    (tmp_path/'public'/'zeroshot_classification_templates.txt').write_text('{c}!\n')
    zeroshot(model := Heard(), replace(SMALL, workers=0), open_source(f'{tmp_path}/public/test/*.tar'))
    assert sorted(model.texts) == ['ant!', 'bee!']

@pytest.mark.parametrize('odd', ['a\rb', 'two\nlines', '', 'B\udce4r'])
def test_names_survive_their_file(tmp_path, odd):
    from rils_nb.training.runs import names_in, write_names
    write_names([odd, 'cat', odd + 'x', odd], tmp_path)
    assert names_in(tmp_path) == [odd, 'cat', odd + 'x', odd]

def test_a_pack_keeps_odd_names(tmp_path):
    pictures(tmp_path/'classes', 'a\rb/0.png', 'two\nlines/0.png', 'cat/0.png')
    source = open_source(str(tmp_path/'classes'))
    pack(source, tmp_path/'x')
    packed = open_source(f'{tmp_path}/x-*.tar')
    assert packed.classes == source.classes and len(packed.classes) == 3
# Captions and tables of strangers

def _noise_png(path, i=0):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return Path(path).read_bytes()

def _tar_of(path, members):
    import io, tarfile
    with tarfile.open(path, 'w') as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))

def _captions_of(spec, **kw):
    source = open_source(str(spec), **kw)
    return [source.read(i)['captions'] for i in range(len(source))]

def test_lines_of_a_text_are_captions_in_a_shard_too(tmp_path):
    "The layout of CLIP_benchmark's retrieval sets; and img2dataset's, which has the same text in both."
    image, lines = _noise_png(tmp_path/'0.png'), 'a cat\non a mat\n'
    (tmp_path/'0.txt').write_text(lines)
    _tar_of(tmp_path/'0.tar', [('0.png', image), ('0.txt', lines.encode()), ('1.png', image), ('1.txt', lines.strip().encode()),
                                  ('1.json', json.dumps(dict(caption=lines.strip())).encode())])
    assert _captions_of(tmp_path/'0.tar') == [*_captions_of(f'folder:{tmp_path}'), ['a cat on a mat']] == [['a cat', 'on a mat'], ['a cat on a mat']]

def test_retrieval_knows_all_captions_of_an_image(tmp_path):
    _tar_of(tmp_path/'0.tar', [m for i in range(4) for m in ((f'{i}.png', _noise_png(tmp_path/f'{i}.png', i)), (f'{i}.txt', ''.join(f'image {i}, line {k}\n' for k in range(5)).encode()))])
    (tmp_path/'t.csv').write_text('image,caption\n' + ''.join(f'{i}.png,"image {i}, line {k}"\n' for i in range(4) for k in range(5)))
    for data in ('0.tar', 't.csv'):
        r = retrieval(make(SMALL).eval(), SMALL, open_source(str(tmp_path/data)))
        assert (r['n'], r['n_texts']) == (4, 20), data

def test_lists_and_columns_of_captions(tmp_path):
    _noise_png(tmp_path/'0.png'), _noise_png(tmp_path/'1.png')
    rows = '"[""a cat"", ""a dog""]"', '"[\'a cat\', \'a dog\']"', "\"['a cat' 'a dog']\""  # as JSON, Python and NumPy write them
    for k, cell in enumerate(rows):
        (tmp_path/f'{k}.csv').write_text(f'image,caption\n0.png,{cell}\n')
        assert _captions_of(tmp_path/f'{k}.csv') == [['a cat', 'a dog']], cell
    (tmp_path/'twice.csv').write_text('image,caption,caption\n0.png,a cat,a dog\n')
    (tmp_path/'two.csv').write_text('image,caption_0,caption_1\n0.png,a cat,a dog\n')
    assert _captions_of(tmp_path/'twice.csv') == _captions_of(tmp_path/'two.csv', caption_key='caption_0,caption_1') == [['a cat', 'a dog']]

def test_only_the_default_field_has_a_substitute(tmp_path):
    image = _noise_png(tmp_path/'0.png')
    _tar_of(tmp_path/'0.tar', [('0.png', image), ('0.json', b'{"caption": "short", "long": "a long one"}')])
    assert _captions_of(tmp_path/'0.tar', caption_key='long') == [['a long one']]
    with pytest.raises(UserError, match='no .json has `lnog`.*it has caption, long'): open_source(str(tmp_path/'0.tar'), caption_key='lnog')

def test_what_shows_nothing_is_no_caption(tmp_path):
    from rils_nb.data.samples import BadSample
    _noise_png(tmp_path/'0.png')
    for nothing in ('\u200b\u200d', '\u00a0\u00ad', '\ufe0f', '&nbsp;'):
        (tmp_path/'0.txt').write_text(nothing, encoding='utf-8')
        with pytest.raises(BadSample, match='empty'): _captions_of(tmp_path)

def test_check_says_what_is_cut_and_what_was_folded(tmp_path):
    from rils_nb.data.packing import check
    _noise_png(tmp_path/'0.png'), _noise_png(tmp_path/'1.png')
    (tmp_path/'t.csv').write_text('image,caption\n0.png,' + 'red ' * 76 + '\n0.png,' + 'red ' * 75 + '\n1.png,x\n')
    figures, bad = check(open_source(str(tmp_path/'t.csv')))
    assert [figures.get(k) for k in ('rows', 'samples', 'captions cut at 77 tokens')] == [3, 2, '1 (33.3%)'] and not bad

def test_packs_keep_all_captions(tmp_path):
    _noise_png(tmp_path/'0.png'), _noise_png(tmp_path/'1.png')
    (tmp_path/'t.csv').write_text('image,caption\n0.png,"[\'a cat\', \'a dog\']"\n1.png,x\n./0.png,a cow\n')
    pack(open_source(str(tmp_path/'t.csv')), tmp_path/'p', shuffle=None)
    assert _captions_of(f'{tmp_path}/p-*.tar') == [['a cat', 'a dog', 'a cow'], ['x']]

def test_a_quote_swallows_no_rows(tmp_path):
    for i in range(4): _noise_png(tmp_path/f'{i}.png')
    rows = ['image,caption', '0.png,a cat', '1.png,"untitled', '2.png,bread on a table', '3.png,a frame of 16"']
    (tmp_path/'t.csv').write_text('\n'.join(rows) + '\n')
    (tmp_path/'t.tsv').write_text('\n'.join(rows).replace(',', '\t') + '\n')
    (tmp_path/'two_lines.csv').write_text('image,caption\n0.png,"a cat, asleep,\non a mat, in the sun"\n1.png,x\n')
    with pytest.raises(UserError, match='line 3: a cell in quotes .* takes in whole rows'): open_source(str(tmp_path/'t.csv'))
    assert _captions_of(tmp_path/'t.tsv') == [['a cat'], ['"untitled'], ['bread on a table'], ['a frame of 16"']]
    assert _captions_of(tmp_path/'two_lines.csv') == [['a cat, asleep, on a mat, in the sun'], ['x']]

@pytest.mark.parametrize('name, text', [
    ('t.csv', 'image\tcaption\nsub/0.png\ta cat, asleep\n'), ('t.csv', 'image|caption\nsub/0.png|a cat, asleep\n'), ('t.csv', '"image";"caption"\n"sub/0.png";"a cat, asleep"\n'),
    ('t.csv', 'image , caption\nsub/0.png , "a cat, asleep"\n'), ('t.csv', 'image,caption\nsub\\0.png,"a cat, asleep"\n'), ('t.csv', 'image,caption\nsub/0.png#0,"a cat, asleep"\n'),
    ('t.json', '[{"image": "sub/0.png", "caption": "a cat, asleep"}]')], ids=['tabs', 'bars', 'semicolons', 'blanks', 'backslashes', 'numbers', 'json'])
def test_dialects(tmp_path, name, text):
    (tmp_path/'sub').mkdir()
    _noise_png(tmp_path/'sub'/'0.png')
    (tmp_path/name).write_text(text)
    assert _captions_of(tmp_path/name) == [['a cat, asleep']]

def test_a_tab_is_shown_as_one(tmp_path, monkeypatch, capsys):
    from rils_nb.commands import data
    (tmp_path/'t.tsv').write_text('image\tcaption\n0.png\t"a" b\tc\n')
    monkeypatch.setattr(sys, 'argv', ['rils-data', 'check', str(tmp_path/'t.tsv')])
    with pytest.raises(SystemExit): data()
    assert "'\\t' expected after" in capsys.readouterr().err

def test_captions_in_the_format_of_coco(tmp_path):
    _noise_png(tmp_path/'0.png')
    (tmp_path/'c.json').write_text(json.dumps(dict(images=[dict(id=7, file_name='0.png', height=8.0, width=8.0)], annotations=[dict(id=k, image_id=7, caption=f'line {k}') for k in range(2)])))
    assert _captions_of(f'captions:{tmp_path}/c.json') == [['line 0', 'line 1']]
    with pytest.raises(UserError, match='give captions:FILE'): open_source(str(tmp_path/'c.json'))
def test_gradients_of_sixteen_columns():
    "All gates at their bound, where a column loses two binary digits: going back sixteen columns from the last one's levels, nothing is right."
    from rils_nb.models.reversible import run_columns
    from rils_nb.models.unit import column
    torch.manual_seed(0)
    row, x, grads = torch.nn.ModuleList(column(32, 1) for _ in range(16)), torch.randn(2, 5, 32), []
    for level in (level for c in row for level in c.levels): level.gate.data.fill_(9.)
    for stored in (True, False):
        leaf = x.clone().requires_grad_()
        state = run_columns(row, [leaf] * 4, leaf, stored=stored)
        grads.append(torch.autograd.grad(sum(s.float().sin().mean() for s in state), [leaf, *row.parameters()]))
    apart = max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*grads))
    assert apart < 8**3 * torch.finfo(torch.float32).eps  # a number that is read as its neighbour, and three columns that multiply it
# Boxes, outlines and label maps of strangers

def coco_file(folder, annotations, side=40, n=3, **change):  # -> what `open_source` takes
    (folder/'photos').mkdir(exist_ok=True)
    for i in range(n): Image.new('RGB', (side, side), (40 * i, 90, 20)).save(folder/'photos'/f'{i}.png')
    images = [dict(id=i, file_name=f'{i}.png', height=side, width=side) for i in range(n)]
    (folder/'all.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat'), dict(id=2, name='dog')]) | change))
    return f'coco:{folder}/all.json,images={folder}/photos'

SQUARE = dict(image_id=0, category_id=1, bbox=[4, 4, 20, 20], iscrowd=0, segmentation=[[4, 4, 24, 4, 24, 24, 4, 24]])

@pytest.mark.parametrize('change, words', [
    (dict(segmentation=dict(size=[40, 40], counts=[10, 20, 10])), 'do not fill the image'), (dict(segmentation=dict(size=[40, 40], counts=':::')), 'do not fill the image'),
    (dict(segmentation=[[4, 4, 24, 4, float('nan'), 24]]), 'no numbers'), (dict(segmentation=[[4, 4, 24, 4, 14, 4]]), 'without a pixel'), (dict(bbox=[.1, .1, .5, .5], segmentation=[]), 'smaller than a pixel'),
    (dict(bbox=[50, 4, 9, 9], segmentation=None), 'outside of the image'), (dict(iscrowd='maybe'), 'neither 0 nor 1'), (dict(category_id=7), 'of no known category')])
def test_what_cannot_be_read_is_damage(tmp_path, capsys, change, words):
    from rils_nb.data.packing import check_command
    code = check_command(open_source(coco_file(tmp_path, [SQUARE, SQUARE | dict(image_id=1, segmentation=[SQUARE['segmentation'][0]]) | change])), None)
    assert code == 1 and words in capsys.readouterr().out

@pytest.mark.parametrize('change', [dict(iscrowd='0'), dict(segmentation=SQUARE['segmentation'][0]), dict(segmentation=[[['4', '4'], ['24', '4'], ['24', '24'], ['4', '24']]]), dict(bbox=None), dict(category_id='1', image_id='0'),
    dict(segmentation=dict(size=[40., 40.], counts=[164., *[20.] * 39, 656.]))])
def test_what_means_the_same_is_read(tmp_path, change):
    plain, other = (open_source(coco_file(tmp_path, [SQUARE | c])).annotation(0) for c in ({}, change))
    assert len(other['boxes']) == 1
    for k in ('boxes', 'labels', 'crowd'): assert other[k].equal(plain[k])
    assert torch.as_tensor(other['masks'][0]).equal(torch.as_tensor(plain['masks'][0]))

def test_corners_in_place_of_sides_are_refused(tmp_path):
    boxes = [SQUARE | dict(image_id=i, bbox=b, segmentation=None) for i, b in enumerate(([20, 20, 36, 36], [10, 10, 30, 30], [5, 18, 20, 39]))]
    with pytest.raises(UserError, match='two corners'): open_source(coco_file(tmp_path, boxes))

def test_detect_needs_objects(tmp_path):
    from rils_nb.methods.base import complete_config
    for wrong in (dict(iscrowd=1), dict(bbox=[90, 4, 5, 5]), dict(category_id=9)):
        with pytest.raises(UserError, match='no image of the data shows an object'):
            complete_config(Config(method='detect', opts='masks=false'), open_source(coco_file(tmp_path, [SQUARE | dict(segmentation=None) | wrong])))

def test_lists_of_voc(tmp_path):
    for i in 'ab':
        for folder in ('JPEGImages', 'SegmentationClass'): (tmp_path/folder).mkdir(exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path/'JPEGImages'/f'{i}.jpg'), Image.new('L', (8, 8)).save(tmp_path/'SegmentationClass'/f'{i}.png')
    (tmp_path/'ImageSets'/'Segmentation').mkdir(parents=True)
    for text in ('a  1\nb -1\n', ' a.jpg \n\n', '/JPEGImages/a.jpg /SegmentationClass/a.png\n'):
        (tmp_path/'ImageSets'/'Segmentation'/'train.txt').write_text(text)
        source = open_source(f'voc:{tmp_path}')
        assert ([Path(source.label_and_name(i)[1]).stem for i in range(len(source))], list(source.bad)) == (['a'], []), text

def test_one_outline_costs_no_object(tmp_path):
    source = open_source(coco_file(tmp_path, [SQUARE] + [{k: v for k, v in SQUARE.items() if k != 'segmentation'} | dict(image_id=i % 3) for i in range(9)]))
    assert sum(len(source.annotation(i)['boxes']) for i in range(3)) == 10
    from rils_nb.dense.lsj import lsj_view
    view = lsj_view(Config(image_size=64), 2, masks=True, scale_range='1:1')
    assert sum(len(view(source.read(i), i, source.annotation(i))['boxes']) for i in range(3)) == 10

@pytest.mark.parametrize('change', [dict(images=[dict(id=0, file_name='0.png', height=1e10, width=40), dict(id=1, file_name='1.png', height=40, width=40)]), dict(images=[dict(id=[0], file_name='0.png', height=40, width=40), dict(id=1, file_name='1.png', height=40, width=40)]),
    dict(annotations=[SQUARE | dict(segmentation=dict(size=None, counts=[1600]))]), dict(annotations=[SQUARE | dict(image_id=[1])]), dict(annotations=[SQUARE | dict(category_id=[1])]), dict(annotations=[SQUARE, None])])
def test_one_malformed_value(tmp_path, capsys, change):
    from rils_nb.data.packing import check_command
    assert check_command(open_source(coco_file(tmp_path, **dict(annotations=[SQUARE]) | change)), None) == 1

def test_a_map_of_another_size_is_left_out():
    from rils_nb.evals.segmentation import _readable
    class Maps(Scenes):
        def annotation(self, i): return {k: v[1:] if i == 1 and k == 'semantic' else v for k, v in super().annotation(i).items()}
    assert [name for name, _, _ in _readable(Maps(n=3), range(3))] == [Scenes(n=3).read(i)['name'] for i in (0, 2)]

def test_outlines_take_the_memory_of_their_runs(tmp_path):
    "What a file claims costs nothing before it is compared with the picture: less than the pixels of one mask."
    from rils_nb.data.loader import annotation_of
    from rils_nb.data.samples import BadSample
    outline = [[10, 10, 2990, 10, 2990, 2990]]
    source = open_source(coco_file(tmp_path, [SQUARE | dict(bbox=[10, 10, 2980, 2980], segmentation=outline)] * 9, images=[dict(id=0, file_name='0.png', height=3000, width=3000)]))
    image = source.read(0)['image']
    tracemalloc.start()
    with pytest.raises(BadSample, match='3000x3000'): annotation_of(source, 0, image)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 3000 * 3000

def test_a_strip_stays_a_strip():
    from rils_nb.evals.semantic_segmentation import resize_shorter
    assert max(resize_shorter(torch.zeros(3, 2, 800, dtype=torch.uint8), 16).shape) <= 4 * 16

def test_anchors_stand_at_multiples_of_the_stride():
    from rils_nb.dense.rpn import RPN
    anchors = RPN(8, (16, 32))([torch.zeros(1, 8, 3, 3), torch.zeros(1, 8, 2, 2)], torch.zeros(1, 3, 56, 56), [(56, 56)])[2][0]
    assert {*((anchors[:, 0] + anchors[:, 2]) / 2).round().int().tolist()} == {0, 16, 32}

def test_a_nan_is_not_kept():
    from rils_nb.finetuning.linear import Standardise
    norm = Standardise(3)
    norm(torch.full((4, 3), torch.nan)), norm(torch.randn(4, 3))
    assert norm.mean.isfinite().all() and norm.var.isfinite().all()

def test_numbers_are_finite():
    "Every option of every method whose default is a number, or several."
    from rils_nb.methods.base import METHODS, import_methods, method_options
    import_methods()
    wrong = [f'{m} {k}={v}' for m, cls in METHODS.items() for k, default in method_options(cls).items() if isinstance(default, float) or k in ('scale_range', 'lr_factors')
             for v in ('nan', 'inf') if not _refuses(k, f'0.1:{v}' if default == '0.1:2' else v, method_options(cls))]
    assert not wrong, wrong

def test_renamed_options():
    "A former name of an option is refused with the name that the method at hand has for it."
    from rils_nb.config import RENAMED, parse_opts
    from rils_nb.methods.base import METHODS, import_methods, method_options
    import_methods()
    seen = set()
    for cls in METHODS.values():
        for old, names in RENAMED.items():
            for new in set(names) & set(method_options(cls)):
                assert old not in method_options(cls)
                with pytest.raises(UserError, match=f'option `{old}` is now called `{new}`'): parse_opts(f'{old}=1', method_options(cls))
                seen.add((old, new))
    assert seen == {(old, new) for old, names in RENAMED.items() for new in names}

def _refuses(k, v, known):
    from rils_nb.config import parse_opts
    try: parse_opts(f'{k}={v}', known)
    except UserError: return True

def test_windows_alone():
    small = 'classes=3,pyramid=2:1,width=32,convs=1,fc=64,anchor_scale=4,rpn_topk=50,window_size=2'
    assert [b.window for b in make(Config(method='detect', image_size=64, opts=f'{small},global_blocks=0')).visual.trunk.blocks] == [2] * 4
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

def test_suffixes_of_images_that_can_be_decoded(tmp_path):
    for i, (suffix, format) in enumerate(dict(tif='TIFF', tiff='TIFF', jfif='JPEG', jpe='JPEG', ppm='PPM', jp2='JPEG2000').items()):
        (tmp_path/f'{i}.{suffix}').write_bytes(_file(_blocks(i), format))
        (tmp_path/f'{i}.txt').write_text(f'picture {i}')
    shard = _tar(tmp_path/'all.tar', *sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()), ('6.heic', b'x'), ('6.txt', b'phone'))
    for source, lost in ((open_source(f'folder:{tmp_path}'), 0), (open_source(shard), 1)):
        assert sorted(s['captions'][0] for s in _all(source)) == [f'picture {i}' for i in range(6)] and [k for k, _ in source.bad] == ['image'] * lost
    assert '6.heic (.heic images are not decoded' in source.bad[0][1]

def test_sparse_members_are_not_read_raw(tmp_path):
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

def test_links_keep_their_samples(tmp_path):
    import tarfile
    png = _file(_blocks())
    source = open_source(_tar(tmp_path/'a.tar', ('0.png', png), ('0.txt', b'same'), ('1.png', tarfile.LNKTYPE, '0.png'), ('1.txt', tarfile.LNKTYPE, '0.txt'), ('2.png', tarfile.SYMTYPE, './1.png'), ('2.txt', b'other')))
    assert [(s['name'][-5:], s['captions']) for s in _all(source)] == [('0.png', ['same']), ('1.png', ['same']), ('2.png', ['other'])] and not source.bad
    assert torch.equal(source.read(0)['image'], source.read(2)['image'])

def test_suffixes_of_two_parts(tmp_path):
    source = open_source(_tar(tmp_path/'a.tar', *((f'{i}.{s}', d) for i in range(3) for s, d in (('image.png', _file(_blocks(i))), ('caption.txt', b'%d' % i), ('mask.png', b'none')))))
    assert [s['captions'] for s in _all(source)] == [['0'], ['1'], ['2']] and not source.bad

@pytest.mark.parametrize('name', ['a.tar', 'a.tar.gz', 'a.tgz'])
def test_a_compressed_shard_says_how_to_unpack_it(tmp_path, name):
    path = _tar(tmp_path/name, ('0.png', _file(_blocks())), ('0.txt', b'x'), mode='w:gz')
    with pytest.raises(UserError, match=f'is compressed by gzip.*: unpack it, gunzip -c {path} > '): open_source(path)

def _decoded(data):
    from rils_nb.data.samples import decode_image
    return decode_image(data)

def test_one_nan_costs_one_pixel():
    x = np.random.default_rng(0).random((20, 20), np.float32)
    whole = _decoded(_file(Image.fromarray(x), 'TIFF'))
    for hole in (np.nan, np.inf, -np.inf):
        x[3, 4] = hole
        wrong = (_decoded(_file(Image.fromarray(x), 'TIFF')) != whole).any(0).nonzero().tolist()
        assert wrong in ([], [[3, 4]]), len(wrong)

def test_alpha_that_is_0_everywhere_hides_nothing():
    empty = np.dstack([np.asarray(_blocks()), np.zeros((40, 48), np.uint8)])
    for image in (Image.fromarray(empty), Image.fromarray(empty[..., 2:])):
        assert torch.equal(_decoded(_file(image)), _decoded(_file(image.convert('RGB')))), _decoded(_file(image)).float().std()

def test_12_bits_in_a_file_of_16():
    x = np.random.default_rng(0).integers(0, 4096, (20, 20), np.uint16)
    x[0, 0] = 4095
    for format in ('PNG', 'TIFF'):
        seen = _decoded(_file(Image.fromarray(x), format))[0].numpy()
        assert np.abs(seen - x / 4095 * 255).max() <= 0.5, seen.max()

@pytest.mark.parametrize('what', ['zTXt', 'iCCP', 'eXIf', 'tEXt'])
def test_a_broken_note_loses_no_picture(what):
    import zlib
    png, large = _file(_blocks()), zlib.compress(bytes(2**21))
    content = dict(zTXt=b'a\0\0' + large, iCCP=b'a\0\0' + large, eXIf=b'Exif\0\0nonsense', tEXt=b'a\0b')[what]
    note = len(content).to_bytes(4, 'big') + what.encode() + content + (zlib.crc32(what.encode() + content) ^ (what == 'tEXt')).to_bytes(4, 'big')
    assert torch.equal(_decoded(png[:33] + note + png[33:]), _decoded(png))

@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_jpeg_without_its_end_marker_is_complete(mode):
    from rils_nb.data.samples import BadSample
    for kw in ({}, dict(progressive=True)):
        jpeg = _file(_blocks().convert(mode), 'JPEG', **kw)
        assert torch.equal(_decoded(jpeg[:-2]), _decoded(jpeg))
        for cut in (3, 50, len(jpeg) - jpeg.rindex(b'\xff\xda')):
            with pytest.raises(BadSample): _decoded(jpeg[:-cut])

def test_check_counts_pictures_of_one_colour(tmp_path):
    from rils_nb.data.packing import check
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

def test_lvis_is_judged_alike_from_shards(tmp_path):
    import rils_nb.evals.detection
    coco = open_source(_lvis(tmp_path/'lvis'))
    pack(coco, tmp_path/'packed', per_shard=3)
    packed = open_source(f'{tmp_path}/packed-*.tar')
    a, b = (harness.run_tasks(_Guesses(), Config(), s, 'detection') for s in (coco, packed))
    assert a == b and a['detection/box_ap_rare'] >= 0 and packed.object_images == coco.object_images == [3, 5]

def test_listed_keeps_boxes_and_names(tmp_path):
    coco, spec = open_source(spec := _lvis(tmp_path/'lvis')), spec
    (tmp_path/'list.txt').write_text('6.png\n1.png\n')
    listed = open_source(f'listed:{tmp_path}/list.txt,{spec}')
    assert listed.object_names == ['cat', 'dog'] and [listed.annotation(i)['boxes'].tolist() for i in (0, 1)] == [coco.annotation(i)['boxes'].tolist() for i in (1, 6)]
    assert (listed.federated, listed.object_frequency, listed.searched_classes(0)) == (True, ['r', 'f'], coco.searched_classes(1))

def test_what_a_source_knows_comes_through_every_wrapper_and_the_pack(tmp_path):
    from rils_nb.data.readers import Source
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
    from rils_nb.data.sources import Wrapper
    below = lambda c: [s for d in c.__subclasses__() for s in (d, *below(d))]
    from rils_nb.data.mixed import Labels  # makes captions of classes, and has no classes itself
    assert {c for c in below(Source) if 'source' in c.__init__.__code__.co_varnames and not issubclass(c, Wrapper)} == {Labels}
    for wrapper in (Wrapper, *below(Wrapper)):
        w = object.__new__(wrapper)
        w.source, w.index = coco, None
        for k in knowledge: assert k in vars(wrapper) or getattr(w, k) == getattr(coco, k), (wrapper, k)  # it says what the source says, or something of its own

def test_small_files_of_large_pictures_are_refused_by_their_head(monkeypatch):
    from PIL import ImageFile
    from rils_nb.data.samples import BadSample
    files = [_file(Image.new('P', (10_000, 10_000)), bits=1), _file(Image.fromarray(np.full((8000, 8000), 4000, np.uint16)))]
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail(f'{self.size} pixels of {self.mode} are decoded'))
    for data in files:
        with pytest.raises(BadSample, match='bomb: (10000x10000|8000x8000) pixels from'): _decoded(data)
