"""What holds for every method, whoever adds it: a new one is found by its name in METHODS and by its recipe on the scenes, shapes_NAME."""
import contextlib, gc, io, os, shutil, subprocess, sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.testing import assert_close
from rils_nb.config import from_json, recipe, to_json
from rils_nb.core import UserError
from rils_nb.exports import export
from rils_nb.evals.features import eval_mode
from rils_nb.evals.libraries import load_model
from rils_nb.data.loader import loader
from rils_nb.methods.base import METHODS, complete_config, import_methods, make
from rils_nb.training.optim import optimizer_of
from rils_nb.training.runs import WEIGHTS, load, newest_checkpoint, read_tensors, save
from rils_nb.data.scenes import Scenes
from rils_nb.training.starts import find_teacher
from rils_nb.train import fit
from small import light

import_methods()
ALL = sorted(METHODS)

@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    "A saved run of CLIP, for methods that ask a teacher."
    folder = tmp_path_factory.mktemp('teacher')
    save(make(recipe('shapes_clip', size='test', seed=1)), folder)
    return folder

def small(name, teacher, **more):
    "The config of a method's recipe on the scenes, on eight images."
    config = recipe('shapes' if name == 'rils' else f'shapes_{name}', batch=8, data='scenes:n=64', eval_data='', tasks='', precision='float32', **more)
    return complete_config(replace(light(config), opts=config.opts.replace('runs/shapes_clip', str(teacher))), Scenes(n=64))

def ready(config):  # -> a method that has met its teacher
    method = make(config)
    find_teacher(method, 'cpu')
    return method.train()

def batches(method, n): return [dict(b, progress=0.5) for b in loader(method.config, Scenes(n=64), method.views, steps=n)]

@pytest.mark.parametrize('name', ALL)
def test_a_step(name, teacher):
    "A finite loss; a gradient for every parameter that is trained, none for one that is not; named parts that hold no graph; the encoder moves."
    method = ready(small(name, teacher))
    optimizer, before = optimizer_of(method, method.config), {k: v.clone() for k, v in method.state_dict().items()}
    out = method(batches(method, 1)[0])
    assert out['loss'].isfinite() and out['loss'].ndim == 0 and out['loss'].requires_grad
    assert all(v.numel() == 1 and not v.requires_grad for k, v in out.items() if k != 'loss'), out
    out['loss'].backward()
    lacking = [k for k, p in method.named_parameters() if (p.grad is None) == p.requires_grad]
    assert not lacking, f'no gradient though trained, or a gradient though frozen: {lacking}'
    optimizer.step()
    method.after_step()
    still = [k for k, p in method.visual.named_parameters() if p.requires_grad and p.equal(before[f'visual.{k}'])]
    assert not still, f'did not move: {still}'

@pytest.mark.parametrize('name', ALL)
def test_parts_of_a_batch_change_nothing(name, teacher):
    "With --accum, the loss and every gradient are those of the whole batch."
    grads = []
    for accum in (1, 3):
        method = ready(small(name, teacher, accum=accum)).double()
        if method.teacher is not None: method.teacher.double()
        out = method(batches(method, 1)[0])
        grads.append([out['loss'], *torch.autograd.grad(out['loss'], [p for p in method.parameters() if p.requires_grad])])
    for a, b in zip(*grads, strict=True): assert_close(a, b, rtol=0, atol=1e-9)

@pytest.mark.parametrize('name', ALL)
def test_saved_and_loaded(name, teacher, tmp_path):
    "The same weights, config and features after saving and loading; timm reads its encoder, where it is one that timm has; no teacher is needed for that."
    method = ready(small(name, teacher))
    save(method, tmp_path)
    assert from_json(to_json(method.config)) == method.config
    again, x = load(tmp_path), torch.randint(256, (2, 3, method.image_size, method.image_size), dtype=torch.uint8)
    assert again.teacher is None and method.state_dict().keys() == again.state_dict().keys()
    assert all(v.equal(again.state_dict()[k]) for k, v in method.state_dict().items())
    if getattr(method.visual, 'apart', ''):  # a detector's: a network of its own, which neither timm nor a probe can have
        for ask in (lambda: method.encode_image(x), lambda: export(tmp_path, 'timm', tmp_path/'timm')):
            with pytest.raises(UserError, match='the encoder of a detector'): ask()
        return
    with eval_mode(method):
        z, tokens = method.encode_image(x), method.encode_tokens(x)
        assert z.equal(again.encode_image(x)) and tokens.shape[:2] == (2, method.visual.n_patches)
        with contextlib.redirect_stdout(io.StringIO()): export(tmp_path, 'timm', tmp_path/'timm')
        trunk = method.visual.trunk
        pooled = trunk.forward_head(trunk.forward_features(method.visual.normalise(x)), pre_logits=True)
        assert (load_model(f'timm:local-dir:{tmp_path/"timm"}').encode_image(x) - pooled).abs().max() == 0

@pytest.mark.parametrize('name', ALL)
def test_a_second_step_needs_no_more_memory(name, teacher):
    method = ready(small(name, teacher))
    optimizer, kept = optimizer_of(method, method.config), []
    for batch in batches(method, 3):
        method(batch)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
        gc.collect()
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)}
        kept.append(sum(storages.values()))
        del storages
    assert kept[2] <= kept[1], kept

def equal_when_resumed(config, out):
    "Train, and train again from the middle with another number of workers: the same weights and memory of the optimizer, bit for bit."
    config = replace(config, steps=4, save_every=2, workers=0, init='', out=str(out/'whole'))
    with contextlib.redirect_stdout(io.StringIO()):
        assert fit(config) == 0
        shutil.copytree(out/'whole', out/'stopped')
        shutil.rmtree(newest_checkpoint(out/'stopped'))
        assert fit(replace(config, out=str(out/'stopped'), resume=True, workers=1)) == 0
    for file in (WEIGHTS, 'trainer.safetensors'):
        a, b = (read_tensors(newest_checkpoint(out/run)/file) for run in ('whole', 'stopped'))
        assert a.keys() == b.keys() and all(v.equal(b[k]) for k, v in a.items())

@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
def test_stopped_and_resumed(name, teacher, tmp_path):
    "The same weights, bit for bit, whether a run was stopped or not."
    equal_when_resumed(small(name, teacher), tmp_path)

@pytest.mark.slow
def test_stopped_and_resumed_with_every_augmentation(teacher, tmp_path):
    "RandAugment, erasing, Mixup, CutMix and drop path, with an average of the weights."
    equal_when_resumed(replace(small('finetune', teacher), crop=0.3, flip=True, ema=0.9, opts='erase_prob=0.5,drop_path=0.3'), tmp_path)

@pytest.mark.slow
def test_stopped_and_resumed_with_levels_computed_again(teacher, tmp_path):
    "Reversible columns."
    equal_when_resumed(replace(small('revcolv2', teacher), checkpointing=True), tmp_path)

STRANGER = """from rils_nb.methods.base import METHODS
from rils_nb.methods.rils import CLIP
@METHODS.register('stranger')
class Stranger(CLIP): pass
"""

@pytest.mark.parametrize('module, says', [(STRANGER, ''), ('import a_library_that_nobody_has', 'methods of the package stranger are left out')])
def test_a_method_from_another_package(module, says, tmp_path):
    "Found by its entry point; a package that cannot be imported costs one line and none of the other methods."
    (tmp_path/'stranger.py').write_text(module)
    (info := tmp_path/'stranger-0.1.dist-info').mkdir()
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: stranger\nVersion: 0.1\n')
    (info/'entry_points.txt').write_text('[rils_nb.methods]\nstranger = stranger\n')
    run = subprocess.run([sys.executable, '-m', 'rils_nb.train', '--method', 'clip' if says else 'stranger', *'--steps 1 --batch 8 --data scenes:n=16 --eval_data= --tasks= --out run'.split()],
                         cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])})
    assert run.returncode == 0 and says in run.stdout + run.stderr and 'Traceback' not in run.stderr, run.stderr
