"""Every mistake a user can make on the command line: one line on stderr, exit code 2, no traceback, nothing written."""
import json, sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from rils_nb import commands
from rils_nb.config import Config, recipe, to_json
from rils_nb.core import write_text
from rils_nb.methods.base import make
from rils_nb.training.runs import save
import small as _  # registers the size `test`, which one message names

MAIN = {'rils-train': commands.train, 'rils-eval': commands.evaluate, 'rils-data': commands.data, 'rils-export': commands.export}

@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "A folder with a run, a run without text, damaged and pickled checkpoints, and tables that lack something."
    d, default = tmp_path_factory.mktemp('bad'), recipe('shapes')
    for name, config in (('good', default), ('mae', Config(method='mae')), ('cut', default), ('other', default)):
        folder = d/name/'checkpoints'/'step-0000010'
        folder.mkdir(parents=True)
        save(make(config), folder)
        write_text(folder/'trainer.json', json.dumps(dict(step=10)))
        save_file({}, folder/'trainer.safetensors')
        write_text(d/name/'config.json', to_json(replace(config, out=str(d/name))))
    cut = d/'cut'/'checkpoints'/'step-0000010'/'model.safetensors'
    cut.write_bytes(cut.read_bytes()[:1000])
    write_text(d/'other'/'checkpoints'/'step-0000010'/'config.json', to_json(Config(size='mini', image_size=64)))
    (d/'pickled').mkdir()
    torch.save({}, d/'pickled'/'model.pt')
    Image.new('RGB', (8, 8)).save(d/'a.png')
    (d/'pairs.csv').write_text('image,caption\na.png,a black square\n')
    Image.frombytes('L', (8, 8), bytes([0, 255] * 32)).save(d/'mask.png')
    (d/'masks.csv').write_text('image,map\na.png,mask.png\n')
    (d/'noimage.csv').write_text('file,caption\na.png,a black square\n')
    (d/'empty.csv').write_text('')
    (d/'broken.jsonl').write_text('{"image": \n')
    (d/'classes.txt').write_text('only one\n')
    (d/'out-000000.tar').write_bytes(b'kept')
    (d/'nothing').mkdir()
    for name in ('one/cat', 'parts/train/cat', 'parts/train/dog', 'parts/val/cat'): (d/name).mkdir(parents=True)
    for name in ('one/cat', 'parts/train/cat', 'parts/train/dog', 'parts/val/cat'): Image.new('RGB', (8, 8)).save(d/name/'a.png')
    for folder in ('rendered-sst2/test/negative', 'rendered-sst2/test/positive', 'eurosat/2750/Forest', 'eurosat/2750/Fields'):
        (d/folder).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(d/folder/'a.png')
    (d/'NWPU-RESISC45').mkdir()
    return d

CASES = [
    ('rils-train shapse', 'did you mean `shapes`?'),
    ('rils-train --masc_ratio 0.5', 'did you mean `--mask_ratio`?'),
    ('rils-train --lr', 'expected one argument'),
    ('rils-train --lr fast', 'lr must be of type float, given `fast`'),
    ('rils-train --lr -0.1', 'lr must be above 0'),
    ('rils-train --lr nan', 'lr must be finite'),
    ('rils-train --batch 12.5', 'batch must be of type int'),
    ('rils-train --mask_ratio 1.0', 'at least 0 and below 1'),
    ('rils-train --image_size 30', 'not a multiple of the patch side 8'),
    ('rils-train --mask_ratio 0.99', 'hides all 16 patches'),
    ('rils-train --mask_ratio 0', 'hides none of 16 patches'),
    ('rils-train --opts decoder_width=130', 'a multiple of 4 and of the heads'),
    ('rils-train --opts decoder_depth=0', 'a block or more'),
    ('rils-train --opts tau_pred=0', 'must be above 0'),
    ('rils-train --method rlis', 'did you mean `rils`?'),
    ('rils-train --size ViT-B16', 'did you mean `ViT-B-16`?'),
    ('rils-train --masking randm', 'did you mean `random`?'),
    ('rils-train --opts tau=1', 'unknown option `tau`'),
    ('rils-train --opts tau_pred', 'key=value'),
    ('rils-train --tasks retreival', 'did you mean `retrieval`?'),
    ('rils-train --method mae --tasks zeroshot', 'no text tower'),
    ('rils-train --data scens', '--data: cannot read `scens`; did you mean `scenes`?'),
    ('rils-train --data {d}/none-*.tar', 'no shards match'),
    ('rils-train --data {d}/none.csv', 'does not exist'),
    ('rils-train --data {d}/noimage.csv', 'has no column `image`'),
    ('rils-train --data {d}/pairs.csv --caption_key captions', 'did you mean `caption`?'),
    ('rils-train --data {d}/empty.csv', 'has no rows'),
    ('rils-train --data {d}/broken.jsonl', 'line 1 is not JSON'),
    ('rils-train --data {d}/nothing', 'no pairs in the folder'),
    ('rils-train --data {d}/out-*.tar', 'hold no complete pair'),
    ('rils-train --processes 4', '--processes 4 asked for, 1 started'),
    ('rils-train --precision fp8', 'auto, bf16 or float32'),
    ('rils-train --track mlflow', 'valid: tensorboard, wandb'),
    ('rils-train --out {d}/good', 'holds a run already'),
    ('rils-train --out {d}/a.png', 'is a file'),
    ('rils-train --out {d}/good --resume --lr 0.01', 'lr: was 0.0015, now 0.01'),
    ('rils-train --out {d}/cut --resume', 'no whole checkpoint'),
    ('rils-train --out {d}/other --resume', "size: was 'mini', now 'tiny'"),
    ('rils-train {d}/none.json', 'cannot read the config'),
    ('rils-train --opts contrastive=sigmiod', 'did you mean `sigmoid`?'),
    ('rils-train --opts freeze=images', 'did you mean `image`?'),
    ('rils-train --opts ema_targets=all', 'valid: encoder, theta'),
    ('rils-train --opts decoder=prompt', 'did you mean `prompting`?'),
    ('rils-train --method mae --masking semantic', 'asks how much each patch matters, and `mae` does not say'),
    ('rils-train --method mae --opts teacher=runs/clip', '`mae` asks its teacher for the mask alone'),
    ('rils-train --data mixed:', 'followed by data sets with ; between them'),
    ('rils-train --method clip --data mixed:labels={d}/pairs.csv', 'makes captions from the names of classes'),
    ('rils-train --method slip --opts tau=0', 'tau must be above 0'),
    ('rils-train shapes_finetune --init= --data {d}/pairs.csv', 'the data has no labels, which classification needs'),
    ('rils-train shapes_finetune --init= --data {d}/one', 'only `cat`'),
    ('rils-train shapes_finetune --init= --data {d}/parts', 'parts of the data and no classes (train, val): give one of them'),
    ('rils-train shapes_finetune --init= --opts classes=9', 'the data has 64 classes, and --opts says classes=9'),
    ('rils-train shapes_finetune --init= --batch 9', 'give a multiple of 2, or --opts mixup=0,cutmix=0'),
    ('rils-train shapes_finetune --init {d}/good --size mini --image_size 64', '--size tiny or test fits'),
    ('rils-train shapes_segment --init= --data {d}/pairs.csv', 'the data has no label maps'),
    ('rils-train shapes_segment --init= --opts classes=3', 'the maps have 9 classes, and --opts says classes=3'),
    ('rils-train shapes_segment --init= --batch 1', 'give a --batch of 2 or more, or --opts norm=group'),
    ('rils-train shapes_segment --init= --data maps:{d}/pairs.csv,names=4', 'has no column `map`'),
    ('rils-train shapes_segment --init= --data maps:{d}/masks.csv,names=2', 'if it is a class, give white=1'),
    ('rils-train shapes_segment --init= --data ade20k:{d}/nothing', 'has no folder `annotations`'),
    ('rils-train shapes_segment --init= --data voc:{d}/none', 'does not exist'),
    ('rils-train shapes --eval_data voc:{d}/none', '--eval_data: the folder'),
    ('rils-train shapes_segment --init= --schedule poly', 'must be cosine, linear or steps'),
    ('rils-train shapes_linear --init= --opts lr_factors=fast', 'as 0.1:1:10'),
    ('rils-eval {d}/good --tasks classification', 'has no classifier, which classification needs'),
    ('rils-train --init {d}/nowhere', '--init: no checkpoint'),
    ('rils-train --init {d}/cut', 'no whole checkpoint'),
    ('rils-train --init {d}/good --size mini --image_size 64', 'cannot start a `rils` of --size mini: its image encoder does not fit'),
    ('rils-train --init timm:rils_tiny_patch8_33', 'did you mean `rils_tiny_patch8_32`?'),
    ('rils-train --init timm:resnet10t', 'its image encoder does not fit'),
    ('rils-train shapes_mim_lit', 'no checkpoint in `runs/shapes_mae`'),
    ('rils-train --method milan', 'milan learns from a teacher: --opts teacher=RUN'),
    ('rils-train shapes_milan', '--opts teacher: no checkpoint in `runs/shapes_clip`'),
    ('rils-train --method milan --opts teacher={d}/good,teacher_width=64', 'has features of width 128, and 64 is expected: --opts teacher_width=128'),
    ('rils-train --method milan --image_size 64 --opts teacher={d}/good', 'sees 16 patches, and --size tiny at --image_size 64 has 64'),
    ('rils-eval {d}/nowhere', 'no checkpoint'),
    ('rils-eval {d}/cut', 'no whole checkpoint'),
    ('rils-eval {d}/other', 'are not those of its config'),
    ('rils-eval {d}/pickled', 'unpickling runs code'),
    ('rils-eval {d}/good --tasks zeroshoot', 'did you mean `zeroshot`?'),
    ('rils-eval {d}/good --data {d}/none-*.tar', 'no shards match'),
    ('rils-eval {d}/mae --tasks zeroshot', '`mae` has no text tower, so zeroshot is undefined; use probe'),
    ('rils-eval {d}/good --tasks zeroshot --class_names {d}/classes.txt', 'class'),
    ('rils-eval {d}/good --tasks low_shot --shots 0', 'shots are images of each class, as 1,2,5,10; given `0`'),
    ('rils-eval {d}/good --tasks retrieval --captions -1', 'captions must be 0 (all) or more'),
    ('rils-eval {d}/good --tasks zeroshot_segmentation --data {d}/pairs.csv', 'the data has no label maps'),
    ('rils-eval {d}/good --tasks zeroshot_segmentation --data scenes:n=9 --shifts 0', 'shifts must be 1 or more, given 0'),
    ('rils-eval {d}/good --tasks zeroshot_segmentation --data scene_colours:n=9 --background_below 2', 'a share from 0 to 1, given 2.0'),
    ('rils-eval {d}/mae --tasks zeroshot_segmentation --data scenes:n=9', '`mae` has no text tower'),
    ('rils-eval {d}/good --data karpathy:{d}/none.json', 'does not exist'),
    ('rils-eval {d}/good --tasks semantic_segmentation', '`rils` gives no class for each pixel'),
    ('rils-eval {d}/good --data karpathy:{d}/pairs.csv', 'is no split file of Karpathy'),
    ('rils-eval report', 'required: RUN'),
    ('rils-eval report {d}/good', 'no results in'),
    ('rils-eval report {d}/nothing {d}/none.jsonl', 'no results in'),
    ('rils-eval {d}/good --taks probe', 'did you mean `--tasks`?'),
    ('rils-eval {d}/good --suite zeroshot12 --root {d}', 'did you mean `zeroshot21`?'),
    ('rils-eval {d}/good --suite sst2,food --root {d}', 'did you mean `food101`?'),
    ('rils-eval {d}/good --suite zeroshot21', 'needs --root DIR'),
    ('rils-eval {d}/good --suite zeroshot21 --root {d}/nowhere', 'needs --root DIR'),
    ('rils-eval {d}/good --suite zeroshot21 --root {d}/nothing', 'no data set of `zeroshot21` is in'),
    ('rils-eval {d}/good --root {d}', 'give --suite too'),
    ('rils-eval {d}/good --suite sst2 --root {d} --tasks probe', 'leave out --tasks'),
    ('rils-eval {d}/good --suite sst2 --root {d} --templates {d}/classes.txt', 'leave out --templates'),
    ('rils-eval {d}/mae --suite sst2 --root {d}', 'no text tower'),
    ('rils-eval {d}/good --suite sst2,eurosat --root {d}', 'not declared: `Fields`; not on the disk: `AnnualCrop`'),
    ('rils-eval {d}/good --suite resisc45 --root {d}', 'its classes are not those declared'),
    ('rils-eval timm:vit_basee_patch16_224', 'did you mean'),
    ('rils-eval open_clip:ViT-B-166', 'did you mean'),
    ('rils-data pack {d}/pairs.csv {d}/out', 'exist already'),
    ('rils-data pack {d}/pairs.csv {d}/new --per_shard 0', 'above 0'),
    ('rils-data check {d}/none.csv', 'does not exist'),
    ('rils-data chek {d}/pairs.csv', 'check'),
    ('rils-export {d}/good --to onnx --out {d}/x', 'valid: open_clip, timm'),
    ('rils-export {d}/mae --to open_clip --out {d}/x', 'no text tower'),
    ('rils-export {d}/good --to timm --out {d}/nothing', 'exists already'),
    ('rils-export {d}/pickled --to timm --out {d}/x', 'unpickling runs code'),
    ('rils-export {d}/pickled/model.pt --to open_clip --out {d}/x', 'unpickling runs code'),
]

def tree(d): return {str(p): p.stat().st_mtime_ns for p in sorted(d.rglob('*')) if p.is_file()}

@pytest.mark.parametrize('line,words', CASES, ids=[c[0].replace('{d}/', '') for c in CASES])
def test_a_mistake_is_answered_by_one_line(line, words, there, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = line.format(d=there).split()
    if argv[0] == 'rils-train' and '--resume' not in argv: argv[1:1] = ['--steps', '1', '--batch', '2']  # short, should it be accepted by mistake
    monkeypatch.setattr(sys, 'argv', argv)
    before = tree(there)
    with pytest.raises(SystemExit) as stop: MAIN[argv[0]]()
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2, said
    assert len(said) == 1 and said[0].startswith('error: ') and words in said[0], said
    assert tree(there) == before and not list(tmp_path.rglob('*')), 'something was written'
