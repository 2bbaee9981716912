"""The zero-shot suites on made images in the layouts of all real data sets, and as commands."""
import json, os, pickle, subprocess, sys
from pathlib import Path

import open_clip
import pytest
from torchvision.datasets import cifar, fer2013, flowers102, stl10
from layouts import LAYOUTS, grey, png, write
from rils_nb import commands
from rils_nb.config import Config
from rils_nb.core import UserError, read_jsonl
from rils_nb.data.benchmarks import BENCHMARKS
from rils_nb.evals.suite import PAPER, SUITES, Prepared
from rils_nb.methods.base import make
from rils_nb.training.runs import save

IMAGES = dict(caltech101=204, fer2013=14, eurosat=20)  # others: one of each class

@pytest.fixture(autouse=True)
def as_if_genuine(monkeypatch):
    "torchvision compares some files with the sums of the real ones."
    for module in (cifar, fer2013, flowers102, stl10): monkeypatch.setattr(module, 'check_integrity', lambda path, md5=None: os.path.isfile(path))

def test_there_is_a_layout_for_each():
    assert LAYOUTS.keys() == BENCHMARKS.keys() == {n for s in SUITES.values() for n in s.names} == PAPER.keys()

@pytest.mark.parametrize('name', LAYOUTS)
def test_each_image_has_its_class(name, tmp_path):
    "Whatever order folders, tables and lists have them in: the grey of a picture tells its class. Nothing is written."
    if name in ('cars', 'flowers'): pytest.importorskip('scipy')
    LAYOUTS[name](tmp_path)
    b = BENCHMARKS[name]
    assert (tmp_path/b.folder).exists()
    before = sorted(tmp_path.rglob('*'))
    source = pickle.loads(pickle.dumps(Prepared(b.open(tmp_path), 8)))  # as workers get it
    assert len(source) == IMAGES.get(name, len(b.classes)) and set(source.source.labels) == set(range(len(b.classes)))
    for i in range(0, len(source), 1 + len(source) // 100):
        sample = source.read(i)
        assert sample['image'].shape == (3, 8, 8) and sample['image'].unique().tolist() == [grey(sample['label'])], i
    assert sorted(tmp_path.rglob('*')) == before

TEN = ('cifar10', 'dtd', 'pets', 'mnist', 'fer2013', 'stl10', 'eurosat', 'gtsrb', 'clevr', 'sst2')

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Ten of the twenty-one, a run, and a model of open_clip that is small."
    root = tmp_path_factory.mktemp('root')
    for name in TEN: LAYOUTS[name](root)
    (root/'run').mkdir()
    save(make(Config(method='clip')).eval(), root/'run')
    (root/'mae').mkdir()
    save(make(Config(method='mae')).eval(), root/'mae')
    (root/'configs').mkdir()
    text = dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=1)
    config = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16), text_cfg=text)
    (root/'configs'/'small-clip.json').write_text(json.dumps(config))
    open_clip.add_model_config(root/'configs'/'small-clip.json')
    return root

def rils_eval(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, 'argv', ['rils-eval', *map(str, argv)])
    code = 0
    try: commands.evaluate()
    except SystemExit as e: code = e.code
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()

@pytest.mark.parametrize('model', ['{root}/run', 'open_clip:small-clip'])
def test_ten_of_twenty_one(model, root, tmp_path, monkeypatch, capsys):
    code, out, err = rils_eval(monkeypatch, capsys, model.format(root=root), '--suite', 'zeroshot21', '--root', root, '--out', tmp_path/'r.jsonl', '--device', 'cpu')
    assert code == 0, err
    at = next(i for i, line in enumerate(out) if line.startswith('data set'))
    rows = [line.split()[0] for line in out[at + 1:at + 11]]
    assert rows == [n for n in SUITES['zeroshot21'].names if n in TEN] and out[at + 11].startswith('average of 10')
    assert out[at + 12] == 'not on the disk (11):' and [line.split()[0] for line in out[at + 13:]] == [n for n in SUITES['zeroshot21'].names if n not in TEN]
    lines = read_jsonl(tmp_path/'r.jsonl')
    assert [line['task'] for line in lines] == [f'zeroshot-{n}' for n in rows]
    for line, row in zip(lines, out[at + 1:]):
        b, figures, options = BENCHMARKS[line['task'].partition('-')[2]], line['metrics'], line['options']
        assert (figures['n'], figures['unreadable']) == (IMAGES.get(b.name, len(b.classes)), 0) and f'{100 * figures[b.metric]:.1f}' in row.split()
        assert options == dict(split=b.split, metric=b.metric, templates=list(b.templates), classes=len(b.classes), images=b.n,
                               preprocessing='shorter side to the size of the model, bilinear, centre crop')
        assert figures[f'{b.metric}_chance'] == pytest.approx(1 / len(b.classes))

@pytest.mark.parametrize('model', ['{root}/mae', 'timm:rils_tiny_patch8_32'])
def test_without_words_there_is_no_suite(model, root, tmp_path, monkeypatch, capsys):
    code, _, err = rils_eval(monkeypatch, capsys, model.format(root=root), '--suite', 'zeroshot21', '--root', root, '--out', tmp_path/'r.jsonl', '--device', 'cpu')
    assert code == 2 and len(err) == 1 and 'has no text tower, so a zero-shot suite is undefined' in err[0] and not (tmp_path/'r.jsonl').exists()

def spoil_classes(root): (root/'dtd'/'dtd'/'labels'/'test1.txt').write_text('banded/a.jpg\nfurry/a.jpg\n')
def spoil_count(root): (root/'gtsrb'/'GT-final_test.csv').write_text((root/'gtsrb'/'GT-final_test.csv').read_text() + '00001.ppm;1;1;1;1;1;1;43\n')
def spoil_one(root): (root/'gtsrb'/'GT-final_test.csv').write_text('\n'.join((root/'gtsrb'/'GT-final_test.csv').read_text().splitlines()[:-1]))
def spoil_file(root): (root/'clevr'/'CLEVR_v1.0'/'scenes'/'CLEVR_val_scenes.json').unlink()
def spoil_bytes(root): (root/'stl10_binary'/'test_y.bin').unlink()

@pytest.mark.parametrize('name,spoil,words', [('dtd', spoil_classes, 'not declared: `furry`; not on the disk: `blotchy`, `braided`, `bubbly` and 43 more'),
    ('gtsrb', spoil_count, 'the labels go from 0 to 43, and there are 43 class names'), ('gtsrb', spoil_one, 'no image of `white circle with gray strike bar'),
    ('clevr', spoil_file, 'could not be read as its authors lay it out'), ('stl10', spoil_bytes, 'Dataset not found or corrupted')])
def test_what_is_not_as_declared(name, spoil, words, tmp_path):
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError) as e: BENCHMARKS[name].open(tmp_path)
    assert words in str(e.value) and str(e.value).startswith(f'{name}: ') and 'download=True' not in str(e.value)

def test_faces_in_folders(tmp_path):
    "As SLIP had them, and in the order of the alphabet."
    for k, c in enumerate(BENCHMARKS['fer2013'].classes): write(tmp_path/'fer2013'/'test'/c/'1.png', png(k))
    source = BENCHMARKS['fer2013'].open(tmp_path)
    assert [source.read(i)['image'].unique().tolist() for i in range(7)] == [[grey(k)] for k in source.labels] and source.labels != sorted(source.labels)

def test_scipy_is_asked_for_by_its_name(tmp_path, monkeypatch):
    for module in ('scipy', 'scipy.io'): monkeypatch.setitem(sys.modules, module, None)
    (tmp_path/'flowers-102'/'jpg').mkdir(parents=True)
    for f in ('imagelabels.mat', 'setid.mat'): (tmp_path/'flowers-102'/f).touch()
    with pytest.raises(UserError, match='flowers is read with scipy.*pip install scipy'): BENCHMARKS['flowers'].open(tmp_path)

def test_the_names_travel_with_the_package(tmp_path):
    out = subprocess.run([sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert (tmp_path/'rils_nb'/'data'/'classes.txt').exists(), out.stderr
