"""The site's checks find what they are for: a planted dead link, a planted warning; and what can be said of the pages without Quarto."""
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from docs import check, procs

SITE = check.site_url()

def site(folder, **more):  # pages by name, each with its body -> folder
    "A whole little site, and what is put in its pages."
    pages = dict(index='<a href="sub/a.html#here">a</a> <a href="https://example.org/b">outside</a>', a='<h2 id="here">Here</h2> <img src="../pixel.png">') | more
    (folder/'sub').mkdir(parents=True)
    (folder/'pixel.png').touch()
    (folder/'style.css').write_text('body { src: url(fonts/own.woff2) }')
    for name, body in pages.items(): (folder/('index.html' if name == 'index' else f'sub/{name}.html')).write_text(f'<html><body>{body}</body></html>')
    return folder

def test_a_whole_site_has_no_mistake(tmp_path):
    assert check.dead_links(site(tmp_path)) == [] and check.warnings('[1/89] index.ipynb\nOutput created: _docs/index.html') == []

@pytest.mark.parametrize('body, wrong', {
    '<a href="sub/gone.html">x</a>': 'index.html: sub/gone.html leads nowhere',
    '<a href="sub/a.html#there">x</a>': 'index.html: sub/a.html#there has no such place',
    f'<a href="{SITE}sub/gone.html">x</a>': f'index.html: {SITE}sub/gone.html leads nowhere',
    f'<a href="{SITE}sub/a.html#_private">x</a>': f'index.html: {SITE}sub/a.html#_private has no such place',
    '<img src="gone.png">': 'index.html: gone.png leads nowhere',
    '<script src="https://cdn.example.org/x.js"></script>': 'index.html loads https://cdn.example.org/x.js'}.items())
def test_a_planted_dead_link_is_found(tmp_path, body, wrong):
    assert check.dead_links(site(tmp_path, index=body)) == [wrong]

def test_a_font_from_another_host_is_found(tmp_path):
    (site(tmp_path)/'other.css').write_text('@import "https://fonts.example.org/css?x";')
    assert check.dead_links(tmp_path) == ['other.css loads https://fonts.example.org/css?x']

def test_an_empty_folder_is_no_site(tmp_path): assert check.dead_links(tmp_path) == [f'{tmp_path} has no page']

FAKE = '''#!/bin/sh
# stands for Quarto and for nbdev-docs: what the test wants to be warned of, and a page
case "$0" in
  *nbdev-docs) quarto render; mkdir -p _docs; printf '%s' "$PAGE" > _docs/index.html; test "$FAILS" != 1;;
  *) printf '%s\\n' "$SAYS" >&2;;
esac
'''

@pytest.mark.skipif(os.name == 'nt', reason='docs/build is a shell script')
@pytest.mark.parametrize('says, page, fails, code, words', [
    ('Output created: _docs/index.html', '<a href="#">whole</a>', '0', 0, '1 pages, 0 mistakes'),
    ('[WARNING] Could not convert TeX math', '<a href="#">whole</a>', '0', 1, '[WARNING] Could not convert TeX math'),
    ('fine', '<a href="gone.html">x</a>', '0', 1, 'index.html: gone.html leads nowhere'),
    ('ERROR: no such format', '', '1', 1, 'ERROR: no such format')])
def test_build_ends_with_what_it_found(tmp_path, says, page, fails, code, words):
    "The script that the workflow runs, with a Quarto that says and writes what the test wants."
    for name in ('docs/build', 'docs/check.py', 'nbs/nbdev.yml'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/name, tmp_path/name)
    (tmp_path/'bin').mkdir()
    for name in ('quarto', 'nbdev-docs'):
        (tmp_path/'bin'/name).write_text(FAKE)
        (tmp_path/'bin'/name).chmod(0o755)
    (tmp_path/'bin'/'python').symlink_to(sys.executable)
    env = dict(os.environ, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', SAYS=says, PAGE=page, FAILS=fails)
    out = subprocess.run([tmp_path/'docs'/'build'], env=env, cwd='/', capture_output=True, text=True)
    assert out.returncode == code and words in out.stdout + out.stderr, out.stdout + out.stderr

@pytest.mark.skipif(os.name == 'nt', reason='docs/build is a shell script')
def test_build_says_how_to_get_quarto(tmp_path):
    for name in ('bash', 'dirname'): (tmp_path/name).symlink_to(shutil.which(name))
    out = subprocess.run([shutil.which('bash'), ROOT/'docs'/'build'], env=dict(PATH=str(tmp_path)), capture_output=True, text=True)
    assert out.returncode == 2 and 'https://quarto.org/docs/download' in out.stderr, out.stderr

def test_the_workflow_runs_the_same_script():
    assert re.search(r'run: docs/build$', (ROOT/'.github'/'workflows'/'docs.yml').read_text(encoding='utf-8'), flags=re.M)

# Links that nbdev's preparation makes of names in backticks

def test_public_names_become_links_and_private_ones_do_not():
    assert procs.linkify('by `RILS` and `rils.RILS`') == f'by [`RILS`]({SITE}methods/rils.html#rils) and [`rils.RILS`]({SITE}methods/rils.html#rils)'
    assert procs.linkify('`methods.rils.RILS`') == f'[`methods.rils.RILS`]({SITE}methods/rils.html#rils)'
    assert procs.linkify('`all_recipes()`') == f'[`all_recipes()`]({SITE}config.html#all_recipes)'
    for text in ('`_value` of the config', '```\n`RILS`\n```', '    `RILS`', '[`RILS`](13_rils.ipynb)', '`RILS and more`', '``RILS``'): assert procs.linkify(text) == text
    assert not [k for k in procs.places() if re.search(r'(^|\.)_', k)]

def test_a_name_of_two_modules_needs_its_module():
    names = [n.removeprefix(f'{m}.') for m, syms in procs.d['syms'].items() for n in syms]
    twice = sorted({n for n in names if names.count(n) > 1 and not n.startswith('_') and '.' not in n})
    for n in twice: assert procs.linkify(f'`{n}`') == f'`{n}`'

def test_long_defaults_are_left_out_of_signatures():
    from fastcore.nbio import mk_cell
    text = f'```python\ndef f(\n    x, # (B,)\n    prompts:list={["a photo of a {}"] * 85}, # of classes\n    n:int=3,\n):\n```'
    cell = mk_cell('show_doc(f)', outputs=[dict(output_type='display_data', data={'text/markdown': text})])
    procs.shorten(cell)
    assert cell['outputs'][0]['data']['text/markdown'] == '```python\ndef f(\n    x, # (B,)\n    prompts:list=..., # of classes\n    n:int=3,\n):\n```'

# Before Quarto

def proc(folder, **pages):  # Markdown of prepared notebooks
    for name, text in pages.items():
        (folder/f'{name}.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='raw', source=[f'---\noutput-file: {name[3:]}.html\n---\n']), dict(cell_type='markdown', source=[text])])))
    return folder

def test_dead_links_of_prepared_notebooks_are_found(tmp_path):
    whole = f'## What `f` does\n\n### f {{#g}}\n[a](01_b.ipynb#what-f-does) [b]({SITE}b.html#g) [c](#what-f-does)'
    assert check.dead_links_of_notebooks(proc(tmp_path, **{'00_a': whole, '01_b': whole})) == []
    proc(tmp_path, **{'00_a': f'[a](02_c.ipynb) [b](01_b.ipynb#no) [c]({SITE}c.html) [d]({SITE}b.html#_private)'})
    assert check.dead_links_of_notebooks(tmp_path) == ['00_a.ipynb: 01_b.ipynb#no has no such place', '00_a.ipynb: 02_c.ipynb leads nowhere',
                                                      '00_a.ipynb: b.html#_private has no such place', '00_a.ipynb: c.html leads nowhere']

@pytest.mark.slow
def test_pandoc_converts_every_cell_without_a_warning():
    "As Quarto does it, into the site's HTML and into the Markdown copies; needs pandoc, which Quarto brings."
    pandoc = shutil.which('pandoc')
    if not pandoc: pytest.skip('pandoc is not installed')
    from fastcore.nbio import read_nb
    variant = re.search(r'^    variant: (\S+)$', (ROOT/'_quarto.yml').read_text(encoding='utf-8'), re.M)[1]
    found = {}
    for p in sorted((ROOT/'nbs').rglob('[!_.]*.ipynb')):
        page = '\n\n'.join(check.texts(read_nb(p)))
        for to in (['-t', 'html', '--mathml'], ['-t', f'commonmark{variant}']):
            out = subprocess.run([pandoc, '-f', 'markdown', *to], input=page, capture_output=True, text=True)
            if out.returncode or out.stderr or 'math-error' in out.stdout: found[p.name, to[1]] = out.stderr[:300]
    assert not found, found
