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
def test_26_7_what_cannot_be_read_is_damage(tmp_path, capsys, change, words):
    from rils_nb.packing import check_command
    code = check_command(open_source(coco_file(tmp_path, [SQUARE, SQUARE | dict(image_id=1, segmentation=[SQUARE['segmentation'][0]]) | change])), None)
    assert code == 1 and words in capsys.readouterr().out

@pytest.mark.parametrize('change', [dict(iscrowd='0'), dict(segmentation=SQUARE['segmentation'][0]), dict(segmentation=[[['4', '4'], ['24', '4'], ['24', '24'], ['4', '24']]]), dict(bbox=None), dict(category_id='1', image_id='0'),
    dict(segmentation=dict(size=[40., 40.], counts=[164., *[20.] * 39, 656.]))])
def test_26_7_what_means_the_same_is_read(tmp_path, change):
    plain, other = (open_source(coco_file(tmp_path, [SQUARE | c])).annotation(0) for c in ({}, change))
    assert len(other['boxes']) == 1
    for k in ('boxes', 'labels', 'crowd'): assert other[k].equal(plain[k])
    assert torch.as_tensor(other['masks'][0]).equal(torch.as_tensor(plain['masks'][0]))

def test_26_7_corners_in_place_of_sides_are_refused(tmp_path):
    boxes = [SQUARE | dict(image_id=i, bbox=b, segmentation=None) for i, b in enumerate(([20, 20, 36, 36], [10, 10, 30, 30], [5, 18, 20, 39]))]
    with pytest.raises(UserError, match='two corners'): open_source(coco_file(tmp_path, boxes))

def test_26_7_detect_needs_objects(tmp_path):
    from rils_nb.methods import completed
    for wrong in (dict(iscrowd=1), dict(bbox=[90, 4, 5, 5]), dict(category_id=9)):
        with pytest.raises(UserError, match='no image of the data shows an object'):
            completed(Config(method='detect', opts='masks=false'), open_source(coco_file(tmp_path, [SQUARE | dict(segmentation=None) | wrong])))

def test_26_7_lists_of_voc(tmp_path):
    for i in 'ab':
        for folder in ('JPEGImages', 'SegmentationClass'): (tmp_path/folder).mkdir(exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path/'JPEGImages'/f'{i}.jpg'), Image.new('L', (8, 8)).save(tmp_path/'SegmentationClass'/f'{i}.png')
    (tmp_path/'ImageSets'/'Segmentation').mkdir(parents=True)
    for text in ('a  1\nb -1\n', ' a.jpg \n\n', '/JPEGImages/a.jpg /SegmentationClass/a.png\n'):
        (tmp_path/'ImageSets'/'Segmentation'/'train.txt').write_text(text)
        source = open_source(f'voc:{tmp_path}')
        assert ([Path(source.about(i)[1]).stem for i in range(len(source))], list(source.bad)) == (['a'], []), text

def test_26_17_one_outline_costs_no_object(tmp_path):
    source = open_source(coco_file(tmp_path, [SQUARE] + [{k: v for k, v in SQUARE.items() if k != 'segmentation'} | dict(image_id=i % 3) for i in range(9)]))
    assert sum(len(source.annotation(i)['boxes']) for i in range(3)) == 10
    from rils_nb.dense.jitter import cut_view
    view = cut_view(Config(image_size=64), 2, masks=True, jitter='1:1')
    assert sum(len(view(source.read(i), i, source.annotation(i))['boxes']) for i in range(3)) == 10

@pytest.mark.parametrize('change', [dict(images=[dict(id=0, file_name='0.png', height=1e10, width=40), dict(id=1, file_name='1.png', height=40, width=40)]), dict(images=[dict(id=[0], file_name='0.png', height=40, width=40), dict(id=1, file_name='1.png', height=40, width=40)]),
    dict(annotations=[SQUARE | dict(segmentation=dict(size=None, counts=[1600]))]), dict(annotations=[SQUARE | dict(image_id=[1])]), dict(annotations=[SQUARE | dict(category_id=[1])]), dict(annotations=[SQUARE, None])])
def test_26_17_one_malformed_value(tmp_path, capsys, change):
    from rils_nb.packing import check_command
    assert check_command(open_source(coco_file(tmp_path, **dict(annotations=[SQUARE]) | change)), None) == 1

def test_26_17_a_map_of_another_size_is_left_out():
    from rils_nb.evals.segmentation import _readable
    class Maps(Scenes):
        def annotation(self, i): return {k: v[1:] if i == 1 and k == 'semantic' else v for k, v in super().annotation(i).items()}
    assert [name for name, _, _ in _readable(Maps(n=3), range(3))] == [Scenes(n=3).read(i)['name'] for i in (0, 2)]

def test_26_22_outlines_take_the_memory_of_their_runs(tmp_path):
    "What a file claims costs nothing before it is compared with the picture: less than the pixels of one mask."
    from rils_nb.loader import annotation_of
    from rils_nb.samples import BadSample
    outline = [[10, 10, 2990, 10, 2990, 2990]]
    source = open_source(coco_file(tmp_path, [SQUARE | dict(bbox=[10, 10, 2980, 2980], segmentation=outline)] * 9, images=[dict(id=0, file_name='0.png', height=3000, width=3000)]))
    image = source.read(0)['image']
    tracemalloc.start()
    with pytest.raises(BadSample, match='3000x3000'): annotation_of(source, 0, image)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 3000 * 3000

def test_26_22_a_strip_stays_a_strip():
    from rils_nb.evals.semantic_segmentation import resize_shorter
    assert max(resize_shorter(torch.zeros(3, 2, 800, dtype=torch.uint8), 16).shape) <= 4 * 16

def test_26_23_anchors_stand_at_multiples_of_the_stride():
    from rils_nb.dense.proposals import Proposals
    anchors = Proposals(8, (16, 32))([torch.zeros(1, 8, 3, 3), torch.zeros(1, 8, 2, 2)], torch.zeros(1, 3, 56, 56), [(56, 56)])[2][0]
    assert {*((anchors[:, 0] + anchors[:, 2]) / 2).round().int().tolist()} == {0, 16, 32}

def test_26_23_a_nan_is_not_kept():
    from rils_nb.transfer.linear import Standardise
    norm = Standardise(3)
    norm(torch.full((4, 3), torch.nan)), norm(torch.randn(4, 3))
    assert norm.mean.isfinite().all() and norm.var.isfinite().all()

def test_26_23_numbers_are_finite():
    "Every option of every method whose default is a number, or several."
    from rils_nb.methods import METHODS, import_methods, options
    import_methods()
    wrong = [f'{m} {k}={v}' for m, cls in METHODS.items() for k, default in options(cls).items() if isinstance(default, float) or k in ('jitter', 'rates')
             for v in ('nan', 'inf') if not _refuses(k, f'0.1:{v}' if default == '0.1:2' else v, options(cls))]
    assert not wrong, wrong

def _refuses(k, v, known):
    from rils_nb.config import parse_opts
    try: parse_opts(f'{k}={v}', known)
    except UserError: return True

def test_26_23_windows_alone():
    small = 'classes=3,pyramid=2:1,width=32,convs=1,fc=64,anchor=4,proposals=50,window=2'
    assert [b.window for b in make(Config(method='detect', image_size=64, opts=f'{small},whole=0')).visual.trunk.blocks] == [2] * 4
