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

def test_26_10_a_folder_without_weights_is_no_model(tmp_path):
    from rils_nb.libraries import load_model
    clip_folder(tmp_path/'clip', weights=False)
    with pytest.raises(UserError, match='has no weights'): load_model(f'open_clip:local-dir:{tmp_path}/clip')

def test_26_10_nor_is_a_hub_without_weights(tmp_path, monkeypatch):
    from rils_nb.libraries import load_model
    clip_folder(tmp_path/'clip', weights=False)
    def fetch(model, filename=None, **kw):
        if filename: return str(tmp_path/'clip'/filename)
        raise FileNotFoundError('404 Client Error')
    monkeypatch.setattr(open_clip.factory, 'download_pretrained_from_hf', fetch)
    with pytest.raises(UserError, match='could not be opened.*404 Client Error'): load_model('open_clip:hf-hub:somebody/clip')

def test_26_10_timm_leaves_no_layer_random(tmp_path):
    from safetensors.torch import save_file
    from rils_nb.libraries import load_model
    config = dict(architecture='resnet10t', model_args=dict(num_classes=2), pretrained_cfg=dict(num_classes=3, classifier='fc', input_size=[3, 64, 64]))
    (tmp_path/'config.json').write_text(json.dumps(config))
    save_file({k: v for k, v in timm.create_model('resnet10t', num_classes=3).state_dict().items() if not k.startswith('layer4')}, tmp_path/'model.safetensors')
    with pytest.raises(UserError, match=r'no weights for \d+ of its tensors, e.g. `layer4'): load_model(f'timm:local-dir:{tmp_path}')

def test_26_10_what_a_library_warns_of_is_said(tmp_path, capsys):
    import shutil
    from rils_nb.libraries import load_model
    clip_folder(tmp_path/'clip')
    shutil.copy(tmp_path/'clip'/'open_clip_model.safetensors', tmp_path/'clip'/'a.safetensors')
    (tmp_path/'clip'/'open_clip_model.safetensors').rename(tmp_path/'clip'/'b.safetensors')
    load_model(f'open_clip:local-dir:{tmp_path}/clip')
    assert "Multiple checkpoints found" in capsys.readouterr().err

def test_26_11_weights_are_built_as_they_were_trained(monkeypatch):
    from rils_nb.libraries import open_open_clip
    def built(**kwargs): raise RuntimeError(f'quick_gelu {kwargs.get("quick_gelu", False)}.')
    monkeypatch.setattr(open_clip.factory, 'download_pretrained', lambda cfg, **kw: 'weights.safetensors')
    for kind in ('CLIP', 'CustomTextCLIP', 'CoCa'): monkeypatch.setattr(open_clip.factory, kind, built)
    wrong = []
    for base, tag in open_clip.list_pretrained():
        try: open_open_clip(f'{base}/{tag}')
        except UserError as e:
            if f'quick_gelu {open_clip.get_pretrained_cfg(base, tag).get("quick_gelu", False)}.' not in str(e): wrong.append(f'{base}/{tag}')
    assert not wrong, f'{len(wrong)} of {len(open_clip.list_pretrained())}: {wrong}'

def test_26_11_the_results_say_the_activation(tmp_path, monkeypatch):
    net = clip_folder(tmp_path/'clip', quick=True)
    (tmp_path/'tiny-silence.json').write_text(json.dumps(dict(json.loads((tmp_path/'clip'/'open_clip_config.json').read_text())['model_cfg'], quick_gelu=False)))
    open_clip.add_model_config(tmp_path/'tiny-silence.json')
    cfg = dict(file=str(tmp_path/'clip'/'open_clip_model.safetensors'), quick_gelu=True, mean=[.5] * 3, std=[.5] * 3, interpolation='bicubic', resize_mode='shortest')
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-silence', dict(quick=cfg))
    harness.evaluate_command(dict(model='open_clip:tiny-silence/quick', data='scenes:split=val,n=20', tasks='retrieval', out=str(tmp_path/'r.jsonl')), {})
    assert read_jsonl(tmp_path/'r.jsonl')[0]['activations'] == dict(image='QuickGELU', text='QuickGELU')
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert harness.load_model('open_clip:tiny-silence/quick').net.encode_image(x).equal(net.encode_image(x))

def test_26_18_a_config_opens_no_connection(tmp_path, monkeypatch):
    from rils_nb import libraries
    from rils_nb.runs import save
    fetched = []
    monkeypatch.setitem(libraries.OPENERS, 'open_clip', lambda name: fetched.append(name) or make(Config(method='clip')).eval())
    stranger = make(Config(method='linear', data='scenes:n=64', opts='classes=64,seen=0.5,teacher=open_clip:hf-hub:stranger/clip'))
    stranger.classes = Scenes().classes
    save(stranger, tmp_path)
    asked = dict(model=str(tmp_path), data='scenes:split=val,n=40', tasks='classification', out=str(tmp_path/'r.jsonl'))
    with pytest.raises(UserError, match='name it with --teacher'): harness.evaluate_command(asked, {})
    with pytest.raises(UserError, match='is not opened by itself'): load(tmp_path).classify(torch.rand(1, 3, 32, 32))
    harness.evaluate_command(asked | dict(tasks='probe'), dict(train_samples=64))
    assert fetched == []
    harness.evaluate_command(asked | dict(teacher='open_clip:hf-hub:stranger/clip'), {})
    assert fetched == ['hf-hub:stranger/clip']

def test_26_18_nor_does_a_folder_whose_config_names_a_hub(tmp_path, monkeypatch):
    from rils_nb.libraries import load_model
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

def test_26_18_a_name_moves_no_cursor(tmp_path, capsys):
    import io, tarfile
    from rils_nb.core import command, notice
    from rils_nb.packing import check_command
    name = 'cat\x1b[2K\rgood\ndamaged: none\u202e'
    with tarfile.open(tmp_path/'x.tar', 'w', format=tarfile.PAX_FORMAT) as t:
        for key, data in (('a.png', b'garbage'), ('a.txt', b'red'), (name + '.png', b'garbage'), (name + '.txt', b'red')):
            info = tarfile.TarInfo(key)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    check_command(open_source(str(tmp_path/'x.tar')), None)
    notice(f'a notice about `{name}`')
    @command
    def fails(): raise UserError(f'an error about `{name}`')
    with pytest.raises(SystemExit): fails()
    out, err = capsys.readouterr()
    assert not set('\x1b\r\u202e') & set(out + err), repr(out + err)
    assert 'damaged: none' not in [line.strip() for line in (out + err).splitlines()]

def test_26_21_a_detectors_encoder_is_not_measured_as_another_network(tmp_path):
    from rils_nb.exports import export
    from rils_nb.methods import completed
    from rils_nb.runs import save
    config = Config(method='detect', image_size=32, opts='window=2,pyramid=2:1,width=16,convs=1,fc=16,anchor=2,anchors=16,proposals=16,regions=16')
    save(make(completed(config, Scenes(n=64))), tmp_path)
    with pytest.raises(UserError, match='trained together with what stands beside it'): harness.evaluate(tmp_path, 'scenes:split=val,n=40', 'probe')
    assert not {'probe', 'low_shot'} & set(harness.choose(load(tmp_path), Scenes('val', n=40)))
    with pytest.raises(UserError, match='windows of 2 patches and with relative positions'): load(tmp_path).encode_image(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match='cannot be exported to timm'): export(tmp_path, 'timm', tmp_path/'out')

def test_26_9_a_run_becomes_a_program():
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

def test_26_9_the_wrong_doors_lead_somewhere(tmp_path, monkeypatch):
    from rils_nb.exports import export
    from rils_nb.libraries import load_model
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
    words = said('epoch_3.pt')
    assert 'give open_clip:NAME/epoch_3.safetensors' in words
    follow(words)
    Path('tiny-doors.json').write_text(json.dumps(json.loads(Path('clip/open_clip_config.json').read_text())['model_cfg']))
    open_clip.add_model_config(Path('tiny-doors.json'))
    assert load_model('open_clip:tiny-doors/epoch_3.safetensors').net.visual.proj.equal(net.visual.proj)

def test_26_9_a_clip_of_transformers_is_rewritten(tmp_path):
    from rils_nb.exports import export
    from rils_nb.libraries import load_model
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

def test_26_22_neighbours_need_no_table_of_classes():
    from rils_nb.evals.probe import knn
    x, y = torch.randn(400, 8), torch.arange(400) % 40
    found = knn(x, y, x[:50] + 0.1, 10**9)                                    # a table would have 10^12 cells
    few = knn(x, y, x[:50] + 0.1, 40)
    assert all(found[k].equal(few[k]) for k in (1, 20))
