"""What is made from the notebooks without Quarto: README.md (from nbs/index.ipynb), nbs/sidebar.yml, the pages of nbs/reference, and tables of fields, options and recipes.

    python tests/pages.py       writes them and makes stored pictures small; tests/test_project.py holds that they are in step
"""
import ast, base64, io, posixpath, re
from importlib import import_module
from pathlib import Path

from fastcore.nbio import read_nb, write_nb
from PIL import Image

import reference

ROOT = Path(__file__).parent.parent
SECTIONS = {  # the site's groups of pages, in their order; a pair is a page and another title than its own
    'Get started': [('index', 'rils_nb'), 'explanations/start_here', 'guides/installation', 'tutorials/five_minutes', 'tutorials/your_own_pairs'],
    'Tutorials': ['tutorials/rils_from_scratch', 'tutorials/adapt_a_pretrained_model', 'tutorials/finetune_on_your_classes', 'tutorials/dense_transfer', 'tutorials/add_a_method'],
    'Guides': ['guides/data', 'explanations/multi_gpu', 'guides/memory_and_speed', 'guides/evaluate', 'guides/resume', 'guides/export', 'guides/troubleshooting', 'guides/migration'],
    'Reference': ['reference/command_line', 'reference/method_options', 'reference/recipes', 'reference/python_api', 'explanations/notation'],
    'Results': ['explanations/results', 'explanations/methods', 'explanations/compared', 'explanations/paper_and_code', 'explanations/tables', 'explanations/speed', 'explanations/reproduction_log']}
CHANGELOG = 'https://github.com/rils-nb/rils_nb/blob/main/CHANGELOG.md'
SOURCE = {'.': 'Core', 'data': 'Data', 'models': 'Models', 'methods': 'Methods', 'training': 'Training', 'evals': 'Evaluations', 'finetuning': 'Fine-tuning and probing',
          'dense': 'Detection and segmentation', 'recipes': 'Recipes', 'plots': 'Plots'}  # folders
TITLES = {  # of pages that need their folder's name to be understood, or whose title another page has
    '06a_order': 'Digest of the data', '12_base': 'The Method contract', '17_viz': 'Plots', '18_pictures': 'The picture of a run', '51_pretraining': 'Recipes of pre-training',
    '23_scenes': 'Evaluation on scenes', '37_segmentation': 'Zero-shot segmentation', '38_semantic_segmentation': 'Semantic segmentation (mIoU)', '39_detection': 'Average precision',
    '74_wise': 'WiSE-FT', '82_segment': 'Segmenter', '83_rpn': 'Region proposals', '84a_annotations': 'Annotations of other tools', '86_vitdet': 'ViTDet backbone',
    '87_roi_heads': 'RoI heads', '88_detect': 'Detector', '94_levels': 'What each level keeps'}

def readme(nb):
    "The notebook as Markdown: hidden cells left out, text outputs shown, links and pictures made relative to the top level."
    parts = ['<!-- Made from nbs/index.ipynb by tests/pages.py: edit that -->']
    for cell in nb.cells:
        marks = cell.directives
        if 'hide' in marks or marks.get('include') == 'false': continue
        cell.remove_directives()
        if cell.cell_type == 'markdown': parts.append(_from_top(cell.source))
        elif cell.cell_type == 'code':
            if marks.get('echo') != 'false': parts.append(f'```python\n{cell.source}\n```')
            parts += [f'```\n{_text(o)}\n```' for o in cell.outputs]
    return '\n\n'.join(p.strip() for p in parts) + '\n'

def _from_top(text):  # [tutorial](tutorials/five_minutes.ipynb) -> [tutorial](nbs/tutorials/five_minutes.ipynb)
    move = lambda m: m[1] + posixpath.normpath('nbs/' + m[2])
    return re.sub(r'(\]\(|(?:src|href)=")(?![a-z]+:|#|/)([^)"\s]+)', move, text)

def _text(output):
    data = {'text/plain': output.get('text')} if output.output_type == 'stream' else output.get('data', {})
    if any(k.startswith('image/') for k in data): raise ValueError('a picture in the README is a file under nbs/images, not the output of a cell')
    return ''.join(data['text/plain']).rstrip()

def sidebar(nbs):
    "The site's table of contents: every notebook once, SECTIONS first and then the source by folders."
    def entry(page, title, indent):
        return [f'{indent}- {page}'] if not title else [f'{indent}- text: "{title}"', f'{indent}  href: {page}']
    lines = ['website:', '  sidebar:', '    contents:']
    placed = set()
    for section, pages in SECTIONS.items():
        lines += [f'      - section: {section}', '        contents:']
        for page in pages:
            name, title = page if isinstance(page, tuple) else (page, '')
            placed.add(f'{name}.ipynb')
            lines += entry(f'{name}.ipynb', title, ' ' * 10)
    lines += entry(CHANGELOG, 'Changelog', ' ' * 10)
    left = sorted(p.relative_to(nbs) for p in nbs.rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(nbs).parts) and p.relative_to(nbs).as_posix() not in placed)
    folders = sorted({p.parent.as_posix() for p in left}, key=lambda f: ([*SOURCE, f].index(f), f))
    lines += ['      - section: Source', '        contents:']
    for folder in folders:  # one level deeper, so that collapse-level in _quarto.yml closes them
        lines += [f'          - section: {SOURCE.get(folder, folder)}', '            contents:']
        for p in left:
            if p.parent.as_posix() == folder: lines += entry(p.as_posix(), TITLES.get(p.stem), ' ' * 14)
    return '\n'.join(lines) + '\n'

def tables(nb):  # a notebook -> for each table that the site shows without its code: its cell, and the table as Markdown as the exported module makes it now
    "Tables of what the code says about itself."
    for cell in nb.cells:
        if cell.cell_type != 'code' or cell.directives.get('echo') != 'false' or not any('text/markdown' in o.get('data', {}) for o in cell.outputs): continue
        names = dict(vars(import_module('rils_nb.' + next(d for c in nb.cells if (d := c.directives.get('default_exp'))))))
        for c in nb.cells:
            if c.cell_type == 'code' and 'hide' in c.directives and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c.source).body): exec(c.source, names)
        *before, last = ast.parse(cell.source).body
        exec(compile(ast.Module(before, []), 'cell', 'exec'), names)
        yield cell, eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)._repr_markdown_()

def fresh_tables(path):
    "Store such tables as they are now."
    nb, changed = read_nb(path), False
    for cell, table in tables(nb):
        for o in cell.outputs: changed |= ''.join(o.data['text/markdown']) != table
        cell.outputs[0].data = {'text/markdown': table, 'text/plain': repr(table)}
    if changed: write_nb(nb, path)

def shrink(path):
    "Store the pictures of a notebook with a palette of 128 colours: a third of the size, and the eye sees no difference. Warnings are not stored."
    nb, changed = read_nb(path), False
    for c in nb.cells:
        kept = [o for o in c.get('outputs', []) if o.get('name') != 'stderr']
        if kept != c.get('outputs', []): c.outputs, changed = kept, True
    for data in (o.get('data', {}) for c in nb.cells if c.cell_type == 'code' for o in c.outputs):
        if 'image/png' not in data: continue
        image = Image.open(io.BytesIO(base64.b64decode(''.join(data['image/png']))))
        if image.mode == 'P': continue
        image.convert('RGB').quantize(128).save(small := io.BytesIO(), 'PNG', optimize=True)
        data['image/png'], changed = base64.b64encode(small.getvalue()).decode() + '\n', True
    if changed: write_nb(nb, path)

if __name__ == '__main__':
    for name in reference.PAGES:
        if (new := reference.text(name)) != (path := ROOT/'nbs'/'reference'/f'{name}.ipynb').read_text(encoding='utf-8'): path.write_text(new, encoding='utf-8')
    for path in (ROOT/'nbs').rglob('[!_.]*.ipynb'):
        shrink(path)
        fresh_tables(path)
    (ROOT/'README.md').write_text(readme(read_nb(ROOT/'nbs'/'index.ipynb')), encoding='utf-8')
    (ROOT/'nbs'/'sidebar.yml').write_text(sidebar(ROOT/'nbs'), encoding='utf-8')
